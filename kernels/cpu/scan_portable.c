/* scan_portable.c - the scans in plain C: the definition of right. */
#include "kernels/cpu/scan.h"
#include "kernels/dtype.h"

static void dot_rows(const float *query, uint32_t dim, const uint16_t *rows, size_t stride, uint32_t count,
                     float *scores) {
    for (uint32_t i = 0; i < count; i++) {
        float sum = 0.0f;
        for (uint32_t k = 0; k < dim; k++) sum += query[k] * hd_bf16_to_f32(rows[i * stride + k]);
        scores[i] = sum;
    }
}

const kernel_scan kernel_scan_portable = {
    .dot_rows = dot_rows,
};
