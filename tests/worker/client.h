/* client.h - the other end of a worker_rpc: requests that remember every event, in the order in which the worker
 * told them.
 *
 * Threads: events come on the worker's thread and are kept under the client's lock; the test waits for them. A watch
 * runs on the worker's thread, without the lock, and may submit and cancel. */
#ifndef TESTS_WORKER_CLIENT_H
#define TESTS_WORKER_CLIENT_H

#include <pthread.h>

#include "proto/worker_rpc.h"

#define CLIENT_CHOICES_MAX 8u

typedef struct client_choice {
    uint32_t *token_ids;
    uint64_t token_count;
    bool has_ended;
    worker_finish finish;
    uint32_t stop_id;
} client_choice;

typedef struct client {
    worker_rpc *rpc;
    pthread_mutex_t lock;
    pthread_cond_t news;
    uint64_t event_count; /* over all requests: gives events their order */
} client;

typedef struct client_request {
    worker_request request; /* first */
    client *client;
    client_choice choices[CLIENT_CHOICES_MAX];
    worker_logprob *logprobs;        /* of choice 0's tokens: [token_count][1 + sampling.logprobs] */
    worker_logprob *prompt_logprobs; /* [prompt_count - 1][1 + sampling.prompt_logprobs] */
    uint64_t prompt_logprob_entries;
    uint64_t cached_tokens, prompt_done, progress_events;
    uint64_t started_order, prompt_order, last_order; /* when: admitted, prompt done, last event; 0: not yet */
    bool has_failed;
    hd_status status;
    char message[256];
    char selection[256]; /* that it has started with */
    void (*watch)(struct client_request *request, const worker_event *event);
    void *watch_context;
} client_request;

void client_init(client *client, worker_rpc *rpc);
void client_fini(client *client);

/* A request with plain greedy sampling, ignoring eos. The prompt is borrowed. */
client_request *client_request_new(client *client, uint64_t id, const uint32_t *prompt_ids, uint64_t prompt_count,
                                   uint64_t max_tokens);
void client_request_free(client_request *request);

/* Fails the test when the worker does not take it. */
void client_submit(client_request *request);
/* Waits for the last event; fails the test when it does not come within a minute. */
void client_wait(client_request *request);
/* Waits until the request was admitted, or until so many events of progress have come. */
void client_wait_started(client_request *request);
void client_wait_progress(client_request *request, uint64_t events);
bool client_has_ended(client_request *request);

#endif
