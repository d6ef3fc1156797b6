/* engine_test.c - the promises of attention.h, one by one, on an engine. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "attention-node/engine_bench.h"
#include "attention-node/engine_state.h"
#include "base/fault.h"
#include "tests/attention-node/toy.h"

static const toy_shape small = {1, 1, 2, 16, 16, HD_F32, {0}, 0, false};

/* An engine of few blocks: 16 sequences, steps of 256 rows. */
static void open_small(toy *t, uint32_t blocks) {
    toy_init(t, &small);
    t->config.step_rows_max = 256;
    t->config.sequences_max = 16;
    assert_int_equal(kernel_ops_choose(NULL, &t->config.kernels, NULL), HD_OK);
    toy_open_blocks(t, 1, blocks);
}

static attention_stats stats_of(const toy *t) {
    attention_stats stats;
    t->attention->ops->stats(t->attention, &stats);
    return stats;
}

static void start(toy *t, toy_sequence *s, uint64_t name, unsigned char salt, uint64_t seed, uint64_t length,
                  uint64_t tokens_max, uint64_t expected_cached) {
    toy_sequence_init(s, name, salt, tokens_max);
    toy_sequence_push_text(s, seed, length);
    uint64_t cached;
    hd_error error = {.text = ""};
    hd_status status = toy_sequence_open(t, s, UINT64_MAX, &cached, &error);
    if (status != HD_OK) print_error("%s\n", error.text);
    assert_int_equal(status, HD_OK);
    assert_int_equal(cached, expected_cached);
    if (cached < length) toy_run(t, s, cached, length - cached, 256, NULL);
}

static hd_status finish(toy *t, toy_sequence *s, bool keep, bool early) {
    hd_status status = t->attention->ops->sequence_close(t->attention, s->name, s->epoch, keep, early);
    toy_sequence_fini(s);
    return status;
}

static uint64_t length_of(const toy *t, uint64_t name) {
    uint64_t length = UINT64_MAX;
    assert_int_equal(t->attention->ops->sequence_length(t->attention, name, &length), HD_OK);
    return length;
}

/* ---- Memory ---- */

static void the_budget_is_filled_and_never_exceeded(void **state) {
    toy t;
    toy_init(&t, &(toy_shape){2, 4, 1, 64, 64, HD_BF16, {0}, 0, false});
    t.config.hot_bytes = 64u << 20;
    assert_int_equal(kernel_ops_choose(NULL, &t.config.kernels, NULL), HD_OK);
    size_t before = hd_memory_resident_bytes();
    toy_open(&t, 2);
    attention_stats stats = stats_of(&t);
    assert_int_equal(stats.budget_bytes, 64u << 20);
    assert_int_equal(stats.block_bytes, 2 * 4 * 2 * 128 * 64 * 2);
    assert_true(stats.blocks_total * stats.block_bytes > (64u << 20) * 9 / 10);
    toy_sequence sequences[64];
    for (int round = 0; round < 2; round++) {
        uint64_t opened = 0, each = 1024, cached;
        for (;; opened++) {
            toy_sequence_init(&sequences[opened], opened, 1, each);
            toy_sequence_push_text(&sequences[opened], opened + (uint64_t)round * 100, each);
            hd_error error;
            hd_status status = toy_sequence_open(&t, &sequences[opened], 0, &cached, &error);
            if (status == HD_FULL) {
                assert_non_null(strstr(error.text, "1024 tokens need room for 1024 more now, but only"));
                break;
            }
            assert_int_equal(status, HD_OK);
            assert_int_equal(engine_fill_synthetic(t.attention, opened, each, 1000, opened, NULL), HD_OK);
        }
        assert_int_equal(opened, stats.blocks_total / 8);
        assert_int_equal(stats_of(&t).blocks_sequences, opened * 8);
        assert_int_equal(toy_sequence_open(&t, &sequences[opened], 0, &cached, NULL), HD_FULL);
        for (uint64_t i = 0; i < opened; i++) assert_int_equal(finish(&t, &sequences[i], true, false), HD_OK);
        toy_sequence_fini(&sequences[opened]);
        assert_int_equal(stats_of(&t).blocks_sequences, 0);
    }
    size_t grown = hd_memory_resident_bytes() - before;
#ifndef __SANITIZE_THREAD__ /* which keeps several times the memory as a shadow */
    assert_true(grown <= (64u << 20) * 11 / 10);
#endif
    assert_true(grown > 0);
    toy_fini(&t);
}

static void a_budget_for_nothing_is_refused_with_numbers(void **state) {
    toy t;
    toy_init(&t, &small);
    t.config.hot_bytes = 4096;
    assert_int_equal(hd_pool_open(1, &t.pool), HD_OK);
    t.config.pool = t.pool;
    hd_error error;
    assert_int_equal(engine_open(&t.config, &t.attention, &error), HD_INVALID);
    assert_null(t.attention);
    assert_non_null(strstr(error.text, "4 KiB for keys and values hold no tokens: at least "));
    assert_non_null(strstr(error.text, "32 KiB more for each further 128 tokens"));
    toy_fini(&t);
}

static void bad_configurations_are_refused(void **state) {
    toy t;
    toy_init(&t, &small);
    assert_int_equal(hd_pool_open(1, &t.pool), HD_OK);
    t.config.pool = t.pool;
    hd_error error;
    t.config.kv_dtype = HD_INT4;
    assert_int_equal(engine_open(&t.config, &t.attention, &error), HD_UNSUPPORTED);
    assert_non_null(strstr(error.text, "int4"));
    t.config.kv_dtype = HD_F32;
    t.config.sequences_max = 0;
    assert_int_equal(engine_open(&t.config, &t.attention, &error), HD_INVALID);
    t.config.sequences_max = 4;
    t.layers[0].query_heads = 0;
    assert_int_equal(engine_open(&t.config, &t.attention, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "layer 0"));
    toy_fini(&t);
}

static void open_survives_each_failed_allocation(void **state) {
    toy t;
    toy_init(&t, &small);
    assert_int_equal(hd_pool_open(2, &t.pool), HD_OK);
    t.config.pool = t.pool;
    hd_status status = HD_NO_MEMORY;
    unsigned nth = 0;
    for (; status != HD_OK; nth++) {
        fault_arm(FAULT_ALLOCATION, nth);
        status = engine_open(&t.config, &t.attention, NULL);
        fault_disarm();
        assert_int_equal(status, t.attention != NULL ? HD_OK : HD_NO_MEMORY);
    }
    assert_true(nth > 3);
    toy_fini(&t);
}

static void what_never_fits_is_told_from_what_does_not_fit_now(void **state) {
    toy t;
    open_small(&t, 8);
    toy_sequence a, b;
    uint64_t cached;
    hd_error error;
    toy_sequence_init(&b, 2, 1, 8 * 128 + 1);
    toy_sequence_push(&b, 1);
    assert_int_equal(toy_sequence_open(&t, &b, 0, &cached, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "1025 tokens never fit: the memory for keys and values holds 1024 tokens"));
    b.tokens_max = 2 * 128;
    start(&t, &a, 1, 1, 1, 10, 7 * 128, 0); /* most of it is only promised */
    assert_int_equal(stats_of(&t).blocks_sequences, 1);
    assert_int_equal(stats_of(&t).blocks_reserved, 6);
    assert_int_equal(toy_sequence_open(&t, &b, 0, &cached, &error), HD_FULL);
    assert_non_null(strstr(error.text, "256 tokens need room for 256 more now, but only 128 of 1024 are free"));
    b.tokens_max = 128;
    assert_int_equal(toy_sequence_open(&t, &b, 0, &cached, &error), HD_OK);
    assert_int_equal(finish(&t, &a, true, false), HD_OK);
    assert_int_equal(finish(&t, &b, true, false), HD_OK);
    assert_int_equal(stats_of(&t).blocks_reserved, 0);
    toy_fini(&t);
}

static void a_promise_is_kept_while_the_cache_is_full(void **state) {
    toy t;
    open_small(&t, 8);
    toy_sequence a, b;
    start(&t, &a, 1, 1, 1, 8 * 128, 8 * 128, 0);
    assert_int_equal(finish(&t, &a, true, false), HD_OK);
    assert_int_equal(stats_of(&t).blocks_cached, 8);
    start(&t, &b, 2, 1, 2, 8 * 128, 8 * 128, 0);
    assert_int_equal(stats_of(&t).blocks_sequences, 8);
    assert_int_equal(stats_of(&t).evicted_blocks, 8);
    toy_check_row(&t, &b, 8 * 128 - 1);
    assert_int_equal(finish(&t, &b, true, false), HD_OK);
    toy_fini(&t);
}

static void every_slot_can_be_open_and_no_more(void **state) {
    toy t;
    open_small(&t, 40);
    toy_sequence s[17];
    for (uint64_t i = 0; i < 16; i++) start(&t, &s[i], i * 1000003, 1, i, 5, 128, 0);
    toy_sequence_init(&s[16], 5, 1, 10);
    toy_sequence_push(&s[16], 1);
    uint64_t cached;
    hd_error error;
    assert_int_equal(toy_sequence_open(&t, &s[16], 0, &cached, &error), HD_FULL);
    assert_non_null(strstr(error.text, "all 16 sequences"));
    toy_sequence_fini(&s[16]);
    for (uint64_t i = 0; i < 16; i++) {
        toy_check_row(&t, &s[i], 4);
        assert_int_equal(finish(&t, &s[i], true, false), HD_OK);
    }
    toy_fini(&t);
}

/* ---- Prefixes ---- */

static void a_second_sequence_starts_from_the_first_ones_prefix(void **state) {
    toy t;
    open_small(&t, 20);
    toy_sequence a, b, c;
    start(&t, &a, 1, 1, 1, 300, 400, 0);
    start(&t, &b, 2, 1, 1, 350, 400, 256); /* while the first is open */
    assert_int_equal(stats_of(&t).blocks_sequences, 4);
    assert_int_equal(stats_of(&t).prefix_hits_tokens, 256);
    assert_int_equal(finish(&t, &a, true, false), HD_OK);
    assert_int_equal(finish(&t, &b, true, false), HD_OK);
    assert_int_equal(stats_of(&t).blocks_cached, 2); /* full blocks only */
    start(&t, &c, 3, 1, 1, 500, 500, 256);           /* and after it */
    for (uint64_t p = 0; p < 500; p += 50) toy_check_row(&t, &c, p);
    assert_int_equal(finish(&t, &c, false, false), HD_OK);
    toy_fini(&t);
}

static void a_prompt_that_is_all_there_runs_its_last_token_again(void **state) {
    toy t;
    open_small(&t, 20);
    toy_sequence a, b;
    start(&t, &a, 1, 1, 1, 256, 400, 0);
    uint64_t appended = stats_of(&t).appended_tokens;
    start(&t, &b, 2, 1, 1, 256, 400, 255);
    assert_int_equal(stats_of(&t).appended_tokens, appended); /* it was there already */
    assert_int_equal(length_of(&t, 2), 256);
    toy_check_row(&t, &b, 255);
    toy_sequence_push(&b, 7);
    toy_check_row(&t, &b, 256);
    assert_int_equal(finish(&t, &a, true, false), HD_OK);
    assert_int_equal(finish(&t, &b, true, false), HD_OK);
    toy_fini(&t);
}

static void reuse_is_at_most_what_was_asked_for(void **state) {
    toy t;
    open_small(&t, 20);
    toy_sequence a;
    start(&t, &a, 1, 1, 1, 500, 500, 0);
    const uint64_t asked[] = {0, 1, 128, 200, 384, 499, 10000}, got[] = {0, 1, 128, 200, 384, 384, 384};
    for (int i = 0; i < 7; i++) {
        toy_sequence b;
        toy_sequence_init(&b, 2, 1, 500);
        toy_sequence_push_text(&b, 1, 500);
        uint64_t cached;
        assert_int_equal(toy_sequence_open(&t, &b, asked[i], &cached, NULL), HD_OK);
        assert_int_equal(cached, got[i]);
        toy_run(&t, &b, cached, 500 - cached, 99, NULL);
        toy_check_row(&t, &b, 499);
        assert_int_equal(finish(&t, &b, false, false), HD_OK);
    }
    assert_int_equal(finish(&t, &a, false, false), HD_OK);
    toy_fini(&t);
}

static void sequences_that_prefill_the_same_end_up_sharing(void **state) {
    toy t;
    open_small(&t, 20);
    toy_sequence s[3];
    for (uint64_t i = 0; i < 3; i++) {
        toy_sequence_init(&s[i], i, 1, 256);
        toy_sequence_push_text(&s[i], 1, 256);
        uint64_t cached;
        assert_int_equal(toy_sequence_open(&t, &s[i], UINT64_MAX, &cached, NULL), HD_OK);
        assert_int_equal(cached, 0);
    }
    assert_int_equal(stats_of(&t).blocks_reserved, 6);
    for (uint64_t first = 0; first < 256; first += 64) {
        toy_rows rows[3];
        for (uint64_t i = 0; i < 3; i++) rows[i] = (toy_rows){&s[i], first, 64};
        assert_int_equal(toy_step(&t, rows, 3, NULL, NULL), HD_OK);
    }
    assert_int_equal(stats_of(&t).blocks_sequences, 2);
    for (uint64_t i = 0; i < 3; i++) {
        toy_check_row(&t, &s[i], 255);
        assert_int_equal(finish(&t, &s[i], true, false), HD_OK);
    }
    toy_fini(&t);
}

static void tenants_never_share(void **state) {
    toy t;
    open_small(&t, 20);
    toy_sequence a, b;
    start(&t, &a, 1, 1, 1, 300, 300, 0);
    start(&t, &b, 2, 2, 1, 300, 300, 0); /* the same text under another salt */
    assert_int_equal(stats_of(&t).blocks_sequences, 6);
    toy_check_row(&t, &a, 299);
    toy_check_row(&t, &b, 299);
    assert_int_equal(finish(&t, &a, true, false), HD_OK);
    assert_int_equal(finish(&t, &b, true, false), HD_OK);
    start(&t, &b, 3, 3, 1, 300, 300, 0);
    assert_int_equal(finish(&t, &b, true, false), HD_OK);
    toy_fini(&t);
}

static void a_closed_sequence_leaves_what_it_was_told_to(void **state) {
    toy t;
    open_small(&t, 8);
    toy_sequence s;
    start(&t, &s, 1, 1, 1, 300, 300, 0);
    assert_int_equal(finish(&t, &s, false, false), HD_OK);
    assert_int_equal(stats_of(&t).blocks_cached, 0);
    start(&t, &s, 2, 1, 1, 300, 300, 0);
    assert_int_equal(finish(&t, &s, true, false), HD_OK);
    start(&t, &s, 3, 1, 2, 400, 400, 0);
    assert_int_equal(finish(&t, &s, true, true), HD_OK); /* ended early: goes first, though it is younger */
    start(&t, &s, 4, 1, 3, 640, 640, 0);
    assert_int_equal(finish(&t, &s, false, false), HD_OK);
    start(&t, &s, 5, 1, 1, 300, 300, 256);
    assert_int_equal(finish(&t, &s, true, false), HD_OK);
    t.attention->ops->cache_reset(t.attention);
    assert_int_equal(stats_of(&t).blocks_cached, 0);
    start(&t, &s, 6, 1, 1, 300, 300, 0);
    assert_int_equal(finish(&t, &s, true, false), HD_OK);
    toy_fini(&t);
}

/* ---- Steps ---- */

static hd_status begin(toy *t, const toy_sequence *s, uint64_t epoch, uint64_t first, uint32_t count,
                       const uint32_t *tokens, hd_error *error) {
    return t->attention->ops->step_begin(t->attention,
                                         &(attention_rows){s->name, epoch, first, count, tokens, false, 0}, 1, error);
}

static void a_step_that_cannot_be_is_refused_and_changes_nothing(void **state) {
    toy t;
    open_small(&t, 20);
    toy_sequence a, b;
    start(&t, &a, 1, 1, 1, 200, 300, 0);
    start(&t, &b, 2, 1, 2, 50, 60, 0);
    uint32_t tokens[300] = {0};
    hd_error error;
    attention_stats before = stats_of(&t), after;
    assert_int_equal(begin(&t, &a, 1, 201, 1, tokens, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "sequence 1: a gap from 200 to 201"));
    assert_int_equal(begin(&t, &a, 1, 200, 101, tokens, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "opened for 300 tokens"));
    assert_int_equal(begin(&t, &a, 1, 200, 0, tokens, &error), HD_INVALID);
    assert_int_equal(begin(&t, &a, 0, 200, 1, tokens, &error), HD_STALE);
    tokens[0] = a.tokens[199] + 1;
    assert_int_equal(begin(&t, &a, 1, 199, 2, tokens, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "another token"));
    attention_rows twice[] = {{1, 1, 200, 1, tokens, false, 0}, {1, 1, 201, 1, tokens, false, 0}};
    assert_int_equal(t.attention->ops->step_begin(t.attention, twice, 2, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "twice"));
    attention_rows one_is_unknown[] = {{1, 1, 200, 60, tokens, false, 0}, {77, 1, 0, 1, tokens, false, 0}};
    assert_int_equal(t.attention->ops->step_begin(t.attention, one_is_unknown, 2, &error), HD_NOT_FOUND);
    attention_rows too_many[] = {{1, 1, 200, 100, tokens, false, 0}, {2, 1, 0, 50, b.tokens, false, 0}};
    assert_int_equal(t.attention->ops->step_begin(t.attention, too_many, 0, &error), HD_INVALID);
    t.config.step_rows_max = 256;
    attention_rows replay[] = {{1, 1, 0, 200, a.tokens, false, 0}, {2, 1, 0, 50, b.tokens, false, 0}};
    ((engine *)t.attention)->rows_max = 249;
    assert_int_equal(t.attention->ops->step_begin(t.attention, replay, 2, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "250 rows, but 249 are possible"));
    ((engine *)t.attention)->rows_max = 256;
    after = stats_of(&t);
    assert_memory_equal(&before, &after, sizeof(before));
    assert_int_equal(length_of(&t, 1), 200);
    toy_check_row(&t, &a, 199);
    assert_int_equal(finish(&t, &a, true, false), HD_OK);
    assert_int_equal(finish(&t, &b, true, false), HD_OK);
    toy_fini(&t);
}

static void a_position_that_is_there_keeps_its_first_bytes(void **state) {
    toy t;
    open_small(&t, 20);
    toy_sequence s;
    start(&t, &s, 1, 1, 1, 140, 200, 0);
    /* The same tokens again with other keys and values, and one more. */
    toy_sequence_push(&s, 5);
    uint64_t real[200];
    memcpy(real, s.hashes, sizeof(real));
    for (uint64_t p = 0; p < 140; p++) s.hashes[p] = ~s.hashes[p];
    assert_int_equal(toy_step(&t, &(toy_rows){&s, 100, 41}, 1, NULL, NULL), HD_OK);
    memcpy(s.hashes, real, sizeof(real));
    for (uint64_t p = 99; p < 141; p++) toy_check_row(&t, &s, p);
    assert_int_equal(stats_of(&t).appended_tokens, 141);
    assert_int_equal(finish(&t, &s, true, false), HD_OK);
    toy_fini(&t);
}

static void a_step_without_all_its_layers_did_not_happen(void **state) {
    toy t;
    open_small(&t, 20);
    toy_sequence s;
    start(&t, &s, 1, 1, 1, 120, 300, 0);
    attention_stats before = stats_of(&t), after;
    uint32_t tokens[100] = {1, 2, 3};
    assert_int_equal(begin(&t, &s, 1, 120, 100, tokens, NULL), HD_OK);
    assert_int_equal(t.attention->ops->step_end(t.attention), HD_CANCELLED);
    after = stats_of(&t);
    assert_int_equal(after.blocks_sequences, before.blocks_sequences);
    assert_int_equal(after.blocks_reserved, before.blocks_reserved);
    assert_int_equal(length_of(&t, 1), 120);
    toy_sequence_push_text(&s, 3, 100);
    toy_run(&t, &s, 120, 100, 30, NULL);
    toy_check_row(&t, &s, 219);
    assert_int_equal(finish(&t, &s, true, false), HD_OK);
    toy_fini(&t);
}

static void calls_that_do_not_fit_are_refused(void **state) {
    toy t;
    open_small(&t, 20);
    toy_sequence s;
    start(&t, &s, 1, 1, 1, 10, 300, 0);
    attention *a = t.attention;
    uint32_t token = 4;
    float *memory = hd_alloc_zeroed(4096, 64);
    attention_tensor good = {.data = memory, .dtype = HD_F32}, bad_type = {.data = memory, .dtype = HD_BF16};
    attention_tensor device = {.data = memory, .dtype = HD_F32, .place = ATTENTION_DEVICE};
    assert_int_equal(begin(&t, &s, 1, 10, 1, &token, NULL), HD_OK);
    assert_int_equal(a->ops->submit(a, &(attention_layer_call){1, good, good, good, good, 32, {.out = NULL}, 0}),
                     HD_INVALID);
    assert_int_equal(a->ops->submit(a, &(attention_layer_call){0, bad_type, good, good, good, 32, {.out = NULL}, 0}),
                     HD_INVALID);
    assert_int_equal(a->ops->submit(a, &(attention_layer_call){0, good, device, good, good, 32, {.out = NULL}, 0}),
                     HD_INVALID);
    assert_int_equal(a->ops->submit(a, &(attention_layer_call){0, good, good, good, good, 31, {.out = NULL}, 0}),
                     HD_INVALID);
    assert_int_equal(a->ops->wait(a, 0), HD_INVALID); /* nothing was submitted */
    assert_int_equal(a->ops->submit(a, &(attention_layer_call){0, good, good, good, good, 32, {.out = NULL}, 0}),
                     HD_OK);
    assert_int_equal(a->ops->wait(a, 0), HD_OK);
    assert_int_equal(a->ops->step_end(a), HD_OK);
    hd_free(memory);
    assert_int_equal(finish(&t, &s, true, false), HD_OK);
    toy_fini(&t);
}

/* ---- Owners ---- */

static void an_older_owner_is_refused_everywhere(void **state) {
    toy t;
    open_small(&t, 20);
    attention *a = t.attention;
    toy_sequence s;
    start(&t, &s, 1, 1, 1, 10, 300, 0);
    uint32_t token = 9;
    s.epoch = 3;
    toy_check_row(&t, &s, 9); /* a newer epoch is taken over */
    assert_int_equal(begin(&t, &s, 2, 10, 1, &token, NULL), HD_STALE);
    assert_int_equal(a->ops->truncate(a, 1, 2, 5), HD_STALE);
    assert_int_equal(a->ops->sequence_close(a, 1, 2, true, false), HD_STALE);
    assert_int_equal(a->ops->state_save(a, 1, 2, 5, 0, &token), HD_STALE);
    uint64_t cached;
    s.epoch = 3;
    assert_int_equal(toy_sequence_open(&t, &s, 0, &cached, NULL), HD_STALE);
    assert_int_equal(a->ops->fork(a, 1, 5, 1, 9, 300, NULL), HD_INVALID); /* onto itself */
    assert_int_equal(length_of(&t, 1), 10);
    assert_int_equal(finish(&t, &s, true, false), HD_OK);
    assert_int_equal(a->ops->sequence_close(a, 1, 9, true, false), HD_NOT_FOUND);
    assert_int_equal(a->ops->sequence_length(a, 1, &cached), HD_NOT_FOUND);
    toy_fini(&t);
}

static void a_new_owner_takes_over_what_agrees(void **state) {
    toy t;
    open_small(&t, 20);
    toy_sequence old, new;
    start(&t, &old, 1, 1, 1, 300, 400, 0);
    /* It has not heard of the last token, and repeats the one before. */
    toy_sequence_init(&new, 1, 1, 600);
    toy_sequence_push_text(&new, 1, 299);
    new.epoch = 2;
    uint64_t cached;
    hd_error error;
    assert_int_equal(toy_sequence_open(&t, &new, UINT64_MAX, &cached, &error), HD_OK);
    assert_int_equal(cached, 298);
    assert_int_equal(length_of(&t, 1), 299);
    toy_run(&t, &new, 298, 1, 1, NULL);
    toy_sequence_push_text(&new, 7, 200);
    toy_run(&t, &new, 299, 200, 64, NULL);
    toy_check_row(&t, &new, 498);
    uint32_t token = 1;
    assert_int_equal(begin(&t, &old, 1, 299, 1, &token, NULL), HD_STALE);

    /* Another continuation: what differs goes. */
    toy_sequence_fini(&new);
    toy_sequence_init(&new, 1, 1, 300);
    toy_sequence_push_text(&new, 1, 150);
    toy_sequence_push_text(&new, 8, 100);
    new.epoch = 3;
    assert_int_equal(toy_sequence_open(&t, &new, UINT64_MAX, &cached, &error), HD_OK);
    assert_int_equal(cached, 150);
    toy_run(&t, &new, 150, 100, 64, NULL);
    toy_check_row(&t, &new, 249);
    assert_int_equal(stats_of(&t).blocks_sequences + stats_of(&t).blocks_reserved, 3);

    new.salt = 2;
    new.epoch = 4;
    assert_int_equal(toy_sequence_open(&t, &new, 0, &cached, &error), HD_INVALID);
    new.tokens_max = 1 << 20;
    new.salt = 1;
    assert_int_equal(toy_sequence_open(&t, &new, 0, &cached, &error), HD_INVALID);
    new.epoch = 3;
    toy_sequence_fini(&old);
    assert_int_equal(finish(&t, &new, true, false), HD_OK);
    toy_fini(&t);
}

/* ---- Cutting and forking ---- */

static void a_truncated_sequence_goes_on_with_other_tokens(void **state) {
    toy t;
    open_small(&t, 20);
    toy_sequence s, other;
    start(&t, &s, 1, 1, 1, 400, 600, 0);
    start(&t, &other, 2, 1, 1, 400, 400, 384);
    const uint64_t lengths[] = {399, 385, 384, 300, 256, 128, 127, 1, 0};
    for (int i = 0; i < 9; i++) {
        assert_int_equal(t.attention->ops->truncate(t.attention, 1, 1, lengths[i]), HD_OK);
        assert_int_equal(length_of(&t, 1), lengths[i]);
        s.length = lengths[i];
        toy_sequence_push_text(&s, 50 + (uint64_t)i, 30);
        toy_run(&t, &s, lengths[i], 30, 30, NULL);
        toy_check_row(&t, &s, lengths[i] + 29);
        toy_check_row(&t, &other, 399); /* it shared these blocks */
    }
    assert_int_equal(t.attention->ops->truncate(t.attention, 1, 1, 31), HD_INVALID);
    assert_int_equal(t.attention->ops->truncate(t.attention, 9, 1, 0), HD_NOT_FOUND);
    assert_int_equal(finish(&t, &s, true, false), HD_OK);
    assert_int_equal(finish(&t, &other, true, false), HD_OK);
    toy_fini(&t);
}

static void cutting_into_what_others_hold_may_find_no_memory_and_changes_nothing(void **state) {
    toy t;
    open_small(&t, 4);
    toy_sequence a, b;
    start(&t, &a, 1, 1, 1, 384, 384, 0);
    start(&t, &b, 2, 1, 1, 385, 512, 384); /* shares 3, has 1 */
    assert_int_equal(t.attention->ops->truncate(t.attention, 2, 1, 200), HD_FULL);
    assert_int_equal(length_of(&t, 2), 385);
    toy_check_row(&t, &b, 384);
    assert_int_equal(finish(&t, &a, false, false), HD_OK);
    assert_int_equal(t.attention->ops->truncate(t.attention, 2, 1, 200), HD_OK);
    b.length = 200;
    toy_sequence_push_text(&b, 9, 300);
    toy_run(&t, &b, 200, 300, 100, NULL);
    toy_check_row(&t, &b, 499);
    assert_int_equal(finish(&t, &b, false, false), HD_OK);
    assert_int_equal(stats_of(&t).blocks_cached, 0);
    toy_fini(&t);
}

static void a_fork_shares_full_blocks_and_copies_the_last(void **state) {
    toy t;
    open_small(&t, 20);
    attention *a = t.attention;
    toy_sequence s, forks[3];
    start(&t, &s, 1, 1, 1, 300, 400, 0);
    const uint64_t lengths[] = {300, 256, 130};
    for (uint64_t i = 0; i < 3; i++) {
        toy_sequence_init(&forks[i], 10 + i, 1, 450);
        toy_sequence_push_text(&forks[i], 1, lengths[i]);
        assert_int_equal(a->ops->fork(a, 1, lengths[i], 10 + i, 1, 450, NULL), HD_OK);
        toy_sequence_push_text(&forks[i], 60 + i, 100);
    }
    assert_int_equal(stats_of(&t).blocks_sequences, 3 + 1 + 0 + 1);
    toy_rows rows[4];
    toy_sequence_push_text(&s, 70, 64);
    rows[0] = (toy_rows){&s, 300, 64};
    for (uint64_t i = 0; i < 3; i++) rows[i + 1] = (toy_rows){&forks[i], lengths[i], 64};
    assert_int_equal(toy_step(&t, rows, 4, NULL, NULL), HD_OK);
    toy_check_row(&t, &s, 363);
    for (uint64_t i = 0; i < 3; i++) toy_check_row(&t, &forks[i], lengths[i] + 63);

    hd_error error;
    assert_int_equal(a->ops->fork(a, 1, 365, 20, 1, 400, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "cannot fork 365 tokens of sequence 1, which has 364"));
    assert_int_equal(a->ops->fork(a, 99, 1, 20, 1, 400, &error), HD_NOT_FOUND);
    assert_int_equal(a->ops->fork(a, 1, 300, 10, 1, 400, &error), HD_INVALID);
    assert_int_equal(a->ops->fork(a, 1, 300, 20, 1, 20 * 128, &error), HD_FULL);
    assert_int_equal(finish(&t, &s, false, false), HD_OK);
    for (uint64_t i = 0; i < 3; i++) {
        toy_check_row(&t, &forks[i], 5); /* what was shared stays */
        assert_int_equal(finish(&t, &forks[i], false, false), HD_OK);
    }
    assert_int_equal(stats_of(&t).blocks_sequences + stats_of(&t).blocks_reserved + stats_of(&t).blocks_cached, 0);
    toy_fini(&t);
}

static void a_damaged_page_is_not_copied(void **state) {
    toy t;
    open_small(&t, 20);
    toy_sequence s;
    start(&t, &s, 1, 1, 1, 300, 400, 0);
    engine *e = (engine *)t.attention;
    const sequence *inner = sequence_table_find(&e->sequences, 1);
    assert_int_equal(block_pool_verify(&e->home.store.pool, inner->runs[1].block), HD_OK);
    unsigned char *page = block_pool_page(&e->home.store.pool, inner->runs[1].block.index, 1, 0);
    page[100] ^= 1;
    attention_stats before = stats_of(&t), after;
    assert_int_equal(t.attention->ops->fork(t.attention, 1, 200, 2, 1, 300, NULL), HD_CORRUPT);
    after = stats_of(&t);
    assert_memory_equal(&before, &after, sizeof(before));
    page[100] ^= 1;
    assert_int_equal(t.attention->ops->fork(t.attention, 1, 200, 2, 1, 300, NULL), HD_OK);
    assert_int_equal(t.attention->ops->sequence_close(t.attention, 2, 1, false, false), HD_OK);
    assert_int_equal(finish(&t, &s, true, false), HD_OK);
    toy_fini(&t);
}

/* ---- Beside steps ---- */

static void synthetic_depth_is_there_and_nobodys_prefix(void **state) {
    toy t;
    open_small(&t, 40);
    toy_sequence s, other;
    toy_sequence_init(&s, 1, 1, 2000);
    uint64_t cached;
    assert_int_equal(toy_sequence_open(&t, &s, 0, &cached, NULL), HD_OK);
    assert_int_equal(engine_fill_synthetic(t.attention, 1, 2001, 1000, 5, NULL), HD_INVALID);
    assert_int_equal(engine_fill_synthetic(t.attention, 2, 100, 1000, 5, NULL), HD_NOT_FOUND);
    assert_int_equal(engine_fill_synthetic(t.attention, 1, 1500, 1000, 5, NULL), HD_OK);
    assert_int_equal(engine_fill_synthetic(t.attention, 1, 100, 1000, 5, NULL), HD_INVALID);
    assert_int_equal(length_of(&t, 1), 1500);
    const engine *e = (const engine *)t.attention;
    const sequence *inner = sequence_table_find(&e->sequences, 1);
    toy_sequence_init(&other, 2, 1, 1000);
    for (uint32_t i = 0; i < 1000; i++) {
        uint32_t token = block_pool_get(&e->home.store.pool, inner->runs[i / 128].block)->token_ids[i % 128];
        assert_true(token < 1000);
        toy_sequence_push(&other, token);
    }
    assert_int_equal(toy_sequence_open(&t, &other, UINT64_MAX, &cached, NULL), HD_OK);
    assert_int_equal(cached, 0);
    const float *keys = block_pool_page(&e->home.store.pool, inner->runs[3].block.index, 0, 0);
    for (int i = 0; i < 128 * 32; i++) assert_true(fabsf(keys[i]) >= 0.125f && fabsf(keys[i]) < 2.0f);
    assert_int_equal(finish(&t, &s, true, false), HD_OK);
    assert_int_equal(stats_of(&t).blocks_cached, 0);
    assert_int_equal(finish(&t, &other, true, false), HD_OK);
    toy_fini(&t);
}

static void *watch_stats(void *context) {
    const toy *t = context;
    for (int i = 0; i < 2000; i++) {
        attention_stats stats = stats_of(t);
        if (stats.blocks_sequences > stats.blocks_total) return (void *)1;
    }
    return NULL;
}

static void stats_may_be_read_while_steps_run(void **state) {
    toy t;
    open_small(&t, 20);
    pthread_t watcher;
    assert_int_equal(pthread_create(&watcher, NULL, watch_stats, &t), 0);
    for (uint64_t i = 0; i < 10; i++) {
        toy_sequence s;
        start(&t, &s, i, 1, i, 300, 300, 0);
        assert_int_equal(finish(&t, &s, true, false), HD_OK);
    }
    void *result;
    assert_int_equal(pthread_join(watcher, &result), 0);
    assert_null(result);
    toy_fini(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_budget_is_filled_and_never_exceeded),
        cmocka_unit_test(a_budget_for_nothing_is_refused_with_numbers),
        cmocka_unit_test(bad_configurations_are_refused),
        cmocka_unit_test(open_survives_each_failed_allocation),
        cmocka_unit_test(what_never_fits_is_told_from_what_does_not_fit_now),
        cmocka_unit_test(a_promise_is_kept_while_the_cache_is_full),
        cmocka_unit_test(every_slot_can_be_open_and_no_more),
        cmocka_unit_test(a_second_sequence_starts_from_the_first_ones_prefix),
        cmocka_unit_test(a_prompt_that_is_all_there_runs_its_last_token_again),
        cmocka_unit_test(reuse_is_at_most_what_was_asked_for),
        cmocka_unit_test(sequences_that_prefill_the_same_end_up_sharing),
        cmocka_unit_test(tenants_never_share),
        cmocka_unit_test(a_closed_sequence_leaves_what_it_was_told_to),
        cmocka_unit_test(a_step_that_cannot_be_is_refused_and_changes_nothing),
        cmocka_unit_test(a_position_that_is_there_keeps_its_first_bytes),
        cmocka_unit_test(a_step_without_all_its_layers_did_not_happen),
        cmocka_unit_test(calls_that_do_not_fit_are_refused),
        cmocka_unit_test(an_older_owner_is_refused_everywhere),
        cmocka_unit_test(a_new_owner_takes_over_what_agrees),
        cmocka_unit_test(a_truncated_sequence_goes_on_with_other_tokens),
        cmocka_unit_test(cutting_into_what_others_hold_may_find_no_memory_and_changes_nothing),
        cmocka_unit_test(a_fork_shares_full_blocks_and_copies_the_last),
        cmocka_unit_test(a_damaged_page_is_not_copied),
        cmocka_unit_test(synthetic_depth_is_there_and_nobodys_prefix),
        cmocka_unit_test(stats_may_be_read_while_steps_run),
    };
    return cmocka_run_group_tests_name("engine", tests, NULL, NULL);
}
