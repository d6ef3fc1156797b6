/* index_exact.c - reads every key. Its segments are empty; what it finds is right by definition. */
#include "attention-node/index_kind.h"
#include "attention-node/index_top.h"
#include "kernels/dtype.h"
#include <assert.h>

typedef struct exact_scratch {
    uint16_t *keys; /* room for a grain of rows */
    float *query, *scores;
    uint64_t *items;
    index_top *tops; /* one a query */
    uint32_t *tokens;
    size_t bytes;
} exact_scratch;

static exact_scratch lay_out(unsigned char *base, const index_params *params, uint32_t queries, uint32_t tokens_each) {
    index_carve carve = {.base = base};
    exact_scratch scratch = {
        .keys = index_carve_take(&carve, (size_t)INDEX_GRAIN * params->key_dim * sizeof(uint16_t)),
        .query = index_carve_take(&carve, (size_t)queries * params->key_dim * sizeof(float)),
        .scores = index_carve_take(&carve, INDEX_GRAIN * sizeof(float)),
        .items = index_carve_take(&carve, (size_t)queries * index_top_room(tokens_each) * sizeof(uint64_t)),
        .tops = index_carve_take(&carve, queries * sizeof(index_top)),
        .tokens = index_carve_take(&carve, (size_t)queries * tokens_each * sizeof(uint32_t)),
    };
    scratch.bytes = carve.bytes;
    return scratch;
}

static size_t search_bytes(const index_params *params, uint32_t query_count, uint32_t tokens_each) {
    return lay_out(NULL, params, query_count, tokens_each).bytes;
}

static size_t no_bytes(const index_params *params, uint32_t count) {
    return 0;
}

static bool build_step(index_building *building) {
    return true;
}

static void scan_grain(const index_view *view, const index_search *search, const exact_scratch *scratch,
                       uint64_t first) {
    uint32_t dim = view->params->key_dim;
    const uint16_t *keys = view->source->keys(view->source->context, first, INDEX_GRAIN, scratch->keys);
    for (uint32_t q = 0; q < search->query_count; q++) {
        view->params->kernels->scan->dot_rows(scratch->query + (size_t)q * dim, dim, keys, dim, INDEX_GRAIN,
                                              scratch->scores);
        for (uint32_t i = first == 0 ? view->params->sinks : 0; i < INDEX_GRAIN; i++)
            index_top_add(&scratch->tops[q], index_item(scratch->scores[i], (uint32_t)first + i));
    }
}

static void search_all(const index_view *view, index_search *search) {
    uint32_t dim = view->params->key_dim, count = 0;
    exact_scratch scratch = lay_out(view->scratch, view->params, search->query_count, search->tokens_each);
    assert(scratch.query != NULL && scratch.scores != NULL && scratch.tops != NULL);
    for (uint32_t q = 0; q < search->query_count; q++) {
        index_top_init(&scratch.tops[q], scratch.items + (size_t)q * index_top_room(search->tokens_each),
                       search->tokens_each);
        for (uint32_t i = 0; i < dim; i++)
            scratch.query[(size_t)q * dim + i] = hd_bf16_to_f32(search->queries[q * search->query_stride + i]);
    }
    for (uint64_t first = 0; first < search->extent.covered; first += INDEX_GRAIN)
        scan_grain(view, search, &scratch, first);
    for (uint32_t q = 0; q < search->query_count; q++) {
        index_top_shrink(&scratch.tops[q]);
        for (uint32_t i = 0; i < scratch.tops[q].count; i++)
            search->tokens[count++] = index_item_token(scratch.tops[q].items[i]);
    }
    search->token_count = index_tokens_sort(search->tokens, scratch.tokens, count);
    search->bytes_scanned = search->extent.covered * dim * sizeof(uint16_t);
}

const index_kind index_kind_exact = {
    .name = "exact",
    .segment_bytes = no_bytes,
    .workspace_bytes = no_bytes,
    .search_bytes = search_bytes,
    .build_step = build_step,
    .search = search_all,
};
