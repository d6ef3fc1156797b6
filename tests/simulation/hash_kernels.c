/* hash_kernels.c - see hash_kernels.h. A hash of 64 bits is four floats that are whole numbers below 65536, so that it
 * survives whoever copies, sends or adds zero to it. */
#include "tests/simulation/hash_kernels.h"

#include <assert.h>
#include <math.h>
#include <string.h>
#include <xxhash.h>

#include "tests/simulation/dice.h"

enum { PIECES = 4 };

/* A number in [-1, 1) for each column. */
static float value_of(uint64_t hash, uint32_t column) {
    uint64_t mixed = (hash ^ column * 0x9e3779b97f4a7c15ull) * 0xbf58476d1ce4e5b9ull;
    return (float)(int32_t)(mixed >> 32) * 0x1p-31f;
}

static void matmul(const kernel_matmul *call, uint32_t first_panel, uint32_t panel_count) {
    const kernel_matrix *weights = call->weights;
    assert(weights->dtype == HD_F32);
    bool is_gated = call->epilogue == KERNEL_SWIGLU;
    uint32_t first = first_panel * KERNEL_PANEL / (is_gated ? 2 : 1),
             end = first + panel_count * KERNEL_PANEL / (is_gated ? 2 : 1);
    uint32_t columns = is_gated ? weights->n / 2 : weights->n;
    if (end > columns) end = columns;
    uint64_t seed;
    memcpy(&seed, weights->data, sizeof(seed));
    for (uint32_t row = 0; row < call->row_count; row++) {
        const float *input = (const float *)call->input + row * call->input_stride;
        float *output = (float *)call->output + row * call->output_stride;
        uint64_t hash = XXH3_64bits_withSeed(input, weights->k * sizeof(float), seed);
        for (uint32_t n = first; n < end; n++) {
            float value = value_of(hash, n) + (call->bias != NULL ? call->bias[n] : 0.0f);
            output[n] = call->epilogue == KERNEL_ADD ? output[n] + value : value;
        }
    }
}

static void page_store(const kernel_page_shape *shape, void *page_keys, void *page_values, uint32_t slot,
                       uint32_t count, const void *keys, size_t key_stride, const void *values, size_t value_stride) {
    assert(shape->dtype == HD_F32 && slot + count <= HD_BLOCK_TOKENS);
    for (uint32_t i = 0; i < count; i++) {
        const float *key = (const float *)keys + i * key_stride, *value = (const float *)values + i * value_stride;
        ((uint64_t *)page_keys)[slot + i] = XXH3_64bits_withSeed(key, shape->key_dim * sizeof(float), 1);
        ((uint64_t *)page_values)[slot + i] = XXH3_64bits_withSeed(value, shape->value_dim * sizeof(float), 2);
    }
}

static void write_hash(const kernel_partial *p, uint32_t row, uint32_t value_dim, uint64_t hash, float tokens) {
    float *out = p->out + row * p->out_stride;
    memset(out, 0, value_dim * sizeof(float));
    for (int i = 0; i < PIECES; i++) out[i] = (float)(hash >> 16 * i & 0xffff);
    p->max[row] = tokens > 0 ? 0.0f : -INFINITY;
    p->sum[row] = tokens;
    if (tokens == 0) memset(out, 0, PIECES * sizeof(float));
}

static uint64_t read_hash(const kernel_partial *p, uint32_t row) {
    uint64_t hash = 0;
    for (int i = 0; i < PIECES; i++) hash |= (uint64_t)(uint32_t)p->out[row * p->out_stride + i] << 16 * i;
    return hash;
}

typedef struct cursor { /* how far the chain has come */
    uint32_t span, token, tokens;
    uint64_t chain;
} cursor;

static void advance(const kernel_attend *call, cursor *at, uint64_t position) {
    for (; at->span < call->span_count; at->span++, at->token = 0) {
        const kernel_span *span = &call->spans[at->span];
        const uint64_t *keys = (const uint64_t *)span->keys + span->first;
        const uint64_t *values = (const uint64_t *)span->values + span->first;
        for (; at->token < span->count; at->token++) {
            if (span->position + at->token > position) return;
            at->chain = (at->chain ^ keys[at->token]) * 0x9e3779b97f4a7c15ull + values[at->token];
            at->chain ^= at->chain >> 29;
            at->tokens++;
        }
    }
}

static void attend(const kernel_attend *call) {
    assert(call->shape.dtype == HD_F32 && call->window == 0);
    cursor at = {0};
    uint64_t reached = 0;
    for (uint32_t row = 0; row < call->row_count; row++) {
        if (call->positions[row] < reached) at = (cursor){0};
        reached = call->positions[row];
        advance(call, &at, reached);
        const float *query = (const float *)call->queries + row * call->query_stride;
        uint64_t hash = XXH3_64bits_withSeed(query, call->shape.key_dim * sizeof(float), at.chain);
        write_hash(&call->partial, row, call->shape.value_dim, hash, (float)at.tokens);
    }
}

static void merge(const kernel_partial *into, const kernel_partial *from, uint32_t row_count, uint32_t value_dim) {
    for (uint32_t row = 0; row < row_count; row++) {
        if (from->sum[row] == 0) continue;
        uint64_t hash = read_hash(from, row);
        float tokens = into->sum[row] + from->sum[row];
        if (into->sum[row] != 0) hash = dice_mix(read_hash(into, row) * 3 + hash);
        write_hash(into, row, value_dim, hash, tokens);
    }
}

static void finish(const kernel_partial *partial, uint32_t row_count, uint32_t value_dim, const float *sink_logits,
                   hd_dtype dtype, void *output, size_t output_stride, float *lse) {
    assert(dtype == HD_F32 && sink_logits == NULL);
    for (uint32_t row = 0; row < row_count; row++) {
        float *out = (float *)output + row * output_stride, tokens = partial->sum[row];
        uint64_t hash = dice_mix(read_hash(partial, row) + (uint64_t)tokens);
        for (uint32_t i = 0; i < value_dim; i++) out[i] = tokens > 0 ? value_of(hash, i) : 0.0f;
        if (lse != NULL) lse[row] = tokens > 0 ? logf(tokens) : -INFINITY;
    }
}

const kernel_ops *hash_kernels(void) {
    static kernel_ops table;
    if (table.name == NULL) {
        table = *kernel_ops_portable();
        table.name = "hash";
        table.scratch_bytes = 64;
        table.attend_rows_best = 32;
        table.matmul = matmul;
        table.attend = attend;
        table.merge = merge;
        table.finish = finish;
        table.page_store = page_store;
    }
    return &table;
}
