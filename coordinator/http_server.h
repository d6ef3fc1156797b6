/* http_server.h - HTTP by libmicrohttpd, without its callbacks: exchanges that are answered now or later, from any
 * thread.
 *
 *   an exchange:  HEADERS --on_headers--> BODY --complete: on_request--> WAITING --respond-------------------> CLOSED
 *                    \--respond (what follows of the body is dropped)--> CLOSED   \--stream_begin, write, end--> CLOSED
 *   and from every state: the client goes away --> GONE (on_gone, once, where a watcher is set) --> CLOSED
 *
 *   1. Every exchange for which on_request ran is answered exactly once: by respond, or by stream_begin and stream_end.
 *      After the client has gone the calls are still made and do nothing.
 *   2. Nothing here waits: a body is bounded, all bodies together are bounded, and what a stream has not yet sent is
 *      told by http_exchange_pending, so that its writer can pause until on_drained.
 *   3. The exchange lives until the server is done with it and every retain has been released.
 * Threads: callbacks of http_callbacks run on HTTP threads and must be short. The other calls on an exchange may be
 * made from any thread, except those marked (headers), which hold inside on_headers and on_request alone. */
#ifndef COORDINATOR_HTTP_SERVER_H
#define COORDINATOR_HTTP_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct http_server http_server;
typedef struct http_exchange http_exchange;

typedef enum { HTTP_BODY_TOO_LARGE, HTTP_BODIES_FULL } http_refusal;

typedef struct http_callbacks {
    /* The headers have come. False: it has answered, and wants no body. */
    bool (*on_headers)(void *context, http_exchange *exchange);
    /* The body is larger than body_bytes_max (or all bodies than bodies_bytes_max): must answer. */
    void (*on_refuse)(void *context, http_exchange *exchange, http_refusal refusal);
    /* The body is there. Answers, or retains the exchange and lets another thread answer. */
    void (*on_request)(void *context, http_exchange *exchange);
    /* The answer's status, once it is known; for counting. */
    void (*on_answer)(void *context, unsigned status);
    void *context;
} http_callbacks;

typedef struct http_config {
    int listener; /* a listening socket; the server closes it */
    unsigned thread_count;
    uint32_t connections_max;
    uint32_t idle_timeout_s;  /* of a connection without an answer under way that neither sends nor receives */
    uint32_t stall_timeout_s; /* of a client that takes nothing of its answer: it counts as gone */
    size_t body_bytes_max, bodies_bytes_max;
    http_callbacks callbacks;
} http_config;

hd_status http_server_open(const http_config *config, http_server **server, hd_error *error);
/* Waits until no exchange is open, at most timeout_ms. Returns whether none is. */
bool http_server_wait_idle(http_server *server, uint64_t timeout_ms);
/* Treats every client as gone. */
void http_server_abort(http_server *server);
/* Ends the HTTP threads and the connections. Every exchange is answered, or aborted; those that are retained may still
 * be answered, to nobody. */
void http_server_stop(http_server *server);
/* Accepts NULL, and a server that was not stopped. No retained exchange is left. */
void http_server_close(http_server *server);
uint32_t http_server_open_exchanges(http_server *server);

const char *http_exchange_method(const http_exchange *exchange);
const char *http_exchange_path(const http_exchange *exchange);                     /* decoded, without the query */
const char *http_exchange_header(const http_exchange *exchange, const char *name); /* (headers) NULL: absent */
const char *http_exchange_body(const http_exchange *exchange, size_t *byte_count); /* from on_request until drop_body */
void http_exchange_drop_body(http_exchange *exchange);

/* The caller's own data, freed with the exchange. Set inside on_headers. */
void http_exchange_set_context(http_exchange *exchange, void *context, void (*release)(void *context));
void *http_exchange_context(const http_exchange *exchange);
void http_exchange_retain(http_exchange *exchange);
void http_exchange_release(http_exchange *exchange);

/* A header of the answer, before it; name and value are copied. At most 8; more are dropped. */
void http_exchange_set_header(http_exchange *exchange, const char *name, const char *value);
/* body is malloc'ed and handed over; NULL with body_bytes 0. */
void http_exchange_respond(http_exchange *exchange, unsigned status, const char *content_type, char *body,
                           size_t body_bytes);

void http_exchange_stream_begin(http_exchange *exchange, unsigned status, const char *content_type);
/* HD_PEER_LOST: the client has gone. HD_NO_MEMORY: nothing was taken. */
hd_status http_exchange_stream_write(http_exchange *exchange, const char *bytes, size_t byte_count);
void http_exchange_stream_end(http_exchange *exchange);
size_t http_exchange_pending(http_exchange *exchange); /* bytes written and not yet taken by the connection */
/* Resets the connection of a stream now: what was written and has not reached the client is dropped, and it sees that
 * the answer is not whole. stream_end follows as ever. */
void http_exchange_cut(http_exchange *exchange);

/* on_gone: the client has gone; once. on_drained: fewer than drained_below bytes are pending, after
 * http_exchange_pending has said more. Both run under the exchange's lock, on whatever thread noticed, and must not
 * call it. HD_PEER_LOST: gone already, nothing is set. */
hd_status http_exchange_watch(http_exchange *exchange, size_t drained_below, void (*on_gone)(void *context),
                              void (*on_drained)(void *context), void *context);
void http_exchange_unwatch(http_exchange *exchange); /* neither runs after this */

#endif
