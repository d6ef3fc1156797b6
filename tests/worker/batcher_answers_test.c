/* batcher_answers_test.c - what a request asks for and what its events then say: ends, log-probabilities, no tokens at
 * all. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/worker/bench.h"

static void an_answer_ends_at_stop_ids_and_eos_and_not_before_min_tokens(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 64);
    client_request *free_running = bench_request(&b, 1, 0, 40, 30);
    bench_run(free_running);
    const client_choice *all = &free_running->choices[0];
    uint32_t stop = all->token_ids[12], first = 0;
    while (all->token_ids[first] != stop) first++;

    client_request *stopped = bench_request(&b, 2, 0, 40, 30);
    stopped->request.sampling.stop_ids = (const uint32_t[]){511, stop};
    stopped->request.sampling.stop_id_count = 2;
    bench_run(stopped);
    assert_ends_with(stopped, WORKER_FINISH_STOP, first);
    assert_int_equal(stopped->choices[0].stop_id, stop);
    assert_memory_equal(stopped->choices[0].token_ids, all->token_ids, first * sizeof(uint32_t));

    client_request *later = bench_request(&b, 3, 0, 40, 30);
    later->request.sampling.stop_ids = &stop;
    later->request.sampling.stop_id_count = 1;
    later->request.sampling.min_tokens = 20;
    bench_run(later);
    assert_true(later->choices[0].token_count >= 20);
    for (uint32_t i = 0; i < 20; i++) assert_int_not_equal(later->choices[0].token_ids[i], stop);

    static const worker_logit_bias eos_always = {.token_id = 2, .bias = 100};
    client_request *eos = bench_request(&b, 4, 0, 40, 30);
    eos->request.sampling.ignore_eos = false;
    eos->request.sampling.logit_bias = &eos_always;
    eos->request.sampling.logit_bias_count = 1;
    bench_run(eos);
    assert_ends_with(eos, WORKER_FINISH_STOP, 0);
    assert_int_equal(eos->choices[0].stop_id, 2);

    client_request *at_least = bench_request(&b, 5, 0, 40, 30);
    at_least->request.sampling = eos->request.sampling;
    at_least->request.sampling.min_tokens = 3;
    bench_run(at_least);
    assert_ends_with(at_least, WORKER_FINISH_STOP, 3);

    client_request *ignoring = bench_request(&b, 6, 0, 40, 30);
    ignoring->request.sampling = eos->request.sampling;
    ignoring->request.sampling.ignore_eos = true;
    bench_run(ignoring);
    assert_ends_with(ignoring, WORKER_FINISH_LENGTH, 30);
    for (uint32_t i = 0; i < 30; i++) assert_int_equal(ignoring->choices[0].token_ids[i], 2);

    client_request *r[] = {free_running, stopped, later, eos, at_least, ignoring};
    for (size_t i = 0; i < sizeof(r) / sizeof(r[0]); i++) client_request_free(r[i]);
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
    client_request *cached = bench_request(&b, 1, 0, PROMPT, 1), *r = bench_request(&b, 2, 0, PROMPT, ANSWER);
    bench_run(cached); /* so that there is a prefix which must not be used: its logits would be missing */
    r->request.sampling.logprobs = 0;
    r->request.sampling.prompt_logprobs = 5;
    r->request.choices = 2;
    bench_run(r);
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
    client_request *r = bench_request(&b, 1, 0, 300, 0), *cancelled = bench_request(&b, 2, 1, 1200, 0);
    r->request.choices = cancelled->request.choices = 3;
    r->request.sampling.prompt_logprobs = 0;
    bench_run(r);
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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_answer_ends_at_stop_ids_and_eos_and_not_before_min_tokens),
        cmocka_unit_test(logprobs_of_prompt_and_answer_are_those_of_the_forward_pass),
        cmocka_unit_test(no_tokens_at_all_can_be_asked_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
