/* extent_table.c - extents by the longest run of free slots. */
#include "attention-node/extent_table.h"

#include <assert.h>

#define EXTENT_NONE UINT32_MAX

static uint32_t extent_count_of(uint32_t slot_count) {
    return (slot_count + EXTENT_BLOCKS - 1) / EXTENT_BLOCKS;
}

uint64_t extent_table_bytes(uint32_t slot_count) {
    return HD_ALIGN_UP(extent_count_of(slot_count) * sizeof(block_extent), (uint64_t)HD_CACHE_LINE);
}

static uint32_t longest_run(uint32_t mask) {
    uint32_t length = 0;
    for (; mask != 0; mask &= mask >> 1) length++;
    return length;
}

static void list_extent(extent_table *table, uint32_t index) {
    block_extent *e = &table->extents[index];
    e->longest_run = longest_run(e->free & ~e->claimed);
    e->previous = EXTENT_NONE;
    e->next = table->buckets[e->longest_run];
    if (e->next != EXTENT_NONE) table->extents[e->next].previous = index;
    table->buckets[e->longest_run] = index;
}

static void unlist_extent(extent_table *table, uint32_t index) {
    block_extent *e = &table->extents[index];
    if (e->previous != EXTENT_NONE) table->extents[e->previous].next = e->next;
    else table->buckets[e->longest_run] = e->next;
    if (e->next != EXTENT_NONE) table->extents[e->next].previous = e->previous;
}

static void set_extent(extent_table *table, uint32_t index, uint32_t free, uint32_t claimed) {
    block_extent *e = &table->extents[index];
    assert((claimed & ~free) == 0);
    bool is_moving = longest_run(free & ~claimed) != e->longest_run;
    if (is_moving) unlist_extent(table, index);
    e->free = free;
    e->claimed = claimed;
    if (is_moving) list_extent(table, index);
}

/* The first `length` slots of the first run that is so long. */
static uint32_t run_of(uint32_t mask, uint32_t length) {
    uint32_t starts = mask;
    for (uint32_t i = 1; i < length; i++) starts &= mask >> i;
    assert(starts != 0);
    return ((1u << length) - 1) << __builtin_ctz(starts);
}

/* Claims a run for `wanted` slots, or as long a one as there is. False when every free slot is claimed already. */
static bool claim_run(extent_table *table, block_claim *claim, uint32_t wanted) {
    uint32_t length = wanted < EXTENT_BLOCKS ? wanted : EXTENT_BLOCKS, bucket = length;
    while (bucket <= EXTENT_BLOCKS && table->buckets[bucket] == EXTENT_NONE) bucket++;
    if (bucket > EXTENT_BLOCKS) {
        for (bucket = length - 1; bucket > 0 && table->buckets[bucket] == EXTENT_NONE; bucket--) {}
        if (bucket == 0) return false;
        length = bucket;
    }
    uint32_t index = table->buckets[bucket];
    block_extent *e = &table->extents[index];
    *claim = (block_claim){.extent = index, .slots = run_of(e->free & ~e->claimed, length)};
    set_extent(table, index, e->free, e->claimed | claim->slots);
    return true;
}

void extent_table_drop(extent_table *table, block_claim *claim) {
    if (claim->slots == 0) return;
    block_extent *e = &table->extents[claim->extent];
    set_extent(table, claim->extent, e->free, e->claimed & ~claim->slots);
    claim->slots = 0;
}

static bool find_any_free(const extent_table *table, block_claim *claim) {
    for (uint32_t i = 0; i < table->extent_count; i++) {
        if (table->extents[i].free == 0) continue;
        *claim = (block_claim){.extent = i, .slots = table->extents[i].free & -table->extents[i].free};
        return true;
    }
    return false;
}

uint32_t extent_table_take(extent_table *table, block_claim *claim, uint32_t wanted) {
    assert(wanted > 0);
    /* Of a claim, what others had to take is gone. */
    if (claim->slots != 0) claim->slots &= table->extents[claim->extent].claimed;
    if (claim->slots == 0 && !claim_run(table, claim, wanted) && !find_any_free(table, claim)) return EXTENT_SLOT_NONE;
    uint32_t place = (uint32_t)__builtin_ctz(claim->slots);
    claim->slots &= claim->slots - 1;
    uint32_t slot = claim->extent * EXTENT_BLOCKS + place;
    extent_table_take_slot(table, slot);
    return slot;
}

void extent_table_take_slot(extent_table *table, uint32_t slot) {
    uint32_t index = slot / EXTENT_BLOCKS, bit = 1u << slot % EXTENT_BLOCKS;
    const block_extent *e = &table->extents[index];
    assert((e->free & bit) != 0);
    set_extent(table, index, e->free & ~bit, e->claimed & ~bit);
    table->free_count--;
}

void extent_table_give(extent_table *table, uint32_t slot) {
    uint32_t index = slot / EXTENT_BLOCKS, bit = 1u << slot % EXTENT_BLOCKS;
    const block_extent *e = &table->extents[index];
    assert((e->free & bit) == 0);
    set_extent(table, index, e->free | bit, e->claimed);
    table->free_count++;
}

void extent_table_init(extent_table *table, uint32_t slot_count, hd_arena *arena) {
    *table =
        (extent_table){.extent_count = extent_count_of(slot_count), .slot_count = slot_count, .free_count = slot_count};
    table->extents = hd_arena_take(arena, table->extent_count * sizeof(*table->extents));
    assert(table->extents != NULL);
    for (uint32_t i = 0; i <= EXTENT_BLOCKS; i++) table->buckets[i] = EXTENT_NONE;
    for (uint32_t i = table->extent_count; i-- > 0;) { /* the first extent is listed last, so it is taken first */
        uint32_t first = i * EXTENT_BLOCKS,
                 slots = slot_count - first < EXTENT_BLOCKS ? slot_count - first : EXTENT_BLOCKS;
        table->extents[i] = (block_extent){.free = (1u << slots) - 1};
        list_extent(table, i);
    }
}
