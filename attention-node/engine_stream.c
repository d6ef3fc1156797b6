/* engine_stream.c - attention over blocks that are not in memory.
 *
 * The pages that a layer needs may be more than the page cache holds. So its tickets are done in rounds: as many as
 * have their pages pinned. While the pool works on one round, the reads of the next one run, and while it works on the
 * last, those that the next layer is likely to begin with. Which rounds there are depends on what is cached; the bits
 * do not, because items are nodes of the merge tree wherever rounds part them. */
#include <assert.h>

#include "attention-node/engine_state.h"

#define ROUND_BYTES_MAX ((uint64_t)64 << 20) /* so that a round does not wait for half of a large cache to be read */

/* ---- What is lost ---- */

static sequence *sequence_of(const engine *e, const kv_run *runs) {
    for (uint32_t i = 0; i < e->step.span_count; i++) {
        sequence *s = e->step.sequences[i];
        if (s != NULL && s->runs == runs) return s;
    }
    return NULL;
}

bool engine_has_lost(const engine *e, const kv_run *runs) {
    if (!atomic_load_explicit(&e->step.has_lost, memory_order_relaxed)) return false;
    const sequence *s = sequence_of(e, runs);
    return s != NULL && atomic_load_explicit(&s->step_status, memory_order_relaxed) != HD_OK;
}

void engine_lose(const engine *e, const kv_run *runs, hd_status status) {
    sequence *s = sequence_of(e, runs);
    if (s == NULL) return;
    uint32_t expected = HD_OK;
    atomic_compare_exchange_strong(&s->step_status, &expected, status);
    atomic_store((_Atomic bool *)&e->step.has_lost, true);
}

/* ---- Pages ---- */

const void *engine_page(const engine *e, const kv_run *runs, uint32_t block, uint32_t stream, uint32_t head) {
    const block_store *store = &e->home.store;
    if (block_pool_is_resident(&store->pool, block)) return block_pool_page(&store->pool, block, stream, head);
    if (engine_has_lost(e, runs)) return e->no_page;
    const stream_place *place = &store->pool.layout.streams[stream];
    const unsigned char *unit;
    hd_status status =
        page_cache_use((page_cache *)&store->pages, block, place->first_unit + head, e->patience_ns, &unit);
    if (status == HD_OK) return unit + place->page_offset;
    engine_lose(e, runs, status);
    return e->no_page;
}

bool engine_pin_spans(engine *e, const engine_layer *layer, const kv_run *runs, uint32_t run_count, uint64_t begin,
                      uint64_t end, uint32_t head, uint64_t round, bool is_scan) {
    block_store *store = &e->home.store;
    const stream_place *streams = store->pool.layout.streams;
    uint32_t key_unit = streams[layer->table.key_stream].first_unit + head,
             value_unit = streams[layer->table.value_stream].first_unit + head;
    for (uint32_t i = sequence_run_at(runs, run_count, begin); i < run_count && runs[i].position < end; i++) {
        uint32_t block = runs[i].block.index;
        if (block_pool_is_resident(&store->pool, block)) continue;
        uint32_t slot = block_store_cold_slot(store, block);
        if (!page_cache_pin(&store->pages, block, key_unit, slot, round, is_scan)) return false;
        if (value_unit == key_unit) continue;
        if (!page_cache_pin(&store->pages, block, value_unit, slot, round, is_scan)) return false;
    }
    return true;
}

/* In most sequences all runs are whole blocks. */
const kv_run *engine_run_of(const sequence *s, uint64_t token) {
    uint64_t likely = token / HD_BLOCK_TOKENS;
    if (likely < s->run_count && token >= s->runs[likely].position &&
        token - s->runs[likely].position < s->runs[likely].count)
        return &s->runs[likely];
    return &s->runs[sequence_run_at(s->runs, s->run_count, token)];
}

static row_name name_of(const engine *e, const engine_layer *layer, uint32_t block, uint32_t head, uint32_t token) {
    const block_store *store = &e->home.store;
    return (row_name){.block = block,
                      .unit = store->pool.layout.streams[layer->table.key_stream].first_unit + head,
                      .cold_slot = block_store_cold_slot(store, block),
                      .token = token};
}

bool engine_has_row(const engine *e, const engine_layer *layer, uint32_t block, uint32_t head) {
    const block_store *store = &e->home.store;
    if (!store->has_cold || block_pool_is_resident(&store->pool, block)) return false;
    row_name name = name_of(e, layer, block, head, 0);
    bool is_pair = store->pool.layout.streams[layer->table.value_stream].first_unit + head == name.unit;
    return is_pair && row_cache_has_unit(&store->rows, name.unit) && !page_cache_has(&store->pages, block, name.unit);
}

const void *engine_row(const engine *e, const engine_layer *layer, const kv_run *runs, uint32_t block, uint32_t head,
                       uint32_t slot, unsigned char *room) {
    if (engine_has_lost(e, runs)) return e->no_page;
    const block_store *store = &e->home.store;
    row_name name = name_of(e, layer, block, head, slot);
    const unsigned char *row;
    hd_status status = row_cache_use((row_cache *)&store->rows, &name, room, &row);
    if (status == HD_OK) return row;
    engine_lose(e, runs, status);
    return e->no_page;
}

bool engine_pin_tokens(engine *e, const engine_layer *layer, const engine_sparse_row *row, const uint32_t *tokens,
                       uint32_t count, uint32_t head, uint64_t round) {
    const sequence *s = row->sequence;
    row_cache *rows = &e->home.store.rows;
    uint64_t end = 0; /* of the run that needs no more to be pinned */
    if (engine_has_lost(e, s->runs)) return true;
    for (uint32_t i = 0; i < count; i++) {
        if (tokens[i] < end) continue;
        const kv_run *run = engine_run_of(s, tokens[i]);
        if (engine_has_row(e, layer, run->block.index, head)) {
            row_name name =
                name_of(e, layer, run->block.index, head, run->first + (uint32_t)(tokens[i] - run->position));
            if (!row_cache_pin(rows, &name, round, e->patience_ns)) return false;
            continue;
        }
        end = run->position + run->count;
        if (!engine_pin_spans(e, layer, s->runs, s->run_count, tokens[i], end, head, round, false)) return false;
    }
    return true;
}

void engine_look_for_cold(engine *e) {
    engine_step *step = &e->step;
    const block_store *store = &e->home.store;
    step->is_cold = false;
    step->dropped_frames = store->dropped_frames;
    for (uint32_t i = 0; store->has_cold && i < step->span_count && !step->is_cold; i++) {
        const sequence *s = step->sequences[i];
        for (uint32_t k = 0; s != NULL && k < s->run_count && !step->is_cold; k++) {
            step->is_cold = !block_pool_is_resident(&store->pool, s->runs[k].block.index);
        }
    }
}

/* ---- Rounds ---- */

static bool pin_item(engine *e, const engine_layer *layer, const plan_item *item, uint32_t head, uint64_t round) {
    const plan_span *span = &e->plan.spans[e->plan.tiles[item->first_tile].span];
    if (engine_has_lost(e, span->runs)) return true;
    uint64_t begin = engine_group_begin(span, item->group_first, engine_first_visible(e, item));
    return engine_pin_spans(e, layer, span->runs, span->run_count, begin, item->group_end * HD_GROUP_TOKENS, head,
                            round, true);
}

static engine_found *found_of(const engine *e, size_t ticket) {
    return e->step.has_found ? &e->founds[ticket - e->step.found_first] : NULL;
}

static bool pin_sparse(engine *e, const engine_layer *layer, size_t ticket, uint64_t round) {
    uint32_t heads = layer->plan.kv_heads, head = (uint32_t)(ticket % heads);
    const engine_sparse_row *row = &e->step.sparse_rows[ticket / heads];
    const engine_found *found = found_of(e, ticket);
    return engine_pin_sparse(e, layer, row, head, round) &&
           (found == NULL || engine_pin_tokens(e, layer, row, found->first, found->count, head, round));
}

static bool pin_ticket(engine *e, const engine_layer *layer, size_t ticket, uint64_t round) {
    size_t sparse = (size_t)e->step.sparse_count * layer->plan.kv_heads;
    if (ticket < sparse) return pin_sparse(e, layer, ticket, round);
    uint32_t head;
    const plan_item *item = attend_plan_item(&e->plan, ticket - sparse, &head);
    return pin_item(e, layer, item, head, round);
}

/* Pins the pages of the tickets [first, end), for as many as a round has room for, and returns the ticket behind
 * them. */
static size_t pin_round(engine *e, const engine_layer *layer, size_t first, size_t end, uint64_t round) {
    page_cache *pages = &e->home.store.pages;
    uint64_t most = ROUND_BYTES_MAX / pages->slot_bytes;
    if (most > pages->slot_count / 2) most = pages->slot_count / 2;
    row_cache *rows = &e->home.store.rows;
    uint64_t grains_most = rows->grain_count > 0 ? ROUND_BYTES_MAX / rows->grain_bytes : 1;
    if (grains_most > rows->grain_count / 2 && rows->grain_count > 0) grains_most = rows->grain_count / 2;
    size_t ticket = first;
    pages->pinned_count = rows->pinned_count = 0;
    while (ticket < end && pages->pinned_count < most && rows->pinned_count < grains_most &&
           pin_ticket(e, layer, ticket, round))
        ticket++;
    page_cache_submit(pages);
    return ticket;
}

static void release(engine *e, uint64_t round) {
    page_cache_release(&e->home.store.pages, round);
    row_cache_release(&e->home.store.rows, round);
}

/* Nothing else is pinned and still there is no room. An item fits by how it was cut, so what holds the room are reads
 * that do not end: its sequences lose the step, and it is still to be run. */
static void give_up_item(engine *e, const plan_item *item) {
    for (uint32_t i = 0; i < item->tile_count; i++) {
        engine_lose(e, e->plan.spans[e->plan.tiles[item->first_tile + i].span].runs, HD_TIMED_OUT);
    }
}

void engine_pin_tokens_alone(engine *e, const engine_layer *layer, const engine_sparse_row *row, const uint32_t *tokens,
                             uint32_t count, uint32_t head) {
    release(e, e->round);
    bool has_room = engine_pin_tokens(e, layer, row, tokens, count, head, ++e->round);
    page_cache_submit(&e->home.store.pages);
    row_cache_await(&e->home.store.rows, e->patience_ns);
    if (!has_room) engine_lose(e, row->sequence->runs, HD_TIMED_OUT);
}

void engine_pin_alone(engine *e, const engine_layer *layer, const engine_sparse_row *row, const uint64_t at[4],
                      uint32_t head) {
    const sequence *s = row->sequence;
    release(e, e->round);
    uint64_t round = ++e->round;
    bool has_room = engine_pin_spans(e, layer, s->runs, s->run_count, at[0], at[1], head, round, true) &&
                    engine_pin_spans(e, layer, s->runs, s->run_count, at[2], at[3], head, round, true);
    page_cache_submit(&e->home.store.pages);
    if (!has_room) engine_lose(e, s->runs, HD_TIMED_OUT);
}

/* The next layer's plan is most often this one's; what was read in vain stays cached. */
static void read_ahead(engine *e, const engine_layer *layer, uint64_t round) {
    const engine_layer *next = layer + 1;
    if (next == e->layers + e->table.layer_count || e->step.sparse_count > 0 || !next->is_computable) return;
    bool is_alike = next->plan.kv_heads == layer->plan.kv_heads && next->plan.window == layer->plan.window &&
                    next->plan.group_size == layer->plan.group_size;
    if (is_alike) pin_round(e, next, 0, attend_plan_ticket_count(&e->plan), round);
}

/* Tickets [begin, end) on every thread. */
static void run_tickets(engine *e, size_t begin, size_t end, bool is_storing) {
    e->step.is_storing = is_storing;
    e->step.ticket_end = end;
    atomic_store_explicit(&e->step.ticket, begin, memory_order_relaxed);
    hd_pool_run(e->pool, engine_run_layer, e);
}

/* Sparse tickets [begin, end), whose tokens are found. A row that sees more than the cache holds is worked on by this
 * thread alone, group by group. */
static void attend_sparse(engine *e, const engine_layer *layer, size_t begin, size_t end) {
    uint32_t heads = layer->plan.kv_heads;
    while (begin < end) {
        size_t next = pin_round(e, layer, begin, end, ++e->round);
        row_cache_await(&e->home.store.rows, e->patience_ns);
        if (next > begin) {
            run_tickets(e, begin, next, false);
        } else {
            engine_attend_sparse(e, layer, 0, &e->step.sparse_rows[begin / heads], (uint32_t)(begin % heads),
                                 found_of(e, begin), true);
            next = begin + 1;
        }
        release(e, e->round);
        begin = next;
    }
}

/* First they search, as many as there is room for what they find; then the pages come that they found something in. */
static void stream_sparse(engine *e, const engine_layer *layer, size_t count) {
    for (size_t begin = 0; begin < count;) {
        size_t end = e->founds == NULL || count - begin < ENGINE_FOUNDS ? count : begin + ENGINE_FOUNDS;
        if (e->founds != NULL) {
            e->step.found_first = begin;
            e->step.is_finding = true;
            run_tickets(e, begin, end, false);
            e->step.is_finding = false;
            e->step.has_found = true;
        }
        attend_sparse(e, layer, begin, end);
        e->step.has_found = false;
        begin = end;
    }
}

void engine_stream_layer(engine *e, const engine_layer *layer) {
    size_t sparse = (size_t)e->step.sparse_count * layer->plan.kv_heads;
    size_t count = sparse + attend_plan_ticket_count(&e->plan);
    size_t begin = sparse, end = begin;
    if (sparse == 0) end = pin_round(e, layer, begin, count, ++e->round);
    run_tickets(e, 0, 0, true);
    stream_sparse(e, layer, sparse);
    while (begin < count) {
        if (end == begin) {
            release(e, e->round);
            end = pin_round(e, layer, begin, count, ++e->round);
        }
        if (end == begin) {
            uint32_t head;
            give_up_item(e, attend_plan_item(&e->plan, end++ - sparse, &head));
        }
        uint64_t round = e->round++;
        size_t next = end;
        if (end < count) next = pin_round(e, layer, end, count, e->round);
        else read_ahead(e, layer, e->round);
        run_tickets(e, begin, end, false);
        release(e, round);
        begin = end;
        end = next;
    }
}
