/* rpc_stream.c - one call: a bounded queue of messages out, one message at a time in, and its end.
 *
 * gRPC takes one batch of each kind at a time. Sending keeps one message on its way and the rest in a ring; receiving
 * asks for the next message when the last has been handled, so a slow owner fills the peer's window, no memory. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>

#include "base/memory.h"
#include "base/threads.h"
#include "proto/rpc_internal.h"

#define SEND_BYTES_MAX (64ull << 20)
#define OWNER(tag, field) ((rpc_stream *)((char *)(tag)-offsetof(rpc_stream, field)))

static void on_started(rpc_tag *tag, bool is_ok);
static void on_headed(rpc_tag *tag, bool is_ok);
static void on_sent(rpc_tag *tag, bool is_ok);
static void on_ended_sending(rpc_tag *tag, bool is_ok);
static void on_received(rpc_tag *tag, bool is_ok);
static void on_ended(rpc_tag *tag, bool is_ok);

/* -- lifetime -- */

static void stream_free(rpc_stream *s) {
    for (unsigned i = 0; i < s->queued_count; i++)
        grpc_byte_buffer_destroy(s->queued[(s->queued_first + i) % RPC_SEND_SLOTS].buffer);
    if (s->incoming != NULL) grpc_byte_buffer_destroy(s->incoming);
    grpc_metadata_array_destroy(&s->head);
    grpc_metadata_array_destroy(&s->trailer);
    grpc_slice_unref(s->details);
    grpc_slice_unref(s->finish_message);
    grpc_call_unref(s->call);
    hd_free(s->receive_buffer);
    pthread_mutex_destroy(&s->lock);
    free(s);
    rpc_library_close();
}

static void drop(rpc_stream *s) {
    pthread_mutex_lock(&s->lock);
    bool is_last = --s->refs == 0;
    pthread_mutex_unlock(&s->lock);
    if (is_last) stream_free(s);
}

/* Starts a batch; the lock is held or nobody else knows the stream yet. */
static void start(rpc_stream *s, const grpc_op *operations, size_t count, rpc_tag *tag) {
    s->refs++;
    hd_handed_over(tag);
    grpc_call_error error = grpc_call_start_batch(s->call, operations, count, tag, NULL);
    assert(error == GRPC_CALL_OK);
    (void)error;
}

rpc_stream *rpc_stream_new(grpc_call *call, rpc_queue *queue, const char *method, size_t send_bytes_max,
                           bool is_aligned) {
    rpc_stream *s = calloc(1, sizeof(*s));
    if (s == NULL) return NULL;
    rpc_library_open();
    pthread_mutex_init(&s->lock, NULL);
    s->refs = 1;
    s->call = call;
    s->queue = queue;
    s->method = method;
    s->queued_bytes_max = send_bytes_max != 0 ? send_bytes_max : SEND_BYTES_MAX;
    s->is_aligned = is_aligned;
    s->started.run = on_started;
    s->headed.run = on_headed;
    s->sent.run = on_sent;
    s->ended_sending.run = on_ended_sending;
    s->received.run = on_received;
    s->ended.run = on_ended;
    s->details = grpc_empty_slice();
    s->finish_message = grpc_empty_slice();
    grpc_metadata_array_init(&s->head);
    grpc_metadata_array_init(&s->trailer);
    return s;
}

/* With the lock held. */
static void receive_next(rpc_stream *s) {
    grpc_op operation = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &s->incoming};
    s->is_receiving = true;
    start(s, &operation, 1, &s->received);
}

void rpc_stream_start(rpc_stream *s, const rpc_metadata *metadata, unsigned metadata_count, bool wait_for_ready) {
    grpc_metadata pairs[RPC_METADATA_MAX];
    for (unsigned i = 0; i < metadata_count; i++) {
        pairs[i] = (grpc_metadata){.key = grpc_slice_from_copied_string(metadata[i].key),
                                   .value = grpc_slice_from_copied_string(metadata[i].value)};
    }
    pthread_mutex_lock(&s->lock);
    grpc_op operation = {.op = GRPC_OP_SEND_INITIAL_METADATA,
                         .flags = wait_for_ready ? GRPC_INITIAL_METADATA_WAIT_FOR_READY |
                                                       GRPC_INITIAL_METADATA_WAIT_FOR_READY_EXPLICITLY_SET
                                                 : 0,
                         .data.send_initial_metadata = {.count = metadata_count, .metadata = pairs}};
    start(s, &operation, 1, &s->started);
    if (s->is_server) {
        operation =
            (grpc_op){.op = GRPC_OP_RECV_CLOSE_ON_SERVER, .data.recv_close_on_server.cancelled = &s->is_cancelled};
    } else {
        /* Alone: a server may send its head only with its first message, as etcd does. */
        operation = (grpc_op){.op = GRPC_OP_RECV_INITIAL_METADATA,
                              .data.recv_initial_metadata.recv_initial_metadata = &s->head};
        start(s, &operation, 1, &s->headed);
        operation = (grpc_op){.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
                              .data.recv_status_on_client = {
                                  .trailing_metadata = &s->trailer, .status = &s->code, .status_details = &s->details}};
    }
    start(s, &operation, 1, &s->ended);
    receive_next(s);
    pthread_mutex_unlock(&s->lock);
    for (unsigned i = 0; i < metadata_count; i++) {
        grpc_slice_unref(pairs[i].key);
        grpc_slice_unref(pairs[i].value);
    }
}

hd_status rpc_stream_open(rpc_channel *channel, rpc_queue *queue, const rpc_stream_config *config, rpc_stream **out) {
    assert(config->metadata_count <= RPC_METADATA_MAX);
    gpr_timespec deadline = rpc_deadline(config->deadline_ms != 0 ? config->deadline_ms * 1000000 : UINT64_MAX);
    grpc_slice method = grpc_slice_from_copied_string(config->method);
    grpc_call *call = grpc_channel_create_call(channel->channel, NULL, GRPC_PROPAGATE_DEFAULTS, queue->events, method,
                                               NULL, deadline, NULL);
    grpc_slice_unref(method);
    if (call == NULL) return HD_NO_MEMORY;
    rpc_stream *s = rpc_stream_new(call, queue, config->method, config->send_bytes_max, config->aligned);
    if (s == NULL) {
        grpc_call_unref(call);
        return HD_NO_MEMORY;
    }
    s->handlers = config->handlers;
    s->context = config->context;
    *out = s; /* before a callback may run */
    rpc_stream_start(s, config->metadata, config->metadata_count, config->wait_for_ready);
    return HD_OK;
}

void rpc_stream_handle(rpc_stream *s, const rpc_handlers *handlers, void *context) {
    s->handlers = *handlers;
    s->context = context;
}

void rpc_stream_close(rpc_stream *s) {
    if (s == NULL) return;
    assert(!s->is_closed);
    s->is_closed = true;
    pthread_mutex_lock(&s->lock);
    s->sending = RPC_SENDING_ENDED; /* nothing is started any more: the queue may be closed next */
    pthread_mutex_unlock(&s->lock);
    if (!s->has_ended) grpc_call_cancel(s->call, NULL);
    drop(s);
}

void rpc_stream_cancel(rpc_stream *s) {
    grpc_call_cancel(s->call, NULL);
}

/* -- sending -- */

static void on_started(rpc_tag *tag, bool is_ok) {
    drop(OWNER(tag, started));
}

static void on_headed(rpc_tag *tag, bool is_ok) {
    drop(OWNER(tag, headed));
}

static void on_ended_sending(rpc_tag *tag, bool is_ok) {
    drop(OWNER(tag, ended_sending));
}

/* With the lock held: the next message, or the end behind the last. */
static void send_next(rpc_stream *s) {
    if (s->is_sending) return;
    if (s->queued_count > 0) {
        grpc_op operation = {.op = GRPC_OP_SEND_MESSAGE,
                             .data.send_message.send_message = s->queued[s->queued_first].buffer};
        s->is_sending = true;
        start(s, &operation, 1, &s->sent);
        return;
    }
    if (s->sending != RPC_SENDING_ENDS) return;
    s->sending = RPC_SENDING_ENDED;
    grpc_op operation = {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT};
    if (s->is_server) {
        operation.op = GRPC_OP_SEND_STATUS_FROM_SERVER;
        operation.data.send_status_from_server.status = s->finish_code;
        operation.data.send_status_from_server.status_details = &s->finish_message;
    }
    start(s, &operation, 1, &s->ended_sending);
}

static void on_sent(rpc_tag *tag, bool is_ok) {
    rpc_stream *s = OWNER(tag, sent);
    pthread_mutex_lock(&s->lock);
    rpc_queued *first = &s->queued[s->queued_first];
    grpc_byte_buffer *buffer = first->buffer;
    s->queued_first = (s->queued_first + 1) % RPC_SEND_SLOTS;
    s->queued_count--;
    s->queued_bytes -= first->bytes;
    s->is_sending = false;
    /* What could not be sent ends the call; its end tells the owner, and what is queued goes with the stream. */
    if (is_ok && !s->is_closed) send_next(s);
    else s->sending = RPC_SENDING_ENDED;
    bool has_room = s->wants_room && s->sending == RPC_SENDING_OPEN && s->queued_count <= RPC_SEND_SLOTS / 2 &&
                    s->queued_bytes <= s->queued_bytes_max / 2;
    if (has_room) s->wants_room = false;
    pthread_mutex_unlock(&s->lock);
    grpc_byte_buffer_destroy(buffer);
    if (has_room && !s->is_closed && !s->has_ended && s->handlers.on_room != NULL) s->handlers.on_room(s->context, s);
    drop(s);
}

/* Takes the slices over where it says HD_OK. */
static hd_status queue_slices(rpc_stream *s, grpc_slice *slices, size_t slice_count, size_t bytes) {
    hd_status status = HD_OK;
    pthread_mutex_lock(&s->lock);
    if (s->sending != RPC_SENDING_OPEN) {
        status = HD_PEER_LOST;
    } else if (s->queued_count == RPC_SEND_SLOTS ||
               (s->queued_count > 0 && s->queued_bytes + bytes > s->queued_bytes_max)) {
        s->wants_room = true;
        status = HD_FULL;
    } else {
        unsigned slot = (s->queued_first + s->queued_count) % RPC_SEND_SLOTS;
        s->queued[slot] = (rpc_queued){grpc_raw_byte_buffer_create(slices, slice_count), bytes};
        s->queued_count++;
        s->queued_bytes += bytes;
        send_next(s);
    }
    pthread_mutex_unlock(&s->lock);
    return status;
}

hd_status rpc_stream_send(rpc_stream *s, const rpc_part *parts, size_t part_count) {
    size_t bytes = 0, at = 0;
    for (size_t i = 0; i < part_count; i++) bytes += parts[i].count;
    grpc_slice slice = grpc_slice_malloc(bytes);
    for (size_t i = 0; i < part_count; i++) {
        if (parts[i].count > 0) memcpy(GRPC_SLICE_START_PTR(slice) + at, parts[i].bytes, parts[i].count);
        at += parts[i].count;
    }
    hd_status status = queue_slices(s, &slice, 1, bytes);
    grpc_slice_unref(slice);
    return status;
}

static void on_part_back(void *context) {
    rpc_loan *loan = context;
    if (atomic_fetch_sub_explicit(&loan->parts_out, 1, memory_order_acq_rel) == 1) loan->release(loan);
}

hd_status rpc_stream_lend(rpc_stream *s, const rpc_part *parts, size_t part_count, rpc_loan *loan) {
    assert(part_count >= 1 && part_count <= RPC_PARTS_MAX);
    grpc_slice slices[RPC_PARTS_MAX];
    size_t bytes = 0, slice_count = 0;
    /* One more than there are parts: the loan comes back neither while they are made nor when they are refused. */
    atomic_store_explicit(&loan->parts_out, 1, memory_order_relaxed);
    for (size_t i = 0; i < part_count; i++) {
        if (parts[i].count == 0) continue;
        atomic_fetch_add_explicit(&loan->parts_out, 1, memory_order_relaxed);
        slices[slice_count++] =
            grpc_slice_new_with_user_data((void *)parts[i].bytes, parts[i].count, on_part_back, loan);
        bytes += parts[i].count;
    }
    hd_status status = queue_slices(s, slices, slice_count, bytes);
    for (size_t i = 0; i < slice_count; i++) grpc_slice_unref(slices[i]);
    if (status == HD_OK) on_part_back(loan);
    return status;
}

void rpc_stream_end_sending(rpc_stream *s) {
    assert(!s->is_server);
    pthread_mutex_lock(&s->lock);
    if (s->sending == RPC_SENDING_OPEN) {
        s->sending = RPC_SENDING_ENDS;
        send_next(s);
    }
    pthread_mutex_unlock(&s->lock);
}

void rpc_stream_finish(rpc_stream *s, hd_status status, const char *message) {
    assert(s->is_server);
    pthread_mutex_lock(&s->lock);
    if (s->sending == RPC_SENDING_OPEN) {
        s->finish_code = (grpc_status_code)rpc_code_of_status(status);
        s->finish_message = grpc_slice_from_copied_string(message != NULL ? message : hd_status_text(status));
        s->sending = RPC_SENDING_ENDS;
        send_next(s);
    }
    pthread_mutex_unlock(&s->lock);
}

static void on_refused_end(void *context, rpc_stream *s, const rpc_end *end) {
    rpc_stream_close(s);
}

void rpc_stream_refuse(rpc_stream *s, hd_status status, const char *message) {
    s->handlers = (rpc_handlers){.on_end = on_refused_end};
    rpc_stream_finish(s, status, message);
}

size_t rpc_stream_queued_bytes(rpc_stream *s) {
    pthread_mutex_lock(&s->lock);
    size_t bytes = s->queued_bytes;
    pthread_mutex_unlock(&s->lock);
    return bytes;
}

/* -- receiving -- */

static void report_end(rpc_stream *s) {
    s->has_ended = true;
    pthread_mutex_lock(&s->lock);
    s->sending = RPC_SENDING_ENDED;
    pthread_mutex_unlock(&s->lock);
    if (s->is_closed || s->handlers.on_end == NULL) return;
    if (s->is_server) {
        rpc_end end = {s->is_cancelled ? HD_CANCELLED : HD_OK, s->is_cancelled ? GRPC_STATUS_CANCELLED : GRPC_STATUS_OK,
                       s->is_cancelled ? "the client has gone" : ""};
        s->handlers.on_end(s->context, s, &end);
        return;
    }
    char *message = grpc_slice_to_c_string(s->details);
    rpc_end end = {rpc_status_of_code((int)s->code), (int)s->code, message};
    s->handlers.on_end(s->context, s, &end);
    gpr_free(message);
}

/* The last message has been handled and the status is there. */
static void end_if_over(rpc_stream *s) {
    if (s->has_status && s->has_no_more && !s->has_ended) report_end(s);
}

static bool make_room(rpc_stream *s, size_t bytes) {
    if (bytes <= s->receive_capacity) return true;
    size_t capacity = HD_ALIGN_UP(bytes + bytes / 2, 4096);
    unsigned char *larger = hd_alloc(capacity, HD_CACHE_LINE);
    if (larger == NULL) return false;
    hd_free(s->receive_buffer);
    s->receive_buffer = larger;
    s->receive_capacity = capacity;
    return true;
}

/* Hands the message over in one piece: from where it arrived if it is one and may lie anywhere, else copied. */
static void hand_over(rpc_stream *s, grpc_byte_buffer *buffer) {
    size_t bytes = grpc_byte_buffer_length(buffer);
    grpc_byte_buffer_reader reader;
    if (!grpc_byte_buffer_reader_init(&reader, buffer)) {
        rpc_stream_cancel(s);
        return;
    }
    grpc_slice *slice = NULL;
    rpc_message message = {s->receive_buffer, bytes};
    bool is_there = true;
    if (!s->is_aligned && grpc_byte_buffer_reader_peek(&reader, &slice) && GRPC_SLICE_LENGTH(*slice) == bytes) {
        message.bytes = GRPC_SLICE_START_PTR(*slice);
    } else if ((is_there = make_room(s, bytes))) {
        grpc_byte_buffer_reader_destroy(&reader);
        is_there = grpc_byte_buffer_reader_init(&reader, buffer) != 0;
        size_t at = 0;
        while (is_there && grpc_byte_buffer_reader_peek(&reader, &slice)) {
            memcpy(s->receive_buffer + at, GRPC_SLICE_START_PTR(*slice), GRPC_SLICE_LENGTH(*slice));
            at += GRPC_SLICE_LENGTH(*slice);
        }
        message.bytes = s->receive_buffer;
    }
    if (bytes == 0) message.bytes = (const unsigned char *)"";
    if (!is_there) rpc_stream_cancel(s);
    else if (s->handlers.on_message != NULL) s->handlers.on_message(s->context, s, &message);
    grpc_byte_buffer_reader_destroy(&reader);
}

static bool is_sending_open(rpc_stream *s) {
    pthread_mutex_lock(&s->lock);
    bool is_open = s->sending == RPC_SENDING_OPEN;
    pthread_mutex_unlock(&s->lock);
    return is_open;
}

static void on_received(rpc_tag *tag, bool is_ok) {
    rpc_stream *s = OWNER(tag, received);
    grpc_byte_buffer *buffer = s->incoming;
    s->incoming = NULL;
    s->is_receiving = false;
    if (buffer != NULL) {
        if (!s->is_closed) hand_over(s, buffer);
        grpc_byte_buffer_destroy(buffer);
        pthread_mutex_lock(&s->lock);
        if (!s->is_paused && !s->is_receiving && !s->is_closed) receive_next(s);
        pthread_mutex_unlock(&s->lock);
    } else {
        s->has_no_more = true;
        if (is_ok && s->is_server && !s->is_closed && !s->has_status && is_sending_open(s) &&
            s->handlers.on_half_close != NULL)
            s->handlers.on_half_close(s->context, s);
        end_if_over(s);
    }
    drop(s);
}

static void on_ended(rpc_tag *tag, bool is_ok) {
    rpc_stream *s = OWNER(tag, ended);
    s->has_status = true;
    end_if_over(s);
    drop(s);
}

void rpc_stream_pause(rpc_stream *s) {
    s->is_paused = true;
}

void rpc_stream_resume(rpc_stream *s) {
    s->is_paused = false;
    pthread_mutex_lock(&s->lock);
    if (!s->is_receiving && !s->has_no_more) receive_next(s);
    pthread_mutex_unlock(&s->lock);
}

/* -- facts -- */

const char *rpc_stream_method(const rpc_stream *s) {
    return s->method;
}

const char *rpc_stream_peer(rpc_stream *s, char *buffer, size_t buffer_bytes) {
    char *peer = grpc_call_get_peer(s->call);
    strncpy(buffer, peer, buffer_bytes - 1);
    buffer[buffer_bytes - 1] = '\0';
    gpr_free(peer);
    return buffer;
}
