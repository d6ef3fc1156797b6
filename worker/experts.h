/* experts.h - the mixture of experts of one layer, as Qwen3Moe and Mixtral have it.
 *
 * Each row goes to the experts_per_token experts of the highest router probability (softmax over all experts; of
 * equals the lower index); their weights are those probabilities, divided by their sum where the model normalises
 * them. Rows are gathered by expert, so an expert's matrices are read once a step, and a row adds its experts'
 * outputs in ascending order of expert: its bits do not depend on what else is in the batch.
 * Threads: experts_run is called by every thread of one pool run. */
#ifndef WORKER_EXPERTS_H
#define WORKER_EXPERTS_H

#include "base/threads.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/weights.h"

typedef struct experts experts;

/* All memory for steps of up to rows_max rows is taken here. input_dtype: of the normed rows. */
hd_status experts_open(const model_config *model, hd_dtype input_dtype, uint32_t rows_max, hd_pool *pool,
                       const kernel_ops *kernels, experts **out);
void experts_close(experts *experts); /* accepts NULL */

/* Before the pool run, on the thread that starts it. normed: [row_count, normed_stride]. */
void experts_prepare(experts *experts, const model_layer *layer, const void *normed, size_t normed_stride,
                     uint32_t row_count);

/* Computes all experts' outputs; a barrier is behind it when it returns. */
void experts_run(experts *experts, unsigned thread, unsigned thread_count, void *scratch);

/* Adds row's outputs to its residual. */
void experts_add(const experts *experts, uint32_t row, float *residual);

#endif
