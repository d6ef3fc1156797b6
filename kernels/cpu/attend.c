/* attend.c - attention over the pages of one leaf group, with the softmax kept in partial form.
 *
 * For a tile of rows and one page after the other: scores = Q K^T, a softmax over the page relative to the largest score so far, and
 * out += P V. Scores are kept in units of log 2 of e, where exp is a polynomial and a shift. A row's result is rescaled when, and only when,
 * its own largest score grows; a score that is not visible is minus infinity, so its weight is an exact zero, which leaves the sums of
 * products as they are. Hence a page that a row does not see, or that is skipped because no row of the tile sees it, changes no bit. */
#include "kernels/cpu/attend.h"

#include <assert.h>
#include <math.h>

#include "kernels/cpu/page.h"
#include "kernels/cpu/tile.h"

enum { PAGE_VECTORS = HD_BLOCK_TOKENS / VEC_LANES };

/* The rows [first, first + rows) of a call, and what is known of them so far. */
typedef struct row_tile {
    const kernel_attend *call;
    uint32_t first, rows;
    float scale;                        /* from what scores holds to a score in base 2 */
    float *scores;                      /* [rows][128] */
    void *weights;                      /* [rows][128] bf16; for f32 they overwrite the scores */
    float *lane_sums;                   /* [rows][VEC_LANES]: added up at the end only */
    float max[ATTEND_ROWS];             /* in base 2 */
    page_slots visible[ATTEND_ROWS];    /* of the page at hand */
} row_tile;

static bool tile_sees(row_tile *tile, const kernel_span *span) {
    bool sees = false;
    for (uint32_t row = 0; row < tile->rows; row++) {
        tile->visible[row] = page_slots_visible(span, tile->call->positions[tile->first + row], tile->call->window);
        sees = sees || tile->visible[row].first != tile->visible[row].end;
    }
    return sees;
}

static void multiply_keys(const row_tile *tile, const kernel_span *span, const kernel_span *next) {
    const kernel_attend *call = tile->call;
    uint32_t k = HD_ALIGN_UP(call->shape.key_dim, KERNEL_K_ALIGN);
    size_t element_bytes = hd_dtype_bits(call->shape.dtype) / 8, panel_bytes = (size_t)KERNEL_PANEL * k * element_bytes;
    for (uint32_t panel = 0; panel < HD_BLOCK_TOKENS / KERNEL_PANEL; panel++) {
        tile_product product = {
            .a = (const char *)call->queries + tile->first * call->query_stride * element_bytes,
            .a_stride = call->query_stride,
            .rows = tile->rows,
            .b = (const char *)span->keys + panel * panel_bytes,
            .width = KERNEL_PANEL,
            .k = k,
            .c = tile->scores + panel * KERNEL_PANEL,
            .c_stride = HD_BLOCK_TOKENS,
            .ahead = next != NULL ? (const char *)next->keys + panel * panel_bytes : NULL,
            .ahead_bytes = panel_bytes,
        };
        tile_multiply(call->shape.dtype, &product);
    }
}

static void multiply_values(const row_tile *tile, const kernel_span *span, const kernel_span *next) {
    const kernel_attend *call = tile->call;
    size_t element_bytes = hd_dtype_bits(call->shape.dtype) / 8;
    for (uint32_t first = 0; first < call->shape.value_dim; first += KERNEL_PANEL) {
        uint32_t left = call->shape.value_dim - first, width = left < KERNEL_PANEL ? left : KERNEL_PANEL;
        size_t offset = (size_t)first * HD_BLOCK_TOKENS * element_bytes;
        tile_product product = {
            .a = tile->weights,
            .a_stride = HD_BLOCK_TOKENS,
            .rows = tile->rows,
            .b = (const char *)span->values + offset,
            .width = width,
            .k = HD_BLOCK_TOKENS,
            .c = call->partial.out + tile->first * call->partial.out_stride + first,
            .c_stride = call->partial.out_stride,
            .adds = true,
            .ahead = next != NULL ? (const char *)next->values + offset : NULL,
            .ahead_bytes = (size_t)width * HD_BLOCK_TOKENS * element_bytes,
        };
        tile_multiply(call->shape.dtype, &product);
    }
}

/* From q.k to cap * tanh(s / cap) in base 2, through e^(-2|s| / cap), which cannot overflow. */
static void cap_scores(const row_tile *tile, float *scores) {
    vec inner = vec_set(2.0f * LOG2_E * tile->call->scale / tile->call->soft_cap), outer = vec_set(tile->call->soft_cap * LOG2_E);
    vec one = vec_set(1.0f);
    for (uint32_t i = 0; i < HD_BLOCK_TOKENS; i += VEC_LANES) {
        vec score = vec_load(scores + i);
        vec power = vec_exp2(vec_sub(vec_set(0.0f), vec_mul(vec_abs(score), inner)));
        vec tangent = vec_div(vec_sub(one, power), vec_add(one, power));
        vec_store(scores + i, vec_with_sign(vec_mul(tangent, outer), score));
    }
}

static void hide_scores(float *scores, page_slots visible) {
    vec nothing = vec_set(-INFINITY);
    for (uint32_t i = 0; i < HD_BLOCK_TOKENS; i += VEC_LANES) {
        vec_store(scores + i, vec_select(vec_load(scores + i), nothing, (int)visible.first - (int)i, (int)visible.end - (int)i));
    }
}

static void rescale(row_tile *tile, uint32_t row, float max) {
    vec factor = vec_exp2(vec_set(tile->max[row] - max));
    float *out = tile->call->partial.out + (tile->first + row) * tile->call->partial.out_stride, *sums = tile->lane_sums + row * VEC_LANES;
    for (uint32_t n = 0; n < tile->call->shape.value_dim; n += VEC_LANES) vec_store(out + n, vec_mul(vec_load(out + n), factor));
    vec_store(sums, vec_mul(vec_load(sums), factor));
    tile->max[row] = max;
}

static inline __attribute__((always_inline)) void weigh_row(row_tile *tile, uint32_t row, const bool is_f32) {
    float *scores = tile->scores + row * HD_BLOCK_TOKENS;
    page_slots visible = tile->visible[row];
    if (tile->call->soft_cap > 0.0f) cap_scores(tile, scores);
    if (visible.end - visible.first < HD_BLOCK_TOKENS) hide_scores(scores, visible);
    vec largest = vec_load(scores);
    for (uint32_t i = 1; i < PAGE_VECTORS; i++) largest = vec_max(largest, vec_load(scores + i * VEC_LANES));
    float max = vec_largest(largest) * tile->scale;
    if (max > tile->max[row]) rescale(tile, row, max);
    max = tile->max[row] == -INFINITY ? 0.0f : tile->max[row];

    vec sums = vec_load(tile->lane_sums + row * VEC_LANES), factor = vec_set(tile->scale), base = vec_set(-max);
    if (is_f32) {
        for (uint32_t i = 0; i < HD_BLOCK_TOKENS; i += VEC_LANES) {
            vec weight = vec_exp2(vec_fma(vec_load(scores + i), factor, base));
            sums = vec_add(sums, weight);
            vec_store(scores + i, weight);
        }
    } else {
        uint16_t *weights = (uint16_t *)tile->weights + row * HD_BLOCK_TOKENS;
        for (uint32_t i = 0; i < HD_BLOCK_TOKENS; i += 2 * VEC_LANES) {
            vec low = vec_exp2(vec_fma(vec_load(scores + i), factor, base));
            vec high = vec_exp2(vec_fma(vec_load(scores + i + VEC_LANES), factor, base));
            sums = vec_dot(sums, vec_store_pairs(weights + i, low, high), pairs_of_ones());
        }
    }
    vec_store(tile->lane_sums + row * VEC_LANES, sums);
}

static void weigh(row_tile *tile) {
    if (tile->call->shape.dtype == HD_F32) {
        for (uint32_t row = 0; row < tile->rows; row++) weigh_row(tile, row, true);
    } else {
        for (uint32_t row = 0; row < tile->rows; row++) weigh_row(tile, row, false);
    }
}

static void attend_tile(row_tile *tile) {
    const kernel_attend *call = tile->call;
    for (uint32_t row = 0; row < tile->rows; row++) {
        tile->max[row] = -INFINITY;
        memset(call->partial.out + (tile->first + row) * call->partial.out_stride, 0, call->shape.value_dim * sizeof(float));
    }
    memset(tile->lane_sums, 0, tile->rows * VEC_LANES * sizeof(float));
    for (uint32_t i = 0; i < call->span_count; i++) {
        const kernel_span *span = &call->spans[i];
        if (!tile_sees(tile, span)) continue;
        /* The first tile brings the next page near; the others find it there. */
        const kernel_span *next = tile->first == 0 && i + 1 < call->span_count ? span + 1 : NULL;
        multiply_keys(tile, span, next);
        weigh(tile);
        multiply_values(tile, span, next);
    }
    for (uint32_t row = 0; row < tile->rows; row++) {
        call->partial.max[tile->first + row] = tile->max[row] * LN_2;
        call->partial.sum[tile->first + row] = vec_sum(vec_load(tile->lane_sums + row * VEC_LANES));
    }
}

void table_attend(const kernel_attend *call) {
    assert(call->shape.key_dim % 16 == 0 && call->shape.value_dim % 16 == 0 && call->scale > 0.0f);
    row_tile tile = {.call = call, .scale = call->soft_cap > 0.0f ? 1.0f : call->scale * LOG2_E};
    tile.scores = call->scratch;
    tile.weights = call->shape.dtype == HD_F32 ? (void *)tile.scores : (void *)(tile.scores + ATTEND_ROWS * HD_BLOCK_TOKENS);
    tile.lane_sums = tile.scores + ATTEND_ROWS * HD_BLOCK_TOKENS * 3 / 2;
    tile_begin();
    for (tile.first = 0; tile.first < call->row_count; tile.first += tile.rows) {
        tile.rows = call->row_count - tile.first < ATTEND_ROWS ? call->row_count - tile.first : ATTEND_ROWS;
        attend_tile(&tile);
    }
    tile_end();
}

void table_merge(const kernel_partial *into, const kernel_partial *from, uint32_t row_count, uint32_t value_dim) {
    for (uint32_t row = 0; row < row_count; row++) {
        if (from->max[row] == -INFINITY) continue;
        float *out = into->out + row * into->out_stride;
        const float *other = from->out + row * from->out_stride;
        float max = fmaxf(into->max[row], from->max[row]), keep = expf(into->max[row] - max), add = expf(from->max[row] - max);
        vec kept = vec_set(keep), added = vec_set(add);
        for (uint32_t n = 0; n < value_dim; n += VEC_LANES) {
            vec_store(out + n, vec_fma(vec_load(other + n), added, vec_mul(vec_load(out + n), kept)));
        }
        into->sum[row] = into->sum[row] * keep + from->sum[row] * add;
        into->max[row] = max;
    }
}

void table_finish(const kernel_partial *partial, uint32_t row_count, uint32_t value_dim, const float *sink_logits, hd_dtype dtype, void *output,
            size_t output_stride, float *lse) {
    assert(dtype == HD_F32 || dtype == HD_BF16);
    for (uint32_t row = 0; row < row_count; row++) {
        const float *out = partial->out + row * partial->out_stride;
        float max = partial->max[row], sum = partial->sum[row], factor = 0.0f;
        if (max != -INFINITY) {
            float top = sink_logits != NULL ? fmaxf(max, sink_logits[row]) : max, keep = expf(max - top);
            sum = sum * keep + (sink_logits != NULL ? expf(sink_logits[row] - top) : 0.0f);
            factor = keep / sum;
            max = top + logf(sum);
        }
        if (lse != NULL) lse[row] = max;
        for (uint32_t n = 0; n < value_dim; n += VEC_LANES) {
            vec value = vec_mul(vec_load(out + n), vec_set(factor));
            if (dtype == HD_F32) {
                vec_store((float *)output + row * output_stride + n, value);
            } else {
                vec_to_bf16((uint16_t *)output + row * output_stride + n, value);
            }
        }
    }
}
