/* attend_amx.h - what both pipelines of attention over bf16 pages, and int8 widened to it, with a tile unit share:
 * rows, units, and how scores are weighed.
 *
 * While the tile unit multiplies, one of the two vector ports does no floating point (so on Sapphire Rapids), and the
 * softmax has half of what it would have otherwise. Hence:
 *
 *   - Weights are 2^(score - reference), where the reference is the largest of the first scores that a row sees, not of
 *     all so far: no pass over the scores for a maximum, and no rescaling. Floats carry what lies above. In the rare
 *     case that a sum leaves their range, its row is computed again with the largest of all as reference.
 *   - 2^x is made as bf16 and from whole numbers, most of the way 32 at a time (weights_of).
 *
 * A row's bits depend neither on its neighbours nor on pages that it does not see, whose weights are exact zeros.
 * Threads: functions on the caller's memory. */
#ifndef KERNELS_CPU_ATTEND_AMX_H
#define KERNELS_CPU_ATTEND_AMX_H

#include <assert.h>
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/attend.h"
#include "kernels/cpu/page.h"
#include "kernels/cpu/page_fetch.h"
#include "kernels/cpu/tile.h"

#define INLINE static inline __attribute__((always_inline))
#define MEMORY_BARRIER() __asm__ volatile("" ::: "memory") /* the intrinsics do not say that they touch memory */

enum {
    TILE_ROWS = 16,
    TILE_COLUMNS = 16,
    ROWS_MAX = 2 * TILE_ROWS, /* of a row tile */
    BLOCK = 32,               /* positions that are weighed at a time */
    PAGE_BLOCKS = HD_BLOCK_TOKENS / BLOCK,
    ROWS_TOGETHER = 4,   /* weighed side by side, so that latencies overlap */
    EXPONENT_BIAS = 127, /* of floats */
    FRACTIONS = 256,     /* of one in an exponent, see weights_of */
};
#define SUM_MAX 0x1p100f /* above it, a sum of weights may have left the range of floats somewhere */
#define EXPONENT_MAX 10  /* of a sum, at the end: 1,024 weights of 1 */

/* ---- Rows ---- */

/* Rows that go through a pipeline together, and what is known of them so far. */
typedef struct row_tile {
    float sums[ROWS_MAX][VEC_LANES]; /* of weights, lane by lane */
    float references[ROWS_MAX];      /* in base 2; 0 before there is one */
    float offsets[ROWS_MAX];         /* the same as weights_of subtracts it */
    uint64_t lowest, highest;        /* positions */
    uint32_t first, rows;
    uint32_t all, has_reference; /* bits of rows */
    bool has_output;             /* out holds the products of pages before */
} row_tile;

/* A part of a call: rows that read the same pages. */
typedef struct row_tiles {
    const kernel_attend *call;
    row_tile *tiles;
    uint32_t count;
    float scale;                                      /* from a score, as it is when it is weighed, to base 2 */
    const kernel_span *widened_keys, *widened_values; /* of int8: the pages that are in scratch as bf16 */
} row_tiles;

/* Keys, and values, of a page as bf16: those of int8 in scratch, until those of another page are asked for. The scores
 * of a page are begun when those of the page before are all there, and so are its values. */
static inline const char *keys_of(row_tiles *rows, const kernel_span *span) {
    if (rows->call->shape.dtype != HD_INT8) return span->keys;
    char *widened = (char *)rows->call->scratch + ATTEND_WIDENED;
    if (rows->widened_keys != span) widen_keys(&rows->call->shape, span->keys, (uint16_t *)widened);
    rows->widened_keys = span;
    return widened;
}

static inline const char *values_of(row_tiles *rows, const kernel_span *span) {
    if (rows->call->shape.dtype != HD_INT8) return span->values;
    char *widened = (char *)rows->call->scratch + ATTEND_WIDENED + WIDENED_BYTES;
    if (rows->widened_values != span) widen_values(&rows->call->shape, span->values, (uint16_t *)widened);
    rows->widened_values = span;
    return widened;
}

static inline float row_tiles_scale(const kernel_attend *call) {
    return call->soft_cap > 0.0f ? 1.0f : call->scale * LOG2_E;
}

static inline void row_tile_begin(const kernel_attend *call, row_tile *tile, uint32_t first, uint32_t rows) {
    tile->first = first;
    tile->rows = rows;
    tile->all = rows < 32 ? (1u << rows) - 1 : UINT32_MAX;
    tile->has_reference = 0;
    tile->has_output = false;
    tile->lowest = UINT64_MAX;
    tile->highest = 0;
    for (uint32_t row = 0; row < rows; row++) {
        uint64_t position = call->positions[first + row];
        if (position < tile->lowest) tile->lowest = position;
        if (position > tile->highest) tile->highest = position;
        tile->references[row] = tile->offsets[row] = 0.0f;
        vec_store(tile->sums[row], vec_set(0.0f));
    }
}

/* To a sum of at most 2^EXPONENT_MAX, through a power of two, which rounds nothing. False when floats did not carry
 * the row's weights. */
static inline bool row_tile_finish(const kernel_attend *call, const row_tile *tile, uint32_t row) {
    const kernel_partial *partial = &call->partial;
    uint32_t place = tile->first + row;
    float *out = partial->out + place * partial->out_stride;
    if (!tile->has_output) memset(out, 0, call->shape.value_dim * sizeof(float));
    if ((tile->has_reference >> row & 1) == 0) {
        partial->max[place] = -INFINITY;
        partial->sum[place] = 0.0f;
        return true;
    }
    float sum = vec_sum(vec_load(tile->sums[row])), reference = tile->references[row];
    int exponent = 0;
    if (sum > (float)(1 << EXPONENT_MAX)) {
        frexpf(sum, &exponent);
        for (uint32_t n = 0; n < call->shape.value_dim; n += VEC_LANES)
            vec_store(out + n, _mm512_scalef_ps(vec_load(out + n), vec_set((float)-exponent)));
    }
    partial->sum[place] = ldexpf(sum, -exponent);
    partial->max[place] = (reference + (float)exponent) * LN_2;
    return sum <= SUM_MAX;
}

/* ---- Units ---- */

/* A page and a row tile. */
typedef struct unit {
    const kernel_span *span; /* NULL: none */
    row_tile *tile;
    uint32_t span_index, tile_index;
    uint32_t number; /* of those that have something to see */
    bool is_plain;   /* every row sees every slot, and scores are not capped */
} unit;

static inline page_slots visible_to(const kernel_attend *call, const row_tile *tile, uint32_t row,
                                    const kernel_span *span) {
    return page_slots_visible(span, call->positions[tile->first + row], call->window);
}

static inline bool all_see_all(const kernel_attend *call, const row_tile *tile, const kernel_span *span) {
    uint64_t window = call->window;
    return span->count == HD_BLOCK_TOKENS && tile->lowest >= span->position + HD_BLOCK_TOKENS - 1 &&
           (window == 0 || span->position + window > tile->highest);
}

static inline bool any_sees_any(const kernel_attend *call, const row_tile *tile, const kernel_span *span) {
    for (uint32_t row = 0; row < tile->rows; row++) {
        page_slots visible = visible_to(call, tile, row, span);
        if (visible.first != visible.end) return true;
    }
    return false;
}

/* The next unit that has anything to see: all tiles take a page before the next one. */
static inline unit unit_after(const row_tiles *rows, const unit *u) {
    const kernel_attend *call = rows->call;
    unit next = *u;
    next.number++;
    for (;;) {
        if (++next.tile_index >= rows->count) {
            next.tile_index = 0;
            if (++next.span_index >= call->span_count) return (unit){.span = NULL};
        }
        next.span = &call->spans[next.span_index];
        next.tile = &rows->tiles[next.tile_index];
        bool sees_all = all_see_all(call, next.tile, next.span);
        next.is_plain = sees_all && call->soft_cap == 0.0f;
        if (sees_all || any_sees_any(call, next.tile, next.span)) return next;
    }
}

static inline unit unit_first(const row_tiles *rows) {
    return unit_after(rows, &(unit){.tile_index = UINT32_MAX - 1, .span_index = UINT32_MAX});
}

/* A unit's share of the next page. */
static inline page_fetch unit_fetch(const row_tiles *rows, const unit *u, uint32_t steps) {
    const kernel_attend *call = rows->call;
    const kernel_span *next = u->span_index + 1 < call->span_count ? u->span + 1 : call->ahead;
    return page_fetch_start(&call->shape, next, u->tile_index, rows->count, steps);
}

/* ---- Scores and weights of a block ---- */

/* The largest score of a block that the row sees; minus infinity when it sees none. */
static inline float largest_of(const float *scores) {
    return vec_largest(vec_max(vec_load(scores), vec_load(scores + VEC_LANES)));
}

/* Makes the scores of a block final where they are not yet: capped, and hidden where a row must not look. */
static inline void complete_scores(const kernel_attend *call, const unit *u, uint32_t block, float *scores) {
    uint32_t first_slot = block * BLOCK;
    for (uint32_t row = 0; row < u->tile->rows; row++) {
        page_slots visible = visible_to(call, u->tile, row, u->span);
        if (call->soft_cap > 0.0f) attend_cap_scores(scores + row * BLOCK, BLOCK, call->scale, call->soft_cap);
        attend_hide_scores(scores + row * BLOCK, BLOCK, (int)visible.first - (int)first_slot,
                           (int)visible.end - (int)first_slot);
    }
}

static inline void set_reference(row_tile *tile, uint32_t row, float reference) {
    tile->references[row] = reference;
    tile->offsets[row] = (reference - EXPONENT_BIAS) * FRACTIONS;
    tile->has_reference |= 1u << row;
}

/* For rows that see something for the first time. */
static inline void set_references(row_tile *tile, const float *scores, float scale) {
    for (uint32_t row = 0; row < tile->rows; row++) {
        if ((tile->has_reference >> row & 1) != 0) continue;
        float largest = largest_of(scores + row * BLOCK);
        if (largest != -INFINITY) set_reference(tile, row, largest * scale);
    }
}

/* 2^x, as bf16, of two vectors at a time and in whole numbers from early on. x + 127 in 256ths, as 16 bits, is nearly
 * the number that is wanted, an exponent over a mantissa, one bit too long: a mantissa is 2^f - 1 for a fraction f, and
 * not f. What lies between, by the upper six bits of f, is a table of 64 bytes, which one permutation looks up; the
 * last bit rounds. The result is within 0.6 % and, in the mean square, 0.2 %, where rounding 2^x to bf16 itself is
 * within 0.4 % and 0.17 %. What lies below 2^-127 becomes 0, and what lies above the numbers of bf16 none of them. */
typedef struct exponential {
    vec scale;
    __m512i table, order; /* order: of the pairs of numbers that packing interleaves */
    __m512bh ones;
} exponential;

static inline exponential exponential_make(float scale) {
    static const uint8_t above[64] = {0,  1,  2,  4,  4,  6,  7,  8,  9,  10, 10, 12, 12, 13, 14, 15,
                                      15, 16, 17, 17, 18, 18, 19, 19, 20, 20, 20, 21, 21, 21, 21, 21,
                                      21, 22, 22, 21, 21, 21, 21, 21, 21, 20, 20, 19, 19, 19, 18, 17,
                                      17, 16, 15, 15, 13, 13, 12, 11, 9,  9,  7,  6,  5,  3,  2,  1};
    return (exponential){
        .scale = vec_set(scale * FRACTIONS),
        .table = _mm512_loadu_si512(above),
        .order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7),
        .ones = (__m512bh)_mm512_set1_epi16(0x3f80),
    };
}

INLINE __m512i weights_of(const exponential *e, vec low, vec high, vec offset) {
    const __mmask64 low_bytes = 0x5555555555555555;
    __m512i fixed = _mm512_packus_epi32(_mm512_cvtps_epi32(_mm512_fmsub_ps(low, e->scale, offset)),
                                        _mm512_cvtps_epi32(_mm512_fmsub_ps(high, e->scale, offset)));
    __m512i above = _mm512_maskz_permutexvar_epi8(low_bytes, _mm512_srli_epi16(fixed, 2), e->table);
    return _mm512_permutexvar_epi64(e->order, _mm512_srli_epi16(_mm512_sub_epi16(fixed, above), 1));
}

/* Scores lie by blocks, weights as the pipeline has them. */
INLINE void weigh_rows(const exponential *e, row_tile *tile, uint32_t first, const int rows, const float *scores,
                       uint16_t *weights, const size_t weights_stride) {
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
        uint32_t row = first + (uint32_t)i;
        const float *low = scores + row * BLOCK;
        __m512i weighed = weights_of(e, vec_load(low), vec_load(low + VEC_LANES), vec_set(tile->offsets[row]));
        vec_store(tile->sums[row], _mm512_dpbf16_ps(vec_load(tile->sums[row]), (__m512bh)weighed, e->ones));
        _mm512_storeu_si512(weights + row * weights_stride, weighed);
    }
}

/* ---- Heads of up to 64 values ---- */

/* Rows [first, first + rows) of a call: a multiple of TILE_ROWS, or fewer. is_whole[i]: the answer of row first + i is
 * right; otherwise floats did not carry it. */
enum { ATTEND_FLAT_VALUES_MAX = 64 };
#define attend_amx_flat TABLE_NAME(attend_amx_flat)
void attend_amx_flat(const kernel_attend *call, uint32_t first, uint32_t rows, bool *is_whole);

#endif
