/* attend.c - attention over the pages of one leaf group, with the softmax kept in partial form.
 *
 * A tile of rows takes one page after the other: scores = Q K^T, weights = 2^(scores - the largest so far), out +=
 * weights V. It is a pipeline: while the vector units weigh the scores of one page, the values of the page before
 * and the keys of the page after are multiplied, a step between every few rows, so that a tile unit has work at the
 * same time. Scores are kept in base 2, where an exponential is a polynomial and a shift.
 *
 * A row's result is rescaled when, and only when, its own largest score grows; a score that is not visible is minus
 * infinity, so its weight is an exact zero, which leaves sums of products as they are. Hence a page that a row does
 * not see, or that is skipped because no row of the tile sees it, changes no bit. */
#include "kernels/cpu/attend.h"

#include <assert.h>
#include <math.h>

#include "kernels/cpu/page.h"
#include "kernels/cpu/tile.h"

/* Below every score, and finite, so that differences are too. */
#define NOTHING_SEEN (-0x1p126f)

/* The rows [first, first + rows) of a call, and what is known of them so far. */
typedef struct row_tile {
    const kernel_attend *call;
    uint32_t first, rows;
    size_t key_bytes, value_bytes; /* of a page */
    float scale;                   /* from a score, as it is before it is weighed, to base 2 */
    float *stages;    /* [ATTEND_STAGES][rows][128]: scores, then weights in their place; bf16 fill half a row */
    float *lane_sums; /* [rows][VEC_LANES]: of the weights; lanes are added up at the end only */
    uint64_t lowest, highest;  /* positions of the rows */
    float max[ATTEND_ROWS];    /* in base 2; NOTHING_SEEN before there is one */
    float factor[ATTEND_ROWS]; /* of everything before the newest page, whose scores have raised max; else 1 */
    uint32_t raised;           /* the bits of the rows whose max it has raised */
} row_tile;

static float *stage_at(const row_tile *tile, uint32_t page) {
    return tile->stages + page % ATTEND_STAGES * ATTEND_STAGE_FLOATS;
}

static page_slots visible_to(const row_tile *tile, uint32_t row, const kernel_span *span) {
    return page_slots_visible(span, tile->call->positions[tile->first + row], tile->call->window);
}

/* Whether every row sees the whole page: the common case, asked first. */
static bool all_see_all(const row_tile *tile, const kernel_span *span) {
    uint64_t window = tile->call->window;
    return span->count == HD_BLOCK_TOKENS && tile->lowest >= span->position + HD_BLOCK_TOKENS - 1 &&
           (window == 0 || span->position + window > tile->highest);
}

/* The first span from there on that any row sees; NULL when there is none. */
static const kernel_span *seen_from(const row_tile *tile, const kernel_span *span) {
    for (const kernel_span *end = tile->call->spans + tile->call->span_count; span < end; span++) {
        if (all_see_all(tile, span)) return span;
        for (uint32_t row = 0; row < tile->rows; row++) {
            page_slots visible = visible_to(tile, row, span);
            if (visible.first != visible.end) return span;
        }
    }
    return NULL;
}

/* The span whose pages the first tile brings near while the one before it is worked on; the other tiles find them
 * there. */
static const kernel_span *wanted_after(const row_tile *tile, const kernel_span *span) {
    if (tile->first != 0) return NULL;
    return span + 1 < tile->call->spans + tile->call->span_count ? span + 1 : tile->call->ahead;
}

static uint16_t *widened_at(const kernel_attend *call, size_t offset) {
    return (uint16_t *)((char *)call->scratch + ATTEND_WIDENED + offset);
}

static const void *keys_of(const kernel_attend *call, const kernel_span *span) {
    if (call->shape.dtype != HD_INT8) return span->keys;
    uint16_t *widened = widened_at(call, 0);
    widen_keys(&call->shape, span->keys, widened);
    return widened;
}

static const void *values_of(const kernel_attend *call, const kernel_span *span) {
    if (call->shape.dtype != HD_INT8) return span->values;
    uint16_t *widened = widened_at(call, WIDENED_BYTES);
    widen_values(&call->shape, span->values, widened);
    return widened;
}

static tile_product start_keys(const row_tile *tile, const kernel_span *span, float *scores) {
    const kernel_attend *call = tile->call;
    const kernel_span *ahead = wanted_after(tile, span);
    size_t element_bytes = call->shape.dtype == HD_F32 ? 4 : 2;
    tile_product product = {
        .a = (const char *)call->queries + tile->first * call->query_stride * element_bytes,
        .a_stride = call->query_stride,
        .rows = tile->rows,
        .b = keys_of(call, span),
        .panel_stride = (size_t)KERNEL_PANEL * HD_ALIGN_UP(call->shape.key_dim, KERNEL_K_ALIGN),
        .width = HD_BLOCK_TOKENS,
        .k = HD_ALIGN_UP(call->shape.key_dim, KERNEL_K_ALIGN),
        .c = scores,
        .c_stride = HD_BLOCK_TOKENS,
        .ahead = ahead != NULL ? ahead->keys : NULL,
        .ahead_bytes = tile->key_bytes,
    };
    tile_start(&product, kernel_row_dtype(call->shape.dtype));
    return product;
}

/* The first product of values writes the rows of out, the others add to them. What it fetches is wanted one page
 * later. */
static tile_product start_values(const row_tile *tile, const kernel_span *span, const float *weights, bool adds) {
    const kernel_attend *call = tile->call;
    const kernel_span *ahead = wanted_after(tile, span);
    tile_product product = {
        .a = weights,
        .a_stride = call->shape.dtype == HD_F32 ? HD_BLOCK_TOKENS : 2 * HD_BLOCK_TOKENS,
        .rows = tile->rows,
        .b = values_of(call, span),
        .panel_stride = (size_t)KERNEL_PANEL * HD_BLOCK_TOKENS,
        .width = call->shape.value_dim,
        .k = HD_BLOCK_TOKENS,
        .c = call->partial.out + tile->first * call->partial.out_stride,
        .c_stride = call->partial.out_stride,
        .adds = adds,
        .ahead = ahead != NULL ? ahead->values : NULL,
        .ahead_bytes = tile->value_bytes,
    };
    tile_start(&product, kernel_row_dtype(call->shape.dtype));
    return product;
}

/* Makes the scores of a page final, and lets max, factor and raised of every row know them. */
static void take_scores(row_tile *tile, const kernel_span *span, float *scores) {
    bool is_plain = all_see_all(tile, span) && tile->call->soft_cap == 0.0f;
    for (uint32_t row = 0; !is_plain && row < tile->rows; row++) {
        page_slots visible = visible_to(tile, row, span);
        float *own = scores + row * HD_BLOCK_TOKENS;
        if (tile->call->soft_cap > 0.0f)
            attend_cap_scores(own, HD_BLOCK_TOKENS, tile->call->scale, tile->call->soft_cap);
        if (visible.end - visible.first < HD_BLOCK_TOKENS)
            attend_hide_scores(own, HD_BLOCK_TOKENS, (int)visible.first, (int)visible.end);
    }
    tile->raised = 0;
    for (uint32_t first = 0; first < tile->rows; first += VEC_LANES) {
        vec largest[VEC_LANES];
        uint32_t count = tile->rows - first < VEC_LANES ? tile->rows - first : VEC_LANES;
        for (uint32_t i = count; i < VEC_LANES; i++) largest[i] = vec_set(0.0f);
        for (uint32_t i = 0; i < count; i++) {
            const float *row = scores + (first + i) * HD_BLOCK_TOKENS;
            largest[i] = vec_load(row);
            for (uint32_t column = VEC_LANES; column < HD_BLOCK_TOKENS; column += VEC_LANES) {
                largest[i] = vec_max(largest[i], vec_load(row + column));
            }
        }
        vec before = vec_load(tile->max + first),
            max = vec_max(before, vec_mul(vec_largest_each(largest), vec_set(tile->scale)));
        vec_store(tile->max + first, max);
        vec_store(tile->factor + first, vec_exp2(vec_sub(before, max)));
        tile->raised |= vec_greater(max, before) << first;
    }
    if (tile->rows < ATTEND_ROWS) tile->raised &= (1u << tile->rows) - 1u;
}

static inline __attribute__((always_inline)) void weigh_row(row_tile *tile, uint32_t row, float *scores,
                                                            const bool is_f32) {
    vec factor = vec_set(tile->scale), base = vec_set(-tile->max[row]);
    vec sums = vec_mul(vec_load(tile->lane_sums + row * VEC_LANES), vec_set(tile->factor[row]));
    scores += row * HD_BLOCK_TOKENS;
    if (is_f32) {
        for (uint32_t i = 0; i < HD_BLOCK_TOKENS; i += VEC_LANES) {
            vec weight = vec_exp2(vec_fma(vec_load(scores + i), factor, base));
            sums = vec_add(sums, weight);
            vec_store(scores + i, weight);
        }
    } else {
        for (uint32_t i = 0; i < HD_BLOCK_TOKENS; i += 2 * VEC_LANES) {
            vec low = vec_exp2_short(vec_fma(vec_load(scores + i), factor, base));
            vec high = vec_exp2_short(vec_fma(vec_load(scores + i + VEC_LANES), factor, base));
            sums = vec_dot(sums, vec_store_pairs((uint16_t *)scores + i, low, high), pairs_of_ones());
        }
    }
    vec_store(tile->lane_sums + row * VEC_LANES, sums);
}

/* Weighs every row of a page, with the steps of two products spread evenly between the rows. With few rows there is
 * little to weigh meanwhile, and whole products are quicker. */
static void weigh_between(row_tile *tile, float *scores, tile_product *keys, tile_product *values) {
    bool is_f32 = tile->call->shape.dtype == HD_F32;
    if (tile->rows <= 16) {
        tile_finish(keys);
        tile_finish(values);
    }
    uint32_t steps = keys->steps + values->steps;
    for (uint32_t row = 0, done = 0; row < tile->rows; row++) {
        for (; done * tile->rows < steps * (row + 1); done++) tile_step(keys->steps > 0 ? keys : values);
        if (is_f32) {
            weigh_row(tile, row, scores, true);
        } else {
            weigh_row(tile, row, scores, false);
        }
    }
}

static void rescale(const row_tile *tile) {
    for (uint32_t raised = tile->raised; raised != 0; raised &= raised - 1) {
        uint32_t row = (uint32_t)__builtin_ctz(raised);
        float *out = tile->call->partial.out + (tile->first + row) * tile->call->partial.out_stride;
        vec factor = vec_set(tile->factor[row]);
        for (uint32_t n = 0; n < tile->call->shape.value_dim; n += VEC_LANES)
            vec_store(out + n, vec_mul(vec_load(out + n), factor));
    }
}
/* Every page from the first that is seen. */
static void take_pages(row_tile *tile, const kernel_span *first) {
    const kernel_span *before = NULL, *now = first, *after;
    if (tile->first == 0) {
        tile_fetch fetch = tile_fetch_start(now->values, tile->value_bytes, 1);
        tile_fetch_step(&fetch);
    }
    tile_product keys = start_keys(tile, now, stage_at(tile, 0)), values = {0};
    tile_finish(&keys);
    take_scores(tile, now, stage_at(tile, 0));
    for (uint32_t page = 0; now != NULL; page++, before = now, now = after) {
        after = seen_from(tile, now + 1);
        if (after != NULL) keys = start_keys(tile, after, stage_at(tile, page + 1));
        if (before != NULL) values = start_values(tile, before, stage_at(tile, page - 1), page > 1);
        weigh_between(tile, stage_at(tile, page), &keys, &values);
        if (before != NULL) rescale(tile);
        if (after != NULL) take_scores(tile, after, stage_at(tile, page + 1));
        if (after != NULL) continue;
        values = start_values(tile, now, stage_at(tile, page), page > 0);
        tile_finish(&values);
    }
}

static void attend_tile(row_tile *tile) {
    const kernel_partial *partial = &tile->call->partial;
    tile->lowest = UINT64_MAX;
    tile->highest = 0;
    for (uint32_t row = 0; row < tile->rows; row++) {
        uint64_t position = tile->call->positions[tile->first + row];
        if (position < tile->lowest) tile->lowest = position;
        if (position > tile->highest) tile->highest = position;
    }
    for (uint32_t row = 0; row < ATTEND_ROWS; row++) tile->max[row] = NOTHING_SEEN;
    memset(tile->lane_sums, 0, tile->rows * VEC_LANES * sizeof(float));
    const kernel_span *seen = seen_from(tile, tile->call->spans);
    if (seen != NULL) take_pages(tile, seen);
    for (uint32_t row = 0; row < tile->rows; row++) {
        float *out = partial->out + (tile->first + row) * partial->out_stride;
        if (seen == NULL) memset(out, 0, tile->call->shape.value_dim * sizeof(float));
        partial->max[tile->first + row] = tile->max[row] > NOTHING_SEEN ? tile->max[row] * LN_2 : -INFINITY;
        partial->sum[tile->first + row] = vec_sum(vec_load(tile->lane_sums + row * VEC_LANES));
    }
}

void table_attend(const kernel_attend *call) {
    assert(call->shape.key_dim % 16 == 0 && call->shape.value_dim % 16 == 0 && call->scale > 0.0f);
    assert(call->shape.dtype != HD_INT8 ||
           (call->shape.key_dim <= KERNEL_INT8_DIM_MAX && call->shape.value_dim <= KERNEL_INT8_DIM_MAX));
#if defined(KERNEL_HAS_AMX)
    if (call->shape.dtype != HD_F32) {
        attend_amx(call);
        return;
    }
#endif
    row_tile tile = {
        .call = call,
        .key_bytes = kernel_page_key_bytes(&call->shape),
        .value_bytes = kernel_page_value_bytes(&call->shape),
        .scale = call->soft_cap > 0.0f ? 1.0f : call->scale * LOG2_E,
        .stages = call->scratch,
    };
    tile.lane_sums = tile.stages + ATTEND_STAGES * ATTEND_STAGE_FLOATS;
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
        float max = fmaxf(into->max[row], from->max[row]), keep = expf(into->max[row] - max),
              add = expf(from->max[row] - max);
        vec kept = vec_set(keep), added = vec_set(add);
        for (uint32_t n = 0; n < value_dim; n += VEC_LANES) {
            vec_store(out + n, vec_fma(vec_load(other + n), added, vec_mul(vec_load(out + n), kept)));
        }
        into->sum[row] = into->sum[row] * keep + from->sum[row] * add;
        into->max[row] = max;
    }
}

void table_finish(const kernel_partial *partial, uint32_t row_count, uint32_t value_dim, const float *sink_logits,
                  hd_dtype dtype, void *output, size_t output_stride, float *lse) {
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
