/* batcher_faults_test.c - an attention that fails ends the requests it fails, and nobody else. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "tests/worker/bench.h"

/* An engine whose steps fail on demand: at begin while a sequence is among the rows, or once in a layer's wait. */
typedef struct faulty {
    attention base;
    attention_ops ops;
    attention *engine;
    _Atomic bool refuses_prompts, breaks_wait;
    _Atomic uint64_t held_from;   /* rows from this position on are not ready */
    _Atomic bool poisons_prompts; /* what rows of prompts attend to is NaN */
    const attention_rows *rows;   /* of the step */
    uint32_t row_count;
    attention_tensor output;          /* of the layer's call */
    size_t width;                     /* values of a row */
    size_t output_bytes, width_bytes; /* of a row: from one to the next, and of values */
} faulty;

static faulty the_faulty;

static hd_status faulty_begin(attention *self, const attention_rows *rows, uint32_t count, hd_error *error) {
    faulty *f = (faulty *)self;
    for (uint32_t i = 0; i < count; i++) {
        if (f->refuses_prompts && rows[i].count > 1)
            return hd_error_set(error, HD_PEER_LOST, "the node of this prompt is gone");
    }
    f->rows = rows;
    f->row_count = count;
    return f->engine->ops->step_begin(f->engine, rows, count, error);
}

static hd_status faulty_submit(attention *self, const attention_layer_call *call) {
    faulty *f = (faulty *)self;
    size_t element = hd_dtype_bits(f->engine->ops->dtype(f->engine)) / 8;
    f->output = call->output;
    f->output_bytes = call->output_stride * element;
    f->width_bytes = f->width * element;
    return f->engine->ops->submit(f->engine, call);
}

static void poison_prompts(const faulty *f) {
    unsigned char *row = f->output.data;
    for (uint32_t i = 0; i < f->row_count; i++) {
        for (uint32_t k = 0; k < f->rows[i].count; k++, row += f->output_bytes)
            if (f->rows[i].count > 1) memset(row, 0xff, f->width_bytes);
    }
}

static hd_status faulty_wait(attention *self, uint32_t layer) {
    faulty *f = (faulty *)self;
    hd_status status = f->engine->ops->wait(f->engine, layer);
    if (f->poisons_prompts) poison_prompts(f);
    return layer == 1 && atomic_exchange(&f->breaks_wait, false) ? HD_IO : status;
}

#define FORWARD(name, parameters, ...)                                                                                 \
    static hd_status faulty_##name parameters {                                                                        \
        attention *engine = ((faulty *)self)->engine;                                                                  \
        return engine->ops->name(engine __VA_OPT__(, ) __VA_ARGS__);                                                   \
    }
FORWARD(sequence_open, (attention * self, const attention_sequence_params *params, uint64_t *cached, hd_error *error),
        params, cached, error)
FORWARD(fork,
        (attention * self, uint64_t source, uint64_t length, uint64_t sequence, uint64_t epoch, uint64_t tokens_max,
         hd_error *error),
        source, length, sequence, epoch, tokens_max, error)
FORWARD(truncate, (attention * self, uint64_t sequence, uint64_t epoch, uint64_t length), sequence, epoch, length)
FORWARD(sequence_close, (attention * self, uint64_t sequence, uint64_t epoch, bool keep, bool early), sequence, epoch,
        keep, early)
FORWARD(step_end, (attention * self))

static hd_status faulty_length(const attention *self, uint64_t sequence, uint64_t *length) {
    const attention *engine = ((const faulty *)self)->engine;
    return engine->ops->sequence_length(engine, sequence, length);
}

static bool faulty_is_ready(attention *self, uint64_t sequence, uint64_t position) {
    const faulty *f = (faulty *)self;
    return position < f->held_from && f->engine->ops->sequence_is_ready(f->engine, sequence, position);
}

static void faulty_reset(attention *self) {
    attention *engine = ((faulty *)self)->engine;
    engine->ops->cache_reset(engine);
}

static void faulty_stats(const attention *self, attention_stats *stats) {
    attention *engine = ((const faulty *)self)->engine;
    engine->ops->stats(engine, stats);
}

static hd_dtype faulty_dtype(const attention *self) {
    attention *engine = ((const faulty *)self)->engine;
    return engine->ops->dtype(engine);
}

static hd_dtype faulty_kv_dtype(const attention *self) {
    attention *engine = ((const faulty *)self)->engine;
    return engine->ops->kv_dtype(engine);
}

static void bench_make_faulty(bench *b) {
    worker_close(b->worker, 0);
    the_faulty = (faulty){.engine = b->rig.attention, .ops = *b->rig.attention->ops, .held_from = UINT64_MAX};
    const attention_layer *layer = &b->rig.layers.layers[0];
    the_faulty.width = (size_t)layer->query_heads * layer->value_dim;
    attention_ops *ops = &the_faulty.ops;
    ops->sequence_open = faulty_sequence_open;
    ops->fork = faulty_fork;
    ops->truncate = faulty_truncate;
    ops->sequence_length = faulty_length;
    ops->sequence_is_ready = faulty_is_ready;
    ops->sequence_close = faulty_sequence_close;
    ops->step_begin = faulty_begin;
    ops->submit = faulty_submit;
    ops->wait = faulty_wait;
    ops->step_end = faulty_step_end;
    ops->step_begin_post = faulty_begin; /* both give the answer themselves */
    ops->step_end_post = faulty_step_end;
    ops->attach = NULL;
    ops->cache_reset = faulty_reset;
    ops->stats = faulty_stats;
    ops->dtype = faulty_dtype;
    ops->kv_dtype = faulty_kv_dtype;
    the_faulty.base.ops = ops;
    b->config.attention = &the_faulty.base;
    bench_reopen(b);
}

static void lose_the_prompts_node(client_request *r, const worker_event *event) {
    if (event->kind == WORKER_TOKEN && event->position == r->request.prompt_count + 2) {
        the_faulty.refuses_prompts = true;
        client_submit(r->watch_context);
    }
}

static void a_step_that_attention_refuses_fails_only_those_it_refuses(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 64);
    client_request *expected = bench_seeded(&b, 1, 0, 100, 50);
    bench_run(expected);
    bench_make_faulty(&b);
    client_request *survivor = bench_seeded(&b, 1, 0, 100, 50), *victim = bench_request(&b, 2, 3, 200, 5);
    victim->request.choices = 2;
    survivor->watch = lose_the_prompts_node;
    survivor->watch_context = victim;
    client_submit(survivor);
    client_wait(survivor);
    client_wait(victim);
    assert_ends_with(survivor, WORKER_FINISH_LENGTH, 50);
    assert_same_tokens(&survivor->choices[0], &expected->choices[0]);
    assert_true(victim->has_failed);
    assert_int_equal(victim->status, HD_PEER_LOST);
    assert_string_equal(victim->message, "the node of this prompt is gone");
    client_request_free(expected);
    client_request_free(survivor);
    client_request_free(victim);
    bench_close(&b);
}

static void break_the_step(client_request *r, const worker_event *event) {
    if (event->kind == WORKER_TOKEN && event->position == r->request.prompt_count + 2) the_faulty.breaks_wait = true;
}

static void a_step_that_breaks_in_the_middle_fails_its_requests_and_the_next_one_runs(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 64);
    bench_make_faulty(&b);
    client_request *victim = bench_seeded(&b, 1, 0, 300, 50), *next = bench_seeded(&b, 1, 0, 300, 50),
                   *expected = bench_seeded(&b, 1, 0, 300, 50);
    victim->request.choices = 3;
    victim->watch = break_the_step;
    bench_run(victim);
    assert_true(victim->has_failed);
    assert_int_equal(victim->status, HD_IO);
    assert_string_equal(victim->message, "attention failed in the middle of a step: input/output error");
    bench_run(next); /* with whatever prefix the broken one has left */
    expected->request.no_cache = true;
    bench_run(expected);
    assert_same_tokens(&next->choices[0], &expected->choices[0]);
    client_request_free(victim);
    client_request_free(next);
    client_request_free(expected);
    bench_close(&b);
}

static void who_waits_for_an_index_is_left_out_and_the_others_go_on(void **state) {
    enum { LONG = 200, SHORT = 20 };
    bench b;
    bench_open(&b, LARGE_BYTES, 64);
    bench_make_faulty(&b);
    client_request *alone = bench_request(&b, 1, 30, LONG, 8);
    bench_run(alone);
    the_faulty.held_from = LONG;
    client_request *held = bench_request(&b, 2, 30, LONG, 8), *other = bench_request(&b, 3, 0, SHORT, 100);
    client_submit(held);
    client_wait_started(held);
    bench_run(other);
    assert_ends_with(other, WORKER_FINISH_LENGTH, 100);
    assert_false(client_has_ended(held));
    the_faulty.held_from = UINT64_MAX;
    client_wait(held);
    assert_same_tokens(&held->choices[0], &alone->choices[0]);
    client_request_free(alone);
    client_request_free(held);
    client_request_free(other);
    bench_close(&b);
}

static void poison_the_next_prompt(client_request *r, const worker_event *event) {
    if (event->kind == WORKER_TOKEN && event->position == r->request.prompt_count + 2) {
        the_faulty.poisons_prompts = true;
        client_submit(r->watch_context);
    }
}

static void logits_that_are_no_numbers_end_one_request(float temperature) {
    bench b;
    bench_open(&b, LARGE_BYTES, 64);
    client_request *expected = bench_seeded(&b, 1, 0, 100, 200);
    bench_run(expected);
    hd_metrics *metrics;
    assert_int_equal(hd_metrics_open(&metrics), HD_OK);
    b.config.metrics = metrics;
    bench_make_faulty(&b);
    client_request *survivor = bench_seeded(&b, 1, 0, 100, 200), *victim = bench_request(&b, 2, 3, 30, 5);
    victim->request.sampling.temperature = temperature;
    survivor->watch = poison_the_next_prompt;
    survivor->watch_context = victim;
    client_submit(survivor);
    client_wait(survivor);
    client_wait(victim);
    assert_ends_with(survivor, WORKER_FINISH_LENGTH, 200);
    assert_same_tokens(&survivor->choices[0], &expected->choices[0]);
    assert_true(victim->has_failed);
    assert_int_equal(victim->status, HD_CORRUPT);
    assert_non_null(strstr(victim->message, "not finite"));
    the_faulty.poisons_prompts = false;
    client_request *next = bench_seeded(&b, 3, 0, 100, 200);
    next->request.sampling.seed = expected->request.sampling.seed;
    bench_run(next);
    assert_same_tokens(&next->choices[0], &expected->choices[0]);
    client_request_free(expected);
    client_request_free(survivor);
    client_request_free(victim);
    client_request_free(next);
    bench_close(&b);
    char *text;
    size_t bytes;
    assert_int_equal(hd_metrics_render(metrics, &text, &bytes), HD_OK);
    assert_non_null(strstr(text, "\nhadal:logits_not_finite_total 1\n"));
    free(text);
    hd_metrics_close(metrics);
}

static void a_greedy_request_whose_logits_are_no_numbers_fails_alone(void **state) {
    logits_that_are_no_numbers_end_one_request(0.0f);
}

static void a_drawn_request_whose_logits_are_no_numbers_fails_alone(void **state) {
    logits_that_are_no_numbers_end_one_request(1.0f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_step_that_attention_refuses_fails_only_those_it_refuses),
        cmocka_unit_test(a_step_that_breaks_in_the_middle_fails_its_requests_and_the_next_one_runs),
        cmocka_unit_test(who_waits_for_an_index_is_left_out_and_the_others_go_on),
        cmocka_unit_test(a_greedy_request_whose_logits_are_no_numbers_fails_alone),
        cmocka_unit_test(a_drawn_request_whose_logits_are_no_numbers_fails_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
