/* scripted_worker.h - a worker behind a real gRPC service that does nothing of itself: what it says, and when, is the
 * test's.
 *
 * It ends a request that is cancelled, as a worker has to; everything else is said by scripted_say and its like.
 * Threads: the calls below on the test's; requests come on the service's. */
#ifndef TESTS_COORDINATOR_SCRIPTED_WORKER_H
#define TESTS_COORDINATOR_SCRIPTED_WORKER_H

#include <pthread.h>

#include "proto/membership.h"
#include "worker/worker_service.h"

#define SCRIPTED_REQUESTS 32u
#define SCRIPTED_TOKENS 64u

/* A request as it came, the last one first to be looked at. */
typedef struct scripted_seen {
    uint64_t sequence, epoch, prompt_count, answered; /* answered: tokens of choice 0 that had been said elsewhere */
    uint32_t first_choice[SCRIPTED_TOKENS];
    bool has_answers;
    char selection[64]; /* "": its own */
} scripted_seen;

typedef struct scripted_worker {
    worker_rpc rpc; /* first */
    const char *id;
    rpc_loop *loop; /* the service's; lent */
    worker_service *service;
    rpc_server *server;

    pthread_mutex_t lock; /* guards the rest */
    worker_request *requests[SCRIPTED_REQUESTS];
    uint64_t said[SCRIPTED_REQUESTS]; /* tokens of choice 0 */
    uint32_t running, submitted, cancelled;
    worker_load load;
    hd_status answer; /* of submit; HD_OK: it runs */
    scripted_seen last;
} scripted_worker;

/* Serves on a port of its own. load: what coordinators hear at once. */
void scripted_open(scripted_worker *worker, const char *id, rpc_loop *loop, const worker_load *load);
/* Its connections end, and with them its requests. */
void scripted_kill(scripted_worker *worker);
void scripted_close(scripted_worker *worker); /* it has been killed, and its loop closed */
membership_node scripted_node(const scripted_worker *worker, membership_state state);

uint32_t scripted_running(scripted_worker *worker);
uint32_t scripted_submitted(scripted_worker *worker);
scripted_seen scripted_last(scripted_worker *worker);
void scripted_set_answer(scripted_worker *worker, hd_status answer);
/* The request that came last begins, with this selection. */
void scripted_start(scripted_worker *worker, const char *selection);
/* The next token of choice 0 of the request that came last. */
void scripted_say(scripted_worker *worker, uint32_t token_id);
/* The same at a position that is so many too far. */
void scripted_say_ahead(scripted_worker *worker, uint32_t token_id, uint64_t ahead);
void scripted_finish(scripted_worker *worker); /* that request, by its length */
void scripted_fail(scripted_worker *worker, hd_status status);

#endif
