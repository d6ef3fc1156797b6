/* http_exchange.h - the inside of an exchange, shared by http_server.c (which owns the connection) and http_exchange.c.
 * */
#ifndef COORDINATOR_HTTP_EXCHANGE_H
#define COORDINATOR_HTTP_EXCHANGE_H

#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>

#include "coordinator/hangup_watch.h"
#include "coordinator/http_server.h"
#include "coordinator/text_buffer.h"

#define HTTP_HEADERS_MAX 8u

typedef enum { ANSWER_NONE, ANSWER_WHOLE, ANSWER_STREAM } answer_kind;

struct http_exchange {
    http_server *server;
    struct MHD_Connection *connection; /* NULL once closed */
    _Atomic uint32_t references;       /* the server's and the retains */
    http_exchange *previous, *next;    /* in the server's list */
    hangup_ticket ticket;
    char *method, *path;
    void *context;
    void (*release_context)(void *context);

    /* The body; HTTP thread, until on_request. */
    char *body;
    size_t body_count, body_capacity;
    size_t discarded;
    bool is_body_wanted, is_refused_early;

    pthread_mutex_t lock; /* guards what follows */
    int socket;           /* -1 until the body is there */
    bool is_suspended, is_gone, is_cut;
    answer_kind answer;
    unsigned status;
    char content_type[64];
    struct {
        char *name, *value;
    } headers[HTTP_HEADERS_MAX];
    unsigned header_count;
    char *whole;
    size_t whole_bytes;
    text_buffer stream; /* written, not yet taken: stream.bytes[stream_sent..] */
    size_t stream_sent;
    bool is_stream_ended;
    void (*on_gone)(void *context);
    void (*on_drained)(void *context);
    void *watcher;
    size_t drained_below;
    bool is_drain_due;
};

http_exchange *http_exchange_open(http_server *server, struct MHD_Connection *connection, const char *method,
                                  const char *path);
/* The client has gone, or the server ends: marks it, tells the watcher, wakes the connection. */
void http_exchange_lose(http_exchange *exchange);
/* Closing the socket will drop what the system has not sent, and reset the connection. */
void http_exchange_discard_unsent(http_exchange *exchange);
/* The connection is over; from now on nothing touches it. */
void http_exchange_detach(http_exchange *exchange);
/* What libmicrohttpd sends: a response, or NULL when out of memory. Once, after the answer has been set. */
struct MHD_Response *http_exchange_response(http_exchange *exchange);

/* Body bytes held by all exchanges; http_server.c. */
bool http_server_charge(http_server *server, size_t bytes);
void http_server_refund(http_server *server, size_t bytes);
void http_server_count_answer(http_server *server, unsigned status);

#endif
