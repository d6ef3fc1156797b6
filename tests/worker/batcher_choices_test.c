/* batcher_choices_test.c - n choices of a request: one prefill, forks as far as memory and places go. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/worker/bench.h"

static void three_choices_are_three_single_requests_with_seeds_in_a_row(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 64);
    for (uint32_t prompt_count = 1; prompt_count <= 400; prompt_count += 133) {
        client_request *three = bench_seeded(&b, 100, 3, prompt_count, 25);
        three->request.choices = 3;
        bench_run(three);
        for (uint32_t i = 0; i < 3; i++) {
            client_request *one = bench_seeded(&b, 100 + i, 3, prompt_count, 25);
            one->request.no_cache = true;
            bench_run(one);
            assert_same_tokens(&three->choices[i], &one->choices[0]);
            client_request_free(one);
        }
        assert_memory_not_equal(three->choices[0].token_ids, three->choices[1].token_ids, 25 * sizeof(uint32_t));
        client_request_free(three);
    }
    bench_close(&b);
}

static void choices_that_do_not_fit_side_by_side_run_one_after_the_other(void **state) {
    bench roomy, small;
    bench_open(&roomy, LARGE_BYTES, 64);
    bench_open(&small, SMALL_BYTES, 64);
    uint64_t prompt_count = bench_tokens_that_fit(&small) - 40;
    assert_true(prompt_count < 4000);
    uint32_t *prompt = bench_repeated_tokens(&small, prompt_count);
    client_request *a = client_request_new(&roomy.client, 1, prompt, prompt_count, 20);
    client_request *b = client_request_new(&small.client, 1, prompt, prompt_count, 20);
    a->request.choices = b->request.choices = 3;
    a->request.sampling.temperature = b->request.sampling.temperature = 1;
    bench_run(a);
    bench_run(b);
    for (uint32_t i = 0; i < 3; i++) assert_same_tokens(&a->choices[i], &b->choices[i]);
    client_request_free(a);
    client_request_free(b);
    free(prompt);
    bench_close(&roomy);
    bench_close(&small);
}

static void choices_beyond_the_running_places_wait_for_one(void **state) {
    bench b;
    bench_open_with(&b, BENCH_MODEL, LARGE_BYTES, 64, 16, 2, NULL);
    client_request *many = bench_seeded(&b, 5, 0, 50, 10), *other = bench_seeded(&b, 9, 10, 50, 10);
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

static void one_choice_can_be_cancelled_before_and_after_it_has_started(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 16);
    client_request *expected = bench_seeded(&b, 50, 0, 600, 40), *r = bench_seeded(&b, 50, 0, 600, 40);
    expected->request.choices = r->request.choices = 4;
    bench_run(expected);
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

static void penalties_follow_the_tokens_of_each_choice(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 64);
    static const worker_logit_bias same_always = {.token_id = 77, .bias = 20};
    client_request *r = bench_request(&b, 1, 0, 200, 12);
    r->request.choices = 2;
    r->request.sampling.logit_bias = &same_always;
    r->request.sampling.logit_bias_count = 1;
    r->request.sampling.presence_penalty = 50;
    bench_run(r);
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

/* What was cut off after any number of tokens goes on as if nothing had happened: positions, seeds, penalties,
 * min_tokens and bounds count what another worker has said. */
static void a_request_that_is_taken_over_goes_on_where_it_was(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 64);
    enum { TOKENS = 14 };
    for (uint32_t prompt_count = 1; prompt_count <= 300; prompt_count += 130) {
        client_request *whole = bench_seeded(&b, 7, 5, prompt_count, TOKENS);
        whole->request.choices = 3;
        whole->request.sampling.repetition_penalty = 1.3f;
        whole->request.sampling.frequency_penalty = 0.5f;
        bench_run(whole);
        for (uint64_t said = 0; said < TOKENS; said++) {
            worker_answer answers[3];
            for (uint32_t i = 0; i < 3; i++) {
                uint64_t count = said > i ? said - i : 0;
                answers[i] = (worker_answer){.token_ids = whole->choices[i].token_ids, .token_count = count};
            }
            answers[1].has_ended = said == 9;
            client_request *rest = bench_seeded(&b, 7, 5, prompt_count, TOKENS);
            rest->request.choices = 3;
            rest->request.sampling = whole->request.sampling;
            rest->request.answers = answers;
            rest->request.sequence = 1000 * (said + 1);
            rest->request.epoch = said % 2 * 5; /* half under names of a cluster */
            bench_run(rest);
            for (uint32_t i = 0; i < 3; i++) {
                if (answers[i].has_ended) continue;
                uint64_t count = answers[i].token_count;
                assert_int_equal(rest->choices[i].token_count, TOKENS - count);
                assert_memory_equal(rest->choices[i].token_ids, whole->choices[i].token_ids + count,
                                    (TOKENS - count) * sizeof(uint32_t));
            }
            client_request_free(rest);
        }
        client_request_free(whole);
    }
    bench_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(three_choices_are_three_single_requests_with_seeds_in_a_row),
        cmocka_unit_test(choices_that_do_not_fit_side_by_side_run_one_after_the_other),
        cmocka_unit_test(choices_beyond_the_running_places_wait_for_one),
        cmocka_unit_test(one_choice_can_be_cancelled_before_and_after_it_has_started),
        cmocka_unit_test(penalties_follow_the_tokens_of_each_choice),
        cmocka_unit_test(a_request_that_is_taken_over_goes_on_where_it_was),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
