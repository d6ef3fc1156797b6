/* engine_state.h - what an engine consists of; for engine*.c only.
 *
 * Memory, all of it from the budget: payload of blocks; one arena with every table, plan and scratch; lists of runs. */
#ifndef ATTENTION_NODE_ENGINE_STATE_H
#define ATTENTION_NODE_ENGINE_STATE_H

#include <stdatomic.h>

#include "attention-node/attend_plan.h"
#include "attention-node/engine.h"
#include "attention-node/sequence_table.h"
#include "attention-node/state_store.h"

typedef struct engine_layer {
    attention_layer table; /* with sink_logits of the engine's own */
    kernel_page_shape shape;
    plan_shape plan;
    uint32_t query_dim; /* key_dim, padded */
    bool is_computable; /* plain keys and values in the engine's KV type */
    bool is_owner;      /* it writes the streams that it reads */
    uint64_t done_step; /* the last step in which it was computed */
} engine_layer;

/* Consecutive tokens of one block that the step stores. */
typedef struct engine_segment {
    uint32_t block_index, slot, count;
    uint32_t first_row; /* in the step */
} engine_segment;

/* What a thread of the pool works with. */
typedef struct engine_thread {
    void *kernel_scratch;
    kernel_span *spans;  /* [HD_GROUP_TOKENS] */
    uint64_t *positions; /* [item_rows_max] */
    float *partials;     /* [partials_per_thread] of partial_floats each */
} engine_thread;

typedef struct engine_step {
    bool is_open;
    uint64_t serial;
    uint32_t row_count, span_count, segment_count;
    sequence **sequences; /* [span_count] */
    plan_span *spans;     /* [span_count]; runs as the selection last answered */
    engine_segment *segments;
    bool is_planned; /* the plan fits spans as they are */
    attention_layer_call call;
    bool is_submitted;
    _Atomic size_t ticket;
} engine_step;

typedef struct engine {
    attention base; /* first */
    const kernel_ops *kernels;
    hd_pool *pool;
    uint64_t budget_bytes;
    uint32_t rows_max, sequences_max;
    hd_arena arena;
    attention_layer_table table;
    engine_layer *layers;
    sequence_home home;
    sequence_table sequences;
    state_store states;

    attend_plan plan;
    engine_thread *threads;
    uint32_t item_rows_max, value_dim_max, partials_per_thread;
    float *item_out, *item_max, *item_sum; /* of items that are not whole: [partial_rows_max] rows */
    engine_step step;

    struct {
        _Atomic uint64_t blocks_sequences, blocks_reserved, blocks_cached, sequences, evicted_blocks;
        _Atomic uint64_t prefix_queries_tokens, prefix_hits_tokens, appended_tokens;
    } published;
} engine;

/* engine_memory.c: sizes of everything for a number of blocks, and the largest number that the budget holds. */
hd_status engine_memory_open(engine *e, const engine_config *config, hd_error *error);
void engine_memory_close(engine *e); /* accepts what a failed open left */

/* engine_step.c */
hd_status engine_step_begin(attention *self, const attention_rows *rows, uint32_t row_span_count, hd_error *error);
hd_status engine_step_submit(attention *self, const attention_layer_call *call);
hd_status engine_step_wait(attention *self, uint32_t layer);
hd_status engine_step_end(attention *self);

/* After whatever changes them. */
void engine_publish(engine *e);

#endif
