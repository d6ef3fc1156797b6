/* engine_memory.c - cuts the budget into blocks and everything that goes with them.
 *
 * One function lists every table with its size; open takes them in the same order from one arena. The number of blocks
 * is the largest for which the sum stays within the budget. */
#include <assert.h>
#include <inttypes.h>

#include "attention-node/engine_state.h"
#include "base/flags.h"

#define PAGES_MIN 128u         /* of the cache: rounds of a few items with the pages of a group each */
#define PAGES_BESIDE_ROWS 512u /* that items may be cut for */
#define GRAINS_MIN 4096u       /* of the cache of single tokens: a few pages of found tokens */
#define PIECES_MAX 64u         /* of a tile, when pages come from disk */

static uint64_t aligned(uint64_t bytes) {
    return HD_ALIGN_UP(bytes, (uint64_t)HD_CACHE_LINE);
}

static plan_limits limits_of(const engine_config *config) {
    plan_limits limits = {.rows_max = config->step_rows_max,
                          .spans_max = config->sequences_max,
                          .tile_rows = config->kernels->attend_rows_best,
                          .thread_count = hd_pool_thread_count(config->pool)};
    for (uint32_t i = 0; i < config->layers.layer_count; i++) {
        const attention_layer *l = &config->layers.layers[i];
        uint32_t kv_heads = config->layers.streams[l->key_stream].heads, group_size = l->query_heads / kv_heads;
        if (kv_heads > limits.kv_heads_max) limits.kv_heads_max = kv_heads;
        if (group_size > limits.group_size_max) limits.group_size_max = group_size;
    }
    return limits;
}

static uint32_t value_dim_max_of(const attention_layer_table *table) {
    uint32_t dim = 0;
    for (uint32_t i = 0; i < table->layer_count; i++) {
        if (table->layers[i].value_dim > dim) dim = table->layers[i].value_dim;
    }
    return (uint32_t)aligned(dim * sizeof(float)) / sizeof(float);
}

static uint64_t sink_count_of(const attention_layer_table *table) {
    uint64_t count = 0;
    for (uint32_t i = 0; i < table->layer_count; i++) {
        if (table->layers[i].sink_logits != NULL) count += HD_ALIGN_UP(table->layers[i].query_heads, 16u);
    }
    return count;
}

static bool has_states(const attention_layer_table *table) {
    return attention_layer_table_state_bytes(table) != 0;
}

static uint32_t partials_per_thread_of(uint32_t block_count) {
    return merge_tree_partials_max(block_count / HD_GROUP_BLOCKS + 2);
}

/* A partial of a full item: out, max, sum. */
static uint64_t partial_bytes_of(const plan_limits *limits, uint32_t value_dim_max) {
    return aligned((uint64_t)attend_plan_item_rows_max(limits) * (value_dim_max + 2) * sizeof(float));
}

static uint64_t thread_bytes(const engine_config *config, const plan_limits *limits, uint32_t block_count) {
    return aligned(config->kernels->scratch_bytes) + aligned(HD_GROUP_TOKENS * sizeof(kernel_span)) +
           aligned(attend_plan_item_rows_max(limits) * sizeof(uint64_t)) +
           partials_per_thread_of(block_count) * partial_bytes_of(limits, value_dim_max_of(&config->layers));
}

/* Of one view. */
static uint64_t step_bytes(const engine_config *config) {
    return aligned(config->sequences_max * sizeof(sequence *)) +
           2 * aligned(config->sequences_max * sizeof(plan_span)) +
           aligned(config->step_rows_max * sizeof(engine_segment)) +
           aligned(config->step_rows_max * sizeof(engine_sparse_row));
}

/* How the budget is cut. */
typedef struct {
    plan_limits limits;
    block_tiers tiers;
    uint64_t stream_groups; /* of an item, when pages come from disk */
} cut;

static uint32_t block_count_of(const cut *c) {
    return c->tiers.frame_count + c->tiers.slot_count;
}

static uint64_t page_bytes_max_of(const attention_layer_table *table) {
    uint64_t most = 0;
    for (uint32_t i = 0; i < table->stream_count; i++) {
        uint64_t bytes = attention_stream_page_bytes(&table->streams[i]);
        if (bytes > most) most = bytes;
    }
    return most;
}

static uint64_t arena_bytes(const engine_config *config, const cut *c) {
    const attention_layer_table *table = &config->layers;
    const plan_limits *limits = &c->limits;
    uint64_t partial_rows = attend_plan_partial_rows_max(limits);
    return aligned(sizeof(engine)) + aligned(table->stream_count * sizeof(attention_stream)) +
           aligned(table->layer_count * sizeof(engine_layer)) + aligned(table->layer_count * sizeof(attention_layer)) +
           sink_count_of(table) * sizeof(float) + block_store_table_bytes(table, &c->tiers) +
           sequence_table_bytes(config->sequences_max) +
           (has_states(table) ? state_store_table_bytes(table, config->snapshots_max)
                              : state_store_table_bytes(table, 0)) +
           attend_plan_table_bytes(limits) + aligned(limits->thread_count * sizeof(engine_thread)) +
           limits->thread_count * thread_bytes(config, limits, block_count_of(c)) +
           aligned(partial_rows * value_dim_max_of(table) * sizeof(float)) + 2 * aligned(partial_rows * sizeof(float)) +
           aligned(config->views_max * sizeof(engine_view)) + (config->views_max + 1) * step_bytes(config) +
           (c->tiers.slot_count > 0 ? aligned(page_bytes_max_of(table)) : 0);
}

static uint64_t total_bytes(const engine_config *config, const cut *c) {
    /* What is in this process's memory beside a device's is little, and not part of the budget. */
    if (config->queue != NULL)
        return block_pool_payload_bytes(&config->layers, c->tiers.frame_count - c->tiers.memory.pinned_frames) +
               engine_device_bytes(config, c->tiers.frame_count);
    return arena_bytes(config, c) + block_pool_payload_bytes(&config->layers, c->tiers.frame_count) +
           c->tiers.page_count * block_layout_unit_bytes_max(&config->layers) +
           row_cache_memory_bytes(c->tiers.grain_count) +
           run_table_bytes(config->sequences_max, block_count_of(c),
                           attention_layer_table_block_bytes(&config->layers));
}

/* How many pages so many bytes hold, with the tables that say where they are. */
static uint32_t pages_of(const engine_config *config, uint32_t slot_count, uint64_t bytes) {
    uint64_t slot_bytes = block_layout_unit_bytes_max(&config->layers), units = 0;
    assert(slot_bytes > 0); /* the table was checked: its layers have records */
    uint64_t blocks = slot_count + config->hot_bytes / attention_layer_table_block_bytes(&config->layers);
    for (uint32_t i = 0; i < config->layers.stream_count; i++) units += config->layers.streams[i].heads;
    uint64_t most = bytes / slot_bytes, low = 0, high = most < UINT32_MAX / 4 ? most : UINT32_MAX / 4;
    while (low < high) {
        uint64_t middle = low + (high - low + 1) / 2;
        uint64_t tables = page_cache_table_bytes((uint32_t)blocks, (uint32_t)units, (uint32_t)middle);
        if (middle * slot_bytes + tables <= bytes) low = middle;
        else high = middle - 1;
    }
    return (uint32_t)low;
}

/* Of an engine that searches three quarters of the warm budget are for single tokens, as far as enough whole pages
 * stay; where that leaves little, all are whole pages. */
static void cut_warm(const engine_config *config, block_tiers *tiers) {
    uint64_t warm = config->warm_bytes, row_bytes = warm / 4 * 3;
    uint32_t all = pages_of(config, tiers->slot_count, warm);
    tiers->page_count = all;
    tiers->grain_count = 0;
    if (config->index_bytes == 0) return;
    uint32_t pages = pages_of(config, tiers->slot_count, warm - row_bytes);
    if (pages < PAGES_BESIDE_ROWS) {
        uint64_t page_bytes = (all > 0 ? warm / all : warm) * PAGES_BESIDE_ROWS;
        row_bytes = warm > page_bytes ? warm - page_bytes : 0;
        pages = pages_of(config, tiers->slot_count, warm - row_bytes);
    }
    uint32_t grains = row_cache_grains(row_bytes);
    if (grains < GRAINS_MIN) return;
    tiers->page_count = pages;
    tiers->grain_count = grains;
}

/* An item's pages are an eighth of the cache or less, and a tile has few enough items for the plan's memory. */
static void set_pieces(cut *c) {
    uint64_t pages_of_group = 2 * HD_GROUP_BLOCKS, groups = block_count_of(c) / HD_GROUP_BLOCKS + 1;
    c->stream_groups = 1;
    while (2 * c->stream_groups * pages_of_group <= c->tiers.page_count / 8) c->stream_groups *= 2;
    while (groups / c->stream_groups > PIECES_MAX && c->stream_groups * pages_of_group * 4 <= c->tiers.page_count)
        c->stream_groups *= 2;
    uint64_t pieces = groups / c->stream_groups + 2;
    c->limits.pieces_max = pieces < PIECES_MAX + 2 ? (uint32_t)pieces : PIECES_MAX + 2;
}

static void set_frames(const engine_config *config, cut *c, uint32_t frame_count) {
    c->tiers.frame_count = frame_count;
    if (c->tiers.slot_count > 0) set_pieces(c);
}

/* Whole extents: hot ones in the device's memory, beside the tables for all of them, and warm ones in pinned memory. */
static uint32_t device_frames_of(const engine_config *config, cut *c) {
    uint64_t extent_bytes = EXTENT_BLOCKS * attention_layer_table_block_bytes(&config->layers);
    uint64_t most = UINT32_MAX / 64 / EXTENT_BLOCKS, warm = config->warm_bytes / extent_bytes, low = 0, high = most;
    if (warm > most) warm = most;
    if (config->hot_bytes / extent_bytes < high) high = config->hot_bytes / extent_bytes;
    c->tiers.memory.pinned_frames = (uint32_t)warm * EXTENT_BLOCKS;
    while (low < high) {
        uint64_t middle = low + (high - low + 1) / 2;
        set_frames(config, c, (uint32_t)(middle + warm) * EXTENT_BLOCKS);
        if (total_bytes(config, c) <= config->hot_bytes) low = middle;
        else high = middle - 1;
    }
    if (low == 0) c->tiers.memory.pinned_frames = 0;
    return low > 0 ? (uint32_t)(low + warm) * EXTENT_BLOCKS : 0;
}

/* The largest number of blocks in memory that the budget holds. */
static uint32_t frames_of(const engine_config *config, cut *c) {
    if (config->queue != NULL) return device_frames_of(config, c);
    uint64_t budget = config->hot_bytes + config->warm_bytes;
    uint64_t most = budget / attention_layer_table_block_bytes(&config->layers);
    uint32_t low = 0, high = most < UINT32_MAX / 4 ? (uint32_t)most : UINT32_MAX / 4;
    while (low < high) {
        uint32_t middle = low + (high - low + 1) / 2;
        set_frames(config, c, middle);
        if (total_bytes(config, c) <= budget) low = middle;
        else high = middle - 1;
    }
    return low;
}

static hd_status check_frames(const engine_config *config, cut *c, uint32_t least, hd_error *error) {
    if (c->tiers.frame_count >= least) return HD_OK;
    char budget[32], block[32];
    hd_format_size(config->hot_bytes + config->warm_bytes, budget, sizeof(budget));
    hd_format_size(attention_layer_table_block_bytes(&config->layers), block, sizeof(block));
    set_frames(config, c, least);
    return hd_error_set(error, HD_INVALID,
                        "%s for keys and values hold no tokens: at least %" PRIu64
                        " KiB are needed, and %s more for each further %u tokens",
                        budget, (total_bytes(config, c) + 1023) / 1024, block, HD_BLOCK_TOKENS);
}

static hd_status cut_tiers(const engine_config *config, cut *c, hd_error *error) {
    uint64_t block_bytes = attention_layer_table_block_bytes(&config->layers);
    c->tiers = (block_tiers){.cold = {.directory = config->cold_directory,
                                      .size_bytes = config->cold_bytes,
                                      .fingerprint = config->fingerprint,
                                      .kv_dtype = config->kv_dtype},
                             .memory = {.queue = config->queue}};
    if (config->cold_directory == NULL) return HD_OK;
    c->tiers.slot_count = cold_slot_count(config->cold_bytes, block_bytes);
    char given[32], block[32];
    if (c->tiers.slot_count == 0) {
        return hd_error_set(error, HD_INVALID, "--cold-size %s holds no extent of %u blocks of %s",
                            hd_format_size(config->cold_bytes, given, sizeof(given)), EXTENT_BLOCKS,
                            hd_format_size(block_bytes, block, sizeof(block)));
    }
    cut_warm(config, &c->tiers);
    if (c->tiers.page_count >= PAGES_MIN) return HD_OK;
    return hd_error_set(error, HD_INVALID,
                        "--warm-memory %s holds %u pages of the cold tier, but %u are needed: %" PRIu64
                        " KiB and tables",
                        hd_format_size(config->warm_bytes, given, sizeof(given)), c->tiers.page_count, PAGES_MIN,
                        PAGES_MIN * block_layout_unit_bytes_max(&config->layers) / 1024);
}

/* Frames that every step can count on: one for each open sequence's last block, and those that its rows begin. */
static uint32_t frames_min_of(const engine_config *config) {
    if (config->queue != NULL) return EXTENT_BLOCKS;
    return config->cold_directory == NULL ? 1 : config->step_rows_max / HD_BLOCK_TOKENS + 4;
}

/* ---- Taking it ---- */

static void *take(engine *e, uint64_t bytes) {
    void *memory = hd_arena_take(&e->arena, (size_t)bytes);
    assert(memory != NULL);
    return memory;
}

static void copy_table(engine *e, const attention_layer_table *table) {
    attention_stream *streams = take(e, table->stream_count * sizeof(*streams));
    attention_layer *layers = take(e, table->layer_count * sizeof(*layers));
    memcpy(streams, table->streams, table->stream_count * sizeof(*streams));
    memcpy(layers, table->layers, table->layer_count * sizeof(*layers));
    for (uint32_t i = 0; i < table->layer_count; i++) {
        if (layers[i].sink_logits == NULL) continue;
        float *sinks = take(e, layers[i].query_heads * sizeof(float));
        memcpy(sinks, layers[i].sink_logits, layers[i].query_heads * sizeof(float));
        layers[i].sink_logits = sinks;
    }
    e->table = (attention_layer_table){streams, table->stream_count, layers, table->layer_count};
}

static bool is_plain(const attention_stream *stream, hd_dtype kv_dtype) {
    return stream->tokens_per_record == 1 && stream->codec == kv_dtype && stream->dim % KERNEL_N_ALIGN == 0;
}

static void init_layers(engine *e, hd_dtype kv_dtype) {
    e->layers = take(e, e->table.layer_count * sizeof(*e->layers));
    for (uint32_t i = 0; i < e->table.layer_count; i++) {
        const attention_layer *l = &e->table.layers[i];
        const attention_stream *keys = &e->table.streams[l->key_stream], *values = &e->table.streams[l->value_stream];
        uint64_t window = l->window != 0 ? l->window : keys->window;
        e->layers[i] = (engine_layer){
            .table = *l,
            .shape = {.dtype = kv_dtype, .key_dim = keys->dim, .value_dim = l->value_dim},
            .plan = {.kv_heads = keys->heads, .group_size = l->query_heads / keys->heads, .window = window},
            .query_dim = HD_ALIGN_UP(keys->dim, KERNEL_K_ALIGN),
            .is_computable = !l->value_is_key_prefix && is_plain(keys, kv_dtype) && is_plain(values, kv_dtype),
            .is_owner = keys->owner_layer == i && values->owner_layer == i,
        };
        if (!e->layers[i].is_computable) continue;
        e->computable_count++;
        assert(kernel_page_key_bytes(&e->layers[i].shape) <= attention_stream_page_bytes(keys));
        assert(kernel_page_value_bytes(&e->layers[i].shape) <= attention_stream_page_bytes(values));
    }
}

static void init_threads(engine *e, const engine_config *config, const plan_limits *limits, uint32_t block_count) {
    e->partials_per_thread = partials_per_thread_of(block_count);
    e->threads = take(e, limits->thread_count * sizeof(*e->threads));
    for (uint32_t i = 0; i < limits->thread_count; i++) {
        engine_thread *t = &e->threads[i];
        t->kernel_scratch = take(e, config->kernels->scratch_bytes);
        t->spans = take(e, HD_GROUP_TOKENS * sizeof(*t->spans));
        t->positions = take(e, e->item_rows_max * sizeof(*t->positions));
        t->partials = take(e, e->partials_per_thread * partial_bytes_of(limits, e->value_dim_max));
    }
}

static void init_step(engine *e, const engine_config *config, engine_step *step) {
    step->sequences = take(e, config->sequences_max * sizeof(*step->sequences));
    step->spans = take(e, config->sequences_max * sizeof(*step->spans));
    step->full_spans = take(e, config->sequences_max * sizeof(*step->full_spans));
    step->segments = take(e, config->step_rows_max * sizeof(*step->segments));
    step->sparse_rows = take(e, config->step_rows_max * sizeof(*step->sparse_rows));
}

static void init_views(engine *e, const engine_config *config) {
    e->own.engine = e;
    e->active = &e->own;
    init_step(e, config, &e->step);
    e->view_count = config->views_max;
    e->views = take(e, e->view_count * sizeof(*e->views));
    for (uint32_t i = 0; i < e->view_count; i++) {
        e->views[i] = (engine_view){.engine = e};
        init_step(e, config, &e->views[i].step);
    }
}

hd_status engine_memory_open(engine *e, const engine_config *config, hd_error *error) {
    cut c = {.limits = limits_of(config)};
    hd_status status = cut_tiers(config, &c, error);
    if (status != HD_OK) return status;
    set_frames(config, &c, frames_of(config, &c));
    status = check_frames(config, &c, frames_min_of(config), error);
    if (status != HD_OK) return status;

    const plan_limits limits = c.limits;
    uint32_t block_count = block_count_of(&c);
    uint64_t block_bytes = attention_layer_table_block_bytes(&config->layers);
    status = hd_arena_init(&e->arena, (size_t)(arena_bytes(config, &c) - aligned(sizeof(engine))));
    if (status == HD_OK) status = run_table_init(&e->home.runs, config->sequences_max, block_count, block_bytes);
    if (status != HD_OK) {
        char budget[32];
        return hd_error_set(error, status, "cannot map %s for keys and values",
                            hd_format_size(config->hot_bytes + config->warm_bytes, budget, sizeof(budget)));
    }
    status = block_store_init(&e->home.store, &config->layers, &c.tiers, &e->arena, error);
    if (status != HD_OK) return status;
    if (e->home.store.has_cold) {
        memcpy(e->home.key, e->home.store.cold.directory.key, sizeof(e->home.key));
        e->no_page = take(e, page_bytes_max_of(&config->layers));
        memset(e->no_page, 0, page_bytes_max_of(&config->layers));
    }
    e->stream_groups = c.stream_groups;
    e->tokens_max = UINT64_MAX;
    if (e->home.store.has_cold) e->tokens_max = (uint64_t)PIECES_MAX * c.stream_groups * HD_GROUP_TOKENS;
    copy_table(e, &config->layers);
    init_layers(e, config->kv_dtype);
    sequence_table_init(&e->sequences, config->sequences_max, &e->arena);
    state_store_init(&e->states, &config->layers, has_states(&config->layers) ? config->snapshots_max : 0, &e->arena);
    attend_plan_init(&e->plan, &limits, &e->arena);
    e->item_rows_max = attend_plan_item_rows_max(&limits);
    e->value_dim_max = value_dim_max_of(&config->layers);
    init_threads(e, config, &limits, block_count);
    uint64_t partial_rows = attend_plan_partial_rows_max(&limits);
    e->item_out = take(e, partial_rows * e->value_dim_max * sizeof(float));
    e->item_max = take(e, partial_rows * sizeof(float));
    e->item_sum = take(e, partial_rows * sizeof(float));
    init_views(e, config);
    assert(e->arena.used_bytes <= e->arena.capacity_bytes);
    return HD_OK;
}

void engine_memory_close(engine *e) {
    block_store_fini(&e->home.store);
    run_table_fini(&e->home.runs);
    hd_arena_fini(&e->arena);
}
