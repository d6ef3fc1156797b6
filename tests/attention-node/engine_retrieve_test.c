/* engine_retrieve_test.c - rows that search: what they find, from whom their indexes come, and with which bits. */
#include "tests/attention-node/toy.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const toy_shape shape_f32 = {2, 2, 3, 64, 32, HD_F32, {0, 0}, 0, false};
static const toy_shape shape_int8 = {2, 2, 3, 64, 32, HD_INT8, {0, 0}, 0, false};
static const toy_shape shape_bf16 = {2, 2, 3, 64, 32, HD_BF16, {0, 0}, 0, false};

static const kernel_ops *best(void) {
    const kernel_ops *kernels;
    assert_int_equal(kernel_ops_choose(NULL, &kernels, NULL), HD_OK);
    return kernels;
}

static void open_toy(toy *t, const toy_shape *of, unsigned threads) {
    toy_init(t, of);
    t->config.kernels = best();
    t->config.hot_bytes = 96u << 20;
    t->config.index_bytes = 64u << 20;
    t->config.index_builders = 2;
    toy_open(t, threads);
}

static hd_status start_from(toy *t, toy_sequence *s, uint64_t name, uint64_t prompt, uint64_t length,
                            const char *selection, uint64_t reuse_max, uint64_t *cached) {
    hd_error error = {.text = ""};
    toy_sequence_init(s, name, 1, length);
    s->selection = selection;
    s->prompt_count = prompt;
    toy_sequence_push_text(s, 5, prompt);
    hd_status status = toy_sequence_open(t, s, reuse_max, cached, &error);
    if (status != HD_OK) print_message("%s\n", error.text);
    toy_sequence_push_text(s, 6, length - prompt);
    return status;
}

static void start(toy *t, toy_sequence *s, uint64_t name, uint64_t prompt, uint64_t length, const char *selection) {
    uint64_t cached;
    assert_int_equal(start_from(t, s, name, prompt, length, selection, 0, &cached), HD_OK);
}

static size_t floats(const toy *t, uint64_t rows) {
    return t->shape.layer_count * rows * toy_row_floats(t);
}

static float *outputs_of(const toy *t, uint64_t rows) {
    return calloc(floats(t, rows), sizeof(float));
}

static void finish(toy *t, toy_sequence *s, bool keep) {
    assert_int_equal(t->attention->ops->sequence_close(t->attention, s->name, 1, keep, false), HD_OK);
    toy_sequence_fini(s);
}

/* Rows first .. length-1 of a sequence of its own. */
static void run_pulled(const toy_shape *of, float sink_pull, unsigned threads, uint64_t chunk, uint64_t prompt,
                       uint64_t length, const char *selection, uint64_t first, float *outputs) {
    toy t;
    toy_sequence s;
    open_toy(&t, of, threads);
    t.sink_pull = sink_pull;
    start(&t, &s, 1, prompt, length, selection);
    toy_run(&t, &s, 0, first, 500, NULL);
    toy_run(&t, &s, first, length - first, chunk, outputs);
    finish(&t, &s, false);
    toy_fini(&t);
}

static void run_alone(const toy_shape *of, unsigned threads, uint64_t chunk, uint64_t prompt, uint64_t length,
                      const char *selection, uint64_t first, float *outputs) {
    run_pulled(of, 0.0f, threads, chunk, prompt, length, selection, first, outputs);
}

static double largest_difference(const float *a, const float *b, size_t count) {
    double largest = 0.0;
    for (size_t i = 0; i < count; i++) largest = fmax(largest, fabs((double)a[i] - b[i]));
    return largest;
}

static void an_index_that_returns_everything_gives_full_attention(void **state) {
    enum { PROMPT = 2600, LENGTH = 3200, FIRST = PROMPT };
    toy t;
    toy_init(&t, &shape_f32);
    float *full = outputs_of(&t, LENGTH - FIRST), *found = outputs_of(&t, LENGTH - FIRST);
    run_alone(&shape_f32, 2, 200, PROMPT, LENGTH, NULL, FIRST, full);
    run_alone(&shape_f32, 2, 200, PROMPT, LENGTH, "retrieval,index=exact,tokens=2048", FIRST, found);
    assert_true(largest_difference(full, found, floats(&t, LENGTH - FIRST)) < 1e-5);
    /* It can fail: a handful of tokens is not everything. */
    run_alone(&shape_f32, 2, 200, PROMPT, LENGTH, "retrieval,index=exact,tokens=8", FIRST, found);
    assert_true(largest_difference(full, found, floats(&t, LENGTH - FIRST)) > 1e-3);
    free(full);
    free(found);
    toy_fini(&t);
}

static double relative_error(const float *a, const float *reference, size_t count) {
    double square = 0.0, whole = 0.0;
    for (size_t i = 0; i < count; i++) {
        square += pow((double)a[i] - reference[i], 2.0);
        whole += pow(reference[i], 2.0);
    }
    return sqrt(square / whole);
}

/* The first tokens carry most of the weight, and there are more of them than an index is asked for. */
static void sinks_count_once_beside_an_estimate_of_the_rest(void **state) {
    enum { PROMPT = 4300, LENGTH = 4320, FIRST = PROMPT };
    const float pull = 6.0f;
    toy t;
    toy_init(&t, &shape_bf16);
    size_t count = floats(&t, LENGTH - FIRST);
    float *full = outputs_of(&t, LENGTH - FIRST), *found = outputs_of(&t, LENGTH - FIRST);
    run_pulled(&shape_bf16, pull, 2, 500, PROMPT, LENGTH, NULL, FIRST, full);
    run_pulled(&shape_bf16, pull, 2, 500, PROMPT, LENGTH, "retrieval,index=clusters,tokens=16", FIRST, found);
    double error = relative_error(found, full, count);
    print_message("with the estimate: %.3f\n", error);
    run_pulled(&shape_bf16, pull, 2, 500, PROMPT, LENGTH, "retrieval,index=clusters,tokens=16,estimate=0", FIRST,
               found);
    double without = relative_error(found, full, count);
    print_message("without: %.3f\n", without);
    assert_true(error < 0.1);
    assert_true(error < without / 2);
    free(full);
    free(found);
    toy_fini(&t);
}

static void check_chunks_and_threads(const toy_shape *shape) {
    enum { PROMPT = 2100, LENGTH = 3300 }; /* two extents, the second one built while decoding */
    toy t;
    toy_init(&t, shape);
    float *reference = outputs_of(&t, LENGTH - PROMPT), *outputs = outputs_of(&t, LENGTH - PROMPT);
    const char *text = "retrieval,index=exact,tokens=16";
    run_alone(shape, 1, 1, PROMPT, LENGTH, text, PROMPT, reference);
    const uint64_t chunks[] = {7, 1000};
    for (unsigned i = 0; i < 2; i++) {
        run_alone(shape, i + 2, chunks[i], PROMPT, LENGTH, text, PROMPT, outputs);
        assert_memory_equal(outputs, reference, floats(&t, LENGTH - PROMPT) * sizeof(float));
    }
    free(reference);
    free(outputs);
    toy_fini(&t);
}

static void bits_do_not_depend_on_chunks_and_threads(void **state) {
    check_chunks_and_threads(&shape_bf16);
    check_chunks_and_threads(&shape_int8);
}

static void a_cached_prompt_and_its_indexes_give_the_same_bits(void **state) {
    enum { PROMPT = 3000, LENGTH = 3100, COUNT = LENGTH - PROMPT };
    const char *text = "retrieval,index=exact,tokens=16";
    toy t;
    toy_sequence s[4];
    open_toy(&t, &shape_bf16, 2);
    float *reference = outputs_of(&t, COUNT), *outputs = outputs_of(&t, COUNT);
    start(&t, &s[0], 1, PROMPT, LENGTH, text);
    toy_run(&t, &s[0], 0, PROMPT, 500, NULL);
    toy_run(&t, &s[0], PROMPT, COUNT, 1, reference);

    uint64_t cached; /* from an open sequence, then from closed ones */
    assert_int_equal(start_from(&t, &s[1], 2, PROMPT, LENGTH, text, PROMPT, &cached), HD_OK);
    assert_int_equal(cached, PROMPT / 128 * 128);
    toy_run(&t, &s[1], cached, PROMPT - cached, 500, NULL);
    toy_run(&t, &s[1], PROMPT, COUNT, 9, outputs);
    assert_memory_equal(outputs, reference, floats(&t, COUNT) * sizeof(float));
    finish(&t, &s[0], true);
    finish(&t, &s[1], true);
    for (uint32_t i = 2; i < 4; i++) {
        assert_int_equal(start_from(&t, &s[i], i + 1, PROMPT, LENGTH, text, PROMPT, &cached), HD_OK);
        assert_int_equal(cached, PROMPT / 128 * 128);
        toy_run(&t, &s[i], cached, PROMPT - cached, 500, NULL);
        toy_run(&t, &s[i], PROMPT, COUNT, 100, outputs);
        assert_memory_equal(outputs, reference, floats(&t, COUNT) * sizeof(float));
        finish(&t, &s[i], true);
    }
    free(reference);
    free(outputs);
    toy_fini(&t);
}

static void forks_and_cuts_give_the_same_bits(void **state) {
    enum { PROMPT = 2500, LENGTH = 2600, COUNT = LENGTH - PROMPT };
    const char *text = "retrieval,index=exact,tokens=16";
    toy t;
    toy_sequence s;
    open_toy(&t, &shape_bf16, 2);
    float *reference = outputs_of(&t, COUNT), *outputs = outputs_of(&t, COUNT);
    start(&t, &s, 1, PROMPT, LENGTH, text);
    toy_run(&t, &s, 0, PROMPT, 500, NULL);
    toy_run(&t, &s, PROMPT, COUNT, 100, reference);
    assert_int_equal(t.attention->ops->fork(t.attention, 1, PROMPT - 1, 2, 1, LENGTH, NULL), HD_OK);
    s.name = 2;
    toy_run(&t, &s, PROMPT - 1, 1, 1, NULL);
    toy_run(&t, &s, PROMPT, COUNT, 1, outputs);
    assert_memory_equal(outputs, reference, floats(&t, COUNT) * sizeof(float));
    assert_int_equal(t.attention->ops->truncate(t.attention, 2, 1, 1000), HD_OK);
    toy_run(&t, &s, 1000, PROMPT - 1000, 700, NULL);
    toy_run(&t, &s, PROMPT, COUNT, 13, outputs);
    assert_memory_equal(outputs, reference, floats(&t, COUNT) * sizeof(float));
    assert_int_equal(t.attention->ops->sequence_close(t.attention, 1, 1, false, false), HD_OK);
    s.epoch = 2; /* a takeover that may grow further */
    s.tokens_max = LENGTH + 2000;
    s.length = LENGTH - 50;
    uint64_t cached;
    assert_int_equal(toy_sequence_open(&t, &s, 0, &cached, NULL), HD_OK);
    s.length = LENGTH;
    toy_run(&t, &s, LENGTH - 50, 50, 13, outputs);
    size_t row_floats = toy_row_floats(&t);
    for (uint32_t layer = 0; layer < 2; layer++) {
        assert_memory_equal(outputs + layer * 50 * row_floats, reference + (layer * COUNT + COUNT - 50) * row_floats,
                            50 * row_floats * sizeof(float));
    }
    toy_sequence_fini(&s);
    free(reference);
    free(outputs);
    toy_fini(&t);
}

static void memory_for_indexes_is_refused_by_name_and_comes_back(void **state) {
    toy t;
    toy_sequence s[3];
    uint64_t cached;
    toy_init(&t, &shape_bf16);
    t.config.kernels = best();
    t.config.hot_bytes = 96u << 20;
    toy_open(&t, 1);
    hd_error error = {.text = ""};
    toy_sequence_init(&s[0], 1, 1, 4000);
    s[0].selection = "retrieval,index=exact";
    toy_sequence_push_text(&s[0], 5, 100);
    assert_int_equal(toy_sequence_open(&t, &s[0], 0, &cached, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "--index-memory"));
    s[0].selection = "window"; /* nothing of it is left open */
    assert_int_equal(toy_sequence_open(&t, &s[0], 0, &cached, NULL), HD_OK);
    toy_sequence_fini(&s[0]);
    toy_close(&t);

    t.config.index_bytes = 8u << 20;
    t.config.index_builders = 1;
    toy_open(&t, 1);
    uint32_t open = 0;
    hd_status status = HD_OK;
    for (; open < 3 && status == HD_OK; open += status == HD_OK)
        status = start_from(&t, &s[open], open + 1, 100, 4000, "retrieval,index=exact", 0, &cached);
    assert_int_equal(status, HD_OK); /* small ones fit */
    for (uint32_t i = 0; i < open; i++) finish(&t, &s[i], i > 0);
    toy_fini(&t);
}

static bool is_ready(const toy *t, uint64_t name, uint64_t position) {
    return t->attention->ops->sequence_is_ready(t->attention, name, position);
}

static uint64_t waits_of(const toy *t) {
    attention_stats stats;
    t->attention->ops->stats(t->attention, &stats);
    return stats.index_waits;
}

static void whoever_asks_before_a_step_need_not_wait_in_it(void **state) {
    enum { PROMPT = 4000, LENGTH = 4200 };
    const char *text = "retrieval,index=clusters,tokens=16";
    toy t;
    toy_sequence s[2];
    open_toy(&t, &shape_bf16, 2);
    start(&t, &s[0], 1, PROMPT, LENGTH, text);
    start(&t, &s[1], 2, PROMPT, LENGTH, NULL);
    for (uint32_t i = 0; i < 2; i++) toy_run(&t, &s[i], 0, PROMPT, 1000, NULL);
    assert_true(is_ready(&t, 1, PROMPT - 1)); /* a prompt's rows see everything */
    assert_true(is_ready(&t, 2, PROMPT));
    for (uint64_t at = PROMPT; at < LENGTH; at++) {
        for (uint32_t tries = 0; !is_ready(&t, 1, at); tries++) {
            assert_in_range(tries, 0, 20000);
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        }
        toy_run(&t, &s[0], at, 1, 1, NULL);
    }
    assert_int_equal(waits_of(&t), 0);
    for (uint32_t i = 0; i < 2; i++) finish(&t, &s[i], false);
    toy_close(&t);

    t.config.index_builders = 0; /* nobody makes it */
    toy_open(&t, 2);
    start(&t, &s[0], 1, PROMPT, LENGTH, text);
    toy_run(&t, &s[0], 0, PROMPT, 1000, NULL);
    assert_true(is_ready(&t, 1, PROMPT - 1));
    assert_false(is_ready(&t, 1, PROMPT));
    finish(&t, &s[0], false);
    toy_fini(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_index_that_returns_everything_gives_full_attention),
        cmocka_unit_test(sinks_count_once_beside_an_estimate_of_the_rest),
        cmocka_unit_test(bits_do_not_depend_on_chunks_and_threads),
        cmocka_unit_test(a_cached_prompt_and_its_indexes_give_the_same_bits),
        cmocka_unit_test(forks_and_cuts_give_the_same_bits),
        cmocka_unit_test(whoever_asks_before_a_step_need_not_wait_in_it),
        cmocka_unit_test(memory_for_indexes_is_refused_by_name_and_comes_back),
    };
    return cmocka_run_group_tests_name("engine_retrieve", tests, NULL, NULL);
}
