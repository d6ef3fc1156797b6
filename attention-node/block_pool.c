/* block_pool.c - blocks and their frames. The free blocks are a list in an array, from which any can be taken. */
#include "attention-node/block_pool.h"

#include <assert.h>

#include "base/xxh3.h"

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

uint64_t block_pool_table_bytes(const attention_layer_table *table, uint32_t block_count, uint32_t frame_count) {
    return block_layout_table_bytes(table) + aligned(block_count * sizeof(block_record)) +
           aligned((uint64_t)block_count * page_count_of(table) * sizeof(uint64_t)) +
           3 * aligned(block_count * sizeof(uint32_t)) + aligned(frame_count * sizeof(uint32_t)) +
           extent_table_bytes(frame_count);
}

uint64_t block_pool_payload_bytes(const attention_layer_table *table, uint32_t frame_count) {
    return attention_layer_table_block_bytes(table) * frame_count;
}

/* ---- Free blocks and frames ---- */

static void list_free(block_pool *pool, uint32_t index) {
    pool->free_place[index] = pool->free_count;
    pool->free_blocks[pool->free_count++] = index;
}

static void unlist_free(block_pool *pool, uint32_t index) {
    uint32_t last = pool->free_blocks[--pool->free_count], place = pool->free_place[index];
    pool->free_blocks[place] = last;
    pool->free_place[last] = place;
}

static block_name start(block_pool *pool, uint32_t index, block_state state) {
    block_record *record = &pool->records[index];
    assert(record->state == BLOCK_FREE);
    unlist_free(pool, index);
    record->state = state;
    record->references = 0;
    record->is_cached = false;
    record->retention = RETAIN_NOT;
    memset(pool->checksums + (uint64_t)index * pool->layout.page_count, 0, pool->layout.page_count * sizeof(uint64_t));
    return (block_name){index, record->generation};
}

static void set_frame(block_pool *pool, uint32_t index, uint32_t frame) {
    pool->frame_of[index] = frame;
    pool->block_of[frame] = index;
}

block_name block_pool_take(block_pool *pool, block_claim *claim, uint32_t wanted) {
    if (pool->free_count == 0) return BLOCK_NONE;
    uint32_t frame = extent_table_take(&pool->frames, claim, wanted);
    if (frame == EXTENT_SLOT_NONE) return BLOCK_NONE;
    uint32_t index = pool->records[frame].state == BLOCK_FREE ? frame : pool->free_blocks[pool->free_count - 1];
    block_name block = start(pool, index, BLOCK_OPEN);
    set_frame(pool, index, frame);
    return block;
}

block_name block_pool_adopt(block_pool *pool, const identity *id, const identity_scope *scope, block_name parent,
                            const uint32_t token_ids[HD_BLOCK_TOKENS]) {
    if (pool->free_count == 0) return BLOCK_NONE;
    block_name block = start(pool, pool->free_blocks[0], BLOCK_OPEN);
    memcpy(pool->records[block.index].token_ids, token_ids, sizeof(pool->records[block.index].token_ids));
    block_pool_seal(pool, block, id, scope, parent);
    return block;
}

void block_pool_drop_frame(block_pool *pool, block_name block) {
    assert(block_pool_get(pool, block)->state == BLOCK_SEALED && block_pool_is_resident(pool, block.index));
    extent_table_give(&pool->frames, pool->frame_of[block.index]);
    pool->frame_of[block.index] = FRAME_NONE;
}

void block_pool_give_frame(block_pool *pool, block_name block) {
    assert(!block_pool_is_resident(pool, block.index) && pool->frames.free_count > 0);
    block_claim claim = {0};
    set_frame(pool, block.index, extent_table_take(&pool->frames, &claim, 1));
    extent_table_drop(&pool->frames, &claim);
}

void block_pool_pass_frame(block_pool *pool, block_name from, block_name to) {
    assert(block_pool_is_resident(pool, from.index) && !block_pool_is_resident(pool, to.index));
    set_frame(pool, to.index, pool->frame_of[from.index]);
    pool->frame_of[from.index] = FRAME_NONE;
}

void block_pool_claim_drop(block_pool *pool, block_claim *claim) {
    extent_table_drop(&pool->frames, claim);
}

void block_pool_free(block_pool *pool, block_name block) {
    block_record *record = block_pool_find(pool, block);
    assert(record != NULL && record->state != BLOCK_FREE && record->references == 0 && !record->is_cached);
    record->state = BLOCK_FREE;
    record->generation++;
    if (block_pool_is_resident(pool, block.index)) extent_table_give(&pool->frames, pool->frame_of[block.index]);
    pool->frame_of[block.index] = FRAME_NONE;
    list_free(pool, block.index);
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
    record->depth = parent.index == BLOCK_NONE.index ? 0 : block_pool_get(pool, parent)->depth + 1;
}

block_name block_pool_reopen(block_pool *pool, block_name block) {
    block_record *record = block_pool_get(pool, block);
    assert(record->generation == block.generation && record->state == BLOCK_SEALED && !record->is_cached);
    record->state = BLOCK_OPEN;
    record->generation++;
    return (block_name){block.index, record->generation};
}

uint64_t block_pool_checksum_of(const void *bytes, uint64_t byte_count) {
    uint64_t checksum = XXH3_64bits(bytes, (size_t)byte_count);
    return checksum != 0 ? checksum : 1;
}

static uint64_t page_checksum(const block_pool *pool, uint32_t block_index, uint32_t stream, uint32_t head) {
    return block_pool_checksum_of(block_pool_page(pool, block_index, stream, head),
                                  pool->layout.streams[stream].page_bytes);
}

static uint64_t *page_record(const block_pool *pool, uint32_t block_index, uint32_t stream, uint32_t head) {
    return &pool->checksums[(uint64_t)block_index * pool->layout.page_count + pool->layout.streams[stream].first_page +
                            head];
}

void block_pool_record_checksum(block_pool *pool, uint32_t block_index, uint32_t stream, uint32_t head) {
    *page_record(pool, block_index, stream, head) = page_checksum(pool, block_index, stream, head);
}

uint64_t block_pool_recorded_checksum(const block_pool *pool, uint32_t block_index, uint32_t stream, uint32_t head) {
    return *page_record(pool, block_index, stream, head);
}

void block_pool_set_checksum(block_pool *pool, uint32_t block_index, uint32_t stream, uint32_t head,
                             uint64_t checksum) {
    *page_record(pool, block_index, stream, head) = checksum;
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

static hd_status copy_page(block_pool *pool, uint32_t to_block, uint32_t from_block, uint32_t stream, uint32_t head) {
    void *to = block_pool_page(pool, to_block, stream, head);
    const void *from = block_pool_page(pool, from_block, stream, head);
    size_t bytes = (size_t)pool->layout.streams[stream].page_bytes;
    if (pool->queue != NULL) return pool->queue->device->ops->copy(pool->queue, to, from, bytes);
    memcpy(to, from, bytes);
    return HD_OK;
}

hd_status block_pool_copy(block_pool *pool, block_name to, block_name from) {
    block_record *target = block_pool_get(pool, to), *source = block_pool_get(pool, from);
    assert(target->state == BLOCK_OPEN && source->state != BLOCK_FREE);
    if (source->state == BLOCK_SEALED && block_pool_verify(pool, from) != HD_OK) return HD_CORRUPT;
    memcpy(target->token_ids, source->token_ids, sizeof(target->token_ids));
    hd_status status = HD_OK;
    for (uint32_t stream = 0; stream < pool->layout.stream_count; stream++) {
        for (uint32_t head = 0; head < pool->layout.streams[stream].heads && status == HD_OK; head++)
            status = copy_page(pool, to.index, from.index, stream, head);
    }
    return status;
}

/* ---- Start and end ---- */

/* The memory of a pool that has nothing else yet. */
static hd_status take_payload(block_pool *pool, uint64_t block_bytes, uint32_t pinned_frames) {
    void *memory = NULL;
    if (pool->queue == NULL) {
        pool->payload = hd_region_map((size_t)pool->payload_bytes);
        return pool->payload != NULL ? HD_OK : HD_NO_MEMORY;
    }
    kernel_device *device = pool->queue->device;
    hd_status status = device->ops->take(device, (size_t)pool->payload_bytes, KERNEL_DEVICE_MEMORY, &memory);
    if (status != HD_OK) return status;
    pool->payload = memory;
    status = device->ops->clear(pool->queue, pool->payload, (size_t)pool->payload_bytes);
    if (status != HD_OK || pinned_frames == 0) return status;
    size_t pinned_bytes = (size_t)(pinned_frames * block_bytes);
    status = device->ops->take(device, pinned_bytes, KERNEL_PINNED_MEMORY, &memory);
    if (status != HD_OK) return status;
    pool->pinned = memory;
    return device->ops->clear(pool->queue, pool->pinned, pinned_bytes);
}

static void give_payload(block_pool *pool) {
    if (pool->queue == NULL) {
        hd_region_unmap(pool->payload, (size_t)pool->payload_bytes);
    } else {
        kernel_device *device = pool->queue->device;
        device->ops->wait(pool->queue);
        device->ops->give(device, pool->payload, KERNEL_DEVICE_MEMORY);
        device->ops->give(device, pool->pinned, KERNEL_PINNED_MEMORY);
    }
    *pool = (block_pool){0};
}

hd_status block_pool_init(block_pool *pool, const attention_layer_table *table, uint32_t block_count,
                          uint32_t frame_count, block_memory memory, hd_arena *arena) {
    assert(frame_count > memory.pinned_frames && frame_count <= block_count);
    assert(memory.queue != NULL ? (frame_count | memory.pinned_frames) % EXTENT_BLOCKS == 0
                                : memory.pinned_frames == 0);
    uint32_t payload_frames = frame_count - memory.pinned_frames;
    *pool = (block_pool){.block_count = block_count,
                         .payload_bytes = block_pool_payload_bytes(table, payload_frames),
                         .payload_frames = payload_frames,
                         .queue = memory.queue};
    hd_status status = take_payload(pool, block_pool_payload_bytes(table, 1), memory.pinned_frames);
    if (status != HD_OK) {
        give_payload(pool);
        return status;
    }

    block_layout_init(&pool->layout, table, arena);
    pool->records = hd_arena_take(arena, block_count * sizeof(*pool->records));
    pool->checksums = hd_arena_take(arena, (size_t)block_count * pool->layout.page_count * sizeof(uint64_t));
    pool->frame_of = hd_arena_take(arena, block_count * sizeof(uint32_t));
    pool->free_blocks = hd_arena_take(arena, block_count * sizeof(uint32_t));
    pool->free_place = hd_arena_take(arena, block_count * sizeof(uint32_t));
    pool->block_of = hd_arena_take(arena, frame_count * sizeof(uint32_t));
    assert(pool->records != NULL && pool->checksums != NULL && pool->frame_of != NULL && pool->block_of != NULL);
    assert(pool->free_blocks != NULL && pool->free_place != NULL);
    extent_table_init(&pool->frames, frame_count, arena);
    for (uint32_t i = 0; i < block_count; i++) {
        pool->records[i] = (block_record){.state = BLOCK_FREE, .parent = BLOCK_NONE};
        pool->frame_of[i] = FRAME_NONE;
    }
    /* From the last on, so that what is adopted leaves the numbers of frames alone. */
    for (uint32_t i = block_count; i-- > 0;) list_free(pool, i);
    return HD_OK;
}

void block_pool_fini(block_pool *pool) {
    give_payload(pool);
}
