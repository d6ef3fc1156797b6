/* engine_blocks.c - taking blocks out of an engine, and putting them in. */
#include "attention-node/engine_blocks.h"

#include <assert.h>

#include "attention-node/engine_state.h"

static sequence *find(engine *e, uint64_t name) {
    sequence *s = sequence_table_find(&e->sequences, name);
    assert(s != NULL);
    return s;
}

/* ---- Units ---- */

uint32_t engine_unit_count(const attention *self) {
    return engine_seen(self)->home.store.pool.layout.unit_count;
}

uint64_t engine_unit_bytes(const attention *self, uint32_t unit) {
    return engine_seen(self)->home.store.pool.layout.units[unit].bytes;
}

uint64_t engine_units_bytes(const attention *self) {
    return engine_seen(self)->home.store.pool.layout.block_bytes;
}

bool engine_has_cold(const attention *self) {
    return engine_seen(self)->home.store.has_cold;
}

/* Calls `visit` for every stream that has a page in that unit page. */
typedef void unit_visit(void *context, uint32_t stream, uint32_t head, const stream_place *place);
static void each_stream(const engine *e, uint32_t unit, unit_visit *visit, void *context) {
    const block_layout *layout = &e->home.store.pool.layout;
    for (uint32_t i = 0; i < layout->stream_count; i++) {
        const stream_place *place = &layout->streams[i];
        if (place->page_bytes == 0 || unit < place->first_unit || unit >= place->first_unit + place->heads) continue;
        visit(context, i, unit - place->first_unit, place);
    }
}

typedef struct {
    const engine *engine;
    uint32_t block;
    unsigned char *page;
    const unsigned char *bytes;
    uint64_t *checksums;
    uint32_t count;
    bool is_recorded; /* read what was recorded, where something was */
    hd_status status;
} unit_work;

static void read_checksum(void *context, uint32_t stream, uint32_t head, const stream_place *place) {
    unit_work *w = context;
    const block_pool *pool = &w->engine->home.store.pool;
    assert(w->count < ENGINE_UNIT_PAGES_MAX);
    uint64_t checksum = w->is_recorded ? block_pool_recorded_checksum(pool, w->block, stream, head) : 0;
    if (checksum == 0) checksum = block_pool_checksum_of(w->bytes + place->page_offset, place->page_bytes);
    w->checksums[w->count++] = checksum;
}

static void count_page(void *context, uint32_t stream, uint32_t head, const stream_place *place) {
    ((unit_work *)context)->count++;
}

uint32_t engine_unit_pages(const attention *self, uint32_t unit) {
    unit_work w = {.engine = engine_seen(self)};
    each_stream(w.engine, unit, count_page, &w);
    return w.count;
}

uint32_t engine_page_checksums(const attention *self, uint32_t unit, const void *page,
                               uint64_t checksums[ENGINE_UNIT_PAGES_MAX]) {
    unit_work w = {.engine = engine_seen(self), .bytes = page, .checksums = checksums};
    each_stream(w.engine, unit, read_checksum, &w);
    return w.count;
}

uint32_t engine_block_checksums(const attention *self, block_name block, uint32_t unit, const void *page,
                                uint64_t checksums[ENGINE_UNIT_PAGES_MAX]) {
    unit_work w = {
        .engine = engine_seen(self), .block = block.index, .bytes = page, .checksums = checksums, .is_recorded = true};
    each_stream(w.engine, unit, read_checksum, &w);
    return w.count;
}

/* ---- Out ---- */

/* An index that has learnt from the queries of the prefill is not a function of what is in the blocks. */
static bool is_learnt(const sequence *s) {
    const index_kind *kind;
    return s->indexes != NULL && (index_kind_find(s->selection.index, &kind, NULL) != HD_OK || index_kind_learns(kind));
}

hd_status engine_block_look(attention *self, uint64_t name, engine_look *look, hd_error *error) {
    engine *e = engine_of(self);
    const sequence *s = sequence_table_find(&e->sequences, name);
    if (s == NULL || s->is_importing)
        return hd_error_set(error, HD_NOT_FOUND, "no sequence %llu", (unsigned long long)name);
    if (is_learnt(s)) {
        return hd_error_set(
            error, HD_UNSUPPORTED,
            "sequence %llu has selection '%s', whose index '%s' is learnt from the queries of the prompt "
            "and does not move: the sequence stays until it ends",
            (unsigned long long)name, s->selection.ops->name, s->selection.index);
    }
    if (s->sealed_count != s->length / HD_BLOCK_TOKENS)
        return hd_error_set(error, HD_UNSUPPORTED, "sequence %llu has dropped tokens", (unsigned long long)name);
    *look = (engine_look){.epoch = s->epoch,
                          .length = s->length,
                          .first_position = s->first,
                          .end_position = s->range == 0 ? 0 : s->first + s->range,
                          .prompt_count = s->exact_count,
                          .is_private = s->is_private,
                          .scope = s->scope};
    return HD_OK;
}

void engine_block_hold(attention *self, uint64_t name, uint32_t first, uint32_t count, block_name *blocks,
                       uint32_t *tokens) {
    engine *e = engine_of(self);
    const sequence *s = find(e, name);
    block_store *store = &e->home.store;
    assert(first + count <= s->sealed_count);
    for (uint32_t i = 0; i < count; i++) {
        blocks[i] = s->runs[first + i].block;
        hd_status status = block_store_share(store, blocks[i]); /* the sequence has it, so that costs nothing */
        assert(status == HD_OK);
        (void)status;
        memcpy(tokens + (size_t)i * HD_BLOCK_TOKENS, block_pool_get(&store->pool, blocks[i])->token_ids,
               HD_BLOCK_TOKENS * sizeof(*tokens));
    }
}

bool engine_block_is_at(const attention *self, uint64_t name, uint32_t index, block_name block) {
    const sequence *s = sequence_table_find(&engine_seen(self)->sequences, name);
    return s != NULL && index < s->sealed_count && block_name_is_equal(s->runs[index].block, block);
}

void engine_block_release(attention *self, block_name block) {
    engine *e = engine_of(self);
    block_store_release(&e->home.store, block, RETAIN_NOT);
    engine_publish(e);
}

hd_status engine_block_copy_tail(attention *self, uint64_t name, uint32_t *tokens, unsigned char *pages) {
    engine *e = engine_of(self);
    const sequence *s = find(e, name);
    const block_pool *pool = &e->home.store.pool;
    uint32_t count = s->length % HD_BLOCK_TOKENS;
    if (count == 0) return HD_OK;
    if (s->view_in_step != NULL) return HD_STALE;
    block_name block = s->runs[s->run_count - 1].block;
    assert(block_pool_get(pool, block)->state == BLOCK_OPEN);
    memcpy(tokens, block_pool_get(pool, block)->token_ids, count * sizeof(*tokens));
    for (uint32_t unit = 0; unit < pool->layout.unit_count; unit++) {
        uint64_t bytes = pool->layout.units[unit].bytes;
        memcpy(pages, block_pool_unit(pool, pool->frame_of[block.index], unit), bytes);
        pages += bytes;
    }
    return HD_OK;
}

typedef struct {
    unsigned char *to;
    uint64_t bytes;
} page_copy;

static void copy_page(void *context, const void *page) {
    const page_copy *c = context;
    memcpy(c->to, page, c->bytes);
}

static void fetch_page(void *context, uint32_t stream, uint32_t head, const stream_place *place) {
    unit_work *w = context;
    page_copy copy = {w->page + place->page_offset, place->page_bytes};
    block_store *store = (block_store *)&w->engine->home.store;
    hd_status status = block_store_visit(store, w->block, stream, head, copy_page, &copy);
    if (status != HD_OK) w->status = status;
}

hd_status engine_block_page(const attention *self, block_name block, uint32_t unit, void *room, const void **page) {
    const engine *e = engine_seen(self);
    const block_store *store = &e->home.store;
    if (!store->has_cold) {
        *page = block_pool_unit(&store->pool, store->pool.frame_of[block.index], unit);
        return HD_OK;
    }
    unit_work w = {.engine = e, .block = block.index, .page = room};
    each_stream(e, unit, fetch_page, &w);
    if (w.status == HD_OK) *page = room;
    return w.status;
}

/* ---- In ---- */

hd_status engine_import_open(attention *self, const attention_sequence_params *params, uint64_t *blocks,
                             hd_error *error) {
    engine *e = engine_of(self);
    uint64_t cached = 0;
    if (sequence_table_find(&e->sequences, params->sequence) != NULL) {
        return hd_error_set(error, HD_INVALID, "sequence %llu is open here already",
                            (unsigned long long)params->sequence);
    }
    hd_status status = self->ops->sequence_open(self, params, &cached, error);
    if (status != HD_OK) return status;
    sequence *s = find(e, params->sequence);
    s->is_importing = true;
    *blocks = s->length / HD_BLOCK_TOKENS;
    return HD_OK;
}

hd_status engine_import_extend(attention *self, uint64_t name, const uint32_t *tokens, uint32_t count,
                               uint32_t *block) {
    engine *e = engine_of(self);
    sequence *s = find(e, name);
    assert(s->is_importing && s->end % HD_BLOCK_TOKENS == 0 && count > 0 && count <= HD_BLOCK_TOKENS);
    if (count > s->tokens_max - s->end) return HD_INVALID;
    hd_status status = block_store_make_room(&e->home.store, 1);
    if (status != HD_OK) return status;
    sequence_extend(&e->home, s, tokens, count);
    *block = s->runs[s->run_count - 1].block.index;
    engine_publish(e);
    return HD_OK;
}

void engine_import_rollback(attention *self, uint64_t name) {
    engine *e = engine_of(self);
    sequence_rollback(&e->home, find(e, name));
    engine_publish(e);
}

hd_status engine_import_page(const attention *self, uint32_t block, uint32_t unit, const void *page,
                             const uint64_t *checksums) {
    const engine *e = engine_seen(self);
    block_pool *pool = (block_pool *)&e->home.store.pool;
    const block_layout *layout = &pool->layout;
    unsigned char *to = block_pool_unit(pool, pool->frame_of[block], unit);
    memcpy(to, page, layout->units[unit].bytes);
    uint64_t found[ENGINE_UNIT_PAGES_MAX];
    uint32_t count = engine_page_checksums(self, unit, to, found), i = 0;
    if (memcmp(found, checksums, count * sizeof(*found)) != 0) return HD_CORRUPT;
    for (uint32_t stream = 0; stream < layout->stream_count && i < count; stream++) {
        const stream_place *place = &layout->streams[stream];
        if (place->page_bytes == 0 || unit < place->first_unit || unit >= place->first_unit + place->heads) continue;
        block_pool_set_checksum(pool, block, stream, unit - place->first_unit, found[i++]);
    }
    return HD_OK;
}

void engine_import_commit(attention *self, uint64_t name, uint32_t blocks) {
    engine *e = engine_of(self);
    sequence *s = find(e, name);
    uint64_t length = s->length + (uint64_t)blocks * HD_BLOCK_TOKENS;
    sequence_commit_to(&e->home, s, length < s->end ? length : s->end);
    if (s->indexes != NULL) index_set_grow(s->indexes, s);
    engine_publish(e);
}

void engine_import_end(attention *self, uint64_t name) {
    find(engine_of(self), name)->is_importing = false;
}
