/* token_counts.c - entries in order of arrival, found through a table of indices at most half full. */
#include "worker/token_counts.h"

#include <assert.h>

#include "base/memory.h"

hd_status token_counts_init(token_counts *counts, uint64_t distinct_max) {
    if (distinct_max == 0) distinct_max = 1;
    assert(distinct_max < 1u << 30);
    uint32_t slot_count = 16;
    while (slot_count < 2 * distinct_max) slot_count *= 2;
    *counts = (token_counts){.slot_mask = slot_count - 1, .entries_max = (uint32_t)distinct_max};
    counts->entries = hd_alloc(distinct_max * sizeof(counts->entries[0]), HD_CACHE_LINE);
    counts->slots = hd_alloc_zeroed(slot_count * sizeof(counts->slots[0]), HD_CACHE_LINE);
    if (counts->entries != NULL && counts->slots != NULL) return HD_OK;
    token_counts_fini(counts);
    return HD_NO_MEMORY;
}

void token_counts_fini(token_counts *counts) {
    hd_free(counts->entries);
    hd_free(counts->slots);
    *counts = (token_counts){0};
}

static token_count *find_or_add(token_counts *counts, uint32_t token_id) {
    uint32_t slot = (token_id * 2654435769u) & counts->slot_mask; /* Fibonacci hashing: neighbouring ids spread out */
    while (counts->slots[slot] != 0) {
        token_count *entry = &counts->entries[counts->slots[slot] - 1];
        if (entry->token_id == token_id) return entry;
        slot = (slot + 1) & counts->slot_mask;
    }
    assert(counts->entry_count < counts->entries_max);
    counts->entries[counts->entry_count] = (token_count){.token_id = token_id};
    counts->slots[slot] = ++counts->entry_count;
    return &counts->entries[counts->entry_count - 1];
}

void token_counts_add_prompt(token_counts *counts, const uint32_t *token_ids, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) find_or_add(counts, token_ids[i]);
}

void token_counts_add_answer(token_counts *counts, uint32_t token_id) {
    find_or_add(counts, token_id)->answer_count++;
}
