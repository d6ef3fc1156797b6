/* decode.h - `hadal bench decode`: tokens a second against the depth of the context, without a server around it.
 *
 * For every depth: sequences are opened and filled to it, then a batch of one row each is decoded, then one chunk of a
 * prompt is run at that depth. Depths up to prefill_up_to tokens (of all sequences together) are filled by real
 * prefill; deeper ones with synthetic keys and values, because prefill is quadratic; the report says which it was.
 * Where they are synthetic, steps ask heads like a trained model's (synthetic_steps.h), and the report says how far the
 * output is from exact attention. Times are split into attention and the rest by a timer around the attention
 * interface; a device is waited for once a step, so there attention has no time of its own, and the bandwidth that a
 * step is held against is the device's.
 * Threads: runs on the calling thread as the step thread; the pool must be free. */
#ifndef BENCH_DECODE_H
#define BENCH_DECODE_H

#include "attention-node/attention.h"
#include "base/threads.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/weights.h"

#define BENCH_LIST_MAX 16u

typedef struct bench_list {
    uint64_t values[BENCH_LIST_MAX];
    size_t count;
} bench_list;

/* "0,4096,131072"; at most BENCH_LIST_MAX. flag names it in the error. */
hd_status bench_list_parse(const char *flag, const char *text, bench_list *list, hd_error *error);

typedef struct bench_decode_config {
    const char *model_name, *selection;
    const model_config *model;
    const model_weights *weights;
    const kernel_ops *kernels;
    hd_pool *pool;
    struct kernel_queue *queue;         /* of the device that computes and keeps; NULL: the pool, in this process */
    attention *attention;               /* an engine; lent, empty */
    bench_list depths;                  /* decode at these */
    bench_list prefills;                /* prompts of these lengths, from nothing */
    uint32_t batch;                     /* sequences that decode together */
    uint32_t chunk;                     /* tokens of a prompt's chunk at each depth but 0; 0: none */
    uint32_t steps;                     /* decode steps to time at each depth, less where they take long */
    uint32_t batch_tokens_max;          /* rows of a step: the chunks of a prefill */
    uint64_t prefill_up_to, full_up_to; /* full_up_to: of the selection auto */
    const char *cold_directory;         /* the engine's; NULL: it has none */
    const char *json_path;              /* NULL: none; "-": standard output */
} bench_decode_config;

hd_status bench_decode_run(const bench_decode_config *config, hd_error *error);

#endif
