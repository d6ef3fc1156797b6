/* block_pool.c - extents by the longest run of free slots, so that a sequence finds room for what it is going to need.
 *
 * A sequence that expects n more blocks takes the extent whose longest free run is the smallest that holds min(n, 16),
 * claims that run, and takes the next blocks from its claim. Short sequences thus fill the holes and leave whole
 * extents to long ones. Claims are wishes: when nothing else is free, a claimed slot is taken by whoever needs it. */
#include "attention-node/block_pool.h"

#include <assert.h>
#include <xxhash.h>

#define EXTENT_NONE UINT32_MAX

static uint32_t extent_count_of(uint32_t block_count) {
    return (block_count + EXTENT_BLOCKS - 1) / EXTENT_BLOCKS;
}

static uint32_t page_count_of(const attention_layer_table *table) {
    uint32_t pages = 0;
    for (uint32_t i = 0; i < table->stream_count; i++) {
        if (attention_stream_page_bytes(&table->streams[i]) != 0) pages += table->streams[i].heads;
    }
    return pages;
}

static uint64_t aligned(uint64_t bytes) {
    return HD_ALIGN_UP(bytes, (uint64_t)HD_CACHE_LINE);
}

uint64_t block_pool_table_bytes(const attention_layer_table *table, uint32_t block_count) {
    return block_layout_table_bytes(table) + aligned(block_count * sizeof(block_record)) +
           aligned((uint64_t)block_count * page_count_of(table) * sizeof(uint64_t)) +
           aligned(extent_count_of(block_count) * sizeof(block_extent));
}

uint64_t block_pool_payload_bytes(const attention_layer_table *table, uint32_t block_count) {
    return attention_layer_table_block_bytes(table) * block_count;
}

/* ---- Extents ---- */

static uint32_t longest_run(uint32_t mask) {
    uint32_t length = 0;
    for (; mask != 0; mask &= mask >> 1) length++;
    return length;
}

static void list_extent(block_pool *pool, uint32_t index) {
    block_extent *e = &pool->extents[index];
    e->longest_run = longest_run(e->free & ~e->claimed);
    e->previous = EXTENT_NONE;
    e->next = pool->buckets[e->longest_run];
    if (e->next != EXTENT_NONE) pool->extents[e->next].previous = index;
    pool->buckets[e->longest_run] = index;
}

static void unlist_extent(block_pool *pool, uint32_t index) {
    block_extent *e = &pool->extents[index];
    if (e->previous != EXTENT_NONE) pool->extents[e->previous].next = e->next;
    else pool->buckets[e->longest_run] = e->next;
    if (e->next != EXTENT_NONE) pool->extents[e->next].previous = e->previous;
}

static void set_extent(block_pool *pool, uint32_t index, uint32_t free, uint32_t claimed) {
    block_extent *e = &pool->extents[index];
    assert((claimed & ~free) == 0);
    bool is_moving = longest_run(free & ~claimed) != e->longest_run;
    if (is_moving) unlist_extent(pool, index);
    e->free = free;
    e->claimed = claimed;
    if (is_moving) list_extent(pool, index);
}

/* The first `length` slots of the first run that is so long. */
static uint32_t run_of(uint32_t mask, uint32_t length) {
    uint32_t starts = mask;
    for (uint32_t i = 1; i < length; i++) starts &= mask >> i;
    assert(starts != 0);
    return ((1u << length) - 1) << __builtin_ctz(starts);
}

/* Claims a run for `wanted` blocks, or as long a one as there is. False when every free slot is claimed already. */
static bool claim_run(block_pool *pool, block_claim *claim, uint32_t wanted) {
    uint32_t length = wanted < EXTENT_BLOCKS ? wanted : EXTENT_BLOCKS, bucket = length;
    while (bucket <= EXTENT_BLOCKS && pool->buckets[bucket] == EXTENT_NONE) bucket++;
    if (bucket > EXTENT_BLOCKS) {
        for (bucket = length - 1; bucket > 0 && pool->buckets[bucket] == EXTENT_NONE; bucket--) {}
        if (bucket == 0) return false;
        length = bucket;
    }
    uint32_t index = pool->buckets[bucket];
    block_extent *e = &pool->extents[index];
    *claim = (block_claim){.extent = index, .slots = run_of(e->free & ~e->claimed, length)};
    set_extent(pool, index, e->free, e->claimed | claim->slots);
    return true;
}

void block_pool_claim_drop(block_pool *pool, block_claim *claim) {
    if (claim->slots == 0) return;
    block_extent *e = &pool->extents[claim->extent];
    set_extent(pool, claim->extent, e->free, e->claimed & ~claim->slots);
    claim->slots = 0;
}

static bool find_any_free(const block_pool *pool, block_claim *claim) {
    for (uint32_t i = 0; i < pool->extent_count; i++) {
        if (pool->extents[i].free == 0) continue;
        *claim = (block_claim){.extent = i, .slots = pool->extents[i].free & -pool->extents[i].free};
        return true;
    }
    return false;
}

block_name block_pool_take(block_pool *pool, block_claim *claim, uint32_t wanted) {
    assert(wanted > 0);
    /* Of a claim, what others had to take is gone. */
    if (claim->slots != 0) claim->slots &= pool->extents[claim->extent].claimed;
    if (claim->slots == 0 && !claim_run(pool, claim, wanted) && !find_any_free(pool, claim)) return BLOCK_NONE;
    uint32_t slot = (uint32_t)__builtin_ctz(claim->slots), bit = 1u << slot;
    claim->slots &= ~bit;
    block_extent *e = &pool->extents[claim->extent];
    set_extent(pool, claim->extent, e->free & ~bit, e->claimed & ~bit);
    pool->free_count--;

    uint32_t index = claim->extent * EXTENT_BLOCKS + slot;
    block_record *record = &pool->records[index];
    assert(record->state == BLOCK_FREE);
    record->state = BLOCK_OPEN;
    record->references = 0;
    record->is_cached = false;
    record->retention = RETAIN_NOT;
    memset(pool->checksums + (uint64_t)index * pool->layout.page_count, 0, pool->layout.page_count * sizeof(uint64_t));
    return (block_name){index, record->generation};
}

void block_pool_free(block_pool *pool, block_name block) {
    block_record *record = block_pool_find(pool, block);
    assert(record != NULL && record->state != BLOCK_FREE && record->references == 0 && !record->is_cached);
    record->state = BLOCK_FREE;
    record->generation++;
    uint32_t index = block.index / EXTENT_BLOCKS;
    set_extent(pool, index, pool->extents[index].free | 1u << block.index % EXTENT_BLOCKS,
               pool->extents[index].claimed);
    pool->free_count++;
}

/* ---- Blocks ---- */

block_record *block_pool_find(const block_pool *pool, block_name block) {
    if (block.index >= pool->block_count) return NULL;
    block_record *record = &pool->records[block.index];
    return record->generation == block.generation && record->state != BLOCK_FREE ? record : NULL;
}

void block_pool_seal(block_pool *pool, block_name block, const identity *id, const identity_scope *scope,
                     block_name parent) {
    block_record *record = block_pool_get(pool, block);
    assert(record->generation == block.generation && record->state == BLOCK_OPEN);
    record->state = BLOCK_SEALED;
    record->id = *id;
    record->scope = *scope;
    record->parent = parent;
}

block_name block_pool_reopen(block_pool *pool, block_name block) {
    block_record *record = block_pool_get(pool, block);
    assert(record->generation == block.generation && record->state == BLOCK_SEALED && !record->is_cached);
    record->state = BLOCK_OPEN;
    record->generation++;
    return (block_name){block.index, record->generation};
}

static uint64_t page_checksum(const block_pool *pool, uint32_t block_index, uint32_t stream, uint32_t head) {
    uint64_t checksum =
        XXH3_64bits(block_pool_page(pool, block_index, stream, head), (size_t)pool->layout.streams[stream].page_bytes);
    return checksum != 0 ? checksum : 1;
}

static uint64_t *page_record(const block_pool *pool, uint32_t block_index, uint32_t stream, uint32_t head) {
    return &pool->checksums[(uint64_t)block_index * pool->layout.page_count + pool->layout.streams[stream].first_page +
                            head];
}

void block_pool_record_checksum(block_pool *pool, uint32_t block_index, uint32_t stream, uint32_t head) {
    *page_record(pool, block_index, stream, head) = page_checksum(pool, block_index, stream, head);
}

hd_status block_pool_verify(const block_pool *pool, block_name block) {
    if (block_pool_find(pool, block) == NULL) return HD_STALE;
    for (uint32_t stream = 0; stream < pool->layout.stream_count; stream++) {
        for (uint32_t head = 0; head < pool->layout.streams[stream].heads; head++) {
            uint64_t recorded = *page_record(pool, block.index, stream, head);
            if (recorded != 0 && recorded != page_checksum(pool, block.index, stream, head)) return HD_CORRUPT;
        }
    }
    return HD_OK;
}

hd_status block_pool_copy(block_pool *pool, block_name to, block_name from) {
    block_record *target = block_pool_get(pool, to), *source = block_pool_get(pool, from);
    assert(target->state == BLOCK_OPEN && source->state != BLOCK_FREE);
    if (source->state == BLOCK_SEALED && block_pool_verify(pool, from) != HD_OK) return HD_CORRUPT;
    memcpy(target->token_ids, source->token_ids, sizeof(target->token_ids));
    for (uint32_t stream = 0; stream < pool->layout.stream_count; stream++) {
        for (uint32_t head = 0; head < pool->layout.streams[stream].heads; head++) {
            memcpy(block_pool_page(pool, to.index, stream, head), block_pool_page(pool, from.index, stream, head),
                   (size_t)pool->layout.streams[stream].page_bytes);
        }
    }
    return HD_OK;
}

/* ---- Start and end ---- */

hd_status block_pool_init(block_pool *pool, const attention_layer_table *table, uint32_t block_count, hd_arena *arena) {
    assert(block_count > 0);
    uint64_t payload_bytes = block_pool_payload_bytes(table, block_count);
    void *payload = hd_region_map((size_t)payload_bytes);
    if (payload == NULL) return HD_NO_MEMORY;

    *pool = (block_pool){
        .block_count = block_count, .free_count = block_count, .payload = payload, .payload_bytes = payload_bytes};
    block_layout_init(&pool->layout, table, arena);
    pool->extent_count = extent_count_of(block_count);
    pool->records = hd_arena_take(arena, block_count * sizeof(*pool->records));
    pool->checksums = hd_arena_take(arena, (size_t)block_count * pool->layout.page_count * sizeof(uint64_t));
    pool->extents = hd_arena_take(arena, pool->extent_count * sizeof(*pool->extents));
    assert(pool->records != NULL && pool->checksums != NULL && pool->extents != NULL);

    for (uint32_t i = 0; i < block_count; i++)
        pool->records[i] = (block_record){.state = BLOCK_FREE, .parent = BLOCK_NONE};
    for (uint32_t i = 0; i <= EXTENT_BLOCKS; i++) pool->buckets[i] = EXTENT_NONE;
    for (uint32_t i = pool->extent_count; i-- > 0;) { /* the first extent is listed last, so it is taken first */
        uint32_t first = i * EXTENT_BLOCKS,
                 blocks = block_count - first < EXTENT_BLOCKS ? block_count - first : EXTENT_BLOCKS;
        pool->extents[i] = (block_extent){.free = (1u << blocks) - 1};
        list_extent(pool, i);
    }
    return HD_OK;
}

void block_pool_fini(block_pool *pool) {
    hd_region_unmap(pool->payload, (size_t)pool->payload_bytes);
    *pool = (block_pool){0};
}
