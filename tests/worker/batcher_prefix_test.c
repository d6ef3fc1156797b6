/* batcher_prefix_test.c - prompts that begin alike. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/worker/bench.h"

static void prefixes_are_reused_within_a_tenant_until_the_cache_is_reset(void **state) {
    hd_metrics *metrics = NULL;
    assert_int_equal(hd_metrics_open(&metrics), HD_OK);
    bench b;
    bench_open_with(&b, BENCH_MODEL, LARGE_BYTES, 64, 16, 4, metrics);
    client_request *r[6];
    for (uint32_t i = 0; i < 6; i++) r[i] = bench_request(&b, i, 0, 700, 10);
    bench_run(r[0]);
    bench_run(r[1]);
    assert_int_equal(r[0]->cached_tokens, 0);
    assert_int_equal(r[1]->cached_tokens, 640);
    r[2]->request.no_cache = true;
    bench_run(r[2]);
    assert_int_equal(r[2]->cached_tokens, 0);
    r[3]->request.salt[0] = 1;
    bench_run(r[3]);
    assert_int_equal(r[3]->cached_tokens, 0);
    b.rpc->ops->cache_reset(b.rpc);
    bench_run(r[4]); /* resets are done between two steps: this one came behind it */
    bench_run(r[5]);
    assert_int_equal(r[4]->cached_tokens, 0);
    assert_int_equal(r[5]->cached_tokens, 640);
    for (uint32_t i = 1; i < 6; i++) assert_same_tokens(&r[i]->choices[0], &r[0]->choices[0]);
    for (uint32_t i = 0; i < 6; i++) client_request_free(r[i]);
    assert_int_equal(bench_load(&b).prefix_hit_tokens, 2 * 640);
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
    for (uint32_t i = 0; i < 4; i++) r[i] = bench_request(&b, i, 0, 200, i < 2 ? 20 : 30);
    r[3]->request.no_cache = true;
    for (uint32_t i = 0; i < 4; i++) bench_run(r[i]);
    assert_int_equal(r[1]->cached_tokens, 128);
    assert_int_equal(r[2]->cached_tokens, 0);
    assert_same_tokens(&r[0]->choices[0], &r[1]->choices[0]);
    assert_same_tokens(&r[2]->choices[0], &r[3]->choices[0]);
    for (uint32_t i = 0; i < 4; i++) client_request_free(r[i]);
    bench_close(&b);
}

/* Four equal prompts while a worker is busy with another one, so that all four wait when it looks. */
static void equal_prompts_that_arrive_together_are_computed_once(void **state) {
    bench b;
    bench_open_with(&b, BENCH_MODEL, LARGE_BYTES, 64, 16, 8, NULL);
    client_request *r[4], *alone = bench_request(&b, 9, 0, 1200, 8);
    alone->request.no_cache = true;
    bench_run(alone);
    for (uint32_t i = 0; i < 4; i++) {
        r[i] = bench_request(&b, i, 0, 1200, 8);
        client_submit(r[i]);
    }
    for (uint32_t i = 0; i < 4; i++) {
        client_wait(r[i]);
        assert_same_tokens(&r[i]->choices[0], &alone->choices[0]);
        assert_int_equal(r[i]->cached_tokens, i == 0 ? 0 : 1152);
        /* Those that wait see how far their prompt has come, too. */
        assert_true(r[i]->progress_events >= 1200 / 64);
        client_request_free(r[i]);
    }
    client_request_free(alone);
    bench_close(&b);
}

static void submit_both(client_request *r, const worker_event *event) {
    if (event->kind != WORKER_PROGRESS || r->watch_context == NULL) return;
    client_request **both = r->watch_context;
    client_submit(both[0]);
    client_submit(both[1]);
    r->watch_context = NULL;
}

static void who_waits_for_a_prefix_is_passed_by_and_no_slower_for_it(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 32);
    client_request *lengthy = bench_request(&b, 1, 0, 1280, 1), *follower = bench_request(&b, 2, 0, 400, 2),
                   *other = bench_request(&b, 3, 9, 40, 2), *both[] = {follower, other};
    lengthy->watch = submit_both; /* when the long prompt has had its first chunk */
    lengthy->watch_context = both;
    client_submit(lengthy);
    client_wait(lengthy);
    client_wait(follower);
    client_wait(other);
    assert_true(other->started_order < follower->started_order);
    assert_int_equal(follower->cached_tokens, 384);
    assert_true(follower->last_order < lengthy->prompt_order);
    client_request_free(lengthy);
    client_request_free(follower);
    client_request_free(other);
    bench_close(&b);
}

static void submit_both_then_cancel(client_request *r, const worker_event *event) {
    submit_both(r, event);
    if (event->kind == WORKER_PROGRESS && event->prompt_done >= 600) {
        r->client->rpc->ops->cancel(r->client->rpc, r->request.id, UINT32_MAX);
    }
}

static void a_follower_goes_on_where_its_leader_was_cancelled(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 64);
    client_request *leader = bench_request(&b, 1, 0, 1200, 8), *next = bench_request(&b, 2, 0, 1200, 8),
                   *last = bench_request(&b, 3, 0, 1200, 8);
    client_request *both[] = {next, last};
    leader->watch = submit_both_then_cancel;
    leader->watch_context = both;
    client_submit(leader);
    client_wait(leader);
    client_wait(next);
    client_wait(last);
    assert_ends_with(leader, WORKER_FINISH_CANCELLED, 0);
    assert_in_range(next->cached_tokens, 512, 1151);
    assert_int_equal(last->cached_tokens, 1152);
    assert_same_tokens(&next->choices[0], &last->choices[0]);
    client_request_free(leader);
    client_request_free(next);
    client_request_free(last);
    bench_close(&b);
}

static void a_follower_can_be_cancelled(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 32);
    client_request *leader = bench_request(&b, 1, 0, 1280, 2), *follower = bench_request(&b, 2, 0, 1280, 2);
    client_submit(leader);
    client_wait_started(leader);
    client_submit(follower);
    client_wait_progress(follower, 1);
    b.rpc->ops->cancel(b.rpc, 2, UINT32_MAX);
    client_wait(follower);
    assert_ends_with(follower, WORKER_FINISH_CANCELLED, 0);
    assert_int_equal(follower->started_order, 0);
    client_wait(leader);
    assert_ends_with(leader, WORKER_FINISH_LENGTH, 2);
    client_request_free(leader);
    client_request_free(follower);
    bench_close(&b);
}

static void nobody_follows_another_tenant_or_what_is_not_kept(void **state) {
    bench b;
    bench_open(&b, LARGE_BYTES, 32);
    client_request *r[4];
    for (uint32_t i = 0; i < 4; i++) r[i] = bench_request(&b, i, 0, 1280, 2);
    r[0]->request.no_cache = true;
    r[1]->request.salt[0] = 1;
    r[2]->request.salt[0] = 2;
    r[3]->request.salt[0] = 1;
    r[3]->request.sampling.prompt_logprobs = 0;
    for (uint32_t i = 0; i < 4; i++) client_submit(r[i]);
    for (uint32_t i = 0; i < 4; i++) {
        client_wait(r[i]);
        assert_int_equal(r[i]->cached_tokens, 0);
        assert_same_tokens(&r[i]->choices[0], &r[0]->choices[0]);
    }
    for (uint32_t i = 0; i < 4; i++) client_request_free(r[i]);
    bench_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prefixes_are_reused_within_a_tenant_until_the_cache_is_reset),
        cmocka_unit_test(stretched_rope_shares_prefixes_only_among_requests_of_one_length),
        cmocka_unit_test(equal_prompts_that_arrive_together_are_computed_once),
        cmocka_unit_test(who_waits_for_a_prefix_is_passed_by_and_no_slower_for_it),
        cmocka_unit_test(a_follower_goes_on_where_its_leader_was_cancelled),
        cmocka_unit_test(a_follower_can_be_cancelled),
        cmocka_unit_test(nobody_follows_another_tenant_or_what_is_not_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
