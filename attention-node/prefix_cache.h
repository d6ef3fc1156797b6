/* prefix_cache.h - sealed blocks by identity, and the order in which those that nobody holds are given up.
 *
 *   1. A block is found by identity, and returned only when scope, parent and all 128 tokens are the asked-for ones.
 *      Since the parent was found the same way, the whole prefix is the same, whatever the hash does.
 *   2. Sequences hold prefixes whole and retire their last block first, so the oldest block of a class has no children
 *      that could still be found, and evicting it makes nothing else unreachable. (A block whose parent went some other
 *      way is not found any more, because the parent's name is stale; it ages out.)
 *   3. Two classes, by retention: RETAIN_EARLY is evicted before RETAIN_KEPT; in a class, the oldest first.
 * Memory is fixed; links lie in arrays beside the blocks. Threads: one. */
#ifndef ATTENTION_NODE_PREFIX_CACHE_H
#define ATTENTION_NODE_PREFIX_CACHE_H

#include "attention-node/block_pool.h"

typedef struct prefix_list {
    uint32_t first, last;
} prefix_list;

typedef struct prefix_links {
    uint32_t chain;          /* the next block of the same bucket */
    uint32_t previous, next; /* of its list, while nobody holds it */
} prefix_links;

typedef struct prefix_cache {
    block_pool *pool;
    uint32_t *buckets; /* [bucket_count] */
    uint32_t bucket_count;
    prefix_links *links; /* [block_count] */
    prefix_list early, kept;
    uint32_t retired_count;
} prefix_cache;

uint64_t prefix_cache_table_bytes(uint32_t block_count);
void prefix_cache_init(prefix_cache *cache, block_pool *pool, hd_arena *arena);

/* The block with these tokens after parent (BLOCK_NONE at the start of a sequence), or BLOCK_NONE. */
block_name prefix_cache_find(const prefix_cache *cache, const identity *id, const identity_scope *scope,
                             block_name parent, const uint32_t token_ids[HD_BLOCK_TOKENS]);
/* The block of that identity, whatever it has; BLOCK_NONE. */
block_name prefix_cache_find_identity(const prefix_cache *cache, const identity *id);
/* A sealed block that is held. False, and nothing done, when another block of that identity is there already. */
bool prefix_cache_insert(prefix_cache *cache, block_name block);
/* Out of the cache; not while it is retired. */
void prefix_cache_remove(prefix_cache *cache, block_name block);

/* The last sequence let go of it: from now on it may be the oldest. And back, when a sequence takes it up. */
void prefix_cache_retire(prefix_cache *cache, block_name block);
/* The same, and it is the next to give up. */
void prefix_cache_retire_first(prefix_cache *cache, block_name block);
void prefix_cache_revive(prefix_cache *cache, block_name block);
/* Takes the block to give up next out of the cache; BLOCK_NONE when every cached block is held. */
block_name prefix_cache_take_oldest(prefix_cache *cache);

#endif
