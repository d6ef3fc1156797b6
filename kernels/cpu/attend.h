/* attend.h - attention over the pages of one leaf group; see ops.h. */
#ifndef KERNELS_CPU_ATTEND_H
#define KERNELS_CPU_ATTEND_H

#include "kernels/cpu/vector.h"
#include "kernels/ops.h"

enum {
    ATTEND_ROWS = 32,  /* rows that share one reading of a page from the second-level cache */
    ATTEND_STAGES = 3, /* pages whose scores or weights exist at a time */
    ATTEND_STAGE_FLOATS = ATTEND_ROWS * HD_BLOCK_TOKENS,
    ATTEND_SCRATCH_BYTES = (ATTEND_STAGES * ATTEND_STAGE_FLOATS + ATTEND_ROWS * VEC_LANES) * sizeof(float),
};

#define table_attend TABLE_NAME(table_attend)
#define table_merge TABLE_NAME(table_merge)
#define table_finish TABLE_NAME(table_finish)
void table_attend(const kernel_attend *call);
void table_merge(const kernel_partial *into, const kernel_partial *from, uint32_t row_count, uint32_t value_dim);
void table_finish(const kernel_partial *partial, uint32_t row_count, uint32_t value_dim, const float *sink_logits,
                  hd_dtype dtype, void *output, size_t output_stride, float *lse);

#endif
