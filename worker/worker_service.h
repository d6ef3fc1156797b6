/* worker_service.h - a worker's face to other processes: sessions of coordinators over gRPC.
 *
 *   1. The step thread only packs an event into the session's buffer; the queue's thread sends what has gathered.
 *   2. The buffer is bounded. A coordinator that takes so little that it fills is cut off.
 *   3. When a session ends, its requests are cancelled; their full blocks stay as prefix cache.
 *   4. While draining, new requests are refused with HD_CANCELLED, so that their coordinator takes them elsewhere.
 * Threads: open and close from the main thread; everything else on the queue's. */
#ifndef WORKER_WORKER_SERVICE_H
#define WORKER_WORKER_SERVICE_H

#include "proto/rpc_unary.h"
#include "proto/worker_rpc.h"

#define WORKER_SERVICE_METHODS 2u
#define WORKER_FINGERPRINT_BYTES 16u

typedef struct worker_service worker_service;

typedef struct worker_service_config {
    worker_rpc *worker;
    rpc_loop *loop;
    const char *node_id;
    const char *model_directory;      /* whose tokenizer files are handed to coordinators */
    const unsigned char *fingerprint; /* of the weights, WORKER_FINGERPRINT_BYTES */
} worker_service_config;

/* The error names a file of the model directory that cannot be read. */
hd_status worker_service_open(const worker_service_config *config, worker_service **out, hd_error *error);
/* The server with its methods has been closed, so has the worker, and so has the loop, on which sessions end.
 * Accepts NULL. */
void worker_service_close(worker_service *service);
void worker_service_methods(worker_service *service, rpc_method methods[WORKER_SERVICE_METHODS]);
/* Any thread. */
void worker_service_set_draining(worker_service *service, bool is_draining);
uint32_t worker_service_requests(const worker_service *service); /* open ones; any thread */

#endif
