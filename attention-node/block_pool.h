/* block_pool.h - the blocks of an attention node: a fixed number of them, their payload, and what is known of each.
 *
 *     FREE --take--> OPEN --seal--> SEALED --free--> FREE          SEALED --reopen--> OPEN --free--> FREE
 *
 *   1. All memory is there from init on. When every block is taken, take answers BLOCK_NONE; nothing grows.
 *   2. A name is an index and a generation. Freeing or reopening a block ends its generation, so an old name is found
 *      stale and never means another block.
 *   3. A sealed block is never written. It has an identity and a checksum per page; both lie beside the payload, which
 *      is K and V alone.
 *   4. The payload is finite wherever nothing was stored: zeros at first, and whoever stores the first token of a page
 *      in a block that was used before clears the page (what is left there may be another user's, and even NaN).
 *   5. Blocks that follow each other in a sequence lie in one extent of 16 where that is possible (block_claim).
 * Counting references and choosing what to free is block_store.h's. Threads: one, but for block_pool_page and
 * block_pool_record_checksum, which threads of a step may call for pages of their own. */
#ifndef ATTENTION_NODE_BLOCK_POOL_H
#define ATTENTION_NODE_BLOCK_POOL_H

#include "attention-node/block_layout.h"
#include "attention-node/identity.h"

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
    uint32_t token_ids[HD_BLOCK_TOKENS];
} block_record;

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

typedef struct block_pool {
    block_layout layout;
    uint32_t block_count, free_count;
    unsigned char *payload; /* extents, the last of them smaller */
    uint64_t payload_bytes;
    block_record *records; /* [block_count] */
    uint64_t *checksums;   /* [block_count][page_count]; 0 where none has been recorded */
    block_extent *extents; /* [extent_count] */
    uint32_t extent_count;
    uint32_t buckets[EXTENT_BLOCKS + 1]; /* lists of extents by longest_run */
} block_pool;

/* Bytes from the arena, and of payload, for so many blocks. */
uint64_t block_pool_table_bytes(const attention_layer_table *table, uint32_t block_count);
uint64_t block_pool_payload_bytes(const attention_layer_table *table, uint32_t block_count);
/* HD_NO_MEMORY leaves nothing to release; fini accepts a zeroed pool. */
hd_status block_pool_init(block_pool *pool, const attention_layer_table *table, uint32_t block_count, hd_arena *arena);
void block_pool_fini(block_pool *pool);

/* An open block, without references. wanted: how many the caller expects to take in all, this one included. */
block_name block_pool_take(block_pool *pool, block_claim *claim, uint32_t wanted);
void block_pool_claim_drop(block_pool *pool, block_claim *claim);
void block_pool_free(block_pool *pool, block_name block);
void block_pool_seal(block_pool *pool, block_name block, const identity *id, const identity_scope *scope,
                     block_name parent);
block_name block_pool_reopen(block_pool *pool, block_name block);
/* Tokens and payload of `from` to the open block `to`; HD_CORRUPT when from is sealed and its pages do not have their
 * checksums. */
hd_status block_pool_copy(block_pool *pool, block_name to, block_name from);

/* NULL for a stale name. */
block_record *block_pool_find(const block_pool *pool, block_name block);

static inline block_record *block_pool_get(const block_pool *pool, block_name block) {
    return &pool->records[block.index];
}

static inline void *block_pool_page(const block_pool *pool, uint32_t block_index, uint32_t stream, uint32_t head) {
    uint32_t extent = block_index / EXTENT_BLOCKS, first = extent * EXTENT_BLOCKS;
    uint32_t extent_blocks = pool->block_count - first < EXTENT_BLOCKS ? pool->block_count - first : EXTENT_BLOCKS;
    return pool->payload + first * pool->layout.block_bytes +
           block_layout_page(&pool->layout.streams[stream], head, block_index - first, extent_blocks);
}

/* Of a page that is complete. */
void block_pool_record_checksum(block_pool *pool, uint32_t block_index, uint32_t stream, uint32_t head);
/* HD_CORRUPT when a page of the block does not have the checksum that was recorded for it. */
hd_status block_pool_verify(const block_pool *pool, block_name block);

#endif
