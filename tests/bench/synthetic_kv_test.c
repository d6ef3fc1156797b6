/* synthetic_kv_test.c - made-up heads are made the same again, and are what trained models' heads are like. */
#include "bench/synthetic_kv.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "kernels/dtype.h"

enum { DIM = 64, BLOCKS = 16, COUNT = BLOCKS * HD_BLOCK_TOKENS, GROUP = 4, HEADS = 2 };

static synthetic_kv *kv;
static uint16_t keys[COUNT * DIM], values[COUNT * DIM];

static int open_heads(void **state) {
    if (synthetic_kv_open(kernel_ops_portable(), 2, HEADS, GROUP, DIM, &kv) != HD_OK) return -1;
    for (uint32_t b = 0; b < BLOCKS; b++)
        synthetic_kv_rows(kv, 1, 1, b * HD_BLOCK_TOKENS, HD_BLOCK_TOKENS, keys + b * HD_BLOCK_TOKENS * DIM,
                          values + b * HD_BLOCK_TOKENS * DIM);
    return 0;
}

static int close_heads(void **state) {
    synthetic_kv_close(kv);
    return 0;
}

static double at(const uint16_t *rows, uint32_t row, uint32_t i) {
    return (double)hd_bf16_to_f32(rows[row * DIM + i]);
}

static void rows_are_a_function_of_their_place(void **state) {
    uint16_t some_keys[5 * DIM], some_values[5 * DIM];
    synthetic_kv_rows(kv, 1, 1, 3 * HD_BLOCK_TOKENS + 17, 5, some_keys, some_values);
    assert_memory_equal(some_keys, keys + (3 * HD_BLOCK_TOKENS + 17) * DIM, sizeof(some_keys));
    assert_memory_equal(some_values, values + (3 * HD_BLOCK_TOKENS + 17) * DIM, sizeof(some_values));
    synthetic_kv_rows(kv, 1, 0, 3 * HD_BLOCK_TOKENS + 17, 5, some_keys, some_values);
    assert_memory_not_equal(some_keys, keys + (3 * HD_BLOCK_TOKENS + 17) * DIM, sizeof(some_keys));
}

static void keys_share_a_large_mean_and_values_have_variance_one(void **state) {
    double mean[DIM] = {0}, length = 0.0, spread = 0.0, value = 0.0;
    for (uint32_t r = 0; r < COUNT; r++)
        for (uint32_t i = 0; i < DIM; i++) mean[i] += at(keys, r, i) / COUNT;
    for (uint32_t i = 0; i < DIM; i++) length += mean[i] * mean[i];
    for (uint32_t r = 0; r < COUNT; r++) {
        for (uint32_t i = 0; i < DIM; i++) {
            spread += pow(at(keys, r, i) - mean[i], 2.0) / COUNT;
            value += pow(at(values, r, i), 2.0) / COUNT / DIM;
        }
    }
    assert_true(sqrt(length / spread) > 2.0 && sqrt(length / spread) < 3.2);
    assert_true(value > 0.7 && value < 1.4);
}

static void scores_vary_as_those_of_trained_heads_do(void **state) {
    double deviations = 0.0;
    for (uint32_t q = 0; q < 32; q++) {
        uint16_t query[DIM];
        double sum = 0.0, square = 0.0;
        synthetic_kv_query(kv, 1, 1, q * 16, query);
        for (uint32_t r = 0; r < COUNT; r++) {
            double score = 0.0;
            for (uint32_t i = 0; i < DIM; i++) score += at(query, 0, i) * at(keys, r, i) / sqrt(DIM);
            sum += score / COUNT;
            square += score * score / COUNT;
        }
        deviations += sqrt(square - sum * sum) / 32;
    }
    assert_true(deviations > 1.8 && deviations < 3.2);
}

/* Queries of one step and the next, the mean of all taken away. */
static void queries_drift(void **state) {
    enum { STEPS = 64, QUERIES = 2 * HEADS * GROUP };
    static uint16_t asked[STEPS][QUERIES][DIM];
    for (uint32_t step = 0; step < STEPS; step++, synthetic_kv_drift(kv))
        for (uint32_t q = 0; q < QUERIES; q++)
            synthetic_kv_asked(kv, q / (HEADS * GROUP), q % (HEADS * GROUP), asked[step][q]);
    double together = 0.0, alone = 0.0;
    for (uint32_t q = 0; q < QUERIES; q++) {
        for (uint32_t i = 0; i < DIM; i++) {
            double mean = 0.0;
            for (uint32_t step = 0; step < STEPS; step++) mean += (double)hd_bf16_to_f32(asked[step][q][i]) / STEPS;
            for (uint32_t step = 0; step + 1 < STEPS; step++) {
                double now = (double)hd_bf16_to_f32(asked[step][q][i]) - mean;
                together += now * ((double)hd_bf16_to_f32(asked[step + 1][q][i]) - mean);
                alone += now * now;
            }
        }
    }
    assert_true(fabs(together / alone - SYNTHETIC_KV_KEPT) < 0.12);
}

static void heads_of_odd_sizes_are_refused(void **state) {
    synthetic_kv *none;
    assert_int_equal(synthetic_kv_open(kernel_ops_portable(), 1, 1, 1, 48, &none), HD_UNSUPPORTED);
    assert_int_equal(synthetic_kv_open(kernel_ops_portable(), 1, 1, 1, 512, &none), HD_UNSUPPORTED);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_a_function_of_their_place),
        cmocka_unit_test(keys_share_a_large_mean_and_values_have_variance_one),
        cmocka_unit_test(scores_vary_as_those_of_trained_heads_do),
        cmocka_unit_test(queries_drift),
        cmocka_unit_test(heads_of_odd_sizes_are_refused),
    };
    return cmocka_run_group_tests_name("synthetic_kv", tests, open_heads, close_heads);
}
