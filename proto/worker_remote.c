/* worker_remote.c - a session's client: requests in slots, named by slot and generation, so that a late event finds
 * nobody. */
#include "proto/worker_remote.h"

#include <stdlib.h>
#include <string.h>

#include "proto/worker_messages.h"

#define REQUESTS_MAX 8192u
#define DESCRIBE_MS 10000u
#define SLOT_OF(id) ((id) % REQUESTS_MAX)

typedef struct remote_slot {
    worker_request *request; /* NULL: free */
    uint64_t id;             /* of the session: generation * REQUESTS_MAX + slot */
    uint32_t next_free;
} remote_slot;

struct worker_remote {
    worker_rpc rpc; /* first */
    rpc_queue *queue;
    rpc_channel *channel;
    rpc_stream *session;
    rpc_unary *describing;
    worker_remote_handlers handlers;
    void *context;
    Hadal__Description *description; /* ours; worker_info points into it */
    worker_load load;
    remote_slot slots[REQUESTS_MAX];
    uint32_t first_free;
    bool is_lost;
};

/* -- requests -- */

static void release(worker_remote *w, remote_slot *slot) {
    slot->request->worker = NULL;
    slot->request = NULL;
    slot->id += REQUESTS_MAX;
    slot->next_free = w->first_free;
    w->first_free = (uint32_t)(slot - w->slots);
}

static void fail_all(worker_remote *w, hd_status status, const char *reason) {
    for (uint32_t i = 0; i < REQUESTS_MAX; i++) {
        worker_request *request = w->slots[i].request;
        if (request == NULL) continue;
        release(w, &w->slots[i]);
        request->on_event(request,
                          &(worker_event){.kind = WORKER_FAILED, .last = true, .status = status, .message = reason});
    }
}

static hd_status submit(worker_rpc *self, worker_request *request, hd_error *error) {
    worker_remote *w = (worker_remote *)self;
    if (w->session == NULL) return hd_error_set(error, HD_PEER_LOST, "the worker is not connected");
    if (w->first_free == REQUESTS_MAX)
        return hd_error_set(error, HD_FULL, "the worker has %u requests of ours", REQUESTS_MAX);
    remote_slot *slot = &w->slots[w->first_free];
    hd_status status = worker_submit_send(w->session, request, slot->id);
    if (status != HD_OK) return hd_error_set(error, status, "the request cannot be sent: %s", hd_status_text(status));
    w->first_free = slot->next_free;
    slot->request = request;
    request->worker = slot;
    return HD_OK;
}

static void cancel(worker_rpc *self, uint64_t id, uint32_t choice) {
    worker_remote *w = (worker_remote *)self;
    for (uint32_t i = 0; w->session != NULL && i < REQUESTS_MAX; i++) {
        if (w->slots[i].request == NULL || w->slots[i].request->id != id) continue;
        Hadal__Cancel message = HADAL__CANCEL__INIT;
        message.id = w->slots[i].id;
        message.choice = choice;
        Hadal__Order order = HADAL__ORDER__INIT;
        order.cancel = &message;
        /* A session that takes not even this is about to be lost; cancelling it makes that sure. */
        if (rpc_message_send(w->session, &order.base) == HD_FULL) rpc_stream_cancel(w->session);
        return;
    }
}

static void info(worker_rpc *self, worker_info *out) {
    worker_info_decode(((worker_remote *)self)->description, out);
}

static void load(worker_rpc *self, worker_load *out) {
    *out = ((worker_remote *)self)->load;
}

static void cache_reset(worker_rpc *self) {
    worker_remote *w = (worker_remote *)self;
    Hadal__Order order = HADAL__ORDER__INIT;
    order.reset_cache = true;
    if (w->session != NULL) rpc_message_send(w->session, &order.base);
}

static const worker_rpc_ops ops = {
    .name = "grpc", .submit = submit, .cancel = cancel, .info = info, .load = load, .cache_reset = cache_reset};

/* -- the session -- */

static void lose(worker_remote *w, hd_status status, const char *reason) {
    if (w->is_lost) return;
    w->is_lost = true;
    rpc_stream_close(w->session);
    w->session = NULL;
    fail_all(w, HD_PEER_LOST, "the connection to the worker is lost");
    w->handlers.on_lost(w->context, status, reason);
}

static void deliver(worker_remote *w, const Hadal__Event *message) {
    remote_slot *slot = &w->slots[SLOT_OF(message->id)];
    worker_event event;
    if (slot->request == NULL || slot->id != message->id) return;
    if (worker_event_decode(message, &event) != HD_OK || event.choice >= slot->request->choices) {
        rpc_stream_cancel(w->session);
        return;
    }
    worker_request *request = slot->request;
    if (event.last) release(w, slot);
    request->on_event(request, &event);
}

static void on_report(void *context, rpc_stream *stream, const rpc_message *message) {
    worker_remote *w = context;
    Hadal__Report *report = (Hadal__Report *)rpc_message_unpack(message, &hadal__report__descriptor);
    if (report == NULL) {
        rpc_stream_cancel(stream);
        return;
    }
    if (report->load != NULL) {
        worker_load_decode(report->load, &w->load);
        if (w->load.context_max != 0) w->description->context_max = w->load.context_max;
        if (w->handlers.on_load != NULL) w->handlers.on_load(w->context, &w->load);
    }
    for (size_t i = 0; i < report->n_events && w->session != NULL; i++) deliver(w, report->events[i]);
    hadal__report__free_unpacked(report, NULL);
}

static void on_end(void *context, rpc_stream *stream, const rpc_end *end) {
    lose(context, end->status != HD_OK ? end->status : HD_PEER_LOST,
         end->message[0] != '\0' ? end->message : "the worker has ended the session");
}

static Hadal__Description *copy_of(const ProtobufCMessage *message) {
    size_t count = protobuf_c_message_get_packed_size(message);
    unsigned char *bytes = malloc(count + 1);
    if (bytes == NULL) return NULL;
    protobuf_c_message_pack(message, bytes);
    Hadal__Description *copy = hadal__description__unpack(NULL, count, bytes);
    free(bytes);
    return copy;
}

static void on_described(void *context, const ProtobufCMessage *message, const rpc_end *end) {
    worker_remote *w = context;
    w->describing = NULL;
    if (end->status != HD_OK) {
        lose(w, end->status, end->message);
        return;
    }
    rpc_stream_config config = {
        .method = WORKER_SESSION_METHOD, .handlers = {.on_message = on_report, .on_end = on_end}, .context = w};
    w->description = copy_of(message);
    if (w->description == NULL || rpc_stream_open(w->channel, w->queue, &config, &w->session) != HD_OK) {
        lose(w, HD_NO_MEMORY, "no memory for a session");
        return;
    }
    w->handlers.on_ready(w->context, w->description);
    /* The files are large and are somebody's by now. */
    for (size_t i = 0; i < w->description->n_files; i++)
        protobuf_c_message_free_unpacked(&w->description->files[i]->base, NULL);
    w->description->n_files = 0;
}

hd_status worker_remote_open(rpc_queue *queue, const char *address, const rpc_tls *tls,
                             const worker_remote_handlers *handlers, void *context, worker_remote **out,
                             hd_error *error) {
    worker_remote *w = calloc(1, sizeof(*w));
    if (w == NULL) return hd_error_set(error, HD_NO_MEMORY, "no memory for a worker's connection");
    w->rpc.ops = &ops;
    w->queue = queue;
    w->handlers = *handlers;
    w->context = context;
    for (uint32_t i = 0; i < REQUESTS_MAX; i++) w->slots[i] = (remote_slot){.id = REQUESTS_MAX + i, .next_free = i + 1};
    rpc_unary_config config = {
        .method = WORKER_DESCRIBE_METHOD, .answer_type = &hadal__description__descriptor, .deadline_ms = DESCRIBE_MS};
    Hadal__DescribeRequest request = HADAL__DESCRIBE_REQUEST__INIT;
    hd_status status = rpc_channel_open(&(rpc_channel_config){.address = address, .tls = tls}, &w->channel, error);
    if (status == HD_OK) {
        status = rpc_unary_start(w->channel, queue, &config, &request.base, on_described, w, &w->describing);
        if (status != HD_OK) hd_error_write(error, "no memory for a worker's connection");
    }
    if (status == HD_OK) *out = w;
    else worker_remote_close(w);
    return status;
}

void worker_remote_close(worker_remote *w) {
    if (w == NULL) return;
    w->is_lost = true;
    if (w->describing != NULL) rpc_unary_drop(w->describing);
    rpc_stream_close(w->session);
    w->session = NULL;
    fail_all(w, HD_CANCELLED, "the connection to the worker is being closed");
    rpc_channel_close(w->channel);
    if (w->description != NULL) hadal__description__free_unpacked(w->description, NULL);
    free(w);
}

worker_rpc *worker_remote_rpc(worker_remote *w) {
    return &w->rpc;
}
