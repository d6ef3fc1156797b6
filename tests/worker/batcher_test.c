/* batcher_test.c - what a worker promises to whoever speaks worker_rpc: fairness, cancellation, choices, limits, and
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
#include "tests/worker/client.h"
#include "tests/worker/golden_model.h"
#include "tests/worker/rig.h"

#define MODEL "llama" /* 512 tokens of vocabulary, eos 2, 4,096 positions */
#define SMALL_BYTES ((uint64_t)4 << 20)
#define LARGE_BYTES ((uint64_t)64 << 20)

typedef struct bench { /* a worker on the golden model, and a client of it */
    golden_model golden;
    rig rig;
    worker_config config;
    worker *worker;
    worker_rpc *rpc;
    client client;
    const uint32_t *tokens; /* the golden ones, for prompts */
} bench;

static void bench_open_with(bench *b, const char *model, uint64_t hot_bytes, uint32_t batch_tokens_max,
                            uint32_t requests_max, uint32_t running_max, hd_metrics *metrics) {
    hd_error error = {.text = ""};
    *b = (bench){0};
    golden_model_open(&b->golden, model);
    rig_open(&b->rig, b->golden.directory,
             &(rig_options){.dtype = HD_BF16,
                            .threads = 2,
                            .hot_bytes = hot_bytes,
                            .rows_max = batch_tokens_max,
                            .sequences_max = running_max});
    b->config = (worker_config){.model_name = "golden",
                                .model = b->rig.model,
                                .weights = b->rig.weights,
                                .kernels = b->rig.kernels,
                                .pool = b->rig.pool,
                                .attention = b->rig.attention,
                                .batch_tokens_max = batch_tokens_max,
                                .requests_max = requests_max,
                                .running_max = running_max,
                                .metrics = metrics};
    if (worker_open(&b->config, &b->worker, &error) != HD_OK) fail_msg("%s", error.text);
    b->rpc = worker_rpc_of(b->worker);
    client_init(&b->client, b->rpc);
    b->tokens = b->golden.token_ids;
}

static void bench_open(bench *b, uint64_t hot_bytes, uint32_t batch_tokens_max) {
    bench_open_with(b, MODEL, hot_bytes, batch_tokens_max, 128, 64, NULL);
}

static worker_load load_of(const bench *b) {
    worker_load load;
    b->rpc->ops->load(b->rpc, &load);
    return load;
}

/* Closes, having seen that nothing is left behind. */
static void bench_close(bench *b) {
    if (b->worker != NULL) {
        worker_load load = load_of(b);
        assert_int_equal(load.running, 0);
        assert_int_equal(load.waiting, 0);
        assert_int_equal(load.blocks_sequences, 0);
        assert_int_equal(load.blocks_reserved, 0);
        assert_int_equal(load.preemptions, 0);
    }
    worker_close(b->worker, 0);
    client_fini(&b->client);
    rig_close(&b->rig);
    golden_model_close(&b->golden);
}

static client_request *new_request(bench *b, uint64_t id, uint32_t first_token, uint64_t prompt_count,
                                   uint64_t max_tokens) {
    assert_true(first_token + prompt_count <= b->golden.token_count);
    return client_request_new(&b->client, id, b->tokens + first_token, prompt_count, max_tokens);
}

static client_request *new_seeded(bench *b, uint64_t id, uint32_t first_token, uint64_t prompt_count,
                                  uint64_t max_tokens) {
    client_request *r = new_request(b, id, first_token, prompt_count, max_tokens);
    r->request.sampling.temperature = 1;
    r->request.sampling.top_p = 0.9f;
    r->request.sampling.seed = id;
    return r;
}

static void run(client_request *r) {
    client_submit(r);
    client_wait(r);
}

static void assert_same_tokens(const client_choice *a, const client_choice *b) {
    assert_int_equal(a->token_count, b->token_count);
    assert_memory_equal(a->token_ids, b->token_ids, a->token_count * sizeof(uint32_t));
}

static void assert_ends_with(const client_request *r, worker_finish finish, uint64_t token_count) {
    assert_false(r->has_failed);
    assert_int_equal(r->choices[0].finish, finish);
    assert_int_equal(r->choices[0].token_count, token_count);
}

static void an_answer_is_the_same_alone_and_among_sixty_four(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 96);
    client_request *alone[64], *among[64];
    for (uint32_t i = 0; i < 64; i++) {
        uint64_t prompt_count = 1 + i * i % 211, max_tokens = 5 + i % 40;
        alone[i] = i % 2 == 0 ? new_request(&b, i, i, prompt_count, max_tokens)
                              : new_seeded(&b, i, i, prompt_count, max_tokens);
        among[i] = i % 2 == 0 ? new_request(&b, i, i, prompt_count, max_tokens)
                              : new_seeded(&b, i, i, prompt_count, max_tokens);
        alone[i]->request.no_cache = true;
        run(alone[i]);
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

static void submit_context(client_request *r, const worker_event *event) {
    if (event->kind != WORKER_PROGRESS || r->watch_context == NULL) return;
    client_submit(r->watch_context);
    r->watch_context = NULL;
}

static void a_short_request_waits_for_chunks_and_not_for_a_long_prompt(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 32);
    client_request *lengthy = new_request(&b, 1, 0, 1280, 1), *brief = new_request(&b, 2, 7, 20, 5);
    lengthy->watch = submit_context; /* comes when the long prompt has had its first chunk */
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
    client_request *lengthy = new_request(&b, 1, 0, 1280, 1), *writer = new_request(&b, 2, 7, 20, 30);
    writer->watch = submit_context; /* the prompt comes when the writer begins to decode */
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

static void three_choices_are_three_single_requests_with_seeds_in_a_row(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 64);
    for (uint32_t prompt_count = 1; prompt_count <= 400; prompt_count += 133) {
        client_request *three = new_seeded(&b, 100, 3, prompt_count, 25);
        three->request.choices = 3;
        run(three);
        for (uint32_t i = 0; i < 3; i++) {
            client_request *one = new_seeded(&b, 100 + i, 3, prompt_count, 25);
            one->request.no_cache = true;
            run(one);
            assert_same_tokens(&three->choices[i], &one->choices[0]);
            client_request_free(one);
        }
        assert_memory_not_equal(three->choices[0].token_ids, three->choices[1].token_ids, 25 * sizeof(uint32_t));
        client_request_free(three);
    }
    bench_close(&b);
}

static uint64_t tokens_that_fit(const bench *b) {
    return load_of(b).blocks_total * HD_BLOCK_TOKENS;
}

/* A prompt for nearly all of the memory needs more positions than the golden tokens have: they are repeated. */
static uint32_t *repeated_tokens(const bench *b, uint64_t count) {
    uint32_t *tokens = malloc(count * sizeof(*tokens));
    assert_non_null(tokens);
    for (uint64_t i = 0; i < count; i++) tokens[i] = b->tokens[i % b->golden.token_count];
    return tokens;
}

static void choices_that_do_not_fit_side_by_side_run_one_after_the_other(void **state) {
    bench roomy, small;
    bench_open(&roomy, LARGE_BYTES, 64);
    bench_open(&small, SMALL_BYTES, 64);
    uint64_t prompt_count = tokens_that_fit(&small) - 40;
    assert_true(prompt_count < 4000);
    uint32_t *prompt = repeated_tokens(&small, prompt_count);
    client_request *a = client_request_new(&roomy.client, 1, prompt, prompt_count, 20);
    client_request *b = client_request_new(&small.client, 1, prompt, prompt_count, 20);
    a->request.choices = b->request.choices = 3;
    a->request.sampling.temperature = b->request.sampling.temperature = 1;
    run(a);
    run(b);
    for (uint32_t i = 0; i < 3; i++) assert_same_tokens(&a->choices[i], &b->choices[i]);
    client_request_free(a);
    client_request_free(b);
    free(prompt);
    bench_close(&roomy);
    bench_close(&small);
}

static void choices_beyond_the_running_places_wait_for_one(void **state) {
    bench b;
    bench_open_with(&b, MODEL, LARGE_BYTES, 64, 16, 2, NULL);
    client_request *many = new_seeded(&b, 5, 0, 50, 10), *other = new_seeded(&b, 9, 10, 50, 10);
    many->request.choices = 8;
    client_submit(many);
    client_submit(other);
    client_wait(many);
    client_wait(other);
    for (uint32_t i = 0; i < 8; i++) assert_int_equal(many->choices[i].token_count, 10);
    client_request_free(many);
    client_request_free(other);
    bench_close(&b);
}

static void a_cancelled_request_ends_between_two_chunks(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 16);
    client_request *r = new_request(&b, 4, 0, 1280, 100);
    client_submit(r);
    client_wait_progress(r, 3);
    b.rpc->ops->cancel(b.rpc, 4444, UINT32_MAX); /* nobody's */
    b.rpc->ops->cancel(b.rpc, 4, UINT32_MAX);
    client_wait(r);
    assert_ends_with(r, WORKER_FINISH_CANCELLED, 0);
    assert_int_equal(r->prompt_order, 0);
    assert_true(load_of(&b).blocks_cached >= 1 ||
                r->prompt_done < HD_BLOCK_TOKENS); /* what was computed stays for a retry */
    client_request_free(r);
    bench_close(&b);
}

static void one_choice_can_be_cancelled_before_and_after_it_has_started(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 16);
    client_request *expected = new_seeded(&b, 50, 0, 600, 40), *r = new_seeded(&b, 50, 0, 600, 40);
    expected->request.choices = r->request.choices = 4;
    run(expected);
    r->request.no_cache = true;
    client_submit(r);
    client_wait_progress(r, 2);
    b.rpc->ops->cancel(b.rpc, 50, 0); /* prefills: its sequence goes on for the next choice */
    b.rpc->ops->cancel(b.rpc, 50, 2); /* has not started */
    client_wait(r);
    for (uint32_t i = 0; i < 4; i++) {
        bool is_cancelled = i % 2 == 0;
        assert_int_equal(r->choices[i].finish, is_cancelled ? WORKER_FINISH_CANCELLED : WORKER_FINISH_LENGTH);
        if (is_cancelled) assert_int_equal(r->choices[i].token_count, 0);
        else assert_same_tokens(&r->choices[i], &expected->choices[i]);
    }
    client_request_free(expected);
    client_request_free(r);
    bench_close(&b);
}

static void a_request_that_waits_can_be_cancelled(void **state) {
    bench b;
    bench_open_with(&b, MODEL, LARGE_BYTES, 16, 16, 1, NULL);
    client_request *running = new_request(&b, 1, 0, 1000, 2), *waiting = new_request(&b, 2, 0, 1000, 2);
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
    bench_open_with(&b, MODEL, LARGE_BYTES, 16, 3, 2, NULL);
    client_request *r[4];
    for (uint32_t i = 0; i < 4; i++) r[i] = new_request(&b, i, i, 1000, 2);
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
    uint64_t large = tokens_that_fit(&b) * 6 / 10;
    uint32_t *prompt = repeated_tokens(&b, large);
    client_request *first = client_request_new(&b.client, 1, prompt, large - 10, 10);
    client_request *second = client_request_new(&b.client, 2, prompt + 1, large - 11, 10);
    client_request *brief = new_request(&b, 3, 0, 10, 2); /* would fit beside the first */
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
    bench_open_with(&b, MODEL, LARGE_BYTES, 16, 16, 2, NULL);
    client_request *r[6];
    for (uint32_t i = 0; i < 6; i++) {
        r[i] = new_request(&b, i, i, 100, 20);
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
    bench_open_with(&b, MODEL, LARGE_BYTES, 16, 4, 1, NULL);
    client_request *running = new_request(&b, 1, 0, 100, 3900), *waiting = new_request(&b, 2, 0, 1, 1),
                   *late = new_request(&b, 3, 0, 1, 1);
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
    bench_open_with(&b, MODEL, SMALL_BYTES, 32, 64, 8, NULL);
    enum { REQUESTS = 400, AT_ONCE = 40 };
    client_request *r[REQUESTS] = {NULL};
    uint64_t seed = 20260101, cancelled = 0;
    print_message("seed %lu\n", (unsigned long)seed);
    srand((unsigned)seed);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        if (i >= AT_ONCE) client_wait(r[i - AT_ONCE]);
        r[i] = new_seeded(&b, i, (uint32_t)rand() % 600, 1 + (uint64_t)rand() % 300, 1 + (uint64_t)rand() % 30);
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
    client_request *last = new_request(&b, 9999, 0, 1, 1); /* when it ends, the reset has taken place */
    last->request.no_cache = true;
    run(last);
    client_request_free(last);
    assert_int_equal(load_of(&b).blocks_cached, 0);
    bench_close(&b);
}

static void an_answer_ends_at_stop_ids_and_eos_and_not_before_min_tokens(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 64);
    client_request *free_running = new_request(&b, 1, 0, 40, 30);
    run(free_running);
    const client_choice *all = &free_running->choices[0];
    uint32_t stop = all->token_ids[12], first = 0;
    while (all->token_ids[first] != stop) first++;

    client_request *stopped = new_request(&b, 2, 0, 40, 30);
    stopped->request.sampling.stop_ids = (const uint32_t[]){511, stop};
    stopped->request.sampling.stop_id_count = 2;
    run(stopped);
    assert_ends_with(stopped, WORKER_FINISH_STOP, first);
    assert_int_equal(stopped->choices[0].stop_id, stop);
    assert_memory_equal(stopped->choices[0].token_ids, all->token_ids, first * sizeof(uint32_t));

    client_request *later = new_request(&b, 3, 0, 40, 30);
    later->request.sampling.stop_ids = &stop;
    later->request.sampling.stop_id_count = 1;
    later->request.sampling.min_tokens = 20;
    run(later);
    assert_true(later->choices[0].token_count >= 20);
    for (uint32_t i = 0; i < 20; i++) assert_int_not_equal(later->choices[0].token_ids[i], stop);

    static const worker_logit_bias eos_always = {.token_id = 2, .bias = 100};
    client_request *eos = new_request(&b, 4, 0, 40, 30);
    eos->request.sampling.ignore_eos = false;
    eos->request.sampling.logit_bias = &eos_always;
    eos->request.sampling.logit_bias_count = 1;
    run(eos);
    assert_ends_with(eos, WORKER_FINISH_STOP, 0);
    assert_int_equal(eos->choices[0].stop_id, 2);

    client_request *at_least = new_request(&b, 5, 0, 40, 30);
    at_least->request.sampling = eos->request.sampling;
    at_least->request.sampling.min_tokens = 3;
    run(at_least);
    assert_ends_with(at_least, WORKER_FINISH_STOP, 3);

    client_request *ignoring = new_request(&b, 6, 0, 40, 30);
    ignoring->request.sampling = eos->request.sampling;
    ignoring->request.sampling.ignore_eos = true;
    run(ignoring);
    assert_ends_with(ignoring, WORKER_FINISH_LENGTH, 30);
    for (uint32_t i = 0; i < 30; i++) assert_int_equal(ignoring->choices[0].token_ids[i], 2);

    client_request *r[] = {free_running, stopped, later, eos, at_least, ignoring};
    for (size_t i = 0; i < sizeof(r) / sizeof(r[0]); i++) client_request_free(r[i]);
    bench_close(&b);
}

static void penalties_follow_the_tokens_of_each_choice(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 64);
    static const worker_logit_bias same_always = {.token_id = 77, .bias = 20};
    client_request *r = new_request(&b, 1, 0, 200, 12);
    r->request.choices = 2;
    r->request.sampling.logit_bias = &same_always;
    r->request.sampling.logit_bias_count = 1;
    r->request.sampling.presence_penalty = 50;
    run(r);
    for (uint32_t choice = 0; choice < 2; choice++) { /* the favourite comes first, and being there never again */
        const client_choice *c = &r->choices[choice];
        assert_int_equal(c->token_ids[0], 77);
        for (uint32_t i = 0; i < c->token_count; i++) {
            for (uint32_t k = 0; k < i; k++) assert_int_not_equal(c->token_ids[i], c->token_ids[k]);
        }
    }
    client_request_free(r);
    bench_close(&b);
}

/* log softmax(logits)[token_id] */
static double logprob_of(const float *logits, uint32_t count, uint32_t token_id) {
    double sum = 0, max = logits[0];
    for (uint32_t i = 1; i < count; i++) max = fmax(max, logits[i]);
    for (uint32_t i = 0; i < count; i++) sum += exp(logits[i] - max);
    return logits[token_id] - max - log(sum);
}

static void logprobs_of_prompt_and_answer_are_those_of_the_forward_pass(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 100);
    enum { PROMPT = 333, ANSWER = 9 };
    client_request *cached = new_request(&b, 1, 0, PROMPT, 1), *r = new_request(&b, 2, 0, PROMPT, ANSWER);
    run(cached); /* so that there is a prefix which must not be used: its logits would be missing */
    r->request.sampling.logprobs = 0;
    r->request.sampling.prompt_logprobs = 5;
    r->request.choices = 2;
    run(r);
    assert_int_equal(r->cached_tokens, 0);
    assert_int_equal(r->prompt_logprob_entries, PROMPT - 1);
    worker_close(b.worker, 0);
    b.worker = NULL;

    uint32_t tokens[PROMPT + ANSWER], vocabulary = b.golden.vocabulary;
    memcpy(tokens, b.tokens, PROMPT * sizeof(uint32_t));
    memcpy(tokens + PROMPT, r->choices[0].token_ids, ANSWER * sizeof(uint32_t));
    float *logits = rig_logits(&b.rig, tokens, PROMPT + ANSWER, 50, PROMPT + ANSWER);
    for (uint32_t i = 1; i < PROMPT; i++) {
        const worker_logprob *entry = r->prompt_logprobs + (i - 1) * 6;
        const float *row = logits + (size_t)(i - 1) * vocabulary;
        assert_int_equal(entry[0].token_id, tokens[i]);
        for (uint32_t k = 0; k < 6; k++)
            assert_true(fabs(entry[k].logprob - logprob_of(row, vocabulary, entry[k].token_id)) < 1e-4);
        for (uint32_t k = 2; k < 6; k++) assert_true(entry[k].logprob <= entry[k - 1].logprob);
    }
    for (uint32_t i = 0; i < ANSWER; i++) {
        double expected = logprob_of(logits + (size_t)(PROMPT + i - 1) * vocabulary, vocabulary, tokens[PROMPT + i]);
        assert_int_equal(r->logprobs[i].token_id, tokens[PROMPT + i]);
        assert_true(fabs(r->logprobs[i].logprob - expected) < 1e-4);
    }
    free(logits);
    client_request_free(cached);
    client_request_free(r);
    bench_close(&b);
}

static void no_tokens_at_all_can_be_asked_for(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 64);
    client_request *r = new_request(&b, 1, 0, 300, 0), *cancelled = new_request(&b, 2, 1, 1200, 0);
    r->request.choices = cancelled->request.choices = 3;
    r->request.sampling.prompt_logprobs = 0;
    run(r);
    assert_int_equal(r->prompt_logprob_entries, 299);
    for (uint32_t i = 0; i < 3; i++) assert_int_equal(r->choices[i].finish, WORKER_FINISH_LENGTH);
    client_submit(cancelled);
    b.rpc->ops->cancel(b.rpc, 2, 0); /* the prompt goes on for the others */
    client_wait(cancelled);
    assert_int_equal(cancelled->choices[0].finish, WORKER_FINISH_CANCELLED);
    assert_int_equal(cancelled->choices[2].finish, WORKER_FINISH_LENGTH);
    client_request_free(r);
    client_request_free(cancelled);
    bench_close(&b);
}

static void prefixes_are_reused_within_a_tenant_until_the_cache_is_reset(void **state) {
    hd_metrics *metrics = NULL;
    assert_int_equal(hd_metrics_open(&metrics), HD_OK);
    bench b;
    bench_open_with(&b, MODEL, LARGE_BYTES, 64, 16, 4, metrics);
    client_request *r[6];
    for (uint32_t i = 0; i < 6; i++) r[i] = new_request(&b, i, 0, 700, 10);
    run(r[0]);
    run(r[1]);
    assert_int_equal(r[0]->cached_tokens, 0);
    assert_int_equal(r[1]->cached_tokens, 640);
    r[2]->request.no_cache = true;
    run(r[2]);
    assert_int_equal(r[2]->cached_tokens, 0);
    r[3]->request.salt[0] = 1;
    run(r[3]);
    assert_int_equal(r[3]->cached_tokens, 0);
    b.rpc->ops->cache_reset(b.rpc);
    run(r[4]); /* resets are done between two steps: this one came behind it */
    run(r[5]);
    assert_int_equal(r[4]->cached_tokens, 0);
    assert_int_equal(r[5]->cached_tokens, 640);
    for (uint32_t i = 1; i < 6; i++) assert_same_tokens(&r[i]->choices[0], &r[0]->choices[0]);
    for (uint32_t i = 0; i < 6; i++) client_request_free(r[i]);
    assert_int_equal(load_of(&b).prefix_hit_tokens, 2 * 640);
    worker_close(b.worker, UINT64_MAX);
    b.worker = NULL;

    char *text;
    size_t bytes;
    assert_int_equal(hd_metrics_render(metrics, &text, &bytes), HD_OK);
    static const char *const lines[] = {
        "\nhadal:num_requests_running 0\n",    "\nhadal:num_requests_waiting 0\n",
        "\nhadal:kv_cache_usage_perc 0\n",     "\nhadal:prefix_cache_queries 3500\n",
        "\nhadal:prefix_cache_hits 1280\n",    "\nhadal:num_preemptions 0\n",
        "\nhadal:prompt_tokens_total 2920\n",  "\nhadal:generation_tokens_total 60\n",
        "hadal:iteration_tokens_total_count ",
    };
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        if (strstr(text, lines[i]) == NULL) fail_msg("no '%s' in:\n%s", lines[i], text);
    }
    free(text);
    bench_close(&b);
    hd_metrics_close(metrics);
}

static void stretched_rope_shares_prefixes_only_among_requests_of_one_length(void **state) {
    bench b;
    bench_open_with(&b, "llama-dynamic", LARGE_BYTES, 64, 16, 4, NULL); /* 128 positions, times 2 */
    client_request *r[4];
    for (uint32_t i = 0; i < 4; i++) r[i] = new_request(&b, i, 0, 200, i < 2 ? 20 : 30);
    r[3]->request.no_cache = true;
    for (uint32_t i = 0; i < 4; i++) run(r[i]);
    assert_int_equal(r[1]->cached_tokens, 128);
    assert_int_equal(r[2]->cached_tokens, 0);
    assert_same_tokens(&r[0]->choices[0], &r[1]->choices[0]);
    assert_same_tokens(&r[2]->choices[0], &r[3]->choices[0]);
    for (uint32_t i = 0; i < 4; i++) client_request_free(r[i]);
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

/* An engine whose steps fail on demand: at begin while a sequence is among the rows, or once in a layer's wait. */
typedef struct faulty {
    attention base;
    attention_ops ops;
    attention *engine;
    _Atomic bool refuses_prompts, breaks_wait;
} faulty;

static faulty the_faulty;

static hd_status faulty_begin(attention *self, const attention_rows *rows, uint32_t count, hd_error *error) {
    faulty *f = (faulty *)self;
    for (uint32_t i = 0; i < count; i++) {
        if (f->refuses_prompts && rows[i].count > 1)
            return hd_error_set(error, HD_PEER_LOST, "the node of this prompt is gone");
    }
    return f->engine->ops->step_begin(f->engine, rows, count, error);
}

static hd_status faulty_wait(attention *self, uint32_t layer) {
    faulty *f = (faulty *)self;
    hd_status status = f->engine->ops->wait(f->engine, layer);
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
FORWARD(submit, (attention * self, const attention_layer_call *call), call)
FORWARD(step_end, (attention * self))

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

static void bench_make_faulty(bench *b) {
    hd_error error = {.text = ""};
    worker_close(b->worker, 0);
    the_faulty = (faulty){.engine = b->rig.attention, .ops = *b->rig.attention->ops};
    attention_ops *ops = &the_faulty.ops;
    ops->sequence_open = faulty_sequence_open;
    ops->fork = faulty_fork;
    ops->truncate = faulty_truncate;
    ops->sequence_close = faulty_sequence_close;
    ops->step_begin = faulty_begin;
    ops->submit = faulty_submit;
    ops->wait = faulty_wait;
    ops->step_end = faulty_step_end;
    ops->cache_reset = faulty_reset;
    ops->stats = faulty_stats;
    ops->dtype = faulty_dtype;
    the_faulty.base.ops = ops;
    b->config.attention = &the_faulty.base;
    if (worker_open(&b->config, &b->worker, &error) != HD_OK) fail_msg("%s", error.text);
    b->rpc = b->client.rpc = worker_rpc_of(b->worker);
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
    client_request *expected = new_seeded(&b, 1, 0, 100, 50);
    run(expected);
    bench_make_faulty(&b);
    client_request *survivor = new_seeded(&b, 1, 0, 100, 50), *victim = new_request(&b, 2, 3, 200, 5);
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
    client_request *victim = new_seeded(&b, 1, 0, 300, 50), *next = new_seeded(&b, 1, 0, 300, 50),
                   *expected = new_seeded(&b, 1, 0, 300, 50);
    victim->request.choices = 3;
    victim->watch = break_the_step;
    run(victim);
    assert_true(victim->has_failed);
    assert_int_equal(victim->status, HD_IO);
    assert_string_equal(victim->message, "attention failed in the middle of a step: input/output error");
    run(next); /* with whatever prefix the broken one has left */
    expected->request.no_cache = true;
    run(expected);
    assert_same_tokens(&next->choices[0], &expected->choices[0]);
    client_request_free(victim);
    client_request_free(next);
    client_request_free(expected);
    bench_close(&b);
}

static void what_can_never_run_is_refused_with_the_reason(void **state) {
    bench b;
    bench_open(&b, SMALL_BYTES, 64);
    worker_info info;
    b.rpc->ops->info(b.rpc, &info);
    assert_int_equal(info.context_max, tokens_that_fit(&b)); /* less than the model's 4,096 positions */
    static const worker_logit_bias foreign_bias = {.token_id = 512, .bias = 1},
                                   large_bias = {.token_id = 1, .bias = NAN};
    static const uint32_t foreign[] = {1, 2, 600};
    char too_long[160];
    snprintf(too_long, sizeof(too_long),
             "the prompt's 5 tokens and max_tokens 100000 are more than the %lu tokens of context that this worker has",
             (unsigned long)info.context_max);
    client_request *r[16];
    for (uint32_t i = 0; i < 16; i++) r[i] = new_request(&b, i, 0, 5, 4);
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
    run(r[15]); /* attention knows its selections: the request fails when it is admitted */
    assert_true(r[15]->has_failed);
    assert_int_equal(r[15]->status, HD_INVALID);
    assert_non_null(strstr(r[15]->message, "no-such-selection"));
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
        cmocka_unit_test(three_choices_are_three_single_requests_with_seeds_in_a_row),
        cmocka_unit_test(choices_that_do_not_fit_side_by_side_run_one_after_the_other),
        cmocka_unit_test(choices_beyond_the_running_places_wait_for_one),
        cmocka_unit_test(a_cancelled_request_ends_between_two_chunks),
        cmocka_unit_test(one_choice_can_be_cancelled_before_and_after_it_has_started),
        cmocka_unit_test(a_request_that_waits_can_be_cancelled),
        cmocka_unit_test(a_full_queue_refuses_and_takes_again_when_one_has_ended),
        cmocka_unit_test(requests_that_do_not_fit_now_are_admitted_in_their_order),
        cmocka_unit_test(draining_runs_what_is_there),
        cmocka_unit_test(closing_cancels_what_the_time_is_too_short_for),
        cmocka_unit_test(random_hang_ups_leave_nothing_behind),
        cmocka_unit_test(an_answer_ends_at_stop_ids_and_eos_and_not_before_min_tokens),
        cmocka_unit_test(penalties_follow_the_tokens_of_each_choice),
        cmocka_unit_test(logprobs_of_prompt_and_answer_are_those_of_the_forward_pass),
        cmocka_unit_test(no_tokens_at_all_can_be_asked_for),
        cmocka_unit_test(prefixes_are_reused_within_a_tenant_until_the_cache_is_reset),
        cmocka_unit_test(stretched_rope_shares_prefixes_only_among_requests_of_one_length),
        cmocka_unit_test(scaled_rope_stretches_the_context),
        cmocka_unit_test(a_step_that_attention_refuses_fails_only_those_it_refuses),
        cmocka_unit_test(a_step_that_breaks_in_the_middle_fails_its_requests_and_the_next_one_runs),
        cmocka_unit_test(what_can_never_run_is_refused_with_the_reason),
        cmocka_unit_test(the_worker_says_what_it_is),
        cmocka_unit_test(opening_survives_each_failed_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
