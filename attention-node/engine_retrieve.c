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
    size_t scratch, tokens, keys, values, queries;
} finder_sizes;

static size_t largest(size_t a, size_t b) {
    return a > b ? a : b;
}

/* ---- Memory ---- */

static finder_sizes sizes_of(const engine *e) {
    finder_sizes sizes = {.scratch = 0};
    const index_kind *const *kinds;
    size_t kind_count = index_kinds(&kinds);
    for (uint32_t i = 0; i < e->table.layer_count; i++) {
        const engine_layer *layer = &e->layers[i];
        if (!layer->is_computable || layer->plan.group_size > INDEX_QUERIES_MAX) continue;
        for (size_t k = 0; k < kind_count; k++) {
            index_params params = {.kind = kinds[k],
                                   .kernels = e->kernels,
                                   .key_dim = layer->shape.key_dim,
                                   .value_dim = layer->shape.value_dim,
                                   .keys_max = (uint64_t)e->home.store.pool.block_count * HD_BLOCK_TOKENS,
                                   .has_rest = index_kind_estimates(kinds[k])};
            sizes.scratch = largest(
                sizes.scratch, index_search_bytes(&params, layer->plan.group_size, SELECTION_TOKENS_MAX));
        }
        sizes.tokens = largest(sizes.tokens, layer->plan.group_size * SELECTION_TOKENS_MAX * sizeof(uint32_t));
        sizes.keys = largest(sizes.keys, kernel_page_key_bytes(&layer->shape));
        sizes.values = largest(sizes.values, kernel_page_value_bytes(&layer->shape));
        sizes.queries = largest(sizes.queries, (size_t)layer->plan.group_size * layer->query_dim * sizeof(uint16_t));
    }
    return sizes;
}

static void *part(unsigned char **next, size_t bytes) {
    void *memory = *next;
    *next += HD_ALIGN_UP(bytes, (size_t)HD_CACHE_LINE);
    return memory;
}

hd_status engine_retrieve_open(engine *e, uint64_t index_bytes, unsigned builder_count, hd_error *error) {
    if (index_bytes == 0) return HD_OK;
    finder_sizes sizes = sizes_of(e);
    uint32_t thread_count = hd_pool_thread_count(e->pool);
    size_t lines = 5 * HD_CACHE_LINE;
    size_t each = sizes.scratch + sizes.tokens + sizes.keys + sizes.values + sizes.queries + lines;
    if (each * thread_count >= index_bytes) {
        return hd_error_set(error, HD_INVALID, "%llu KiB for indexes are too few: searches alone need %llu KiB",
                            (unsigned long long)index_bytes >> 10, (unsigned long long)(each * thread_count) >> 10);
    }
    e->finders = hd_alloc_zeroed(thread_count * sizeof(*e->finders), HD_CACHE_LINE);
    e->finder_memory = hd_alloc_zeroed(each * thread_count, HD_CACHE_LINE);
    if (e->finders == NULL || e->finder_memory == NULL) return hd_error_set(error, HD_NO_MEMORY, "out of memory");
    unsigned char *next = e->finder_memory;
    for (uint32_t i = 0; i < thread_count; i++) {
        e->finders[i] = (engine_finder){.scratch = part(&next, sizes.scratch),
                                        .tokens = part(&next, sizes.tokens),
                                        .keys = part(&next, sizes.keys),
                                        .values = part(&next, sizes.values),
                                        .queries = part(&next, sizes.queries)};
    }
    index_home_config config = {.table = &e->table,
                                .pool = &e->home.store.pool,
                                .kernels = e->kernels,
                                .budget_bytes = index_bytes - each * thread_count,
                                .builder_count = builder_count};
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
    hd_free(e->finders);
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

/* ---- Queries ---- */

/* Rows of bf16, as they are or converted. */
static const uint16_t *bf16_queries(const engine *e, const engine_layer *layer, const engine_finder *finder,
                                    uint32_t row, uint32_t head) {
    const void *queries = engine_queries(e, layer, row, head);
    if (layer->shape.dtype == HD_BF16) return queries;
    e->kernels->convert(queries, HD_F32, finder->queries, HD_BF16,
                        (size_t)layer->plan.group_size * layer->query_dim);
    return finder->queries;
}

void engine_learn_queries(engine *e, const engine_layer *layer, unsigned thread, unsigned thread_count) {
    const engine_step *step = &e->step;
    uint32_t heads = layer->plan.kv_heads;
    for (uint32_t i = 0; i < step->span_count; i++) {
        const sequence *s = step->sequences[i];
        const plan_span *span = &step->spans[i];
        if (s == NULL || s->indexes == NULL || span->is_replica) continue;
        size_t first, count;
        hd_share(heads, 1, thread, thread_count, &first, &count);
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
        selection_answer answer;
        engine_ask_selection(e, layer, row->sequence, row->position, 0, &answer);
        if (!answer.is_searched) continue;
        index_extent extent = index_set_extent(row->sequence->indexes, answer.recent_first);
        hd_status status = index_set_wait(row->sequence->indexes, e->step.call.layer, &extent);
        if (status != HD_OK) return status;
    }
    return HD_OK;
}

/* Puts tokens into a page of their own; returns how many, at most a page. */
static uint32_t gather_page(const engine *e, const engine_layer *layer, const sequence *s, uint32_t head,
                            const uint32_t *tokens, uint32_t token_count, const engine_finder *finder) {
    const block_pool *pool = &e->home.store.pool;
    uint32_t count = token_count < HD_BLOCK_TOKENS ? token_count : HD_BLOCK_TOKENS;
    for (uint32_t i = 0; i < count; i++) {
        const kv_run *run = &s->runs[sequence_run_at(s->runs, s->run_count, tokens[i])];
        kernel_page_copy(&layer->shape, block_pool_page(pool, run->block.index, layer->table.key_stream, head),
                         block_pool_page(pool, run->block.index, layer->table.value_stream, head),
                         run->first + (uint32_t)(tokens[i] - run->position), finder->keys, finder->values, i);
    }
    return count;
}

/* Of the tokens found, those that are not attended to as sinks anyway. */
static uint32_t skip_sinks(const uint32_t *tokens, uint32_t count, uint64_t sinks_end) {
    uint32_t skipped = 0;
    while (skipped < count && tokens[skipped] < sinks_end) skipped++;
    return skipped;
}

static void count_search(engine_search_counts *counts, const index_search *search, uint64_t search_ns,
                         uint64_t attend_ns) {
    counts->searches++;
    counts->tokens_found += search->token_count;
    counts->bytes_scanned += search->bytes_scanned;
    counts->bytes_rest += search->bytes_rest;
    counts->search_ns += search_ns;
    counts->attend_ns += attend_ns;
}

void engine_attend_found(const engine *e, const engine_layer *layer, unsigned thread, const engine_sparse_row *row,
                         uint32_t head, const selection_answer *answer, kernel_attend *call,
                         const kernel_partial *result) {
    const sequence *s = row->sequence;
    const engine_finder *finder = &e->finders[thread];
    const engine_thread *t = &e->threads[thread];
    uint32_t group_size = layer->plan.group_size, value_dim = layer->shape.value_dim;
    kernel_partial rest = engine_scratch_partial(e, t, 2);
    index_search search = {.queries = bf16_queries(e, layer, finder, row->row, head),
                           .query_stride = layer->query_dim,
                           .query_count = group_size,
                           .scale = layer->table.scale,
                           .extent = index_set_extent(s->indexes, answer->recent_first),
                           .tokens_each = s->selection.tokens,
                           .scratch = finder->scratch,
                           .tokens = finder->tokens,
                           .rest = index_set_has_rest(s->indexes) ? &rest : NULL};
    uint64_t start = hd_now_ns();
    index_search_run(index_set_index(s->indexes, e->step.call.layer, head), &search);
    uint64_t searched = hd_now_ns();
    call->partial = engine_scratch_partial(e, t, 1);
    call->spans = &(kernel_span){.keys = finder->keys, .values = finder->values};
    call->span_count = 1;
    uint32_t done = skip_sinks(search.tokens, search.token_count, answer->sinks_end);
    for (uint32_t count; done < search.token_count; done += count) {
        count = gather_page(e, layer, s, head, search.tokens + done, search.token_count - done, finder);
        call->spans = &(kernel_span){.keys = finder->keys, .values = finder->values, .count = count};
        e->kernels->attend(call);
        e->kernels->merge(result, &call->partial, group_size, value_dim);
    }
    if (search.rest != NULL) e->kernels->merge(result, search.rest, group_size, value_dim);
    count_search(&e->threads[thread].searched, &search, searched - start, hd_now_ns() - searched);
}
