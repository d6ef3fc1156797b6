#include "tests/attention-node/index_data.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>

#include "attention-node/index_top.h"
#include "base/memory.h"
#include "kernels/dtype.h"

enum { CENTRES = 64 };

static uint64_t next_random(uint64_t *state) { /* splitmix64 */
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static float uniform(uint64_t *state) {
    return ((float)(next_random(state) >> 40) + 0.5f) * 0x1p-24f;
}

static float normal(uint64_t *state) {
    return sqrtf(-2.0f * logf(uniform(state))) * cosf(6.2831853f * uniform(state));
}

/* One row, in place: centre + noise in a basis whose axes have different weights, then a fixed mixing of neighbours,
 * so that no axis is special. */
static void draw(float *row, uint32_t dim, const float *centre, float noise, float decay, uint64_t *state) {
    for (uint32_t i = 0; i < dim; i++) row[i] = (centre[i] + noise * normal(state)) * powf((float)(i + 1), -decay);
}

/* Householder reflection: an orthogonal mixing that its direction alone defines. */
static void reflect(float *row, uint32_t dim, const float *direction) {
    float along = 0.0f, square = 0.0f;
    for (uint32_t i = 0; i < dim; i++) {
        along += row[i] * direction[i];
        square += direction[i] * direction[i];
    }
    for (uint32_t i = 0; i < dim; i++) row[i] -= 2.0f * along / square * direction[i];
}

static void turn(float *row, uint32_t dim, uint64_t position) {
    for (uint32_t i = 0; i < dim / 2; i++) {
        float angle = (float)fmod((double)position * pow(10000.0, -2.0 * i / dim), 6.283185307179586);
        float a = row[i], b = row[i + dim / 2];
        row[i] = a * cosf(angle) - b * sinf(angle);
        row[i + dim / 2] = b * cosf(angle) + a * sinf(angle);
    }
}

typedef struct recipe {
    index_data_kind kind;
    uint32_t dim;
    uint64_t seed;
    float key_centres[CENTRES][512], query_centres[CENTRES][512], mean[512], query_mean[512], mirror[512];
} recipe;

static void recipe_init(recipe *r, index_data_kind kind, uint32_t dim, uint64_t seed) {
    *r = (recipe){.kind = kind, .dim = dim, .seed = seed};
    for (uint32_t i = 0; i < dim; i++) {
        r->mirror[i] = normal(&r->seed);
        r->mean[i] = kind == INDEX_DATA_SHIFTED ? 1.2f * normal(&r->seed) : 0.0f;
        r->query_mean[i] = kind == INDEX_DATA_SHIFTED ? normal(&r->seed) - 0.4f * r->mean[i] : 0.0f;
        for (uint32_t c = 0; c < CENTRES; c++) {
            r->key_centres[c][i] = normal(&r->seed);
            r->query_centres[c][i] = kind == INDEX_DATA_SHIFTED ? normal(&r->seed) : r->key_centres[c][i];
        }
    }
}

static void make_row(recipe *r, bool is_key, uint64_t position, uint16_t *to) {
    float row[512];
    bool is_shifted = r->kind == INDEX_DATA_SHIFTED;
    uint32_t c = (uint32_t)(next_random(&r->seed) % CENTRES);
    draw(row, r->dim, is_key ? r->key_centres[c] : r->query_centres[c], 0.6f, is_shifted ? 0.5f : 0.25f, &r->seed);
    if (is_shifted && !is_key) reflect(row, r->dim, r->mirror);
    if (!is_shifted) turn(row, r->dim, position);
    for (uint32_t i = 0; i < r->dim; i++) to[i] = hd_f32_to_bf16(row[i] + (is_key ? r->mean[i] : r->query_mean[i]));
}

static uint16_t *rows_of(uint32_t count, uint32_t dim) {
    uint16_t *rows = hd_alloc_zeroed((size_t)(count + 1) * dim * sizeof(*rows), 64);
    assert_non_null(rows);
    return rows;
}

index_data index_data_make(index_data_kind kind, uint32_t dim, uint32_t count, uint32_t query_count, uint64_t seed) {
    recipe *r = malloc(sizeof(*r));
    assert_non_null(r);
    recipe_init(r, kind, dim, seed);
    index_data data = {.dim = dim, .count = count, .query_count = query_count, .scale = 1.0f / sqrtf((float)dim)};
    data.keys = rows_of(count, dim);
    data.values = rows_of(count, dim);
    data.queries = rows_of(count / INDEX_QUERY_POSITIONS + 1, dim);
    data.tests = rows_of(query_count, dim);
    for (uint32_t i = 0; i < count; i++) make_row(r, true, i, data.keys + (size_t)i * dim);
    for (uint32_t i = 0; i <= count / INDEX_QUERY_POSITIONS; i++)
        make_row(r, false, (uint64_t)i * INDEX_QUERY_POSITIONS, data.queries + (size_t)i * dim);
    for (uint32_t i = 0; i < query_count; i++) make_row(r, false, count + i, data.tests + (size_t)i * dim);
    /* half of a value says what its key is, half is its own */
    for (size_t i = 0; i < (size_t)count * dim; i++)
        data.values[i] = hd_f32_to_bf16(0.7f * (hd_bf16_to_f32(data.keys[i]) - r->mean[i % dim] + normal(&r->seed)));
    free(r);
    return data;
}

void index_data_free(index_data *data) {
    hd_free(data->keys);
    hd_free(data->values);
    hd_free(data->queries);
    hd_free(data->tests);
}

static const uint16_t *keys_of(void *context, uint64_t first, uint32_t count, uint16_t *room) {
    const index_data *data = context;
    assert_true(first / INDEX_GRAIN == (first + count - 1) / INDEX_GRAIN);
    return data->keys + first * data->dim;
}

static const uint16_t *values_of(void *context, uint64_t first, uint32_t count, uint16_t *room) {
    const index_data *data = context;
    memcpy(room, data->values + first * data->dim, (size_t)count * data->dim * sizeof(*room)); /* the other way */
    return room;
}

index_source index_data_source(const index_data *data) {
    return (index_source){.context = (void *)data, .keys = keys_of, .values = values_of};
}

void index_data_finish(kv_index *index, const index_params *params, const index_extent *extent) {
    index_builder *builder;
    assert_int_equal(index_builder_open(params, &builder), HD_OK);
    index_target(index, extent);
    hd_status status;
    while ((status = index_build(index, builder)) == HD_PENDING) {}
    assert_int_equal(status, HD_OK);
    assert_true(index_is_ready(index, extent));
    index_builder_close(builder);
}

kv_index *index_data_build(const index_data *data, const index_params *params, uint64_t covered, uint64_t step) {
    kv_index *index;
    index_source source = index_data_source(data);
    assert_int_equal(index_open(params, &source, &index), HD_OK);
    for (uint64_t end = step; end < covered + step; end += step) {
        uint64_t now = end < covered ? end : covered;
        for (uint64_t at = end - step; at < now; at++)
            assert_int_equal(index_add_query(index, at, data->queries + at / INDEX_QUERY_POSITIONS * data->dim, 1, 0),
                             HD_OK);
        uint64_t whole = now / INDEX_GRAIN * INDEX_GRAIN;
        index_data_finish(index, params, &(index_extent){whole, now < covered ? 0 : covered});
    }
    return index;
}

index_search index_data_search(const kv_index *index, const index_params *params, const index_data *data,
                               const index_extent *extent, uint32_t test, uint32_t tokens_each) {
    index_search search = {.queries = data->tests + (size_t)test * data->dim,
                           .query_stride = data->dim,
                           .query_count = 1,
                           .scale = data->scale,
                           .extent = *extent,
                           .tokens_each = tokens_each};
    search.scratch = hd_alloc(index_search_bytes(params, 1, tokens_each), 64);
    search.tokens = malloc(tokens_each * sizeof(*search.tokens));
    assert_true(search.scratch != NULL && search.tokens != NULL);
    index_search_run(index, &search);
    hd_free(search.scratch);
    for (uint32_t i = 1; i < search.token_count; i++) assert_true(search.tokens[i] > search.tokens[i - 1]);
    return search;
}

void index_data_scores(const index_data *data, uint32_t test, uint64_t covered, float *scores) {
    for (uint64_t i = 0; i < covered; i++) {
        double sum = 0;
        for (uint32_t k = 0; k < data->dim; k++)
            sum += (double)hd_bf16_to_f32(data->tests[(size_t)test * data->dim + k]) *
                   hd_bf16_to_f32(data->keys[i * data->dim + k]);
        scores[i] = (float)sum;
    }
}

float index_data_recall(const index_data *data, uint32_t test, uint64_t covered, uint32_t best,
                        const index_search *search) {
    float *scores = malloc(covered * sizeof(*scores));
    uint64_t *items = malloc(index_top_room(best) * sizeof(*items));
    assert_true(scores != NULL && items != NULL);
    index_data_scores(data, test, covered, scores);
    index_top top;
    index_top_init(&top, items, best);
    for (uint32_t i = 0; i < covered; i++) index_top_add(&top, index_item(scores[i], i));
    index_top_shrink(&top);
    uint32_t found = 0;
    for (uint32_t i = 0; i < top.count; i++)
        for (uint32_t j = 0; j < search->token_count; j++)
            if (search->tokens[j] == index_item_token(items[i])) found++;
    free(scores);
    free(items);
    return (float)found / (float)top.count;
}
