/* offload.h - a worker's attention nodes: the flags, and the attention that they come to.
 *
 * Threads: main thread. */
#ifndef CLI_OFFLOAD_H
#define CLI_OFFLOAD_H

#include "attention-node/node_set.h"
#include "cli/cluster.h"
#include "cli/node.h"

typedef struct offload_options {
    const char *attention;     /* auto, nodes, local */
    const char *micro_batches; /* auto, or a number */
    const char *prefill_at;    /* worker, nodes, auto */
    uint64_t replicas, lanes, range_tokens, answer_timeout, late, wait;
} offload_options;

#define OFFLOAD_OPTIONS_DEFAULTS                                                                                       \
    {                                                                                                                  \
        .attention = "auto", .micro_batches = "auto", .prefill_at = "auto", .replicas = 1, .lanes = 1,                 \
        .range_tokens = 65536, .answer_timeout = 120000, .late = 2000, .wait = 300000                                            \
    }

size_t offload_options_flags(offload_options *options, hd_flag *flags);
hd_status offload_options_check(const offload_options *options, hd_error *error);

typedef struct offload {
    const offload_options *options;
    const node_options *node;
    cluster *cluster;
    transport *wire; /* the step thread's */
    node_set *set;
} offload;

/* Makes node_open take the cluster's attention nodes in the place of an engine, unless the options or the cluster
 * (auto, and no attention node there) say that keys and values stay here. Everything is lent until offload_close. */
void offload_prepare(offload *offload, const offload_options *options, const node_options *node, cluster *cluster,
                     node_settings *settings);
/* After the node, before the cluster. Accepts a zeroed one. */
void offload_close(offload *offload);

#endif
