/* block_store.c - the accounts over pool and cache. */
#include "attention-node/block_store.h"

#include <assert.h>

uint64_t block_store_table_bytes(const attention_layer_table *table, uint32_t block_count) {
    return block_pool_table_bytes(table, block_count) + prefix_cache_table_bytes(block_count);
}

hd_status block_store_init(block_store *store, const attention_layer_table *table, uint32_t block_count,
                           hd_arena *arena) {
    *store = (block_store){0};
    hd_status status = block_pool_init(&store->pool, table, block_count, arena);
    if (status == HD_OK) prefix_cache_init(&store->cache, &store->pool, arena);
    return status;
}

void block_store_fini(block_store *store) {
    block_pool_fini(&store->pool);
}

uint32_t block_store_available(const block_store *store) {
    return store->pool.block_count - store->held - store->reserved;
}

hd_status block_store_reserve(block_store *store, uint32_t count) {
    if (count > block_store_available(store)) return HD_FULL;
    store->reserved += count;
    return HD_OK;
}

void block_store_unreserve(block_store *store, uint32_t count) {
    assert(count <= store->reserved);
    store->reserved -= count;
}

static void evict(block_store *store, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        block_name oldest = prefix_cache_take_oldest(&store->cache);
        if (oldest.index == BLOCK_NONE.index) return;
        block_pool_free(&store->pool, oldest);
        store->evicted++;
    }
}

block_name block_store_take(block_store *store, block_claim *claim, uint32_t wanted) {
    assert(store->reserved > 0 && wanted > 0);
    /* Evict as many as the caller will need anyway, up to an extent: one at a time would hand out the slots of a
     * sequence that retired from its end in descending order, and the next scan would read backwards. */
    if (store->pool.free_count == 0) evict(store, wanted < EXTENT_BLOCKS ? wanted : EXTENT_BLOCKS);
    block_name block = block_pool_take(&store->pool, claim, wanted);
    assert(block.index != BLOCK_NONE.index);
    block_pool_get(&store->pool, block)->references = 1;
    store->reserved--;
    store->held++;
    return block;
}

hd_status block_store_share(block_store *store, block_name block) {
    block_record *record = block_pool_get(&store->pool, block);
    assert(record->generation == block.generation && record->state == BLOCK_SEALED);
    if (record->references == 0) {
        if (block_store_available(store) == 0) return HD_FULL;
        prefix_cache_revive(&store->cache, block);
        store->held++;
    }
    record->references++;
    return HD_OK;
}

void block_store_release(block_store *store, block_name block, block_retention retention) {
    block_record *record = block_pool_get(&store->pool, block);
    assert(record->generation == block.generation && record->references > 0);
    if (retention > record->retention) record->retention = retention;
    bool is_last = record->references == 1;
    if (is_last && record->is_cached && record->retention == RETAIN_NOT) prefix_cache_remove(&store->cache, block);
    record->references--;
    if (!is_last) return;
    store->held--;
    if (record->is_cached) prefix_cache_retire(&store->cache, block);
    else block_pool_free(&store->pool, block);
}

void block_store_seal_privately(block_store *store, block_name block, const identity *id, const identity_scope *scope,
                                block_name parent) {
    assert(block_pool_get(&store->pool, block)->references == 1);
    block_pool_seal(&store->pool, block, id, scope, parent);
}

block_name block_store_seal(block_store *store, block_name block, const identity *id, const identity_scope *scope,
                            block_name parent) {
    const block_record *record = block_pool_get(&store->pool, block);
    block_name other = prefix_cache_find(&store->cache, id, scope, parent, record->token_ids);
    if (other.index == BLOCK_NONE.index) {
        block_store_seal_privately(store, block, id, scope, parent);
        prefix_cache_insert(&store->cache, block);
        return block;
    }
    block_store_release(store, block, RETAIN_NOT); /* first, so that there is room to hold the other one */
    hd_status status = block_store_share(store, other);
    assert(status == HD_OK);
    (void)status;
    return other;
}

block_name block_store_reopen(block_store *store, block_name block) {
    block_record *record = block_pool_get(&store->pool, block);
    assert(record->references == 1);
    if (record->is_cached) prefix_cache_remove(&store->cache, block);
    record->retention = RETAIN_NOT;
    return block_pool_reopen(&store->pool, block);
}

void block_store_reset_cache(block_store *store) {
    for (;;) {
        block_name oldest = prefix_cache_take_oldest(&store->cache);
        if (oldest.index == BLOCK_NONE.index) return;
        block_pool_free(&store->pool, oldest);
    }
}
