/* worker_remote.h - a worker in another process, spoken to as worker_rpc.
 *
 *   CONNECTING --on_ready--> READY --on_lost--> LOST;    CONNECTING --on_lost--> LOST
 *
 *   1. One session carries all requests: orders there, reports (events of many requests in one message) back.
 *   2. When the session is lost, every request that is open ends with WORKER_FAILED and HD_PEER_LOST, then on_lost
 *      comes.
 *   3. What the worker itself refuses comes as WORKER_FAILED, not from submit.
 * Threads: every call and callback on the thread of the queue; requests' on_event as well. */
#ifndef PROTO_WORKER_REMOTE_H
#define PROTO_WORKER_REMOTE_H

#include "proto/rpc_unary.h"
#include "proto/worker.pb-c.h"
#include "proto/worker_rpc.h"

typedef struct worker_remote worker_remote;

typedef struct worker_remote_handlers {
    void (*on_ready)(void *context, const Hadal__Description *description); /* borrowed during the call */
    void (*on_lost)(void *context, hd_status status, const char *reason);   /* only closing is left */
    void (*on_load)(void *context, const worker_load *load);                /* may be NULL */
} worker_remote_handlers;

hd_status worker_remote_open(rpc_queue *queue, const char *address, const rpc_tls *tls,
                             const worker_remote_handlers *handlers, void *context, worker_remote **out,
                             hd_error *error);
/* Open requests end with WORKER_FAILED and HD_CANCELLED first. Accepts NULL. */
void worker_remote_close(worker_remote *remote);
worker_rpc *worker_remote_rpc(worker_remote *remote);

#endif
