/* worker_service.c - sessions: orders in, reports out.
 *
 *   a request: order --submit--> events on the step thread, packed into the session --last--> back to the queue's
 *   thread, freed
 *   a session: stream --ends--> GONE --its last request has come back--> freed */
#include "worker/worker_service.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "proto/worker_messages.h"

#define PENDING_BYTES_MAX (8u << 20) /* events that wait to be sent */
#define LOAD_PERIOD_MS 200u
#define FILE_BYTES_MAX (48ll << 20)

typedef struct served_request {
    worker_request request; /* first */
    struct session *session;
    Hadal__Order *order;                    /* the request's memory */
    uint64_t id;                            /* in the session */
    struct served_request *next, *previous; /* the session's */
    struct served_request *next_done;
} served_request;

typedef struct session {
    worker_service *service;
    rpc_stream *stream; /* NULL: gone */
    served_request *requests;
    rpc_timer load_timer;
    worker_load last_load;
    bool waits_for_room;

    pthread_mutex_t lock;             /* guards the rest, which the step thread shares */
    unsigned char *pending, *sending; /* [PENDING_BYTES_MAX]: filled and emptied in turns */
    size_t pending_bytes;
    served_request *done;
    rpc_tag flush;
    bool is_posted, has_overflowed;
} session;

struct worker_service {
    worker_service_config config;
    rpc_unary_method describe;
    Hadal__Description description;
    Hadal__ModelFile *files, **file_list;
    _Atomic uint64_t next_id; /* of requests at the worker, over all sessions */
    _Atomic uint32_t open_requests;
    _Atomic bool is_draining;
};

/* -- events, on the step thread -- */

static void post_flush(session *s) {
    if (s->is_posted) return;
    s->is_posted = true;
    rpc_queue_post(rpc_loop_queue(s->service->config.loop), &s->flush);
}

static void on_event(worker_request *request, const worker_event *event) {
    served_request *r = (served_request *)request;
    session *s = r->session;
    pthread_mutex_lock(&s->lock);
    if (!s->has_overflowed) {
        size_t room = PENDING_BYTES_MAX - s->pending_bytes;
        size_t bytes = worker_event_pack(event, r->id, s->pending + s->pending_bytes, room);
        if (bytes <= room) s->pending_bytes += bytes;
        else s->has_overflowed = true;
    }
    if (event->last) {
        r->request.worker = NULL;
        r->next_done = s->done;
        s->done = r;
    }
    post_flush(s);
    pthread_mutex_unlock(&s->lock);
}

/* -- the queue's thread -- */

static void request_free(served_request *r) {
    worker_submit_fini(&r->request);
    hadal__order__free_unpacked(r->order, NULL);
    free(r);
}

static void session_free(session *s) {
    pthread_mutex_destroy(&s->lock);
    free(s->pending);
    free(s->sending);
    free(s);
}

/* With the lock held, which is let go of while a buffer is copied and sent: the step thread fills the other one. */
static void send_pending(session *s) {
    unsigned char *full = s->pending;
    size_t bytes = s->pending_bytes;
    s->pending = s->sending;
    s->sending = full;
    s->pending_bytes = 0;
    pthread_mutex_unlock(&s->lock);
    hd_status status = rpc_stream_send(s->stream, &(rpc_part){full, bytes}, 1);
    pthread_mutex_lock(&s->lock);
    if (status != HD_FULL) return;
    s->waits_for_room = true;
    if (bytes + s->pending_bytes > PENDING_BYTES_MAX) {
        s->has_overflowed = true;
        return;
    }
    memcpy(full + bytes, s->pending, s->pending_bytes);
    s->sending = s->pending;
    s->pending = full;
    s->pending_bytes += bytes;
}

static void free_done(session *s, served_request *done) {
    while (done != NULL) {
        served_request *r = done;
        done = r->next_done;
        *(r->previous != NULL ? &r->previous->next : &s->requests) = r->next;
        if (r->next != NULL) r->next->previous = r->previous;
        atomic_fetch_sub(&s->service->open_requests, 1);
        request_free(r);
    }
}

static void flush(session *s) {
    pthread_mutex_lock(&s->lock);
    s->is_posted = false;
    if (s->stream == NULL || s->has_overflowed) s->pending_bytes = 0;
    else if (s->pending_bytes > 0 && !s->waits_for_room) send_pending(s);
    bool has_overflowed = s->has_overflowed;
    served_request *done = s->done;
    s->done = NULL;
    pthread_mutex_unlock(&s->lock);
    free_done(s, done);
    if (has_overflowed && s->stream != NULL) {
        hd_log(HD_LOG_WARN, "session_too_slow", "pending_bytes_max=%u", PENDING_BYTES_MAX);
        rpc_stream_cancel(s->stream);
    }
    if (s->stream == NULL && s->requests == NULL) session_free(s);
}

static void on_flush(rpc_tag *tag, bool is_ok) {
    flush((session *)((char *)tag - offsetof(session, flush)));
}

static void on_room(void *context, rpc_stream *stream) {
    session *s = context;
    s->waits_for_room = false;
    flush(s);
}

static void report_load(session *s) {
    worker_rpc *worker = s->service->config.worker;
    worker_load load;
    worker->ops->load(worker, &load);
    load.is_draining = atomic_load(&s->service->is_draining);
    if (memcmp(&load, &s->last_load, sizeof(load)) == 0) return;
    Hadal__Load message;
    worker_load_encode(&load, &message);
    Hadal__Report report = HADAL__REPORT__INIT;
    report.load = &message;
    if (rpc_message_send(s->stream, &report.base) == HD_OK) s->last_load = load;
}

static void on_load_timer(rpc_timer *timer) {
    session *s = (session *)((char *)timer - offsetof(session, load_timer));
    report_load(s);
    rpc_timer_set(rpc_loop_queue(s->service->config.loop), timer, LOAD_PERIOD_MS);
}

/* -- orders -- */

/* A request that never reached the worker: said at once. */
static void refuse(session *s, uint64_t id, hd_status status, const char *message) {
    unsigned char bytes[1024];
    size_t count =
        worker_event_pack(&(worker_event){.kind = WORKER_FAILED, .last = true, .status = status, .message = message},
                          id, bytes, sizeof(bytes));
    if (count > sizeof(bytes) || rpc_stream_send(s->stream, &(rpc_part){bytes, count}, 1) == HD_FULL)
        rpc_stream_cancel(s->stream);
}

static hd_status admit(session *s, served_request *r, hd_error *error) {
    worker_service *service = s->service;
    if (atomic_load(&service->is_draining)) return hd_error_set(error, HD_CANCELLED, "this worker is being drained");
    hd_status status = worker_submit_decode(r->order->submit, &r->request, error);
    if (status != HD_OK) return status;
    r->request.id = atomic_fetch_add(&service->next_id, 1);
    r->request.on_event = on_event;
    /* Listed before it is submitted: its events may come, and end it, before submit returns. */
    r->next = s->requests;
    if (r->next != NULL) r->next->previous = r;
    s->requests = r;
    atomic_fetch_add(&service->open_requests, 1);
    status = service->config.worker->ops->submit(service->config.worker, &r->request, error);
    if (status == HD_OK) return HD_OK;
    s->requests = r->next;
    if (r->next != NULL) r->next->previous = NULL;
    atomic_fetch_sub(&service->open_requests, 1);
    worker_submit_fini(&r->request);
    return status;
}

/* Takes the order. */
static void submit_take(session *s, Hadal__Order *order) {
    uint64_t id = order->submit->id;
    hd_error error = {.text = "no memory for a request"};
    served_request *r = calloc(1, sizeof(*r));
    hd_status status = HD_NO_MEMORY;
    if (r != NULL) {
        *r = (served_request){.session = s, .order = order, .id = id};
        status = admit(s, r, &error);
    }
    if (status == HD_OK) return;
    refuse(s, id, status, error.text);
    free(r);
    hadal__order__free_unpacked(order, NULL);
}

static void cancel(session *s, const Hadal__Cancel *order) {
    worker_rpc *worker = s->service->config.worker;
    for (served_request *r = s->requests; r != NULL; r = r->next) {
        if (r->id == order->id) worker->ops->cancel(worker, r->request.id, order->choice);
    }
}

static void on_order(void *context, rpc_stream *stream, const rpc_message *message) {
    session *s = context;
    Hadal__Order *order = hadal__order__unpack(NULL, message->count, message->bytes);
    if (order == NULL) {
        rpc_stream_finish(stream, HD_CORRUPT, "an order is not the message that was expected");
        return;
    }
    if (order->cancel != NULL) cancel(s, order->cancel);
    if (order->reset_cache) s->service->config.worker->ops->cache_reset(s->service->config.worker);
    if (order->submit != NULL) submit_take(s, order);
    else hadal__order__free_unpacked(order, NULL);
}

static void on_half_close(void *context, rpc_stream *stream) {
    rpc_stream_finish(stream, HD_OK, NULL);
}

static void on_end(void *context, rpc_stream *stream, const rpc_end *end) {
    session *s = context;
    worker_rpc *worker = s->service->config.worker;
    rpc_timer_cancel(rpc_loop_queue(s->service->config.loop), &s->load_timer);
    for (served_request *r = s->requests; r != NULL; r = r->next)
        worker->ops->cancel(worker, r->request.id, UINT32_MAX);
    rpc_stream_close(stream);
    pthread_mutex_lock(&s->lock);
    s->stream = NULL;
    post_flush(s); /* frees the session when its last request has come back */
    pthread_mutex_unlock(&s->lock);
    hd_log(HD_LOG_INFO, "session_ended", "node=%s", s->service->config.node_id);
}

static void on_session(void *context, rpc_stream *stream) {
    static const rpc_handlers handlers = {
        .on_message = on_order, .on_half_close = on_half_close, .on_room = on_room, .on_end = on_end};
    session *s = calloc(1, sizeof(*s));
    if (s != NULL) {
        s->pending = malloc(PENDING_BYTES_MAX);
        s->sending = malloc(PENDING_BYTES_MAX);
    }
    if (s == NULL || s->pending == NULL || s->sending == NULL) {
        if (s != NULL) free(s->pending);
        if (s != NULL) free(s->sending);
        free(s);
        rpc_stream_refuse(stream, HD_NO_MEMORY, "no memory for a session");
        return;
    }
    pthread_mutex_init(&s->lock, NULL);
    s->service = context;
    s->stream = stream;
    s->flush.run = on_flush;
    s->load_timer.run = on_load_timer;
    rpc_stream_handle(stream, &handlers, s);
    char peer[128];
    hd_log(HD_LOG_INFO, "session_opened", "node=%s peer=%s", s->service->config.node_id,
           rpc_stream_peer(stream, peer, sizeof(peer)));
    on_load_timer(&s->load_timer);
}

/* -- description -- */

static hd_status on_describe(void *context, const ProtobufCMessage *request, rpc_unary_answer *answer,
                             hd_error *error) {
    answer->message = &((worker_service *)context)->description.base;
    return HD_OK;
}

/* A file that is there, or nothing. */
static hd_status read_file(worker_service *service, const char *name, hd_error *error) {
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s", service->config.model_directory, name);
    FILE *file = fopen(path, "rb");
    if (file == NULL && errno == ENOENT) return HD_OK;
    if (file == NULL) return hd_error_set(error, HD_IO, "cannot read %s: %s", path, strerror(errno));
    fseek(file, 0, SEEK_END);
    long bytes = ftell(file);
    rewind(file);
    Hadal__ModelFile *out = &service->files[service->description.n_files];
    hadal__model_file__init(out);
    hd_status status = HD_OK;
    if (bytes < 0 || bytes > FILE_BYTES_MAX)
        status = hd_error_set(error, HD_INVALID, "%s is too large to be handed to coordinators", path);
    else if ((out->content.data = malloc((size_t)bytes + 1)) == NULL)
        status = hd_error_set(error, HD_NO_MEMORY, "no memory for %s", path);
    else if (fread(out->content.data, 1, (size_t)bytes, file) != (size_t)bytes)
        status = hd_error_set(error, HD_IO, "%s could not be read whole", path);
    fclose(file);
    out->content.len = (size_t)bytes;
    out->name = (char *)name;
    service->file_list[service->description.n_files++] = out; /* freed with the service, also half read */
    return status;
}

static hd_status read_files(worker_service *service, hd_error *error) {
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                        "chat_template.jinja", "chat_template.json"};
    enum { COUNT = sizeof(names) / sizeof(names[0]) };
    service->files = calloc(COUNT, sizeof(*service->files));
    service->file_list = calloc(COUNT, sizeof(*service->file_list));
    if (service->files == NULL || service->file_list == NULL)
        return hd_error_set(error, HD_NO_MEMORY, "no memory for the tokenizer's files");
    hd_status status = HD_OK;
    for (size_t i = 0; status == HD_OK && i < COUNT; i++) status = read_file(service, names[i], error);
    service->description.files = service->file_list;
    return status;
}

static void describe(worker_service *service) {
    worker_info info;
    service->config.worker->ops->info(service->config.worker, &info);
    Hadal__Description *d = &service->description;
    d->node = (char *)service->config.node_id;
    d->model_name = (char *)info.model_name;
    d->kernels = (char *)info.kernels;
    d->weights_dtype = (char *)info.weights_dtype;
    d->kv_dtype = (char *)info.kv_dtype;
    d->selection = (char *)info.selection;
    d->vocabulary_size = info.vocabulary_size;
    d->context_max = info.context_max;
    d->kv_bytes = info.kv_bytes;
    d->kv_bytes_per_token = info.kv_bytes_per_token;
    d->n_eos_ids = info.eos_id_count;
    d->eos_ids = (uint32_t *)info.eos_ids;
    d->default_temperature = info.default_temperature;
    d->default_top_p = info.default_top_p;
    d->default_top_k = info.default_top_k;
    d->default_min_p = info.default_min_p;
    d->default_repetition_penalty = info.default_repetition_penalty;
    d->fingerprint = (ProtobufCBinaryData){WORKER_FINGERPRINT_BYTES, (uint8_t *)service->config.fingerprint};
}

hd_status worker_service_open(const worker_service_config *config, worker_service **out, hd_error *error) {
    worker_service *service = calloc(1, sizeof(*service));
    if (service == NULL) return hd_error_set(error, HD_NO_MEMORY, "no memory for the worker's service");
    service->config = *config;
    atomic_init(&service->next_id, 1);
    hadal__description__init(&service->description);
    service->describe = (rpc_unary_method){&hadal__describe_request__descriptor, on_describe, service};
    hd_status status = read_files(service, error);
    if (status == HD_OK) {
        describe(service);
        *out = service;
    } else {
        worker_service_close(service);
    }
    return status;
}

void worker_service_close(worker_service *service) {
    if (service == NULL) return;
    for (size_t i = 0; i < service->description.n_files; i++) free(service->files[i].content.data);
    free(service->files);
    free(service->file_list);
    free(service);
}

void worker_service_methods(worker_service *service, rpc_method methods[WORKER_SERVICE_METHODS]) {
    rpc_queue *queue = rpc_loop_queue(service->config.loop);
    methods[0] = (rpc_method){
        .path = WORKER_DESCRIBE_METHOD, .queue = queue, .on_open = rpc_unary_serve, .context = &service->describe};
    methods[1] = (rpc_method){.path = WORKER_SESSION_METHOD, .queue = queue, .on_open = on_session, .context = service};
}

void worker_service_set_draining(worker_service *service, bool is_draining) {
    atomic_store(&service->is_draining, is_draining);
}

uint32_t worker_service_requests(const worker_service *service) {
    return atomic_load(&service->open_requests);
}
