/* sample_arguments.h - what the sampling kernel is told. Pointers are the device's.
 *
 * The meaning is worker/sampler.h's, step by step; the uniform number behind a draw is made by the caller, as a
 * function of seed and position, so that a draw can be made again anywhere. */
#ifndef KERNELS_CUDA_SAMPLE_ARGUMENTS_H
#define KERNELS_CUDA_SAMPLE_ARGUMENTS_H

#include <stdint.h>

#define SAMPLE_THREADS 512u
#define SAMPLE_GREEDY_BELOW 1e-6f

/* What is done to one logit before the draw; a token comes at most once in a row's changes. */
typedef struct sample_change {
    uint32_t token_id;
    float bias;
    uint32_t is_counted;   /* in prompt or answer: repetition_penalty */
    uint32_t answer_count; /* frequency and presence */
    uint32_t is_forbidden;
} sample_change;

typedef struct sample_row {
    uint32_t first_change, change_count;
    float repetition_penalty, frequency_penalty, presence_penalty;
    float temperature, top_p, min_p;
    uint32_t top_k; /* 0: all */
    double uniform; /* in [0, 1) */
} sample_row;

typedef struct sample_arguments {
    float *logits; /* [row][stride]; changed in place */
    uint64_t stride;
    uint32_t row_count, count;
    const sample_row *rows;
    const sample_change *changes;
    uint32_t *token_ids; /* [row] */
} sample_arguments;

#endif
