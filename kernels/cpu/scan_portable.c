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

static void byte_dots(const int16_t *query, const kernel_matrix *matrix, int32_t *dots) {
    for (uint32_t c = 0; c < matrix->n; c++) {
        uint32_t first = c / KERNEL_PANEL * KERNEL_PANEL;
        uint32_t width = matrix->n_padded - first < KERNEL_PANEL ? matrix->n_padded - first : KERNEL_PANEL;
        const int8_t *panel = (const int8_t *)matrix->data + (size_t)first * matrix->k_padded;
        dots[c] = 0;
        for (uint32_t k = 0; k < matrix->k; k++)
            dots[c] += query[k] * panel[(size_t)(k / 2 * width + c - first) * 2 + k % 2];
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

static float exponentials(float *x, uint32_t count, float factor, float term, float *largest) {
    float sum = 0.0f;
    *largest = 0.0f;
    for (uint32_t i = 0; i < count; i++) {
        sum += x[i] = expf(factor * x[i] + term);
        *largest = x[i] > *largest ? x[i] : *largest;
    }
    return sum;
}

const kernel_scan kernel_scan_portable = {
    .dot_rows = dot_rows,
    .nibble_scores = nibble_scores,
    .nibble_dots = nibble_dots,
    .byte_dots = byte_dots,
    .nibble_row_sums = nibble_row_sums,
    .exponentials = exponentials,
    .count_from = count_from,
    .collect_from = collect_from,
};
