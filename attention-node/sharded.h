/* sharded.h - an attention over several others: fans out by placement, and merges what they answer.
 *
 * Each node (an engine, or a remote one) has a range of the KV heads. Where a sequence lies is its placement. Every
 * node gets the rows that concern it, and all of them work at the same time where they are remote. Whole rows answer
 * with finished output for their heads; ranges of positions answer with partial results, which are merged here in the
 * order of the one tree (merge_tree.h), so that the bits are those of one engine.
 *   1. Opening and beginning a step reserve on every node or on none. All nodes begin a step at the same time, and end
 *      it so.
 *   2. On a node, range n of a sequence goes by a name that is a function of the caller's name and n (sharded_name),
 *      the same in every process.
 *   3. The first node of a row answers, the others keep the same bytes. When a node is lost, the others of its rows go
 *      on. A sequence with a row that nobody has any more gets HD_PEER_LOST, until it is opened again with a newer
 *      epoch: what is left of it is kept then, and the caller appends the rest again.
 *   4. What is open of a sequence that is new here (another process had it) is found by asking the nodes, and so is the
 *      prefix that it can reuse.
 *   5. Rows that one node has lost to its disk (attention.h, rule 7) no node keeps; the others of the step go on.
 *   6. Between two steps rows go to other nodes (handover.h): those of a node that leaves, and those that have fewer
 *      nodes than there are to be replicas, where another node has room. Nothing is computed again for that.
 * Nodes come and go between two steps. Threads: as attention.h. */
#ifndef ATTENTION_NODE_SHARDED_H
#define ATTENTION_NODE_SHARDED_H

#include "attention-node/attention.h"
#include "attention-node/placement.h"
#include "base/threads.h"
#include "kernels/ops.h"

/* A node's engine has to allow so many rows and sequences for each of the caller's, since it may have that many ranges
 * of one sequence. */
#define SHARDED_NODE_FACTOR PLACEMENT_SHARE_MAX

typedef struct sharded_config {
    attention_layer_table layers; /* all heads; copied */
    hd_dtype kv_dtype;
    uint32_t step_rows_max, sequences_max;
    uint64_t range_min; /* as placement.h */
    uint32_t replicas;
    /* With replicas: how much longer than the others a node may take before it is given up; its rows go on with those
     * that have the same, and are made again elsewhere, or there. 0: as long as it takes. */
    uint64_t late_ms;
    bool stage_where_faster;   /* prompts are staged only where this process computes more than their nodes */
    const kernel_ops *kernels; /* merges */
    hd_pool *pool;             /* likewise; idle while the caller waits */
    /* Before a sequence is opened and before a step begins: the time for nodes to come and go. NULL for none. */
    void (*tend)(void *context, attention *sharded);
    void *tend_context;
} sharded_config;

hd_status sharded_open(const sharded_config *config, attention **out, hd_error *error);

typedef struct sharded_node {
    const char *name;     /* for errors; copied */
    const char *address;  /* where other nodes fetch its pages; NULL: nowhere. Copied */
    attention *attention; /* the sharded attention's from now on: closed with it, or when the node is removed */
    placement_heads heads;
    /* Not a node of the cluster but an engine of this process, one a lane: it answers for prompts while they are
     * prefilled, as far as it has room for them, beside the nodes that keep them (sharded_stage.c). */
    bool is_stage;
} sharded_node;

/* HD_FULL: there are PLACEMENT_NODES_MAX. HD_INVALID: heads that the model does not have. */
hd_status sharded_add(attention *sharded, const sharded_node *node, uint32_t *index, hd_error *error);
/* A draining node gets nothing new. What one that is leaving keeps goes to other nodes, as far as these have room. */
void sharded_set_draining(attention *sharded, uint32_t index, bool is_draining);
void sharded_set_leaving(attention *sharded, uint32_t index, bool is_leaving);
/* The node is lost, or has nothing any more: what is on it is given up, and its attention closed. */
void sharded_remove(attention *sharded, uint32_t index);

uint64_t sharded_name(uint64_t sequence, uint32_t ordinal);
/* Whose link has broken is lost, though no step needs it now. Between two steps. */
void sharded_look(attention *sharded);
bool sharded_is_lost(const attention *sharded, uint32_t index);
bool sharded_is_late(const attention *sharded, uint32_t index); /* and lost for that */
const attention_layer_table *sharded_table(const attention *sharded); /* of all heads; its own copy */

typedef struct sharded_moves {
    uint64_t moved, repaired, failed; /* rows, since open */
    uint64_t longest_ns;              /* that a switch took, no step going on meanwhile */
} sharded_moves;
void sharded_moves_read(const attention *sharded, sharded_moves *moves);

/* Where an open sequence lies; NULL when it is not open. Until the next call. */
const placement *sharded_placement(const attention *sharded, uint64_t sequence);

#endif
