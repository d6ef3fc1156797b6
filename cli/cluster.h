/* cluster.h - what every node of a cluster has: the flags, a control loop, its place in the membership.
 *
 *   cluster_open --cluster_join--> announced --cluster_set_state--> ... --cluster_close--> gone for the others as well
 *
 * Threads: main thread. */
#ifndef CLI_CLUSTER_H
#define CLI_CLUSTER_H

#include "base/flags.h"
#include "proto/membership.h"

#define CLUSTER_DRAIN_MS 60000u

typedef struct cluster_options {
    const char *etcd, *nodes, *etcd_user, *etcd_password, *cluster, *node_id, *advertise;
    const char *tls_cert, *tls_key, *tls_ca;
    uint64_t drain_timeout; /* milliseconds */
} cluster_options;

#define CLUSTER_OPTIONS_DEFAULTS                                                                                       \
    { .cluster = "hadal", .drain_timeout = CLUSTER_DRAIN_MS }

/* Fills flags and returns how many. */
size_t cluster_options_flags(cluster_options *options, hd_flag *flags);
hd_status cluster_options_check(const cluster_options *options, hd_error *error);

typedef struct cluster {
    membership_etcd_config config;
    rpc_loop *loop;
    membership *membership;
    membership_hub *listed; /* of --nodes; NULL: etcd */
    rpc_tls *tls;           /* NULL: plain */
    membership_node node;
} cluster;

hd_status cluster_open(const cluster_options *options, const char *role, cluster *cluster, hd_error *error);
/* The rest of cluster->node has been set. Refused where it does not fit to those that are there; without an answer of
 * etcd it fails, for a node that nobody finds is no use. bound: the address that was really listened on. */
hd_status cluster_join(cluster *cluster, const cluster_options *options, const char *bound, hd_error *error);
void cluster_set_state(cluster *cluster, membership_state state); /* any thread */
/* Others have been told, if etcd answers. What used the loop has been closed. Accepts a zeroed one. */
void cluster_leave(cluster *cluster);
void cluster_close(cluster *cluster);

#endif
