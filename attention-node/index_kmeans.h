/* index_kmeans.h - k-means in pieces, on the products that the kernels are best at.
 *
 * The nearest centre of x is the one with the largest x . c - |c|^2 / 2, so that a chunk of points against all centres
 * is one matrix product with a bias, and the rest is finding the largest of a row. Centres are trained on a sample;
 * which points and which first centres it has is a function of the seed.
 * Threads: the caller's memory, one thread at a time. */
#ifndef ATTENTION_NODE_INDEX_KMEANS_H
#define ATTENTION_NODE_INDEX_KMEANS_H

#include "kernels/ops.h"

enum { KMEANS_CHUNK = 64, KMEANS_PIECE = 4096 }; /* points of a product, and of a step */

typedef struct kmeans {
    const kernel_ops *kernels;
    const uint16_t *points; /* bf16 [point_count, point_stride], of which the first dim count */
    size_t point_stride;
    uint32_t point_count, dim, centre_count; /* dim a multiple of 32 */
    uint32_t sample_count, rounds;           /* sample_count >= centre_count, unless there are fewer points */
    uint64_t seed;
    /* The state; arrays are the caller's. */
    float *centres;       /* [centre_count, dim] */
    float *sums, *bias;   /* [centre_count, dim], [centre_count] */
    uint32_t *counts;     /* [centre_count] */
    kernel_matrix packed; /* of the centres, bf16 */
    uint16_t *inputs;     /* [KMEANS_CHUNK, dim], 64-byte aligned */
    float *scores;        /* [KMEANS_CHUNK, centre_count] */
    void *scratch;        /* kernels->scratch_bytes, 64-byte aligned */
    uint32_t round, cursor;
} kmeans;

void kmeans_begin(kmeans *self); /* the first centres */
bool kmeans_train(kmeans *self); /* a piece; true when the centres are final */
/* The nearest centres of points [first, first + count). */
void kmeans_assign(kmeans *self, uint32_t first, uint32_t count, uint32_t *centres);

#endif
