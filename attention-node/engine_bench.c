/* engine_bench.c - pages from a source, or random ones: a packed page is a permutation of its elements, so random
 * elements need no packing. */
#include "attention-node/engine_bench.h"

#include <assert.h>
#include <stdlib.h>

#include "attention-node/engine_state.h"
#include "kernels/dtype.h"

/* At once: what is full may have to leave memory before more comes. */
#define PORTION_TOKENS (EXTENT_BLOCKS * HD_BLOCK_TOKENS)

typedef struct {
    engine *engine;
    const sequence *sequence;
    uint64_t seed;
    const engine_fill_source *source; /* or NULL */
    _Atomic bool is_failed;
    _Atomic size_t ticket; /* of runs */
} filling;

static uint64_t next_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Random sign and mantissa under one of four exponents, 2^-3 to 2^0. */
static uint64_t random_bf16(uint64_t bits) {
    return (bits & 0x807f807f807f807fu) | (0x3e003e003e003e00u + (bits & 0x0180018001800180u));
}

static uint64_t random_f32(uint64_t bits) {
    return (bits & 0x807fffff807fffffu) | (0x3e0000003e000000u + (bits & 0x0180000001800000u));
}

/* Bytes of a hundredth, of which few are 0, for int8. */
static void fill_page(void *page, uint64_t bytes, hd_dtype dtype, uint32_t dim, uint64_t seed) {
    uint64_t *words = page, word_count = bytes / sizeof(uint64_t);
    if (dtype == HD_INT8) word_count = (uint64_t)HD_ALIGN_UP(dim, KERNEL_K_ALIGN) * HD_BLOCK_TOKENS / sizeof(uint64_t);
    for (uint64_t i = 0; i < word_count; i++) {
        uint64_t bits = next_random(&seed);
        words[i] = dtype == HD_F32 ? random_f32(bits) : dtype == HD_INT8 ? bits : random_bf16(bits);
    }
    const uint64_t exponents = 0x0001000100010001u * ((112 - 7) << 7);
    for (uint64_t i = word_count; i < bytes / sizeof(uint64_t); i++) words[i] = exponents;
}

static void fill_random(const filling *f, uint32_t run) {
    const block_pool *pool = &f->engine->home.store.pool;
    const block_layout *layout = &pool->layout;
    uint32_t block = f->sequence->runs[run].block.index;
    for (uint32_t stream = 0; stream < layout->stream_count; stream++) {
        const stream_place *place = &layout->streams[stream];
        for (uint32_t head = 0; head < place->heads; head++) {
            fill_page(block_pool_page(pool, block, stream, head), place->page_bytes,
                      f->engine->table.streams[stream].codec, f->engine->table.streams[stream].dim,
                      f->seed + run * layout->page_count + place->first_page + head);
        }
    }
}

static bool comes_from_source(const engine_layer *layer) {
    return layer->is_computable && layer->is_owner;
}

/* keys and values are rooms for a page's rows in f32. */
static void fill_from_source(const filling *f, uint32_t run_index, void *keys, void *values) {
    const engine *e = f->engine;
    const kv_run *run = &f->sequence->runs[run_index];
    for (uint32_t i = 0; i < e->table.layer_count; i++) {
        const engine_layer *layer = &e->layers[i];
        const kernel_page_shape *shape = &layer->shape;
        for (uint32_t head = 0; comes_from_source(layer) && head < layer->plan.kv_heads; head++) {
            f->source->rows(f->source->context, i, head, run->position, run->count, keys, values);
            for (size_t k = (size_t)run->count * shape->key_dim; shape->dtype == HD_F32 && k-- > 0;)
                ((float *)keys)[k] = hd_bf16_to_f32(((uint16_t *)keys)[k]);
            for (size_t k = (size_t)run->count * shape->value_dim; shape->dtype == HD_F32 && k-- > 0;)
                ((float *)values)[k] = hd_bf16_to_f32(((uint16_t *)values)[k]);
            e->kernels->page_store(
                shape, block_pool_page(&e->home.store.pool, run->block.index, layer->table.key_stream, head),
                block_pool_page(&e->home.store.pool, run->block.index, layer->table.value_stream, head), run->first,
                run->count, keys, shape->key_dim, values, shape->value_dim);
        }
    }
}

/* Nothing of a block is left to random numbers. */
static bool covers_all(const engine *e) {
    for (uint32_t i = 0; i < e->table.layer_count; i++)
        if (!e->layers[i].is_computable) return false;
    return true;
}

static uint32_t dim_max(const engine *e) {
    uint32_t most = 0;
    for (uint32_t i = 0; i < e->table.layer_count; i++) {
        const kernel_page_shape *shape = &e->layers[i].shape;
        if (shape->key_dim > most) most = shape->key_dim;
        if (shape->value_dim > most) most = shape->value_dim;
    }
    return most;
}

static void fill_blocks(void *context, unsigned thread, unsigned thread_count) {
    filling *f = context;
    uint32_t run_count = f->sequence->run_count;
    size_t page_floats = (size_t)HD_BLOCK_TOKENS * dim_max(f->engine);
    float *room = f->source != NULL ? malloc(2 * page_floats * sizeof(*room)) : NULL;
    if (f->source != NULL && room == NULL) f->is_failed = true;
    bool is_covered = covers_all(f->engine);
    for (size_t run; (run = hd_ticket_take(&f->ticket, run_count)) < run_count;) {
        if (room == NULL || !is_covered) fill_random(f, (uint32_t)run);
        if (room != NULL) fill_from_source(f, (uint32_t)run, room, room + page_floats);
    }
    free(room);
}

/* On a device: the same random page everywhere, since what is read and computed hangs on no value. */
static hd_status fill_device(const filling *f, uint32_t first_run) {
    const block_pool *pool = &f->engine->home.store.pool;
    kernel_device *device = pool->queue->device;
    uint64_t page_bytes = pool->layout.units[0].bytes;
    void *page;
    hd_status status = device->ops->take(device, page_bytes, KERNEL_PINNED_MEMORY, &page);
    if (status != HD_OK) return status;
    fill_page(page, page_bytes, f->engine->home.kv_dtype, 0, f->seed);
    for (uint32_t run = first_run; run < f->sequence->run_count; run++) {
        uint32_t frame = pool->frame_of[f->sequence->runs[run].block.index];
        for (uint32_t unit = 0; unit < pool->layout.unit_count && status == HD_OK; unit++)
            status = device->ops->copy(pool->queue, block_pool_unit(pool, frame, unit), page, page_bytes);
    }
    hd_status done = device->ops->wait(pool->queue);
    device->ops->give(device, page, KERNEL_PINNED_MEMORY);
    return status == HD_OK ? done : status;
}

static void extend(engine *e, sequence *s, uint64_t tokens, uint32_t vocabulary, uint64_t *state) {
    for (uint64_t done = 0; done < tokens;) {
        uint32_t ids[HD_BLOCK_TOKENS],
            count = tokens - done < HD_BLOCK_TOKENS ? (uint32_t)(tokens - done) : HD_BLOCK_TOKENS;
        for (uint32_t i = 0; i < count; i++) ids[i] = (uint32_t)(next_random(state) % vocabulary);
        sequence_extend(&e->home, s, ids, count);
        done += count;
    }
}

/* What a step would have told the sequence's indexes. */
static void learn(const engine *e, const sequence *s, uint32_t first_run, const engine_fill_source *source) {
    uint32_t dim = dim_max(e);
    assert(dim > 0);
    uint16_t *rows = malloc((size_t)HD_BLOCK_TOKENS * dim * sizeof(*rows));
    for (uint32_t layer = 0; rows != NULL && layer < e->table.layer_count; layer++) {
        const engine_layer *l = &e->layers[layer];
        for (uint32_t head = 0; l->is_computable && head < l->plan.kv_heads; head++) {
            for (uint32_t i = first_run; i < s->run_count; i++) {
                const kv_run *run = &s->runs[i];
                const void *page = block_pool_page(&e->home.store.pool, run->block.index, l->table.key_stream, head);
                kernel_page_rows(&l->shape, page, true, run->first, run->count, rows);
                (void)index_set_add_keys(s->indexes, layer, head, run->position, rows, run->count, l->shape.key_dim);
                for (uint32_t at = 0; source != NULL && at < run->count; at += INDEX_QUERY_POSITIONS) {
                    source->query(source->context, layer, head, run->position + at, rows);
                    (void)index_set_add_query(s->indexes, layer, head, run->position + at, rows, 1, dim);
                }
            }
        }
    }
    free(rows);
}

hd_status engine_fill_synthetic(attention *self, uint64_t name, uint64_t tokens, uint32_t vocabulary, uint64_t seed,
                                const engine_fill_source *source) {
    engine *e = engine_of(self);
    assert(!e->step.is_open && vocabulary > 0);
    sequence *s = sequence_table_find(&e->sequences, name);
    if (s == NULL) return HD_NOT_FOUND;
    if (s->length != 0 || tokens > s->tokens_max) return HD_INVALID;
    s->is_private = true;
    s->exact_count = tokens;
    uint64_t state = seed;
    filling f = {.engine = e, .sequence = s, .seed = next_random(&state), .source = source};
    while (s->length < tokens) {
        uint64_t left = tokens - s->length, portion = left < PORTION_TOKENS ? left : PORTION_TOKENS;
        hd_status status = block_store_make_room(&e->home.store, (uint32_t)sequence_blocks_of(portion));
        if (status != HD_OK) return status;
        uint32_t first_run = s->run_count;
        atomic_store(&f.ticket, first_run);
        extend(e, s, portion, vocabulary, &state);
        if (e->device != NULL) status = fill_device(&f, first_run);
        else hd_pool_run(e->pool, fill_blocks, &f);
        if (f.is_failed) status = HD_NO_MEMORY;
        if (status != HD_OK) return status;
        sequence_commit(&e->home, s);
        if (s->indexes == NULL) continue;
        learn(e, s, first_run, source);
        index_set_grow(s->indexes, s);
    }
    engine_publish(e);
    return HD_OK;
}
