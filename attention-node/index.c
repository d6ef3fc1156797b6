/* index.c - the ladder of segments: which an extent has, which are there, who makes the next one.
 *
 * Every possible segment has a slot, an atomic pointer at its level and ordinal, so that the builder publishes with one
 * store and a search needs no lock. Slots are emptied by the owner alone, when nothing else looks. */
#include "attention-node/index.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "attention-node/index_kind.h"
#include "attention-node/index_memory.h"
#include "attention-node/index_top.h"

enum {
    CHUNK_ROWS = 1024, /* sampled queries that are kept together, at most */
    CHUNK_POSITIONS = CHUNK_ROWS * INDEX_QUERY_POSITIONS,
    TOP_LEVEL = INDEX_LEVELS - 1,
};

static const uint32_t level_tokens[INDEX_LEVELS] = INDEX_LEVEL_TOKENS;
/* Of one plan, below the top: as many as make a segment of the level above, which may not be planned yet. */
static const uint32_t level_max[TOP_LEVEL] = {4, 4, 8};

typedef struct query_chunk {
    uint64_t present[CHUNK_ROWS / 64]; /* bits */
    uint16_t rows[];                   /* [chunk_rows, key_dim] */
} query_chunk;

struct kv_index {
    index_params params;
    index_source source;
    uint64_t serial;         /* no two indexes of a process, and none before and after a truncation, have the same */
    _Atomic uint64_t target; /* grains covered, and settled << 32 */
    _Atomic uint64_t bytes;
    uint32_t slot_count[INDEX_LEVELS];
    _Atomic(index_segment *) *slots[INDEX_LEVELS];
    uint32_t chunk_count;
    _Atomic(query_chunk *) *chunks;
};

struct index_builder {
    index_params params;
    uint64_t serial; /* of the index that `building` is for; 0: none */
    index_building building;
    uint16_t *queries;
    void *workspace;
};

static const index_kind *const kinds[] = {&index_kind_exact, &index_kind_bounds, &index_kind_clusters,
                                          &index_kind_graph};
enum { KIND_COUNT = sizeof(kinds) / sizeof(kinds[0]) };

hd_status index_kind_find(const char *name, const index_kind **kind, hd_error *error) {
    char names[128] = "";
    for (size_t i = 0; i < KIND_COUNT; i++) {
        if (strcmp(name, kinds[i]->name) == 0) {
            *kind = kinds[i];
            return HD_OK;
        }
        if (i > 0) strncat(names, ", ", sizeof(names) - strlen(names) - 1);
        strncat(names, kinds[i]->name, sizeof(names) - strlen(names) - 1);
    }
    return hd_error_set(error, HD_INVALID, "index '%s' is not known; there are %s", name, names);
}

size_t index_kinds(const index_kind *const **list) {
    *list = kinds;
    return KIND_COUNT;
}

const char *index_kind_name(const index_kind *kind) {
    return kind->name;
}

bool index_kind_has_rest(const index_kind *kind) {
    return kind->has_rest;
}

/* ---- plans ---- */

static bool is_planned(uint32_t level, uint64_t first, const index_extent *extent) {
    assert(level < INDEX_LEVELS);
    uint64_t tokens = level_tokens[level], end = first + tokens;
    if (first % tokens != 0 || end > extent->covered) return false;
    return level == 0 || end <= extent->settled || end + tokens / 8 <= extent->covered;
}

uint32_t index_plan(const index_extent *extent, index_range *plan, uint32_t plan_max) {
    uint32_t count = 0;
    assert(extent->covered % INDEX_GRAIN == 0);
    for (uint64_t first = 0; first < extent->covered;) {
        uint32_t level = TOP_LEVEL;
        while (level > 0 && !is_planned(level, first, extent)) level--; /* the finest fits anywhere */
        assert(count < plan_max);
        plan[count++] = (index_range){.first = first, .level = level, .count = level_tokens[level]};
        first += level_tokens[level];
    }
    return count;
}

uint32_t index_plan_max(uint64_t keys_max) {
    uint32_t count = (uint32_t)(keys_max / level_tokens[TOP_LEVEL]);
    for (uint32_t level = 0; level < TOP_LEVEL; level++) count += level_max[level];
    return count;
}

/* ---- sizes ---- */

static uint64_t segments_bytes(const index_params *params, uint32_t level, uint64_t count_max) {
    uint64_t count = params->keys_max / level_tokens[level];
    if (count > count_max) count = count_max;
    return count * (sizeof(index_segment) +
                    HD_ALIGN_UP(params->kind->segment_bytes(params, level_tokens[level]), HD_CACHE_LINE));
}

/* Of as many positions before `end`, a segment that ends there reads one query at most. */
static uint64_t query_step(uint64_t end, uint32_t queries_max) {
    uint64_t window = level_tokens[TOP_LEVEL], reach = end < window ? end : window, step = INDEX_QUERY_POSITIONS;
    while (reach / step > queries_max) step *= 2;
    return step;
}

/* No later segment reads more of a chunk's rows than the first that ends in it. */
static uint64_t chunk_step(const index_params *params, uint64_t chunk) {
    return query_step(chunk * CHUNK_POSITIONS + INDEX_GRAIN, params->kind->queries_max);
}

static size_t chunk_bytes(const index_params *params, uint64_t chunk) {
    return sizeof(query_chunk) + CHUNK_POSITIONS / chunk_step(params, chunk) * params->key_dim * sizeof(uint16_t);
}

static uint32_t chunk_count(const index_params *params) {
    if (params->kind->queries_max == 0) return 0;
    return (uint32_t)((params->keys_max + CHUNK_POSITIONS - 1) / CHUNK_POSITIONS);
}

static uint64_t own_bytes(const index_params *params) {
    uint64_t bytes = sizeof(kv_index) + chunk_count(params) * sizeof(query_chunk *);
    for (uint32_t level = 0; level < INDEX_LEVELS; level++)
        bytes += params->keys_max / level_tokens[level] * sizeof(index_segment *);
    return bytes;
}

/* Two plans' segments may be there at once, an extent's and that of the next grain: what one has and the other has not
 * is one segment more, and its parts. */
uint64_t index_bytes_max(const index_params *params) {
    uint64_t bytes = own_bytes(params);
    for (uint32_t i = 0; i < chunk_count(params); i++) bytes += chunk_bytes(params, i);
    for (uint32_t level = 0; level < TOP_LEVEL; level++) bytes += segments_bytes(params, level, level_max[level] + 1);
    return bytes + segments_bytes(params, TOP_LEVEL, UINT64_MAX);
}

static size_t workspace_bytes(const index_params *params) {
    return params->kind->workspace_bytes(params, level_tokens[TOP_LEVEL]);
}

static size_t queries_bytes(const index_params *params) {
    return (size_t)params->kind->queries_max * params->key_dim * sizeof(uint16_t);
}

size_t index_builder_bytes(const index_params *params) {
    return sizeof(index_builder) + workspace_bytes(params) + queries_bytes(params) + sizeof(index_segment) +
           params->kind->segment_bytes(params, level_tokens[TOP_LEVEL]);
}

size_t index_search_bytes(const index_params *params, uint32_t query_count, uint32_t tokens_each) {
    index_carve carve = {0};
    index_carve_take(&carve, index_plan_max(params->keys_max) * sizeof(index_range));
    index_carve_take(&carve, index_plan_max(params->keys_max) * sizeof(index_segment *));
    return carve.bytes + params->kind->search_bytes(params, query_count, tokens_each);
}

/* ---- open, close, segments ---- */

static uint64_t next_serial(void) {
    static _Atomic uint64_t last;
    return atomic_fetch_add(&last, 1) + 1;
}

hd_status index_open(const index_params *params, const index_source *source, kv_index **out) {
    assert(params->key_dim % 16 == 0 && params->value_dim % 16 == 0 && params->keys_max < UINT32_MAX &&
           params->sinks % 16 == 0 && params->sinks < INDEX_GRAIN && params->kind->queries_max % CHUNK_ROWS == 0);
    if (params->has_rest && !params->kind->has_rest) return HD_UNSUPPORTED;
    kv_index *self = calloc(1, sizeof(*self));
    if (self == NULL) return HD_NO_MEMORY;
    self->params = *params;
    self->source = *source;
    self->serial = next_serial();
    self->chunk_count = chunk_count(params);
    bool is_whole = true;
    for (uint32_t level = 0; level < INDEX_LEVELS; level++) {
        self->slot_count[level] = (uint32_t)(params->keys_max / level_tokens[level]);
        self->slots[level] = calloc(self->slot_count[level] + 1u, sizeof(*self->slots[level]));
        is_whole = is_whole && self->slots[level] != NULL;
    }
    self->chunks = calloc(self->chunk_count + 1u, sizeof(*self->chunks));
    if (!is_whole || self->chunks == NULL) {
        index_close(self);
        return HD_NO_MEMORY;
    }
    atomic_store(&self->bytes, own_bytes(params));
    *out = self;
    return HD_OK;
}

static hd_status segment_open(const index_params *params, const index_range *range, index_segment **out) {
    index_segment *segment = calloc(1, sizeof(*segment));
    if (segment == NULL) return HD_NO_MEMORY;
    segment->references = 1;
    segment->level = range->level;
    segment->count = range->count;
    segment->first = range->first;
    segment->bytes = HD_ALIGN_UP(params->kind->segment_bytes(params, range->count), HD_CACHE_LINE);
    segment->data = index_memory_take(segment->bytes);
    if (segment->data == NULL) {
        free(segment);
        return HD_NO_MEMORY;
    }
    *out = segment;
    return HD_OK;
}

static void segment_release(index_segment *segment) {
    if (segment == NULL || atomic_fetch_sub(&segment->references, 1) != 1) return;
    index_memory_give(segment->data, segment->bytes);
    free(segment);
}

static _Atomic(index_segment *) *slot_of(const kv_index *self, const index_range *range) {
    return &self->slots[range->level][range->first / level_tokens[range->level]];
}

static void slot_empty(kv_index *self, _Atomic(index_segment *) *slot) {
    index_segment *segment = atomic_load(slot);
    if (segment == NULL) return;
    atomic_fetch_sub(&self->bytes, sizeof(*segment) + segment->bytes);
    atomic_store(slot, NULL);
    segment_release(segment);
}

void index_close(kv_index *self) {
    if (self == NULL) return;
    for (uint32_t level = 0; level < INDEX_LEVELS; level++) {
        for (uint32_t i = 0; self->slots[level] != NULL && i < self->slot_count[level]; i++)
            slot_empty(self, &self->slots[level][i]);
        free(self->slots[level]);
    }
    for (uint32_t i = 0; self->chunks != NULL && i < self->chunk_count; i++) free(self->chunks[i]);
    free(self->chunks);
    free(self);
}

uint64_t index_bytes(const kv_index *self) {
    return atomic_load(&self->bytes);
}

/* ---- sampled queries ---- */

static query_chunk *chunk_at(kv_index *self, uint64_t position) {
    _Atomic(query_chunk *) *place = &self->chunks[position / CHUNK_POSITIONS];
    if (*place == NULL) {
        size_t bytes = chunk_bytes(&self->params, position / CHUNK_POSITIONS);
        query_chunk *chunk = calloc(1, bytes);
        if (chunk == NULL) return NULL;
        atomic_store(place, chunk);
        atomic_fetch_add(&self->bytes, bytes);
    }
    return *place;
}

/* One of the heads: they share the keys, and the sample stays a sixteenth of them. Which one no step through the
 * positions can tell, so that whoever reads every n-th of them sees all heads. */
static uint32_t sampled_head(uint64_t position, uint32_t count) {
    uint32_t mixed = (uint32_t)(position / INDEX_QUERY_POSITIONS) * 2654435761u;
    return (uint32_t)((uint64_t)mixed * count >> 32);
}

hd_status index_add_query(kv_index *self, uint64_t position, const uint16_t *queries, uint32_t count, size_t stride) {
    if (self->chunk_count == 0 || position % INDEX_QUERY_POSITIONS != 0) return HD_OK;
    assert(position < self->params.keys_max);
    uint64_t step = chunk_step(&self->params, position / CHUNK_POSITIONS);
    if (position % step != 0) return HD_OK;
    query_chunk *chunk = chunk_at(self, position);
    if (chunk == NULL) return HD_NO_MEMORY;
    uint32_t row = (uint32_t)(position % CHUNK_POSITIONS / step);
    if ((chunk->present[row / 64] >> row % 64 & 1) != 0) return HD_OK;
    uint32_t dim = self->params.key_dim, head = sampled_head(position, count);
    memcpy(chunk->rows + (size_t)row * dim, queries + head * stride, dim * sizeof(uint16_t));
    chunk->present[row / 64] |= (uint64_t)1 << row % 64;
    return HD_OK;
}

static const uint16_t *query_row(const kv_index *self, uint64_t position) {
    const query_chunk *chunk = self->chunks[position / CHUNK_POSITIONS];
    uint64_t step = chunk_step(&self->params, position / CHUNK_POSITIONS);
    uint32_t row = (uint32_t)(position % CHUNK_POSITIONS / step);
    if (chunk == NULL || position % step != 0 || (chunk->present[row / 64] >> row % 64 & 1) == 0) return NULL;
    return chunk->rows + (size_t)row * self->params.key_dim;
}

/* At most queries_max rows, evenly from the tokens that a segment of the top level would have up to this end: a short
 * segment alone has too few to tell what queries are like. */
static uint32_t gather_queries(const kv_index *self, const index_range *range, uint16_t *rows) {
    uint32_t dim = self->params.key_dim, count = 0, most = self->params.kind->queries_max;
    if (self->chunk_count == 0) return 0;
    if (most > range->count) most = range->count;
    uint64_t end = range->first + range->count, window = level_tokens[TOP_LEVEL];
    uint64_t first = end > window ? end - window : 0, step = query_step(end, most);
    for (uint64_t position = HD_ALIGN_UP(first, step); position < end && count < most; position += step) {
        const uint16_t *row = query_row(self, position);
        if (row != NULL) memcpy(rows + (size_t)count++ * dim, row, dim * sizeof(uint16_t));
    }
    return count;
}

/* ---- building ---- */

static index_extent unpack(uint64_t target) {
    return (index_extent){.covered = (target & UINT32_MAX) * INDEX_GRAIN, .settled = (target >> 32) * INDEX_GRAIN};
}

/* What `settled` leaves over of a grain changes no plan, since segments end at whole ones. */
void index_target(kv_index *self, const index_extent *extent) {
    assert(extent->covered % INDEX_GRAIN == 0 && extent->covered <= self->params.keys_max);
    uint64_t settled = extent->settled < extent->covered ? extent->settled : extent->covered;
    atomic_store(&self->target, extent->covered / INDEX_GRAIN | settled / INDEX_GRAIN << 32);
}

/* The first segment of the extent that is not there; false when all are. */
static bool find_missing(const kv_index *self, const index_extent *extent, index_range *missing) {
    for (uint64_t first = 0; first < extent->covered; first += missing->count) {
        missing->level = TOP_LEVEL;
        while (!is_planned(missing->level, first, extent)) missing->level--;
        missing->first = first;
        missing->count = level_tokens[missing->level];
        if (atomic_load_explicit(slot_of(self, missing), memory_order_acquire) == NULL) return true;
    }
    return false;
}

bool index_is_ready(const kv_index *self, const index_extent *extent) {
    index_range missing;
    return !find_missing(self, extent, &missing);
}

hd_status index_builder_open(const index_params *params, index_builder **out) {
    index_builder *builder = calloc(1, sizeof(*builder));
    if (builder == NULL) return HD_NO_MEMORY;
    builder->params = *params;
    builder->workspace = hd_alloc(workspace_bytes(params) + HD_CACHE_LINE, HD_CACHE_LINE);
    builder->queries = hd_alloc(queries_bytes(params) + HD_CACHE_LINE, HD_CACHE_LINE);
    if (builder->workspace == NULL || builder->queries == NULL) {
        index_builder_close(builder);
        return HD_NO_MEMORY;
    }
    *out = builder;
    return HD_OK;
}

static void builder_forget(index_builder *builder) {
    segment_release(builder->building.segment);
    builder->building = (index_building){0};
    builder->serial = 0;
}

void index_builder_close(index_builder *builder) {
    if (builder == NULL) return;
    builder_forget(builder);
    hd_free(builder->workspace);
    hd_free(builder->queries);
    free(builder);
}

static uint64_t segment_seed(const index_params *params, const index_range *range) {
    uint64_t z = params->seed + 0x9e3779b97f4a7c15u * (range->first * INDEX_LEVELS + range->level + 1);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static hd_status builder_begin(index_builder *builder, const kv_index *self, const index_range *range) {
    index_segment *segment;
    hd_status status = segment_open(&self->params, range, &segment);
    if (status != HD_OK) return status;
    builder->serial = self->serial;
    builder->building = (index_building){.params = &self->params,
                                         .source = &self->source,
                                         .queries = builder->queries,
                                         .query_count = gather_queries(self, range, builder->queries),
                                         .seed = segment_seed(&self->params, range),
                                         .segment = segment,
                                         .workspace = builder->workspace};
    return HD_OK;
}

static void publish(kv_index *self, index_segment *segment) {
    index_range range = {.first = segment->first, .level = segment->level, .count = segment->count};
    atomic_fetch_add(&self->bytes, sizeof(*segment) + segment->bytes);
    atomic_store_explicit(slot_of(self, &range), segment, memory_order_release);
}

hd_status index_build(kv_index *self, index_builder *builder) {
    assert(self->params.kind == builder->params.kind && self->params.key_dim == builder->params.key_dim &&
           self->params.value_dim == builder->params.value_dim && self->params.has_rest == builder->params.has_rest &&
           self->params.sinks == builder->params.sinks);
    if (builder->serial != self->serial) builder_forget(builder);
    if (builder->building.segment == NULL) {
        index_extent target = unpack(atomic_load(&self->target));
        index_range missing;
        if (!find_missing(self, &target, &missing)) return HD_OK;
        hd_status status = builder_begin(builder, self, &missing);
        if (status != HD_OK) return status;
    }
    if (self->params.kind->build_step(&builder->building)) {
        publish(self, builder->building.segment);
        builder->building.segment = NULL;
    }
    return HD_PENDING;
}

/* ---- letting go, sharing ---- */

static bool is_in_plan(const index_extent *extent, uint32_t level, uint64_t first) {
    if (!is_planned(level, first, extent)) return false;
    for (uint32_t above = level + 1; above < INDEX_LEVELS; above++)
        if (is_planned(above, first / level_tokens[above] * level_tokens[above], extent)) return false;
    return true;
}

void index_drop(kv_index *self, const index_extent *extent) {
    index_extent target = unpack(atomic_load(&self->target));
    for (uint32_t level = 0; level < INDEX_LEVELS; level++) {
        for (uint32_t i = 0; i < self->slot_count[level]; i++) {
            uint64_t first = (uint64_t)i * level_tokens[level];
            if (!is_in_plan(extent, level, first) && !is_in_plan(&target, level, first))
                slot_empty(self, &self->slots[level][i]);
        }
    }
}

static void truncate_queries(kv_index *self, uint64_t length) {
    for (uint32_t i = 0; i < self->chunk_count; i++) {
        query_chunk *chunk = self->chunks[i];
        uint64_t step = chunk_step(&self->params, i);
        for (uint32_t row = 0; chunk != NULL && row < CHUNK_POSITIONS / step; row++) {
            uint64_t position = (uint64_t)i * CHUNK_POSITIONS + row * step;
            if (position >= length) chunk->present[row / 64] &= ~((uint64_t)1 << row % 64);
        }
    }
}

void index_truncate(kv_index *self, uint64_t length) {
    for (uint32_t level = 0; level < INDEX_LEVELS; level++)
        for (uint32_t i = (uint32_t)(length / level_tokens[level]); i < self->slot_count[level]; i++)
            slot_empty(self, &self->slots[level][i]);
    truncate_queries(self, length);
    index_extent target = unpack(atomic_load(&self->target));
    if (target.covered > length) target.covered = length / INDEX_GRAIN * INDEX_GRAIN;
    index_target(self, &target);
    self->serial = next_serial(); /* a builder that was at a segment of the old tokens forgets it */
}

static hd_status share(const kv_index *source, uint64_t length, kv_index *self) {
    for (uint32_t level = 0; level < INDEX_LEVELS; level++) {
        for (uint32_t i = 0; i < length / level_tokens[level] && i < source->slot_count[level]; i++) {
            index_segment *segment = atomic_load(&source->slots[level][i]);
            if (segment == NULL) continue;
            atomic_fetch_add(&segment->references, 1);
            publish(self, segment);
        }
    }
    for (uint64_t at = 0; at < length && source->chunk_count != 0; at += INDEX_QUERY_POSITIONS) {
        const uint16_t *row = query_row(source, at);
        hd_status status = row == NULL ? HD_OK : index_add_query(self, at, row, 1, 0);
        if (status != HD_OK) return status;
    }
    return HD_OK;
}

hd_status index_fork(const kv_index *source, uint64_t length, uint64_t keys_max, const index_source *rows,
                     kv_index **out) {
    index_params params = source->params;
    params.keys_max = keys_max;
    assert(length <= keys_max && length <= source->params.keys_max);
    kv_index *self;
    hd_status status = index_open(&params, rows, &self);
    if (status == HD_OK && (status = share(source, length, self)) != HD_OK) index_close(self);
    if (status == HD_OK) *out = self;
    return status;
}

/* ---- searching ---- */

void index_search_run(const kv_index *self, index_search *search) {
    uint32_t plan_max = index_plan_max(self->params.keys_max);
    index_carve carve = {.base = search->scratch};
    index_range *plan = index_carve_take(&carve, plan_max * sizeof(*plan));
    const index_segment **segments = index_carve_take(&carve, plan_max * sizeof(*segments));
    assert(search->query_count >= 1 && search->query_count <= INDEX_QUERIES_MAX && search->tokens_each >= 1);
    assert(search->rest == NULL || self->params.has_rest);
    uint32_t count = index_plan(&search->extent, plan, plan_max);
    for (uint32_t i = 0; i < count; i++) {
        segments[i] = atomic_load_explicit(slot_of(self, &plan[i]), memory_order_acquire);
        assert(segments[i] != NULL);
    }
    index_view view = {.params = &self->params,
                       .source = &self->source,
                       .segments = segments,
                       .segment_count = count,
                       .scratch = carve.base + carve.bytes};
    search->token_count = 0;
    search->bytes_scanned = search->bytes_rest = 0;
    self->params.kind->search(&view, search);
}
