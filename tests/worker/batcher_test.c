/* batcher_test.c - what a worker promises to whoever speaks worker_rpc: fairness, cancellation, limits, and
 * the same answer whatever else runs. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/fault.h"
#include "tests/worker/bench.h"

static void an_answer_is_the_same_alone_and_among_sixty_four(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 96);
    client_request *alone[64], *among[64];
    for (uint32_t i = 0; i < 64; i++) {
        uint64_t prompt_count = 1 + i * i % 211, max_tokens = 5 + i % 40;
        alone[i] = i % 2 == 0 ? bench_request(&b, i, i, prompt_count, max_tokens)
                              : bench_seeded(&b, i, i, prompt_count, max_tokens);
        among[i] = i % 2 == 0 ? bench_request(&b, i, i, prompt_count, max_tokens)
                              : bench_seeded(&b, i, i, prompt_count, max_tokens);
        alone[i]->request.no_cache = true;
        bench_run(alone[i]);
        assert_ends_with(alone[i], WORKER_FINISH_LENGTH, max_tokens);
    }
    for (uint32_t i = 0; i < 64; i++) client_submit(among[i]);
    for (uint32_t i = 0; i < 64; i++) {
        client_wait(among[i]);
        assert_same_tokens(&among[i]->choices[0], &alone[i]->choices[0]);
        client_request_free(alone[i]);
        client_request_free(among[i]);
    }
    bench_close(&b);
}

static void a_short_request_waits_for_chunks_and_not_for_a_long_prompt(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 32);
    client_request *lengthy = bench_request(&b, 1, 0, 1280, 1), *brief = bench_request(&b, 2, 7, 20, 5);
    lengthy->watch = bench_submit_context; /* comes when the long prompt has had its first chunk */
    lengthy->watch_context = brief;
    client_submit(lengthy);
    client_wait(lengthy);
    client_wait(brief);
    assert_true(brief->last_order < lengthy->prompt_order);
    assert_true(lengthy->progress_events >= 40);
    client_request_free(lengthy);
    client_request_free(brief);
    bench_close(&b);
}

static void decoding_goes_on_while_a_long_prompt_is_prefilled(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 32);
    client_request *lengthy = bench_request(&b, 1, 0, 1280, 1), *writer = bench_request(&b, 2, 7, 20, 30);
    writer->watch = bench_submit_context; /* the prompt comes when the writer begins to decode */
    writer->watch_context = lengthy;
    client_submit(writer);
    client_wait(writer);
    client_wait(lengthy);
    assert_true(lengthy->started_order < writer->last_order);
    assert_true(writer->last_order < lengthy->prompt_order);
    client_request_free(lengthy);
    client_request_free(writer);
    bench_close(&b);
}

static void a_cancelled_request_ends_between_two_chunks(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 16);
    client_request *r = bench_request(&b, 4, 0, 1280, 100);
    client_submit(r);
    client_wait_progress(r, 3);
    b.rpc->ops->cancel(b.rpc, 4444, UINT32_MAX); /* nobody's */
    b.rpc->ops->cancel(b.rpc, 4, UINT32_MAX);
    client_wait(r);
    assert_ends_with(r, WORKER_FINISH_CANCELLED, 0);
    assert_int_equal(r->prompt_order, 0);
    assert_true(bench_load(&b).blocks_cached >= 1 ||
                r->prompt_done < HD_BLOCK_TOKENS); /* what was computed stays for a retry */
    client_request_free(r);
    bench_close(&b);
}

static void a_request_that_waits_can_be_cancelled(void **state) {
    bench b;
    bench_open_with(&b, BENCH_MODEL, LARGE_BYTES, 16, 16, 1, NULL);
    client_request *running = bench_request(&b, 1, 0, 1000, 2), *waiting = bench_request(&b, 2, 0, 1000, 2);
    waiting->request.choices = 2;
    client_submit(running);
    client_wait_started(running);
    client_submit(waiting);
    b.rpc->ops->cancel(b.rpc, 2, UINT32_MAX);
    client_wait(waiting);
    assert_false(client_has_ended(running));
    assert_int_equal(waiting->started_order, 0);
    assert_ends_with(waiting, WORKER_FINISH_CANCELLED, 0);
    client_wait(running);
    client_request_free(running);
    client_request_free(waiting);
    bench_close(&b);
}

static void a_full_queue_refuses_and_takes_again_when_one_has_ended(void **state) {
    bench b;
    bench_open_with(&b, BENCH_MODEL, LARGE_BYTES, 16, 3, 2, NULL);
    client_request *r[4];
    for (uint32_t i = 0; i < 4; i++) r[i] = bench_request(&b, i, i, 1000, 2);
    for (uint32_t i = 0; i < 3; i++) client_submit(r[i]);
    hd_error error;
    assert_int_equal(b.rpc->ops->submit(b.rpc, &r[3]->request, &error), HD_FULL);
    assert_string_equal(error.text, "this worker's queue of 3 requests is full");
    client_wait(r[0]);
    client_submit(r[3]);
    for (uint32_t i = 1; i < 4; i++) client_wait(r[i]);
    for (uint32_t i = 0; i < 4; i++) client_request_free(r[i]);
    bench_close(&b);
}

static void requests_that_do_not_fit_now_are_admitted_in_their_order(void **state) {
    bench b;
    bench_open(&b, SMALL_BYTES, 64);
    uint64_t large = bench_tokens_that_fit(&b) * 6 / 10;
    uint32_t *prompt = bench_repeated_tokens(&b, large);
    client_request *first = client_request_new(&b.client, 1, prompt, large - 10, 10);
    client_request *second = client_request_new(&b.client, 2, prompt + 1, large - 11, 10);
    client_request *brief = bench_request(&b, 3, 0, 10, 2); /* would fit beside the first */
    client_submit(first);
    client_wait_started(first);
    client_submit(second);
    client_submit(brief);
    client_wait(first);
    client_wait(second);
    client_wait(brief);
    assert_true(first->last_order < second->started_order);
    assert_true(second->started_order < brief->started_order);
    assert_ends_with(second, WORKER_FINISH_LENGTH, 10);
    assert_ends_with(brief, WORKER_FINISH_LENGTH, 2);
    client_request_free(first);
    client_request_free(second);
    client_request_free(brief);
    free(prompt);
    bench_close(&b);
}

static void draining_runs_what_is_there(void **state) {
    bench b;
    bench_open_with(&b, BENCH_MODEL, LARGE_BYTES, 16, 16, 2, NULL);
    client_request *r[6];
    for (uint32_t i = 0; i < 6; i++) {
        r[i] = bench_request(&b, i, i, 100, 20);
        client_submit(r[i]);
    }
    worker_close(b.worker, UINT64_MAX);
    b.worker = NULL;
    for (uint32_t i = 0; i < 6; i++) {
        assert_true(client_has_ended(r[i]));
        assert_ends_with(r[i], WORKER_FINISH_LENGTH, 20);
        client_request_free(r[i]);
    }
    bench_close(&b);
}

static void submit_at_the_end(client_request *r, const worker_event *event) {
    if (event->kind != WORKER_FINISHED) return;
    client_request *late = r->watch_context;
    hd_error error = {.text = ""};
    late->status = r->client->rpc->ops->submit(r->client->rpc, &late->request, &error);
    snprintf(late->message, sizeof(late->message), "%s", error.text);
}

static void closing_cancels_what_the_time_is_too_short_for(void **state) {
    bench b;
    bench_open_with(&b, BENCH_MODEL, LARGE_BYTES, 16, 4, 1, NULL);
    client_request *running = bench_request(&b, 1, 0, 100, 3900), *waiting = bench_request(&b, 2, 0, 1, 1),
                   *late = bench_request(&b, 3, 0, 1, 1);
    running->watch = submit_at_the_end; /* the worker is closing when it ends the request */
    running->watch_context = late;
    client_submit(running);
    client_wait_started(running);
    client_submit(waiting);
    worker_close(b.worker, 20);
    b.worker = NULL;
    assert_true(client_has_ended(running) && client_has_ended(waiting));
    assert_int_equal(running->choices[0].finish, WORKER_FINISH_CANCELLED);
    assert_ends_with(waiting, WORKER_FINISH_CANCELLED, 0);
    assert_int_equal(late->status, HD_CANCELLED);
    assert_string_equal(late->message, "this worker is ending and takes no new requests");
    client_request_free(running);
    client_request_free(waiting);
    client_request_free(late);
    bench_close(&b);
}

static void random_hang_ups_leave_nothing_behind(void **state) {
    bench b;
    bench_open_with(&b, BENCH_MODEL, SMALL_BYTES, 32, 64, 8, NULL);
    enum { REQUESTS = 400, AT_ONCE = 40 };
    client_request *r[REQUESTS] = {NULL};
    uint64_t seed = 20260101, cancelled = 0;
    print_message("seed %lu\n", (unsigned long)seed);
    srand((unsigned)seed);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        if (i >= AT_ONCE) client_wait(r[i - AT_ONCE]);
        r[i] = bench_seeded(&b, i, (uint32_t)rand() % 600, 1 + (uint64_t)rand() % 300, 1 + (uint64_t)rand() % 30);
        r[i]->request.choices = 1 + (uint32_t)rand() % 3;
        r[i]->request.no_cache = rand() % 4 == 0;
        if (rand() % 4 == 0) r[i]->request.sampling.frequency_penalty = 0.5f;
        client_submit(r[i]);
        if (rand() % 3 == 0) {
            struct timespec pause = {.tv_nsec = rand() % 3000000};
            nanosleep(&pause, NULL);
            b.rpc->ops->cancel(b.rpc, (uint64_t)(i - (uint32_t)rand() % (i < 5 ? i + 1 : 5)),
                               rand() % 2 == 0 ? UINT32_MAX : (uint32_t)rand() % 3);
        }
    }
    for (uint32_t i = 0; i < REQUESTS; i++) {
        client_wait(r[i]);
        assert_false(r[i]->has_failed);
        for (uint32_t k = 0; k < r[i]->request.choices; k++) {
            bool is_cancelled = r[i]->choices[k].finish == WORKER_FINISH_CANCELLED;
            cancelled += is_cancelled;
            if (!is_cancelled) assert_int_equal(r[i]->choices[k].token_count, r[i]->request.max_tokens);
        }
        client_request_free(r[i]);
    }
    assert_true(cancelled > 20);
    b.rpc->ops->cache_reset(b.rpc);
    client_request *last = bench_request(&b, 9999, 0, 1, 1); /* when it ends, the reset has taken place */
    last->request.no_cache = true;
    bench_run(last);
    client_request_free(last);
    assert_int_equal(bench_load(&b).blocks_cached, 0);
    bench_close(&b);
}

static void scaled_rope_stretches_the_context(void **state) {
    static const struct {
        const char *model;
        uint64_t context_max;
    } cases[] = {
        {"llama", 4096}, {"llama-linear", 1024}, {"llama-dynamic", 256}, {"llama-llama3", 2048}, {"llama-yarn", 2048}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        bench b;
        bench_open_with(&b, cases[i].model, LARGE_BYTES, 16, 4, 2, NULL);
        worker_info info;
        b.rpc->ops->info(b.rpc, &info);
        assert_int_equal(info.context_max, cases[i].context_max);
        bench_close(&b);
    }
}

static void what_can_never_run_is_refused_with_the_reason(void **state) {
    bench b;
    bench_open(&b, SMALL_BYTES, 64);
    worker_info info;
    b.rpc->ops->info(b.rpc, &info);
    assert_int_equal(info.context_max, bench_tokens_that_fit(&b)); /* less than the model's 4,096 positions */
    static const worker_logit_bias foreign_bias = {.token_id = 512, .bias = 1},
                                   large_bias = {.token_id = 1, .bias = NAN};
    static const uint32_t foreign[] = {1, 2, 600};
    char too_long[160];
    snprintf(too_long, sizeof(too_long),
             "the prompt's 5 tokens and max_tokens 100000 are more than the %lu tokens of context that this worker has",
             (unsigned long)info.context_max);
    client_request *r[16];
    for (uint32_t i = 0; i < 16; i++) r[i] = bench_request(&b, i, 0, 5, 4);
    r[0]->request.prompt_count = 0;
    r[1]->request.choices = 0;
    r[2]->request.choices = 129;
    r[3]->request.max_tokens = 100000;
    r[4]->request.prompt_ids = foreign;
    r[4]->request.prompt_count = 3;
    r[5]->request.sampling.temperature = -1;
    r[6]->request.sampling.top_p = 0;
    r[7]->request.sampling.min_p = 2;
    r[8]->request.sampling.repetition_penalty = 0;
    r[9]->request.sampling.presence_penalty = INFINITY;
    r[10]->request.sampling.frequency_penalty = NAN;
    r[11]->request.sampling.logprobs = 21;
    r[12]->request.sampling.prompt_logprobs = 21;
    r[13]->request.sampling.logit_bias = &foreign_bias;
    r[13]->request.sampling.logit_bias_count = 1;
    r[14]->request.sampling.logit_bias = &large_bias;
    r[14]->request.sampling.logit_bias_count = 1;
    r[15]->request.selection = "no-such-selection";
    const char *const reasons[15] = {
        "the prompt is empty; it needs at least one token",
        "n is 0; it must be from 1 to 128",
        "n is 129; it must be from 1 to 128",
        too_long,
        "the prompt has token 600 at position 2; the vocabulary has 512",
        "temperature is -1; it must be from 0 to 100",
        "top_p is 0; it must be above 0 and at most 1",
        "min_p is 2; it must be from 0 to 1",
        "repetition_penalty is 0; it must be above 0 and at most 100",
        "presence_penalty is inf; it must be from -100 to 100",
        "frequency_penalty is nan; it must be from -100 to 100",
        "logprobs is 21; at most 20 are given",
        "prompt_logprobs is 21; at most 20 are given",
        "logit_bias names token 512; the vocabulary has 512",
        "logit_bias of token 1 is nan; it must be from -100 to 100",
    };
    for (uint32_t i = 0; i < 15; i++) {
        hd_error error = {.text = ""};
        assert_int_equal(b.rpc->ops->submit(b.rpc, &r[i]->request, &error), HD_INVALID);
        assert_string_equal(error.text, reasons[i]);
    }
    bench_run(r[15]); /* attention knows its selections: the request fails when it is admitted */
    assert_true(r[15]->has_failed);
    assert_int_equal(r[15]->status, HD_INVALID);
    assert_string_equal(r[15]->message, "'hadal.selection' is refused: unknown selection 'no-such-selection'; known: "
                                        "auto, full, window, retrieval");
    r[0]->request.prompt_count = r[3]->request.prompt_count = 5;
    for (uint32_t i = 0; i < 16; i++) client_request_free(r[i]);
    bench_close(&b);
}

static void the_worker_says_what_it_is(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 64);
    worker_info info;
    b.rpc->ops->info(b.rpc, &info);
    assert_string_equal(info.model_name, "golden");
    assert_string_equal(info.kernels, b.rig.kernels->name);
    assert_string_equal(info.weights_dtype, "bf16");
    assert_string_equal(info.kv_dtype, "bf16");
    assert_string_equal(info.selection, "full");
    assert_int_equal(info.vocabulary_size, 512);
    assert_int_equal(info.context_max, 4096);
    assert_int_equal(info.kv_bytes, LARGE_BYTES);
    assert_int_equal(info.kv_bytes_per_token, 2 * 2 * 2 * 32 * 2); /* layers, K and V, heads, head_dim, bytes */
    assert_int_equal(info.eos_id_count, 1);
    assert_int_equal(info.eos_ids[0], 2);
    bench_close(&b);
}

static void opening_survives_each_failed_allocation(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 16);
    worker_close(b.worker, 0);
    hd_status status = HD_NO_MEMORY;
    for (unsigned nth = 0; status != HD_OK; nth++) {
        hd_error error = {.text = ""};
        b.worker = NULL;
        fault_arm(FAULT_ALLOCATION, nth);
        status = worker_open(&b.config, &b.worker, &error);
        fault_disarm();
        assert_int_equal(status, b.worker != NULL ? HD_OK : HD_NO_MEMORY);
        if (status != HD_OK) assert_true(error.text[0] != '\0');
    }
    b.rpc = b.client.rpc = worker_rpc_of(b.worker);
    bench_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_answer_is_the_same_alone_and_among_sixty_four),
        cmocka_unit_test(a_short_request_waits_for_chunks_and_not_for_a_long_prompt),
        cmocka_unit_test(decoding_goes_on_while_a_long_prompt_is_prefilled),
        cmocka_unit_test(a_cancelled_request_ends_between_two_chunks),
        cmocka_unit_test(a_request_that_waits_can_be_cancelled),
        cmocka_unit_test(a_full_queue_refuses_and_takes_again_when_one_has_ended),
        cmocka_unit_test(requests_that_do_not_fit_now_are_admitted_in_their_order),
        cmocka_unit_test(draining_runs_what_is_there),
        cmocka_unit_test(closing_cancels_what_the_time_is_too_short_for),
        cmocka_unit_test(random_hang_ups_leave_nothing_behind),
        cmocka_unit_test(scaled_rope_stretches_the_context),
        cmocka_unit_test(what_can_never_run_is_refused_with_the_reason),
        cmocka_unit_test(the_worker_says_what_it_is),
        cmocka_unit_test(opening_survives_each_failed_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
