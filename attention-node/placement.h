/* placement.h - where a sequence's keys and values lie: a versioned map from (position range, head range) to nodes.
 *
 * Heads first: a node keeps one range of the KV heads, and the nodes of one head range are a lane. The lanes together
 * have every head once. Within a lane, a sequence lies whole on one node, or in ranges of positions that follow each
 * other, each an aligned power of two of groups (attention.h, rule 6).
 *   1. Rows are in order of lane, then position. Each lane's rows begin at 0 and leave no gap; a whole row is its
 *      lane's only one.
 *   2. A row has up to PLACEMENT_REPLICAS_MAX different nodes with the same bytes; the first one answers.
 *   3. A node has at most PLACEMENT_SHARE_MAX rows of a sequence, because each is asked about every row of a step.
 *   4. Every change makes a new version.
 * A sequence that reuses a prefix begins with the rows that the prefix lies in (placement_inherit), and place gives the
 * rest to the nodes with the most room.
 * Threads: a value. */
#ifndef ATTENTION_NODE_PLACEMENT_H
#define ATTENTION_NODE_PLACEMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

#define PLACEMENT_NODES_MAX 64u
#define PLACEMENT_ROWS_MAX 64u
#define PLACEMENT_REPLICAS_MAX 3u
#define PLACEMENT_SHARE_MAX 4u
#define PLACEMENT_TOKENS_MAX ((uint64_t)1 << 62) /* the end of a range that holds so many is a number still */

typedef struct placement_heads {
    uint32_t first, count; /* of KV heads */
} placement_heads;

typedef struct placement_row {
    uint64_t first_position, end_position; /* 0 and 0: whole */
    placement_heads heads;
    uint32_t node_count;
    uint32_t nodes[PLACEMENT_REPLICAS_MAX];
    /* Which range of its lane it is: the first is 0. Fixed for as long as the sequence lives: nodes know the range by
     * it. */
    uint32_t ordinal;
} placement_row;

typedef struct placement {
    uint64_t version;
    uint32_t row_count;
    placement_row rows[PLACEMENT_ROWS_MAX];
} placement;

/* What place knows of a node. */
typedef struct placement_node {
    placement_heads heads;
    bool is_usable; /* ready: neither lost nor draining */
    uint64_t free_tokens, total_tokens;
} placement_node;

typedef struct placement_request {
    const placement_node *nodes;
    uint32_t node_count;
    uint32_t kv_heads;
    uint64_t tokens_max; /* more than PLACEMENT_TOKENS_MAX never fit */
    uint64_t range_min;  /* positions: sequences up to so many lie whole where a node has the room. A power of two */
    uint32_t replicas;   /* of each row, at least 1; fewer where a lane has not so many nodes */
    bool is_whole_only;  /* it cannot be split by positions */
} placement_request;

/* Completes a map, empty or with rows that stay as they are, until every lane has tokens_max positions. HD_FULL: no
 * room now, or no node for a head. HD_INVALID: there would be none if everything were empty, or the nodes do not have
 * every head. Both change nothing and say the numbers. */
hd_status placement_place(placement *map, const placement_request *request, hd_error *error);

/* One more row of that lane, on nodes that have the next `tokens` tokens of a prefix: the range that place would make
 * there, or as much more as the prefix has. False: no room there, or no such range is aligned. */
bool placement_inherit(placement *map, const placement_request *request, placement_heads heads, const uint32_t *nodes,
                       uint32_t node_count, uint64_t tokens);
/* A row that a node was found to have, in any order: a row of its own, or one more node of the one that is there.
 * False: the map is full, or has another range under that ordinal. */
bool placement_put(placement *map, const placement_row *found);
/* How many rows of the lane follow each other from the start, each with a node and with its place's ordinal. */
uint32_t placement_whole_rows(const placement *map, placement_heads heads);

/* A node's rows go to another one, or go away (their other nodes have them); false: nothing changed. */
bool placement_move(placement *map, uint32_t row, uint32_t from, uint32_t to);
/* One more node has the row's bytes; false: it had them, or there are PLACEMENT_REPLICAS_MAX. */
bool placement_add(placement *map, uint32_t row, uint32_t node);
/* One of the row's nodes goes away, unless it is the only one. */
bool placement_drop_from(placement *map, uint32_t row, uint32_t node);
/* Takes a lost node off. True: every row still has a node. */
bool placement_drop(placement *map, uint32_t node);
/* Rows of every lane that begin at or after position go away, but for the first. */
void placement_cut(placement *map, uint64_t position);
void placement_remove_row(placement *map, uint32_t row);

bool placement_row_is_whole(const placement_row *row);
bool placement_row_has(const placement_row *row, uint32_t node);
/* How far the lane's rows reach; UINT64_MAX with a whole one. */
uint64_t placement_lane_end(const placement *map, placement_heads heads);

/* The different head ranges of usable nodes, ascending. HD_FULL: a head has no node now. HD_INVALID: one has two
 * ranges. */
hd_status placement_lanes(const placement_request *request, placement_heads *lanes, uint32_t *lane_count,
                          hd_error *error);

#endif
