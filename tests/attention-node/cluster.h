/* cluster.h - a toy model over several engines in this process, beside the same toy over one.
 *
 * The two are given the same work; every output has to have the same bits. */
#ifndef TESTS_ATTENTION_NODE_CLUSTER_H
#define TESTS_ATTENTION_NODE_CLUSTER_H

#include "attention-node/attention_service.h"
#include "attention-node/remote.h"
#include "attention-node/sharded.h"
#include "tests/attention-node/toy.h"

#define CLUSTER_NODES_MAX 8u

typedef enum { CLUSTER_ENGINES, CLUSTER_INPROC, CLUSTER_GRPC } cluster_wire;

/* An attention node of a cluster with wires. */
typedef struct cluster_server {
    hd_pool *pool;
    transport *transport, *pages;
    rpc_server *server; /* CLUSTER_GRPC */
    attention_service *service;
    char address[64], cold_directory[64];
} cluster_server;

typedef struct cluster_shape {
    uint32_t lanes, nodes; /* heads are cut into so many lanes; nodes in all, taking turns */
    uint32_t replicas;
    uint64_t node_bytes;
    uint64_t range_min;
    cluster_wire wire;
    uint64_t orphan_ms; /* with wires */
} cluster_shape;

typedef struct cluster_tiers {
    uint64_t warm_bytes, cold_bytes;  /* of a node, with wires; its cold tier has a directory of its own */
    uint64_t index_bytes;             /* of a node, with wires, and of the single engine */
    uint64_t stage_bytes;             /* prompts are staged in engines of so many bytes, one a lane; 0: they are not */
    uint32_t rows_max, sequences_max; /* of a step; 0: the toy's. The fewer, the less the nodes' tables take */
    uint64_t late_ms;                 /* as sharded.h */
} cluster_tiers;

typedef struct cluster {
    toy one;  /* the single engine */
    toy many; /* its attention is the sharded one */
    cluster_shape shape;
    cluster_tiers tiers;
    attention_stream streams[2 * TOY_LAYERS_MAX];
    attention_layer layers[TOY_LAYERS_MAX];
    uint32_t node_count;
    attention *nodes[CLUSTER_NODES_MAX];  /* the sharded attention's */
    attention *stages[CLUSTER_NODES_MAX]; /* [lanes], likewise the sharded attention's */
    inproc_hub *hub;
    transport *wire; /* the worker's end */
    cluster_server servers[CLUSTER_NODES_MAX];
} cluster;

void cluster_open(cluster *c, const toy_shape *toy, const cluster_shape *shape);
void cluster_open_with(cluster *c, const toy_shape *toy, const cluster_shape *shape, const cluster_tiers *tiers);
void cluster_close(cluster *c);
/* One more node of that lane; its index. */
uint32_t cluster_add_node(cluster *c, uint32_t lane, uint64_t node_bytes);
/* An attention node that nobody is linked to yet. */
void cluster_start_server(cluster *c, uint32_t index, uint64_t node_bytes);
/* Every sequence that is not there yet goes to another node, or comes back, with the next steps. */
void cluster_set_draining(cluster *c, uint32_t index, bool is_draining);
void cluster_kill_server(cluster *c, uint32_t index);
/* Flips a bit in every 4 KiB that the node has on disk. */
void cluster_flip_cold(const cluster *c, uint32_t index);
/* Gives `other`, a copy of c, a sharded attention of its own over c's nodes, which cluster_detach_second closes. */
void cluster_attach_second(cluster *c, cluster *other);
void cluster_detach_second(cluster *other);
/* A sequence on both; how many tokens both have of it. */
uint64_t cluster_sequence_open(cluster *c, toy_sequence *s, uint64_t reuse_max);
void cluster_sequence_close(cluster *c, toy_sequence *s, bool keep);
/* The same step on both, and the same bits. */
void cluster_step(cluster *c, const toy_rows *rows, uint32_t rows_count);
void cluster_run(cluster *c, toy_sequence *s, uint64_t first, uint64_t count, uint64_t chunk);

#endif
