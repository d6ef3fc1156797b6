/* http_exchange.c - answering an exchange from any thread.
 *
 * A connection that has nothing to send is suspended, and whoever gives it something resumes it. Both decisions are
 * taken under the exchange's lock; otherwise a wake-up between "there is nothing" and "suspend" would be lost. */
#include "coordinator/http_exchange.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define STREAM_BLOCK_BYTES 16384u

http_exchange *http_exchange_open(http_server *server, struct MHD_Connection *connection, const char *method,
                                  const char *path) {
    http_exchange *exchange = calloc(1, sizeof(*exchange));
    if (exchange == NULL) return NULL;
    exchange->server = server;
    exchange->connection = connection;
    exchange->method = strdup(method);
    exchange->path = strdup(path);
    exchange->socket = -1;
    atomic_init(&exchange->references, 1);
    pthread_mutex_init(&exchange->lock, NULL);
    text_buffer_init(&exchange->stream);
    if (exchange->method != NULL && exchange->path != NULL) return exchange;
    http_exchange_release(exchange);
    return NULL;
}

void http_exchange_retain(http_exchange *exchange) {
    atomic_fetch_add_explicit(&exchange->references, 1, memory_order_relaxed);
}

void http_exchange_release(http_exchange *exchange) {
    if (atomic_fetch_sub_explicit(&exchange->references, 1, memory_order_acq_rel) != 1) return;
    if (exchange->release_context != NULL) exchange->release_context(exchange->context);
    http_exchange_drop_body(exchange);
    for (unsigned i = 0; i < exchange->header_count; i++) {
        free(exchange->headers[i].name);
        free(exchange->headers[i].value);
    }
    text_buffer_fini(&exchange->stream);
    pthread_mutex_destroy(&exchange->lock);
    free(exchange->whole);
    free(exchange->method);
    free(exchange->path);
    free(exchange);
}

const char *http_exchange_method(const http_exchange *exchange) {
    return exchange->method;
}

const char *http_exchange_path(const http_exchange *exchange) {
    return exchange->path;
}

const char *http_exchange_header(const http_exchange *exchange, const char *name) {
    return MHD_lookup_connection_value(exchange->connection, MHD_HEADER_KIND, name);
}

const char *http_exchange_body(const http_exchange *exchange, size_t *byte_count) {
    *byte_count = exchange->body_count;
    return exchange->body != NULL ? exchange->body : "";
}

void http_exchange_drop_body(http_exchange *exchange) {
    http_server_refund(exchange->server, exchange->body_capacity);
    free(exchange->body);
    exchange->body = NULL;
    exchange->body_count = exchange->body_capacity = 0;
}

void http_exchange_set_context(http_exchange *exchange, void *context, void (*release)(void *context)) {
    exchange->context = context;
    exchange->release_context = release;
}

void *http_exchange_context(const http_exchange *exchange) {
    return exchange->context;
}

void http_exchange_set_header(http_exchange *exchange, const char *name, const char *value) {
    pthread_mutex_lock(&exchange->lock);
    if (exchange->header_count < HTTP_HEADERS_MAX) {
        char *name_copy = strdup(name), *value_copy = strdup(value);
        exchange->headers[exchange->header_count].name = name_copy;
        exchange->headers[exchange->header_count].value = value_copy;
        exchange->header_count++;
    }
    pthread_mutex_unlock(&exchange->lock);
}

/* With the lock held. */
static void wake(http_exchange *exchange) {
    if (!exchange->is_suspended) return;
    exchange->is_suspended = false;
    MHD_resume_connection(exchange->connection);
}

static void set_answer(http_exchange *exchange, answer_kind answer, unsigned status, const char *content_type) {
    assert(exchange->answer == ANSWER_NONE);
    exchange->answer = answer;
    exchange->status = status;
    snprintf(exchange->content_type, sizeof(exchange->content_type), "%s", content_type);
    http_server_count_answer(exchange->server, status);
}

void http_exchange_respond(http_exchange *exchange, unsigned status, const char *content_type, char *body,
                           size_t body_bytes) {
    pthread_mutex_lock(&exchange->lock);
    set_answer(exchange, ANSWER_WHOLE, status, content_type);
    exchange->whole = body;
    exchange->whole_bytes = body_bytes;
    wake(exchange);
    pthread_mutex_unlock(&exchange->lock);
}

void http_exchange_stream_begin(http_exchange *exchange, unsigned status, const char *content_type) {
    pthread_mutex_lock(&exchange->lock);
    set_answer(exchange, ANSWER_STREAM, status, content_type);
    wake(exchange);
    pthread_mutex_unlock(&exchange->lock);
}

hd_status http_exchange_stream_write(http_exchange *exchange, const char *bytes, size_t byte_count) {
    pthread_mutex_lock(&exchange->lock);
    assert(exchange->answer == ANSWER_STREAM && !exchange->is_stream_ended);
    hd_status status = exchange->is_gone || exchange->is_cut ? HD_PEER_LOST : HD_OK;
    if (status == HD_OK) {
        /* What was sent is dropped when it is most of the buffer, so moving costs a constant time per byte. */
        if (exchange->stream_sent > exchange->stream.count / 2) {
            text_buffer_drop(&exchange->stream, exchange->stream_sent);
            exchange->stream_sent = 0;
        }
        text_buffer_append(&exchange->stream, bytes, byte_count);
        if (exchange->stream.is_failed) status = HD_NO_MEMORY;
        exchange->stream.is_failed = false;
        wake(exchange);
    }
    pthread_mutex_unlock(&exchange->lock);
    return status;
}

void http_exchange_stream_end(http_exchange *exchange) {
    pthread_mutex_lock(&exchange->lock);
    exchange->is_stream_ended = true;
    wake(exchange);
    pthread_mutex_unlock(&exchange->lock);
}

void http_exchange_discard_unsent(http_exchange *exchange) {
    struct linger discard = {.l_onoff = 1, .l_linger = 0};
    if (exchange->socket >= 0) setsockopt(exchange->socket, SOL_SOCKET, SO_LINGER, &discard, sizeof(discard));
}

void http_exchange_cut(http_exchange *exchange) {
    pthread_mutex_lock(&exchange->lock);
    exchange->is_cut = true;
    text_buffer_clear(&exchange->stream);
    exchange->stream_sent = 0;
    /* libmicrohttpd may be waiting for room in the socket, and then asks us nothing: only the socket itself can wake
     * it. And what the system still holds for a peer that does not read would stay for minutes. */
    if (exchange->connection != NULL && exchange->socket >= 0) {
        http_exchange_discard_unsent(exchange);
        shutdown(exchange->socket, SHUT_RDWR);
    }
    wake(exchange);
    pthread_mutex_unlock(&exchange->lock);
}

size_t http_exchange_pending(http_exchange *exchange) {
    pthread_mutex_lock(&exchange->lock);
    size_t pending = exchange->is_gone ? 0 : exchange->stream.count - exchange->stream_sent;
    exchange->is_drain_due = pending >= exchange->drained_below;
    pthread_mutex_unlock(&exchange->lock);
    return pending;
}

hd_status http_exchange_watch(http_exchange *exchange, size_t drained_below, void (*on_gone)(void *context),
                              void (*on_drained)(void *context), void *context) {
    pthread_mutex_lock(&exchange->lock);
    hd_status status = exchange->is_gone ? HD_PEER_LOST : HD_OK;
    if (status == HD_OK) {
        exchange->drained_below = drained_below;
        exchange->on_gone = on_gone;
        exchange->on_drained = on_drained;
        exchange->watcher = context;
    }
    pthread_mutex_unlock(&exchange->lock);
    return status;
}

void http_exchange_unwatch(http_exchange *exchange) {
    pthread_mutex_lock(&exchange->lock);
    exchange->on_gone = NULL;
    exchange->on_drained = NULL;
    pthread_mutex_unlock(&exchange->lock);
}

/* With the lock held. */
static void mark_gone(http_exchange *exchange) {
    if (exchange->is_gone) return;
    exchange->is_gone = true;
    if (exchange->on_gone != NULL) exchange->on_gone(exchange->watcher);
    exchange->on_gone = NULL;
    exchange->on_drained = NULL;
}

void http_exchange_lose(http_exchange *exchange) {
    pthread_mutex_lock(&exchange->lock);
    mark_gone(exchange);
    wake(exchange);
    pthread_mutex_unlock(&exchange->lock);
}

void http_exchange_detach(http_exchange *exchange) {
    pthread_mutex_lock(&exchange->lock);
    mark_gone(exchange);
    exchange->is_suspended = false;
    exchange->connection = NULL;
    pthread_mutex_unlock(&exchange->lock);
}

/* Gives libmicrohttpd what there is, or suspends the connection until there is something. */
static ssize_t read_stream(void *context, uint64_t position, char *buffer, size_t buffer_bytes) {
    http_exchange *exchange = context;
    ssize_t result = 0;
    pthread_mutex_lock(&exchange->lock);
    size_t pending = exchange->stream.count - exchange->stream_sent;
    if (exchange->is_gone || exchange->is_cut) {
        result = MHD_CONTENT_READER_END_WITH_ERROR;
    } else if (pending > 0) {
        size_t count = pending < buffer_bytes ? pending : buffer_bytes;
        memcpy(buffer, exchange->stream.bytes + exchange->stream_sent, count);
        exchange->stream_sent += count;
        result = (ssize_t)count;
        if (exchange->stream_sent == exchange->stream.count) {
            text_buffer_clear(&exchange->stream);
            exchange->stream_sent = 0;
        }
        if (exchange->is_drain_due && exchange->on_drained != NULL && pending - count < exchange->drained_below) {
            exchange->is_drain_due = false;
            exchange->on_drained(exchange->watcher);
        }
    } else if (exchange->is_stream_ended) {
        result = MHD_CONTENT_READER_END_OF_STREAM;
    } else {
        exchange->is_suspended = true;
        MHD_suspend_connection(exchange->connection);
    }
    pthread_mutex_unlock(&exchange->lock);
    return result;
}

static void end_stream(void *context) {
    http_exchange_release(context);
}

struct MHD_Response *http_exchange_response(http_exchange *exchange) {
    struct MHD_Response *response;
    if (exchange->answer == ANSWER_STREAM) {
        response =
            MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK_BYTES, read_stream, exchange, end_stream);
        if (response != NULL) http_exchange_retain(exchange);
    } else {
        response = MHD_create_response_from_buffer(exchange->whole_bytes, exchange->whole, MHD_RESPMEM_MUST_FREE);
        if (response != NULL) exchange->whole = NULL;
    }
    if (response == NULL) return NULL;
    if (exchange->content_type[0] != '\0')
        MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, exchange->content_type);
    for (unsigned i = 0; i < exchange->header_count; i++) {
        if (exchange->headers[i].name == NULL || exchange->headers[i].value == NULL) continue;
        MHD_add_response_header(response, exchange->headers[i].name, exchange->headers[i].value);
    }
    return response;
}
