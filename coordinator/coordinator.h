/* coordinator.h - the OpenAI-compatible HTTP API in front of a worker.
 *
 *   coordinator_open: listening, requests are taken
 *       --coordinator_close(drain): new ones get 503, running ones end--> closed
 *
 * The worker, the text model and the metrics are lent from open to close and outlive the coordinator.
 * Threads: open and close from one thread; everything in between runs on threads of its own. */
#ifndef COORDINATOR_COORDINATOR_H
#define COORDINATOR_COORDINATOR_H

#include "base/clock.h"
#include "base/metrics.h"
#include "model/text/text.h"
#include "proto/worker_rpc.h"

typedef struct coordinator coordinator;
typedef struct router router;       /* router.h */
typedef struct model_set model_set; /* served_model.h */

typedef struct coordinator_config {
    const char *listen_address; /* HOST:PORT; port 0: the system chooses */
    worker_rpc *worker;         /* NULL in a cluster: then models and router are there */
    const text_model *text;
    const char *model_name; /* as requests and /v1/models name it; NULL: the worker's */
    const model_set *models;
    router *router;
    const char *operator_address; /* of the operators' own port; NULL: on listen_address */
    const char *api_keys_file;    /* NULL: no keys, and then only loopback may be listened on */
    uint64_t body_bytes_max;
    uint64_t bodies_bytes_max;   /* of all requests together; 0: an eighth of the memory that is free, 1 GiB at most */
    uint64_t default_max_tokens; /* of a request that names none */
    uint64_t request_timeout_ms; /* from arrival to the end; 0: none */
    uint64_t queue_timeout_ms;   /* from arrival to admission; 0: none */
    uint64_t keep_alive_ms;      /* between the comments of a silent stream */
    uint64_t
        stall_timeout_ms; /* a client that takes nothing of its answer for so long is cut off; rounded up to seconds */
    uint32_t connections_max;
    unsigned http_threads;    /* 0: by the number of CPUs */
    unsigned request_threads; /* parse and tokenise; at least 2. 0: by the number of CPUs */
    unsigned reply_threads;   /* detokenise and serialise. 0: by the number of CPUs */
    hd_metrics *metrics;      /* or NULL */
    const hd_clock *clock;    /* NULL: the system's */
} coordinator_config;

#define COORDINATOR_CONFIG_DEFAULTS                                                                                    \
    {                                                                                                                  \
        .listen_address = "127.0.0.1:8000", .body_bytes_max = 64u << 20, .default_max_tokens = 4096,                   \
        .keep_alive_ms = 10000, .stall_timeout_ms = 30000, .connections_max = 8192                                     \
    }

/* Copies config's values, borrows what it points to. The error names the flag where one is wrong. */
hd_status coordinator_open(const coordinator_config *config, coordinator **out, hd_error *error);
/* Running requests may go on for drain_ms (UINT64_MAX: until they are done); those that are left get an error. Accepts
 * NULL. */
void coordinator_close(coordinator *coordinator, uint64_t drain_ms);
/* "127.0.0.1:41873": with the port that is really bound. Lives as long as the coordinator. */
const char *coordinator_address(const coordinator *coordinator);

#endif
