/* api.h - what every endpoint sees: the model, the worker, the pools, and how a call is answered.
 *
 *   a call:  headers (HTTP thread: route, key, limits) -> body -> serve, on the HTTP thread or, where it may take long,
 *   on a request
 *            thread -> answered there, or by its generation
 * An endpoint is one row of the table in api_router.c and one api_*.c file.
 * Threads: an api is read only once open, but for its atomics. A call belongs to one thread at a time. */
#ifndef COORDINATOR_API_H
#define COORDINATOR_API_H

#include <stdatomic.h>

#include "base/clock.h"
#include "coordinator/api_error.h"
#include "coordinator/api_keys.h"
#include "coordinator/http_server.h"
#include "coordinator/request.h"
#include "coordinator/router.h"
#include "coordinator/sequence_table.h"
#include "coordinator/serving_metrics.h"
#include "coordinator/work_pool.h"
#include "model/text/text.h"
#include "proto/worker_rpc.h"

#define API_REQUEST_ID_BYTES 129u

typedef struct api {
    http_server *http;
    const model_set *models; /* grows while workers with others join */
    router *router;          /* NULL: no cluster */
    api_keys *keys;          /* NULL: everybody may, from this machine */
    work_pool *request_pool; /* parsing, templates, tokenising */
    work_pool *reply_pool;   /* detokenising, serialising; one item a generation */
    sequence_table *sequences;
    hd_metrics *registry; /* or NULL */
    serving_metrics metrics;
    hd_clock clock;
    size_t body_bytes_max;
    uint64_t default_max_tokens;
    uint64_t request_timeout_ms, queue_timeout_ms; /* 0: none */
    uint64_t keep_alive_ms;
    _Atomic bool is_ending;
    _Atomic uint64_t next_id;                  /* of worker requests */
    _Atomic uint64_t last_end_ns, mean_gap_ns; /* between the ends of requests, for Retry-After */
} api;

typedef struct api_route api_route;

/* A port, and what is answered there: everything, or with an operator's port beside it the clients' part and the
 * operators' part. */
typedef enum { API_ALL, API_CLIENTS, API_OPERATORS } api_view;
typedef struct api_port {
    api *api;
    api_view view;
} api_port;

typedef struct api_call {
    work_item work;
    api *api;
    http_exchange *exchange;
    const api_route *route;
    const served_model *model; /* of endpoints that concern one */
    api_tenant tenant;
    char request_id[API_REQUEST_ID_BYTES]; /* x-request-id, or one of ours */
    char trace_id[HD_TRACE_BYTES];         /* of traceparent, or a new one */
    uint64_t arrived_ns;
} api_call;

/* How an answer is given, once. Also after the client has gone. */
void api_call_fail(api_call *call, const api_error *error);
void api_call_json(api_call *call, unsigned status, text_buffer *body); /* takes the buffer's bytes */
void api_call_text(api_call *call, unsigned status, const char *content_type, char *text,
                   size_t text_bytes); /* takes text */

uint64_t api_now_ns(const api *a);
uint64_t api_wall_s(const api *a);
/* Seconds after which a place may be free, from how often requests end. */
unsigned api_retry_after_s(const api *a);
void api_count_end(api *a);
hd_status api_error_ending(const api *a, api_error *error);
hd_status api_error_full(const api *a, api_error *error, const char *what);

/* The HTTP server's callbacks; their context is the port. */
void api_router_callbacks(api_port *port, http_callbacks *callbacks);

/* The model that the call's body names, or the first; false: there is none, and the call has been answered. */
bool api_call_choose_model(api_call *call);

/* The endpoints, by file. */
void api_serve_chat(api_call *call); /* api_generate.c */
void api_serve_completion(api_call *call);
void api_serve_models(api_call *call); /* api_models.c */
void api_serve_model(api_call *call);
void api_serve_tokenize(api_call *call); /* api_tokenize.c */
void api_serve_detokenize(api_call *call);
void api_serve_health(api_call *call); /* api_status.c */
void api_serve_ready(api_call *call);
void api_serve_version(api_call *call);
void api_serve_metrics(api_call *call);
void api_serve_cache_reset(api_call *call);
void api_serve_nodes(api_call *call); /* api_operator.c */
void api_serve_steps(api_call *call);
void api_serve_sequences(api_call *call);
void api_serve_drain(api_call *call);
void api_serve_undrain(api_call *call);
void api_serve_cancel(api_call *call);

#endif
