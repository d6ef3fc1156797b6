/* sequence_table.c - chained hashing over a fixed array. */
#include "attention-node/sequence_table.h"

#include <assert.h>

static uint32_t bucket_count_of(uint32_t slot_count) {
    uint32_t count = 16;
    while (count < slot_count) count *= 2;
    return count;
}

uint64_t sequence_table_bytes(uint32_t slot_count) {
    uint64_t line = HD_CACHE_LINE;
    return HD_ALIGN_UP(slot_count * sizeof(sequence), line) + HD_ALIGN_UP(slot_count * sizeof(uint32_t), line) +
           HD_ALIGN_UP(bucket_count_of(slot_count) * sizeof(uint32_t), line);
}

void sequence_table_init(sequence_table *table, uint32_t slot_count, hd_arena *arena) {
    *table = (sequence_table){.slot_count = slot_count, .bucket_count = bucket_count_of(slot_count)};
    table->slots = hd_arena_take(arena, slot_count * sizeof(*table->slots));
    table->links = hd_arena_take(arena, slot_count * sizeof(*table->links));
    table->buckets = hd_arena_take(arena, table->bucket_count * sizeof(*table->buckets));
    assert(table->slots != NULL && table->links != NULL && table->buckets != NULL);
    for (uint32_t i = 0; i < table->bucket_count; i++) table->buckets[i] = 0;
    for (uint32_t i = slot_count; i-- > 0;) {
        table->links[i] = table->first_free;
        table->first_free = i + 1;
    }
}

static uint32_t *bucket_of(const sequence_table *table, uint64_t name) {
    uint64_t mixed = name * 0x9e3779b97f4a7c15u; /* names may be consecutive or share low bits */
    return &table->buckets[(mixed >> 32) & (table->bucket_count - 1)];
}

sequence *sequence_table_find(const sequence_table *table, uint64_t name) {
    for (uint32_t i = *bucket_of(table, name); i != 0; i = table->links[i - 1]) {
        if (table->slots[i - 1].name == name) return &table->slots[i - 1];
    }
    return NULL;
}

sequence *sequence_table_take(sequence_table *table, uint64_t name) {
    assert(sequence_table_find(table, name) == NULL);
    if (table->first_free == 0) return NULL;
    uint32_t slot = table->first_free - 1, *bucket = bucket_of(table, name);
    table->first_free = table->links[slot];
    table->links[slot] = *bucket;
    *bucket = slot + 1;
    table->open_count++;
    table->slots[slot] = (sequence){.name = name, .slot = slot};
    return &table->slots[slot];
}

void sequence_table_give(sequence_table *table, sequence *s) {
    uint32_t *link = bucket_of(table, s->name);
    while (*link != s->slot + 1) link = &table->links[*link - 1];
    *link = table->links[s->slot];
    table->links[s->slot] = table->first_free;
    table->first_free = s->slot + 1;
    table->open_count--;
}
