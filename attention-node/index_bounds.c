/* index_bounds.c - the least and the greatest of each coordinate over pages of 16 keys (Quest, arXiv 2406.10774).
 *
 * No key of a page scores more than the sum, over coordinates, of the query's times the page's greatest or least,
 * whichever gives more. With the greatest and the least one after another in a row, and the query's positive part
 * before its negative one, that bound is one dot product. The pages of the highest bounds are read, as many as tokens
 * are asked for, and their keys are scored exactly. It needs no building to speak of and learns nothing, so it serves
 * as the plain thing that others have to beat. */
#include "attention-node/index_kind.h"
#include "attention-node/index_top.h"
#include "kernels/dtype.h"

enum { PAGE = 16, GRAIN_PAGES = INDEX_GRAIN / PAGE };

typedef struct bounds_scratch {
    float *query, *split; /* [key_dim], [2 * key_dim] */
    float *bounds;        /* [pages] */
    uint32_t *pages;      /* those that are read */
    float *scores;        /* of their keys */
    uint32_t *picks, *other;
    uint16_t *keys; /* room for a page */
    size_t bytes;
} bounds_scratch;

static uint32_t pages_wanted(uint64_t covered, uint32_t tokens_each) {
    uint64_t pages = covered / PAGE;
    return (uint32_t)(tokens_each < pages ? tokens_each : pages);
}

static bounds_scratch lay_out(const index_params *params, uint32_t query_count, uint32_t tokens_each,
                              unsigned char *base) {
    index_carve carve = {.base = base};
    size_t pages = pages_wanted(params->keys_max, tokens_each), found = (size_t)query_count * tokens_each;
    bounds_scratch s = {
        .query = index_carve_take(&carve, params->key_dim * sizeof(float)),
        .split = index_carve_take(&carve, 2 * params->key_dim * sizeof(float)),
        .bounds = index_carve_take(&carve, params->keys_max / PAGE * sizeof(float)),
        .pages = index_carve_take(&carve, pages * sizeof(uint32_t)),
        .scores = index_carve_take(&carve, pages * PAGE * sizeof(float)),
        .picks = index_carve_take(&carve, pages * PAGE * sizeof(uint32_t)),
        .other = index_carve_take(&carve, found * sizeof(uint32_t)),
        .keys = index_carve_take(&carve, (size_t)PAGE * params->key_dim * sizeof(uint16_t)),
    };
    s.bytes = carve.bytes;
    return s;
}

static size_t search_bytes(const index_params *params, uint32_t query_count, uint32_t tokens_each) {
    return lay_out(params, query_count, tokens_each, NULL).bytes;
}

static size_t segment_bytes(const index_params *params, uint32_t count) {
    return (size_t)count / PAGE * 2 * params->key_dim * sizeof(uint16_t);
}

static size_t workspace_bytes(const index_params *params, uint32_t count) {
    return (size_t)INDEX_GRAIN * params->key_dim * sizeof(uint16_t);
}

/* Both bounds are a key's own coordinate, so bf16 holds them exactly. */
static void bound_page(const uint16_t *keys, uint32_t dim, uint16_t *greatest, uint16_t *least) {
    for (uint32_t i = 0; i < dim; i++) {
        greatest[i] = least[i] = keys[i];
        for (uint32_t k = 1; k < PAGE; k++) {
            uint16_t key = keys[(size_t)k * dim + i];
            if (hd_bf16_to_f32(key) > hd_bf16_to_f32(greatest[i])) greatest[i] = key;
            if (hd_bf16_to_f32(key) < hd_bf16_to_f32(least[i])) least[i] = key;
        }
    }
}

static bool build_step(index_building *building) {
    uint32_t dim = building->params->key_dim;
    const index_segment *segment = building->segment;
    const uint16_t *keys = building->source->keys(building->source->context, segment->first + building->cursor,
                                                  INDEX_GRAIN, building->workspace);
    uint16_t *rows = (uint16_t *)(void *)segment->data + (size_t)building->cursor / PAGE * 2 * dim;
    for (uint32_t page = 0; page < GRAIN_PAGES; page++, rows += 2 * dim)
        bound_page(keys + (size_t)page * PAGE * dim, dim, rows, rows + dim);
    building->cursor += INDEX_GRAIN;
    return building->cursor == segment->count;
}

static uint32_t search_one(const index_view *view, index_search *search, const bounds_scratch *s, uint32_t row,
                           uint32_t *tokens) {
    const kernel_scan *scan = view->params->kernels->scan;
    uint32_t dim = view->params->key_dim, skipped = view->params->sinks / PAGE;
    uint32_t pages = (uint32_t)(search->extent.covered / PAGE) - skipped;
    for (uint32_t i = 0; i < dim; i++) {
        float value = hd_bf16_to_f32(search->queries[row * search->query_stride + i]);
        s->query[i] = value;
        s->split[i] = value > 0.0f ? value : 0.0f;
        s->split[dim + i] = value < 0.0f ? value : 0.0f;
    }
    for (uint32_t n = 0; n < view->segment_count; n++) {
        const index_segment *segment = view->segments[n];
        scan->dot_rows(s->split, 2 * dim, (const uint16_t *)(const void *)segment->data, 2 * dim, segment->count / PAGE,
                       s->bounds + segment->first / PAGE);
    }
    uint32_t wanted = search->tokens_each < pages ? search->tokens_each : pages;
    float limit = index_cut(scan, s->bounds + skipped, pages, wanted, 0, NULL);
    uint32_t count = scan->collect_from(s->bounds + skipped, pages, limit, s->pages, wanted);
    for (uint32_t p = 0; p < count; p++) {
        s->pages[p] += skipped;
        const uint16_t *keys = view->source->keys(view->source->context, (uint64_t)s->pages[p] * PAGE, PAGE, s->keys);
        scan->dot_rows(s->query, dim, keys, dim, PAGE, s->scores + (size_t)p * PAGE);
    }
    limit = index_cut(scan, s->scores, count * PAGE, search->tokens_each, 0, NULL);
    uint32_t found = scan->collect_from(s->scores, count * PAGE, limit, s->picks, search->tokens_each);
    for (uint32_t i = 0; i < found; i++) tokens[i] = s->pages[s->picks[i] / PAGE] * PAGE + s->picks[i] % PAGE;
    search->bytes_scanned +=
        (uint64_t)pages * 2 * dim * sizeof(uint16_t) + (uint64_t)count * PAGE * dim * sizeof(uint16_t);
    return found;
}

static void search_pages(const index_view *view, index_search *search) {
    bounds_scratch s = lay_out(view->params, search->query_count, search->tokens_each, view->scratch);
    uint32_t count = 0;
    for (uint32_t q = 0; q < search->query_count && view->segment_count > 0; q++)
        count += search_one(view, search, &s, q, search->tokens + count);
    search->token_count = index_tokens_sort(search->tokens, s.other, count);
}

const index_kind index_kind_bounds = {
    .name = "bounds",
    .segment_bytes = segment_bytes,
    .workspace_bytes = workspace_bytes,
    .search_bytes = search_bytes,
    .build_step = build_step,
    .search = search_pages,
};
