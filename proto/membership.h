/* membership.h - who is in the cluster: each node's announcement, and everybody's view of all of them.
 *
 * Implementations: etcd (a key per node under a lease; design: a few seconds), static (a list that was given; for
 * tests and for clusters without etcd), in process (a hub that the members share).
 *
 *   1. A view outlives its source: while etcd is away, everybody keeps the last one. Nothing that runs depends on it.
 *   2. on_gone says that a node's announcement has vanished: no new work for it. What runs there goes on.
 *   3. Nodes announce a range of protocol versions and use the highest common one (membership_version).
 * Threads: everything on the thread of the queue that it was opened with, membership_check_join excepted. */
#ifndef PROTO_MEMBERSHIP_H
#define PROTO_MEMBERSHIP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "proto/etcd.h"

#define MEMBERSHIP_VERSION_MIN 1u /* of the protocols that this binary speaks */
#define MEMBERSHIP_VERSION_MAX 1u
#define MEMBERSHIP_LEASE_S 3u
#define MEMBERSHIP_NAME_BYTES 128u

typedef enum { NODE_READY, NODE_DRAINING, NODE_GONE } membership_state;
const char *membership_state_name(membership_state state); /* "ready", "draining", "gone" */

typedef struct membership_node {
    char id[MEMBERSHIP_NAME_BYTES];
    char role[32];                   /* "coordinator", "worker", "attention-node" */
    char address[RPC_ADDRESS_BYTES]; /* where its gRPC services are; of a coordinator, its HTTP */
    char model[256];                 /* "" where it serves none */
    char fingerprint[72];            /* of the weights, hexadecimal */
    char kernels[32], weights_dtype[16], kv_dtype[16];
    uint64_t kv_capacity; /* bytes */
    uint32_t version_min, version_max;
    membership_state state;
} membership_node;

/* The highest version that both speak, or 0. */
uint32_t membership_version(const membership_node *a, const membership_node *b);
/* HD_INVALID, naming the other and what differs: no common version, or another model under the same name. */
hd_status membership_fits(const membership_node *node, const membership_node *other, hd_error *error);

/* A node as JSON, malloc'ed; and back (HD_CORRUPT with the field's name). Fields that are not known are passed over. */
char *membership_node_encode(const membership_node *node);
hd_status membership_node_decode(const char *text, size_t bytes, membership_node *node, hd_error *error);

typedef struct membership_handlers {                             /* each may be NULL */
    void (*on_node)(void *context, const membership_node *node); /* new, or changed */
    void (*on_gone)(void *context, const char *id);
    void (*on_connection)(void *context, bool is_connected); /* to where the view comes from */
} membership_handlers;

typedef struct membership membership;
typedef struct membership_ops {
    const char *name;
    void (*close)(membership *self); /* what was announced vanishes, soon */
    /* Once: the view so far, then every change. */
    hd_status (*follow)(membership *self, const membership_handlers *handlers, void *context);
    /* What this process is, from now on; again when its state changes. */
    hd_status (*announce)(membership *self, const membership_node *node);
} membership_ops;
struct membership {
    const membership_ops *ops;
};

typedef struct membership_etcd_config {
    etcd_config etcd;
    const char *cluster;
    uint64_t lease_s; /* 0: MEMBERSHIP_LEASE_S */
} membership_etcd_config;
hd_status membership_etcd_open(const membership_etcd_config *config, rpc_queue *queue, membership **out,
                               hd_error *error);
/* Before announcing, on a thread that may wait: HD_INVALID where the node does not fit to the others, or its id
 * is another's; otherwise what kept etcd from answering. */
hd_status membership_check_join(const membership_etcd_config *config, const membership_node *node, uint64_t deadline_ms,
                                hd_error *error);

/* In process: what one member of a hub announces, all that follow see. A static list is a hub filled before. */
typedef struct membership_hub membership_hub;
hd_status membership_hub_open(membership_hub **out);
void membership_hub_close(membership_hub *hub); /* its members are closed; accepts NULL */
void membership_hub_put(membership_hub *hub, const membership_node *node);
void membership_hub_remove(membership_hub *hub, const char *id);
hd_status membership_inproc_open(membership_hub *hub, membership **out);

/* The nodes of a list, [NAME=]ROLE@HOST:PORT with commas between, for a hub; without a name it is the address. What
 * they are (models, memory) is learnt when they are connected to. HD_INVALID: the error names what is wrong with which.
 * */
#define MEMBERSHIP_STATIC_MAX 128u
hd_status membership_static_read(const char *list, membership_node *nodes, uint32_t nodes_max, uint32_t *count,
                                 hd_error *error);

#endif
