/* index_recall_test.c - what indexes find and estimate on data of both kinds, and at what reading. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attention-node/index.h"
#include "kernels/dtype.h"
#include "tests/attention-node/index_data.h"

enum { DIM = 64, KEYS = 16 * INDEX_GRAIN, TESTS = 24, BEST = 50, ASKED = 200 };

static index_params params_of(const char *name, bool has_rest) {
    index_params params = {.key_dim = DIM, .value_dim = DIM, .keys_max = KEYS, .seed = 3, .has_rest = has_rest};
    assert_int_equal(index_kind_find(name, &params.kind, NULL), HD_OK);
    assert_int_equal(kernel_ops_choose(NULL, &params.kernels, NULL), HD_OK);
    return params;
}

typedef struct figures {
    float recall, scanned;
} figures;

static figures measure(const char *name, index_data_kind kind) {
    const index_extent extent = {KEYS, KEYS};
    index_params params = params_of(name, false);
    index_data data = index_data_make(kind, DIM, KEYS, TESTS, 5);
    kv_index *index = index_data_build(&data, &params, KEYS, KEYS);
    figures f = {0};
    for (uint32_t test = 0; test < TESTS; test++) {
        index_search search = index_data_search(index, &params, &data, &extent, test, ASKED);
        f.recall += index_data_recall(&data, test, KEYS, BEST, &search) / TESTS;
        f.scanned += (float)search.bytes_scanned / (float)(KEYS * DIM * 2) / TESTS;
        free(search.tokens);
    }
    index_close(index);
    index_data_free(&data);
    print_message("%s: recall %.3f, scanned %.1f %%\n", name, f.recall, f.scanned * 100);
    return f;
}

static void clusters_find_keys_around_a_large_mean(void **state) {
    figures f = measure("clusters", INDEX_DATA_SHIFTED);
    assert_true(f.recall >= 0.98f);
    assert_true(f.scanned <= 0.12f);
}

static void clusters_find_keys_that_turn_with_position(void **state) {
    figures f = measure("clusters", INDEX_DATA_TURNING);
    assert_true(f.recall >= 0.85f);
    assert_true(f.scanned <= 0.12f);
}

static void a_graph_finds_keys_around_a_large_mean(void **state) {
    figures f = measure("graph", INDEX_DATA_SHIFTED);
    assert_true(f.recall >= 0.98f);
    assert_true(f.scanned <= 0.05f);
}

static void a_graph_finds_keys_that_turn_with_position(void **state) {
    figures f = measure("graph", INDEX_DATA_TURNING);
    assert_true(f.recall >= 0.8f);
    assert_true(f.scanned <= 0.09f);
}

static void bounds_find_keys_by_reading_more(void **state) {
    assert_true(measure("bounds", INDEX_DATA_SHIFTED).recall >= 0.5f);
}

/* Clusters in groups, and tokens of both halves of a segment; the estimate, which looks at every group, changes nothing
 * of what is found. */
static void clusters_of_a_long_segment_are_found_by_their_groups(void **state) {
    enum { LONG = 128 * INDEX_GRAIN, FEW = 6, MANY = 350 };
    const index_extent extent = {LONG, LONG};
    index_params params = params_of("clusters", true);
    params.keys_max = LONG;
    index_data data = index_data_make(INDEX_DATA_SHIFTED, DIM, LONG, FEW, 5);
    kv_index *index = index_data_build(&data, &params, LONG, LONG);
    float recall = 0.0f, out[DIM], max, sum;
    kernel_partial rest = {.out = out, .out_stride = DIM, .max = &max, .sum = &sum};
    uint32_t late = 0, tokens[MANY];
    for (uint32_t test = 0; test < FEW; test++) {
        index_search search = index_data_search(index, &params, &data, &extent, test, MANY);
        recall += index_data_recall(&data, test, LONG, BEST, &search) / FEW;
        assert_true((float)search.bytes_scanned <= 0.02f * (float)(LONG * DIM * 2));
        for (uint32_t i = 0; i < search.token_count; i++) late += search.tokens[i] >= LONG / 2;
        index_search both = {.queries = data.tests + (size_t)test * DIM,
                             .query_stride = DIM,
                             .query_count = 1,
                             .scale = data.scale,
                             .extent = extent,
                             .tokens_each = MANY,
                             .tokens = tokens,
                             .rest = &rest,
                             .scratch = hd_alloc(index_search_bytes(&params, 1, MANY), 64)};
        index_search_run(index, &both);
        assert_int_equal(both.token_count, search.token_count);
        assert_memory_equal(both.tokens, search.tokens, search.token_count * sizeof(uint32_t));
        assert_int_equal(both.bytes_scanned, search.bytes_scanned);
        hd_free(both.scratch);
        free(search.tokens);
    }
    print_message("clusters, %u keys: recall %.3f\n", LONG, recall);
    assert_true(recall >= 0.95f);
    assert_true(late > 0 && late < FEW * MANY);
    index_close(index);
    index_data_free(&data);
}

/* ---- the rest ---- */

typedef struct softmax {
    double max, sum, out[DIM];
} softmax;

static void add(softmax *a, double log_weight, double sum, const double *out) { /* sum and out are relative to it */
    if (!(sum > 0.0)) return;
    double max = a->sum > 0.0 && a->max > log_weight ? a->max : log_weight;
    double old = a->sum > 0.0 ? exp(a->max - max) : 0.0, new = exp(log_weight - max);
    a->sum = a->sum * old + sum * new;
    for (uint32_t i = 0; i < DIM; i++) a->out[i] = a->out[i] * old + out[i] * new;
    a->max = max;
}

static void add_token(softmax *a, const index_data *data, const float *scores, uint32_t token) {
    double value[DIM];
    for (uint32_t i = 0; i < DIM; i++) value[i] = hd_bf16_to_f32(data->values[(size_t)token * DIM + i]);
    add(a, (double)scores[token] * (double)data->scale, 1.0, value);
}

static double distance(const softmax *a, const softmax *b) {
    double difference = 0.0, length = 0.0;
    for (uint32_t i = 0; i < DIM; i++) {
        double right = b->out[i] / b->sum, delta = a->out[i] / a->sum - right;
        difference += delta * delta;
        length += right * right;
    }
    return sqrt(difference / length);
}

typedef struct output_errors {
    double with, without; /* the estimate, mean over queries */
} output_errors;

/* Two queries as a group: what either finds is left out of both estimates. Scores are `sharpness` times as far apart as
 * those of the data. */
static output_errors measure_rest(index_data_kind kind, float sharpness) {
    const index_extent extent = {KEYS, KEYS};
    index_params params = params_of("clusters", true);
    index_data data = index_data_make(kind, DIM, KEYS, TESTS, 6);
    data.scale *= sharpness;
    kv_index *index = index_data_build(&data, &params, KEYS, KEYS);
    float out[2][DIM], max[2], sum[2], *scores = malloc(KEYS * sizeof(*scores));
    kernel_partial rest = {.out = out[0], .out_stride = DIM, .max = max, .sum = sum};
    uint32_t tokens[2 * ASKED];
    index_search search = {.query_stride = DIM,
                           .query_count = 2,
                           .scale = data.scale,
                           .extent = extent,
                           .tokens_each = ASKED,
                           .tokens = tokens,
                           .rest = &rest};
    search.scratch = hd_alloc(index_search_bytes(&params, 2, ASKED), 64);
    output_errors errors = {0};
    for (uint32_t test = 0; test + 1 < TESTS; test += 2) {
        search.queries = data.tests + (size_t)test * DIM;
        index_search_run(index, &search);
        assert_true(search.bytes_rest > 0);
        for (uint32_t row = 0; row < 2; row++) {
            softmax found = {0}, all = {0};
            double estimate[DIM];
            index_data_scores(&data, test + row, KEYS, scores);
            for (uint32_t i = 0; i < search.token_count; i++) add_token(&found, &data, scores, tokens[i]);
            for (uint32_t i = 0; i < KEYS; i++) add_token(&all, &data, scores, i);
            errors.without += distance(&found, &all) / TESTS;
            for (uint32_t i = 0; i < DIM; i++) estimate[i] = out[row][i];
            add(&found, max[row], sum[row], estimate);
            errors.with += distance(&found, &all) / TESTS;
        }
    }
    print_message("error %.4f with the rest, %.4f without\n", errors.with, errors.without);
    hd_free(search.scratch);
    free(scores);
    index_close(index);
    index_data_free(&data);
    return errors;
}

static void the_estimate_of_the_rest_takes_most_of_the_error_away(void **state) {
    output_errors shifted = measure_rest(INDEX_DATA_SHIFTED, 1.0f), turning = measure_rest(INDEX_DATA_TURNING, 1.0f);
    assert_true(shifted.with < 0.03 * shifted.without);
    assert_true(turning.with < 0.06 * turning.without);
}

/* A NaN fails too. */
static void the_estimate_does_no_harm_where_scores_are_tens_or_hundreds_apart(void **state) {
    for (float sharpness = 10.0f; sharpness <= 10000.0f; sharpness *= 10.0f) {
        for (index_data_kind kind = INDEX_DATA_SHIFTED; kind <= INDEX_DATA_TURNING; kind++) {
            output_errors errors = measure_rest(kind, sharpness);
            assert_true(errors.with <= errors.without + 0.01);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clusters_find_keys_around_a_large_mean),
        cmocka_unit_test(clusters_find_keys_that_turn_with_position),
        cmocka_unit_test(a_graph_finds_keys_around_a_large_mean),
        cmocka_unit_test(a_graph_finds_keys_that_turn_with_position),
        cmocka_unit_test(bounds_find_keys_by_reading_more),
        cmocka_unit_test(clusters_of_a_long_segment_are_found_by_their_groups),
        cmocka_unit_test(the_estimate_of_the_rest_takes_most_of_the_error_away),
        cmocka_unit_test(the_estimate_does_no_harm_where_scores_are_tens_or_hundreds_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
