/* reduce.h - sums and maxima over the threads of a block, in an order that depends on the number of threads alone.
 *
 * Each takes a scratch array in shared memory that nobody else uses meanwhile, and gives every thread the result. */
#ifndef KERNELS_CUDA_REDUCE_H
#define KERNELS_CUDA_REDUCE_H

#include "kernels/cuda/simt.h"

SIMT_FUNCTION float reduce_warp_sum(float value) {
    SIMT_UNROLL
    for (uint32_t mask = SIMT_WARP / 2; mask > 0; mask /= 2) value = simt_add(value, simt_shuffle_xor(value, mask));
    return value;
}

SIMT_FUNCTION float reduce_warp_max(float value) {
    SIMT_UNROLL
    for (uint32_t mask = SIMT_WARP / 2; mask > 0; mask /= 2) value = simt_max(value, simt_shuffle_xor(value, mask));
    return value;
}

/* scratch: [warps] */
SIMT_FUNCTION float reduce_sum(float value, float *scratch) {
    value = reduce_warp_sum(value);
    simt_sync();
    if (simt_lane() == 0) scratch[simt_warp()] = value;
    simt_sync();
    float sum = 0.0f;
    for (uint32_t i = 0; i < simt_thread_count() / SIMT_WARP; i++) sum = simt_add(sum, scratch[i]);
    return sum;
}

/* scratch: [threads]; the number of threads is a power of two. */
SIMT_FUNCTION double reduce_sum_double(double value, double *scratch) {
    simt_sync();
    scratch[simt_thread()] = value;
    for (uint32_t half = simt_thread_count() / 2; half > 0; half /= 2) {
        simt_sync();
        if (simt_thread() < half) scratch[simt_thread()] += scratch[simt_thread() + half];
    }
    simt_sync();
    return scratch[0];
}

SIMT_FUNCTION uint32_t reduce_sum_u32(uint32_t value, uint32_t *scratch) {
    simt_sync();
    scratch[simt_thread()] = value;
    for (uint32_t half = simt_thread_count() / 2; half > 0; half /= 2) {
        simt_sync();
        if (simt_thread() < half) scratch[simt_thread()] += scratch[simt_thread() + half];
    }
    simt_sync();
    return scratch[0];
}

typedef struct reduce_best {
    float value;
    uint32_t index;
} reduce_best;

/* Whether b is better: larger, or the first of equals. */
SIMT_FUNCTION bool reduce_is_better(reduce_best a, reduce_best b) {
    return b.value > a.value || (b.value == a.value && b.index < a.index);
}

/* scratch: [warps] */
SIMT_FUNCTION reduce_best reduce_argmax(reduce_best best, reduce_best *scratch) {
    SIMT_UNROLL
    for (uint32_t mask = SIMT_WARP / 2; mask > 0; mask /= 2) {
        reduce_best other;
        other.value = simt_shuffle_xor(best.value, mask);
        other.index = simt_shuffle_xor_u32(best.index, mask);
        if (reduce_is_better(best, other)) best = other;
    }
    simt_sync();
    if (simt_lane() == 0) scratch[simt_warp()] = best;
    simt_sync();
    best = scratch[0];
    for (uint32_t i = 1; i < simt_thread_count() / SIMT_WARP; i++) {
        if (reduce_is_better(best, scratch[i])) best = scratch[i];
    }
    return best;
}

#endif
