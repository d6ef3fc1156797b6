/* synthetic_steps.h - decode steps that ask made-up heads (synthetic_kv.h) what a model with them would ask, and how
 * far what they are answered is from exact attention.
 *
 * A model with random weights has queries that fit no keys. So what its layers submit is replaced: queries drift from
 * step to step, and the new token's key and value are of the same heads as all others.
 * Threads: as attention.h. */
#ifndef BENCH_SYNTHETIC_STEPS_H
#define BENCH_SYNTHETIC_STEPS_H

#include "attention-node/engine_bench.h"
#include "bench/statistics.h"
#include "bench/synthetic_kv.h"
#include "bench/timed_attention.h"
#include "model/config.h"

typedef struct synthetic_steps {
    synthetic_kv *kv;
    const kernel_ops *kernels;
    uint32_t layers, kv_heads, group_size, dim, rows;
    uint64_t position; /* of the rows of the step */
    sample errors;     /* of checked steps' outputs, relative L2: of every layer the queries of one KV head */
    hd_status status;  /* of comparing */
} synthetic_steps;

/* HD_UNSUPPORTED: of heads of this size there are none. */
hd_status synthetic_steps_open(synthetic_steps *self, const model_config *model, const kernel_ops *kernels);
void synthetic_steps_close(synthetic_steps *self); /* accepts a zeroed one */

engine_fill_source synthetic_steps_source(synthetic_steps *self);
/* The next step through `timed` is of `rows` sequences that have `position` tokens, all filled from the source. */
void synthetic_steps_next(synthetic_steps *self, timed_attention *timed, uint32_t rows, uint64_t position,
                          bool is_checked);
/* Steps are a model's own again. */
void synthetic_steps_end(timed_attention *timed);

#endif
