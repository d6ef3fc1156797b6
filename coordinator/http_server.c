/* http_server.c - libmicrohttpd's daemon and its access handler.
 *
 * The handler is called once with the headers, then with each piece of the body, then with none, and again after a
 * resume. An answer that is known before the body has come is sent after the body has been read and thrown away: a
 * server that closes a socket with unread bytes makes the system reset the connection, and the client never sees the
 * answer. Only a client that waits for "100 Continue", or announces more than we care to read, is answered at once. */
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "coordinator/http_exchange.h"

#define DISCARD_FACTOR                                                                                                 \
    4u /* bodies up to this many times body_bytes_max are read to their end, to be refused in words */

struct http_server {
    http_config config;
    struct MHD_Daemon *daemon;
    hangup_watch *watch;
    _Atomic size_t bodies_bytes;
    pthread_mutex_t lock; /* guards the list of open exchanges */
    pthread_cond_t closed;
    http_exchange *first;
    uint32_t open_count;
};

bool http_server_charge(http_server *server, size_t bytes) {
    size_t before = atomic_fetch_add_explicit(&server->bodies_bytes, bytes, memory_order_relaxed);
    if (before + bytes <= server->config.bodies_bytes_max) return true;
    http_server_refund(server, bytes);
    return false;
}

void http_server_refund(http_server *server, size_t bytes) {
    atomic_fetch_sub_explicit(&server->bodies_bytes, bytes, memory_order_relaxed);
}

void http_server_count_answer(http_server *server, unsigned status) {
    if (server->config.callbacks.on_answer != NULL)
        server->config.callbacks.on_answer(server->config.callbacks.context, status);
}

static void list_add(http_server *server, http_exchange *exchange) {
    pthread_mutex_lock(&server->lock);
    exchange->next = server->first;
    if (server->first != NULL) server->first->previous = exchange;
    server->first = exchange;
    server->open_count++;
    pthread_mutex_unlock(&server->lock);
}

static void list_remove(http_server *server, http_exchange *exchange) {
    pthread_mutex_lock(&server->lock);
    if (exchange->previous != NULL) exchange->previous->next = exchange->next;
    else server->first = exchange->next;
    if (exchange->next != NULL) exchange->next->previous = exchange->previous;
    server->open_count--;
    pthread_cond_broadcast(&server->closed);
    pthread_mutex_unlock(&server->lock);
}

/* The Content-Length, UINT64_MAX where there is none that can be read (chunked, or no body). */
static uint64_t declared_bytes(const http_exchange *exchange) {
    const char *text = http_exchange_header(exchange, MHD_HTTP_HEADER_CONTENT_LENGTH);
    if (text == NULL) return UINT64_MAX;
    char *end;
    errno = 0;
    unsigned long long bytes = strtoull(text, &end, 10);
    return errno == 0 && *end == '\0' ? bytes : UINT64_MAX - 1;
}

static void refuse(http_server *server, http_exchange *exchange, http_refusal refusal) {
    exchange->is_body_wanted = false;
    http_exchange_drop_body(exchange);
    server->config.callbacks.on_refuse(server->config.callbacks.context, exchange, refusal);
}

static bool grow_body(http_server *server, http_exchange *exchange, size_t capacity) {
    size_t more = capacity - exchange->body_capacity;
    if (!http_server_charge(server, more)) return false;
    char *body = realloc(exchange->body, capacity);
    if (body == NULL) {
        http_server_refund(server, more);
        return false;
    }
    exchange->body = body;
    exchange->body_capacity = capacity;
    return true;
}

static void take_body(http_server *server, http_exchange *exchange, const char *bytes, size_t byte_count) {
    if (!exchange->is_body_wanted) {
        exchange->discarded += byte_count;
        return;
    }
    size_t needed = exchange->body_count + byte_count;
    if (needed > server->config.body_bytes_max) {
        refuse(server, exchange, HTTP_BODY_TOO_LARGE);
        return;
    }
    if (needed > exchange->body_capacity) {
        size_t capacity = exchange->body_capacity == 0 ? 4096 : exchange->body_capacity;
        while (capacity < needed) capacity *= 2;
        if (capacity > server->config.body_bytes_max) capacity = server->config.body_bytes_max;
        if (!grow_body(server, exchange, capacity)) {
            refuse(server, exchange, HTTP_BODIES_FULL);
            return;
        }
    }
    memcpy(exchange->body + exchange->body_count, bytes, byte_count);
    exchange->body_count = needed;
}

/* Without the exchange's lock: an answer that is set does not change any more, and the library takes locks of its own
 * here that it holds when it calls the exchange's reader. */
static enum MHD_Result send_answer(http_exchange *exchange, struct MHD_Connection *connection) {
    struct MHD_Response *response = http_exchange_response(exchange);
    if (response == NULL) return MHD_NO;
    MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, exchange->server->config.stall_timeout_s);
    enum MHD_Result result = MHD_queue_response(connection, exchange->status, response);
    MHD_destroy_response(response);
    return result;
}

/* The first call for a request. */
static enum MHD_Result begin(http_server *server, http_exchange *exchange, struct MHD_Connection *connection) {
    const http_callbacks *callbacks = &server->config.callbacks;
    exchange->is_body_wanted = callbacks->on_headers(callbacks->context, exchange);
    uint64_t declared = declared_bytes(exchange);
    bool has_length = declared != UINT64_MAX;
    if (exchange->is_body_wanted && has_length && declared > server->config.body_bytes_max)
        refuse(server, exchange, HTTP_BODY_TOO_LARGE);
    if (exchange->is_body_wanted) return MHD_YES;
    bool waits = http_exchange_header(exchange, MHD_HTTP_HEADER_EXPECT) != NULL;
    bool is_endless = has_length && declared > (uint64_t)server->config.body_bytes_max * DISCARD_FACTOR;
    if (!waits && !is_endless) return MHD_YES;
    exchange->is_refused_early = true;
    return send_answer(exchange, connection);
}

static void on_hangup(void *context) {
    http_exchange_lose(context);
}

/* What there is to be done for an exchange whose body is complete. */
typedef enum { NEXT_SEND, NEXT_WAIT, NEXT_CUT } next_step;

static next_step choose_next(http_exchange *exchange) {
    if (exchange->is_gone || exchange->is_cut) return NEXT_CUT;
    return exchange->answer != ANSWER_NONE ? NEXT_SEND : NEXT_WAIT;
}

static next_step look(http_exchange *exchange) {
    pthread_mutex_lock(&exchange->lock);
    next_step next = choose_next(exchange);
    pthread_mutex_unlock(&exchange->lock);
    return next;
}

/* The body is complete: hands the exchange over, and suspends the connection if that has not answered it yet. */
static enum MHD_Result dispatch(http_server *server, http_exchange *exchange, struct MHD_Connection *connection) {
    const http_callbacks *callbacks = &server->config.callbacks;
    exchange->is_body_wanted = false;
    callbacks->on_request(callbacks->context, exchange);
    if (look(exchange) == NEXT_SEND && exchange->answer == ANSWER_WHOLE) return send_answer(exchange, connection);

    int socket = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    /* Without a slot the client's going is seen when something is sent to it, which is right as well, only later. */
    (void)hangup_watch_add(server->watch, socket, on_hangup, exchange, &exchange->ticket);
    pthread_mutex_lock(&exchange->lock);
    exchange->socket = socket;
    next_step next = choose_next(exchange);
    if (next == NEXT_WAIT) {
        exchange->is_suspended = true;
        MHD_suspend_connection(connection);
    }
    pthread_mutex_unlock(&exchange->lock);
    if (next == NEXT_SEND) return send_answer(exchange, connection);
    return next == NEXT_WAIT ? MHD_YES : MHD_NO;
}

/* Called again after a resume: there is an answer, or the client has gone. */
static enum MHD_Result resume(http_exchange *exchange, struct MHD_Connection *connection) {
    return look(exchange) == NEXT_SEND ? send_answer(exchange, connection) : MHD_NO;
}

static enum MHD_Result on_access(void *context, struct MHD_Connection *connection, const char *url, const char *method,
                                 const char *version, const char *upload, size_t *upload_bytes, void **r) {
    http_server *server = context;
    http_exchange *exchange = *r;
    if (exchange == NULL) {
        exchange = http_exchange_open(server, connection, method, url);
        if (exchange == NULL) return MHD_NO;
        *r = exchange;
        list_add(server, exchange);
        return begin(server, exchange, connection);
    }
    if (*upload_bytes > 0) {
        take_body(server, exchange, upload, *upload_bytes);
        *upload_bytes = 0;
        /* A body of unknown length that does not end: the connection is cut. */
        return exchange->discarded > server->config.body_bytes_max * DISCARD_FACTOR ? MHD_NO : MHD_YES;
    }
    if (exchange->is_refused_early) return MHD_YES;
    if (exchange->is_body_wanted) return dispatch(server, exchange, connection);
    return resume(exchange, connection);
}

static void on_completed(void *context, struct MHD_Connection *connection, void **r,
                         enum MHD_RequestTerminationCode code) {
    http_server *server = context;
    http_exchange *exchange = *r;
    *r = NULL;
    if (exchange == NULL) return;
    if (code == MHD_REQUEST_TERMINATED_COMPLETED_OK) { /* the connection may be used again */
        MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, server->config.idle_timeout_s);
    } else if (code == MHD_REQUEST_TERMINATED_TIMEOUT_REACHED) {
        http_exchange_discard_unsent(exchange);
    }
    hangup_watch_remove(server->watch, exchange->socket, &exchange->ticket);
    http_exchange_detach(exchange);
    list_remove(server, exchange);
    http_exchange_release(exchange);
}

static void on_panic(void *context, const char *file, unsigned line, const char *reason) {
    abort();
}

/* Every stream is an open file, and so is every waiting client. */
static void raise_file_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

hd_status http_server_open(const http_config *config, http_server **out, hd_error *error) {
    http_server *server = calloc(1, sizeof(*server));
    if (server == NULL) return hd_error_set(error, HD_NO_MEMORY, "no memory for the HTTP server");
    server->config = *config;
    pthread_mutex_init(&server->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&server->closed, &attributes);
    pthread_condattr_destroy(&attributes);
    raise_file_limit();
    /* A client that goes while it is written to is an error of that write, not a reason to end. */
    signal(SIGPIPE, SIG_IGN);
    MHD_set_panic_func(on_panic, NULL);
    hd_status status = hangup_watch_open(config->connections_max, &server->watch);
    if (status != HD_OK) {
        close(config->listener);
        http_server_close(server);
        return hd_error_set(error, status, "the watch over the connections cannot be opened");
    }
    struct MHD_OptionItem options[] = {
        {MHD_OPTION_LISTEN_SOCKET, config->listener, NULL},
        {MHD_OPTION_CONNECTION_LIMIT, (intptr_t)config->connections_max, NULL},
        {MHD_OPTION_CONNECTION_TIMEOUT, (intptr_t)config->idle_timeout_s, NULL},
        {MHD_OPTION_NOTIFY_COMPLETED, (intptr_t)on_completed, server},
        /* The library warns of a pool of one thread; one is what it has without a pool. */
        {config->thread_count > 1 ? MHD_OPTION_THREAD_POOL_SIZE : MHD_OPTION_END, (intptr_t)config->thread_count, NULL},
        {MHD_OPTION_END, 0, NULL},
    };
    unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ITC;
    server->daemon =
        MHD_start_daemon(flags, 0, NULL, NULL, on_access, server, MHD_OPTION_ARRAY, options, MHD_OPTION_END);
    if (server->daemon == NULL) {
        http_server_close(server);
        return hd_error_set(error, HD_IO, "the HTTP server cannot be started: %s", strerror(errno));
    }
    *out = server;
    return HD_OK;
}

uint32_t http_server_open_exchanges(http_server *server) {
    pthread_mutex_lock(&server->lock);
    uint32_t count = server->open_count;
    pthread_mutex_unlock(&server->lock);
    return count;
}

bool http_server_wait_idle(http_server *server, uint64_t timeout_ms) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    /* A time past a century from now is "until it happens". */
    if (timeout_ms > 3153600000000u) timeout_ms = 3153600000000u;
    until.tv_sec += (time_t)(timeout_ms / 1000);
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&server->lock);
    int code = 0;
    while (server->open_count > 0 && code == 0) code = pthread_cond_timedwait(&server->closed, &server->lock, &until);
    bool is_idle = server->open_count == 0;
    pthread_mutex_unlock(&server->lock);
    return is_idle;
}

void http_server_abort(http_server *server) {
    /* An exchange in the list has the server's own reference; losing it takes its lock alone, and the list cannot
     * change. */
    pthread_mutex_lock(&server->lock);
    for (http_exchange *exchange = server->first; exchange != NULL; exchange = exchange->next)
        http_exchange_lose(exchange);
    pthread_mutex_unlock(&server->lock);
}

void http_server_stop(http_server *server) {
    if (server->daemon != NULL) MHD_stop_daemon(server->daemon);
    server->daemon = NULL;
    assert(server->open_count == 0);
}

void http_server_close(http_server *server) {
    if (server == NULL) return;
    http_server_stop(server);
    hangup_watch_close(server->watch);
    pthread_cond_destroy(&server->closed);
    pthread_mutex_destroy(&server->lock);
    free(server);
}
