/* membership_etcd.c - /hadal/CLUSTER/nodes/ID, each under its node's own lease, and a watch of them all. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "proto/membership.h"

#define PREFIX_BYTES 192u
#define KEY_BYTES (PREFIX_BYTES + MEMBERSHIP_NAME_BYTES)
#define PUT_DEADLINE_MS 3000u
#define PUT_RETRY_MS 500u

typedef struct known_node {
    struct known_node *next;
    char id[MEMBERSHIP_NAME_BYTES];
    bool is_seen; /* in the snapshot being read */
} known_node;

typedef struct membership_etcd {
    membership base; /* first */
    rpc_queue *queue;
    etcd *etcd;
    etcd_lease *lease;
    etcd_watch *watch;
    char prefix[PREFIX_BYTES];
    uint64_t lease_s;
    membership_handlers handlers;
    void *context;
    known_node *known;
    membership_node self;
    bool is_announced;
    int64_t lease_id; /* 0: none now */
    rpc_timer put_again;
} membership_etcd;

/* -- announcing -- */

static void put_self(membership_etcd *m);

static void on_put(void *context, const ProtobufCMessage *answer, const rpc_end *end) {
    membership_etcd *m = context;
    if (end->status == HD_OK || m->etcd == NULL) return;
    char text[256];
    hd_log(HD_LOG_WARN, "announcement_failed", "node=%s reason=%s", m->self.id,
           hd_log_quote(end->message, text, sizeof(text)));
    rpc_timer_set(m->queue, &m->put_again, PUT_RETRY_MS);
}

static void on_put_again(rpc_timer *timer) {
    put_self((membership_etcd *)((char *)timer - offsetof(membership_etcd, put_again)));
}

static void put_self(membership_etcd *m) {
    if (m->lease_id == 0) return; /* the next lease brings it */
    char key[KEY_BYTES];
    snprintf(key, sizeof(key), "%s%s", m->prefix, m->self.id);
    char *value = membership_node_encode(&m->self);
    if (value == NULL) return;
    Etcdserverpb__PutRequest request = ETCDSERVERPB__PUT_REQUEST__INIT;
    request.key = etcd_bytes(key);
    request.value = etcd_bytes(value);
    request.lease = m->lease_id;
    if (etcd_call(m->etcd, &request.base, PUT_DEADLINE_MS, on_put, m) != HD_OK)
        rpc_timer_set(m->queue, &m->put_again, PUT_RETRY_MS);
    free(value);
}

static void on_granted(void *context, int64_t lease_id) {
    membership_etcd *m = context;
    m->lease_id = lease_id;
    put_self(m);
}

static void on_lost(void *context) {
    ((membership_etcd *)context)->lease_id = 0;
}

static hd_status etcd_announce(membership *self, const membership_node *node) {
    static const etcd_lease_handlers handlers = {on_granted, on_lost};
    membership_etcd *m = (membership_etcd *)self;
    m->self = *node;
    m->is_announced = true;
    if (m->lease == NULL) return etcd_lease_open(m->etcd, m->lease_s, &handlers, m, &m->lease);
    put_self(m);
    return HD_OK;
}

/* -- following -- */

static void tell_node(membership_etcd *m, const Etcdserverpb__KeyValue *pair) {
    membership_node node;
    hd_error error;
    if (membership_node_decode((const char *)pair->value.data, pair->value.len, &node, &error) != HD_OK) {
        char text[256];
        hd_log(HD_LOG_WARN, "node_refused", "key=%.*s reason=%s", (int)pair->key.len, pair->key.data,
               hd_log_quote(error.text, text, sizeof(text)));
        return;
    }
    known_node *k = m->known;
    while (k != NULL && strcmp(k->id, node.id) != 0) k = k->next;
    if (k == NULL) {
        k = calloc(1, sizeof(*k));
        if (k == NULL) return;
        snprintf(k->id, sizeof(k->id), "%s", node.id);
        k->next = m->known;
        m->known = k;
    }
    k->is_seen = true;
    if (m->handlers.on_node != NULL) m->handlers.on_node(m->context, &node);
}

static void forget_node(membership_etcd *m, const char *id) {
    for (known_node **at = &m->known; *at != NULL; at = &(*at)->next) {
        known_node *k = *at;
        if (strcmp(k->id, id) != 0) continue;
        *at = k->next;
        if (m->handlers.on_gone != NULL) m->handlers.on_gone(m->context, k->id);
        free(k);
        return;
    }
}

static void on_snapshot(void *context, const Etcdserverpb__KeyValue *const *pairs, size_t count) {
    membership_etcd *m = context;
    for (known_node *k = m->known; k != NULL; k = k->next) k->is_seen = false;
    for (size_t i = 0; i < count; i++) tell_node(m, pairs[i]);
    for (known_node *k = m->known, *next; k != NULL; k = next) {
        next = k->next;
        if (!k->is_seen) forget_node(m, k->id);
    }
}

static void on_event(void *context, bool is_deleted, const Etcdserverpb__KeyValue *pair) {
    membership_etcd *m = context;
    if (!is_deleted) {
        tell_node(m, pair);
        return;
    }
    char id[MEMBERSHIP_NAME_BYTES];
    size_t skip = strlen(m->prefix);
    if (pair->key.len <= skip || pair->key.len - skip >= sizeof(id)) return;
    snprintf(id, sizeof(id), "%.*s", (int)(pair->key.len - skip), (const char *)pair->key.data + skip);
    forget_node(m, id);
}

static void on_connection(void *context, bool is_connected) {
    membership_etcd *m = context;
    hd_log(is_connected ? HD_LOG_INFO : HD_LOG_WARN, is_connected ? "etcd_connected" : "etcd_lost", "endpoint=%s",
           etcd_endpoint(m->etcd));
    if (m->handlers.on_connection != NULL) m->handlers.on_connection(m->context, is_connected);
}

static hd_status etcd_follow(membership *self, const membership_handlers *handlers, void *context) {
    static const etcd_watch_handlers watch_handlers = {on_snapshot, on_event, on_connection};
    membership_etcd *m = (membership_etcd *)self;
    m->handlers = *handlers;
    m->context = context;
    return etcd_watch_open(m->etcd, m->prefix, &watch_handlers, m, &m->watch);
}

/* -- opening -- */

static void etcd_membership_close(membership *self) {
    membership_etcd *m = (membership_etcd *)self;
    rpc_timer_cancel(m->queue, &m->put_again);
    etcd_watch_close(m->watch);
    etcd_lease_close(m->lease);
    etcd *client = m->etcd;
    m->etcd = NULL;
    etcd_close(client);
    while (m->known != NULL) {
        known_node *k = m->known;
        m->known = k->next;
        free(k);
    }
    free(m);
}

static const membership_ops ops = {
    .name = "etcd", .close = etcd_membership_close, .follow = etcd_follow, .announce = etcd_announce};

static hd_status make_prefix(const char *cluster, char prefix[PREFIX_BYTES], hd_error *error) {
    if (cluster[0] == '\0' || strchr(cluster, '/') != NULL || strlen(cluster) > 128)
        return hd_error_set(error, HD_INVALID, "--cluster '%.40s' is not a name: at most 128 characters, no '/'",
                            cluster);
    snprintf(prefix, PREFIX_BYTES, "/hadal/%s/nodes/", cluster);
    return HD_OK;
}

hd_status membership_etcd_open(const membership_etcd_config *config, rpc_queue *queue, membership **out,
                               hd_error *error) {
    membership_etcd *m = calloc(1, sizeof(*m));
    if (m == NULL) return hd_error_set(error, HD_NO_MEMORY, "no memory for the membership");
    m->base.ops = &ops;
    m->queue = queue;
    m->put_again.run = on_put_again;
    m->lease_s = config->lease_s != 0 ? config->lease_s : MEMBERSHIP_LEASE_S;
    hd_status status = make_prefix(config->cluster, m->prefix, error);
    if (status == HD_OK) status = etcd_open(&config->etcd, queue, &m->etcd, error);
    if (status == HD_OK) *out = &m->base;
    else free(m);
    return status;
}

static hd_status check_pairs(const Etcdserverpb__RangeResponse *answer, const membership_node *node, hd_error *error) {
    hd_status status = HD_OK;
    for (size_t i = 0; status == HD_OK && i < answer->n_kvs; i++) {
        membership_node other;
        const ProtobufCBinaryData *value = &answer->kvs[i]->value;
        if (membership_node_decode((const char *)value->data, value->len, &other, NULL) != HD_OK) continue;
        bool is_same_id = strcmp(other.id, node->id) == 0;
        if (is_same_id && strcmp(other.address, node->address) != 0) {
            return hd_error_set(error, HD_INVALID, "--node-id %s is the name of the node at %s: choose another",
                                node->id, other.address);
        }
        if (!is_same_id) status = membership_fits(node, &other, error);
    }
    return status;
}

hd_status membership_check_join(const membership_etcd_config *config, const membership_node *node, uint64_t deadline_ms,
                                hd_error *error) {
    char prefix[PREFIX_BYTES], end[PREFIX_BYTES];
    hd_status status = make_prefix(config->cluster, prefix, error);
    if (status != HD_OK) return status;
    Etcdserverpb__RangeRequest request = ETCDSERVERPB__RANGE_REQUEST__INIT;
    request.key = etcd_bytes(prefix);
    request.range_end = etcd_prefix_end(prefix, end);
    ProtobufCMessage *answer = NULL;
    hd_error problem = {{0}};
    status = etcd_call_wait(&config->etcd, &request.base, deadline_ms, &answer, &problem);
    if (status != HD_OK)
        return hd_error_set(error, status == HD_INVALID ? HD_INVALID : HD_PEER_LOST, "--etcd %s: %s",
                            config->etcd.endpoints, problem.text);
    status = check_pairs((const Etcdserverpb__RangeResponse *)answer, node, error);
    protobuf_c_message_free_unpacked(answer, NULL);
    return status;
}
