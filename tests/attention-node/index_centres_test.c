/* index_centres_test.c - centres in bytes score as their rows say that a search sees them. */
#include "attention-node/index_centres.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { COUNT = 200, DIM = 48 };

static float uniform(uint64_t *seed) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(*seed >> 40) * 0x1p-23f - 1.0f;
}

static void scores_are_those_of_the_rows_that_set_left(void **state) {
    static float rows[COUNT * DIM], before[COUNT * DIM], scores[COUNT];
    float z[DIM];
    uint64_t seed = 7;
    const kernel_ops *kernels;
    index_centres centres;
    index_carve carve = {0};
    index_centres_lay_out(&centres, COUNT, DIM, &carve);
    size_t bytes = carve.bytes;
    carve = (index_carve){.base = hd_alloc(bytes, HD_CACHE_LINE)};
    assert_non_null(carve.base);
    memset(carve.base, 0, bytes);
    index_centres_lay_out(&centres, COUNT, DIM, &carve);
    for (uint32_t i = 0; i < COUNT * DIM; i++) before[i] = rows[i] = uniform(&seed);
    for (uint32_t i = 0; i < DIM; i++) z[i] = uniform(&seed);
    assert_int_equal(kernel_ops_choose(NULL, &kernels, NULL), HD_OK);
    index_centres_set(&centres, rows, DIM);
    index_centres_score(&centres, kernels->scan, z, 3.0f, scores);
    for (uint32_t c = 0; c < COUNT; c++) {
        float score = 3.0f;
        for (uint32_t i = 0; i < DIM; i++) {
            float kept = rows[c * DIM + i];
            assert_true(i < INDEX_CENTRES_DIM ? fabsf(kept - before[c * DIM + i]) <= 0.005f : kept == 0.0f);
            score += z[i] * kept;
        }
        assert_true(fabsf(scores[c] - score) < 1e-3f);
    }
    hd_free(carve.base);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(scores_are_those_of_the_rows_that_set_left)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
