/* elementwise.h - the operations that touch each number once; see ops.h. */
#ifndef KERNELS_CPU_ELEMENTWISE_H
#define KERNELS_CPU_ELEMENTWISE_H

#include "kernels/cpu/vector.h"
#include "kernels/ops.h"

#define table_rmsnorm TABLE_NAME(table_rmsnorm)
#define table_rope TABLE_NAME(table_rope)
#define table_convert TABLE_NAME(table_convert)
#define table_add_scaled TABLE_NAME(table_add_scaled)
#define table_logits_summary TABLE_NAME(table_logits_summary)
void table_rmsnorm(const float *input, size_t input_stride, const float *weight, float eps, uint32_t row_count,
                   uint32_t width, hd_dtype dtype, void *output, size_t output_stride);
void table_rope(float *row, uint32_t head_count, uint32_t head_dim, uint32_t rotary_dim, const float *cosines,
                const float *sines);
void table_convert(const void *input, hd_dtype input_dtype, void *output, hd_dtype output_dtype, size_t count);
void table_add_scaled(float *y, const float *x, float factor, size_t count);
void table_logits_summary(const float *logits, uint32_t count, uint32_t *argmax, float *max, float *log_sum_exp);

#endif
