/* bench.h - a worker on the golden model and a client of it, for the tests that speak worker_rpc.
 *
 * Threads: the test's. */
#ifndef TESTS_WORKER_BENCH_H
#define TESTS_WORKER_BENCH_H

#include "tests/worker/client.h"
#include "tests/worker/golden_model.h"
#include "tests/worker/rig.h"

#define BENCH_MODEL "llama" /* 512 tokens of vocabulary, eos 2, 4,096 positions */
#define SMALL_BYTES ((uint64_t)4 << 20)
#define LARGE_BYTES ((uint64_t)64 << 20)

typedef struct bench {
    golden_model golden;
    rig rig;
    worker_config config;
    worker *worker;
    worker_rpc *rpc;
    client client;
    const uint32_t *tokens; /* the golden ones, for prompts */
} bench;

void bench_open_with(bench *b, const char *model, uint64_t hot_bytes, uint32_t batch_tokens_max, uint32_t requests_max,
                     uint32_t running_max, hd_metrics *metrics);
/* On a device, where queue is not NULL. */
void bench_open_on(bench *b, kernel_queue *queue, const char *model, uint64_t hot_bytes, uint32_t batch_tokens_max,
                   uint32_t requests_max, uint32_t running_max, hd_metrics *metrics);
void bench_open(bench *b, uint64_t hot_bytes, uint32_t batch_tokens_max); /* 128 requests, 64 running */
/* Another worker on the same model, by b->config; b->worker has been closed. */
void bench_reopen(bench *b);
/* Closes, having seen that nothing is left behind. b->worker may be NULL: closed already. */
void bench_close(bench *b);

worker_load bench_load(const bench *b);
uint64_t bench_tokens_that_fit(const bench *b);
/* A prompt for nearly all of the memory needs more positions than the golden tokens have: they are repeated. The caller
 * frees it. */
uint32_t *bench_repeated_tokens(const bench *b, uint64_t count);

/* A greedy request of golden tokens, and one with draws seeded by its id. */
client_request *bench_request(bench *b, uint64_t id, uint32_t first_token, uint64_t prompt_count, uint64_t max_tokens);
client_request *bench_seeded(bench *b, uint64_t id, uint32_t first_token, uint64_t prompt_count, uint64_t max_tokens);
void bench_run(client_request *request); /* to its end */
/* A watch: submits the request in watch_context with the first event of progress. */
void bench_submit_context(client_request *request, const worker_event *event);

void assert_same_tokens(const client_choice *a, const client_choice *b);
void assert_ends_with(const client_request *request, worker_finish finish, uint64_t token_count);

#endif
