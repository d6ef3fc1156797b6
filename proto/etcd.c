/* etcd.c - calls, with their endpoints and tokens. */
#include "proto/etcd_internal.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"

#define TRY_MS 2000u
#define KEEP_ALIVE_MS 5500u /* etcd cuts off who pings more often than every 5 s */
#define DEAD_AFTER_MS 3000u
#define NS_PER_MS 1000000ull

static const struct {
    const ProtobufCMessageDescriptor *request, *answer;
    const char *method;
} methods[] = {
    {&etcdserverpb__range_request__descriptor, &etcdserverpb__range_response__descriptor, "/etcdserverpb.KV/Range"},
    {&etcdserverpb__put_request__descriptor, &etcdserverpb__put_response__descriptor, "/etcdserverpb.KV/Put"},
    {&etcdserverpb__delete_range_request__descriptor, &etcdserverpb__delete_range_response__descriptor,
     "/etcdserverpb.KV/DeleteRange"},
    {&etcdserverpb__txn_request__descriptor, &etcdserverpb__txn_response__descriptor, "/etcdserverpb.KV/Txn"},
    {&etcdserverpb__compaction_request__descriptor, &etcdserverpb__compaction_response__descriptor,
     "/etcdserverpb.KV/Compact"},
    {&etcdserverpb__lease_grant_request__descriptor, &etcdserverpb__lease_grant_response__descriptor,
     "/etcdserverpb.Lease/LeaseGrant"},
    {&etcdserverpb__lease_revoke_request__descriptor, &etcdserverpb__lease_revoke_response__descriptor,
     "/etcdserverpb.Lease/LeaseRevoke"},
    {&etcdserverpb__authenticate_request__descriptor, &etcdserverpb__authenticate_response__descriptor,
     "/etcdserverpb.Auth/Authenticate"},
};

/* -- endpoints -- */

static hd_status add_endpoint(etcd *e, const char *url, size_t length, const etcd_config *config, hd_error *error) {
    bool is_https = length > 8 && strncmp(url, "https://", 8) == 0;
    size_t skip = is_https ? 8 : length > 7 && strncmp(url, "http://", 7) == 0 ? 7 : 0;
    char *address = e->addresses[e->endpoint_count];
    while (length > skip && url[length - 1] == '/') length--;
    if (length - skip >= RPC_ADDRESS_BYTES) return hd_error_set(error, HD_INVALID, "--etcd: an address is too long");
    snprintf(address, RPC_ADDRESS_BYTES, "%.*s", (int)(length - skip), url + skip);
    rpc_tls *system = NULL;
    hd_status status = HD_OK;
    if (is_https && config->tls == NULL) status = rpc_tls_open(NULL, NULL, NULL, &system, error);
    rpc_channel_config channel = {.address = address,
                                  .tls = !is_https             ? NULL
                                         : config->tls != NULL ? config->tls
                                                               : system,
                                  .keep_alive_ms = KEEP_ALIVE_MS,
                                  .dead_after_ms = DEAD_AFTER_MS};
    hd_error problem;
    if (status == HD_OK) {
        status = rpc_channel_open(&channel, &e->channels[e->endpoint_count], &problem);
        if (status != HD_OK) hd_error_write(error, "--etcd: %s", problem.text);
    }
    rpc_tls_close(system);
    if (status == HD_OK) e->endpoint_count++;
    return status;
}

static hd_status add_endpoints(etcd *e, const etcd_config *config, hd_error *error) {
    const char *at = config->endpoints;
    hd_status status = HD_OK;
    while (status == HD_OK && *at != '\0') {
        size_t length = strcspn(at, ",");
        if (e->endpoint_count == ETCD_ENDPOINTS_MAX)
            return hd_error_set(error, HD_INVALID, "--etcd: at most %u addresses", ETCD_ENDPOINTS_MAX);
        status = add_endpoint(e, at, length, config, error);
        at += length + (at[length] == ',');
    }
    if (status == HD_OK && e->endpoint_count == 0)
        return hd_error_set(error, HD_INVALID, "--etcd: an address is missing: URL[,URL]");
    return status;
}

hd_status etcd_open(const etcd_config *config, rpc_queue *queue, etcd **out, hd_error *error) {
    etcd *e = calloc(1, sizeof(*e));
    if (e == NULL) return hd_error_set(error, HD_NO_MEMORY, "no memory for the etcd client");
    e->queue = queue;
    e->try_ms = config->try_ms != 0 ? config->try_ms : TRY_MS;
    hd_status status = add_endpoints(e, config, error);
    if (status == HD_OK && config->user != NULL) {
        e->user = strdup(config->user);
        e->password = strdup(config->password != NULL ? config->password : "");
        if (e->user == NULL || e->password == NULL)
            status = hd_error_set(error, HD_NO_MEMORY, "no memory for the etcd client");
    }
    if (status == HD_OK) *out = e;
    else etcd_close(e);
    return status;
}

const char *etcd_endpoint(const etcd *e) {
    return e->addresses[e->current];
}

rpc_channel *etcd_channel(etcd *e) {
    return e->channels[e->current];
}

void etcd_next_endpoint(etcd *e, unsigned failed) {
    /* Many calls may find the same endpoint lost; the first moves on for all. */
    if (failed == e->current) e->current = (e->current + 1) % e->endpoint_count;
}

/* -- tokens -- */

unsigned etcd_metadata(const etcd *e, rpc_metadata *metadata) {
    if (e->token == NULL) return 0;
    metadata[0] = (rpc_metadata){"token", e->token};
    return 1;
}

bool etcd_needs_token(const etcd *e) {
    return e->user != NULL && e->token == NULL;
}

bool etcd_should_retry(etcd *e, const rpc_end *end) {
    enum { UNAUTHENTICATED = 16 };
    if (e->is_closing) return false;
    bool is_bad_token = end->code == UNAUTHENTICATED || strstr(end->message, "invalid auth token") != NULL;
    if (is_bad_token && e->user != NULL) {
        free(e->token);
        e->token = NULL;
        return true;
    }
    return end->status == HD_PEER_LOST || end->status == HD_TIMED_OUT || end->status == HD_CANCELLED;
}

/* -- calls -- */

typedef struct etcd_pending {
    etcd *etcd;
    struct etcd_pending *next;
    ProtobufCMessage *request; /* a copy */
    unsigned method, endpoint;
    uint64_t until_ns;
    rpc_unary_done *done;
    void *context;
    rpc_unary *call; /* NULL between two tries */
    rpc_timer retry;
} etcd_pending;

static void try_call(etcd_pending *p);

static void pending_free(etcd_pending *p) {
    etcd_pending **at = &p->etcd->pending;
    while (*at != p) at = &(*at)->next;
    *at = p->next;
    rpc_timer_cancel(p->etcd->queue, &p->retry);
    protobuf_c_message_free_unpacked(p->request, NULL);
    free(p);
}

static void finish(etcd_pending *p, const ProtobufCMessage *answer, const rpc_end *end) {
    rpc_unary_done *done = p->done;
    void *context = p->context;
    pending_free(p);
    done(context, answer, end);
}

static void on_retry(rpc_timer *timer) {
    try_call((etcd_pending *)((char *)timer - offsetof(etcd_pending, retry)));
}

static void retry_or_finish(etcd_pending *p, const rpc_end *end) {
    bool may_retry = etcd_should_retry(p->etcd, end) && hd_now_ns() < p->until_ns;
    if (!may_retry) {
        finish(p, NULL, end);
        return;
    }
    etcd_next_endpoint(p->etcd, p->endpoint);
    rpc_timer_set(p->etcd->queue, &p->retry, p->etcd->endpoint_count > 1 ? ETCD_RETRY_MS / 10 : ETCD_RETRY_MS);
}

static void on_answer(void *context, const ProtobufCMessage *answer, const rpc_end *end) {
    etcd_pending *p = context;
    p->call = NULL;
    if (end->status == HD_OK) finish(p, answer, end);
    else retry_or_finish(p, end);
}

static void on_token(void *context, const ProtobufCMessage *answer, const rpc_end *end) {
    etcd_pending *p = context;
    p->call = NULL;
    if (end->status == HD_OK) try_call(p);
    else retry_or_finish(p, end);
}

typedef struct etcd_token_fetch {
    etcd *etcd;
    struct etcd_token_fetch *next;
    rpc_unary *call;
    rpc_unary_done *done;
    void *context;
} token_fetch;

static void on_authenticated(void *context, const ProtobufCMessage *answer, const rpc_end *end) {
    token_fetch fetch = *(token_fetch *)context;
    token_fetch **at = &fetch.etcd->fetches;
    while (*at != context) at = &(*at)->next;
    *at = fetch.next;
    free(context);
    if (end->status == HD_OK) {
        free(fetch.etcd->token);
        fetch.etcd->token = strdup(((const Etcdserverpb__AuthenticateResponse *)answer)->token);
    } else if (end->status != HD_CANCELLED) {
        hd_log(HD_LOG_WARN, "etcd_refuses_user", "endpoint=%s user=%s", etcd_endpoint(fetch.etcd), fetch.etcd->user);
    }
    fetch.done(fetch.context, NULL, end);
}

static uint64_t try_ms_of(const etcd *e, uint64_t until_ns) {
    uint64_t now = hd_now_ns();
    uint64_t left_ms = until_ns > now ? (until_ns - now) / NS_PER_MS + 1 : 1;
    return left_ms < e->try_ms ? left_ms : e->try_ms;
}

void etcd_fetch_token(etcd *e, rpc_unary_done *done, void *context) {
    static const rpc_end no_memory = {HD_NO_MEMORY, 0, "no memory for a token"};
    Etcdserverpb__AuthenticateRequest request = ETCDSERVERPB__AUTHENTICATE_REQUEST__INIT;
    request.name = e->user;
    request.password = e->password;
    token_fetch *fetch = malloc(sizeof(*fetch));
    rpc_unary_config config = {.method = "/etcdserverpb.Auth/Authenticate",
                               .answer_type = &etcdserverpb__authenticate_response__descriptor,
                               .deadline_ms = e->try_ms};
    if (fetch != NULL) *fetch = (token_fetch){.etcd = e, .next = e->fetches, .done = done, .context = context};
    if (fetch == NULL || rpc_unary_start(etcd_channel(e), e->queue, &config, &request.base, on_authenticated, fetch,
                                         &fetch->call) != HD_OK) {
        free(fetch);
        done(context, NULL, &no_memory);
        return;
    }
    e->fetches = fetch;
}

static void try_call(etcd_pending *p) {
    etcd *e = p->etcd;
    p->endpoint = e->current;
    if (etcd_needs_token(e)) {
        etcd_fetch_token(e, on_token, p);
        return;
    }
    rpc_unary_config config = {.method = methods[p->method].method,
                               .answer_type = methods[p->method].answer,
                               .deadline_ms = try_ms_of(e, p->until_ns)};
    config.metadata_count = etcd_metadata(e, config.metadata);
    if (rpc_unary_start(etcd_channel(e), e->queue, &config, p->request, on_answer, p, &p->call) != HD_OK) {
        p->call = NULL;
        finish(p, NULL, &(rpc_end){HD_NO_MEMORY, 0, "no memory for a call"});
    }
}

static ProtobufCMessage *copy_of(const ProtobufCMessage *message) {
    size_t count = protobuf_c_message_get_packed_size(message);
    unsigned char *bytes = malloc(count + 1);
    if (bytes == NULL) return NULL;
    protobuf_c_message_pack(message, bytes);
    ProtobufCMessage *copy = protobuf_c_message_unpack(message->descriptor, NULL, count, bytes);
    free(bytes);
    return copy;
}

hd_status etcd_call(etcd *e, const ProtobufCMessage *request, uint64_t deadline_ms, rpc_unary_done *done,
                    void *context) {
    unsigned method = 0;
    while (methods[method].request != request->descriptor) method++; /* another type is a mistake of the caller's */
    etcd_pending *p = calloc(1, sizeof(*p));
    if (p == NULL) return HD_NO_MEMORY;
    *p = (etcd_pending){.etcd = e,
                        .request = copy_of(request),
                        .method = method,
                        .until_ns = hd_now_ns() + deadline_ms * NS_PER_MS,
                        .done = done,
                        .context = context,
                        .retry.run = on_retry};
    if (p->request == NULL) {
        free(p);
        return HD_NO_MEMORY;
    }
    p->next = e->pending;
    e->pending = p;
    try_call(p);
    return HD_OK;
}

void etcd_close(etcd *e) {
    if (e == NULL) return;
    static const rpc_end cancelled = {HD_CANCELLED, 1, "the etcd client is being closed"};
    e->is_closing = true;
    while (e->fetches != NULL) {
        assert(e->fetches->etcd == e);
        rpc_unary_drop(e->fetches->call);
        on_authenticated(e->fetches, NULL, &cancelled);
    }
    while (e->pending != NULL) {
        assert(e->pending->etcd == e);
        if (e->pending->call != NULL) rpc_unary_drop(e->pending->call);
        finish(e->pending, NULL, &cancelled);
    }
    for (unsigned i = 0; i < e->endpoint_count; i++) rpc_channel_close(e->channels[i]);
    free(e->user);
    if (e->password != NULL) explicit_bzero(e->password, strlen(e->password));
    free(e->password);
    free(e->token);
    free(e);
}

/* -- a call that is waited for -- */

typedef struct waited {
    bool is_done;
    hd_status status;
    ProtobufCMessage *answer;
    hd_error *error;
} waited;

static void on_waited(void *context, const ProtobufCMessage *answer, const rpc_end *end) {
    waited *w = context;
    w->is_done = true;
    w->status = end->status;
    if (end->status != HD_OK) hd_error_write(w->error, "%s", end->message);
    else if ((w->answer = copy_of(answer)) == NULL)
        w->status = hd_error_set(w->error, HD_NO_MEMORY, "no memory for an answer");
}

hd_status etcd_call_wait(const etcd_config *config, const ProtobufCMessage *request, uint64_t deadline_ms,
                         ProtobufCMessage **answer, hd_error *error) {
    rpc_queue *queue = NULL;
    etcd *e = NULL;
    waited w = {.error = error};
    hd_status status = rpc_queue_open(&queue);
    if (status != HD_OK) return hd_error_set(error, status, "no memory for the etcd client");
    status = etcd_open(config, queue, &e, error);
    if (status == HD_OK) status = etcd_call(e, request, deadline_ms, on_waited, &w);
    if (status == HD_OK) {
        while (!w.is_done) rpc_queue_poll(queue, 100 * NS_PER_MS);
        status = w.status;
    }
    etcd_close(e);
    rpc_queue_close(queue);
    if (status == HD_OK) *answer = w.answer;
    return status;
}

ProtobufCBinaryData etcd_bytes(const char *text) {
    return (ProtobufCBinaryData){strlen(text), (uint8_t *)text};
}

ProtobufCBinaryData etcd_prefix_end(const char *prefix, char *buffer) {
    size_t length = strlen(prefix);
    memcpy(buffer, prefix, length + 1);
    /* The next string after all with this prefix: the last byte that is not the largest, plus one. */
    while (length > 0 && (unsigned char)buffer[length - 1] == 255) length--;
    assert(length > 0);
    buffer[length - 1]++;
    return (ProtobufCBinaryData){length, (uint8_t *)buffer};
}
