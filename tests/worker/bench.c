#include "tests/worker/bench.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

void bench_open_with(bench *b, const char *model, uint64_t hot_bytes, uint32_t batch_tokens_max, uint32_t requests_max,
                     uint32_t running_max, hd_metrics *metrics) {
    bench_open_on(b, NULL, model, hot_bytes, batch_tokens_max, requests_max, running_max, metrics);
}

void bench_open_on(bench *b, kernel_queue *queue, const char *model, uint64_t hot_bytes, uint32_t batch_tokens_max,
                   uint32_t requests_max, uint32_t running_max, hd_metrics *metrics) {
    *b = (bench){0};
    golden_model_open(&b->golden, model);
    rig_open(&b->rig, b->golden.directory,
             &(rig_options){.dtype = HD_BF16,
                            .threads = 2,
                            .hot_bytes = hot_bytes,
                            .rows_max = batch_tokens_max,
                            .sequences_max = running_max,
                            .queue = queue});
    b->config = (worker_config){.model_name = "golden",
                                .model = b->rig.model,
                                .weights = b->rig.weights,
                                .kernels = b->rig.kernels,
                                .pool = b->rig.pool,
                                .attention = b->rig.attention,
                                .queue = queue,
                                .batch_tokens_max = batch_tokens_max,
                                .requests_max = requests_max,
                                .running_max = running_max,
                                .metrics = metrics};
    client_init(&b->client, NULL);
    bench_reopen(b);
    b->tokens = b->golden.token_ids;
}

void bench_reopen(bench *b) {
    hd_error error = {.text = ""};
    if (worker_open(&b->config, &b->worker, &error) != HD_OK) fail_msg("%s", error.text);
    b->rpc = b->client.rpc = worker_rpc_of(b->worker);
}

void bench_open(bench *b, uint64_t hot_bytes, uint32_t batch_tokens_max) {
    bench_open_with(b, BENCH_MODEL, hot_bytes, batch_tokens_max, 128, 64, NULL);
}

worker_load bench_load(const bench *b) {
    worker_load load;
    b->rpc->ops->load(b->rpc, &load);
    return load;
}

void bench_close(bench *b) {
    if (b->worker != NULL) {
        worker_load load = bench_load(b);
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

client_request *bench_request(bench *b, uint64_t id, uint32_t first_token, uint64_t prompt_count, uint64_t max_tokens) {
    assert_true(first_token + prompt_count <= b->golden.token_count);
    return client_request_new(&b->client, id, b->tokens + first_token, prompt_count, max_tokens);
}

client_request *bench_seeded(bench *b, uint64_t id, uint32_t first_token, uint64_t prompt_count, uint64_t max_tokens) {
    client_request *r = bench_request(b, id, first_token, prompt_count, max_tokens);
    r->request.sampling.temperature = 1;
    r->request.sampling.top_p = 0.9f;
    r->request.sampling.seed = id;
    return r;
}

void bench_run(client_request *r) {
    client_submit(r);
    client_wait(r);
}

void assert_same_tokens(const client_choice *a, const client_choice *b) {
    assert_int_equal(a->token_count, b->token_count);
    assert_memory_equal(a->token_ids, b->token_ids, a->token_count * sizeof(uint32_t));
}

void assert_ends_with(const client_request *r, worker_finish finish, uint64_t token_count) {
    assert_false(r->has_failed);
    assert_int_equal(r->choices[0].finish, finish);
    assert_int_equal(r->choices[0].token_count, token_count);
}

uint64_t bench_tokens_that_fit(const bench *b) {
    return bench_load(b).blocks_total * HD_BLOCK_TOKENS;
}

uint32_t *bench_repeated_tokens(const bench *b, uint64_t count) {
    uint32_t *tokens = malloc(count * sizeof(*tokens));
    assert_non_null(tokens);
    for (uint64_t i = 0; i < count; i++) tokens[i] = b->tokens[i % b->golden.token_count];
    return tokens;
}

void bench_submit_context(client_request *r, const worker_event *event) {
    if (event->kind != WORKER_PROGRESS || r->watch_context == NULL) return;
    client_submit(r->watch_context);
    r->watch_context = NULL;
}
