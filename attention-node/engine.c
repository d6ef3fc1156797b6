/* engine.c - the attention interface over blocks in this process: sequences come, share, fork, are cut and go. */
#include "attention-node/engine.h"

#include <assert.h>
#include <sodium.h>

#include "attention-node/engine_state.h"

#define COLD_PATIENCE_MS 500u

void engine_publish(engine *e) {
    const block_store *store = &e->home.store;
    atomic_store_explicit(&e->published.blocks_sequences, store->held, memory_order_relaxed);
    atomic_store_explicit(&e->published.blocks_reserved, store->reserved, memory_order_relaxed);
    atomic_store_explicit(&e->published.blocks_cached, store->cache.retired_count, memory_order_relaxed);
    atomic_store_explicit(&e->published.sequences, e->sequences.open_count, memory_order_relaxed);
    atomic_store_explicit(&e->published.evicted_blocks, store->evicted, memory_order_relaxed);
    const extent_table *frames = &store->pool.frames, *slots = &store->cold.slots;
    atomic_store_explicit(&e->published.hot_blocks, frames->slot_count - frames->free_count, memory_order_relaxed);
    if (!store->has_cold) return;
    uint64_t warm_bytes = (store->pages.slot_count - store->pages.fresh_count) * store->pages.slot_bytes +
                          (uint64_t)(store->rows.grain_count - store->rows.fresh_count) * store->rows.grain_bytes;
    atomic_store_explicit(&e->published.warm_bytes, warm_bytes, memory_order_relaxed);
    atomic_store_explicit(&e->published.cold_blocks, slots->slot_count - slots->free_count, memory_order_relaxed);
}

/* ---- Opening a sequence ---- */

static uint64_t least(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

static bool is_range(const attention_sequence_params *params) {
    return params->end_position != 0;
}

/* How many tokens it may have at most. */
static uint64_t room_of(const attention_sequence_params *params) {
    if (!is_range(params)) return params->tokens_max;
    uint64_t end = least(params->tokens_max, params->end_position);
    return end > params->first_position ? end - params->first_position : 0;
}

static hd_status check_range(const engine *e, const attention_sequence_params *params, hd_error *error) {
    uint64_t first = params->first_position, size = params->end_position - first;
    if (!is_range(params) && first == 0) return HD_OK;
    if (params->end_position <= first || size % HD_GROUP_TOKENS != 0 || (size & (size - 1)) != 0 || first % size != 0) {
        return hd_error_set(error, HD_INVALID, "positions %llu to %llu are no aligned power of two of %u",
                            (unsigned long long)first, (unsigned long long)params->end_position, HD_GROUP_TOKENS);
    }
    if (e->home.is_sharing) return HD_OK;
    return hd_error_set(error, HD_UNSUPPORTED, "a model with states cannot be split by positions");
}

/* Each open sequence has a block that is not full, and may begin one in a step: they have to be in memory. */
static hd_status check_frames(const engine *e, hd_error *error) {
    const block_store *store = &e->home.store;
    if (!store->has_cold) return HD_OK;
    uint32_t needed = 2 * (e->sequences.open_count + 1) + e->rows_max / HD_BLOCK_TOKENS,
             there = store->pool.frames.slot_count;
    if (needed <= there) return HD_OK;
    return hd_error_set(error, HD_FULL,
                        "%u sequences are open, and the %u blocks of hot memory have no room for the last ones of "
                        "another",
                        e->sequences.open_count, there);
}

static hd_status check_params(const engine *e, const attention_sequence_params *params, hd_error *error) {
    hd_status status = check_range(e, params, error);
    if (status != HD_OK) return status;
    if (room_of(params) > e->tokens_max) {
        return hd_error_set(error, HD_INVALID,
                            "%llu tokens never fit: with this much warm memory the cold tier serves sequences of %llu",
                            (unsigned long long)room_of(params), (unsigned long long)e->tokens_max);
    }
    if (params->prompt_count > params->tokens_max) {
        return hd_error_set(error, HD_INVALID, "%llu tokens of prompt, but %llu at most",
                            (unsigned long long)params->prompt_count, (unsigned long long)params->tokens_max);
    }
    if (params->token_count <= room_of(params)) return HD_OK;
    return hd_error_set(error, HD_INVALID, "%llu tokens of prompt, but %llu at most",
                        (unsigned long long)params->token_count, (unsigned long long)room_of(params));
}

/* The last token's forward pass has to run, whatever is there; of a range, the caller sees to that. */
static uint64_t reusable(const attention_sequence_params *params) {
    if (is_range(params)) return params->token_count;
    return params->token_count == 0 ? 0 : params->token_count - 1;
}

static uint64_t exact_count_of(const attention_sequence_params *params) {
    return params->prompt_count == 0 ? params->token_count : params->prompt_count;
}

static identity_scope scope_of(const attention_sequence_params *params) {
    identity_scope scope = {.variant = params->variant};
    memcpy(scope.salt, params->salt, sizeof(scope.salt));
    scope.first_position = params->first_position;
    if (params->has_prefix && params->first_position > 0) memcpy(scope.prefix, params->prefix, sizeof(scope.prefix));
    return scope;
}

/* Another owner goes on with an open sequence. It may know fewer tokens than are there (the last ones were never heard
 * of), or another continuation; what agrees stays. */
static hd_status take_over(engine *e, sequence *s, const attention_sequence_params *params, const selection *chosen,
                           uint64_t *cached_tokens, hd_error *error) {
    if (params->epoch <= s->epoch) {
        return hd_error_set(error, HD_STALE, "sequence %llu is open under epoch %llu",
                            (unsigned long long)params->sequence, (unsigned long long)s->epoch);
    }
    identity_scope scope = scope_of(params);
    /* What was to come when the range was opened is known to a later owner, or the other way round. */
    if (s->is_private || !params->has_prefix) memcpy(scope.prefix, s->scope.prefix, sizeof(scope.prefix));
    bool is_same_selection = selection_is_equal(chosen, &s->selection) &&
                             (selection_is_full(chosen) || exact_count_of(params) == s->exact_count);
    bool is_same_range = s->range == (is_range(params) ? params->end_position - params->first_position : 0);
    if (!identity_scope_is_equal(&scope, &s->scope) || !is_same_selection || !is_same_range) {
        return hd_error_set(error, HD_INVALID,
                            "sequence %llu is open with another salt, variant, selection, prompt or range",
                            (unsigned long long)params->sequence);
    }
    engine_take_from_step(e, s);
    uint64_t same = sequence_match(&e->home, s, 0, params->token_ids, params->token_count);
    same = state_store_resumable(&e->states, s->slot, same);
    hd_status status = sequence_truncate(&e->home, s, same);
    if (status != HD_OK)
        return hd_error_set(error, status, "no memory to cut sequence %llu", (unsigned long long)params->sequence);
    state_store_truncate(&e->states, s->slot, same);
    if (s->indexes != NULL) index_set_truncate(s->indexes, same);
    status = sequence_set_tokens_max(&e->home, s, room_of(params), error);
    if (status == HD_OK) status = engine_indexes_follow(e, s, error);
    if (status != HD_OK) return status;
    s->epoch = params->epoch;
    *cached_tokens = least(same, reusable(params));
    return HD_OK;
}

/* A slot under that name, or the reason why there is none. */
static hd_status take_slot(engine *e, uint64_t name, uint64_t epoch, sequence **out, hd_error *error) {
    block_store_poll(&e->home.store);
    hd_status status = check_frames(e, error);
    if (status != HD_OK) return status;
    if (sequence_table_find(&e->sequences, name) != NULL) {
        return hd_error_set(error, HD_INVALID, "sequence %llu is open already", (unsigned long long)name);
    }
    sequence *s = sequence_table_take(&e->sequences, name);
    if (s == NULL) return hd_error_set(error, HD_FULL, "all %u sequences are open", e->sequences_max);
    s->epoch = epoch;
    *out = s;
    return HD_OK;
}

static void count_prefix(engine *e, uint64_t queried, uint64_t hit) {
    atomic_fetch_add_explicit(&e->published.prefix_queries_tokens, queried, memory_order_relaxed);
    atomic_fetch_add_explicit(&e->published.prefix_hits_tokens, hit, memory_order_relaxed);
}

static hd_status sequence_open(attention *self, const attention_sequence_params *params, uint64_t *cached_tokens,
                               hd_error *error) {
    engine *e = engine_of(self);
    assert(!e->step.is_open);
    selection chosen;
    hd_status status = check_params(e, params, error);
    if (status == HD_OK) status = selection_parse(params->selection, &chosen, error);
    if (status != HD_OK) return status;
    if (e->device != NULL && (is_range(params) || !selection_is_full(&chosen))) {
        return hd_error_set(error, HD_UNSUPPORTED, "keys and values are on a device, which has no %s yet: ask for full",
                            is_range(params) ? "ranges of positions" : chosen.ops->name);
    }
    if (is_range(params) && !selection_is_full(&chosen)) {
        return hd_error_set(error, HD_UNSUPPORTED, "selection '%s' does not go with a split by positions",
                            chosen.ops->name);
    }

    sequence *s = sequence_table_find(&e->sequences, params->sequence);
    if (s != NULL) {
        status = take_over(e, s, params, &chosen, cached_tokens, error);
        engine_publish(e);
        return status;
    }
    status = take_slot(e, params->sequence, params->epoch, &s, error);
    if (status != HD_OK) return status;
    s->scope = scope_of(params);
    s->selection = chosen;
    s->exact_count = exact_count_of(params);
    s->first = params->first_position;
    if (is_range(params)) s->range = params->end_position - params->first_position;
    s->is_private = params->first_position > 0 && !params->has_prefix;
    uint64_t reuse_max = least(params->reuse_max, reusable(params));
    status = sequence_start(&e->home, s, params->token_ids, params->token_count, reuse_max, room_of(params), error);
    if (status == HD_OK) {
        status = engine_indexes_open(e, s, error);
        if (status != HD_OK) sequence_finish(&e->home, s, RETAIN_EARLY);
    }
    if (status != HD_OK) {
        sequence_table_give(&e->sequences, s);
        return status;
    }
    *cached_tokens = least(s->length, reuse_max);
    if (reuse_max > 0) count_prefix(e, params->token_count, *cached_tokens);
    engine_publish(e);
    return HD_OK;
}

static hd_status fork_sequence(attention *self, uint64_t source_name, uint64_t length, uint64_t name, uint64_t epoch,
                               uint64_t tokens_max, hd_error *error) {
    engine *e = engine_of(self);
    assert(!e->step.is_open);
    sequence *source = sequence_table_find(&e->sequences, source_name), *s = NULL;
    if (source == NULL) return hd_error_set(error, HD_NOT_FOUND, "no sequence %llu", (unsigned long long)source_name);
    uint64_t place = sequence_place(source, length), room = sequence_place(source, tokens_max);
    if (place > source->length || place > room) {
        return hd_error_set(error, HD_INVALID,
                            "cannot fork %llu tokens of sequence %llu, which has %llu, to at most %llu",
                            (unsigned long long)length, (unsigned long long)source_name,
                            (unsigned long long)(source->first + source->length), (unsigned long long)tokens_max);
    }
    place = state_store_resumable(&e->states, source->slot, place);
    hd_status status = take_slot(e, name, epoch, &s, error);
    if (status != HD_OK) return status;
    status = sequence_start_fork(&e->home, s, source, place, room, error);
    if (status == HD_OK) {
        status = engine_indexes_fork(source, s, error);
        if (status != HD_OK) sequence_finish(&e->home, s, RETAIN_NOT);
    }
    if (status == HD_OK) state_store_copy(&e->states, source->slot, place, s->slot);
    else sequence_table_give(&e->sequences, s);
    engine_publish(e);
    return status;
}

/* ---- An open sequence ---- */

/* A newer epoch than the sequence's is news of a takeover; an older one is refused. */
static hd_status find_owned(engine *e, uint64_t name, uint64_t epoch, sequence **out) {
    sequence *s = sequence_table_find(&e->sequences, name);
    if (s == NULL) return HD_NOT_FOUND;
    if (epoch < s->epoch) return HD_STALE;
    engine_take_from_step(e, s);
    s->epoch = epoch;
    *out = s;
    return HD_OK;
}

static hd_status truncate_sequence(attention *self, uint64_t name, uint64_t epoch, uint64_t length) {
    engine *e = engine_of(self);
    assert(!e->step.is_open);
    sequence *s = NULL;
    hd_status status = find_owned(e, name, epoch, &s);
    if (status != HD_OK) return status;
    length = sequence_place(s, length);
    if (length > s->length) return HD_INVALID;
    length = state_store_resumable(&e->states, s->slot, length);
    status = sequence_truncate(&e->home, s, length);
    if (status == HD_OK) state_store_truncate(&e->states, s->slot, length);
    if (status == HD_OK && s->indexes != NULL) index_set_truncate(s->indexes, length);
    engine_publish(e);
    return status;
}

static hd_status close_sequence(attention *self, uint64_t name, uint64_t epoch, bool keep, bool early) {
    engine *e = engine_of(self);
    assert(!e->step.is_open);
    sequence *s = NULL;
    hd_status status = find_owned(e, name, epoch, &s);
    if (status != HD_OK) return status;
    index_set_close(s->indexes, keep);
    s->indexes = NULL;
    sequence_finish(&e->home, s, !keep ? RETAIN_NOT : early ? RETAIN_EARLY : RETAIN_KEPT);
    state_store_drop(&e->states, s->slot);
    sequence_table_give(&e->sequences, s);
    engine_publish(e);
    return HD_OK;
}

static hd_status sequence_length(const attention *self, uint64_t name, uint64_t *length) {
    const sequence *s = sequence_table_find(&engine_seen(self)->sequences, name);
    if (s == NULL) return HD_NOT_FOUND;
    hd_status status = (hd_status)atomic_load_explicit(&s->step_status, memory_order_relaxed);
    if (status != HD_OK) return status;
    *length = s->first + s->length;
    return HD_OK;
}

static bool is_ready(attention *self, uint64_t name, uint64_t position) {
    const sequence *s = sequence_table_find(&engine_seen(self)->sequences, name);
    return s == NULL || s->indexes == NULL || index_set_is_ready(s->indexes, position);
}

static hd_status find_sequence(attention *self, uint64_t name, attention_found *found, uint32_t found_max,
                               uint32_t *found_count) {
    const engine *e = engine_seen(self);
    *found_count = 0;
    for (uint64_t range = 0; range <= UINT8_MAX && *found_count < found_max; range++) {
        const sequence *s = sequence_table_find(&e->sequences, name | range << ATTENTION_NAME_BITS);
        if (s == NULL || s->is_importing) continue;
        found[(*found_count)++] = (attention_found){.name = s->name,
                                                    .epoch = s->epoch,
                                                    .first_position = s->first,
                                                    .end_position = s->range == 0 ? 0 : s->first + s->range,
                                                    .length = s->first + s->length};
    }
    return HD_OK;
}

static hd_status find_prefix(attention *self, const attention_sequence_params *params, uint64_t *cached_tokens) {
    identity_scope scope = scope_of(params);
    bool is_findable = params->first_position == 0 || params->has_prefix;
    *cached_tokens = is_findable ? sequence_find_prefix(&engine_seen(self)->home, &scope, params->token_ids,
                                                        least(params->token_count, params->reuse_max))
                                 : 0;
    return HD_OK;
}

static hd_status state_save(attention *self, uint64_t name, uint64_t epoch, uint64_t position, uint32_t stream,
                            const void *bytes) {
    engine *e = engine_of(self);
    sequence *s = NULL;
    hd_status status = find_owned(e, name, epoch, &s);
    if (status != HD_OK) return status;
    if (stream >= e->table.stream_count || position == 0 || position > s->length) return HD_INVALID;
    return state_store_save(&e->states, s->slot, position, stream, bytes);
}

static hd_status state_load(const attention *self, uint64_t name, uint64_t position, uint32_t stream, void *bytes) {
    const engine *e = engine_seen(self);
    const sequence *s = sequence_table_find(&e->sequences, name);
    if (s == NULL) return HD_NOT_FOUND;
    if (stream >= e->table.stream_count) return HD_INVALID;
    return state_store_load(&e->states, s->slot, position, stream, bytes);
}

/* ---- The whole ---- */

static void cache_reset(attention *self) {
    engine *e = engine_of(self);
    block_store_reset_cache(&e->home.store);
    if (e->indexes != NULL) index_home_reset(e->indexes);
    engine_publish(e);
}

static uint64_t read_stat(const _Atomic uint64_t *value) {
    return atomic_load_explicit(value, memory_order_relaxed);
}

static void read_stats(const attention *self, attention_stats *stats) {
    const engine *e = engine_seen(self);
    const block_store *store = &e->home.store;
    *stats = (attention_stats){
        .budget_bytes = e->budget_bytes,
        .block_bytes = e->home.store.pool.layout.block_bytes,
        .blocks_total = e->home.store.pool.block_count,
        .blocks_whole = e->home.store.pool.block_count,
        .blocks_sequences = read_stat(&e->published.blocks_sequences),
        .blocks_reserved = read_stat(&e->published.blocks_reserved),
        .blocks_cached = read_stat(&e->published.blocks_cached),
        .sequences = read_stat(&e->published.sequences),
        .prefix_queries_tokens = read_stat(&e->published.prefix_queries_tokens),
        .prefix_hits_tokens = read_stat(&e->published.prefix_hits_tokens),
        .appended_tokens = read_stat(&e->published.appended_tokens),
        .evicted_blocks = read_stat(&e->published.evicted_blocks),
        .hot_used_bytes = read_stat(&e->published.hot_blocks) * store->pool.layout.block_bytes,
        .compute_threads = hd_pool_thread_count(e->pool),
        .layer_work_ns = read_stat(&e->published.layer_work_ns),
    };
    engine_retrieve_stats(e, stats);
    if (!store->has_cold) return;
    stats->warm_bytes = e->warm_bytes;
    stats->cold_bytes = e->cold_bytes;
    stats->warm_used_bytes = read_stat(&e->published.warm_bytes);
    stats->cold_used_bytes = read_stat(&e->published.cold_blocks) * store->pool.layout.block_bytes;
    stats->page_hits = read_stat(&store->pages.hits);
    stats->page_misses = read_stat(&store->pages.misses);
    stats->row_hits = read_stat(&store->rows.hits);
    stats->row_misses = read_stat(&store->rows.misses);
    stats->row_wait_ns = read_stat(&store->rows.wait_ns);
    stats->cold_reads = read_stat(&store->pages.reads_done) + read_stat(&store->rows.reads_done);
    stats->cold_read_bytes = read_stat(&store->pages.read_bytes) + read_stat(&store->rows.read_bytes);
    stats->cold_written_bytes = read_stat(&store->cold.written_bytes);
    stats->cold_read_errors = read_stat(&store->pages.read_errors) + read_stat(&store->rows.read_errors);
    stats->cold_write_errors = read_stat(&store->cold.write_errors);
    stats->cold_verify_failures = read_stat(&store->cold.verify_failures);
    stats->cold_queue = cold_store_pending(&store->cold) + read_queue_depth(store->pages.queue);
}

static hd_dtype dtype_of(const attention *self) {
    return kernel_row_dtype(engine_seen(self)->home.kv_dtype);
}

static hd_dtype kv_dtype_of(const attention *self) {
    return engine_seen(self)->home.kv_dtype;
}

static void free_engine(engine *e) {
    engine_device_close(e->device);
    engine_retrieve_close(e);
    engine_memory_close(e);
    hd_free(e);
}

static void engine_close(attention *self) {
    if (self == NULL) return;
    engine *e = ((engine_view *)self)->engine;
    if (self == &e->own.base) free_engine(e);
    else engine_detach(self);
}

static hd_status attach(attention *self, uint32_t rows_max, attention **view, hd_error *error) {
    hd_status status = engine_attach(self, view);
    return status == HD_OK ? status : hd_error_set(error, status, "this attention takes no further step at a time");
}

static const attention_ops engine_ops = {
    .name = "engine",
    .close = engine_close,
    .sequence_open = sequence_open,
    .fork = fork_sequence,
    .truncate = truncate_sequence,
    .sequence_length = sequence_length,
    .sequence_is_ready = is_ready,
    .sequence_find = find_sequence,
    .prefix_find = find_prefix,
    .state_save = state_save,
    .state_load = state_load,
    .sequence_close = close_sequence,
    .attach = attach,
    .step_begin = engine_step_begin,
    .submit = engine_step_submit,
    .wait = engine_step_wait,
    .step_replayed = engine_step_replayed,
    .step_end = engine_step_end,
    .step_begin_post = engine_step_begin,
    .step_end_post = engine_step_end,
    .step_finish = engine_step_finish,
    .step_lost = engine_step_lost,
    .step_lose = engine_step_lose,
    .cache_reset = cache_reset,
    .stats = read_stats,
    .dtype = dtype_of,
    .kv_dtype = kv_dtype_of,
};

static hd_status check_int8(const attention_layer_table *table, hd_error *error) {
    for (uint32_t i = 0; i < table->stream_count; i++) {
        const attention_stream *s = &table->streams[i];
        if (s->codec != HD_INT8 || s->dim <= KERNEL_INT8_DIM_MAX) continue;
        return hd_error_set(error, HD_UNSUPPORTED,
                            "--kv-dtype int8 takes heads of at most %u elements, and stream %u has %u",
                            KERNEL_INT8_DIM_MAX, i, s->dim);
    }
    return HD_OK;
}

static hd_status check_config(const engine_config *config, hd_error *error) {
    if (config->kv_dtype != HD_BF16 && config->kv_dtype != HD_F32 && config->kv_dtype != HD_INT8) {
        return hd_error_set(error, HD_UNSUPPORTED, "keys and values are kept as bf16, f32 or int8, not as %s",
                            hd_dtype_name(config->kv_dtype));
    }
    if (config->step_rows_max == 0 || config->sequences_max == 0) {
        return hd_error_set(error, HD_INVALID, "a step needs at least one row, and an engine one sequence");
    }
    hd_status status = attention_layer_table_check(&config->layers, error);
    if (status == HD_OK && config->kv_dtype == HD_INT8) status = check_int8(&config->layers, error);
    if (status == HD_OK && config->queue != NULL) status = engine_device_check(config, error);
    if (status != HD_OK) return status;
    if (attention_layer_table_state_bytes(&config->layers) != 0 && config->snapshots_max < config->sequences_max) {
        return hd_error_set(error, HD_INVALID, "%u snapshots of states are too few for %u sequences",
                            config->snapshots_max, config->sequences_max);
    }
    return HD_OK;
}

hd_status engine_open(const engine_config *config, attention **out, hd_error *error) {
    hd_status status = check_config(config, error);
    if (status != HD_OK) return status;
    if (sodium_init() < 0) return hd_error_set(error, HD_IO, "libsodium cannot start: the system has no randomness");
    engine *e = hd_alloc_zeroed(sizeof(*e), HD_CACHE_LINE);
    if (e == NULL) return hd_error_set(error, HD_NO_MEMORY, "out of memory");
    e->kernels = config->kernels;
    e->pool = config->pool;
    e->overrides = config->overrides;
    e->budget_bytes = config->hot_bytes + config->warm_bytes;
    e->warm_bytes = config->warm_bytes;
    e->patience_ns = (config->cold_patience_ms > 0 ? config->cold_patience_ms : COLD_PATIENCE_MS) * UINT64_C(1000000);
    e->cold_bytes = config->cold_bytes;
    e->rows_max = config->step_rows_max;
    e->sequences_max = config->sequences_max;
    memcpy(e->home.key, config->key, sizeof(e->home.key));
    memcpy(e->home.fingerprint, config->fingerprint, sizeof(e->home.fingerprint));
    e->home.kv_dtype = config->kv_dtype;
    /* A prefix of a table with states is only resumable with snapshots, which belong to open sequences. */
    e->home.is_sharing = attention_layer_table_state_bytes(&config->layers) == 0;
    status = engine_memory_open(e, config, error);
    if (status == HD_OK && config->queue != NULL) status = engine_device_open(e, config, error);
    if (status == HD_OK) status = engine_retrieve_open(e, config, error);
    if (status != HD_OK) {
        free_engine(e);
        return status;
    }
    e->own.base.ops = &engine_ops;
    engine_publish(e);
    *out = &e->own.base;
    return HD_OK;
}
