/* state_store.c - a few large slots; there are tens of them, so everything is a scan. */
#include "attention-node/state_store.h"

#include <assert.h>
#include <string.h>

static uint32_t state_count_of(const attention_layer_table *table) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < table->stream_count; i++) count += attention_stream_state_bytes(&table->streams[i]) != 0;
    return count;
}

static uint64_t aligned(uint64_t bytes) {
    return HD_ALIGN_UP(bytes, (uint64_t)HD_CACHE_LINE);
}

uint64_t state_store_table_bytes(const attention_layer_table *table, uint32_t snapshot_count) {
    uint64_t states = state_count_of(table);
    return aligned(table->stream_count * sizeof(uint32_t)) + 2 * aligned(states * sizeof(uint64_t)) +
           aligned(snapshot_count * sizeof(state_snapshot)) + aligned(snapshot_count * states * sizeof(bool)) +
           snapshot_count * attention_layer_table_state_bytes(table);
}

void state_store_init(state_store *store, const attention_layer_table *table, uint32_t snapshot_count,
                      hd_arena *arena) {
    uint32_t states = state_count_of(table);
    *store = (state_store){.snapshot_count = snapshot_count, .state_count = states};
    store->state_of_stream = hd_arena_take(arena, table->stream_count * sizeof(*store->state_of_stream));
    store->offsets = hd_arena_take(arena, states * sizeof(*store->offsets));
    store->sizes = hd_arena_take(arena, states * sizeof(*store->sizes));
    store->snapshots = hd_arena_take(arena, snapshot_count * sizeof(*store->snapshots));
    store->is_saved = hd_arena_take(arena, (size_t)snapshot_count * states * sizeof(*store->is_saved));
    store->payload = hd_arena_take(arena, (size_t)(snapshot_count * attention_layer_table_state_bytes(table)));
    assert(store->state_of_stream != NULL && store->offsets != NULL && store->sizes != NULL &&
           store->snapshots != NULL && store->is_saved != NULL && store->payload != NULL);
    uint32_t state = 0;
    for (uint32_t i = 0; i < table->stream_count; i++) {
        uint64_t bytes = attention_stream_state_bytes(&table->streams[i]);
        store->state_of_stream[i] = bytes != 0 ? state : UINT32_MAX;
        if (bytes == 0) continue;
        store->offsets[state] = store->snapshot_bytes;
        store->sizes[state] = bytes;
        store->snapshot_bytes += bytes;
        state++;
    }
    for (uint32_t i = 0; i < snapshot_count; i++) store->snapshots[i] = (state_snapshot){.owner = STATE_OWNER_NONE};
}

static bool is_complete(const state_store *store, const state_snapshot *snapshot) {
    return snapshot->saved_count == store->state_count;
}

static state_snapshot *find(const state_store *store, uint32_t owner, uint64_t position) {
    for (uint32_t i = 0; i < store->snapshot_count; i++) {
        state_snapshot *s = &store->snapshots[i];
        if (s->owner == owner && (owner == STATE_OWNER_NONE || s->position == position)) return s;
    }
    return NULL;
}

static uint32_t count_of(const state_store *store, uint32_t owner) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < store->snapshot_count; i++) count += store->snapshots[i].owner == owner;
    return count;
}

static state_snapshot *oldest_of(const state_store *store, uint32_t owner, const state_snapshot *spared) {
    state_snapshot *oldest = NULL;
    for (uint32_t i = 0; i < store->snapshot_count; i++) {
        state_snapshot *s = &store->snapshots[i];
        if (s->owner == owner && s != spared && (oldest == NULL || s->position < oldest->position)) oldest = s;
    }
    return oldest;
}

static state_snapshot *replaceable(const state_store *store, uint32_t saver, const state_snapshot *spared) {
    state_snapshot *s = find(store, STATE_OWNER_NONE, 0);
    if (s == NULL) s = oldest_of(store, saver, spared);
    if (s != NULL) return s;
    uint32_t most = 0, richest = STATE_OWNER_NONE;
    for (uint32_t i = 0; i < store->snapshot_count; i++) {
        uint32_t count = count_of(store, store->snapshots[i].owner);
        if (count <= most) continue;
        most = count;
        richest = store->snapshots[i].owner;
    }
    assert(most > 1); /* as many snapshots as sequences, and the saver has none */
    return oldest_of(store, richest, spared);
}

static unsigned char *payload_of(const state_store *store, const state_snapshot *snapshot) {
    return store->payload + (uint64_t)(snapshot - store->snapshots) * store->snapshot_bytes;
}

static bool *flags_of(const state_store *store, const state_snapshot *snapshot) {
    return store->is_saved + (size_t)(snapshot - store->snapshots) * store->state_count;
}

static state_snapshot *start_snapshot(state_store *store, uint32_t owner, uint64_t position) {
    state_snapshot *s = replaceable(store, owner, NULL);
    *s = (state_snapshot){.owner = owner, .position = position};
    memset(flags_of(store, s), 0, store->state_count * sizeof(bool));
    return s;
}

hd_status state_store_save(state_store *store, uint32_t owner, uint64_t position, uint32_t stream, const void *bytes) {
    uint32_t state = store->state_of_stream[stream];
    if (state == UINT32_MAX) return HD_INVALID;
    state_snapshot *s = find(store, owner, position);
    if (s == NULL) s = start_snapshot(store, owner, position);
    memcpy(payload_of(store, s) + store->offsets[state], bytes, (size_t)store->sizes[state]);
    bool *is_saved = &flags_of(store, s)[state];
    s->saved_count += !*is_saved;
    *is_saved = true;
    return HD_OK;
}

hd_status state_store_load(const state_store *store, uint32_t owner, uint64_t position, uint32_t stream, void *bytes) {
    uint32_t state = store->state_of_stream[stream];
    if (state == UINT32_MAX) return HD_INVALID;
    const state_snapshot *s = find(store, owner, position);
    if (s == NULL || !is_complete(store, s)) return HD_NOT_FOUND;
    memcpy(bytes, payload_of(store, s) + store->offsets[state], (size_t)store->sizes[state]);
    return HD_OK;
}

uint64_t state_store_resumable(const state_store *store, uint32_t owner, uint64_t length) {
    if (store->state_count == 0) return length;
    uint64_t best = 0;
    for (uint32_t i = 0; i < store->snapshot_count; i++) {
        const state_snapshot *s = &store->snapshots[i];
        if (s->owner == owner && is_complete(store, s) && s->position <= length && s->position > best)
            best = s->position;
    }
    return best;
}

void state_store_truncate(state_store *store, uint32_t owner, uint64_t length) {
    for (uint32_t i = 0; i < store->snapshot_count; i++) {
        state_snapshot *s = &store->snapshots[i];
        if (s->owner == owner && s->position > length) s->owner = STATE_OWNER_NONE;
    }
}

void state_store_drop(state_store *store, uint32_t owner) {
    for (uint32_t i = 0; i < store->snapshot_count; i++) {
        if (store->snapshots[i].owner == owner) store->snapshots[i].owner = STATE_OWNER_NONE;
    }
}

void state_store_copy(state_store *store, uint32_t from, uint64_t position, uint32_t to) {
    const state_snapshot *source = find(store, from, position);
    if (source == NULL || !is_complete(store, source)) return;
    state_snapshot *copy = replaceable(store, to, source);
    *copy = (state_snapshot){.owner = to, .position = position, .saved_count = source->saved_count};
    memset(flags_of(store, copy), true, store->state_count * sizeof(bool));
    memcpy(payload_of(store, copy), payload_of(store, source), (size_t)store->snapshot_bytes);
}
