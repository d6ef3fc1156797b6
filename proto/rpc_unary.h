/* rpc_unary.h - one message there, one back: protobuf-c messages over a stream of rpc.h.
 *
 * Threads: as rpc.h; rpc_unary_wait polls a queue of its own and may be called from any thread that polls none. */
#ifndef PROTO_RPC_UNARY_H
#define PROTO_RPC_UNARY_H

#include <protobuf-c/protobuf-c.h>

#include "proto/rpc.h"

/* The answer is NULL unless end->status is HD_OK; it is borrowed during the call. */
typedef void rpc_unary_done(void *context, const ProtobufCMessage *answer, const rpc_end *end);

typedef struct rpc_unary_config {
    const char *method;
    const ProtobufCMessageDescriptor *answer_type;
    uint64_t deadline_ms; /* 0: none */
    bool wait_for_ready;
    rpc_metadata metadata[RPC_METADATA_MAX];
    unsigned metadata_count;
} rpc_unary_config;

typedef struct rpc_unary rpc_unary;

/* On the polling thread. HD_OK: done runs once, later; *call (may be NULL) is valid until then. */
hd_status rpc_unary_start(rpc_channel *channel, rpc_queue *queue, const rpc_unary_config *config,
                          const ProtobufCMessage *request, rpc_unary_done *done, void *context, rpc_unary **call);
/* On the polling thread: done will not run. */
void rpc_unary_drop(rpc_unary *call);

/* Waits. *answer is the caller's, freed by protobuf_c_message_free_unpacked; the error is the peer's sentence. */
hd_status rpc_unary_wait(rpc_channel *channel, const rpc_unary_config *config, const ProtobufCMessage *request,
                         ProtobufCMessage **answer, hd_error *error);

/* Messages on any stream. */
hd_status rpc_message_send(rpc_stream *stream, const ProtobufCMessage *message);
/* NULL: not a message of this type. The caller frees it by protobuf_c_message_free_unpacked. */
ProtobufCMessage *rpc_message_unpack(const rpc_message *message, const ProtobufCMessageDescriptor *type);

/* Server: a method that answers one message with one. handle returns HD_OK and the answer, or why not. */
typedef struct rpc_unary_answer {
    const ProtobufCMessage *message;
    void (*release)(void *context, const ProtobufCMessage *message); /* after packing; may be NULL */
} rpc_unary_answer;
typedef struct rpc_unary_method {
    const ProtobufCMessageDescriptor *request_type;
    hd_status (*handle)(void *context, const ProtobufCMessage *request, rpc_unary_answer *answer, hd_error *error);
    void *context;
} rpc_unary_method;
/* For rpc_method.on_open, with the rpc_unary_method as context. */
void rpc_unary_serve(void *unary_method, rpc_stream *stream);

#endif
