/* attend_plan.h - how the attention of one layer of a step is cut into pieces of work.
 *
 * A tile is some rows of one sequence; it ends with one output. An item is one call after another over consecutive
 * groups of blocks for the rows of one tile, or of several: sequences that share a prefix and stand next to each other
 * in the step are attended to over the shared groups together, so that those keys and values are read once for all of
 * them. Each item is done once per KV head.
 *   1. A tile that one item covers is finished by it. Otherwise its items are nodes of the merge tree (merge_tree.h),
 *      each leaves its partial in the plan's memory, and whoever completes the last of them merges. Cuts are where the
 *      tree has nodes, so bits do not depend on where the plan cuts, or whether.
 *   2. Long tiles are cut until every thread has about 16 items; items are handed out by ticket, costly ones first.
 *   3. Nothing is allocated; where there is no room for partials, the plan cuts less. But never less than groups_max
 *      asks for, which is what can be in memory at once of a context that is not; then items come in the order of their
 *      sequences and positions, so that those that read the same pages stand together.
 * Threads: built by the step thread; items are executed by any, each (item, head) once. */
#ifndef ATTENTION_NODE_ATTEND_PLAN_H
#define ATTENTION_NODE_ATTEND_PLAN_H

#include <stdatomic.h>

#include "attention-node/merge_tree.h"
#include "attention-node/run_table.h"
#include "base/memory.h"

typedef struct plan_span { /* one sequence's rows of the step */
    const kv_run *runs;    /* what they attend to */
    uint32_t run_count;
    uint32_t first_row, row_count; /* in the step; spans ascend, and rows between them may be left out */
    uint64_t first_position;
    bool is_range;   /* partial results are wanted */
    bool is_replica; /* none are; such spans stay out of the plan */
} plan_span;

typedef struct plan_shape { /* what of a layer decides how its work is cut */
    uint32_t kv_heads, group_size;
    uint64_t window;
    uint64_t groups_max; /* of an item, a power of two; 0: no bound */
} plan_shape;

typedef struct plan_tile {
    uint32_t span, first_row, row_count;
    uint64_t group_first, group_end;                           /* that any of its rows may see */
    uint32_t together;                                         /* tiles from this one on that share groups; 1: none */
    uint64_t shared_end;                                       /* the group behind those */
    uint32_t shared_first, shared_count, own_first, own_count; /* its items, in the order of the tree */
    uint32_t counter;
} plan_tile;

typedef struct plan_item {
    uint32_t first_tile, tile_count, first_row, row_count;
    uint64_t group_first, group_end;
    uint32_t level; /* the node of the tree that it makes */
    uint64_t index;
    bool is_whole;        /* its only tile has no other item */
    uint64_t partial_row; /* of KV head 0's first row; the other heads follow */
    uint64_t cost;
} plan_item;

typedef struct plan_limits {
    uint32_t rows_max, spans_max; /* of a step */
    uint32_t kv_heads_max, group_size_max;
    uint32_t tile_rows; /* rows of a kernel call, if one row's GQA group is not larger */
    uint32_t thread_count;
    uint32_t pieces_max; /* that groups_max may cut a tile into; 0: it is never set */
} plan_limits;

typedef struct attend_plan {
    plan_limits limits;
    plan_tile *tiles;
    uint32_t tile_count;
    plan_item *items;
    uint32_t *order; /* of items, costly ones first */
    uint32_t item_count, items_max;
    _Atomic uint32_t *counters; /* [tile][KV head]: items still to come; back at its start after each use */
    uint32_t counter_count;
    uint64_t partial_row_count, partial_rows_max;
    plan_shape shape;
    const plan_span *spans;
} attend_plan;

uint64_t attend_plan_table_bytes(const plan_limits *limits);
void attend_plan_init(attend_plan *plan, const plan_limits *limits, hd_arena *arena);
/* Kernel rows of the largest item, and of partials that the caller has memory for. */
uint32_t attend_plan_item_rows_max(const plan_limits *limits);
uint64_t attend_plan_partial_rows_max(const plan_limits *limits);

/* spans are borrowed until the next build. */
void attend_plan_build(attend_plan *plan, const plan_span *spans, uint32_t span_count, const plan_shape *shape);

/* Ticket -> item and KV head: heads one after the other, so that threads that run side by side read the same pages. */
static inline size_t attend_plan_ticket_count(const attend_plan *plan) {
    return (size_t)plan->item_count * plan->shape.kv_heads;
}
static inline const plan_item *attend_plan_item(const attend_plan *plan, size_t ticket, uint32_t *head) {
    *head = (uint32_t)(ticket / plan->item_count);
    return &plan->items[plan->order[ticket % plan->item_count]];
}

/* An item that is not whole is done for a head: true if it was the tile's last one, and the caller now merges. */
bool attend_plan_tile_done(attend_plan *plan, const plan_tile *tile, uint32_t head);

#endif
