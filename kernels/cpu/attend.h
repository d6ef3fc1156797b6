/* attend.h - attention over the pages of one leaf group; see ops.h. */
#ifndef KERNELS_CPU_ATTEND_H
#define KERNELS_CPU_ATTEND_H

#include <math.h>

#include "kernels/cpu/widen.h"

enum {
    ATTEND_ROWS = 32,  /* rows that share one reading of a page from the second-level cache */
    ATTEND_STAGES = 3, /* pages whose scores or weights exist at a time */
    ATTEND_STAGE_FLOATS = ATTEND_ROWS * HD_BLOCK_TOKENS,
    ATTEND_PLAIN_SCRATCH_BYTES = (ATTEND_STAGES * ATTEND_STAGE_FLOATS + ATTEND_ROWS * VEC_LANES) * sizeof(float),
    ATTEND_AMX_ROWS = 256, /* rows that share one reading of a page from memory */
    ATTEND_AMX_SCRATCH_BYTES = 48 << 10,
    ATTEND_WIDENED = /* where a page of int8 is widened to: its keys, and behind them its values */
    ATTEND_PLAIN_SCRATCH_BYTES > ATTEND_AMX_SCRATCH_BYTES ? ATTEND_PLAIN_SCRATCH_BYTES : ATTEND_AMX_SCRATCH_BYTES,
    ATTEND_SCRATCH_BYTES = ATTEND_WIDENED + 2 * WIDENED_BYTES,
};

/* count scores, a multiple of VEC_LANES: from q.k to cap * tanh(s / cap) in base 2, through e^(-2|s| / cap), which
 * cannot overflow. */
static inline void attend_cap_scores(float *scores, uint32_t count, float scale, float cap) {
    vec inner = vec_set(2.0f * LOG2_E * scale / cap), outer = vec_set(cap * LOG2_E), one = vec_set(1.0f);
    for (uint32_t i = 0; i < count; i += VEC_LANES) {
        vec score = vec_load(scores + i);
        vec power = vec_exp2(vec_sub(vec_set(0.0f), vec_mul(vec_abs(score), inner)));
        vec tangent = vec_div(vec_sub(one, power), vec_add(one, power));
        vec_store(scores + i, vec_with_sign(vec_mul(tangent, outer), score));
    }
}

/* Minus infinity outside [first, end), which may lie outside the scores. */
static inline void attend_hide_scores(float *scores, uint32_t count, int first, int end) {
    vec nothing = vec_set(-INFINITY);
    for (int i = 0; i < (int)count; i += VEC_LANES)
        vec_store(scores + i, vec_select(vec_load(scores + i), nothing, first - i, end - i));
}

#define table_attend TABLE_NAME(table_attend)
#define table_merge TABLE_NAME(table_merge)
#define table_finish TABLE_NAME(table_finish)
void table_attend(const kernel_attend *call);
void attend_amx(const kernel_attend *call); /* bf16; only the amx table has it */
void table_merge(const kernel_partial *into, const kernel_partial *from, uint32_t row_count, uint32_t value_dim);
void table_finish(const kernel_partial *partial, uint32_t row_count, uint32_t value_dim, const float *sink_logits,
                  hd_dtype dtype, void *output, size_t output_stride, float *lse);

#endif
