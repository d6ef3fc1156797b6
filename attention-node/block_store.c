/* block_store.c - the accounts over pool, cache and tiers. */
#include "attention-node/block_store.h"

#include <assert.h>

#include "base/clock.h"
#include "base/log.h"

#define WAIT_NS 20000000u        /* for a write to end, before looking again */
#define PATIENCE_NS 10000000000u /* for any write to end, before memory counts as full */
#define SPILLED_AT_ONCE EXTENT_BLOCKS

static uint64_t aligned(uint64_t bytes) {
    return HD_ALIGN_UP(bytes, (uint64_t)HD_CACHE_LINE);
}

static uint32_t block_count_of(const block_tiers *tiers) {
    return tiers->frame_count + tiers->slot_count;
}

static uint32_t units_max_of(const attention_layer_table *table) {
    uint32_t units = 0;
    for (uint32_t i = 0; i < table->stream_count; i++) units += table->streams[i].heads;
    return units;
}

uint64_t block_store_table_bytes(const attention_layer_table *table, const block_tiers *tiers) {
    uint32_t blocks = block_count_of(tiers);
    uint64_t bytes = block_pool_table_bytes(table, blocks, tiers->frame_count) + prefix_cache_table_bytes(blocks);
    if (tiers->slot_count == 0) return bytes;
    return bytes + aligned(blocks * sizeof(block_place)) +
           cold_store_table_bytes(table, tiers->slot_count, tiers->frame_count) +
           page_cache_table_bytes(blocks, units_max_of(table), tiers->page_count) +
           row_cache_table_bytes(tiers->grain_count);
}

/* ---- Giving up ---- */

static void finish_free(block_store *store, block_name block) {
    if (store->has_cold) {
        block_place *place = &store->places[block.index];
        if (place->state == COLD_WRITTEN) cold_store_free(&store->cold, place->slot);
        *place = (block_place){.state = COLD_NOT};
        page_cache_forget(&store->pages, block.index);
    }
    block_pool_free(&store->pool, block);
}

static void free_block(block_store *store, block_name block) {
    if (store->has_cold && store->places[block.index].state == COLD_WRITING) {
        store->places[block.index].is_dying = true;
    } else {
        finish_free(store, block);
    }
}

static bool evict_one(block_store *store) {
    block_name oldest = prefix_cache_take_oldest(&store->cache);
    if (oldest.index == BLOCK_NONE.index) return false;
    free_block(store, oldest);
    store->evicted++;
    return true;
}

static void evict(block_store *store, uint32_t count) {
    for (uint32_t i = 0; i < count && evict_one(store); i++) {}
}

void block_store_poll(block_store *store) {
    for (cold_job job; store->has_cold && cold_store_poll(&store->cold, &job);) {
        if (job.block == FRAME_NONE) continue;
        block_place *place = &store->places[job.block];
        assert(place->state == COLD_WRITING && place->slot == job.slot);
        place->state = COLD_WRITTEN;
        if (job.status != HD_OK) {
            cold_store_free(&store->cold, place->slot);
            place->state = COLD_NOT;
        }
        if (place->is_dying) finish_free(store, (block_name){job.block, store->pool.records[job.block].generation});
    }
}

/* ---- Spilling ---- */

void block_store_spill(block_store *store, block_name block, block_claim *claim, uint32_t wanted) {
    if (!store->has_cold || store->places[block.index].state != COLD_NOT) return;
    const block_record *record = block_pool_get(&store->pool, block);
    assert(record->generation == block.generation && record->state == BLOCK_SEALED);
    if (cold_store_is_failing(&store->cold)) return;
    uint32_t slot = cold_store_take(&store->cold, claim, wanted);
    for (uint32_t i = 0; slot == COLD_SLOT_NONE && i < SPILLED_AT_ONCE && evict_one(store); i++) {
        slot = cold_store_take(&store->cold, claim, wanted);
    }
    if (slot == COLD_SLOT_NONE) return;
    store->places[block.index] = (block_place){.slot = slot, .state = COLD_WRITING};
    const block_record *parent = block_pool_find(&store->pool, record->parent);
    cold_store_write(&store->cold, slot, block.index, record->depth, parent != NULL ? &parent->id : NULL,
                     record->is_cached);
}

/* Sealed blocks that found no slot when they were sealed; returns how many do now. */
static uint32_t spill_some(block_store *store) {
    uint32_t count = 0, frames = store->pool.frames.slot_count;
    block_claim claim = {0};
    for (uint32_t i = 0; i < frames && count < SPILLED_AT_ONCE; i++) {
        uint32_t frame = (store->hand + i) % frames;
        if (extent_table_is_free(&store->pool.frames, frame)) continue;
        uint32_t block = store->pool.block_of[frame];
        const block_record *record = &store->pool.records[block];
        bool is_candidate = record->state == BLOCK_SEALED && record->references > 0;
        if (!is_candidate || store->places[block].state != COLD_NOT) continue;
        block_store_spill(store, (block_name){block, record->generation}, &claim, SPILLED_AT_ONCE);
        if (store->places[block].state == COLD_NOT) break;
        count++;
    }
    extent_table_drop(&store->cold.slots, &claim);
    return count;
}

/* Drops up to `count` frames of blocks that are on the cold tier as well, in the order of frames: what is adjacent now
 * is taken together again. */
static uint32_t drop_frames(block_store *store, uint32_t count, bool is_retired_only) {
    uint32_t dropped = 0, frames = store->pool.frames.slot_count;
    pthread_rwlock_wrlock(&store->frames_lock);
    for (uint32_t i = 0; i < frames && dropped < count; i++) {
        uint32_t frame = store->hand;
        store->hand = (store->hand + 1) % frames;
        if (extent_table_is_free(&store->pool.frames, frame)) continue;
        uint32_t block = store->pool.block_of[frame];
        const block_record *record = &store->pool.records[block];
        if (record->state != BLOCK_SEALED || store->places[block].state != COLD_WRITTEN) continue;
        if (is_retired_only && record->references > 0) continue;
        block_pool_drop_frame(&store->pool, (block_name){block, record->generation});
        dropped++;
    }
    pthread_rwlock_unlock(&store->frames_lock);
    store->dropped_frames += dropped;
    return dropped;
}

hd_status block_store_make_room(block_store *store, uint32_t count) {
    if (!store->has_cold) return HD_OK;
    extent_table *frames = &store->pool.frames;
    block_store_poll(store);
    for (uint64_t give_up_ns = 0; frames->free_count < count || store->pool.free_count < count;) {
        if (count > frames->slot_count) return HD_FULL;
        uint32_t needed = frames->free_count < count ? count - frames->free_count : 0;
        uint32_t ahead = frames->slot_count / EXTENT_BLOCKS, wanted = needed;
        wanted += ahead < EXTENT_BLOCKS ? ahead : EXTENT_BLOCKS; /* some more, so that neighbours go together */
        if (store->pool.free_count < count && evict_one(store)) continue;
        if (needed > 0 && (drop_frames(store, wanted, true) > 0 || drop_frames(store, wanted, false) > 0)) continue;
        uint32_t started = needed > 0 ? spill_some(store) : 0;
        uint64_t pending = cold_store_pending(&store->cold), now_ns = hd_now_ns();
        if (pending == 0 && started == 0 && !evict_one(store)) return HD_FULL;
        if (pending == 0 && started == 0) continue;
        if (give_up_ns == 0) give_up_ns = now_ns + PATIENCE_NS;
        if (now_ns > give_up_ns) return HD_FULL;
        cold_store_wait(&store->cold, WAIT_NS);
        block_store_poll(store);
    }
    return HD_OK;
}

hd_status block_store_load(block_store *store, block_name block) {
    if (!store->has_cold) return HD_OK;
    const block_place *place = &store->places[block.index];
    uint64_t give_up_ns = hd_now_ns() + PATIENCE_NS;
    while (block_store_poll(store), place->state == COLD_WRITING) {
        if (hd_now_ns() > give_up_ns) return HD_IO;
        cold_store_wait(&store->cold, WAIT_NS);
    }
    if (block_pool_is_resident(&store->pool, block.index)) return HD_OK;
    hd_status status = block_store_make_room(store, 1);
    if (status != HD_OK) return status;
    pthread_rwlock_wrlock(&store->frames_lock);
    block_pool_give_frame(&store->pool, block);
    status = cold_store_load(&store->cold, place->slot, &block_pool_get(&store->pool, block)->id,
                             store->pool.frame_of[block.index]);
    if (status != HD_OK) block_pool_drop_frame(&store->pool, block);
    pthread_rwlock_unlock(&store->frames_lock);
    if (status == HD_CORRUPT) block_store_condemn(store, block);
    return status;
}

/* What of a block does not change under a reader's feet. */
typedef struct {
    block_place place;
    identity id;
} seen_block;

/* Visits a resident block's page; false: the block is not resident, and `seen` is what was known of it. */
static bool visit_resident(block_store *store, uint32_t block, uint32_t stream, uint32_t head,
                           block_store_visitor *visit, void *context, seen_block *seen) {
    pthread_rwlock_rdlock(&store->frames_lock);
    bool is_resident = block_pool_is_resident(&store->pool, block);
    *seen = (seen_block){store->places[block], store->pool.records[block].id};
    if (is_resident) visit(context, block_pool_page(&store->pool, block, stream, head));
    pthread_rwlock_unlock(&store->frames_lock);
    return is_resident;
}

hd_status block_store_visit(block_store *store, uint32_t block, uint32_t stream, uint32_t head,
                            block_store_visitor *visit, void *context) {
    seen_block seen;
    if (!store->has_cold) {
        visit(context, block_pool_page(&store->pool, block, stream, head));
        return HD_OK;
    }
    if (visit_resident(store, block, stream, head, visit, context, &seen)) return HD_OK;
    if (seen.place.state != COLD_WRITTEN) return HD_STALE;
    const stream_place *at = &store->pool.layout.streams[stream];
    _Alignas(4096) unsigned char unit[COLD_UNIT_BYTES_MAX];
    hd_status status = cold_store_read_page(&store->cold, seen.place.slot, at->first_unit + head, &seen.id, unit);
    if (status == HD_OK) visit(context, unit + at->page_offset);
    return status;
}

typedef struct {
    const kernel_page_shape *shape;
    bool is_keys;
    uint32_t first, count;
    uint16_t *rows;
} wanted_rows;

static void copy_rows(void *context, const void *page) {
    const wanted_rows *w = context;
    kernel_page_rows(w->shape, page, w->is_keys, w->first, w->count, w->rows);
}

hd_status block_store_read_rows(block_store *store, uint32_t block, uint32_t stream, uint32_t head,
                                const kernel_page_shape *shape, bool is_keys, uint32_t first, uint32_t count,
                                uint16_t *rows) {
    wanted_rows wanted = {shape, is_keys, first, count, rows};
    uint32_t unit = store->pool.layout.streams[stream].first_unit + head;
    const unit_place *place = &store->pool.layout.units[unit];
    if (!store->has_cold || place->row_bytes == 0)
        return block_store_visit(store, block, stream, head, copy_rows, &wanted);
    seen_block seen;
    if (visit_resident(store, block, stream, head, copy_rows, &wanted, &seen)) return HD_OK;
    if (seen.place.state != COLD_WRITTEN) return HD_STALE;
    uint64_t grain = store->cold.directory.grain_bytes, offset = (uint64_t)first * place->row_bytes;
    uint64_t begin = offset / grain * grain, end = HD_ALIGN_UP(offset + (uint64_t)count * place->row_bytes, grain);
    _Alignas(4096) unsigned char bytes[COLD_UNIT_BYTES_MAX];
    hd_status status = cold_store_read(&store->cold, seen.place.slot, unit, &seen.id, begin, end - begin, bytes);
    if (status == HD_OK) kernel_token_rows_part(&place->shape, bytes + (offset - begin), is_keys, count, rows);
    return status;
}

void block_store_condemn(block_store *store, block_name block) {
    block_record *record = block_pool_find(&store->pool, block);
    if (record == NULL || record->references == 0) return;
    if (record->is_cached) prefix_cache_remove(&store->cache, block);
    record->retention = RETAIN_NOT;
}

/* ---- Promises ---- */

uint32_t block_store_capacity(const block_store *store) {
    if (!store->has_cold || !cold_store_is_failing(&store->cold)) return store->pool.block_count;
    return store->pool.block_count - store->cold.slots.free_count;
}

uint32_t block_store_available(const block_store *store) {
    uint32_t capacity = block_store_capacity(store), used = store->held + store->reserved;
    return capacity > used ? capacity - used : 0;
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

/* ---- Holding ---- */

block_name block_store_take(block_store *store, block_claim *claim, uint32_t wanted) {
    assert(store->reserved > 0 && wanted > 0);
    /* Evict as many as the caller will need anyway, up to an extent: one at a time would hand out the slots of a
     * sequence that retired from its end in descending order, and the next scan would read backwards. */
    if (store->pool.frames.free_count == 0) evict(store, wanted < EXTENT_BLOCKS ? wanted : EXTENT_BLOCKS);
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
    else free_block(store, block);
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
    if (!block_pool_is_resident(&store->pool, other.index)) { /* it is on disk, and its bytes are here once more */
        pthread_rwlock_wrlock(&store->frames_lock);
        block_pool_pass_frame(&store->pool, block, other);
        pthread_rwlock_unlock(&store->frames_lock);
    }
    block_store_release(store, block, RETAIN_NOT); /* first, so that there is room to hold the other one */
    hd_status status = block_store_share(store, other);
    assert(status == HD_OK);
    (void)status;
    return other;
}

block_name block_store_reopen(block_store *store, block_name block) {
    block_record *record = block_pool_get(&store->pool, block);
    assert(record->references == 1 && block_pool_is_resident(&store->pool, block.index));
    if (record->is_cached) prefix_cache_remove(&store->cache, block);
    record->retention = RETAIN_NOT;
    if (store->has_cold) {
        block_place *place = &store->places[block.index];
        assert(place->state != COLD_WRITING);
        if (place->state == COLD_WRITTEN) cold_store_free(&store->cold, place->slot);
        place->state = COLD_NOT;
        page_cache_forget(&store->pages, block.index);
    }
    return block_pool_reopen(&store->pool, block);
}

void block_store_reset_cache(block_store *store) {
    for (;;) {
        block_name oldest = prefix_cache_take_oldest(&store->cache);
        if (oldest.index == BLOCK_NONE.index) return;
        free_block(store, oldest);
    }
}

/* ---- Start and end ---- */

/* What an earlier process left becomes prefix cache. Ancestors come first; the last descendants are given up first. */
static bool adopt(void *context, uint32_t slot, const cold_record *record) {
    block_store *store = context;
    block_name parent = record->depth > 0 ? prefix_cache_find_identity(&store->cache, &record->parent) : BLOCK_NONE;
    if (record->depth > 0 && parent.index == BLOCK_NONE.index) return false;
    if (prefix_cache_find_identity(&store->cache, &record->id).index != BLOCK_NONE.index) return false;
    block_name block = block_pool_adopt(&store->pool, &record->id, &record->scope, parent, record->token_ids);
    if (block.index == BLOCK_NONE.index) return false;
    block_record *own = block_pool_get(&store->pool, block);
    own->references = 1;
    prefix_cache_insert(&store->cache, block);
    own->references = 0;
    own->retention = RETAIN_KEPT;
    prefix_cache_retire_first(&store->cache, block);
    store->places[block.index] = (block_place){.slot = slot, .state = COLD_WRITTEN};
    return true;
}

static hd_status open_tiers(block_store *store, const attention_layer_table *table, const block_tiers *tiers,
                            hd_arena *arena, hd_error *error) {
    for (uint32_t i = 0; i < store->pool.layout.unit_count; i++) {
        if (store->pool.layout.units[i].bytes % COLD_CHUNK_BYTES == 0) continue;
        return hd_error_set(error, HD_UNSUPPORTED, "a cold tier needs pages of whole KiB, which this model's are not");
    }
    if (block_layout_unit_bytes_max(table) > COLD_UNIT_BYTES_MAX) {
        return hd_error_set(error, HD_UNSUPPORTED,
                            "a cold tier takes a layer's keys and values of %u tokens of at most %u KiB, and this "
                            "model's are larger",
                            HD_BLOCK_TOKENS, COLD_UNIT_BYTES_MAX >> 10);
    }
    if (pthread_rwlock_init(&store->frames_lock, NULL) != 0) return hd_error_set(error, HD_NO_MEMORY, "no memory");
    store->places = hd_arena_take(arena, store->pool.block_count * sizeof(*store->places));
    assert(store->places != NULL);
    for (uint32_t i = 0; i < store->pool.block_count; i++) store->places[i] = (block_place){.state = COLD_NOT};
    hd_status status = cold_store_open(&store->cold, &tiers->cold, table, &store->pool, arena, error);
    if (status != HD_OK) return status;
    store->has_cold = true;
    uint32_t row_reads = tiers->grain_count > 0 ? ROW_CACHE_READS : 0;
    status = page_cache_init(&store->pages, &store->pool, &store->cold, tiers->page_count, row_reads, arena);
    if (status == HD_OK)
        status =
            row_cache_init(&store->rows, &store->pool, &store->cold, store->pages.queue, tiers->grain_count, arena);
    if (status == HD_OK) status = cold_store_recover(&store->cold, adopt, store);
    if (status == HD_OK) status = cold_store_start(&store->cold);
    if (status != HD_OK) hd_error_set(error, status, "no memory for pages of the cold tier");
    char path[600];
    if (status == HD_OK) {
        hd_log(HD_LOG_INFO, "cold_tier", "directory=%s slots=%u recovered_blocks=%u reads=%s",
               hd_log_quote(tiers->cold.directory, path, sizeof(path)), tiers->slot_count, store->cache.retired_count,
               read_queue_name(store->pages.queue));
    }
    return status;
}

hd_status block_store_init(block_store *store, const attention_layer_table *table, const block_tiers *tiers,
                           hd_arena *arena, hd_error *error) {
    *store = (block_store){.cold = {.event = -1, .directory = {.directory = -1, .index = -1, .pages = -1}}};
    hd_status status =
        block_pool_init(&store->pool, table, block_count_of(tiers), tiers->frame_count, tiers->memory, arena);
    if (status != HD_OK) return hd_error_set(error, status, "no memory for keys and values");
    prefix_cache_init(&store->cache, &store->pool, arena);
    return tiers->slot_count == 0 ? HD_OK : open_tiers(store, table, tiers, arena, error);
}

void block_store_fini(block_store *store) {
    if (store->pool.payload == NULL) return;
    page_cache_fini(&store->pages);
    row_cache_fini(&store->rows);
    if (store->has_cold) pthread_rwlock_destroy(&store->frames_lock);
    cold_store_close(&store->cold);
    block_pool_fini(&store->pool);
}
