/* row_kernels.h - the kernels over rows: norms, heads, gates, logits (row_arguments.h).
 *
 * What a row gets depends on the row and the shape alone: a row belongs to one block or warp, and sums go over
 * threads in a fixed order. */
#ifndef KERNELS_CUDA_ROW_KERNELS_H
#define KERNELS_CUDA_ROW_KERNELS_H

#include "kernels/cuda/reduce.h"
#include "kernels/cuda/row_arguments.h"

/* Shared memory: a float a warp. */
SIMT_FUNCTION void rmsnorm(const rmsnorm_arguments *a) {
    float *scratch = (float *)simt_shared();
    uint32_t padded = (a->width + 31) / 32 * 32;
    for (uint32_t row = simt_block(); row < a->row_count; row += simt_block_count()) {
        const float *x = a->input + row * a->input_stride;
        uint16_t *y = a->output + row * a->output_stride;
        float squares = 0.0f;
        for (uint32_t i = simt_thread(); i < a->width; i += simt_thread_count())
            squares = simt_multiply_add(x[i], x[i], squares);
        float mean = reduce_sum(squares, scratch) / (float)a->width;
        float factor = simt_reciprocal_sqrt(simt_add(mean, a->eps));
        for (uint32_t i = simt_thread(); i < padded && i < a->output_stride; i += simt_thread_count()) {
            float value = i < a->width ? simt_multiply(simt_multiply(x[i], factor), a->weight[i]) : 0.0f;
            y[i] = simt_to_bf16(value);
        }
    }
}

/* One head of one row: normed where there is a norm, rotated where there are cosines, and written in bf16. */
SIMT_FUNCTION void split_head(const split_rows_arguments *a, const float *x, const float *norm, const float *cosines,
                              const float *sines, uint16_t *y) {
    float factor = 1.0f;
    if (norm != NULL) {
        float squares = 0.0f;
        for (uint32_t i = simt_lane(); i < a->head_dim; i += SIMT_WARP)
            squares = simt_multiply_add(x[i], x[i], squares);
        factor = simt_reciprocal_sqrt(simt_add(reduce_warp_sum(squares) / (float)a->head_dim, a->eps));
    }
    uint32_t rotated = cosines != NULL ? a->rotary_dim : 0, half = rotated / 2;
    for (uint32_t i = simt_lane(); i < half; i += SIMT_WARP) {
        float low = x[i], high = x[i + half];
        if (norm != NULL) {
            low = simt_multiply(simt_multiply(low, factor), norm[i]);
            high = simt_multiply(simt_multiply(high, factor), norm[i + half]);
        }
        y[i] = simt_to_bf16(simt_add(simt_multiply(low, cosines[i]), -simt_multiply(high, sines[i])));
        y[i + half] = simt_to_bf16(simt_add(simt_multiply(high, cosines[i]), simt_multiply(low, sines[i])));
    }
    for (uint32_t i = rotated + simt_lane(); i < a->head_dim; i += SIMT_WARP) {
        float value = norm != NULL ? simt_multiply(simt_multiply(x[i], factor), norm[i]) : x[i];
        y[i] = simt_to_bf16(value);
    }
}

SIMT_FUNCTION void split_rows(const split_rows_arguments *a) {
    uint32_t heads = a->query_heads + 2 * a->kv_heads, group = a->query_heads / a->kv_heads;
    uint64_t count = (uint64_t)a->row_count * heads,
             warps = (uint64_t)simt_block_count() * simt_thread_count() / SIMT_WARP;
    uint64_t warp = (uint64_t)simt_block() * (simt_thread_count() / SIMT_WARP) + simt_warp();
    for (uint64_t i = warp; i < count; i += warps) {
        uint32_t row = (uint32_t)(i / heads), head = (uint32_t)(i % heads);
        const float *x = a->qkv + row * a->qkv_stride + (uint64_t)head * a->head_dim;
        const float *cosines = a->cosines + (uint64_t)row * (a->rotary_dim / 2);
        const float *sines = a->sines + (uint64_t)row * (a->rotary_dim / 2);
        if (head < a->query_heads) {
            uint64_t place = ((uint64_t)(head / group) * a->row_count + row) * group + head % group;
            uint16_t *y = a->queries + place * a->query_stride;
            split_head(a, x, a->query_norm, cosines, sines, y);
            for (uint32_t k = a->head_dim + simt_lane(); k < a->query_stride; k += SIMT_WARP) y[k] = 0;
        } else {
            uint32_t kv_head = (head - a->query_heads) % a->kv_heads;
            bool is_value = head >= a->query_heads + a->kv_heads;
            uint16_t *y = (is_value ? a->values : a->keys) + ((uint64_t)row * a->kv_heads + kv_head) * a->head_dim;
            split_head(a, x, is_value ? NULL : a->key_norm, is_value ? NULL : cosines, sines, y);
        }
    }
}

/* The thread's number in the grid, and how many there are. */
SIMT_FUNCTION uint64_t grid_thread(void) {
    return (uint64_t)simt_block() * simt_thread_count() + simt_thread();
}
SIMT_FUNCTION uint64_t grid_threads(void) {
    return (uint64_t)simt_block_count() * simt_thread_count();
}

SIMT_FUNCTION void silu_multiply(const silu_multiply_arguments *a) {
    uint64_t count = (uint64_t)a->row_count * a->width;
    for (uint64_t i = grid_thread(); i < count; i += grid_threads()) {
        uint64_t row = i / a->width;
        uint32_t column = (uint32_t)(i % a->width);
        const float *gate = a->gate_up + row * a->gate_up_stride + (uint64_t)(column / 64) * 128 + column % 64;
        float value = simt_multiply(gate[0] / simt_add(1.0f, simt_exp(-gate[0])), gate[64]);
        a->output[row * a->output_stride + column] = simt_to_bf16(value);
    }
}

SIMT_FUNCTION void add_bias(const add_bias_arguments *a) {
    uint64_t count = (uint64_t)a->row_count * a->width;
    for (uint64_t i = grid_thread(); i < count; i += grid_threads()) {
        float *place = a->output + i / a->width * a->output_stride + i % a->width;
        *place = simt_add(*place, a->bias[i % a->width]);
    }
}

/* Shared memory: a reduce_best a warp. */
SIMT_FUNCTION void logits_summary(const logits_summary_arguments *a) {
    for (uint32_t row = simt_block(); row < a->row_count; row += simt_block_count()) {
        const float *logits = a->logits + row * a->stride;
        reduce_best best;
        best.value = -simt_infinity();
        best.index = UINT32_MAX;
        for (uint32_t i = simt_thread(); i < a->count; i += simt_thread_count()) {
            reduce_best other;
            other.value = logits[i];
            other.index = i;
            if (reduce_is_better(best, other)) best = other;
        }
        best = reduce_argmax(best, (reduce_best *)simt_shared());
        float sum = 0.0f;
        for (uint32_t i = simt_thread(); i < a->count; i += simt_thread_count())
            sum = simt_add(sum, simt_exp(simt_add(logits[i], -best.value)));
        sum = reduce_sum(sum, (float *)simt_shared());
        if (simt_thread() == 0) {
            if (a->argmax != NULL) a->argmax[row] = best.index;
            if (a->max != NULL) a->max[row] = best.value;
            if (a->log_sum_exp != NULL) a->log_sum_exp[row] = simt_add(best.value, simt_log(sum));
        }
    }
}

SIMT_FUNCTION void unpack(const unpack_arguments *a) {
    uint64_t count = (uint64_t)a->n * a->k;
    for (uint64_t i = grid_thread(); i < count; i += grid_threads()) {
        uint32_t n = (uint32_t)(i / a->k), k = (uint32_t)(i % a->k), first = n / 64 * 64;
        uint32_t width = a->n_padded - first < 64 ? a->n_padded - first : 64;
        uint64_t place = (uint64_t)first * a->k_padded + (uint64_t)(k / 2) * width * 2 + (n - first) * 2 + k % 2;
        a->rows[n * a->row_stride + k] = a->packed[place];
    }
}

/* Eight loads of a thread are on their way at once. */
SIMT_FUNCTION void read_all(const read_all_arguments *a) {
    const simt_vector *from = (const simt_vector *)a->from;
    uint64_t count = a->bytes / sizeof(simt_vector), threads = grid_threads();
    uint32_t mixed = 0;
    uint64_t i = grid_thread();
    for (; i + 7 * threads < count; i += 8 * threads) {
        simt_vector v[8];
        SIMT_UNROLL
        for (uint32_t k = 0; k < 8; k++) v[k] = from[i + k * threads];
        SIMT_UNROLL
        for (uint32_t k = 0; k < 8; k++) mixed ^= v[k].words[0] ^ v[k].words[1] ^ v[k].words[2] ^ v[k].words[3];
    }
    for (; i < count; i += threads) mixed ^= from[i].words[0] ^ from[i].words[1] ^ from[i].words[2] ^ from[i].words[3];
    if (mixed == 0x9e3779b9u) *a->result = mixed;
}

#endif
