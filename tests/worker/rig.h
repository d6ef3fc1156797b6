/* rig.h - a model directory opened with everything that a worker is given: weights, kernels, pool and an engine to
 * attend with.
 *
 * Every call fails the running test when it cannot do what it says. */
#ifndef TESTS_WORKER_RIG_H
#define TESTS_WORKER_RIG_H

#include "attention-node/engine.h"
#include "kernels/device.h"
#include "model/config.h"
#include "model/weights.h"
#include "worker/forward.h"
#include "worker/worker.h"

typedef struct rig_options {
    hd_dtype dtype; /* of weights and KV */
    unsigned threads;
    uint64_t hot_bytes, warm_bytes;
    uint32_t rows_max, sequences_max;
    kernel_queue *queue;    /* of a device that attends and computes; NULL: the pool */
    collective *collective; /* of several processes that have the weights together; NULL: this one has them all */
} rig_options;

typedef struct rig {
    rig_options options;
    model_config *model;
    model_weights *weights;
    const kernel_ops *kernels;
    hd_pool *pool;
    ranks *ranks; /* of rank 0 */
    attention *attention;
    attention_layer_table layers;
} rig;

void rig_open(rig *rig, const char *directory, const rig_options *options);
void rig_close(rig *rig);

/* A forward pass on the rig; the caller closes it. */
forward *rig_forward(const rig *rig, uint32_t rows_max, uint32_t spans_max);

/* Runs chunks of one sequence through a forward pass of its own and returns the logits of every position, [count,
 * vocabulary_size], for the caller to free. rope_tokens: the length that fixes dynamic rope. */
float *rig_logits(const rig *rig, const uint32_t *token_ids, uint32_t count, uint32_t chunk, uint64_t rope_tokens);

/* A whole file; the caller frees it. */
void *rig_read_file(const char *directory, const char *name, size_t *bytes);

#endif
