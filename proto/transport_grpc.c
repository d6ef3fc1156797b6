/* transport_grpc.c - links as bidirectional streams, each on a connection of its own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/transport.h"

#define LISTENERS_MAX 4u

typedef struct grpc_link {
    transport_link base;  /* first */
    rpc_channel *channel; /* of a link that was made here */
    rpc_stream *stream;
    transport_handlers handlers;
    void *context;
    bool is_lost;
} grpc_link;

typedef struct grpc_listener {
    struct grpc_transport *transport;
    transport_accept *accept;
    void *listener;
} grpc_listener;

typedef struct grpc_transport {
    transport base; /* first */
    rpc_queue *queue;
    const rpc_tls *tls;
    grpc_listener listeners[LISTENERS_MAX];
    unsigned listener_count;
    rpc_tag wake;
    _Atomic bool is_waking;
} grpc_transport;

static const struct {
    const char *channel, *path;
} paths[] = {{"step", "/hadal.Attention/Step"}, {"pages", "/hadal.Attention/Pages"}};

const char *transport_grpc_path(const char *channel) {
    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
        if (strcmp(paths[i].channel, channel) == 0) return paths[i].path;
    }
    return NULL;
}

/* -- what comes -- */

static void lose(grpc_link *link, hd_status status, const char *reason) {
    if (link->is_lost) return;
    link->is_lost = true;
    if (link->handlers.on_lost != NULL) link->handlers.on_lost(link->context, &link->base, status, reason);
}

static void on_message(void *context, rpc_stream *stream, const rpc_message *message) {
    grpc_link *link = context;
    if (link->is_lost) return;
    frame f;
    hd_error error;
    hd_status status = frame_decode(message->bytes, message->count, &f, &error);
    if (status == HD_OK) {
        link->handlers.on_frame(link->context, &link->base, &f);
        return;
    }
    rpc_stream_cancel(stream);
    lose(link, status, error.text);
}

static void on_half_close(void *context, rpc_stream *stream) {
    rpc_stream_finish(stream, HD_OK, NULL);
}

static void on_room(void *context, rpc_stream *stream) {
    grpc_link *link = context;
    if (!link->is_lost && link->handlers.on_room != NULL) link->handlers.on_room(link->context, &link->base);
}

static void on_end(void *context, rpc_stream *stream, const rpc_end *end) {
    /* A link has no good end: whoever is done with it disconnects, and the other side finds the peer gone. */
    hd_status status = end->status == HD_OK || end->status == HD_CANCELLED ? HD_PEER_LOST : end->status;
    lose(context, status, end->message[0] != '\0' ? end->message : "the peer has disconnected");
}

static const rpc_handlers stream_handlers = {
    .on_message = on_message, .on_half_close = on_half_close, .on_room = on_room, .on_end = on_end};

/* -- links -- */

static void grpc_disconnect(transport_link *base) {
    grpc_link *link = (grpc_link *)base;
    rpc_stream_close(link->stream);
    rpc_channel_close(link->channel);
    free(link);
}

static hd_status grpc_connect(transport *self, const char *address, const char *channel,
                              const transport_handlers *handlers, void *context, transport_link **out,
                              hd_error *error) {
    grpc_transport *t = (grpc_transport *)self;
    const char *path = transport_grpc_path(channel);
    if (path == NULL) return hd_error_set(error, HD_INVALID, "no channel '%s'; there are: step, pages", channel);
    grpc_link *link = calloc(1, sizeof(*link));
    if (link == NULL) return hd_error_set(error, HD_NO_MEMORY, "no memory for a link to %s", address);
    link->base.owner = self;
    link->handlers = *handlers;
    link->context = context;
    rpc_channel_config config = {.address = address, .tls = t->tls};
    rpc_stream_config stream = {.method = path, .aligned = true, .handlers = stream_handlers, .context = link};
    hd_status status = rpc_channel_open(&config, &link->channel, error);
    if (status == HD_OK) {
        status = rpc_stream_open(link->channel, t->queue, &stream, &link->stream);
        if (status != HD_OK) hd_error_write(error, "no memory for a link to %s", address);
    }
    if (status == HD_OK) *out = &link->base;
    else grpc_disconnect(&link->base);
    return status;
}

static void on_open(void *context, rpc_stream *stream) {
    grpc_listener *listener = context;
    grpc_link *link = calloc(1, sizeof(*link));
    hd_status status = HD_NO_MEMORY;
    if (link != NULL) {
        *link = (grpc_link){.base.owner = &listener->transport->base, .stream = stream};
        rpc_stream_handle(stream, &stream_handlers, link);
        status = listener->accept(listener->listener, &link->base, &link->handlers, &link->context);
    }
    if (status == HD_OK) return;
    free(link);
    rpc_stream_refuse(stream, status, NULL);
}

static void on_back(rpc_loan *loan) {
    transport_send *send = (transport_send *)((char *)loan - offsetof(transport_send, loan));
    void (*done)(transport_send *) = send->done;
    atomic_store_explicit(&send->is_out, false, memory_order_release);
    if (done != NULL) done(send);
}

static hd_status grpc_send(transport_link *base, const frame *f, transport_send *send) {
    grpc_link *link = (grpc_link *)base;
    if (link->is_lost) return HD_PEER_LOST;
    frame_part pieces[FRAME_PIECES_MAX];
    rpc_part parts[FRAME_PIECES_MAX];
    _Static_assert(FRAME_PIECES_MAX <= RPC_PARTS_MAX, "a frame is one message");
    unsigned count = frame_encode(f, send->head, pieces);
    for (unsigned i = 0; i < count; i++) parts[i] = (rpc_part){pieces[i].bytes, pieces[i].count};
    send->loan.release = on_back;
    atomic_store_explicit(&send->is_out, true, memory_order_relaxed);
    hd_status status = rpc_stream_lend(link->stream, parts, count, &send->loan);
    if (status != HD_OK) atomic_store_explicit(&send->is_out, false, memory_order_relaxed);
    return status;
}

/* -- the transport -- */

static bool grpc_poll(transport *self, uint64_t timeout_ns) {
    return rpc_queue_poll(((grpc_transport *)self)->queue, timeout_ns);
}

static void on_wake(rpc_tag *tag, bool is_ok) {
    grpc_transport *t = (grpc_transport *)((char *)tag - offsetof(grpc_transport, wake));
    atomic_store(&t->is_waking, false);
}

static void grpc_wake(transport *self) {
    grpc_transport *t = (grpc_transport *)self;
    if (!atomic_exchange(&t->is_waking, true)) rpc_queue_post(t->queue, &t->wake);
}

static void grpc_close(transport *self) {
    grpc_transport *t = (grpc_transport *)self;
    rpc_queue_close(t->queue);
    free(t);
}

static const transport_ops ops = {.name = "grpc",
                                  .close = grpc_close,
                                  .connect = grpc_connect,
                                  .send = grpc_send,
                                  .disconnect = grpc_disconnect,
                                  .poll = grpc_poll,
                                  .wake = grpc_wake};

hd_status transport_grpc_open(const rpc_tls *tls, transport **out) {
    grpc_transport *t = calloc(1, sizeof(*t));
    if (t == NULL) return HD_NO_MEMORY;
    t->base.ops = &ops;
    t->tls = tls;
    t->wake.run = on_wake;
    hd_status status = rpc_queue_open(&t->queue);
    if (status == HD_OK) *out = &t->base;
    else free(t);
    return status;
}

hd_status transport_grpc_listen(transport *self, const char *channel, transport_accept *accept, void *listener,
                                rpc_method *method) {
    grpc_transport *t = (grpc_transport *)self;
    const char *path = transport_grpc_path(channel);
    if (path == NULL) return HD_INVALID;
    if (t->listener_count == LISTENERS_MAX) return HD_FULL;
    grpc_listener *l = &t->listeners[t->listener_count++];
    *l = (grpc_listener){t, accept, listener};
    *method = (rpc_method){.path = path, .queue = t->queue, .on_open = on_open, .context = l, .aligned = true};
    return HD_OK;
}
