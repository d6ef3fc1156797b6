/* index_space.c - moments, their factors, and the rotation that puts coordinates in order. */
#include "attention-node/index_space.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "attention-node/index_linear.h"
#include "kernels/dtype.h"

/* Sum of (row - mean)(row - mean)^T over rows, lower triangle, as a mean; `row` has room for one. */
static void second_moment(const uint16_t *rows, uint32_t count, uint32_t dim, const float *mean, float *row,
                          float *moment) {
    memset(moment, 0, (size_t)dim * dim * sizeof(*moment));
    for (uint32_t r = 0; r < count; r++) {
        for (uint32_t i = 0; i < dim; i++)
            row[i] = hd_bf16_to_f32(rows[(size_t)r * dim + i]) - (mean != NULL ? mean[i] : 0.0f);
        for (uint32_t i = 0; i < dim; i++) {
            float factor = row[i], *to = moment + (size_t)i * dim;
            for (uint32_t j = 0; j <= i; j++) to[j] += factor * row[j];
        }
    }
    for (size_t i = 0; i < (size_t)dim * dim; i++) moment[i] /= (float)count;
}

/* A little of the mean variance in every direction keeps both moments invertible: what a sample does not show may come
 * all the same. */
static float trace_mean(const float *moment, uint32_t dim) {
    float sum = 0.0f;
    for (uint32_t i = 0; i < dim; i++) sum += moment[(size_t)i * dim + i];
    return sum > 0.0f ? sum / (float)dim : 1.0f;
}

static void factor(float *moment, uint32_t dim) {
    float ridge = 1e-4f * trace_mean(moment, dim);
    for (uint32_t i = 0; i < dim; i++) moment[(size_t)i * dim + i] += ridge;
    linear_cholesky(moment, dim, ridge * 0.1f);
}

static void multiply_transposed(const float *a, const float *b, uint32_t n, float *c) { /* c = a^T b, both lower */
    memset(c, 0, (size_t)n * n * sizeof(*c));
    for (uint32_t k = 0; k < n; k++)
        for (uint32_t i = 0; i <= k; i++)
            for (uint32_t j = 0; j <= k; j++) c[(size_t)i * n + j] += a[(size_t)k * n + i] * b[(size_t)k * n + j];
}

static void mean_of(const uint16_t *rows, uint32_t count, uint32_t dim, float *mean) {
    memset(mean, 0, dim * sizeof(*mean));
    for (uint32_t r = 0; r < count; r++)
        for (uint32_t i = 0; i < dim; i++) mean[i] += hd_bf16_to_f32(rows[(size_t)r * dim + i]);
    /* as bf16, in which it is kept */
    for (uint32_t i = 0; i < dim; i++) mean[i] = hd_bf16_to_f32(hd_f32_to_bf16(mean[i] / (float)count));
}

size_t index_space_bytes(uint32_t key_dim) {
    return ((size_t)4 * key_dim * key_dim + 3 * key_dim) * sizeof(float);
}

/* Row `rank` of T is sqrt(e) v^T L^-1, of U it is v^T L^T / sqrt(e): their product over all rows is the identity. */
static void set_coordinate(index_space *space, uint32_t rank, const float *vector, float eigenvalue,
                           const float *key_factor) {
    uint32_t n = space->key_dim;
    float *to_keys = space->to_keys + (size_t)rank * n, *to_queries = space->to_queries + (size_t)rank * n;
    float root = sqrtf(eigenvalue);
    memcpy(to_keys, vector, n * sizeof(*to_keys));
    linear_solve_upper(key_factor, n, to_keys);
    memset(to_queries, 0, n * sizeof(*to_queries));
    for (uint32_t j = 0; j < n; j++) /* L v, so that U q = (L v) . q / sqrt(e) */
        for (uint32_t i = 0; i <= j; i++) to_queries[j] += key_factor[(size_t)j * n + i] * vector[i];
    for (uint32_t i = 0; i < n; i++) {
        to_keys[i] *= root;
        to_queries[i] /= root;
    }
    space->variances[rank] = eigenvalue;
}

void index_space_fit(index_space *space, const uint16_t *keys, uint32_t key_count, const uint16_t *queries,
                     uint32_t query_count, float *scratch) {
    uint32_t n = space->key_dim;
    float *key_factor = scratch, *query_factor = key_factor + (size_t)n * n, *product = query_factor + (size_t)n * n;
    float *rotation = product + (size_t)n * n, *row = rotation + (size_t)n * n, *squares = row + n;
    mean_of(keys, key_count, n, space->mean);
    second_moment(keys, key_count, n, space->mean, row, key_factor);
    factor(key_factor, n);
    memset(query_factor, 0, (size_t)n * n * sizeof(*query_factor));
    for (uint32_t i = 0; i < n; i++) query_factor[(size_t)i * n + i] = 1.0f;
    if (query_count > 0) {
        second_moment(queries, query_count, n, NULL, row, query_factor);
        factor(query_factor, n);
    }
    /* The eigenvectors of L^T Q L, with Q = M M^T, are those of f f^T for f = L^T M. */
    multiply_transposed(key_factor, query_factor, n, product);
    linear_orthogonalise(product, rotation, n);
    for (uint32_t i = 0; i < n; i++) {
        squares[i] = 0.0f;
        for (uint32_t j = 0; j < n; j++) squares[i] += product[(size_t)i * n + j] * product[(size_t)i * n + j];
    }
    float largest = 0.0f;
    for (uint32_t i = 0; i < n; i++) largest = squares[i] > largest ? squares[i] : largest;
    for (uint32_t rank = 0; rank < space->dim; rank++) {
        uint32_t best = 0;
        for (uint32_t i = 1; i < n; i++)
            if (squares[i] > squares[best]) best = i;
        float eigenvalue = squares[best] > 1e-9f * largest ? squares[best] : 1e-9f * largest;
        set_coordinate(space, rank, rotation + (size_t)best * n, eigenvalue, key_factor);
        squares[best] = -1.0f;
    }
}
