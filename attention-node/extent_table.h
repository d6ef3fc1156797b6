/* extent_table.h - which slots of which extents are free, and who means to take them next.
 *
 * Slots are places for blocks, 16 to an extent. Blocks that follow each other in a sequence lie in one extent where
 * that is possible: a sequence that expects n more takes the extent whose longest free run is the smallest that holds
 * min(n, 16), claims that run, and takes the next slots from its claim. Short sequences thus fill the holes and leave
 * whole extents to long ones. Claims are wishes: when nothing else is free, a claimed slot is taken by whoever needs
 * it. Threads: one. */
#ifndef ATTENTION_NODE_EXTENT_TABLE_H
#define ATTENTION_NODE_EXTENT_TABLE_H

#include "attention-node/block_layout.h"
#include "base/memory.h"

#define EXTENT_SLOT_NONE UINT32_MAX

/* Slots of one extent that a sequence means to take next. Others leave them alone while there is anything else. */
typedef struct block_claim {
    uint32_t extent;
    uint32_t slots; /* mask */
} block_claim;

typedef struct block_extent {
    uint32_t free, claimed; /* masks of slots; claimed is a subset of free */
    uint32_t previous, next;
    uint32_t longest_run; /* of free slots that nobody claims: the bucket that it is in */
} block_extent;

typedef struct extent_table {
    block_extent *extents;
    uint32_t extent_count, slot_count, free_count;
    uint32_t buckets[EXTENT_BLOCKS + 1]; /* lists of extents by longest_run */
} extent_table;

uint64_t extent_table_bytes(uint32_t slot_count);
void extent_table_init(extent_table *table, uint32_t slot_count, hd_arena *arena); /* every slot is free */

/* EXTENT_SLOT_NONE when none is free. wanted: how many the caller expects to take in all, this one included. */
uint32_t extent_table_take(extent_table *table, block_claim *claim, uint32_t wanted);
/* A slot that is known to be free. */
void extent_table_take_slot(extent_table *table, uint32_t slot);
void extent_table_give(extent_table *table, uint32_t slot);
void extent_table_drop(extent_table *table, block_claim *claim); /* nothing is claimed any more */

static inline bool extent_table_is_free(const extent_table *table, uint32_t slot) {
    return table->extents[slot / EXTENT_BLOCKS].free >> slot % EXTENT_BLOCKS & 1;
}

#endif
