/* matmul.h - products with packed weights; see ops.h. */
#ifndef KERNELS_CPU_MATMUL_H
#define KERNELS_CPU_MATMUL_H

#include "kernels/cpu/vector.h"
#include "kernels/ops.h"

enum {
    MATMUL_ROWS = 512,  /* rows that share one reading of the weights */
    MATMUL_PANELS = 4,  /* panels that share one reading of the rows */
    MATMUL_DEPTH = 512, /* of k at once: a chunk of one panel, 64 KiB in bf16 */
};
#define MATMUL_SUM_BYTES ((size_t)MATMUL_PANELS * MATMUL_ROWS * KERNEL_PANEL * sizeof(float))
#define MATMUL_CHUNK_BYTES ((size_t)MATMUL_DEPTH * KERNEL_PANEL * sizeof(uint16_t))
#define MATMUL_SCRATCH_BYTES (MATMUL_SUM_BYTES + 2 * MATMUL_CHUNK_BYTES)

#define table_matmul TABLE_NAME(table_matmul)
void table_matmul(const kernel_matmul *call, uint32_t first_panel, uint32_t panel_count);

/* One row of A, k deep, times `width` columns of int8 weights; c as in a tile_product, with its bits. Only the amx
 * table has it. */
void row_multiply_amx(const uint16_t *a, const int8_t *b, uint32_t k, uint32_t width, float *c, bool adds,
                      const void *ahead);

#endif
