/* cluster.c - see cluster.h. */
#include "cli/cluster.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

#define JOIN_DEADLINE_MS 10000u
#define LEAVE_DEADLINE_MS 1000u

size_t cluster_options_flags(cluster_options *o, hd_flag *flags) {
    const hd_flag all[] = {
        {"etcd", HD_FLAG_STRING, &o->etcd, "URL[,URL]", "where the cluster's nodes find each other", false},
        {"nodes", HD_FLAG_STRING, &o->nodes, "[NAME=]ROLE@HOST:PORT[,...]",
         "without etcd: the cluster's nodes, the same list for all of them", false},
        {"etcd-user", HD_FLAG_STRING, &o->etcd_user, "NAME", "where etcd asks for one", false},
        {"etcd-password", HD_FLAG_STRING, &o->etcd_password, "TEXT", "better given as HADAL_ETCD_PASSWORD", false},
        {"cluster", HD_FLAG_STRING, &o->cluster, "NAME", "which cluster, where several share an etcd", false},
        {"node-id", HD_FLAG_STRING, &o->node_id, "NAME", "this node's name (default: role, host and port)", false},
        {"advertise", HD_FLAG_STRING, &o->advertise, "HOST:PORT", "where others reach it (default: --listen)", false},
        {"tls-cert", HD_FLAG_STRING, &o->tls_cert, "FILE", "this node's certificate, PEM", false},
        {"tls-key", HD_FLAG_STRING, &o->tls_key, "FILE", "and its key", false},
        {"tls-ca", HD_FLAG_STRING, &o->tls_ca, "FILE", "who signs the certificates of the others", false},
        {"drain-timeout", HD_FLAG_DURATION, &o->drain_timeout, "TIME",
         "how long what runs may go on, or move, after SIGTERM", false},
    };
    memcpy(flags, all, sizeof(all));
    return sizeof(all) / sizeof(all[0]);
}

hd_status cluster_options_check(const cluster_options *o, hd_error *error) {
    membership_node nodes[MEMBERSHIP_STATIC_MAX];
    uint32_t count;
    bool has_etcd = o->etcd != NULL && o->etcd[0] != '\0';
    if (!has_etcd && o->nodes == NULL)
        return hd_error_set(error, HD_INVALID, "--etcd is missing: URL[,URL], for example http://127.0.0.1:2379");
    if (has_etcd && o->nodes != NULL)
        return hd_error_set(error, HD_INVALID, "--etcd and --nodes say the same in two ways: give one of them");
    if (o->nodes != NULL && membership_static_read(o->nodes, nodes, MEMBERSHIP_STATIC_MAX, &count, error) != HD_OK)
        return HD_INVALID;
    if (o->node_id != NULL && (o->node_id[0] == '\0' || strlen(o->node_id) >= MEMBERSHIP_NAME_BYTES ||
                               strpbrk(o->node_id, "/ \t\n\"\\") != NULL))
        return hd_error_set(error, HD_INVALID,
                            "--node-id '%.60s' is not a name: no spaces, quotes or slashes, at most %u "
                            "characters",
                            o->node_id, MEMBERSHIP_NAME_BYTES - 1);
    if ((o->tls_cert == NULL) != (o->tls_key == NULL))
        return hd_error_set(error, HD_INVALID, "--tls-cert and --tls-key go together: give both");
    return HD_OK;
}

typedef struct opening {
    cluster *cluster;
    const cluster_options *options;
    hd_status status;
    hd_error *error;
} opening;

/* The list, checked before; a node of it that is this process is told by its address when it joins. */
static hd_status open_list(const opening *o) {
    membership_node nodes[MEMBERSHIP_STATIC_MAX];
    uint32_t count = 0;
    hd_status status = membership_static_read(o->options->nodes, nodes, MEMBERSHIP_STATIC_MAX, &count, o->error);
    if (status == HD_OK) status = membership_hub_open(&o->cluster->listed);
    for (uint32_t i = 0; status == HD_OK && i < count; i++) membership_hub_put(o->cluster->listed, &nodes[i]);
    return status == HD_OK ? membership_inproc_open(o->cluster->listed, &o->cluster->membership) : status;
}

static void open_membership(void *context) {
    opening *o = context;
    if (o->options->nodes != NULL) {
        o->status = open_list(o);
        return;
    }
    o->status =
        membership_etcd_open(&o->cluster->config, rpc_loop_queue(o->cluster->loop), &o->cluster->membership, o->error);
}

hd_status cluster_open(const cluster_options *o, const char *role, cluster *c, hd_error *error) {
    *c = (cluster){.config = {.etcd = {.endpoints = o->etcd, .user = o->etcd_user, .password = o->etcd_password},
                              .cluster = o->cluster}};
    c->node.version_min = MEMBERSHIP_VERSION_MIN;
    c->node.version_max = MEMBERSHIP_VERSION_MAX;
    if (o->node_id != NULL) hd_log_set_origin(o->node_id);
    snprintf(c->node.role, sizeof(c->node.role), "%s", role);
    bool has_tls = o->tls_cert != NULL || o->tls_ca != NULL;
    hd_status status = has_tls ? rpc_tls_open(o->tls_cert, o->tls_key, o->tls_ca, &c->tls, error) : HD_OK;
    c->config.etcd.tls = c->tls;
    if (status == HD_OK && rpc_loop_open("control", &c->loop) != HD_OK)
        status = hd_error_set(error, HD_NO_MEMORY, "no memory for the control loop");
    if (status == HD_OK) {
        opening attempt = {c, o, HD_OK, error};
        rpc_loop_call(c->loop, open_membership, &attempt);
        status = attempt.status;
    }
    if (status != HD_OK) cluster_close(c);
    return status;
}

/* Where others reach it: what was said, or what was bound, unless that is no address of one host. */
static hd_status choose_address(cluster *c, const cluster_options *o, const char *bound, hd_error *error) {
    const char *address = o->advertise != NULL ? o->advertise : bound;
    if (o->advertise == NULL && (strncmp(bound, "0.0.0.0:", 8) == 0 || strncmp(bound, "[::]:", 5) == 0))
        return hd_error_set(error, HD_INVALID,
                            "--listen %s is every address of this host: say with --advertise HOST:PORT "
                            "which one others reach it at",
                            bound);
    snprintf(c->node.address, sizeof(c->node.address), "%s", address);
    return HD_OK;
}

static void choose_id(cluster *c, const cluster_options *o) {
    char host[64] = "host";
    gethostname(host, sizeof(host) - 1);
    const char *colon = strrchr(c->node.address, ':');
    membership_node nodes[MEMBERSHIP_STATIC_MAX];
    uint32_t count = 0;
    if (o->nodes != NULL) (void)membership_static_read(o->nodes, nodes, MEMBERSHIP_STATIC_MAX, &count, NULL);
    for (uint32_t i = 0; i < count; i++) {
        if (strcmp(nodes[i].address, c->node.address) != 0) continue;
        snprintf(c->node.id, sizeof(c->node.id), "%s", nodes[i].id);
        return;
    }
    if (o->node_id != NULL) snprintf(c->node.id, sizeof(c->node.id), "%s", o->node_id);
    else
        snprintf(c->node.id, sizeof(c->node.id), "%s-%.60s-%.20s", c->node.role, host, colon != NULL ? colon + 1 : "0");
}

static void announce(void *context) {
    cluster *c = context;
    c->membership->ops->announce(c->membership, &c->node);
}

hd_status cluster_join(cluster *c, const cluster_options *o, const char *bound, hd_error *error) {
    hd_status status = choose_address(c, o, bound, error);
    if (status != HD_OK) return status;
    choose_id(c, o);
    hd_log_set_origin(c->node.id);
    if (c->listed == NULL) status = membership_check_join(&c->config, &c->node, JOIN_DEADLINE_MS, error);
    if (status != HD_OK) return status;
    rpc_loop_call(c->loop, announce, c);
    hd_log(HD_LOG_INFO, "joined", "cluster=%s node=%s role=%s address=%s", c->config.cluster, c->node.id, c->node.role,
           c->node.address);
    return HD_OK;
}

void cluster_set_state(cluster *c, membership_state state) {
    /* The loop's thread alone reads and writes the record once it is announced. */
    c->node.state = state;
    rpc_loop_call(c->loop, announce, c);
}

static void close_membership(void *context) {
    cluster *c = context;
    c->membership->ops->close(c->membership);
    c->membership = NULL;
}

void cluster_leave(cluster *c) {
    if (c->membership == NULL) return;
    rpc_loop_call(c->loop, close_membership, c);
    if (c->node.id[0] == '\0' || c->listed != NULL) return;
    char key[256];
    snprintf(key, sizeof(key), "/hadal/%s/nodes/%s", c->config.cluster, c->node.id);
    Etcdserverpb__DeleteRangeRequest request = ETCDSERVERPB__DELETE_RANGE_REQUEST__INIT;
    request.key = etcd_bytes(key);
    ProtobufCMessage *answer = NULL;
    hd_error error;
    /* Without etcd the lease says it a little later. */
    if (etcd_call_wait(&c->config.etcd, &request.base, LEAVE_DEADLINE_MS, &answer, &error) == HD_OK)
        protobuf_c_message_free_unpacked(answer, NULL);
}

void cluster_close(cluster *c) {
    if (c->loop != NULL) {
        cluster_leave(c);
        rpc_loop_close(c->loop);
    }
    membership_hub_close(c->listed);
    c->listed = NULL;
    rpc_tls_close(c->tls);
    c->loop = NULL;
    c->tls = NULL;
}
