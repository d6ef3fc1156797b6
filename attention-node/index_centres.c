/* index_centres.c - a matrix of bytes, and a query's coordinates in 16 bits. */
#include "attention-node/index_centres.h"

#include <math.h>

void index_centres_lay_out(index_centres *self, uint32_t count, uint32_t point_dim, index_carve *carve) {
    self->count = count;
    self->dim = point_dim < INDEX_CENTRES_DIM ? point_dim : INDEX_CENTRES_DIM;
    void *data = index_carve_take(carve, kernel_matrix_bytes(HD_INT8, count, self->dim));
    float *scales = index_carve_take(carve, HD_ALIGN_UP(count, KERNEL_N_ALIGN) * sizeof(float));
    /* kernel_matrix_init, which writes the padding, is not for what others read */
    self->matrix = (kernel_matrix){.dtype = HD_INT8,
                                   .n = count,
                                   .k = self->dim,
                                   .n_padded = HD_ALIGN_UP(count, KERNEL_N_ALIGN),
                                   .k_padded = HD_ALIGN_UP(self->dim, KERNEL_K_ALIGN),
                                   .data = data,
                                   .scales = scales};
}

void index_centres_set(index_centres *self, float *rows, uint32_t point_dim) {
    kernel_matrix_pack(&self->matrix, 0, rows, HD_F32, point_dim, self->count); /* of each row its beginning */
    for (uint32_t c = 0; c < self->count; c++)
        for (uint32_t i = 0; i < point_dim; i++)
            rows[(size_t)c * point_dim + i] = i < self->dim ? kernel_matrix_get(&self->matrix, i, c) : 0.0f;
}

void index_centres_score(const index_centres *self, const kernel_scan *scan, const float *z, float offset,
                         float *scores) {
    int16_t whole[INDEX_CENTRES_DIM] = {0};
    float largest = 1e-30f;
    for (uint32_t i = 0; i < self->dim; i++) largest = fabsf(z[i]) > largest ? fabsf(z[i]) : largest;
    for (uint32_t i = 0; i < self->dim; i++) whole[i] = (int16_t)lrintf(z[i] * (32767.0f / largest));
    scan->byte_scores(whole, &self->matrix, offset, largest / 32767.0f, scores);
}
