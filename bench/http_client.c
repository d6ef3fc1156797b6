/* http_client.c - non-blocking sockets in one epoll set.
 *
 * A finished call leaves the set at once, but an event for it may already have been fetched in the same batch; so a
 * batch is handled one event at a time, and http_client_poll asks the kernel again after each call that ended. */
#include "bench/http_client.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

#define EVENTS_MAX 64
#define READ_BYTES 65536

struct http_client {
    int epoll_fd;
    struct sockaddr_storage address;
    socklen_t address_bytes;
    int family;
    char *host;          /* as the Host header wants it: HOST[:PORT] */
    char *prefix;        /* of the path, without a trailing slash; "" for none */
    char *authorization; /* the header line, or "" */
    http_call *calls;
    size_t running;
    int lost_errno; /* of the connection that was lost last; 0: it was closed by the server */
    bool has_ended; /* a call ended since the events in hand were fetched */
};

/* HOST, HOST:PORT, [V6] or [V6]:PORT */
static hd_status split_host(const char *host_port, char *host, size_t host_bytes, char *port, size_t port_bytes) {
    const char *end, *colon;
    if (*host_port == '[') {
        host_port++;
        end = strchr(host_port, ']');
        if (end == NULL || (end[1] != '\0' && end[1] != ':')) return HD_INVALID;
        colon = end[1] == ':' ? end + 1 : NULL;
    } else {
        colon = strchr(host_port, ':');
        end = colon != NULL ? colon : host_port + strlen(host_port);
    }
    int host_length = snprintf(host, host_bytes, "%.*s", (int)(end - host_port), host_port);
    int port_length = snprintf(port, port_bytes, "%s", colon != NULL ? colon + 1 : "80");
    return host_length > 0 && (size_t)host_length < host_bytes && port_length > 0 && (size_t)port_length < port_bytes
               ? HD_OK
               : HD_INVALID;
}

static hd_status resolve(http_client *client, const char *url, hd_error *error) {
    if (strncmp(url, "http://", 7) != 0)
        return hd_error_set(error, HD_INVALID, "'%s' is not an http:// URL; give one like http://127.0.0.1:8000", url);
    const char *authority = url + 7;
    size_t authority_bytes = strcspn(authority, "/");
    client->host = strndup(authority, authority_bytes);
    client->prefix = strdup(authority + authority_bytes);
    if (client->host == NULL || client->prefix == NULL) return hd_error_set(error, HD_NO_MEMORY, "out of memory");
    for (size_t end = strlen(client->prefix); end > 0 && client->prefix[end - 1] == '/'; end--)
        client->prefix[end - 1] = '\0';

    char host[256], port[16];
    if (split_host(client->host, host, sizeof(host), port, sizeof(port)) != HD_OK)
        return hd_error_set(error, HD_INVALID, "'%s' has no host; give a URL like http://127.0.0.1:8000", url);
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found = NULL;
    int code = getaddrinfo(host, port, &hints, &found);
    if (code != 0)
        return hd_error_set(error, HD_NOT_FOUND, "cannot find host '%s' of %s: %s", host, url, gai_strerror(code));
    memcpy(&client->address, found->ai_addr, found->ai_addrlen);
    client->address_bytes = found->ai_addrlen;
    client->family = found->ai_family;
    freeaddrinfo(found);
    return HD_OK;
}

hd_status http_client_open(const char *url, const char *api_key, http_client **out, hd_error *error) {
    http_client *client = calloc(1, sizeof(*client));
    if (client == NULL) return hd_error_set(error, HD_NO_MEMORY, "out of memory");
    client->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    hd_status status = client->epoll_fd >= 0 ? HD_OK : hd_error_set(error, HD_IO, "epoll_create1: %s", strerror(errno));
    if (status == HD_OK) status = resolve(client, url, error);
    if (status == HD_OK) {
        bool is_made = api_key != NULL ? asprintf(&client->authorization, "Authorization: Bearer %s\r\n", api_key) >= 0
                                       : (client->authorization = strdup("")) != NULL;
        if (!is_made) status = hd_error_set(error, HD_NO_MEMORY, "out of memory");
    }
    if (status == HD_OK) *out = client;
    else http_client_close(client);
    return status;
}

void http_client_close(http_client *client) {
    if (client == NULL) return;
    while (client->calls != NULL) http_client_cancel(client->calls);
    if (client->epoll_fd >= 0) close(client->epoll_fd);
    free(client->host);
    free(client->prefix);
    free(client->authorization);
    free(client);
}

const char *http_client_cause(const http_client *client, hd_status status) {
    if (status != HD_PEER_LOST) return hd_status_text(status);
    switch (client->lost_errno) {
    case 0: return "the connection was closed";
    case ECONNREFUSED: return "connection refused";
    case ECONNRESET: return "the connection was reset";
    case ETIMEDOUT: return "the connection timed out";
    case EHOSTUNREACH:
    case ENETUNREACH: return "the host cannot be reached";
    default: return hd_status_text(status);
    }
}

size_t http_client_running(const http_client *client) {
    return client->running;
}

static void take_line(void *context, const char *line, size_t bytes) {
    http_call *call = context;
    call->http_status = call->answer.status;
    call->on_line(call, line, bytes);
}

static void release(http_call *call) {
    if (call->fd >= 0) close(call->fd); /* this also takes it out of the epoll set */
    call->fd = -1;
    free(call->head);
    call->head = NULL;
    http_answer_fini(&call->answer);
}

static void finish(http_call *call, hd_status status) {
    http_client *client = call->client;
    if (call->previous != NULL) call->previous->next = call->next;
    else client->calls = call->next;
    if (call->next != NULL) call->next->previous = call->previous;
    client->running--;
    client->has_ended = true;
    call->http_status = call->answer.status;
    release(call);
    call->on_done(call, status);
}

void http_client_cancel(http_call *call) {
    finish(call, HD_CANCELLED);
}

hd_status http_client_start(http_client *client, http_call *call) {
    call->client = client;
    client->lost_errno = 0;
    call->http_status = 0;
    call->sent_bytes = 0;
    call->fd = -1;
    http_answer_init(&call->answer, take_line, call);
    int length = asprintf(&call->head,
                          "%s %s%s HTTP/1.1\r\nHost: %s\r\n%sContent-Type: application/json\r\nContent-Length: %zu\r\n"
                          "Accept: */*\r\nConnection: close\r\n\r\n",
                          call->body != NULL ? "POST" : "GET", client->prefix, call->path, client->host,
                          client->authorization, call->body != NULL ? call->body_bytes : 0);
    if (length < 0) {
        call->head = NULL;
        return HD_NO_MEMORY;
    }
    call->head_bytes = (size_t)length;

    call->fd = socket(client->family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (call->fd < 0) {
        release(call);
        return HD_FULL;
    }
    int one = 1;
    setsockopt(call->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.ptr = call};
    if ((connect(call->fd, (const struct sockaddr *)&client->address, client->address_bytes) != 0 &&
         errno != EINPROGRESS) ||
        epoll_ctl(client->epoll_fd, EPOLL_CTL_ADD, call->fd, &event) != 0) {
        client->lost_errno = errno;
        release(call);
        return HD_PEER_LOST;
    }
    call->previous = NULL;
    call->next = client->calls;
    if (client->calls != NULL) client->calls->previous = call;
    client->calls = call;
    client->running++;
    return HD_OK;
}

/* What is left to send: first of the head, then of the body. */
static ssize_t send_some(http_call *call) {
    if (call->sent_bytes < call->head_bytes)
        return send(call->fd, call->head + call->sent_bytes, call->head_bytes - call->sent_bytes,
                    MSG_NOSIGNAL | (call->body != NULL ? MSG_MORE : 0));
    size_t body_sent = call->sent_bytes - call->head_bytes;
    return send(call->fd, call->body + body_sent, call->body_bytes - body_sent, MSG_NOSIGNAL);
}

/* HD_PENDING: more to send later. A server may answer before it has read everything (a body that is too large), and
 * then resets the connection, so a failed send is no failure as long as there is an answer to read. */
static hd_status on_writable(http_call *call) {
    size_t total = call->head_bytes + (call->body != NULL ? call->body_bytes : 0);
    while (call->sent_bytes < total) {
        ssize_t sent = send_some(call);
        if (sent < 0 && errno == EAGAIN) return HD_PENDING;
        if (sent < 0) {
            call->client->lost_errno = errno; /* the socket tells it once: nothing is left for recv */
            return HD_PEER_LOST;
        }
        call->sent_bytes += (size_t)sent;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = call};
    return epoll_ctl(call->client->epoll_fd, EPOLL_CTL_MOD, call->fd, &event) == 0 ? HD_OK : HD_PEER_LOST;
}

/* HD_PENDING: the answer goes on. Else the call is over. */
static hd_status on_readable(http_call *call) {
    char buffer[READ_BYTES];
    for (;;) {
        ssize_t count = recv(call->fd, buffer, sizeof(buffer), 0);
        if (count < 0 && (errno == EAGAIN || errno == EINTR)) return HD_PENDING;
        if (count < 0) {
            call->client->lost_errno = errno;
            return HD_PEER_LOST;
        }
        if (count == 0) return http_answer_end(&call->answer);
        hd_status status = http_answer_take(&call->answer, buffer, (size_t)count);
        if (status != HD_OK) return status;
        if (call->answer.state == HTTP_DONE) return HD_OK;
        if ((size_t)count < sizeof(buffer)) return HD_PENDING;
    }
}

static void handle(http_call *call, uint32_t events) {
    hd_status sending = HD_OK;
    if (events & EPOLLOUT) sending = on_writable(call);
    hd_status receiving = HD_PENDING;
    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) || sending == HD_PEER_LOST) receiving = on_readable(call);
    if (receiving == HD_PENDING && (sending == HD_PEER_LOST || (events & EPOLLERR))) receiving = HD_PEER_LOST;
    if (receiving != HD_PENDING) finish(call, receiving);
}

hd_status http_client_poll(http_client *client, int timeout_ms) {
    struct epoll_event events[EVENTS_MAX];
    int count = epoll_wait(client->epoll_fd, events, EVENTS_MAX, timeout_ms);
    if (count < 0) return errno == EINTR ? HD_OK : HD_IO;
    client->has_ended = false;
    for (int i = 0; i < count; i++) {
        handle(events[i].data.ptr, events[i].events);
        if (client->has_ended)
            return HD_OK; /* what is left of the batch may be of memory that is gone; it comes again */
    }
    return HD_OK;
}

typedef struct fetch {
    char *text;
    size_t bytes;
    hd_status status;
} fetch;

static void fetch_line(http_call *call, const char *line, size_t bytes) {
    fetch *f = call->context;
    char *grown = realloc(f->text, f->bytes + bytes + 2);
    if (grown == NULL) return; /* the text ends early, and whoever parses it says so */
    f->text = grown;
    if (f->bytes > 0) f->text[f->bytes++] = '\n';
    memcpy(f->text + f->bytes, line, bytes);
    f->bytes += bytes;
    f->text[f->bytes] = '\0';
}

static void fetch_done(http_call *call, hd_status status) {
    ((fetch *)call->context)->status = status;
}

hd_status http_client_fetch(http_client *client, const char *path, const char *body, int timeout_ms, int *http_status,
                            char **text) {
    fetch f = {.text = strdup(""), .status = HD_PENDING};
    if (f.text == NULL) return HD_NO_MEMORY;
    http_call call = {.path = path,
                      .body = body,
                      .body_bytes = body != NULL ? strlen(body) : 0,
                      .on_line = fetch_line,
                      .on_done = fetch_done,
                      .context = &f};
    hd_status status = http_client_start(client, &call);
    uint64_t deadline = hd_now_ns() + (uint64_t)timeout_ms * 1000000u;
    while (status == HD_OK && f.status == HD_PENDING) {
        uint64_t now = hd_now_ns();
        if (now >= deadline) {
            http_client_cancel(&call);
            f.status = HD_TIMED_OUT;
        } else {
            status = http_client_poll(client, (int)((deadline - now + 999999) / 1000000));
            if (status != HD_OK) http_client_cancel(&call);
        }
    }
    if (status == HD_OK) status = f.status;
    if (status == HD_OK) {
        *http_status = call.http_status;
        *text = f.text;
    } else {
        free(f.text);
    }
    return status;
}
