/* cases.h - what the kernel tests share: the table under test, random numbers by seed, and matrices and pages filled
 * with them.
 *
 * Memory is exactly as large as the contract asks for, so that a sanitizer sees any step beyond it. */
#ifndef TESTS_KERNELS_CASES_H
#define TESTS_KERNELS_CASES_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/ops.h"

extern const kernel_ops *table; /* the one under test */

/* Runs the tests once for every table that this machine supports. */
int cases_run(const struct CMUnitTest *tests, size_t test_count);

void *cases_take(size_t bytes); /* zeroed, 64-byte aligned, lives until cases_release */
void cases_release(void);
int cases_teardown(void **state); /* cases_release as a cmocka fixture */

float cases_random(uint64_t *seed); /* about normal, variance 1 */
uint32_t cases_random_below(uint64_t *seed, uint32_t bound);
/* count random values times scale as dtype (f32 or bf16). */
void cases_fill(void *data, hd_dtype dtype, size_t count, float scale, uint64_t *seed);
float cases_get(const void *data, hd_dtype dtype, size_t index);

/* A matrix of random numbers of variance 1 / k. */
kernel_matrix cases_matrix(hd_dtype dtype, uint32_t n, uint32_t k, uint64_t *seed);

/* A context: token_count tokens in pages, and its keys and values as they were before packing; of int8, as they are
 * read. */
typedef struct cases_context {
    kernel_page_shape shape;
    uint32_t token_count, span_count;
    void *keys, *values; /* [token_count, dim] in kernel_row_dtype */
    kernel_span *spans;  /* one a page */
} cases_context;
cases_context cases_make_context(const kernel_page_shape *shape, uint32_t token_count, uint64_t *seed);

/* A call over the whole context: row_count random queries, rows_at_position of them at each of the last positions. */
kernel_attend cases_attend(const cases_context *context, uint32_t row_count, uint32_t rows_at_position, uint64_t *seed);
/* A copy of the call for another result. */
kernel_attend cases_attend_again(const kernel_attend *call);

#endif
