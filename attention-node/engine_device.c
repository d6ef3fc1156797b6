/* engine_device.c - a step's tables, and a layer's launches. */
#include "attention-node/engine_device.h"

#include <assert.h>

#include "attention-node/engine_state.h"
#include "base/memory.h"
#include "kernels/cuda/operations.h"

#define WINDOWS_MAX 4u     /* different windows that a model's layers have */
#define SHARERS 8u         /* sequences that a block is seen by in one step, all blocks taken together */
#define PARTIAL_SHARERS 2u /* the same, for partial results: where there are more, contexts are cut less */
#define ALIGNMENT 256u

/* The tables of all layers with one window. */
typedef struct window_tables {
    attend_tables tables;  /* in staging */
    unsigned char *region; /* the same on the device */
} window_tables;

typedef struct device_layer {
    unsigned char *keys, *values; /* the page of KV head 0 of a frame at the origin */
    uint32_t window;              /* index of its tables */
} device_layer;

/* What is the same for every layer. */
typedef struct device_shape {
    uint32_t kv_heads, query_heads, group_size, dim, query_stride;
    uint64_t page_bytes; /* from a frame's page to the next one's in an extent: keys and values */
} device_shape;

struct engine_device {
    kernel_queue *queue;
    kernel_device *device;
    device_shape shape;
    device_layer *layers;
    window_tables windows[WINDOWS_MAX];
    uint64_t window_of[WINDOWS_MAX];
    uint32_t window_count, rows_max, stack_levels;
    unsigned char *memory;  /* of the device: offsets, tables, partial results, stacks */
    unsigned char *staging; /* pinned: offsets, tables */
    uint64_t *offsets;      /* in staging, [rows_max]: where a row's token is stored */
    uint64_t *device_offsets;
    attend_partials partials;
    float *stacks;
    attend_piece *pieces; /* [pieces_max]: of the spans, before the tables take them over */
    attend_span *spans;   /* [spans_max] */
    uint32_t pieces_max;
};

/* ---- What it can do ---- */

static hd_status refuse(hd_error *error, const char *what) {
    return hd_error_set(error, HD_UNSUPPORTED, "keys and values on a device: %s", what);
}

static bool has_kernel(uint32_t dim) {
#define IS_DIM(known) dim == (known) ||
    return ATTEND_DIMS(IS_DIM) false;
#undef IS_DIM
}

static uint64_t window_of(const attention_layer_table *table, uint32_t layer) {
    const attention_layer *l = &table->layers[layer];
    return l->window != 0 ? l->window : table->streams[l->key_stream].window;
}

/* The windows of the layers, each once; how many, or WINDOWS_MAX + 1 where there are more. */
static uint32_t list_windows(const attention_layer_table *table, uint64_t windows[WINDOWS_MAX]) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < table->layer_count; i++) {
        uint32_t known = 0;
        while (known < count && windows[known] != window_of(table, i)) known++;
        if (known < count) continue;
        if (count == WINDOWS_MAX) return WINDOWS_MAX + 1;
        windows[count++] = window_of(table, i);
    }
    return count;
}

static bool is_alike(const attention_layer_table *table, uint32_t layer) {
    const attention_layer *first = &table->layers[0], *l = &table->layers[layer];
    const attention_stream *keys = &table->streams[l->key_stream], *values = &table->streams[l->value_stream],
                           *same = &table->streams[first->key_stream];
    return !l->value_is_key_prefix && l->key_stream != l->value_stream && l->query_heads == first->query_heads &&
           keys->owner_layer == layer && values->owner_layer == layer && keys->heads == same->heads &&
           values->heads == same->heads && keys->dim == same->dim && values->dim == same->dim &&
           l->value_dim == same->dim && keys->tokens_per_record == 1 && values->tokens_per_record == 1 &&
           l->sink_logits == NULL;
}

hd_status engine_device_check(const engine_config *config, hd_error *error) {
    const attention_layer_table *table = &config->layers;
    uint64_t windows[WINDOWS_MAX];
    if (config->kv_dtype != HD_BF16) return refuse(error, "they are bf16 there, so --kv-dtype bf16 is needed");
    if (config->cold_directory != NULL)
        return refuse(error, "there is no cold tier beside them yet; leave --cold-dir out");
    if (config->index_bytes > 0) return refuse(error, "they are not searched yet; leave --index-memory out");
    for (uint32_t i = 0; i < table->layer_count; i++) {
        if (!is_alike(table, i))
            return refuse(error, "layers have to be plain grouped-query attention, all of one shape");
    }
    uint32_t dim = table->streams[table->layers[0].key_stream].dim,
             group_size = table->layers[0].query_heads / table->streams[table->layers[0].key_stream].heads;
    if (!has_kernel(dim))
        return hd_error_set(error, HD_UNSUPPORTED, "keys and values on a device: no kernel for heads of %u elements",
                            dim);
    if (group_size > ATTEND_SPLIT_ROWS) return refuse(error, "more than 16 query heads share a key head");
    if (list_windows(table, windows) > WINDOWS_MAX)
        return refuse(error, "its layers have more than four different windows");
    return HD_OK;
}

/* ---- Memory ---- */

static device_shape shape_of(const attention_layer_table *table) {
    const attention_layer *first = &table->layers[0];
    const attention_stream *keys = &table->streams[first->key_stream];
    return (device_shape){.kv_heads = keys->heads,
                          .query_heads = first->query_heads,
                          .group_size = first->query_heads / keys->heads,
                          .dim = keys->dim,
                          .query_stride = (uint32_t)HD_ALIGN_UP(keys->dim, KERNEL_K_ALIGN),
                          .page_bytes = attention_stream_page_bytes(keys) +
                                        attention_stream_page_bytes(&table->streams[first->value_stream])};
}

static attend_tables_limits limits_of(const engine_config *config, uint32_t block_count) {
    device_shape shape = shape_of(&config->layers);
    uint32_t pieces = SHARERS * block_count + config->sequences_max;
    uint64_t groups = (uint64_t)PARTIAL_SHARERS * (block_count / HD_GROUP_BLOCKS + 1) + config->step_rows_max;
    return (attend_tables_limits){.rows_max = config->step_rows_max,
                                  .spans_max = config->sequences_max,
                                  .pieces_max = pieces,
                                  .groups_max = pieces / HD_GROUP_BLOCKS + 2 * config->sequences_max,
                                  .context_max = (uint64_t)block_count * HD_BLOCK_TOKENS,
                                  .partial_rows_max = groups * shape.query_heads,
                                  .multiprocessors = config->queue->device->facts.multiprocessors};
}

/* Hands out memory from its start; with base NULL it only counts. */
typedef struct carver {
    unsigned char *base;
    uint64_t used_bytes;
} carver;

static void *carve(carver *c, uint64_t bytes) {
    void *place = c->base != NULL ? c->base + c->used_bytes : NULL;
    c->used_bytes += HD_ALIGN_UP(bytes, (uint64_t)ALIGNMENT);
    return place;
}

/* What lies in staging, and on the device in the same order. */
static void carve_tables(carver *c, const attend_tables_limits *limits, uint32_t window_count, uint64_t **offsets,
                         unsigned char *regions[WINDOWS_MAX]) {
    *offsets = carve(c, limits->rows_max * sizeof(uint64_t));
    for (uint32_t i = 0; i < window_count; i++) regions[i] = carve(c, attend_tables_bytes(limits));
}

/* d: takes the places; NULL: only counts. */
static uint64_t carve_device(const engine_config *config, uint32_t block_count, carver c, engine_device *d) {
    attend_tables_limits limits = limits_of(config, block_count);
    device_shape shape = shape_of(&config->layers);
    uint64_t windows[WINDOWS_MAX], *offsets;
    unsigned char *regions[WINDOWS_MAX] = {NULL};
    uint32_t window_count = list_windows(&config->layers, windows);
    carve_tables(&c, &limits, window_count, &offsets, regions);
    attend_partials partials = {.out = carve(&c, limits.partial_rows_max * shape.dim * sizeof(float)),
                                .max = carve(&c, limits.partial_rows_max * sizeof(float)),
                                .sum = carve(&c, limits.partial_rows_max * sizeof(float))};
    float *stacks = carve(
        &c, device_attend_stack_bytes(&config->queue->device->facts, shape.dim, attend_tables_stack_levels(&limits)));
    if (d == NULL) return c.used_bytes;
    d->device_offsets = offsets;
    d->partials = partials;
    d->stacks = stacks;
    for (uint32_t i = 0; i < window_count; i++) d->windows[i].region = regions[i];
    return c.used_bytes;
}

uint64_t engine_device_bytes(const engine_config *config, uint32_t block_count) {
    return carve_device(config, block_count, (carver){0}, NULL);
}

static hd_status open_staging(engine_device *d, const attend_tables_limits *limits) {
    carver counted = {0};
    unsigned char *regions[WINDOWS_MAX] = {NULL};
    carve_tables(&counted, limits, d->window_count, &d->offsets, regions);
    void *staging;
    hd_status status = d->device->ops->take(d->device, counted.used_bytes, KERNEL_PINNED_MEMORY, &staging);
    if (status != HD_OK) return status;
    d->staging = staging;
    carver placed = {.base = staging};
    carve_tables(&placed, limits, d->window_count, &d->offsets, regions);
    for (uint32_t i = 0; i < d->window_count; i++) attend_tables_init(&d->windows[i].tables, limits, regions[i]);
    return HD_OK;
}

/* What all offsets count from, so that none is negative. */
static unsigned char *origin_of(const block_pool *pool) {
    return pool->pinned != NULL && pool->pinned < pool->payload ? pool->pinned : pool->payload;
}

static void place_layers(engine_device *d, const engine *e) {
    const block_pool *pool = &e->home.store.pool;
    for (uint32_t i = 0; i < e->table.layer_count; i++) {
        const attention_layer *l = &e->table.layers[i];
        device_layer *layer = &d->layers[i];
        layer->keys = origin_of(pool) + block_layout_page(&pool->layout.streams[l->key_stream], 0, 0, EXTENT_BLOCKS);
        layer->values =
            origin_of(pool) + block_layout_page(&pool->layout.streams[l->value_stream], 0, 0, EXTENT_BLOCKS);
        while (d->window_of[layer->window] != window_of(&e->table, i)) layer->window++;
        assert(pool->layout.streams[l->key_stream].unit_bytes == d->shape.page_bytes);
    }
}

static hd_status open_parts(engine *e, const engine_config *config, engine_device *d) {
    uint32_t block_count = e->home.store.pool.block_count;
    attend_tables_limits limits = limits_of(config, block_count);
    d->queue = config->queue;
    d->device = d->queue->device;
    d->shape = shape_of(&e->table);
    d->window_count = list_windows(&e->table, d->window_of);
    d->rows_max = limits.rows_max;
    d->stack_levels = attend_tables_stack_levels(&limits);
    d->pieces_max = limits.pieces_max;
    d->layers = hd_alloc_zeroed(e->table.layer_count * sizeof(*d->layers), HD_CACHE_LINE);
    d->pieces = hd_alloc(d->pieces_max * sizeof(*d->pieces), HD_CACHE_LINE);
    d->spans = hd_alloc(limits.spans_max * sizeof(*d->spans), HD_CACHE_LINE);
    if (d->layers == NULL || d->pieces == NULL || d->spans == NULL) return HD_NO_MEMORY;
    hd_status status = open_staging(d, &limits);
    void *memory = NULL;
    if (status == HD_OK) {
        status =
            d->device->ops->take(d->device, engine_device_bytes(config, block_count), KERNEL_DEVICE_MEMORY, &memory);
    }
    if (status != HD_OK) return status;
    d->memory = memory;
    carve_device(config, block_count, (carver){.base = memory}, d);
    place_layers(d, e);
    return HD_OK;
}

hd_status engine_device_open(engine *e, const engine_config *config, hd_error *error) {
    engine_device *d = hd_alloc_zeroed(sizeof(*d), HD_CACHE_LINE);
    hd_status status = d != NULL ? open_parts(e, config, d) : HD_NO_MEMORY;
    if (status == HD_OK) {
        e->device = d;
        return HD_OK;
    }
    engine_device_close(d);
    return hd_error_set(error, status, "no memory on %s, or no pinned memory, for the tables of a step of %u rows",
                        config->queue->device->facts.name, config->step_rows_max);
}

void engine_device_close(engine_device *d) {
    if (d == NULL) return;
    if (d->queue != NULL) {
        d->device->ops->wait(d->queue);
        d->device->ops->give(d->device, d->memory, KERNEL_DEVICE_MEMORY);
        d->device->ops->give(d->device, d->staging, KERNEL_PINNED_MEMORY);
    }
    hd_free(d->layers);
    hd_free(d->pieces);
    hd_free(d->spans);
    hd_free(d);
}

/* ---- A step's tables ---- */

/* Bytes from a layer's first key to a token of a block, for KV head 0. */
static uint64_t offset_of(const engine *e, uint32_t block, uint32_t slot) {
    const block_pool *pool = &e->home.store.pool;
    const device_shape *shape = &e->device->shape;
    uint32_t frame = pool->frame_of[block], extent_blocks;
    uintptr_t extent = (uintptr_t)block_pool_extent(pool, frame, &extent_blocks);
    return (uint64_t)(extent - (uintptr_t)origin_of(pool)) + frame % EXTENT_BLOCKS * shape->page_bytes +
           (uint64_t)slot * shape->dim * sizeof(uint16_t);
}

/* The rows of padding behind the step's (attention.h, row_count) are stored nowhere. Returns how many entries there
 * are. */
static uint32_t list_offsets(const engine *e, engine_device *d) {
    uint32_t count = 2 * e->step.row_count < d->rows_max ? 2 * e->step.row_count : d->rows_max;
    for (uint32_t row = 0; row < count; row++) d->offsets[row] = ROW_NOT_STORED;
    for (uint32_t i = 0; i < e->step.segment_count; i++) {
        const engine_segment *s = &e->step.segments[i];
        for (uint32_t k = 0; k < s->count; k++)
            d->offsets[s->first_row + k] = offset_of(e, s->block_index, s->slot + k);
    }
    return count;
}

/* The runs that a span's rows see, as pieces; false: no room. */
static bool list_pieces(const engine *e, engine_device *d, const plan_span *span, uint64_t window, uint32_t *used) {
    uint64_t first = span->first_position, last = first + span->row_count - 1;
    uint64_t visible = window != 0 && first + 1 > window ? first + 1 - window : 0;
    for (uint32_t i = sequence_run_at(span->runs, span->run_count, visible); i < span->run_count; i++) {
        const kv_run *run = &span->runs[i];
        if (run->position > last) break;
        if (*used == d->pieces_max) return false;
        d->pieces[(*used)++] = (attend_piece){
            .offset = offset_of(e, run->block.index, run->first), .position = run->position, .count = run->count};
    }
    return true;
}

static hd_status build(const engine *e, engine_device *d, uint32_t window) {
    uint32_t used = 0, span_count = 0;
    for (uint32_t i = 0; i < e->step.span_count; i++) {
        const plan_span *span = &e->step.spans[i];
        uint32_t first = used;
        if (span->is_replica) continue;
        if (!list_pieces(e, d, span, d->window_of[window], &used)) return HD_FULL;
        d->spans[span_count++] = (attend_span){.pieces = d->pieces + first,
                                               .piece_count = used - first,
                                               .first_row = span->first_row,
                                               .row_count = span->row_count,
                                               .first_position = span->first_position,
                                               .head_count = d->shape.kv_heads};
    }
    attend_tables_shape shape = {.group_size = d->shape.group_size, .window = d->window_of[window]};
    return attend_tables_build(&d->windows[window].tables, d->spans, span_count, &shape);
}

hd_status engine_device_begin(engine *e, hd_error *error) {
    engine_device *d = e->device;
    const kernel_device_ops *ops = d->device->ops;
    hd_status status = ops->wait(d->queue); /* staging has been copied, and the device is well */
    if (status != HD_OK)
        return hd_error_set(error, status, "%s has failed; see device_failed in the log", d->device->facts.name);
    uint32_t offset_count = list_offsets(e, d);
    for (uint32_t i = 0; i < d->window_count && status == HD_OK; i++) status = build(e, d, i);
    if (status != HD_OK) {
        return hd_error_set(error, status, "%u rows of %u sequences see more blocks than the tables of a step hold",
                            e->step.row_count, e->step.span_count);
    }
    status = ops->copy(d->queue, d->device_offsets, d->offsets, offset_count * sizeof(uint64_t));
    for (uint32_t i = 0; i < d->window_count && status == HD_OK; i++) {
        const window_tables *w = &d->windows[i];
        status = ops->copy(d->queue, w->region, w->tables.region, w->tables.used_bytes);
    }
    return status == HD_OK ? HD_OK : hd_error_set(error, status, "%s has failed", d->device->facts.name);
}

/* ---- A layer ---- */

static bool is_usable(const engine_device *d, const attention_tensor *tensor) {
    return tensor->data != NULL && tensor->dtype == HD_BF16 && tensor->place == ATTENTION_DEVICE &&
           tensor->queue == d->queue;
}

hd_status engine_device_submit(engine *e, const attention_layer_call *call) {
    engine_device *d = e->device;
    const device_shape *shape = &d->shape;
    const device_layer *layer = &d->layers[call->layer];
    const attention_layer *table = &e->table.layers[call->layer];
    const window_tables *w = &d->windows[layer->window];
    uint32_t rows = call->row_count != 0 ? call->row_count : e->step.row_count;
    if (rows < e->step.row_count || rows > d->rows_max || rows > 2 * e->step.row_count) return HD_INVALID;
    if (!is_usable(d, &call->queries) || !is_usable(d, &call->keys) || !is_usable(d, &call->values) ||
        !is_usable(d, &call->output) || call->output_stride < (size_t)shape->query_heads * shape->dim)
        return HD_INVALID;
    page_store_arguments store = {.offsets = d->device_offsets,
                                  .keys = call->keys.data,
                                  .values = call->values.data,
                                  .row_count = rows,
                                  .kv_heads = shape->kv_heads,
                                  .dim = shape->dim,
                                  .keys_to = layer->keys,
                                  .values_to = layer->values,
                                  .head_stride = EXTENT_BLOCKS * shape->page_bytes};
    hd_status status = device_page_store(d->queue, &store);
    if (status != HD_OK) return status;
    device_attend attend = {.dim = shape->dim,
                            .arguments = {.keys = layer->keys,
                                          .values = layer->values,
                                          .head_stride = EXTENT_BLOCKS * shape->page_bytes,
                                          .queries = call->queries.data,
                                          .query_head_stride = (uint64_t)rows * shape->group_size * shape->query_stride,
                                          .query_stride = shape->query_stride,
                                          .group_size = shape->group_size,
                                          .scale = table->scale,
                                          .soft_cap = table->soft_cap,
                                          .window = d->window_of[layer->window],
                                          .partials = d->partials,
                                          .stacks = d->stacks,
                                          .stack_levels = d->stack_levels},
                            .tables = &w->tables,
                            .region = w->region,
                            .split_rows_max = ATTEND_SPLIT_ROWS / shape->group_size * shape->group_size,
                            .output = call->output.data,
                            .output_stride = call->output_stride,
                            .query_heads = shape->query_heads};
    return device_attend_run(d->queue, &attend);
}
