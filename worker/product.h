/* product.h - one matrix product spread over the threads of a pool run.
 *
 * Items are blocks of rows times a few panels of columns, taken by ticket: a thread that lost its core for a while
 * takes fewer. Which thread computes what does not change a bit (ops.h, rule 1).
 * Threads: product_run is called by every thread of one pool run with its own scratch; the caller puts a barrier
 * behind it. */
#ifndef WORKER_PRODUCT_H
#define WORKER_PRODUCT_H

#include <stdbool.h>

#include "base/threads.h"
#include "kernels/ops.h"

typedef struct product {
    kernel_matmul call;              /* scratch is left out */
    uint32_t panels_each, rows_each; /* of an item */
    uint32_t row_blocks, panel_blocks;
} product;

/* Splits the call into items; call->row_count >= 1. */
void product_init(product *product, const kernel_matmul *call, unsigned thread_count);
size_t product_items(const product *product);
void product_run_item(const product *product, const kernel_ops *kernels, size_t item, void *scratch);
void product_run(const product *product, const kernel_ops *kernels, _Atomic size_t *ticket, void *scratch);

#endif
