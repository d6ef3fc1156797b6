/* cluster.h - a toy model over several engines in this process, beside the same toy over one.
 *
 * The two are given the same work; every output has to have the same bits. */
#ifndef TESTS_ATTENTION_NODE_CLUSTER_H
#define TESTS_ATTENTION_NODE_CLUSTER_H

#include "attention-node/sharded.h"
#include "tests/attention-node/toy.h"

#define CLUSTER_NODES_MAX 8u

typedef struct cluster_shape {
    uint32_t lanes, nodes; /* heads are cut into so many lanes; nodes in all, taking turns */
    uint32_t replicas;
    uint64_t node_bytes;
    uint64_t range_min;
} cluster_shape;

typedef struct cluster {
    toy one;  /* the single engine */
    toy many; /* its attention is the sharded one */
    cluster_shape shape;
    attention_stream streams[2 * TOY_LAYERS_MAX];
    attention_layer layers[TOY_LAYERS_MAX];
    attention *nodes[CLUSTER_NODES_MAX]; /* the sharded attention's */
} cluster;

void cluster_open(cluster *c, const toy_shape *toy, const cluster_shape *shape);
void cluster_close(cluster *c);
/* One more node of that lane; its index. */
uint32_t cluster_add_node(cluster *c, uint32_t lane, uint64_t node_bytes);
/* Gives `other`, a copy of c, a sharded attention of its own over c's engines, which has to be closed before c is. */
void cluster_attach_second(cluster *c, cluster *other);
/* A sequence on both; how many tokens both have of it. */
uint64_t cluster_sequence_open(cluster *c, toy_sequence *s, uint64_t reuse_max);
void cluster_sequence_close(cluster *c, toy_sequence *s, bool keep);
/* The same step on both, and the same bits. */
void cluster_step(cluster *c, const toy_rows *rows, uint32_t rows_count);
void cluster_run(cluster *c, toy_sequence *s, uint64_t first, uint64_t count, uint64_t chunk);

#endif
