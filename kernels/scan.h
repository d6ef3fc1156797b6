/* scan.h - operations of searches among keys: each reads many short rows once and leaves a number for each.
 *
 * A table of them is part of each table of ops.h and follows its rules: no allocation, the same bits for the same
 * row whatever else is in the call, and "portable" says what is right.
 * Threads: pure functions on the caller's memory. */
#ifndef KERNELS_SCAN_H
#define KERNELS_SCAN_H

#include <stddef.h>
#include <stdint.h>

enum {
    SCAN_NIBBLES = 16,                                /* of a key's code in a block */
    SCAN_BLOCK = 16,                                  /* keys of a block */
    SCAN_BLOCK_BYTES = SCAN_BLOCK * SCAN_NIBBLES / 2, /* byte c of every key, then byte c + 1 of every key, ... */
    SCAN_ROW_BYTES = 32,                              /* of a row of nibbles, at most */
    SCAN_WEIGHT = 127,                                /* of whole weights, at most */
};

/* Where the table of a nibble lies among the 16 tables of nibble_sums: nibble n is the low (n even) or the high half
 * of byte n / 2, and four bytes' low halves are looked up at once, then their high halves. */
static inline uint32_t scan_table(uint32_t nibble) {
    return nibble / 8 * 8 + nibble % 2 * 4 + nibble / 2 % 4;
}

struct kernel_matrix;

typedef struct scan_weighing { /* of keys whose scores are known up to a normal error, and not to reach limit / scale */
    float scale;               /* of scores */
    float variance;            /* at a spread of 1 */
    float limit, max;          /* of scaled scores: what they stay below, and what exponentials refer to */
} scan_weighing;

typedef struct scan_weight_sums {
    float weight, tilted; /* of w, and of w * t * spreads^2 */
    float most;           /* the largest w * spread, at least 0 */
} scan_weight_sums;

typedef struct kernel_scan {
    /* scores[i] = query . rows[i], rows of bf16 `stride` elements apart; dim a multiple of 16 */
    void (*dot_rows)(const float *query, uint32_t dim, const uint16_t *rows, size_t stride, uint32_t count,
                     float *scores);
    /* scores[key] = base + step * (the sum over the key's nibbles of tables[scan_table(n) * 16 + nibble]) */
    void (*nibble_scores)(const uint8_t tables[SCAN_NIBBLES * 16], const uint8_t *blocks, uint32_t block_count,
                          float base, float step, float *scores);
    /* dots[i] = sum over bytes b of codes[rows[i] * row_bytes + b]: low half * weights[b] + high half *
     * weights[SCAN_ROW_BYTES + b]. Weights are 0 from row_bytes on, and SCAN_ROW_BYTES can be read at every row. */
    void (*nibble_dots)(const int8_t weights[2 * SCAN_ROW_BYTES], const uint8_t *codes, uint32_t row_bytes,
                        const uint32_t *rows, uint32_t count, int32_t *dots);
    /* scores[c] = base + step * scales[c] * (sum over k of query[k] * B[k, c]) for every column of a packed int8 matrix;
     * |query| at most 32767, and zero from k to k_padded */
    void (*byte_scores)(const int16_t *query, const struct kernel_matrix *matrix, float base, float step,
                        float *scores);
    /* sums[b] += the sum over i of round(weights[i] * per_weight) * (the low half of codes[rows[i] * row_bytes + b]),
     * and sums[SCAN_ROW_BYTES + b] the high half's, for every b below SCAN_ROW_BYTES. Whole weights are 0 to
     * SCAN_WEIGHT; SCAN_ROW_BYTES can be read at every row. Returns the sum of the whole weights. */
    int32_t (*nibble_row_sums)(const uint8_t *codes, uint32_t row_bytes, const uint32_t *rows, uint32_t count,
                               const float *weights, float per_weight, int32_t sums[2 * SCAN_ROW_BYTES]);
    /* weights[i] becomes w = weights[i] * exp(min(m + v * t * (1 - t / 2), limit) - max), where m = scale * scores[i] is
     * the mean of a score, v = variance * spreads[i]^2 its variance, and t, which is how far up the weight lies, in
     * variances, clamps (limit - m) / v to [0, 1]; spread_weights[i] becomes w * spreads[i]. limit <= max. */
    scan_weight_sums (*weigh)(const scan_weighing *weighing, const float *scores, const float *spreads, uint32_t count,
                              float *weights, float *spread_weights);
    /* The sum of exp(factor * min(score, most) + term) over the scores of blocks whose bit is 0 in the block's mask;
     * 0 for minus infinity. Exponents are at most 0. */
    float (*weigh_blocks)(const float *scores, const uint16_t *masks, uint32_t block_count, float most, float factor,
                          float term);
    /* sums[i] = a[i] + factor * b[i]; and the least and the greatest of them, infinities where there are none */
    void (*add_scaled)(const float *a, const float *b, float factor, uint32_t count, float *sums, float *least,
                       float *greatest);
    float (*largest)(const float *x, uint32_t count); /* minus infinity of none */
    /* How many of the scores are at least the limit; and which, ascending, of which there are no more than room. */
    uint32_t (*count_from)(const float *scores, uint32_t count, float limit);
    uint32_t (*collect_from)(const float *scores, uint32_t count, float limit, uint32_t *indices, uint32_t room);
} kernel_scan;

#endif
