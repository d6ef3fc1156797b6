/* http_client.h - many HTTP/1.1 requests at once, each on a connection of its own, driven by one thread.
 *
 * A client knows one server. A call is a request and its answer, in the caller's memory: started once, it ends with
 * exactly one on_done, and may be started again after that. Plain http:// only: what is measured here is the server,
 * not TLS.
 *   1. The connection is part of what is measured: a call begins with connect.
 *   2. on_line and on_done run inside http_client_poll (on_done also inside http_client_cancel) and may start further
 *      calls.
 * Threads: a client and its calls belong to one thread. */
#ifndef BENCH_HTTP_CLIENT_H
#define BENCH_HTTP_CLIENT_H

#include "bench/http_answer.h"

typedef struct http_client http_client;
typedef struct http_call http_call;

struct http_call {
    const char *path; /* "/v1/completions"; borrowed until on_done, as is body */
    const char *body; /* NULL: a GET */
    size_t body_bytes;
    void (*on_line)(http_call *call, const char *line, size_t bytes); /* a line of the body, as http_answer.h */
    /* HD_OK: the whole answer came (look at http_status). HD_PEER_LOST, HD_CORRUPT, HD_CANCELLED, HD_NO_MEMORY. */
    void (*on_done)(http_call *call, hd_status status);
    void *context;   /* the caller's */
    int http_status; /* of the answer, from its first line on; 0 before */
    /* the client's, while the call runs */
    http_client *client;
    http_call *previous, *next;
    http_answer answer;
    char *head;
    size_t head_bytes, sent_bytes;
    int fd;
};

/* url: http://HOST[:PORT][/PREFIX]; api_key may be NULL. The error names what is wrong with the URL, or the host that
 * is not found. */
hd_status http_client_open(const char *url, const char *api_key, http_client **client, hd_error *error);
/* Cancels what still runs. Accepts NULL. */
void http_client_close(http_client *client);

/* HD_OK: on_done will follow, once. Else it will not. */
hd_status http_client_start(http_client *client, http_call *call);
void http_client_cancel(http_call *call); /* on_done(HD_CANCELLED) now; the connection is closed */
size_t http_client_running(const http_client *client);

/* Waits for at most timeout_ms (0: not at all) for something to happen and handles it. */
hd_status http_client_poll(http_client *client, int timeout_ms);

/* One call from start to end while nothing else runs: the answer's lines, joined by '\n', malloc'ed and zero
 * terminated. body NULL: a GET. HD_TIMED_OUT after timeout_ms. */
hd_status http_client_fetch(http_client *client, const char *path, const char *body, int timeout_ms, int *http_status,
                            char **text);
/* Why the last call ended with this status, for people: "connection refused", where the status is HD_PEER_LOST. */
const char *http_client_cause(const http_client *client, hd_status status);

#endif
