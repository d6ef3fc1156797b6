/* offload.h - `hadal bench offload`: what it costs that keys and values are somewhere else.
 *
 * The same decode steps are run over an engine here and over an attention node behind gRPC on this host (its service on
 * a thread and a pool of its own), in turns, so that what disturbs one disturbs the other. The wire's own share is held
 * against an echo of the same bytes over one more stream, in the same run: where a layer's frames would go, between the
 * layers of further steps in this process, so that it finds the caches as cold and the other side as fast asleep as
 * they do. How long it takes in a loop of its own is printed beside it.
 *
 * Then two micro-batches take turns over the same node, straight and through a relay that delays every byte, again in
 * turns; that all ways give the same bits is checked.
 * Threads: runs on the calling thread as the step thread; the pool must be free. */
#ifndef BENCH_OFFLOAD_H
#define BENCH_OFFLOAD_H

#include "attention-node/attention.h"
#include "base/threads.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/weights.h"

typedef struct bench_offload_config {
    const char *model_name;
    const model_config *model;
    const model_weights *weights;
    const kernel_ops *kernels;
    hd_pool *pool;
    attention *attention; /* an engine; lent, empty */
    hd_dtype kv_dtype;
    uint64_t node_bytes; /* memory of the attention node */
    uint32_t node_threads;
    uint64_t depth;
    uint32_t batch, steps;
    uint64_t delay_ms; /* each way, for two micro-batches in turns behind a relay */
    uint32_t rows_max; /* of a step; at least 2 * batch */
    const char *json_path;
} bench_offload_config;

hd_status bench_offload_run(const bench_offload_config *config, hd_error *error);

#endif
