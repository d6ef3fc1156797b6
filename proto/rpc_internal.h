/* rpc_internal.h - what the files of rpc share: gRPC's types behind the names of rpc.h.
 *
 * Nothing else includes it; gRPC's types stay inside. */
#ifndef PROTO_RPC_INTERNAL_H
#define PROTO_RPC_INTERNAL_H

#include <grpc/grpc.h>
#include <pthread.h>

#include "proto/rpc.h"

#define RPC_SEND_SLOTS 64u /* messages queued on a stream, at most */

struct rpc_queue {
    grpc_completion_queue *events;
    grpc_channel *wake_channel; /* goes nowhere: an empty batch on a call of it is an event without I/O */
    grpc_call *wake_call;
    rpc_timer *timers; /* by time */
    bool has_loop;     /* a thread polls it for as long as it lives */
};

struct rpc_channel {
    grpc_channel *channel;
};

struct rpc_tls {
    char *cert, *key, *ca; /* PEM text or NULL */
};

typedef struct rpc_queued {
    grpc_byte_buffer *buffer;
    size_t bytes;
} rpc_queued;

typedef enum { RPC_SENDING_OPEN, RPC_SENDING_ENDS, RPC_SENDING_ENDED } rpc_sending;

struct rpc_stream {
    pthread_mutex_t lock; /* guards what belongs to sending, and refs */
    unsigned refs;        /* the owner's, and one for every batch that is out */
    grpc_call *call;
    rpc_queue *queue;
    const char *method;
    rpc_handlers handlers;
    void *context;
    bool is_server, is_aligned;
    rpc_tag started, headed, sent, ended_sending, received, ended; /* batches, each out at most once */

    rpc_queued queued[RPC_SEND_SLOTS]; /* a ring; the first is on its way while is_sending */
    unsigned queued_first, queued_count;
    size_t queued_bytes, queued_bytes_max;
    bool is_sending, wants_room;
    rpc_sending sending;
    grpc_status_code finish_code;
    grpc_slice finish_message;

    /* The polling thread's from here on. */
    bool is_closed, is_receiving, is_paused, has_no_more, has_status, has_ended;
    grpc_byte_buffer *incoming;
    unsigned char *receive_buffer; /* aligned, grows to the largest message */
    size_t receive_capacity;
    grpc_metadata_array head, trailer;
    grpc_status_code code;
    grpc_slice details;
    int is_cancelled;
};

/* A stream of a call that is there; the start of a client's or server's batches follows in rpc_stream_start. */
rpc_stream *rpc_stream_new(grpc_call *call, rpc_queue *queue, const char *method, size_t send_bytes_max,
                           bool is_aligned);
void rpc_stream_start(rpc_stream *stream, const rpc_metadata *metadata, unsigned metadata_count, bool wait_for_ready);

gpr_timespec rpc_deadline(uint64_t from_now_ns);
/* Counted pairs around the life of everything that uses gRPC. */
void rpc_library_open(void);
void rpc_library_close(void);
/* HOST:PORT or unix:PATH, or HD_INVALID. */
hd_status rpc_address_check(const char *address, hd_error *error);

#endif
