/* scan.c - scans in vectors, compiled once per table. */
#include "kernels/cpu/scan.h"

static float dot_row(const float *query, uint32_t dim, const uint16_t *row) {
    vec sum = vec_set(0.0f);
    for (uint32_t i = 0; i < dim; i += VEC_LANES) sum = vec_fma(vec_load(query + i), vec_from_bf16(row + i), sum);
    return vec_sum(sum);
}

static void dot_rows(const float *query, uint32_t dim, const uint16_t *rows, size_t stride, uint32_t count,
                     float *scores) {
    for (uint32_t i = 0; i < count; i++) scores[i] = dot_row(query, dim, rows + i * stride);
}

const kernel_scan table_scan = {
    .dot_rows = dot_rows,
};
