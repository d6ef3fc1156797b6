/* row_arguments.h - what the kernels over rows, pages and logits are told. Pointers are the device's. */
#ifndef KERNELS_CUDA_ROW_ARGUMENTS_H
#define KERNELS_CUDA_ROW_ARGUMENTS_H

#include <stdint.h>

#define ROW_THREADS 256u
#define ROW_NOT_STORED UINT64_MAX

/* y = x / sqrt(mean(x^2) + eps) * weight; a block a row. */
typedef struct rmsnorm_arguments {
    const float *input;
    uint64_t input_stride, output_stride;
    const float *weight;
    float eps;
    uint32_t row_count, width;
    uint16_t *output; /* bf16, zeros up to a multiple of 32 columns */
} rmsnorm_arguments;

/* Norm and rotation of queries and keys, and the heads to where attention wants them; a warp a head of a row. */
typedef struct split_rows_arguments {
    const float *qkv; /* [row][qkv_stride]: query heads, key heads, value heads */
    uint64_t qkv_stride;
    const float *query_norm, *key_norm; /* [head_dim], or both NULL */
    float eps;
    const float *cosines, *sines; /* [row][rotary_dim / 2] */
    uint32_t row_count, query_heads, kv_heads, head_dim, rotary_dim;
    uint32_t query_stride;   /* head_dim padded to a multiple of 32, with zeros */
    uint16_t *queries;       /* [kv head][row][query head of the group][query_stride] */
    uint16_t *keys, *values; /* [row][kv head][head_dim] */
} split_rows_arguments;

/* output = silu(gate) * up of panels of 64 columns that alternate (matrix.h). */
typedef struct silu_multiply_arguments {
    const float *gate_up;
    uint64_t gate_up_stride, output_stride;
    uint32_t row_count, width; /* of the output: a multiple of 64 */
    uint16_t *output;
} silu_multiply_arguments;

/* output += bias, a row vector: where the product's library has no such epilogue. */
typedef struct add_bias_arguments {
    float *output;
    uint64_t output_stride;
    uint32_t row_count, width;
    const float *bias;
} add_bias_arguments;

/* New tokens into pages of rows (attend_arguments.h). */
typedef struct page_store_arguments {
    const uint64_t *offsets;       /* [row]: bytes from keys_to to the token's place for KV head 0, or ROW_NOT_STORED */
    const uint16_t *keys, *values; /* [row][kv head][dim] */
    uint32_t row_count, kv_heads, dim;
    unsigned char *keys_to, *values_to;
    uint64_t head_stride;
} page_store_arguments;

/* The least and the largest of each dimension of a page's keys; a warp a page and head. */
typedef struct page_summary_page {
    uint64_t offset;
    uint32_t count, summary; /* tokens from its first on; where its summary goes */
} page_summary_page;

typedef struct page_summary_arguments {
    const page_summary_page *pages;
    uint32_t page_count, kv_heads, dim;
    const unsigned char *keys;
    uint64_t head_stride;
    uint16_t *summaries; /* [summary][kv head][least, largest][dim] */
} page_summary_arguments;

/* An upper bound of q . k over a page's keys, the largest of the group's query heads (after Quest, Tang et al. 2024); a
 * warp a row, head and page. */
typedef struct page_score_arguments {
    const uint16_t *queries;
    uint64_t query_head_stride;
    uint32_t query_stride, group_size, row_count, kv_heads, dim;
    const uint16_t *summaries;
    uint32_t first_summary, summary_count;
    float scale;
    float *scores; /* [row][kv head][summary_count] */
} page_score_arguments;

/* The largest logit, its first index, and log(sum(exp)); a block a row. */
typedef struct logits_summary_arguments {
    const float *logits;
    uint64_t stride;
    uint32_t row_count, count;
    uint32_t *argmax; /* [row], each of the three or NULL */
    float *max, *log_sum_exp;
} logits_summary_arguments;

/* Packed bf16 weights (matrix.h) to rows [n][k], which is what the product's library reads. */
typedef struct unpack_arguments {
    const uint16_t *packed;
    uint32_t n, k, n_padded, k_padded;
    uint16_t *rows;
    uint64_t row_stride;
} unpack_arguments;

/* Reads memory and keeps nothing of it, in 16-byte pieces: what bandwidth is measured with. */
typedef struct read_all_arguments {
    const void *from;
    uint64_t bytes;   /* a multiple of 16 */
    uint32_t *result; /* written only if all words together make a number that they hardly make */
} read_all_arguments;

#endif
