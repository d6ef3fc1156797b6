/* rpc_unary.c - protobuf-c messages on streams, and the streams of one message each way. */
#include "proto/rpc_unary.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STACK_BYTES 4096u
#define WAIT_NS 1000000000ull

hd_status rpc_message_send(rpc_stream *stream, const ProtobufCMessage *message) {
    unsigned char small[STACK_BYTES], *bytes = small;
    size_t count = protobuf_c_message_get_packed_size(message);
    if (count > sizeof(small) && (bytes = malloc(count)) == NULL) return HD_NO_MEMORY;
    protobuf_c_message_pack(message, bytes);
    hd_status status = rpc_stream_send(stream, &(rpc_part){bytes, count}, 1);
    if (bytes != small) free(bytes);
    return status;
}

ProtobufCMessage *rpc_message_unpack(const rpc_message *message, const ProtobufCMessageDescriptor *type) {
    return protobuf_c_message_unpack(type, NULL, message->count, message->bytes);
}

/* -- client -- */

struct rpc_unary {
    rpc_stream *stream;
    const ProtobufCMessageDescriptor *answer_type;
    ProtobufCMessage *answer;
    rpc_unary_done *done;
    void *context;
};

static void unary_free(rpc_unary *call) {
    rpc_stream_close(call->stream);
    if (call->answer != NULL) protobuf_c_message_free_unpacked(call->answer, NULL);
    free(call);
}

static void on_answer(void *context, rpc_stream *stream, const rpc_message *message) {
    rpc_unary *call = context;
    if (call->answer == NULL) call->answer = rpc_message_unpack(message, call->answer_type);
}

static void on_answer_end(void *context, rpc_stream *stream, const rpc_end *end) {
    rpc_unary *call = context;
    rpc_end unreadable = {HD_CORRUPT, end->code, "the answer is not the message that was expected"};
    if (end->status == HD_OK && call->answer == NULL) end = &unreadable;
    call->done(call->context, end->status == HD_OK ? call->answer : NULL, end);
    unary_free(call);
}

hd_status rpc_unary_start(rpc_channel *channel, rpc_queue *queue, const rpc_unary_config *config,
                          const ProtobufCMessage *request, rpc_unary_done *done, void *context, rpc_unary **out) {
    rpc_unary *call = calloc(1, sizeof(*call));
    if (call == NULL) return HD_NO_MEMORY;
    *call = (rpc_unary){.answer_type = config->answer_type, .done = done, .context = context};
    rpc_stream_config stream = {.method = config->method,
                                .deadline_ms = config->deadline_ms,
                                .wait_for_ready = config->wait_for_ready,
                                .handlers = {.on_message = on_answer, .on_end = on_answer_end},
                                .metadata_count = config->metadata_count,
                                .context = call};
    memcpy(stream.metadata, config->metadata, sizeof(stream.metadata));
    hd_status status = rpc_stream_open(channel, queue, &stream, &call->stream);
    if (status != HD_OK) {
        free(call);
        return status;
    }
    status = rpc_message_send(call->stream, request);
    if (status != HD_OK) {
        unary_free(call);
        return status;
    }
    rpc_stream_end_sending(call->stream);
    if (out != NULL) *out = call;
    return HD_OK;
}

void rpc_unary_drop(rpc_unary *call) {
    unary_free(call);
}

typedef struct waited {
    bool is_done;
    hd_status status;
    hd_error *error;
    size_t packed_bytes;
    unsigned char *packed;
} waited;

static void on_waited(void *context, const ProtobufCMessage *answer, const rpc_end *end) {
    waited *w = context;
    w->is_done = true;
    w->status = end->status;
    if (end->status != HD_OK) {
        hd_error_write(w->error, "%s", end->message);
        return;
    }
    w->packed_bytes = protobuf_c_message_get_packed_size(answer);
    w->packed = malloc(w->packed_bytes + 1);
    if (w->packed == NULL) w->status = hd_error_set(w->error, HD_NO_MEMORY, "no memory for the answer");
    else protobuf_c_message_pack(answer, w->packed);
}

hd_status rpc_unary_wait(rpc_channel *channel, const rpc_unary_config *config, const ProtobufCMessage *request,
                         ProtobufCMessage **answer, hd_error *error) {
    rpc_queue *queue = NULL;
    waited w = {.error = error};
    hd_status status = rpc_queue_open(&queue);
    if (status == HD_OK) status = rpc_unary_start(channel, queue, config, request, on_waited, &w, NULL);
    if (status != HD_OK) {
        rpc_queue_close(queue);
        return hd_error_set(error, status, "%s: %s", config->method, hd_status_text(status));
    }
    while (!w.is_done) rpc_queue_poll(queue, WAIT_NS);
    rpc_queue_close(queue);
    if (w.status == HD_OK) *answer = protobuf_c_message_unpack(config->answer_type, NULL, w.packed_bytes, w.packed);
    free(w.packed);
    return w.status;
}

/* -- server -- */

static void on_request(void *context, rpc_stream *stream, const rpc_message *message) {
    const rpc_unary_method *method = context;
    ProtobufCMessage *request = rpc_message_unpack(message, method->request_type);
    if (request == NULL) {
        char reason[160];
        snprintf(reason, sizeof(reason), "%s: the request is not a %s", rpc_stream_method(stream),
                 method->request_type->name);
        rpc_stream_finish(stream, HD_INVALID, reason);
        return;
    }
    rpc_unary_answer answer = {NULL, NULL};
    hd_error error = {{0}};
    hd_status status = method->handle(method->context, request, &answer, &error);
    protobuf_c_message_free_unpacked(request, NULL);
    if (status == HD_OK && answer.message != NULL) status = rpc_message_send(stream, answer.message);
    if (answer.release != NULL) answer.release(method->context, answer.message);
    rpc_stream_finish(stream, status, error.text[0] != '\0' ? error.text : NULL);
}

static void on_request_end(void *context, rpc_stream *stream, const rpc_end *end) {
    rpc_stream_close(stream);
}

static void on_no_request(void *context, rpc_stream *stream) {
    rpc_stream_finish(stream, HD_INVALID, "a request is missing");
}

void rpc_unary_serve(void *unary_method, rpc_stream *stream) {
    static const rpc_handlers handlers = {
        .on_message = on_request, .on_half_close = on_no_request, .on_end = on_request_end};
    rpc_stream_handle(stream, &handlers, unary_method);
}
