/* block_layout.h - where the page of a stream and head lies among the blocks of an extent.
 *
 *     extent (16 blocks) -> unit -> head -> block of the extent -> page of the unit
 *
 * A unit is what is read together: a layer's keys and values, K then V, or one stream alone. So the pages of one layer
 * and head of 16 blocks that follow each other in a sequence are one run of memory, and a full scan reads memory in
 * order. A unit page is what moves between tiers: a unit's page of one head of one block.
 * Threads: a layout is a value, immutable after init. */
#ifndef ATTENTION_NODE_BLOCK_LAYOUT_H
#define ATTENTION_NODE_BLOCK_LAYOUT_H

#include "attention-node/layer_table.h"
#include "base/memory.h"
#include "kernels/ops.h"

#define EXTENT_BLOCKS 16u

typedef struct stream_place {
    uint64_t unit_offset; /* bytes of the units before this one, per block */
    uint64_t unit_bytes;  /* of a page of the unit: from one block's page to the next one's */
    uint64_t page_offset; /* of the stream's page in the unit's page */
    uint64_t page_bytes;  /* 0 for a state, which has no pages */
    uint32_t first_page;  /* number of its head 0 among all pages of a block */
    uint32_t first_unit;  /* number of its head 0 among all unit pages of a block */
    uint32_t heads;
} stream_place;

typedef struct unit_place {
    uint64_t offset; /* bytes of the unit pages before this one, per block */
    uint64_t bytes;
    kernel_page_shape shape; /* of plain keys and values */
    uint64_t value_offset;   /* of the values in the page */
    uint32_t row_bytes;      /* of a token row; 0: the unit is no pair of plain keys and values */
} unit_place;

typedef struct block_layout {
    const stream_place *streams; /* [stream_count], in the arena */
    const unit_place *units;     /* [unit_count], in the arena */
    uint32_t stream_count;
    uint32_t page_count;  /* of a block: streams x heads */
    uint32_t unit_count;  /* of a block: units x heads */
    uint64_t block_bytes; /* the sum of its pages */
} block_layout;

/* Of the largest unit page that a table can have. */
uint64_t block_layout_unit_bytes_max(const attention_layer_table *table);
uint64_t block_layout_table_bytes(const attention_layer_table *table);
void block_layout_init(block_layout *layout, const attention_layer_table *table, hd_arena *arena);

/* Offset of a page in an extent of extent_blocks blocks. */
static inline uint64_t block_layout_page(const stream_place *place, uint32_t head, uint32_t slot,
                                         uint32_t extent_blocks) {
    return place->unit_offset * extent_blocks + ((uint64_t)head * extent_blocks + slot) * place->unit_bytes +
           place->page_offset;
}

/* The same of a unit page, which has the pages of all its streams. */
static inline uint64_t block_layout_unit(const unit_place *place, uint32_t slot, uint32_t extent_blocks) {
    return place->offset * extent_blocks + slot * place->bytes;
}

#endif
