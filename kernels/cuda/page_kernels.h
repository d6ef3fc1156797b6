/* page_kernels.h - the kernels that write pages and look over them (row_arguments.h). */
#ifndef KERNELS_CUDA_PAGE_KERNELS_H
#define KERNELS_CUDA_PAGE_KERNELS_H

#include "kernels/cuda/reduce.h"
#include "kernels/cuda/row_arguments.h"

SIMT_FUNCTION void page_store(const page_store_arguments *a) {
    uint32_t chunks = a->dim / 8; /* of 16 bytes */
    uint64_t count = (uint64_t)a->row_count * a->kv_heads * chunks;
    uint64_t threads = (uint64_t)simt_block_count() * simt_thread_count();
    for (uint64_t i = (uint64_t)simt_block() * simt_thread_count() + simt_thread(); i < count; i += threads) {
        uint32_t chunk = (uint32_t)(i % chunks), head = (uint32_t)(i / chunks % a->kv_heads);
        uint64_t row = i / chunks / a->kv_heads, offset = a->offsets[row];
        if (offset != ROW_NOT_STORED) {
            uint64_t from = (row * a->kv_heads + head) * a->dim + chunk * 8,
                     to = offset + head * a->head_stride + chunk * 16;
            *(simt_vector *)(a->keys_to + to) = *(const simt_vector *)(a->keys + from);
            *(simt_vector *)(a->values_to + to) = *(const simt_vector *)(a->values + from);
        }
    }
}

SIMT_FUNCTION uint64_t page_warp(void) {
    return (uint64_t)simt_block() * (simt_thread_count() / SIMT_WARP) + simt_warp();
}
SIMT_FUNCTION uint64_t page_warps(void) {
    return (uint64_t)simt_block_count() * (simt_thread_count() / SIMT_WARP);
}

SIMT_FUNCTION void page_summary(const page_summary_arguments *a) {
    for (uint64_t i = page_warp(); i < (uint64_t)a->page_count * a->kv_heads; i += page_warps()) {
        const page_summary_page *page = &a->pages[i / a->kv_heads];
        uint32_t head = (uint32_t)(i % a->kv_heads);
        const unsigned char *keys = a->keys + page->offset + head * a->head_stride;
        uint16_t *to = a->summaries + ((uint64_t)page->summary * a->kv_heads + head) * 2 * a->dim;
        for (uint32_t column = simt_lane(); column < a->dim; column += SIMT_WARP) {
            float least = simt_infinity(), largest = -simt_infinity();
            for (uint32_t token = 0; token < page->count; token++) {
                float key = simt_from_bf16(((const uint16_t *)(keys + (uint64_t)token * a->dim * 2))[column]);
                least = -simt_max(-least, -key);
                largest = simt_max(largest, key);
            }
            to[column] = simt_to_bf16(least); /* exact: they are keys */
            to[a->dim + column] = simt_to_bf16(largest);
        }
    }
}

SIMT_FUNCTION void page_score(const page_score_arguments *a) {
    uint64_t count = (uint64_t)a->row_count * a->kv_heads * a->summary_count;
    for (uint64_t i = page_warp(); i < count; i += page_warps()) {
        uint32_t page = (uint32_t)(i % a->summary_count), head = (uint32_t)(i / a->summary_count % a->kv_heads);
        uint64_t row = i / a->summary_count / a->kv_heads;
        const uint16_t *least = a->summaries + (((uint64_t)a->first_summary + page) * a->kv_heads + head) * 2 * a->dim;
        const uint16_t *largest = least + a->dim;
        const uint16_t *queries = a->queries + head * a->query_head_stride + row * a->group_size * a->query_stride;
        float best = -simt_infinity();
        for (uint32_t g = 0; g < a->group_size; g++) {
            float sum = 0.0f;
            for (uint32_t column = simt_lane(); column < a->dim; column += SIMT_WARP) {
                float q = simt_from_bf16(queries[g * a->query_stride + column]);
                float key = simt_from_bf16(q >= 0.0f ? largest[column] : least[column]);
                sum = simt_multiply_add(q, key, sum);
            }
            best = simt_max(best, simt_multiply(reduce_warp_sum(sum), a->scale));
        }
        if (simt_lane() == 0) a->scores[i] = best;
    }
}

#endif
