/* engine_select_test.c - rows that attend to a part of their sequence: which, and with which bits. */
#include "attention-node/selection_overrides.h"
#include "tests/attention-node/toy.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const toy_shape shape = {2, 2, 3, 64, 32, HD_BF16, {0, 0}, 0, false};

static const kernel_ops *best(void) {
    const kernel_ops *kernels;
    assert_int_equal(kernel_ops_choose(NULL, &kernels, NULL), HD_OK);
    return kernels;
}

static void open_toy(toy *t, const toy_shape *of, unsigned threads) {
    toy_init(t, of);
    t->config.kernels = best();
    t->config.hot_bytes = 48u << 20;
    toy_open(t, threads);
}

static void start(toy *t, toy_sequence *s, uint64_t name, uint64_t prompt, uint64_t length, const char *chosen) {
    uint64_t cached;
    toy_sequence_init(s, name, 1, length);
    s->selection = chosen;
    s->prompt_count = prompt;
    toy_sequence_push_text(s, 5, prompt);
    assert_int_equal(toy_sequence_open(t, s, 0, &cached, NULL), HD_OK);
    toy_sequence_push_text(s, 6, length - prompt);
}

static size_t floats(const toy *t, uint64_t rows) {
    return t->shape.layer_count * rows * toy_row_floats(t);
}

static float *outputs_of(const toy *t, uint64_t rows) {
    return calloc(floats(t, rows), sizeof(float));
}

static void check_window(const toy_shape *of, uint64_t prompt, uint64_t sinks, uint64_t recent) {
    enum { LENGTH = 2700 };
    toy t;
    toy_sequence s;
    char text[64];
    snprintf(text, sizeof(text), "window,sinks=%u,recent=%u", (unsigned)sinks, (unsigned)recent);
    open_toy(&t, of, 2);
    start(&t, &s, 1, prompt, LENGTH, text);
    s.sinks = sinks;
    s.recent = recent;
    toy_run(&t, &s, 0, LENGTH, 173, NULL);
    const uint64_t positions[] = {100, prompt - 1, prompt, prompt + 1, 1500, 2047, 2048, LENGTH - 1};
    for (size_t i = 0; i < sizeof(positions) / sizeof(positions[0]); i++) toy_check_row(&t, &s, positions[i]);
    toy_sequence_fini(&s);
    toy_fini(&t);
}

static void a_window_is_what_the_answer_sees_and_the_prompt_sees_everything(void **state) {
    check_window(&shape, 1300, 128, 256);
    check_window(&shape, 1300, 0, 128);
    check_window(&shape, 200, 77, 1111);
    check_window(&(toy_shape){1, 1, 4, 64, 64, HD_F32, {0}, 0, false}, 500, 5, 300);
    check_window(&(toy_shape){1, 2, 2, 64, 64, HD_F32, {0}, 5.0f, true}, 500, 130, 200);
}

static void layers_with_a_window_of_their_own_keep_to_it(void **state) {
    /* What such a layer hides stays hidden, and the rest is little enough to be attended to whole. */
    toy_shape windowed = shape;
    windowed.windows[0] = windowed.windows[1] = 700;
    toy t;
    toy_sequence s;
    open_toy(&t, &windowed, 2);
    start(&t, &s, 1, 300, 1500, "window,sinks=4,recent=128");
    s.recent = UINT32_MAX;
    toy_run(&t, &s, 0, 1500, 250, NULL);
    toy_check_row(&t, &s, 1499);
    toy_sequence_fini(&s);
    toy_fini(&t);
}

static void run_window(unsigned threads, uint64_t chunk, uint64_t length, const char *chosen, float *outputs) {
    toy t;
    toy_sequence s;
    open_toy(&t, &shape, threads);
    start(&t, &s, 1, 1100, length, chosen);
    toy_run(&t, &s, 0, length, chunk, outputs);
    toy_sequence_fini(&s);
    toy_fini(&t);
}

/* A token that was generated and is prefilled again later sees what it saw. */
static void bits_do_not_depend_on_chunks_and_threads(void **state) {
    enum { LENGTH = 1500 };
    toy t;
    toy_init(&t, &shape);
    float *reference = outputs_of(&t, LENGTH), *outputs = outputs_of(&t, LENGTH);
    const char *text = "window,sinks=128,recent=200";
    run_window(1, 1, LENGTH, text, reference);
    const uint64_t chunks[] = {7, 500, 1000};
    for (unsigned i = 0; i < 3; i++) {
        run_window(i + 1, chunks[i], LENGTH, text, outputs);
        assert_memory_equal(outputs, reference, floats(&t, LENGTH) * sizeof(float));
    }
    free(reference);
    free(outputs);
    toy_fini(&t);
}

static void what_leaves_nothing_out_has_the_bits_of_full(void **state) {
    enum { LENGTH = 2200 };
    toy t;
    toy_init(&t, &shape);
    float *reference = outputs_of(&t, LENGTH), *outputs = outputs_of(&t, LENGTH);
    run_window(2, 300, LENGTH, NULL, reference);
    run_window(2, 300, LENGTH, "window,sinks=1024,recent=1176", outputs);
    assert_memory_equal(outputs, reference, floats(&t, LENGTH) * sizeof(float));
    run_window(2, 300, LENGTH, "window,sinks=0,recent=128,full_layers=2", outputs);
    assert_memory_equal(outputs, reference, floats(&t, LENGTH) * sizeof(float));
    run_window(2, 300, LENGTH, "window,sinks=0,recent=128", outputs);
    assert_memory_not_equal(outputs, reference, floats(&t, LENGTH) * sizeof(float));
    free(reference);
    free(outputs);
    toy_fini(&t);
}

static void one_step_may_mix_selections(void **state) {
    enum { COUNT = 4, LENGTH = 1400 };
    const char *const selections[COUNT] = {"full", "window,recent=128", "window,recent=700", "full"};
    toy t;
    toy_sequence s[COUNT];
    open_toy(&t, &shape, 2);
    float *alone = outputs_of(&t, COUNT), *together = outputs_of(&t, COUNT);
    size_t row_floats = toy_row_floats(&t);
    toy_rows rows[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) {
        start(&t, &s[i], i + 1, 600, LENGTH, selections[i]);
        toy_run(&t, &s[i], 0, LENGTH, 400, NULL);
        rows[i] = (toy_rows){&s[i], LENGTH - 1, 1};
        float one[2 * 192];
        assert_true(floats(&t, 1) <= 2 * 192);
        toy_run(&t, &s[i], LENGTH - 1, 1, 1, one);
        for (uint32_t layer = 0; layer < 2; layer++)
            memcpy(alone + (layer * COUNT + i) * row_floats, one + layer * row_floats, row_floats * sizeof(float));
    }
    assert_int_equal(toy_step(&t, rows, COUNT, together, NULL), HD_OK);
    assert_memory_equal(together, alone, floats(&t, COUNT) * sizeof(float));
    for (uint32_t i = 0; i < COUNT; i++) toy_sequence_fini(&s[i]);
    free(alone);
    free(together);
    toy_fini(&t);
}

static void overrides_rule_layers_and_heads(void **state) {
    enum { PROMPT = 300, LENGTH = 900 };
    uint8_t modes[4] = {OVERRIDE_FULL, OVERRIDE_NONE, OVERRIDE_FULL, OVERRIDE_FULL};
    selection_overrides overrides = {.layer_count = 2, .heads_max = 2, .modes = modes};
    toy t;
    toy_sequence s;
    toy_init(&t, &shape);
    t.config.kernels = best();
    t.config.hot_bytes = 48u << 20;
    t.config.overrides = &overrides;
    toy_open(&t, 2);
    start(&t, &s, 1, PROMPT, LENGTH, "window,sinks=10,recent=200");
    toy_run(&t, &s, 0, LENGTH, 100, NULL);
    float outputs[2 * 192], full[192], window[192];
    assert_true(floats(&t, 1) == 2 * 192);
    toy_run(&t, &s, LENGTH - 1, 1, 1, outputs);
    s.selection = NULL; /* what is expected of heads that see everything */
    toy_expect(&t, &s, 0, LENGTH - 1, full);
    s.selection = "window";
    s.sinks = 10;
    s.recent = 200;
    toy_expect(&t, &s, 0, LENGTH - 1, window);
    for (uint32_t i = 0; i < 192; i++) {
        const float *expected = i < 96 ? full : window; /* KV head 0, then 1 */
        assert_true(fabsf(outputs[i] - expected[i]) < 2e-2f);
    }
    s.selection = NULL;
    toy_expect(&t, &s, 1, LENGTH - 1, full);
    for (uint32_t i = 0; i < 192; i++) assert_true(fabsf(outputs[192 + i] - full[i]) < 2e-2f);
    toy_sequence_fini(&s);
    toy_fini(&t);
}

/* The same tokens have other keys and values behind an answer that saw less: nobody may find those as his prompt. */
static void only_the_prompt_of_an_approximate_sequence_is_shared(void **state) {
    enum { PROMPT = 500, LENGTH = 1000 };
    const struct {
        const char *chosen;
        uint64_t reused;
    } cases[] = {{"window,recent=128", 384}, {"full", 896}};
    for (size_t i = 0; i < 2; i++) {
        toy t;
        toy_sequence s, next;
        open_toy(&t, &shape, 1);
        start(&t, &s, 1, PROMPT, LENGTH, cases[i].chosen);
        toy_run(&t, &s, 0, LENGTH, 100, NULL);
        assert_int_equal(t.attention->ops->sequence_close(t.attention, 1, 1, true, false), HD_OK);
        toy_sequence_init(&next, 2, 1, LENGTH);
        memcpy(next.tokens, s.tokens, LENGTH * sizeof(*s.tokens));
        memcpy(next.hashes, s.hashes, LENGTH * sizeof(*s.hashes));
        next.length = LENGTH;
        uint64_t cached;
        assert_int_equal(toy_sequence_open(&t, &next, LENGTH, &cached, NULL), HD_OK);
        assert_int_equal(cached, cases[i].reused);
        toy_sequence_fini(&s);
        toy_sequence_fini(&next);
        toy_fini(&t);
    }
}

static void a_takeover_keeps_selection_and_prompt(void **state) {
    enum { PROMPT = 700, LENGTH = 1200 };
    toy t;
    toy_sequence s;
    uint64_t cached;
    open_toy(&t, &shape, 2);
    start(&t, &s, 1, PROMPT, LENGTH, "window,sinks=10,recent=200");
    s.sinks = 10;
    s.recent = 200;
    toy_run(&t, &s, 0, LENGTH - 50, 100, NULL);
    s.epoch = 2;
    s.selection = "window,sinks=10,recent=201";
    assert_int_equal(toy_sequence_open(&t, &s, 0, &cached, NULL), HD_INVALID);
    s.selection = "window,sinks=10,recent=200";
    s.prompt_count = PROMPT + 1;
    assert_int_equal(toy_sequence_open(&t, &s, 0, &cached, NULL), HD_INVALID);
    s.prompt_count = PROMPT;
    assert_int_equal(toy_sequence_open(&t, &s, 0, &cached, NULL), HD_OK);
    assert_int_equal(cached, LENGTH - 50);
    toy_run(&t, &s, LENGTH - 50, 50, 50, NULL);
    toy_check_row(&t, &s, PROMPT - 1);
    toy_check_row(&t, &s, LENGTH - 1);
    s.prompt_count = LENGTH + 1;
    s.epoch = 3;
    assert_int_equal(toy_sequence_open(&t, &s, 0, &cached, NULL), HD_INVALID);
    toy_sequence_fini(&s);
    toy_fini(&t);
}

static void a_fork_keeps_selection_and_prompt(void **state) {
    enum { PROMPT = 700, LENGTH = 1200 };
    toy t;
    toy_sequence s;
    open_toy(&t, &shape, 2);
    start(&t, &s, 1, PROMPT, LENGTH, "window,sinks=10,recent=200");
    s.sinks = 10;
    s.recent = 200;
    toy_run(&t, &s, 0, PROMPT, 100, NULL);
    assert_int_equal(t.attention->ops->fork(t.attention, 1, PROMPT - 1, 2, 1, LENGTH, NULL), HD_OK);
    s.name = 2;
    toy_run(&t, &s, PROMPT - 1, LENGTH - PROMPT + 1, 100, NULL);
    toy_check_row(&t, &s, PROMPT - 1);
    toy_check_row(&t, &s, LENGTH - 1);
    toy_sequence_fini(&s);
    toy_fini(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_window_is_what_the_answer_sees_and_the_prompt_sees_everything),
        cmocka_unit_test(layers_with_a_window_of_their_own_keep_to_it),
        cmocka_unit_test(bits_do_not_depend_on_chunks_and_threads),
        cmocka_unit_test(what_leaves_nothing_out_has_the_bits_of_full),
        cmocka_unit_test(one_step_may_mix_selections),
        cmocka_unit_test(overrides_rule_layers_and_heads),
        cmocka_unit_test(only_the_prompt_of_an_approximate_sequence_is_shared),
        cmocka_unit_test(a_takeover_keeps_selection_and_prompt),
        cmocka_unit_test(a_fork_keeps_selection_and_prompt),
    };
    return cmocka_run_group_tests_name("engine_select", tests, NULL, NULL);
}
