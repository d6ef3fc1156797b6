/* rpc.h - calls between processes over gRPC: streams of messages in both directions, with ends that have a status.
 *
 * Everything is a stream; a unary call (rpc_unary.h) is a stream with one message each way. A stream belongs to a
 * queue, and whoever polls the queue does its I/O and runs its callbacks: a control loop (rpc_loop) for control
 * messages, a step thread for its own step frames.
 *
 *   client: rpc_stream_open --> OPEN --rpc_stream_end_sending--> HALF CLOSED --on_end--> ENDED --rpc_stream_close-->
 *   gone
 *   server: on_open         --> OPEN --rpc_stream_finish-------> FINISHED    --on_end--> ENDED --rpc_stream_close-->
 *   gone
 *
 *   1. on_end comes exactly once, after the last on_message, unless the owner has closed the stream before.
 *   2. Sending never waits. What is queued is bounded; past the bound it is HD_FULL, and on_room tells when to go on.
 *   3. Receiving is bounded by the peer's window: a stream that is paused stops its sender.
 *   4. A lent message is not copied on its way to the socket; its memory is given back by `release`, once.
 * Threads: callbacks run on the thread that polls the stream's queue, one at a time. send, lend, end_sending, finish
 * and cancel from any thread; open and close, pause and resume on the polling thread only. */
#ifndef PROTO_RPC_H
#define PROTO_RPC_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define RPC_PARTS_MAX 20u
#define RPC_METADATA_MAX 4u
#define RPC_ADDRESS_BYTES 256u
#define RPC_MESSAGE_BYTES_MAX (64ull << 20)

/* gRPC's codes, for statuses inside messages. Some of ours share one: those come back as the first of them. */
hd_status rpc_status_of_code(int code);
int rpc_code_of_status(hd_status status);

/* -- the queue of one thread -- */

typedef struct rpc_queue rpc_queue;

/* What happened, in the queue's hands; the caller's memory, alive until it has run. */
typedef struct rpc_tag {
    void (*run)(struct rpc_tag *tag, bool is_ok);
} rpc_tag;

/* Runs once on the polling thread, at `due_ns` of the monotonic clock or soon after. */
typedef struct rpc_timer {
    uint64_t due_ns;
    void (*run)(struct rpc_timer *timer);
    struct rpc_timer *next; /* the queue's */
    bool is_set;            /* the queue's */
} rpc_timer;

hd_status rpc_queue_open(rpc_queue **out);
/* Waits for what is outstanding: every stream and server of the queue has been closed. Accepts NULL. */
void rpc_queue_close(rpc_queue *queue);
/* Runs the next event and the timers that are due; waits at most so long for it. False: nothing came. */
bool rpc_queue_poll(rpc_queue *queue, uint64_t timeout_ns);
/* tag->run(tag, true) on the polling thread. From any thread; a tag is posted again only after it has run. */
void rpc_queue_post(rpc_queue *queue, rpc_tag *tag);
/* On the polling thread. Setting a timer that is set moves it; cancelling one that is not set does nothing. */
void rpc_timer_set(rpc_queue *queue, rpc_timer *timer, uint64_t delay_ms);
void rpc_timer_cancel(rpc_queue *queue, rpc_timer *timer);

/* A thread that does nothing but poll a queue. */
typedef struct rpc_loop rpc_loop;
hd_status rpc_loop_open(const char *thread_name, rpc_loop **out); /* the name is cut to 15 characters */
void rpc_loop_close(rpc_loop *loop);                              /* as rpc_queue_close; accepts NULL */
rpc_queue *rpc_loop_queue(rpc_loop *loop);
/* Runs function(context) on the loop's thread and waits for it; at once where the caller is that thread. */
void rpc_loop_call(rpc_loop *loop, void (*function)(void *context), void *context);

/* -- credentials -- */

/* PEM files that were read. cert and key name this process to its peers; ca is what peers are checked against. A server
 * with a ca asks its clients for a certificate. */
typedef struct rpc_tls rpc_tls;
/* Each path may be NULL. HD_INVALID where a certificate has no key, or a key no certificate. */
hd_status rpc_tls_open(const char *cert_path, const char *key_path, const char *ca_path, rpc_tls **out,
                       hd_error *error);
void rpc_tls_close(rpc_tls *tls); /* accepts NULL */

/* -- client -- */

typedef struct rpc_channel rpc_channel;
typedef struct rpc_channel_config {
    const char *address;        /* HOST:PORT or unix:PATH */
    const rpc_tls *tls;         /* NULL: plain; used during open only */
    const char *tls_name;       /* the name that the server's certificate has to have; NULL: the address's host */
    uint64_t keep_alive_ms;     /* between two pings; 0: 2,000 */
    uint64_t dead_after_ms;     /* without an answer to a ping; 0: 2,000 */
    uint64_t message_bytes_max; /* of one received; 0: RPC_MESSAGE_BYTES_MAX */
} rpc_channel_config;

/* One connection of its own, made when the first stream needs it and made again when it is lost. */
hd_status rpc_channel_open(const rpc_channel_config *config, rpc_channel **out, hd_error *error);
void rpc_channel_close(rpc_channel *channel); /* its streams end with HD_PEER_LOST or HD_CANCELLED; accepts NULL */

/* -- streams -- */

typedef struct rpc_stream rpc_stream;

/* Borrowed during on_message; in one piece. */
typedef struct rpc_message {
    const unsigned char *bytes;
    size_t count;
} rpc_message;

typedef struct rpc_end {
    hd_status status;
    int code;            /* gRPC's, for who needs more than the status */
    const char *message; /* the peer's sentence, or what gRPC says; never NULL */
} rpc_end;

typedef struct rpc_handlers { /* each may be NULL */
    void (*on_message)(void *context, rpc_stream *stream, const rpc_message *message);
    void (*on_half_close)(void *context, rpc_stream *stream); /* the peer sends no more, and waits for us */
    void (*on_room)(void *context, rpc_stream *stream);       /* after HD_FULL: half of the bound is free */
    void (*on_end)(void *context, rpc_stream *stream, const rpc_end *end);
} rpc_handlers;

typedef struct rpc_metadata {
    const char *key, *value; /* key in lower case */
} rpc_metadata;

typedef struct rpc_stream_config {
    const char *method;   /* "/hadal.Worker/Generate"; lives as long as the stream */
    uint64_t deadline_ms; /* from now; 0: none */
    bool wait_for_ready;  /* wait for the connection (up to the deadline) instead of failing while it cannot be made */
    uint64_t send_bytes_max; /* queued; 0: 64 MiB */
    bool aligned; /* messages begin on 64 bytes (tensor frames); else one that arrives in one piece is not copied */
    rpc_metadata metadata[RPC_METADATA_MAX];
    unsigned metadata_count;
    rpc_handlers handlers;
    void *context;
} rpc_stream_config;

/* The first message may be sent at once. Connection errors come by on_end. */
hd_status rpc_stream_open(rpc_channel *channel, rpc_queue *queue, const rpc_stream_config *config, rpc_stream **out);
/* Ends it (cancelled, if it has not ended) and frees it; no callback after it. Accepts NULL. */
void rpc_stream_close(rpc_stream *stream);

typedef struct rpc_part {
    const void *bytes;
    size_t count;
} rpc_part;

/* The caller's memory, alive until release. */
typedef struct rpc_loan {
    void (*release)(struct rpc_loan *loan); /* on any thread: only hand over */
    _Atomic unsigned parts_out;             /* rpc's */
} rpc_loan;

/* One message made of parts, at most RPC_PARTS_MAX. HD_FULL: see rule 2. HD_PEER_LOST: it has ended or finished.
 * send copies; lend does not, and release runs once where it said HD_OK and never otherwise. */
hd_status rpc_stream_send(rpc_stream *stream, const rpc_part *parts, size_t part_count);
hd_status rpc_stream_lend(rpc_stream *stream, const rpc_part *parts, size_t part_count, rpc_loan *loan);
/* Client: behind what is queued, nothing more comes. */
void rpc_stream_end_sending(rpc_stream *stream);
/* Server: behind what is queued, the end, with a sentence for the client (NULL: the status' text). */
void rpc_stream_finish(rpc_stream *stream, hd_status status, const char *message);
/* Server: finishes it and closes it when it has ended; the service forgets it now. */
void rpc_stream_refuse(rpc_stream *stream, hd_status status, const char *message);
/* Ends it as soon as possible in both directions; on_end follows. */
void rpc_stream_cancel(rpc_stream *stream);
void rpc_stream_pause(rpc_stream *stream);
void rpc_stream_resume(rpc_stream *stream);
size_t rpc_stream_queued_bytes(rpc_stream *stream); /* any thread */
const char *rpc_stream_method(const rpc_stream *stream);
/* "ipv4:10.0.0.7:41000" into the buffer. */
const char *rpc_stream_peer(rpc_stream *stream, char *buffer, size_t buffer_bytes);
/* Server, in on_open: who handles it. */
void rpc_stream_handle(rpc_stream *stream, const rpc_handlers *handlers, void *context);

/* -- server -- */

typedef struct rpc_server rpc_server;

/* A method of the server. on_open gets a stream that is the service's from then on: it calls rpc_stream_handle, and
 * rpc_stream_close at last. */
typedef struct rpc_method {
    const char *path;
    rpc_queue *queue; /* whose thread runs the calls; a method of step frames has its own */
    void (*on_open)(void *context, rpc_stream *stream);
    void *context;
    uint64_t send_bytes_max; /* as in rpc_stream_config */
    bool aligned;
} rpc_method;

#define RPC_METHODS_MAX 32u

typedef struct rpc_server_config {
    const char *listen_address; /* HOST:PORT (port 0: the system chooses) or unix:PATH */
    const rpc_tls *tls;         /* NULL: plain */
    const rpc_method *methods;
    unsigned method_count;
    uint64_t message_bytes_max; /* 0: RPC_MESSAGE_BYTES_MAX */
} rpc_server_config;

/* Copies the config; the paths live as long as the server. */
hd_status rpc_server_open(const rpc_server_config *config, rpc_server **out, hd_error *error);
/* Ends what runs (streams see on_end, their owners close them) and waits for it: its queues are being polled meanwhile,
 * or polled here where they have no loop. Not from a callback. Accepts NULL. */
void rpc_server_close(rpc_server *server);
const char *rpc_server_address(const rpc_server *server); /* with the port that is really bound */

#endif
