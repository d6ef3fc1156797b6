/* decoder.h - one sequence at a time through a model, without a server: a prompt in, then one token after another, with
 * the logits of each step.
 *
 * Threads: the calling thread is the step thread; the pool must be free. */
#ifndef BENCH_DECODER_H
#define BENCH_DECODER_H

#include "attention-node/attention.h"
#include "base/threads.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/weights.h"

typedef struct decoder decoder;

typedef struct decoder_config { /* lent */
    const model_config *model;
    const model_weights *weights;
    const kernel_ops *kernels;
    hd_pool *pool;
    attention *attention;
    uint32_t batch_tokens_max; /* rows of a step */
} decoder_config;

hd_status decoder_open(const decoder_config *config, decoder **out);
void decoder_close(decoder *decoder); /* accepts NULL; ends the sequence */

/* Ends the sequence before (its blocks stay as prefix cache) and prefills a new one. logits are of the token behind the
 * prompt; they hold until the next call. */
hd_status decoder_start(decoder *decoder, const uint32_t *prompt, uint64_t prompt_count, uint64_t tokens_max,
                        const char *selection, const float **logits, hd_error *error);
/* Appends a token; logits are of the one behind it. */
hd_status decoder_step(decoder *decoder, uint32_t token, const float **logits, hd_error *error);

#endif
