/* scan_portable.c - the scans in plain C: the definition of right. */
#include "kernels/cpu/scan.h"

#include <math.h>

#include "kernels/dtype.h"
#include "kernels/matrix.h"

static void dot_rows(const float *query, uint32_t dim, const uint16_t *rows, size_t stride, uint32_t count,
                     float *scores) {
    for (uint32_t i = 0; i < count; i++) {
        float sum = 0.0f;
        for (uint32_t k = 0; k < dim; k++) sum += query[k] * hd_bf16_to_f32(rows[i * stride + k]);
        scores[i] = sum;
    }
}

static void nibble_scores(const uint8_t tables[SCAN_NIBBLES * 16], const uint8_t *blocks, uint32_t block_count,
                          float base, float step, float *scores) {
    for (uint32_t i = 0; i < block_count * SCAN_BLOCK; i++) {
        const uint8_t *block = blocks + (size_t)(i / SCAN_BLOCK) * SCAN_BLOCK_BYTES;
        uint32_t sum = 0;
        for (uint32_t n = 0; n < SCAN_NIBBLES; n++) {
            uint32_t byte = block[n / 2 * SCAN_BLOCK + i % SCAN_BLOCK];
            sum += tables[scan_table(n) * 16 + (byte >> n % 2 * 4 & 15)];
        }
        scores[i] = base + step * (float)sum;
    }
}

static void nibble_dots(const int8_t weights[2 * SCAN_ROW_BYTES], const uint8_t *codes, uint32_t row_bytes,
                        const uint32_t *rows, uint32_t count, int32_t *dots) {
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *row = codes + (size_t)rows[i] * row_bytes;
        dots[i] = 0;
        for (uint32_t b = 0; b < row_bytes; b++)
            dots[i] += (row[b] & 15) * weights[b] + (row[b] >> 4) * weights[SCAN_ROW_BYTES + b];
    }
}

static void byte_scores(const int16_t *query, const kernel_matrix *matrix, float base, float step, float *scores) {
    for (uint32_t c = 0; c < matrix->n; c++) {
        uint32_t first = c / KERNEL_PANEL * KERNEL_PANEL;
        uint32_t width = matrix->n_padded - first < KERNEL_PANEL ? matrix->n_padded - first : KERNEL_PANEL;
        const int8_t *panel = (const int8_t *)matrix->data + (size_t)first * matrix->k_padded;
        int32_t dot = 0;
        for (uint32_t k = 0; k < matrix->k; k++)
            dot += query[k] * panel[(size_t)(k / 2 * width + c - first) * 2 + k % 2];
        scores[c] = base + step * matrix->scales[c] * (float)dot;
    }
}

static uint32_t count_from(const float *scores, uint32_t count, float limit) {
    uint32_t found = 0;
    for (uint32_t i = 0; i < count; i++) found += scores[i] >= limit;
    return found;
}

static uint32_t collect_from(const float *scores, uint32_t count, float limit, uint32_t *indices, uint32_t room) {
    uint32_t found = 0;
    for (uint32_t i = 0; i < count && found < room; i++)
        if (scores[i] >= limit) indices[found++] = i;
    return found;
}

static int32_t nibble_row_sums(const uint8_t *codes, uint32_t row_bytes, const uint32_t *rows, uint32_t count,
                               const float *weights, float per_weight, int32_t sums[2 * SCAN_ROW_BYTES]) {
    int32_t total = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *row = codes + (size_t)rows[i] * row_bytes;
        int32_t weight = (int32_t)lrintf(weights[i] * per_weight);
        for (uint32_t b = 0; b < SCAN_ROW_BYTES; b++) {
            sums[b] += weight * (row[b] & 15);
            sums[SCAN_ROW_BYTES + b] += weight * (row[b] >> 4);
        }
        total += weight;
    }
    return total;
}

static scan_weight_sums weigh(const scan_weighing *weighing, const float *scores, const float *spreads, uint32_t count,
                              float *weights, float *spread_weights) {
    scan_weight_sums sums = {0};
    for (uint32_t i = 0; i < count; i++) {
        float mean = weighing->scale * scores[i], square = spreads[i] * spreads[i];
        float variance = weighing->variance * square;
        float tilt = fminf(fmaxf(weighing->limit - mean, 0.0f) / variance, 1.0f); /* 0 / 0 counts as 1 */
        float log_weight = fminf(mean + variance * tilt * (1.0f - 0.5f * tilt), weighing->limit) - weighing->max;
        weights[i] *= expf(log_weight);
        spread_weights[i] = weights[i] * spreads[i];
        sums.weight += weights[i];
        sums.tilted += weights[i] * tilt * square;
        sums.most = fmaxf(sums.most, spread_weights[i]);
    }
    return sums;
}

static float weigh_blocks(const float *scores, const uint16_t *masks, uint32_t block_count, float most, float factor,
                          float term) {
    float sum = 0.0f;
    for (uint32_t i = 0; i < block_count * SCAN_BLOCK; i++)
        if ((masks[i / SCAN_BLOCK] >> i % SCAN_BLOCK & 1) == 0) sum += expf(factor * fminf(scores[i], most) + term);
    return sum;
}

static void add_scaled(const float *a, const float *b, float factor, uint32_t count, float *sums, float *least,
                       float *greatest) {
    *least = INFINITY;
    *greatest = -INFINITY;
    for (uint32_t i = 0; i < count; i++) {
        sums[i] = a[i] + factor * b[i];
        *least = fminf(*least, sums[i]);
        *greatest = fmaxf(*greatest, sums[i]);
    }
}

static float largest(const float *x, uint32_t count) {
    float most = -INFINITY;
    for (uint32_t i = 0; i < count; i++) most = fmaxf(most, x[i]);
    return most;
}

const kernel_scan kernel_scan_portable = {
    .dot_rows = dot_rows,
    .nibble_scores = nibble_scores,
    .nibble_dots = nibble_dots,
    .byte_scores = byte_scores,
    .nibble_row_sums = nibble_row_sums,
    .weigh = weigh,
    .weigh_blocks = weigh_blocks,
    .add_scaled = add_scaled,
    .largest = largest,
    .count_from = count_from,
    .collect_from = collect_from,
};
