/* etcd_lease.c - a lease: granted, kept alive over a stream, granted again when it has expired.
 *
 *   GRANTING --id--> KEEPING --an answer says it has expired--> GRANTING
 *                       '--stream lost: another endpoint, the same lease; later than its time to live: GRANTING */
#include <inttypes.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "proto/etcd_internal.h"

#define GRANT_DEADLINE_MS 5000u
#define NS_PER_S 1000000000ull

struct etcd_lease {
    etcd *etcd;
    uint64_t ttl_s;
    etcd_lease_handlers handlers;
    void *context;
    int64_t id;          /* 0: none */
    uint64_t expires_ns; /* by our clock, counted from when the last answer came */
    rpc_stream *stream;
    unsigned endpoint;
    bool is_busy, is_closed; /* is_busy: a call is out that will come back here */
    rpc_timer next;          /* to ping, or to try again */
};

static void grant(etcd_lease *l);
static void keep(etcd_lease *l);

static void lose(etcd_lease *l) {
    if (l->id != 0) {
        hd_log(HD_LOG_WARN, "lease_lost", "lease=%" PRIx64, (uint64_t)l->id);
        l->id = 0;
        if (l->handlers.on_lost != NULL) l->handlers.on_lost(l->context);
    }
}

static void set_next(etcd_lease *l, uint64_t delay_ms) {
    rpc_timer_set(l->etcd->queue, &l->next, delay_ms);
}

static void send_ping(etcd_lease *l) {
    Etcdserverpb__LeaseKeepAliveRequest request = ETCDSERVERPB__LEASE_KEEP_ALIVE_REQUEST__INIT;
    request.id = l->id;
    rpc_message_send(l->stream, &request.base);
    set_next(l, l->ttl_s * 1000 / 3);
}

static void on_next(rpc_timer *timer) {
    etcd_lease *l = (etcd_lease *)((char *)timer - offsetof(etcd_lease, next));
    uint64_t now = hd_now_ns();
    if (l->id != 0 && now >= l->expires_ns) lose(l);
    if (l->id == 0) {
        rpc_stream_close(l->stream);
        l->stream = NULL;
        grant(l);
    } else if (l->stream != NULL && now + l->ttl_s * NS_PER_S / 3 >= l->expires_ns) {
        /* Two pings have had no answer: this endpoint does not speak any more, though its connection stands. */
        rpc_stream_close(l->stream);
        l->stream = NULL;
        etcd_next_endpoint(l->etcd, l->endpoint);
        keep(l);
    } else if (l->stream == NULL) {
        keep(l);
    } else {
        send_ping(l);
    }
}

static void on_message(void *context, rpc_stream *stream, const rpc_message *message) {
    etcd_lease *l = context;
    Etcdserverpb__LeaseKeepAliveResponse *answer = (Etcdserverpb__LeaseKeepAliveResponse *)rpc_message_unpack(
        message, &etcdserverpb__lease_keep_alive_response__descriptor);
    if (answer == NULL) return;
    if (answer->ttl > 0) {
        l->expires_ns = hd_now_ns() + (uint64_t)answer->ttl * NS_PER_S;
    } else {
        lose(l);
        set_next(l, 0);
    }
    protobuf_c_message_free_unpacked(&answer->base, NULL);
}

static void on_end(void *context, rpc_stream *stream, const rpc_end *end) {
    etcd_lease *l = context;
    rpc_stream_close(stream);
    l->stream = NULL;
    etcd_should_retry(l->etcd, end);
    etcd_next_endpoint(l->etcd, l->endpoint);
    set_next(l, ETCD_RETRY_MS);
}

static void on_token(void *context, const ProtobufCMessage *answer, const rpc_end *end) {
    etcd_lease *l = context;
    l->is_busy = false;
    if (l->is_closed) free(l);
    else if (end->status == HD_OK) keep(l);
    else set_next(l, ETCD_RETRY_MS);
}

static void keep(etcd_lease *l) {
    rpc_stream_config config = {.method = "/etcdserverpb.Lease/LeaseKeepAlive",
                                .handlers = {.on_message = on_message, .on_end = on_end},
                                .context = l};
    config.metadata_count = etcd_metadata(l->etcd, config.metadata);
    l->endpoint = l->etcd->current;
    if (etcd_needs_token(l->etcd)) {
        l->is_busy = true;
        etcd_fetch_token(l->etcd, on_token, l);
    } else if (rpc_stream_open(etcd_channel(l->etcd), l->etcd->queue, &config, &l->stream) != HD_OK) {
        set_next(l, ETCD_RETRY_MS);
    } else {
        send_ping(l);
    }
}

static void on_granted(void *context, const ProtobufCMessage *message, const rpc_end *end) {
    etcd_lease *l = context;
    const Etcdserverpb__LeaseGrantResponse *answer = (const Etcdserverpb__LeaseGrantResponse *)message;
    l->is_busy = false;
    if (l->is_closed) {
        free(l);
        return;
    }
    if (end->status != HD_OK) {
        char text[256];
        hd_log(HD_LOG_WARN, "lease_not_granted", "reason=%s", hd_log_quote(end->message, text, sizeof(text)));
        set_next(l, ETCD_RETRY_MS);
        return;
    }
    l->id = answer->id;
    l->expires_ns = hd_now_ns() + (uint64_t)answer->ttl * NS_PER_S;
    l->handlers.on_granted(l->context, l->id);
    keep(l);
}

static void grant(etcd_lease *l) {
    Etcdserverpb__LeaseGrantRequest request = ETCDSERVERPB__LEASE_GRANT_REQUEST__INIT;
    request.ttl = (int64_t)l->ttl_s;
    l->is_busy = true;
    if (etcd_call(l->etcd, &request.base, GRANT_DEADLINE_MS, on_granted, l) != HD_OK) {
        l->is_busy = false;
        set_next(l, ETCD_RETRY_MS);
    }
}

hd_status etcd_lease_open(etcd *e, uint64_t ttl_s, const etcd_lease_handlers *handlers, void *context,
                          etcd_lease **out) {
    etcd_lease *l = calloc(1, sizeof(*l));
    if (l == NULL) return HD_NO_MEMORY;
    *l = (etcd_lease){.etcd = e, .ttl_s = ttl_s, .handlers = *handlers, .context = context, .next.run = on_next};
    *out = l;
    grant(l);
    return HD_OK;
}

static void on_revoked(void *context, const ProtobufCMessage *message, const rpc_end *end) {}

void etcd_lease_close(etcd_lease *l) {
    if (l == NULL) return;
    rpc_timer_cancel(l->etcd->queue, &l->next);
    rpc_stream_close(l->stream);
    l->stream = NULL;
    if (l->id != 0) {
        Etcdserverpb__LeaseRevokeRequest request = ETCDSERVERPB__LEASE_REVOKE_REQUEST__INIT;
        request.id = l->id;
        etcd_call(l->etcd, &request.base, l->ttl_s * 1000, on_revoked, NULL);
    }
    l->is_closed = true;
    if (!l->is_busy) free(l);
}
