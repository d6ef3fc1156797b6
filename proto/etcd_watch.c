/* etcd_watch.c - a prefix: read once, then its events from the next revision on, whatever happens to the stream.
 *
 *   READING --snapshot--> STREAMING --stream lost--> STREAMING from the last revision, at another endpoint
 *      '<------------------------- compacted: the events in between are gone, so read again */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "proto/etcd_internal.h"

#define READ_DEADLINE_MS 5000u

struct etcd_watch {
    etcd *etcd;
    char *prefix, *prefix_end;
    etcd_watch_handlers handlers;
    void *context;
    int64_t revision; /* the last that is known; 0: none, read first */
    rpc_stream *stream;
    unsigned endpoint;
    bool is_busy, is_closed, is_connected;
    rpc_timer retry;
};

static void follow(etcd_watch *w);

static void watch_free(etcd_watch *w) {
    free(w->prefix);
    free(w->prefix_end);
    free(w);
}

static void set_connected(etcd_watch *w, bool is_connected) {
    if (w->is_connected == is_connected) return;
    w->is_connected = is_connected;
    if (w->handlers.on_connection != NULL) w->handlers.on_connection(w->context, is_connected);
}

static void retry_later(etcd_watch *w) {
    rpc_timer_set(w->etcd->queue, &w->retry, ETCD_RETRY_MS);
}

static void on_retry(rpc_timer *timer) {
    follow((etcd_watch *)((char *)timer - offsetof(etcd_watch, retry)));
}

static void drop_stream(etcd_watch *w) {
    rpc_stream_close(w->stream);
    w->stream = NULL;
}

static void apply(etcd_watch *w, const Etcdserverpb__WatchResponse *response) {
    if (response->canceled) {
        hd_log(HD_LOG_INFO, "watch_cancelled", "compact_revision=%lld", (long long)response->compact_revision);
        if (response->compact_revision != 0) w->revision = 0;
        drop_stream(w);
        rpc_timer_set(w->etcd->queue, &w->retry, 0);
        return;
    }
    if (response->created) set_connected(w, true);
    for (size_t i = 0; i < response->n_events; i++) {
        const Etcdserverpb__Event *event = response->events[i];
        if (event->kv == NULL || w->stream == NULL) continue;
        w->handlers.on_event(w->context, event->type == ETCDSERVERPB__EVENT__EVENT_TYPE__DELETE, event->kv);
    }
    /* A part of a large answer has the revision of the whole. */
    if (!response->fragment && !response->created && response->header != NULL &&
        response->header->revision > w->revision)
        w->revision = response->header->revision;
}

static void on_message(void *context, rpc_stream *stream, const rpc_message *message) {
    Etcdserverpb__WatchResponse *response =
        (Etcdserverpb__WatchResponse *)rpc_message_unpack(message, &etcdserverpb__watch_response__descriptor);
    if (response == NULL) return;
    apply(context, response);
    protobuf_c_message_free_unpacked(&response->base, NULL);
}

static void on_end(void *context, rpc_stream *stream, const rpc_end *end) {
    etcd_watch *w = context;
    drop_stream(w);
    set_connected(w, false);
    etcd_should_retry(w->etcd, end);
    etcd_next_endpoint(w->etcd, w->endpoint);
    retry_later(w);
}

static void open_stream(etcd_watch *w) {
    rpc_stream_config config = {
        .method = "/etcdserverpb.Watch/Watch", .handlers = {.on_message = on_message, .on_end = on_end}, .context = w};
    config.metadata_count = etcd_metadata(w->etcd, config.metadata);
    /* An endpoint that has lost its leader ends the stream instead of keeping still. */
    config.metadata[config.metadata_count++] = (rpc_metadata){"hasleader", "true"};
    w->endpoint = w->etcd->current;
    if (rpc_stream_open(etcd_channel(w->etcd), w->etcd->queue, &config, &w->stream) != HD_OK) {
        retry_later(w);
        return;
    }
    Etcdserverpb__WatchCreateRequest create = ETCDSERVERPB__WATCH_CREATE_REQUEST__INIT;
    create.key = etcd_bytes(w->prefix);
    create.range_end = (ProtobufCBinaryData){strlen(w->prefix_end), (uint8_t *)w->prefix_end};
    create.start_revision = w->revision + 1;
    Etcdserverpb__WatchRequest request = ETCDSERVERPB__WATCH_REQUEST__INIT;
    request.request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CREATE_REQUEST;
    request.create_request = &create;
    rpc_message_send(w->stream, &request.base);
}

static void on_token(void *context, const ProtobufCMessage *answer, const rpc_end *end) {
    etcd_watch *w = context;
    w->is_busy = false;
    if (w->is_closed) watch_free(w);
    else if (end->status == HD_OK) follow(w);
    else retry_later(w);
}

static void on_read(void *context, const ProtobufCMessage *message, const rpc_end *end) {
    etcd_watch *w = context;
    const Etcdserverpb__RangeResponse *answer = (const Etcdserverpb__RangeResponse *)message;
    w->is_busy = false;
    if (w->is_closed) {
        watch_free(w);
        return;
    }
    if (end->status != HD_OK || answer->header == NULL) {
        set_connected(w, false);
        retry_later(w);
        return;
    }
    w->revision = answer->header->revision;
    w->handlers.on_snapshot(w->context, (const Etcdserverpb__KeyValue *const *)answer->kvs, answer->n_kvs);
    follow(w);
}

static void read_all(etcd_watch *w) {
    Etcdserverpb__RangeRequest request = ETCDSERVERPB__RANGE_REQUEST__INIT;
    request.key = etcd_bytes(w->prefix);
    request.range_end = (ProtobufCBinaryData){strlen(w->prefix_end), (uint8_t *)w->prefix_end};
    w->is_busy = true;
    if (etcd_call(w->etcd, &request.base, READ_DEADLINE_MS, on_read, w) != HD_OK) {
        w->is_busy = false;
        retry_later(w);
    }
}

static void follow(etcd_watch *w) {
    if (w->revision == 0) {
        read_all(w);
    } else if (etcd_needs_token(w->etcd)) {
        w->is_busy = true;
        etcd_fetch_token(w->etcd, on_token, w);
    } else {
        open_stream(w);
    }
}

hd_status etcd_watch_open(etcd *e, const char *prefix, const etcd_watch_handlers *handlers, void *context,
                          etcd_watch **out) {
    etcd_watch *w = calloc(1, sizeof(*w));
    if (w == NULL) return HD_NO_MEMORY;
    *w = (etcd_watch){.etcd = e, .handlers = *handlers, .context = context, .retry.run = on_retry};
    w->prefix = strdup(prefix);
    w->prefix_end = strdup(prefix);
    if (w->prefix == NULL || w->prefix_end == NULL) {
        watch_free(w);
        return HD_NO_MEMORY;
    }
    etcd_prefix_end(prefix, w->prefix_end);
    *out = w;
    follow(w);
    return HD_OK;
}

void etcd_watch_close(etcd_watch *w) {
    if (w == NULL) return;
    rpc_timer_cancel(w->etcd->queue, &w->retry);
    drop_stream(w);
    w->is_closed = true;
    if (!w->is_busy) watch_free(w);
}
