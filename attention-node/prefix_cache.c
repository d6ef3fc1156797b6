/* prefix_cache.c - chained buckets and two lists, all by block index. */
#include "attention-node/prefix_cache.h"

#include <assert.h>

#define LINK_NONE UINT32_MAX

static uint32_t bucket_count_of(uint32_t block_count) {
    uint32_t count = 16;
    while (count < block_count) count *= 2;
    return count;
}

uint64_t prefix_cache_table_bytes(uint32_t block_count) {
    uint64_t line = HD_CACHE_LINE;
    return HD_ALIGN_UP(bucket_count_of(block_count) * sizeof(uint32_t), line) +
           HD_ALIGN_UP(block_count * sizeof(prefix_links), line);
}

void prefix_cache_init(prefix_cache *cache, block_pool *pool, hd_arena *arena) {
    *cache = (prefix_cache){.pool = pool, .early = {LINK_NONE, LINK_NONE}, .kept = {LINK_NONE, LINK_NONE}};
    cache->bucket_count = bucket_count_of(pool->block_count);
    cache->buckets = hd_arena_take(arena, cache->bucket_count * sizeof(*cache->buckets));
    cache->links = hd_arena_take(arena, pool->block_count * sizeof(*cache->links));
    assert(cache->buckets != NULL && cache->links != NULL);
    for (uint32_t i = 0; i < cache->bucket_count; i++) cache->buckets[i] = LINK_NONE;
    for (uint32_t i = 0; i < pool->block_count; i++) cache->links[i] = (prefix_links){LINK_NONE, LINK_NONE, LINK_NONE};
}

static uint32_t *bucket_of(const prefix_cache *cache, const identity *id) {
    uint32_t hash;
    memcpy(&hash, id->bytes, sizeof(hash)); /* a keyed hash already */
    return &cache->buckets[hash & (cache->bucket_count - 1)];
}

static block_name name_of(const prefix_cache *cache, uint32_t index) {
    return index == LINK_NONE ? BLOCK_NONE : (block_name){index, cache->pool->records[index].generation};
}

block_name prefix_cache_find(const prefix_cache *cache, const identity *id, const identity_scope *scope,
                             block_name parent, const uint32_t token_ids[HD_BLOCK_TOKENS]) {
    for (uint32_t i = *bucket_of(cache, id); i != LINK_NONE; i = cache->links[i].chain) {
        const block_record *record = &cache->pool->records[i];
        if (!identity_is_equal(&record->id, id)) continue;
        bool is_same = identity_scope_is_equal(&record->scope, scope) && block_name_is_equal(record->parent, parent) &&
                       memcmp(record->token_ids, token_ids, sizeof(record->token_ids)) == 0;
        return is_same ? name_of(cache, i) : BLOCK_NONE;
    }
    return BLOCK_NONE;
}

block_name prefix_cache_find_identity(const prefix_cache *cache, const identity *id) {
    uint32_t i = *bucket_of(cache, id);
    while (i != LINK_NONE && !identity_is_equal(&cache->pool->records[i].id, id)) i = cache->links[i].chain;
    return name_of(cache, i);
}

bool prefix_cache_insert(prefix_cache *cache, block_name block) {
    block_record *record = block_pool_get(cache->pool, block);
    assert(record->state == BLOCK_SEALED && !record->is_cached && record->references > 0);
    uint32_t *bucket = bucket_of(cache, &record->id);
    for (uint32_t i = *bucket; i != LINK_NONE; i = cache->links[i].chain) {
        if (identity_is_equal(&cache->pool->records[i].id, &record->id)) return false;
    }
    cache->links[block.index].chain = *bucket;
    *bucket = block.index;
    record->is_cached = true;
    return true;
}

static prefix_list *list_of(prefix_cache *cache, const block_record *record) {
    return record->retention == RETAIN_KEPT ? &cache->kept : &cache->early;
}

void prefix_cache_retire(prefix_cache *cache, block_name block) {
    const block_record *record = block_pool_get(cache->pool, block);
    assert(record->is_cached && record->references == 0);
    prefix_list *list = list_of(cache, record);
    prefix_links *links = &cache->links[block.index];
    links->previous = list->last;
    links->next = LINK_NONE;
    if (list->last != LINK_NONE) cache->links[list->last].next = block.index;
    else list->first = block.index;
    list->last = block.index;
    cache->retired_count++;
}

void prefix_cache_retire_first(prefix_cache *cache, block_name block) {
    const block_record *record = block_pool_get(cache->pool, block);
    assert(record->is_cached && record->references == 0);
    prefix_list *list = list_of(cache, record);
    prefix_links *links = &cache->links[block.index];
    links->previous = LINK_NONE;
    links->next = list->first;
    if (list->first != LINK_NONE) cache->links[list->first].previous = block.index;
    else list->last = block.index;
    list->first = block.index;
    cache->retired_count++;
}

void prefix_cache_revive(prefix_cache *cache, block_name block) {
    const block_record *record = block_pool_get(cache->pool, block);
    assert(record->is_cached && record->references == 0);
    prefix_list *list = list_of(cache, record);
    const prefix_links *links = &cache->links[block.index];
    if (links->previous != LINK_NONE) cache->links[links->previous].next = links->next;
    else list->first = links->next;
    if (links->next != LINK_NONE) cache->links[links->next].previous = links->previous;
    else list->last = links->previous;
    cache->retired_count--;
}

static void unlink_bucket(prefix_cache *cache, block_name block) {
    block_record *record = block_pool_get(cache->pool, block);
    uint32_t *link = bucket_of(cache, &record->id);
    while (*link != block.index) link = &cache->links[*link].chain;
    *link = cache->links[block.index].chain;
    record->is_cached = false;
}

void prefix_cache_remove(prefix_cache *cache, block_name block) {
    assert(block_pool_get(cache->pool, block)->is_cached && block_pool_get(cache->pool, block)->references > 0);
    unlink_bucket(cache, block);
}

block_name prefix_cache_take_oldest(prefix_cache *cache) {
    block_name oldest = name_of(cache, cache->early.first != LINK_NONE ? cache->early.first : cache->kept.first);
    if (oldest.index == BLOCK_NONE.index) return BLOCK_NONE;
    prefix_cache_revive(cache, oldest);
    unlink_bucket(cache, oldest);
    return oldest;
}
