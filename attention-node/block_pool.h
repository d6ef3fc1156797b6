/* block_pool.h - the blocks of an attention node: a fixed number of them, frames of memory for their payload, and what
 * is known of each.
 *
 *     FREE --take--> OPEN --seal--> SEALED --free--> FREE          SEALED --reopen--> OPEN --free--> FREE
 *     resident (has a frame) --drop_frame--> elsewhere (its bytes are on the cold tier) --give_frame--> resident
 *
 *   1. All memory is there from init on. When every block or frame is taken, take answers BLOCK_NONE; nothing grows.
 *      There may be more blocks than frames; only a sealed block can be without one.
 *   2. A name is an index and a generation. Freeing or reopening a block ends its generation, so an old name is found
 *      stale and never means another block.
 *   3. A sealed block is never written. It has an identity and a checksum per page; both lie beside the payload, which
 *      is K and V alone.
 *   4. The payload is finite wherever nothing was stored: zeros at first, and whoever stores the first token of a page
 *      in a block that was used before clears the page (what is left there may be another user's, and even NaN).
 *   5. Blocks that follow each other in a sequence have frames in one extent of 16 where that is possible
 *      (extent_table.h). A block has the number of its frame where that is free, so while there are as many frames as
 *      blocks, the two are one.
 *   6. The payload may be a device's memory, and behind that pinned memory, which the device reads where it lies: then
 *      it is copied in a queue, nobody here reads it, pages have no checksums, and every extent is whole.
 * Counting references and choosing what to free is block_store.h's. Threads: one, but for block_pool_page and
 * block_pool_record_checksum, which threads of a step may call for pages of their own. */
#ifndef ATTENTION_NODE_BLOCK_POOL_H
#define ATTENTION_NODE_BLOCK_POOL_H

#include "attention-node/extent_table.h"
#include "attention-node/identity.h"
#include "kernels/device.h"

typedef struct block_name {
    uint32_t index, generation;
} block_name;

#define BLOCK_NONE ((block_name){UINT32_MAX, 0})

static inline bool block_name_is_equal(block_name a, block_name b) {
    return a.index == b.index && a.generation == b.generation;
}

typedef enum { BLOCK_FREE, BLOCK_OPEN, BLOCK_SEALED } block_state;

/* What to do with a block that nobody holds any more: the most that any sequence that held it has asked for. */
typedef enum {
    RETAIN_NOT,   /* free it */
    RETAIN_EARLY, /* prefix cache, but the work ended early: evict it before anything else */
    RETAIN_KEPT,  /* prefix cache */
} block_retention;

typedef struct block_record {
    uint32_t generation;
    block_state state;
    uint32_t references; /* sequences that hold it */
    bool is_cached;      /* found by its identity */
    block_retention retention;
    identity id; /* SEALED: of the chain up to here */
    identity_scope scope;
    block_name parent; /* the block before it when it was sealed; BLOCK_NONE for a sequence's first */
    uint32_t depth;    /* how many there were before it */
    uint32_t token_ids[HD_BLOCK_TOKENS];
} block_record;

#define FRAME_NONE UINT32_MAX

typedef struct block_pool {
    block_layout layout;
    uint32_t block_count, free_count; /* free_count: of blocks */
    unsigned char *payload;           /* extents of frames, the last of them smaller */
    uint64_t payload_bytes;
    kernel_queue *queue;   /* of the device whose memory the payload is; NULL: this process's */
    unsigned char *pinned; /* frames from payload_frames on; NULL: there are none */
    uint32_t payload_frames;
    block_record *records;              /* [block_count] */
    uint64_t *checksums;                /* [block_count][page_count]; 0 where none has been recorded */
    uint32_t *frame_of;                 /* [block_count], or FRAME_NONE */
    uint32_t *block_of;                 /* [frames.slot_count]: undefined for a free frame */
    uint32_t *free_blocks, *free_place; /* [block_count]: the free ones, and where in that list each is */
    extent_table frames;
} block_pool;

/* Bytes from the arena, and of payload, for so many blocks and frames. */
uint64_t block_pool_table_bytes(const attention_layer_table *table, uint32_t block_count, uint32_t frame_count);
uint64_t block_pool_payload_bytes(const attention_layer_table *table, uint32_t frame_count);
/* Where the payload is to lie. */
typedef struct block_memory {
    kernel_queue *queue;    /* in its device's memory, lent; NULL: in this process's */
    uint32_t pinned_frames; /* the last ones, in pinned memory; with a queue only */
} block_memory;

/* HD_NO_MEMORY leaves nothing to release; fini accepts a zeroed pool. frame_count <= block_count; with a queue frames
 * of both kinds are multiples of EXTENT_BLOCKS. */
hd_status block_pool_init(block_pool *pool, const attention_layer_table *table, uint32_t block_count,
                          uint32_t frame_count, block_memory memory, hd_arena *arena);
void block_pool_fini(block_pool *pool);

/* An open block with a frame, without references. wanted: how many the caller expects to take in all, this one
 * included. */
block_name block_pool_take(block_pool *pool, block_claim *claim, uint32_t wanted);
/* A sealed block without a frame, as the cold tier had it; BLOCK_NONE when there is no free block. */
block_name block_pool_adopt(block_pool *pool, const identity *id, const identity_scope *scope, block_name parent,
                            const uint32_t token_ids[HD_BLOCK_TOKENS]);
/* Of a sealed block: its frame is free now; and a free frame for it again, whose payload the caller then fills. */
void block_pool_drop_frame(block_pool *pool, block_name block);
void block_pool_give_frame(block_pool *pool, block_name block);
/* The frame of `from`, with the payload in it, is that of `to`, which has none, from now on. */
void block_pool_pass_frame(block_pool *pool, block_name from, block_name to);
void block_pool_claim_drop(block_pool *pool, block_claim *claim);
void block_pool_free(block_pool *pool, block_name block);
void block_pool_seal(block_pool *pool, block_name block, const identity *id, const identity_scope *scope,
                     block_name parent);
block_name block_pool_reopen(block_pool *pool, block_name block);
/* Tokens and payload of `from` to the open block `to`; HD_CORRUPT when from is sealed and its pages do not have their
 * checksums; HD_IO: the device failed. */
hd_status block_pool_copy(block_pool *pool, block_name to, block_name from);

/* NULL for a stale name. */
block_record *block_pool_find(const block_pool *pool, block_name block);

static inline block_record *block_pool_get(const block_pool *pool, block_name block) {
    return &pool->records[block.index];
}

static inline bool block_pool_is_resident(const block_pool *pool, uint32_t block_index) {
    return pool->frame_of[block_index] != FRAME_NONE;
}

/* Blocks of the extent that a frame lies in, and where that extent begins. */
static inline unsigned char *block_pool_extent(const block_pool *pool, uint32_t frame_index, uint32_t *extent_blocks) {
    uint32_t first = frame_index / EXTENT_BLOCKS * EXTENT_BLOCKS, left = pool->frames.slot_count - first;
    *extent_blocks = left < EXTENT_BLOCKS ? left : EXTENT_BLOCKS;
    if (first < pool->payload_frames) return pool->payload + first * pool->layout.block_bytes;
    return pool->pinned + (first - pool->payload_frames) * pool->layout.block_bytes;
}

/* Of a resident block. */
static inline void *block_pool_page(const block_pool *pool, uint32_t block_index, uint32_t stream, uint32_t head) {
    uint32_t frame_index = pool->frame_of[block_index], extent_blocks;
    unsigned char *extent = block_pool_extent(pool, frame_index, &extent_blocks);
    return extent + block_layout_page(&pool->layout.streams[stream], head, frame_index % EXTENT_BLOCKS, extent_blocks);
}

/* Of a frame. */
static inline void *block_pool_unit(const block_pool *pool, uint32_t frame_index, uint32_t unit) {
    uint32_t extent_blocks;
    unsigned char *extent = block_pool_extent(pool, frame_index, &extent_blocks);
    return extent + block_layout_unit(&pool->layout.units[unit], frame_index % EXTENT_BLOCKS, extent_blocks);
}

/* Of a page that is complete. */
void block_pool_record_checksum(block_pool *pool, uint32_t block_index, uint32_t stream, uint32_t head);
/* What was recorded for a page, or 0; and a checksum that was computed elsewhere. Of any bytes: never 0. */
uint64_t block_pool_recorded_checksum(const block_pool *pool, uint32_t block_index, uint32_t stream, uint32_t head);
void block_pool_set_checksum(block_pool *pool, uint32_t block_index, uint32_t stream, uint32_t head, uint64_t checksum);
uint64_t block_pool_checksum_of(const void *bytes, uint64_t byte_count);
/* HD_CORRUPT when a page of the block, which is resident, does not have the checksum that was recorded for it. */
hd_status block_pool_verify(const block_pool *pool, block_name block);

#endif
