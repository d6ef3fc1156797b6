/* engine_retrieve.c - what a sparse row finds by its sequence's indexes, and what the indexes learn from steps.
 *
 * The tokens found are put together in pages of their own, 128 at a time and in ascending order, which the same kernel
 * attends to as any page; their partial results are merged in that order, and the estimate of the rest comes last. So
 * the bits depend on what was found alone. */
#include <assert.h>
#include <stdlib.h>

#include "attention-node/engine_state.h"
#include "base/clock.h"
#include "base/memory.h"

typedef struct finder_sizes {
    size_t scratch, tokens, keys, values, queries, rest, rows;
    uint32_t value_dim_max;
} finder_sizes;

static size_t largest(size_t a, size_t b) {
    return a > b ? a : b;
}

/* ---- Memory ---- */

static uint32_t value_dim_max_of(const attention_layer_table *table) {
    uint32_t dim = 0;
    for (uint32_t i = 0; i < table->layer_count; i++)
        dim = table->layers[i].value_dim > dim ? table->layers[i].value_dim : dim;
    return HD_ALIGN_UP(dim, HD_CACHE_LINE / (uint32_t)sizeof(float));
}

static finder_sizes sizes_of(const attention_layer_table *table, hd_dtype kv_dtype, const kernel_ops *kernels,
                             uint64_t keys_max) {
    finder_sizes sizes = {.value_dim_max = value_dim_max_of(table)};
    const index_kind *const *kinds;
    size_t kind_count = index_kinds(&kinds);
    for (uint32_t i = 0; i < table->layer_count; i++) {
        const attention_layer *layer = &table->layers[i];
        const attention_stream *keys = &table->streams[layer->key_stream];
        const kernel_page_shape shape = {
            .dtype = kernel_row_dtype(kv_dtype), .key_dim = keys->dim, .value_dim = layer->value_dim};
        uint32_t group_size = layer->query_heads / keys->heads;
        if (layer->value_is_key_prefix || keys->tokens_per_record != 1 || group_size > INDEX_QUERIES_MAX) continue;
        for (size_t k = 0; k < kind_count; k++) {
            index_params params = {.kind = kinds[k],
                                   .kernels = kernels,
                                   .key_dim = shape.key_dim,
                                   .value_dim = shape.value_dim,
                                   .keys_max = keys_max,
                                   .has_rest = index_kind_has_rest(kinds[k])};
            sizes.scratch = largest(sizes.scratch, index_search_bytes(&params, group_size, SELECTION_TOKENS_MAX));
        }
        sizes.tokens = largest(sizes.tokens, group_size * SELECTION_TOKENS_MAX * sizeof(uint32_t));
        sizes.rest = largest(sizes.rest, (size_t)group_size * (sizes.value_dim_max + 2) * sizeof(float));
        sizes.keys = largest(sizes.keys, kernel_page_key_bytes(&shape));
        sizes.values = largest(sizes.values, kernel_page_value_bytes(&shape));
        kernel_page_shape stored = {kv_dtype, shape.key_dim, shape.value_dim};
        size_t row_bytes = kernel_token_row_bytes(&stored);
        if (COLD_CHUNK_BYTES % row_bytes != 0) sizes.rows = largest(sizes.rows, 2 * HD_BLOCK_TOKENS * row_bytes);
        sizes.queries =
            largest(sizes.queries, (size_t)group_size * HD_ALIGN_UP(keys->dim, KERNEL_K_ALIGN) * sizeof(uint16_t));
    }
    return sizes;
}

/* Of all threads, and where there is a cold tier of what is found ahead of attention. */
static size_t finders_bytes(const finder_sizes *sizes, uint32_t thread_count, uint32_t found_count) {
    size_t lines = 7 * HD_CACHE_LINE;
    size_t each = sizes->scratch + sizes->tokens + sizes->keys + sizes->values + sizes->queries + sizes->rest + lines;
    if (found_count > 0) each += sizes->rows;
    return each * thread_count + (sizes->tokens + sizes->rest + 2 * HD_CACHE_LINE) * found_count;
}

uint64_t engine_index_bytes(const engine_config *config, const char *text, uint64_t tokens, bool with_keys) {
    selection chosen;
    if (selection_parse(text, &chosen, NULL) != HD_OK || chosen.ops != selection_ops_retrieval()) return 0;
    uint64_t block_bytes = attention_layer_table_block_bytes(&config->layers);
    uint64_t blocks = (config->hot_bytes + config->warm_bytes + config->cold_bytes) / block_bytes;
    finder_sizes sizes = sizes_of(&config->layers, config->kv_dtype, config->kernels, blocks * HD_BLOCK_TOKENS);
    index_home_config home = {
        .table = &config->layers, .kernels = config->kernels, .builder_count = config->index_builders};
    uint64_t sets = index_home_bytes(&home, &chosen, tokens, with_keys);
    if (sets == UINT64_MAX) return UINT64_MAX;
    return sets +
           finders_bytes(&sizes, hd_pool_thread_count(config->pool),
                         config->cold_directory != NULL ? ENGINE_FOUNDS : 0) +
           HD_CACHE_LINE;
}

static void *part(unsigned char **next, size_t bytes) {
    void *memory = *next;
    *next += HD_ALIGN_UP(bytes, (size_t)HD_CACHE_LINE);
    return memory;
}

static engine_found found_at(const engine *e, unsigned char **next, const finder_sizes *sizes) {
    engine_found found = {.tokens = part(next, sizes->tokens)};
    float *rest = part(next, sizes->rest);
    uint64_t rows = sizes->rest / sizeof(float) / (e->value_dim_max + 2);
    found.rest = (kernel_partial){.out = rest,
                                  .out_stride = e->value_dim_max,
                                  .max = rest + rows * e->value_dim_max,
                                  .sum = rest + rows * (e->value_dim_max + 1)};
    return found;
}

hd_status engine_retrieve_open(engine *e, const engine_config *of, hd_error *error) {
    uint64_t index_bytes = of->index_bytes;
    if (index_bytes == 0) return HD_OK;
    uint64_t keys_max = (uint64_t)e->home.store.pool.block_count * HD_BLOCK_TOKENS;
    finder_sizes sizes = sizes_of(&e->table, e->home.kv_dtype, e->kernels, keys_max);
    uint32_t thread_count = hd_pool_thread_count(e->pool), found_count = e->home.store.has_cold ? ENGINE_FOUNDS : 0;
    size_t all = finders_bytes(&sizes, thread_count, found_count);
    assert(sizes.value_dim_max == e->value_dim_max);
    if (all >= index_bytes) {
        return hd_error_set(error, HD_INVALID,
                            "--index-memory: %llu KiB for indexes are too few, searches alone need %llu KiB",
                            (unsigned long long)index_bytes >> 10, (unsigned long long)all >> 10);
    }
    e->finders = hd_alloc_zeroed(thread_count * sizeof(*e->finders), HD_CACHE_LINE);
    e->finder_memory = hd_alloc_zeroed(all, HD_CACHE_LINE);
    if (found_count > 0) e->founds = hd_alloc_zeroed(found_count * sizeof(*e->founds), HD_CACHE_LINE);
    if (e->finders == NULL || e->finder_memory == NULL || (found_count > 0 && e->founds == NULL))
        return hd_error_set(error, HD_NO_MEMORY, "out of memory");
    unsigned char *next = e->finder_memory;
    for (uint32_t i = 0; i < thread_count; i++) {
        e->finders[i] = (engine_finder){.scratch = part(&next, sizes.scratch),
                                        .found = found_at(e, &next, &sizes),
                                        .keys = part(&next, sizes.keys),
                                        .values = part(&next, sizes.values),
                                        .queries = part(&next, sizes.queries)};
        if (found_count > 0 && sizes.rows > 0) e->finders[i].rows = part(&next, sizes.rows);
    }
    for (uint32_t i = 0; i < found_count; i++) e->founds[i] = found_at(e, &next, &sizes);
    index_home_config config = {.table = &e->table,
                                .store = &e->home.store,
                                .kernels = e->kernels,
                                .budget_bytes = index_bytes - all,
                                .builder_count = of->index_builders,
                                .head_first = of->head_first};
    hd_status status = index_home_open(&config, &e->indexes);
    return status == HD_OK ? HD_OK : hd_error_set(error, status, "cannot start the threads that build indexes");
}

void engine_retrieve_close(engine *e) {
    for (uint32_t i = 0; e->indexes != NULL && i < e->sequences_max; i++) {
        sequence *s = &e->sequences.slots[i];
        index_set_close(s->indexes, false);
        s->indexes = NULL;
    }
    index_home_close(e->indexes);
    hd_free(e->finder_memory);
    hd_free(e->founds);
    hd_free(e->finders);
}

/* ---- Figures ---- */

void engine_retrieve_publish(engine *e) {
    engine_search_counts sum = {.searches = 0};
    for (uint32_t i = 0; i < hd_pool_thread_count(e->pool); i++) {
        const engine_search_counts *counts = &e->threads[i].searched;
        sum.searches += counts->searches;
        sum.tokens_found += counts->tokens_found;
        sum.bytes_scanned += counts->bytes_scanned;
        sum.bytes_rest += counts->bytes_rest;
        sum.search_ns += counts->search_ns;
        sum.fetch_ns += counts->fetch_ns;
        sum.attend_ns += counts->attend_ns;
    }
    atomic_store_explicit(&e->published.searches, sum.searches, memory_order_relaxed);
    atomic_store_explicit(&e->published.searched_tokens, sum.tokens_found, memory_order_relaxed);
    atomic_store_explicit(&e->published.search_bytes, sum.bytes_scanned, memory_order_relaxed);
    atomic_store_explicit(&e->published.search_rest_bytes, sum.bytes_rest, memory_order_relaxed);
    atomic_store_explicit(&e->published.search_ns, sum.search_ns, memory_order_relaxed);
    atomic_store_explicit(&e->published.fetch_ns, sum.fetch_ns, memory_order_relaxed);
    atomic_store_explicit(&e->published.found_ns, sum.attend_ns, memory_order_relaxed);
}

void engine_retrieve_stats(const engine *e, attention_stats *stats) {
    if (e->indexes == NULL) return;
    index_home_stats indexes;
    index_home_stats_read(e->indexes, &indexes);
    stats->searches = atomic_load_explicit(&e->published.searches, memory_order_relaxed);
    stats->searched_tokens = atomic_load_explicit(&e->published.searched_tokens, memory_order_relaxed);
    stats->search_bytes = atomic_load_explicit(&e->published.search_bytes, memory_order_relaxed);
    stats->search_rest_bytes = atomic_load_explicit(&e->published.search_rest_bytes, memory_order_relaxed);
    stats->search_ns = atomic_load_explicit(&e->published.search_ns, memory_order_relaxed);
    stats->fetch_ns = atomic_load_explicit(&e->published.fetch_ns, memory_order_relaxed);
    stats->found_ns = atomic_load_explicit(&e->published.found_ns, memory_order_relaxed);
    stats->index_waits = indexes.waits;
    stats->index_wait_ns = indexes.wait_ns;
    stats->index_bytes = indexes.held_bytes;
    stats->index_budget_bytes = indexes.budget_bytes;
    stats->index_lag_tokens = indexes.lag_tokens;
}

/* ---- A sequence's indexes ---- */

/* Shorter ones never search. */
static bool needs_indexes(const sequence *s) {
    return s->selection.ops == selection_ops_retrieval() && s->tokens_max > SELECTION_SETTLE_TOKENS + INDEX_GRAIN;
}

hd_status engine_indexes_open(engine *e, sequence *s, hd_error *error) {
    if (!needs_indexes(s)) return HD_OK;
    if (e->indexes == NULL) {
        return hd_error_set(error, HD_INVALID,
                            "this server keeps no indexes, which selection 'retrieval' needs; start it with "
                            "--index-memory, or choose another selection");
    }
    uint64_t reusable = index_set_reusable(e->indexes, s);
    hd_status status = reusable < s->length ? sequence_truncate(&e->home, s, reusable) : HD_OK;
    if (status != HD_OK) return hd_error_set(error, status, "no memory to cut a cached prefix");
    return index_set_open(e->indexes, s, &s->indexes, error);
}

hd_status engine_indexes_fork(const sequence *source, sequence *s, hd_error *error) {
    return source->indexes == NULL ? HD_OK : index_set_fork(source->indexes, s, &s->indexes, error);
}

hd_status engine_indexes_follow(engine *e, sequence *s, hd_error *error) {
    if (!needs_indexes(s) || (s->indexes != NULL && index_set_keys_max(s->indexes) >= s->tokens_max)) return HD_OK;
    index_set *former = s->indexes;
    hd_status status = former != NULL ? index_set_fork(former, s, &s->indexes, error)
                                      : index_set_open(e->indexes, s, &s->indexes, error);
    if (status == HD_OK) index_set_close(former, false);
    return status;
}

/* ---- Keys and queries ---- */

/* Rows of bf16, as they are or converted. */
static const uint16_t *bf16_queries(const engine *e, const engine_layer *layer, const engine_finder *finder,
                                    uint32_t row, uint32_t head) {
    const void *queries = engine_queries(e, layer, row, head);
    if (layer->shape.dtype != HD_F32) return queries;
    e->kernels->convert(queries, HD_F32, finder->queries, HD_BF16, (size_t)layer->plan.group_size * layer->query_dim);
    return finder->queries;
}

/* Rows of keys that the step has appended, as they are read of pages. */
static void learn_keys(const engine *e, const engine_layer *layer, const sequence *s, const plan_span *span,
                       uint32_t head, uint16_t room[]) {
    uint64_t first = s->length > span->first_position ? s->length : span->first_position;
    if (first >= s->end || layer->shape.dtype == HD_F32) return;
    size_t stride = (size_t)layer->plan.kv_heads * layer->shape.key_dim;
    const uint16_t *keys = (const uint16_t *)e->step.call.keys.data +
                           (span->first_row + (first - span->first_position)) * stride +
                           (size_t)head * layer->shape.key_dim;
    hd_status status = HD_OK;
    for (uint32_t left = (uint32_t)(s->end - first), count; left > 0 && status == HD_OK; left -= count) {
        count = left;
        bool is_rounded = layer->shape.dtype == HD_INT8;
        if (is_rounded) {
            count = left < HD_BLOCK_TOKENS ? left : HD_BLOCK_TOKENS;
            kernel_page_round_rows(&layer->shape, keys, stride, count, layer->shape.key_dim, room);
        }
        status = index_set_add_keys(s->indexes, e->step.call.layer, head, first, is_rounded ? room : keys, count,
                                    is_rounded ? layer->shape.key_dim : stride);
        first += count;
        keys += count * stride;
    }
    if (status != HD_OK) index_set_fail(s->indexes);
}

void engine_learn(engine *e, const engine_layer *layer, unsigned thread, unsigned thread_count) {
    const engine_step *step = &e->step;
    uint32_t heads = layer->plan.kv_heads;
    for (uint32_t i = 0; i < step->span_count; i++) {
        const sequence *s = step->sequences[i];
        const plan_span *span = &step->spans[i];
        if (s == NULL || s->indexes == NULL || span->is_replica) continue;
        size_t first, count;
        hd_share(heads, 1, thread, thread_count, &first, &count);
        for (size_t head = first; layer->is_owner && head < first + count; head++)
            learn_keys(e, layer, s, span, (uint32_t)head, e->finders[thread].keys);
        for (uint32_t row = 0; row < span->row_count; row++) {
            uint64_t position = span->first_position + row;
            if (position % INDEX_QUERY_POSITIONS != 0) continue;
            for (size_t head = first; head < first + count; head++) {
                const uint16_t *queries =
                    bf16_queries(e, layer, &e->finders[thread], span->first_row + row, (uint32_t)head);
                hd_status status = index_set_add_query(s->indexes, step->call.layer, (uint32_t)head, position, queries,
                                                       layer->plan.group_size, layer->query_dim);
                if (status != HD_OK) index_set_fail(s->indexes);
            }
        }
    }
}

/* ---- Searching ---- */

hd_status engine_await_indexes(engine *e, const engine_layer *layer) {
    for (uint32_t i = 0; i < e->step.sparse_count; i++) {
        const engine_sparse_row *row = &e->step.sparse_rows[i];
        selection_answer answer = {.is_searched = false};
        for (uint32_t head = 0; head < layer->plan.kv_heads && !answer.is_searched; head++)
            engine_ask_selection(e, layer, row->sequence, row->position, head, &answer);
        if (!answer.is_searched) continue;
        index_extent extent = index_set_extent(row->sequence->indexes, answer.recent_first);
        hd_status status = index_set_wait(row->sequence->indexes, e->step.call.layer, &extent);
        /* Its builder may have met bad bytes on disk, which is nobody else's concern. */
        if (status != HD_OK && e->home.store.has_cold) engine_lose(e, row->sequence->runs, HD_IO);
        else if (status != HD_OK) return status;
    }
    return HD_OK;
}

/* ---- Where what was found lies ---- */

/* Where a token lies; what will be read of it is on its way. */
static kernel_token place_token(const engine *e, const engine_layer *layer, const sequence *s, uint32_t head,
                                uint64_t token, unsigned char *room) {
    const kv_run *run = engine_run_of(s, token);
    uint32_t block = run->block.index;
    kernel_token place = {.key_row = index_set_key(s->indexes, e->step.call.layer, head, token),
                          .slot = run->first + (uint32_t)(token - run->position)};
    if (e->step.is_cold && engine_has_row(e, layer, block, head)) {
        place.row = engine_row(e, layer, s->runs, block, head, place.slot, room);
        return place;
    }
    place.values = engine_page(e, s->runs, block, layer->table.value_stream, head);
    if (place.key_row == NULL) place.keys = engine_page(e, s->runs, block, layer->table.key_stream, head);
    for (uint32_t byte = 0; place.key_row != NULL && byte < layer->shape.key_dim * sizeof(uint16_t);
         byte += HD_CACHE_LINE)
        __builtin_prefetch((const char *)place.key_row + byte, 0, 2);
    kernel_page_prefetch_value(&layer->shape, place.values, place.slot);
    return place;
}

typedef struct found_context { /* of an announcement */
    const engine *e;
    const engine_layer *layer;
    const sequence *s;
    uint32_t head;
} found_context;

static void announce_found(void *context, const uint32_t *tokens, uint32_t count) {
    const found_context *of = context;
    for (uint32_t i = 0; i < count; i++) place_token(of->e, of->layer, of->s, of->head, tokens[i], NULL);
}

/* ---- Finding ---- */

void engine_find(engine *e, const engine_layer *layer, unsigned thread, const engine_sparse_row *row, uint32_t head,
                 const selection_answer *answer, engine_found *found) {
    const sequence *s = row->sequence;
    const engine_finder *finder = &e->finders[thread];
    engine_search_counts *counts = &e->threads[thread].searched;
    uint64_t start = hd_now_ns();
    found->count = 0;
    if (engine_has_lost(e, s->runs)) return;
    index_search search = {.queries = bf16_queries(e, layer, finder, row->row, head),
                           .query_stride = layer->query_dim,
                           .query_count = layer->plan.group_size,
                           .scale = layer->table.scale,
                           .extent = index_set_extent(s->indexes, answer->recent_first),
                           .tokens_each = s->selection.tokens,
                           .scratch = finder->scratch,
                           .tokens = found->tokens,
                           .rest = index_set_has_rest(s->indexes) ? &found->rest : NULL,
                           .announce = e->step.is_cold ? NULL : announce_found,
                           .announce_context = &(found_context){e, layer, s, head}};
    index_search_run(index_set_index(s->indexes, e->step.call.layer, head), &search);
    assert(answer->sinks_end == SELECTION_INDEX_FIRST); /* what the index leaves out */
    found->first = search.tokens;
    found->count = search.token_count;
    counts->searches++;
    counts->tokens_found += search.token_count;
    counts->bytes_scanned += search.bytes_scanned;
    counts->bytes_rest += search.bytes_rest;
    counts->search_ns += hd_now_ns() - start;
}

/* ---- Attending to what was found ---- */

typedef struct found_page { /* of tokens that are put together */
    kernel_token places[HD_BLOCK_TOKENS];
    unsigned char *rows; /* rooms of such as lie in no one piece */
} found_page;

/* Where the tokens of the next page lie; returns how many, at most a page. */
static uint32_t place_page(const engine *e, const engine_layer *layer, const sequence *s, uint32_t head,
                           const uint32_t *tokens, uint32_t token_count, found_page *page) {
    uint32_t count = token_count < HD_BLOCK_TOKENS ? token_count : HD_BLOCK_TOKENS;
    size_t row_bytes = page->rows != NULL ? kernel_token_row_bytes(&layer->shape) : 0;
    for (uint32_t i = 0; i < count; i++)
        page->places[i] = place_token(e, layer, s, head, tokens[i], page->rows + i * row_bytes);
    return count;
}

void engine_attend_found(engine *e, const engine_layer *layer, unsigned thread, const engine_sparse_row *row,
                         uint32_t head, const engine_found *found, kernel_attend *call, const kernel_partial *result,
                         bool is_alone) {
    const sequence *s = row->sequence;
    const engine_finder *finder = &e->finders[thread];
    uint32_t group_size = layer->plan.group_size, value_dim = layer->shape.value_dim;
    uint64_t start = hd_now_ns();
    call->shape = kernel_page_shape_read(&layer->shape);
    call->partial = engine_scratch_partial(e, &e->threads[thread], 1);
    call->span_count = 1;
    found_page pages[2] = {{.rows = finder->rows}}; /* this one, and the next, which is fetched meanwhile */
    if (finder->rows != NULL) pages[1].rows = finder->rows + HD_BLOCK_TOKENS * kernel_token_row_bytes(&layer->shape);
    uint32_t next = 0;
    for (uint32_t done = 0, page = 0, count; done < found->count; done += count, page++) {
        uint32_t left = found->count - done;
        uint64_t fetch_start = hd_now_ns();
        if (is_alone) {
            count = left < HD_BLOCK_TOKENS ? left : HD_BLOCK_TOKENS;
            engine_pin_tokens_alone(e, layer, row, found->first + done, count, head);
            place_page(e, layer, s, head, found->first + done, count, &pages[page % 2]);
        } else {
            count = page > 0 ? next : place_page(e, layer, s, head, found->first, left, &pages[0]);
            next = place_page(e, layer, s, head, found->first + done + count, left - count, &pages[(page + 1) % 2]);
        }
        e->kernels->gather(&layer->shape, pages[page % 2].places, count, finder->keys, finder->values);
        e->threads[thread].searched.fetch_ns += hd_now_ns() - fetch_start;
        call->spans = &(kernel_span){.keys = finder->keys, .values = finder->values, .count = count};
        e->kernels->attend(call);
        e->kernels->merge(result, &call->partial, group_size, value_dim);
    }
    if (index_set_has_rest(s->indexes) && !engine_has_lost(e, s->runs))
        e->kernels->merge(result, &found->rest, group_size, value_dim);
    e->threads[thread].searched.attend_ns += hd_now_ns() - start;
}
