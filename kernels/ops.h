/* ops.h - the table of operations that a forward pass and an attention node are made of.
 *
 * Implementations: cpu/ (portable, avx2, avx512, avx512bf16, amx), chosen once at start; cuda/ with the same
 * meaning. "portable" is plain C, always built; its answers are the definition of right, and every other table
 * agrees with it within the tolerance stated beside its test.
 *
 *   1. Bits. Within one table, what a row gets is a function of that row and of B alone: never of the number of
 *      rows, of the split over threads, or of what else is in the call. Sums over k run in ascending k in one
 *      accumulator per output (or in the fixed order of the table's instruction). A page's unused positions are
 *      finite, and masked positions contribute exactly nothing.
 *   2. Softmax of attention is kept in partial form (out, max, sum): out = sum of exp(s - max) * v, sum = sum of
 *      exp(s - max), both fp32; lse = max + log(sum). max is a number within 8 of the largest s, which is what the
 *      exponentials refer to. The empty partial is (0, -inf, 0). merge(a, empty) leaves a's bits alone.
 *   3. No operation allocates; scratch is the caller's, one per thread, KERNEL scratch_bytes long, 64-byte aligned.
 * Threads: every operation runs on the calling thread, and several threads may run operations on disjoint outputs. */
#ifndef KERNELS_OPS_H
#define KERNELS_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/dtype.h"
#include "kernels/matrix.h"
#include "kernels/scan.h"

#define HD_BLOCK_TOKENS 128u /* positions of a block, and of a page */
#define HD_GROUP_BLOCKS 8u   /* blocks of the leaf of the canonical merge tree: 1,024 positions */

typedef enum {
    KERNEL_STORE,  /* output = product + bias, f32 */
    KERNEL_ADD,    /* output += product + bias, f32: the residual stream */
    KERNEL_SWIGLU, /* gate/up panels in pairs; output[m, i] = silu(gate_i) * up_i, [m, n / 2] in the input dtype */
} kernel_epilogue;

typedef struct kernel_matmul {
    const kernel_matrix *weights;
    const void *input;    /* [row_count, k_padded] in kernel_matrix_input_dtype; zero past k; rows 64-byte aligned */
    size_t input_stride;  /* elements from row to row, >= k_padded, a multiple of 32; best is kernel_input_stride */
    uint32_t row_count;   /* >= 1 */
    void *output;         /* float, or the input dtype for KERNEL_SWIGLU */
    size_t output_stride; /* elements; >= n (KERNEL_SWIGLU: n / 2). Columns past n are not written */
    const float *bias;    /* [n] or NULL; not with KERNEL_SWIGLU */
    kernel_epilogue epilogue;
    void *scratch;
} kernel_matmul;

/* A page's keys, and its values, are a packed matrix (matrix.h). In int8, 32 elements of a token share a power of two
 * (MXINT8 of the OCP Microscaling formats, 2023), and the matrix is followed by these: uint16_t [groups of 32][128
 * tokens], the exponent in bf16's bits plus 112, 0 where all bytes are. An element, byte * 2^exponent, is a bf16 as it
 * is, so whoever reads pages reads the same numbers. A token's bytes are a function of the token alone: a page that is
 * being filled is read as it will always be. */
typedef struct kernel_page_shape {
    hd_dtype dtype;              /* HD_F32, HD_BF16 or HD_INT8 */
    uint32_t key_dim, value_dim; /* multiples of 16; of int8 at most KERNEL_INT8_DIM_MAX */
} kernel_page_shape;

#define KERNEL_INT8_DIM_MAX 256u
#define KERNEL_INT8_GROUP 32u /* elements that share an exponent */

/* The same page as its elements are read. */
static inline kernel_page_shape kernel_page_shape_read(const kernel_page_shape *shape) {
    return (kernel_page_shape){kernel_row_dtype(shape->dtype), shape->key_dim, shape->value_dim};
}

size_t kernel_page_key_bytes(const kernel_page_shape *shape);
size_t kernel_page_value_bytes(const kernel_page_shape *shape);

/* Rows of bf16 become what is read back of a page that they were stored in; dim elements each, stride from row to row.
 * */
void kernel_page_round_rows(const kernel_page_shape *shape, const uint16_t *rows, size_t stride, uint32_t count,
                            uint32_t dim, uint16_t *rounded);

/* Tokens [first, first + count) of a page's keys or values as rows of bf16, one after another. */
void kernel_page_rows(const kernel_page_shape *shape, const void *page, bool is_keys, uint32_t first, uint32_t count,
                      uint16_t *rows);

/* Token `slot` of a page's keys or values to slot `to` of a page of kernel_page_shape_read; and a key from a row. */
void kernel_page_copy_key(const kernel_page_shape *shape, const void *keys, uint32_t slot, void *to_keys, uint32_t to);
void kernel_page_copy_value(const kernel_page_shape *shape, const void *values, uint32_t slot, void *to_values,
                            uint32_t to);
void kernel_page_put_key(const kernel_page_shape *shape, const void *row, void *to_keys, uint32_t to);
/* A token row: a token's key and value one after the other, in the elements of its page, in int8 each followed by its
 * exponents. So one token is as few bytes as it has, in one piece. Rows are permutations of pages: the bits are the
 * same. */
size_t kernel_token_row_bytes(const kernel_page_shape *shape);
/* All tokens of a page as rows, one after another; and rows as a page, whose padding stays as it is. */
void kernel_token_rows_read(const kernel_page_shape *shape, const void *keys, const void *values, void *rows);
void kernel_token_rows_store(const kernel_page_shape *shape, const void *rows, void *keys, void *values);
/* The keys or the values of so many token rows as rows of bf16, one after another. */
void kernel_token_rows_part(const kernel_page_shape *shape, const void *rows, bool is_keys, uint32_t count,
                            uint16_t *part);

/* A token wherever it lies: as a token row, or at a slot of pages, and its key perhaps as a row of bf16 beside that. */
typedef struct kernel_token {
    const void *key_row; /* NULL: where the value is */
    const void *row;     /* NULL: in pages */
    const void *keys, *values;
    uint32_t slot;
} kernel_token;

/* Brings near what the next copy of a token's value will read. */
void kernel_page_prefetch_value(const kernel_page_shape *shape, const void *values, uint32_t slot);

/* A part of a page that a query may see: tokens [first, first + count) of it, at positions position, position + 1,
 * ... */
typedef struct kernel_span {
    const void *keys, *values; /* packed matrices of the page, data only */
    uint32_t first, count;
    uint64_t position;
} kernel_span;

typedef struct kernel_partial { /* of row_count rows */
    float *out;                 /* [row_count, out_stride] */
    size_t out_stride;          /* >= value_dim */
    float *max, *sum;           /* [row_count] */
} kernel_partial;

typedef struct kernel_attend {
    kernel_page_shape shape;
    float scale;               /* of q.k, usually 1 / sqrt(key_dim) */
    float soft_cap;            /* 0 for none; else s = soft_cap * tanh(s / soft_cap) */
    uint64_t window;           /* 0 for all; else a row at position p sees positions > p - window */
    const void *queries;       /* [row_count, query_stride] in kernel_row_dtype, 64-byte aligned, zero from key_dim to
                                * a multiple of 32 */
    size_t query_stride;       /* elements */
    const uint64_t *positions; /* [row_count]: a row sees positions <= its own */
    uint32_t row_count;
    const kernel_span *spans; /* of one leaf group, in ascending position; taken in this order */
    uint32_t span_count;
    const kernel_span *ahead; /* what is attended to next, and may be fetched meanwhile; or NULL */
    kernel_partial partial;   /* written, not accumulated */
    void *scratch;
} kernel_attend;

typedef struct kernel_ops {
    const char *name;
    bool (*is_supported)(void); /* on this machine, now */
    size_t scratch_bytes;       /* per thread, for any call */
    uint32_t attend_rows_best;  /* rows of one attend call that keep the arithmetic units busy in prefill */

    /* Columns of panels [first_panel, first_panel + panel_count); with KERNEL_SWIGLU both are even. */
    void (*matmul)(const kernel_matmul *call, uint32_t first_panel, uint32_t panel_count);

    void (*attend)(const kernel_attend *call);
    /* into = into merged with from; into covers the earlier positions. */
    void (*merge)(const kernel_partial *into, const kernel_partial *from, uint32_t row_count, uint32_t value_dim);
    /* Writes out / sum in dtype to output rows (stride in elements). sink_logits: one per row, joined to the sum
     * only, or NULL. lse: [row_count] or NULL. A row with nothing visible gives zeros and lse -inf. */
    void (*finish)(const kernel_partial *partial, uint32_t row_count, uint32_t value_dim, const float *sink_logits,
                   hd_dtype dtype, void *output, size_t output_stride, float *lse);

    /* Puts tokens into slots [slot, slot + count) of a page. keys and values are rows in kernel_row_dtype, strides in
     * elements. */
    void (*page_store)(const kernel_page_shape *shape, void *page_keys, void *page_values, uint32_t slot,
                       uint32_t count, const void *keys, size_t key_stride, const void *values, size_t value_stride);
    /* Puts tokens into slots 0 .. count - 1 of a page of kernel_page_shape_read. */
    void (*gather)(const kernel_page_shape *shape, const kernel_token *tokens, uint32_t count, void *to_keys,
                   void *to_values);

    /* y = x / sqrt(mean(x^2) + eps) * weight, per row; y in dtype, padded with zeros to a multiple of 32 columns
     * where output_stride leaves the room. In place is fine for f32. */
    void (*rmsnorm)(const float *input, size_t input_stride, const float *weight, float eps, uint32_t row_count,
                    uint32_t width, hd_dtype dtype, void *output, size_t output_stride);
    /* Rotates head_count heads of one row in place, halves form (x[i], x[i + rotary_dim / 2]), cosines and sines
     * [rotary_dim / 2]. */
    void (*rope)(float *row, uint32_t head_count, uint32_t head_dim, uint32_t rotary_dim, const float *cosines,
                 const float *sines);
    /* Converts count elements between f32, bf16 and f16 (round to nearest even). */
    void (*convert)(const void *input, hd_dtype input_dtype, void *output, hd_dtype output_dtype, size_t count);
    /* y += factor * x */
    void (*add_scaled)(float *y, const float *x, float factor, size_t count);
    /* Largest value, its first index (below count even where some are NaN), and log(sum(exp(x))) of a row of logits;
     * each output may be NULL. */
    void (*logits_summary)(const float *logits, uint32_t count, uint32_t *argmax, float *max, float *log_sum_exp);
    const kernel_scan *scan;
} kernel_ops;

const kernel_ops *kernel_ops_portable(void);
/* Every CPU table in ascending order of preference, whether supported here or not; for tests and benchmarks. */
size_t kernel_ops_list(const kernel_ops *const **tables);
/* The table of that name, else the one that HADAL_KERNELS names, else the best one here. HD_INVALID when the name is
 * unknown or needs what this machine lacks; the sentence lists the names that it has. */
hd_status kernel_ops_choose(const char *name_or_null, const kernel_ops **ops, hd_error *error);

#endif
