/* worker.h - a worker: the batching loop around the forward pass, with an attention to keep KV in.
 *
 * One step thread runs the loop: take what arrived, admit what fits, form a batch under the token budget (every
 * decode row first, then chunks of prefill, shortest first and none starving), run the forward pass, sample, hand out
 * tokens. What a worker alone knows of a sequence is nothing.
 * Threads: worker_open and worker_close from one thread; the worker_rpc it gives from any. */
#ifndef WORKER_WORKER_H
#define WORKER_WORKER_H

#include "attention-node/attention.h"
#include "base/metrics.h"
#include "base/threads.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/weights.h"
#include "proto/worker_rpc.h"
#include "worker/ranks.h"

typedef struct worker worker;

typedef struct worker_config {
    const char *model_name;
    const model_config *model;
    const model_weights *weights;
    const kernel_ops *kernels;
    hd_pool *pool;              /* the step thread's until close */
    ranks *ranks;               /* likewise; NULL where this process has all of the weights */
    attention *attention;       /* likewise */
    struct kernel_queue *queue; /* of a device that computes; the attention's tensors are in it. NULL: the pool */
    uint32_t batch_tokens_max;  /* rows of a step: decode rows and prefill chunks together */
    uint32_t requests_max;      /* running and waiting; a further one is refused with HD_FULL */
    uint32_t running_max;       /* choices that run at once; at most batch_tokens_max are */
    uint64_t context_max;       /* 0: the model's */
    uint32_t micro_batches;     /* that steps are cut into (rotation.h), at most ROTATION_BATCHES_MAX; 0: as measured */
    const char *selection;      /* of requests that name none; NULL for full */
    uint64_t full_up_to;        /* tokens of a request, prompt and answer, up to which `auto` is full; where they fit */
    hd_metrics *metrics;        /* or NULL */
} worker_config;

hd_status worker_open(const worker_config *config, worker **out, hd_error *error);
/* drain_ms: how long running requests may go on (UINT64_MAX: until they are done); what is left ends as cancelled.
 * New ones are refused at once. */
void worker_close(worker *worker, uint64_t drain_ms); /* accepts NULL */
worker_rpc *worker_rpc_of(worker *worker);

/* Refuses, by name, a model that is not computed on a device; and what memory of a device a worker takes beside
 * weights, keys and values. */
hd_status worker_device_check(const model_config *model, hd_dtype weights_dtype, hd_error *error);
uint64_t worker_device_bytes(const model_config *model, uint32_t batch_tokens_max);

/* The layer table that a model's attention needs. The caller frees streams and layers with free. */
hd_status worker_layer_table(const model_config *model, hd_dtype kv_dtype, attention_layer_table *table);

#endif
