/* engine_step.c - the steps of an engine: rows in, keys and values into pages, attention out.
 *
 * A layer is one run of the pool. First every thread stores its share of the new tokens; behind a barrier, threads take
 * items of the plan (attend_plan.h) by ticket. Whoever completes a tile writes its output, so there is no second
 * barrier. The path takes no lock and allocates nothing. */
#include <assert.h>
#include <math.h>

#include "attention-node/engine_state.h"
#include "base/clock.h"

/* ---- Beginning ---- */

/* How many of the rows lie in the sequence's range; the others only ask. */
static uint64_t kept_rows(const sequence *s, const attention_rows *rows) {
    return sequence_place(s, rows->first_position + rows->count) - sequence_place(s, rows->first_position);
}

static hd_status check_span(engine *e, const attention_rows *rows, sequence **out, hd_error *error) {
    unsigned long long name = (unsigned long long)rows->sequence, first = (unsigned long long)rows->first_position;
    sequence *s = sequence_table_find(&e->sequences, rows->sequence);
    if (s == NULL) return hd_error_set(error, HD_NOT_FOUND, "no sequence %llu", name);
    if (rows->epoch < s->epoch) {
        return hd_error_set(error, HD_STALE, "sequence %llu has epoch %llu now", name, (unsigned long long)s->epoch);
    }
    if (s->is_importing) return hd_error_set(error, HD_STALE, "sequence %llu is still being copied to this node", name);
    if (s->view_in_step != NULL) {
        return hd_error_set(error, HD_STALE, "sequence %llu is in a step of another caller", name);
    }
    if (rows->count == 0 || s->step == e->step_serial) {
        return hd_error_set(error, HD_INVALID, "sequence %llu: %s", name,
                            rows->count == 0 ? "no rows" : "twice in one step");
    }
    if (rows->end_position != (s->range != 0 ? s->first + s->range : 0)) {
        return hd_error_set(error, HD_INVALID, "sequence %llu was opened for another range of positions", name);
    }
    uint64_t place = sequence_place(s, rows->first_position), kept = kept_rows(s, rows);
    if (place > s->length || rows->first_position < s->first) {
        return hd_error_set(error, HD_INVALID, "sequence %llu: a gap from %llu to %llu", name,
                            (unsigned long long)(s->first + s->length), first);
    }
    if (kept > s->tokens_max - place) {
        return hd_error_set(error, HD_INVALID, "sequence %llu: %u rows at %llu, but it was opened for %llu tokens",
                            name, rows->count, first, (unsigned long long)(s->first + s->tokens_max));
    }
    uint64_t there = s->length - place, compared = there < kept ? there : kept;
    if (sequence_match(&e->home, s, place, rows->token_ids, compared) < compared) {
        return hd_error_set(error, HD_INVALID, "sequence %llu: another token than the one at %llu or after it", name,
                            first);
    }
    s->step = e->step_serial;
    *out = s;
    return HD_OK;
}

static hd_status check_rows(engine *e, const attention_rows *rows, uint32_t span_count, hd_error *error) {
    if (span_count == 0 || span_count > e->sequences_max) {
        return hd_error_set(error, HD_INVALID, "a step of %u sequences, but 1 to %u are possible", span_count,
                            e->sequences_max);
    }
    uint64_t row_count = 0;
    for (uint32_t i = 0; i < span_count; i++) {
        hd_status status = check_span(e, &rows[i], &e->step.sequences[i], error);
        if (status != HD_OK) return status;
        row_count += rows[i].count;
    }
    if (row_count > e->rows_max) {
        return hd_error_set(error, HD_INVALID, "a step of %llu rows, but %u are possible",
                            (unsigned long long)row_count, e->rows_max);
    }
    e->step.row_count = (uint32_t)row_count;
    e->step.span_count = span_count;
    return HD_OK;
}

/* The new tokens of a span, as they lie in blocks. */
static void add_segments(engine *e, const sequence *s, const plan_span *span) {
    uint64_t position = s->length;
    for (uint32_t i = sequence_run_at(s->runs, s->run_count, position); i < s->run_count; i++) {
        const kv_run *run = &s->runs[i];
        uint32_t skipped = (uint32_t)(position - run->position);
        e->step.segments[e->step.segment_count++] =
            (engine_segment){.block_index = run->block.index,
                             .slot = run->first + skipped,
                             .count = run->count - skipped,
                             .first_row = span->first_row + (uint32_t)(position - span->first_position)};
        position += run->count - skipped;
    }
}

/* Blocks that the rows begin anew, whose frames have to be there before anything changes. */
static hd_status make_room(engine *e, const attention_rows *rows, uint32_t span_count, hd_error *error) {
    block_store *store = &e->home.store;
    if (!store->has_cold) return HD_OK;
    uint64_t blocks = 0;
    for (uint32_t i = 0; i < span_count; i++) {
        const sequence *s = e->step.sequences[i];
        uint64_t end = sequence_place(s, rows[i].first_position) + kept_rows(s, &rows[i]);
        if (end > s->length) blocks += sequence_blocks_of(end) - sequence_blocks_of(s->length);
    }
    hd_status status = block_store_make_room(store, (uint32_t)blocks);
    if (status == HD_OK) return HD_OK;
    return hd_error_set(error, status,
                        "no memory for %llu more blocks of %u tokens: the %u in memory are in use, and the cold tier "
                        "%s takes none of them",
                        (unsigned long long)blocks, HD_BLOCK_TOKENS, store->pool.frames.slot_count,
                        store->cold.directory.path);
}

hd_status engine_step_begin(attention *self, const attention_rows *rows, uint32_t row_span_count, hd_error *error) {
    engine *e = engine_of(self);
    engine_step *step = &e->step;
    assert(!step->is_open);
    e->step_serial++;
    hd_status status = check_rows(e, rows, row_span_count, error);
    if (status == HD_OK) status = make_room(e, rows, row_span_count, error);
    if (status != HD_OK) return status;

    uint32_t row = 0;
    step->segment_count = step->next_layer = step->computed_count = 0;
    step->has_ranges = step->has_whole = step->has_queries = false;
    for (uint32_t i = 0; i < row_span_count; i++) {
        sequence *s = step->sequences[i];
        plan_span *span = &step->spans[i];
        s->epoch = rows[i].epoch;
        atomic_store_explicit(&s->step_status, HD_OK, memory_order_relaxed);
        s->view_in_step = &e->active->base;
        *span = (plan_span){.first_row = row,
                            .row_count = rows[i].count,
                            .first_position = rows[i].first_position - s->first,
                            .is_range = s->range != 0,
                            .is_replica = rows[i].is_replica};
        uint64_t there = s->length - sequence_place(s, rows[i].first_position), kept = kept_rows(s, &rows[i]);
        if (there < kept) {
            sequence_extend(&e->home, s, rows[i].token_ids + there, kept - there);
            add_segments(e, s, span);
            atomic_fetch_add_explicit(&e->published.appended_tokens, kept - there, memory_order_relaxed);
        }
        span->runs = s->runs;
        span->run_count = s->run_count;
        row += rows[i].count;
        if (rows[i].is_replica) continue;
        step->has_queries = true;
        if (s->range != 0) step->has_ranges = true;
        else step->has_whole = true;
    }
    step->is_open = true;
    step->is_planned = step->is_submitted = step->is_broken = false;
    step->full_count = step->sparse_count = 0;
    atomic_store_explicit(&step->has_lost, false, memory_order_relaxed);
    engine_look_for_cold(e);
    engine_publish(e);
    if (e->device == NULL) return HD_OK;
    status = engine_device_begin(e, error);
    if (status != HD_OK) engine_step_end(self); /* without a layer: the rows are gone again */
    return status;
}

/* ---- Storing ---- */

static const unsigned char *row_of(const attention_tensor *tensor, uint64_t row_elements, uint64_t row,
                                   uint64_t column) {
    return (const unsigned char *)tensor->data + (row * row_elements + column) * (hd_dtype_bits(tensor->dtype) / 8);
}

static void store_segment(engine *e, const engine_layer *layer, const engine_segment *segment, uint32_t head) {
    const attention_layer_call *call = &e->step.call;
    const kernel_page_shape *shape = &layer->shape;
    uint32_t heads = layer->plan.kv_heads, key_stream = layer->table.key_stream,
             value_stream = layer->table.value_stream;
    block_pool *pool = &e->home.store.pool;
    void *keys = block_pool_page(pool, segment->block_index, key_stream, head);
    void *values = block_pool_page(pool, segment->block_index, value_stream, head);
    if (segment->slot == 0 && segment->count < HD_BLOCK_TOKENS) { /* block_pool.h, rule 4 */
        memset(keys, 0, (size_t)pool->layout.streams[key_stream].page_bytes);
        memset(values, 0, (size_t)pool->layout.streams[value_stream].page_bytes);
    }
    size_t key_stride = (size_t)heads * shape->key_dim, value_stride = (size_t)heads * shape->value_dim;
    e->kernels->page_store(
        shape, keys, values, segment->slot, segment->count,
        row_of(&call->keys, key_stride, segment->first_row, (uint64_t)head * shape->key_dim), key_stride,
        row_of(&call->values, value_stride, segment->first_row, (uint64_t)head * shape->value_dim), value_stride);
    if (segment->slot + segment->count < HD_BLOCK_TOKENS) return;
    block_pool_record_checksum(pool, segment->block_index, key_stream, head);
    block_pool_record_checksum(pool, segment->block_index, value_stream, head);
}

static void store_share(engine *e, const engine_layer *layer, unsigned thread, unsigned thread_count) {
    size_t first, count, heads = layer->plan.kv_heads;
    hd_share(e->step.segment_count * heads, 1, thread, thread_count, &first, &count);
    for (size_t i = first; i < first + count; i++) {
        store_segment(e, layer, &e->step.segments[i / heads], (uint32_t)(i % heads));
    }
}

/* ---- Attending ---- */

static kernel_partial partial_at(float *out, float *max, float *sum, uint64_t row, uint32_t value_dim) {
    return (kernel_partial){.out = out + row * value_dim, .out_stride = value_dim, .max = max + row, .sum = sum + row};
}

/* The partial of an item that is not whole, from one of its rows on. */
static kernel_partial item_partial(const engine *e, const plan_item *item, uint32_t head, uint32_t row) {
    uint32_t group_size = e->plan.shape.group_size;
    uint64_t first = item->partial_row + ((uint64_t)head * item->row_count + row) * group_size;
    return partial_at(e->item_out, e->item_max, e->item_sum, first, e->value_dim_max);
}

kernel_partial engine_scratch_partial(const engine *e, const engine_thread *t, uint32_t index) {
    uint64_t rows = e->item_rows_max, row_floats = e->value_dim_max + 2;
    float *base = t->partials + index * HD_ALIGN_UP(rows * row_floats, (uint64_t)HD_CACHE_LINE / sizeof(float));
    return partial_at(base, base + rows * e->value_dim_max, base + rows * (row_floats - 1), 0, e->value_dim_max);
}

static uint64_t tile_position(const engine *e, const plan_tile *tile) {
    const plan_span *span = &e->plan.spans[tile->span];
    return span->first_position + (tile->first_row - span->first_row);
}

/* The positions of an item's kernel rows. */
static void set_positions(const engine *e, const engine_thread *t, const plan_item *item) {
    uint32_t group_size = e->plan.shape.group_size;
    uint64_t *next = t->positions;
    for (uint32_t i = 0; i < item->tile_count; i++) {
        const plan_tile *tile = &e->plan.tiles[item->first_tile + i];
        uint64_t position = tile_position(e, tile);
        for (uint32_t row = 0; row < tile->row_count; row++, position++) {
            for (uint32_t g = 0; g < group_size; g++) *next++ = position;
        }
    }
}

uint64_t engine_first_visible(const engine *e, const plan_item *item) {
    uint64_t first = UINT64_MAX, window = e->plan.shape.window;
    for (uint32_t i = 0; i < item->tile_count; i++) {
        uint64_t position = tile_position(e, &e->plan.tiles[item->first_tile + i]);
        if (position < first) first = position;
    }
    return window != 0 && first + 1 > window ? first + 1 - window : 0;
}

uint32_t engine_gather_spans(const engine *e, const engine_layer *layer, const kv_run *runs, uint32_t run_count,
                             uint64_t begin, uint64_t end, uint32_t head, kernel_span *spans) {
    uint32_t count = 0, key_stream = layer->table.key_stream, value_stream = layer->table.value_stream;
    for (uint32_t i = sequence_run_at(runs, run_count, begin); i < run_count && runs[i].position < end; i++) {
        const kv_run *run = &runs[i];
        uint32_t skipped = run->position < begin ? (uint32_t)(begin - run->position) : 0;
        uint64_t run_end = run->position + run->count;
        spans[count++] = (kernel_span){.keys = engine_page(e, runs, run->block.index, key_stream, head),
                                       .values = engine_page(e, runs, run->block.index, value_stream, head),
                                       .first = run->first + skipped,
                                       .count = (uint32_t)((run_end < end ? run_end : end) - run->position) - skipped,
                                       .position = run->position + skipped};
    }
    return count;
}

uint64_t engine_group_begin(const plan_span *span, uint64_t group, uint64_t first_visible) {
    uint64_t begin = group * HD_GROUP_TOKENS;
    if (first_visible <= begin) return begin;
    uint32_t first = sequence_run_at(span->runs, span->run_count, first_visible);
    return first < span->run_count && span->runs[first].position > begin ? span->runs[first].position : begin;
}

/* The runs of a group, but for those that end before first_visible. */
static uint32_t gather_group(const engine *e, const engine_layer *layer, const plan_span *span, uint64_t group,
                             uint64_t first_visible, uint32_t head, kernel_span *spans) {
    uint64_t begin = engine_group_begin(span, group, first_visible);
    return engine_gather_spans(e, layer, span->runs, span->run_count, begin, (group + 1) * HD_GROUP_TOKENS, head,
                               spans);
}

/* The page that begins a group, if it is in memory: a page that is only wanted soon is not waited for. */
static bool page_of_group(const engine *e, const engine_layer *layer, const plan_span *span, uint64_t group,
                          uint32_t head, kernel_span *page) {
    const block_pool *pool = &e->home.store.pool;
    uint32_t run = sequence_run_at(span->runs, span->run_count, group * HD_GROUP_TOKENS);
    if (run == span->run_count) return false;
    uint32_t block = span->runs[run].block.index;
    if (!block_pool_is_resident(pool, block)) return false;
    *page = (kernel_span){.keys = block_pool_page(pool, block, layer->table.key_stream, head),
                          .values = block_pool_page(pool, block, layer->table.value_stream, head)};
    return true;
}

void engine_write_output(const engine *e, const engine_layer *layer, uint32_t first_row, uint32_t row_count,
                         uint32_t head, const kernel_partial *partial) {
    const attention_layer_call *call = &e->step.call;
    uint32_t group_size = layer->plan.group_size, value_dim = layer->shape.value_dim, first_head = head * group_size;
    const float *sinks = layer->table.sink_logits;
    size_t element_bytes = hd_dtype_bits(call->output.dtype) / 8;
    for (uint32_t row = 0; row < row_count; row++) {
        uint32_t first = row * group_size;
        kernel_partial rows =
            partial_at(partial->out, partial->max, partial->sum, first, (uint32_t)partial->out_stride);
        size_t element = (size_t)(first_row + row) * call->output_stride + (size_t)first_head * value_dim;
        e->kernels->finish(&rows, group_size, value_dim, sinks != NULL ? sinks + first_head : NULL, call->output.dtype,
                           (unsigned char *)call->output.data + element * element_bytes, value_dim, NULL);
    }
}

/* The partial result of a range's rows is what its owner asked for. */
static void write_partial(const engine *e, const engine_layer *layer, const plan_tile *tile, uint32_t head,
                          const kernel_partial *partial) {
    const attention_partial *to = &e->step.call.partial;
    uint32_t group_size = layer->plan.group_size, value_dim = layer->shape.value_dim;
    size_t first = ((size_t)head * e->step.row_count + tile->first_row) * group_size;
    uint32_t count = tile->row_count * group_size;
    for (uint32_t row = 0; row < count; row++) {
        memcpy(to->out + (first + row) * value_dim, partial->out + row * partial->out_stride,
               value_dim * sizeof(float));
    }
    memcpy(to->max + first, partial->max, count * sizeof(float));
    memcpy(to->sum + first, partial->sum, count * sizeof(float));
}

static void write_tile(const engine *e, const engine_layer *layer, const plan_tile *tile, uint32_t head,
                       const kernel_partial *partial) {
    if (e->plan.spans[tile->span].is_range) write_partial(e, layer, tile, head, partial);
    else engine_write_output(e, layer, tile->first_row, tile->row_count, head, partial);
}

const void *engine_queries(const engine *e, const engine_layer *layer, uint32_t first_row, uint32_t head) {
    uint64_t row = ((uint64_t)head * e->step.row_count + first_row) * layer->plan.group_size;
    return row_of(&e->step.call.queries, layer->query_dim, row, 0);
}

/* Merges a tile's items, in the order of the tree, in the memory of the first one. */
static void merge_tile(const engine *e, const engine_layer *layer, const plan_tile *tile, uint32_t head) {
    merge_tree tree;
    merge_tree_init(&tree, e->kernels, tile->row_count * layer->plan.group_size, layer->shape.value_dim);
    for (uint32_t i = 0; i < tile->shared_count + tile->own_count; i++) {
        const plan_item *item =
            &e->plan.items[i < tile->shared_count ? tile->shared_first + i : tile->own_first + i - tile->shared_count];
        kernel_partial partial = item_partial(e, item, head, tile->first_row - item->first_row);
        merge_tree_begin(&tree, item->level, item->index);
        merge_tree_push(&tree, &partial);
    }
    kernel_partial result;
    if (merge_tree_collapse(&tree, &result)) write_tile(e, layer, tile, head, &result);
}

static void set_empty(const kernel_partial *partial, uint32_t row_count, uint32_t value_dim) {
    for (uint32_t row = 0; row < row_count; row++) {
        memset(partial->out + row * partial->out_stride, 0, value_dim * sizeof(float));
        partial->max[row] = -INFINITY;
        partial->sum[row] = 0.0f;
    }
}

/* Pages that an item shares are lost to all of its sequences. */
static bool has_lost(const engine *e, const plan_item *item) {
    const plan_tile *tiles = &e->plan.tiles[item->first_tile];
    if (!engine_has_lost(e, e->plan.spans[tiles->span].runs)) return false;
    for (uint32_t i = 1; i < item->tile_count; i++) {
        engine_lose(e, e->plan.spans[tiles[i].span].runs, HD_TIMED_OUT);
    }
    return true;
}

static void attend_item(engine *e, const engine_layer *layer, const engine_thread *t, const plan_item *item,
                        uint32_t head) {
    uint32_t group_size = layer->plan.group_size, kernel_rows = item->row_count * group_size;
    kernel_attend call = {.shape = layer->shape,
                          .scale = layer->table.scale,
                          .soft_cap = layer->table.soft_cap,
                          .window = layer->plan.window,
                          .queries = engine_queries(e, layer, item->first_row, head),
                          .query_stride = layer->query_dim,
                          .positions = t->positions,
                          .row_count = kernel_rows,
                          .spans = t->spans,
                          .scratch = t->kernel_scratch};
    const plan_tile *tile = &e->plan.tiles[item->first_tile];
    const plan_span *span = &e->plan.spans[tile->span];
    uint64_t first_visible = engine_first_visible(e, item);
    set_positions(e, t, item);
    kernel_partial first = item->is_whole ? engine_scratch_partial(e, t, 0) : item_partial(e, item, head, 0);
    kernel_span ahead;
    merge_tree tree;
    merge_tree_init(&tree, e->kernels, kernel_rows, layer->shape.value_dim);
    for (uint64_t group = item->group_first; group < item->group_end; group++) {
        call.span_count = gather_group(e, layer, span, group, first_visible, head, t->spans);
        if (call.span_count == 0) continue;
        if (has_lost(e, item)) break;
        bool has_ahead = group + 1 < item->group_end && page_of_group(e, layer, span, group + 1, head, &ahead);
        call.ahead = has_ahead ? &ahead : NULL;
        uint32_t index = merge_tree_begin(&tree, 0, group);
        assert(index < e->partials_per_thread);
        call.partial = index == 0 ? first : engine_scratch_partial(e, t, index);
        e->kernels->attend(&call);
        merge_tree_push(&tree, &call.partial);
    }
    kernel_partial result;
    if (!merge_tree_collapse(&tree, &result)) set_empty(&first, kernel_rows, layer->shape.value_dim);
    if (item->is_whole) {
        write_tile(e, layer, tile, head, &first);
        return;
    }
    for (uint32_t i = 0; i < item->tile_count; i++) {
        if (attend_plan_tile_done(&e->plan, &tile[i], head)) merge_tile(e, layer, &tile[i], head);
    }
}

void engine_run_layer(void *context, unsigned thread, unsigned thread_count) {
    engine *e = context;
    const engine_layer *layer = &e->layers[e->step.call.layer];
    if (layer->is_owner && e->step.is_storing) {
        store_share(e, layer, thread, thread_count);
        hd_pool_barrier(e->pool);
    }
    if (e->indexes != NULL && e->step.is_storing) engine_learn(e, layer, thread, thread_count);
    uint32_t heads = layer->plan.kv_heads, head;
    size_t sparse = (size_t)e->step.sparse_count * heads, count = e->step.ticket_end;
    for (size_t ticket; (ticket = hd_ticket_take(&e->step.ticket, count)) < count;) {
        if (ticket < sparse) {
            head = (uint32_t)(ticket % heads);
            const engine_sparse_row *row = &e->step.sparse_rows[ticket / heads];
            bool is_known = e->step.is_finding || e->step.has_found;
            engine_found *found = is_known ? &e->founds[ticket - e->step.found_first] : NULL;
            if (e->step.is_finding) engine_find_sparse(e, layer, thread, row, head, found);
            else engine_attend_sparse(e, layer, thread, row, head, found, false);
            continue;
        }
        const plan_item *item = attend_plan_item(&e->plan, ticket - sparse, &head);
        attend_item(e, layer, &e->threads[thread], item, head);
    }
}

/* ---- A layer ---- */

static bool is_usable(const attention_tensor *tensor, hd_dtype dtype) {
    return tensor->data != NULL && tensor->dtype == dtype && tensor->place == ATTENTION_HOST;
}

hd_status engine_step_submit(attention *self, const attention_layer_call *call) {
    engine *e = engine_of(self);
    assert(e->step.is_open && !e->step.is_submitted);
    if (e->step.is_broken) return HD_STALE;
    if (call->layer >= e->table.layer_count || call->layer < e->step.next_layer) return HD_INVALID;
    const engine_layer *layer = &e->layers[call->layer];
    if (!layer->is_computable) return HD_UNSUPPORTED;
    if (e->device != NULL) {
        hd_status status = engine_device_submit(e, call);
        if (status != HD_OK) return status;
        e->step.call = *call;
        e->step.is_submitted = true;
        return HD_OK;
    }
    if (call->row_count != 0 && call->row_count != e->step.row_count) return HD_INVALID;
    hd_dtype dtype = kernel_row_dtype(e->home.kv_dtype);
    bool has_inputs = !layer->is_owner || (is_usable(&call->keys, dtype) && is_usable(&call->values, dtype));
    if (!has_inputs || (e->step.has_queries && !is_usable(&call->queries, dtype))) return HD_INVALID;
    bool has_output = is_usable(&call->output, dtype) &&
                      call->output_stride >= (size_t)layer->table.query_heads * layer->shape.value_dim;
    if (e->step.has_whole && !has_output) return HD_INVALID;
    const attention_partial *partial = &call->partial;
    bool has_partial = partial->out != NULL && partial->max != NULL && partial->sum != NULL;
    if (e->step.has_ranges && !has_partial) return HD_INVALID;
    e->step.call = *call;
    e->step.is_submitted = true;
    return HD_OK;
}

/* The plan of the layer before does as well when nothing that it was made from is different. */
static void plan_layer(engine *e, const engine_layer *layer) {
    engine_step *step = &e->step;
    bool is_same = engine_select_rows(e, layer);
    plan_shape shape = layer->plan;
    if (step->dropped_frames != e->home.store.dropped_frames) engine_look_for_cold(e);
    if (step->is_cold) shape.groups_max = e->stream_groups;
    if (is_same && step->is_planned && memcmp(&shape, &e->plan.shape, sizeof(shape)) == 0) return;
    attend_plan_build(&e->plan, step->full_spans, step->full_count, &shape);
    step->is_planned = true;
}

static void end_layer(engine_step *step, uint32_t layer) {
    step->is_submitted = false;
    step->next_layer = layer + 1;
    step->computed_count++;
}

hd_status engine_step_wait(attention *self, uint32_t layer) {
    engine *e = engine_of(self);
    engine_step *step = &e->step;
    if (step->is_broken) return HD_STALE;
    if (!step->is_submitted || step->call.layer != layer) return HD_INVALID;
    if (e->device != NULL) {
        end_layer(step, layer);
        return HD_OK;
    }
    uint64_t begin_ns = hd_now_ns();
    plan_layer(e, &e->layers[layer]);
    hd_status status = engine_await_indexes(e, &e->layers[layer]);
    if (status != HD_OK) return status;
    if (step->is_cold) {
        engine_stream_layer(e, &e->layers[layer]);
    } else {
        atomic_store_explicit(&step->ticket, 0, memory_order_relaxed);
        step->ticket_end =
            (size_t)step->sparse_count * e->layers[layer].plan.kv_heads + attend_plan_ticket_count(&e->plan);
        step->is_storing = true;
        hd_pool_run(e->pool, engine_run_layer, e);
    }
    end_layer(step, layer);
    atomic_fetch_add_explicit(&e->published.layer_work_ns, hd_now_ns() - begin_ns, memory_order_relaxed);
    return HD_OK;
}

hd_status engine_step_replayed(attention *self) {
    engine *e = engine_of(self);
    if (e->device == NULL) return HD_UNSUPPORTED;
    if (e->step.is_broken) return HD_STALE;
    if (!e->step.is_open || e->step.next_layer != 0) return HD_INVALID;
    e->step.next_layer = e->table.layer_count;
    e->step.computed_count = e->computable_count;
    return HD_OK;
}

/* ---- The end ---- */

/* Of two, the one that says more. */
static hd_status worse(hd_status a, hd_status b) {
    if (a == HD_OK || b == HD_OK) return a == HD_OK ? b : a;
    return a == HD_CORRUPT || b == HD_CORRUPT ? HD_CORRUPT : a == HD_IO || b == HD_IO ? HD_IO : a;
}

/* Blocks whose bytes on disk are not theirs are found by nobody from now on. */
static void condemn_corrupt(engine *e) {
    block_store *store = &e->home.store;
    for (uint32_t from = 0, block; (block = page_cache_next_corrupt(&store->pages, &from)) != FRAME_NONE;) {
        block_store_condemn(store, (block_name){block, store->pool.records[block].generation});
    }
    for (uint32_t from = 0, block; (block = row_cache_next_corrupt(&store->rows, &from)) != FRAME_NONE;) {
        block_store_condemn(store, (block_name){block, store->pool.records[block].generation});
    }
}

hd_status engine_step_end(attention *self) {
    engine *e = engine_of(self);
    assert(e->step.is_open);
    e->step.is_open = e->step.is_submitted = false;
    hd_status lost = HD_OK;
    bool is_done = e->step.computed_count == e->computable_count;
    for (uint32_t i = 0; i < e->step.span_count; i++) {
        sequence *s = e->step.sequences[i];
        if (s == NULL) continue;
        s->view_in_step = NULL;
        hd_status status = (hd_status)atomic_load_explicit(&s->step_status, memory_order_relaxed);
        lost = worse(lost, status);
        if (is_done && status == HD_OK) sequence_commit(&e->home, s);
        else sequence_rollback(&e->home, s);
        if (s->indexes != NULL && (!is_done || status != HD_OK)) index_set_truncate(s->indexes, s->length);
        if (s->indexes != NULL) index_set_grow(s->indexes, s);
    }
    if (lost == HD_CORRUPT) condemn_corrupt(e);
    engine_publish(e);
    if (e->indexes != NULL) engine_retrieve_publish(e);
    return is_done ? lost : e->step.is_broken ? HD_STALE : HD_CANCELLED;
}

/* Both halves are done with the first. */
hd_status engine_step_finish(attention *self) {
    return HD_INVALID;
}

hd_status engine_step_lost(attention *self, uint32_t span) {
    const engine *e = engine_of(self);
    assert(e->step.is_open && span < e->step.span_count);
    const sequence *s = e->step.sequences[span];
    return s == NULL ? HD_OK : (hd_status)atomic_load_explicit(&s->step_status, memory_order_relaxed);
}

void engine_step_lose(attention *self, uint32_t span, hd_status why) {
    engine *e = engine_of(self);
    assert(e->step.is_open && span < e->step.span_count);
    if (e->step.sequences[span] != NULL) engine_lose(e, e->step.sequences[span]->runs, why);
}
