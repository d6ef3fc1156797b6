/* matrix.h - the packed right-hand side of every product: weights, K pages and V pages.
 *
 * A packed matrix is B of C[m, n] = sum over k of A[m, k] * B[k, n], in the order in which the microkernels read it:
 *
 *     bf16:  panel (64 columns) -> pair of k -> column -> (B[2i, n], B[2i+1, n])
 *            which is the operand order of vdpbf16ps and tdpbf16ps
 *     int8:  the same with one byte an element, and a scale per column: B[k, n] = scale[n] * byte, byte in [-127, 127]
 *     f32:   panel (64 columns) -> k -> column
 *
 *   1. k is padded with zeros to a multiple of 32, n to a multiple of 16; the last panel is as narrow as that leaves
 *      it.
 *   2. Panels are contiguous, so panel p starts at p * 64 * k_padded elements, and a slice of panels is one run of
 *      memory.
 *   3. A page is two such matrices: keys with n = 128 positions and k = key_dim, values with n = value_dim and k =
 *      128 positions. One microkernel therefore serves weights, QK and PV, and a row's bits never depend on how many
 *      rows run beside it.
 * Threads: pure functions on the caller's memory. */
#ifndef KERNELS_MATRIX_H
#define KERNELS_MATRIX_H

#include <stddef.h>
#include <stdint.h>

#include "base/memory.h"
#include "base/status.h"
#include "kernels/dtype.h"

#define KERNEL_PANEL 64u /* columns of a full panel */
#define KERNEL_N_ALIGN 16u
#define KERNEL_K_ALIGN 32u

typedef struct kernel_matrix {
    hd_dtype dtype;              /* HD_F32, HD_BF16 or HD_INT8 */
    uint32_t n, k;               /* columns (outputs) and depth (inputs), as in the model */
    uint32_t n_padded, k_padded; /* multiples of 16 and 32 */
    void *data;                  /* kernel_matrix_bytes(...), 64-byte aligned */
    float *scales;               /* int8: [n_padded]; else NULL */
} kernel_matrix;

size_t kernel_matrix_bytes(hd_dtype dtype, uint32_t n, uint32_t k); /* of data; scales are n_padded floats more */
uint32_t kernel_matrix_panels(const kernel_matrix *matrix);
/* Element type of A for this matrix: HD_F32 for f32, HD_BF16 for bf16 and int8. */
hd_dtype kernel_matrix_input_dtype(const kernel_matrix *matrix);

/* Elements from row to row of an input of depth k that every table reads well: k_padded, made an odd number of cache
 * lines, since rows that lie a multiple of 4 KiB apart share one set of the first-level cache, and sixteen of them
 * do not fit there. */
size_t kernel_input_stride(hd_dtype input_dtype, uint32_t k);

/* Sets the shape; data (and scales) are the caller's memory. Zeroes the padding only, so that weights are touched
 * once, by whoever packs them; a page's memory, which is packed token by token, is zeroed by its owner. */
void kernel_matrix_init(kernel_matrix *matrix, hd_dtype dtype, uint32_t n, uint32_t k, void *data, float *scales);

/* Packs row_count rows of a row-major [n, k] source (Hugging Face's weight layout; row_stride in elements) as the
 * columns first_column... source_dtype is HD_F32, HD_BF16 or HD_F16. Several threads may pack disjoint columns of
 * one matrix. */
void kernel_matrix_pack(kernel_matrix *matrix, uint32_t first_column, const void *source, hd_dtype source_dtype,
                        size_t row_stride, uint32_t row_count);

/* Packs gate and up of a gated MLP for KERNEL_SWIGLU: panels alternate, 64 columns of gate, then the same 64 columns
 * of up. The matrix has n = 2 * HD_ALIGN_UP(width, 64); missing columns are zero. */
void kernel_matrix_pack_gate_up(kernel_matrix *matrix, const void *gate, const void *up, hd_dtype source_dtype,
                                uint32_t width);

/* One element back, as float; for tests. */
float kernel_matrix_get(const kernel_matrix *matrix, uint32_t k, uint32_t n);

#endif
