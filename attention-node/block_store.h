/* block_store.h - who holds which block, what is promised, and what is given up when memory is needed.
 *
 *     total = free + retired (only the prefix cache has it) + held (by open sequences)
 *     held + reserved <= total, always
 *
 * Admission reserves; taking a block uses up one unit of the reservation and therefore never fails: by the invariant
 * there is a free block, or a retired one to evict. A shared block is held once, whoever holds it.
 * Threads: one. */
#ifndef ATTENTION_NODE_BLOCK_STORE_H
#define ATTENTION_NODE_BLOCK_STORE_H

#include "attention-node/block_pool.h"
#include "attention-node/prefix_cache.h"

typedef struct block_store {
    block_pool pool;
    prefix_cache cache;
    uint32_t held, reserved;
    uint64_t evicted; /* since init */
} block_store;

uint64_t block_store_table_bytes(const attention_layer_table *table, uint32_t block_count);
hd_status block_store_init(block_store *store, const attention_layer_table *table, uint32_t block_count,
                           hd_arena *arena);
void block_store_fini(block_store *store); /* accepts a zeroed store */

/* How many more blocks could be promised now. */
uint32_t block_store_available(const block_store *store);
hd_status block_store_reserve(block_store *store, uint32_t count); /* HD_FULL, and nothing reserved */
void block_store_unreserve(block_store *store, uint32_t count);

/* An open block with one reference, out of the caller's reservation. wanted: as block_pool_take. */
block_name block_store_take(block_store *store, block_claim *claim, uint32_t wanted);
/* One more reference to a sealed block. HD_FULL when nobody held it and everything else is promised. */
hd_status block_store_share(block_store *store, block_name block);
/* One reference less. With the last one, the block is freed, or retired if it is cached and somebody asked for its
 * retention. */
void block_store_release(block_store *store, block_name block, block_retention retention);

/* Seals a full block that the caller alone holds, and makes it findable. Where the cache has the same block already,
 * that one is returned with the caller's reference, and the caller's own is freed: equal tokens have equal bits. */
block_name block_store_seal(block_store *store, block_name block, const identity *id, const identity_scope *scope,
                            block_name parent);
/* Seals without making it findable. */
void block_store_seal_privately(block_store *store, block_name block, const identity *id, const identity_scope *scope,
                                block_name parent);
/* Makes a sealed block that the caller alone holds writable again, under a new name. */
block_name block_store_reopen(block_store *store, block_name block);

/* Gives up everything that nobody holds. */
void block_store_reset_cache(block_store *store);

#endif
