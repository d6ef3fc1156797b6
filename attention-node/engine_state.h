/* engine_state.h - what an engine consists of; for engine*.c only.
 *
 * Memory, all of it from the budget: payload of blocks; one arena with every table, plan and scratch; lists of runs. */
#ifndef ATTENTION_NODE_ENGINE_STATE_H
#define ATTENTION_NODE_ENGINE_STATE_H

#include <stdatomic.h>

#include "attention-node/attend_plan.h"
#include "attention-node/engine.h"
#include "attention-node/engine_device.h"
#include "attention-node/index_set.h"
#include "attention-node/selection_overrides.h"
#include "attention-node/sequence_table.h"
#include "attention-node/state_store.h"

typedef struct engine_layer {
    attention_layer table; /* with sink_logits of the engine's own */
    kernel_page_shape shape;
    plan_shape plan;
    uint32_t query_dim; /* key_dim, padded */
    bool is_computable; /* plain keys and values in the engine's KV type */
    bool is_owner;      /* it writes the streams that it reads */
} engine_layer;

/* Consecutive tokens of one block that the step stores. */
typedef struct engine_segment {
    uint32_t block_index, slot, count;
    uint32_t first_row; /* in the step */
} engine_segment;

/* A row that does not attend to everything. Its KV heads are worked on one by one. */
typedef struct engine_sparse_row {
    const sequence *sequence;
    uint32_t row; /* in the step */
    uint64_t position;
} engine_sparse_row;

typedef struct engine_search_counts {
    uint64_t searches, tokens_found, bytes_scanned, bytes_rest, search_ns, fetch_ns, attend_ns;
} engine_search_counts;

/* What a thread of the pool works with. */
typedef struct engine_thread {
    void *kernel_scratch;
    kernel_span *spans;            /* [HD_GROUP_TOKENS] */
    uint64_t *positions;           /* [item_rows_max] */
    float *partials;               /* [partials_per_thread] of partial_floats each */
    engine_search_counts searched; /* since the engine opened; the thread alone writes */
} engine_thread;

#define ENGINE_FOUNDS 32u

/* What a row's queries of one KV head have found. */
typedef struct engine_found {
    uint32_t *tokens;      /* room for all query heads of a group */
    const uint32_t *first; /* in tokens, ascending */
    uint32_t count;
    kernel_partial rest; /* the estimate of what was not found, where the indexes have one */
} engine_found;

/* A thread's room for searches; only where the engine keeps indexes. */
typedef struct engine_finder {
    void *scratch, *keys, *values; /* keys, values: a page for tokens that were found, as pages are read */
    uint16_t *queries;             /* of a group, in bf16 */
    engine_found found;
    unsigned char *rows; /* [2][HD_BLOCK_TOKENS] token rows that lie in no one piece; NULL: there are none such */
} engine_finder;

typedef struct engine_step {
    bool is_open;
    bool is_broken;                          /* a sequence was taken over meanwhile, and is in it no more */
    bool has_ranges, has_whole, has_queries; /* among the sequences; has_queries: not replicas alone */
    uint32_t row_count, span_count, segment_count;
    uint32_t next_layer, computed_count; /* layers come in ascending order */
    sequence **sequences;                /* [span_count]; NULL: taken away */
    plan_span *spans;                    /* [span_count]; all rows of each sequence */
    plan_span *full_spans;               /* [full_count]: the rows that attend to everything, by the plan */
    engine_sparse_row *sparse_rows;      /* [sparse_count]: the others */
    uint32_t full_count, sparse_count;
    engine_segment *segments;
    bool is_planned; /* the plan fits full_spans as they are */
    attention_layer_call call;
    bool is_submitted;
    _Atomic size_t ticket;
    size_t ticket_end;
    bool is_storing; /* this run of the pool is the layer's first */
    bool is_finding; /* sparse tickets only search, for founds[ticket - found_first] and on */
    bool has_found;  /* they have, and now attend */
    size_t found_first;
    bool is_cold;            /* blocks of its sequences are not in memory */
    uint32_t dropped_frames; /* by then: is_cold has to be looked at again when it has grown */
    _Atomic bool has_lost;   /* pages of one of its sequences: sequence.step_status */
} engine_step;

/* One caller of an engine: an attention with a step of its own over the sequences that all share. The step of the view
 * that is spoken to lies in the engine; those of the others are put away here, so that whatever works on a step finds
 * it in one place. */
typedef struct engine_view {
    attention base; /* first */
    struct engine *engine;
    engine_step step; /* while it is put away */
    bool is_used;
} engine_view;

typedef struct engine {
    engine_view own;     /* first: what engine_open gives */
    engine_view *views;  /* [view_count], further ones */
    engine_view *active; /* whose step is `step` */
    uint32_t view_count;
    uint64_t step_serial;
    const kernel_ops *kernels;
    hd_pool *pool;
    uint64_t budget_bytes, warm_bytes, cold_bytes;
    uint32_t rows_max, sequences_max;
    hd_arena arena;
    attention_layer_table table;
    engine_layer *layers;
    sequence_home home;
    sequence_table sequences;
    state_store states;
    uint32_t computable_count; /* layers */
    engine_device *device;     /* that has the blocks and computes; NULL: the pool, in this process's memory */

    attend_plan plan;
    engine_thread *threads;
    uint32_t item_rows_max, value_dim_max, partials_per_thread;
    float *item_out, *item_max, *item_sum; /* of items that are not whole: [partial_rows_max] rows */
    uint64_t stream_groups;                /* that an item may have when pages come from disk */
    uint64_t tokens_max;                   /* of a sequence, so that its pieces fit the plan */
    uint64_t patience_ns;                  /* with the disk about one read */
    uint64_t round;                        /* of pinned pages: the last one that was begun */
    unsigned char *no_page;                /* zeros, for what could not be had */
    engine_step step;

    const selection_overrides *overrides;
    index_home *indexes;    /* NULL: none are kept */
    engine_finder *finders; /* [threads] */
    engine_found
        *founds; /* [ENGINE_FOUNDS]: with a cold tier, whose pages have to come before tokens are attended to */
    void *finder_memory;

    struct {
        _Atomic uint64_t blocks_sequences, blocks_reserved, blocks_cached, sequences, evicted_blocks;
        _Atomic uint64_t hot_blocks, warm_bytes, cold_blocks;
        _Atomic uint64_t prefix_queries_tokens, prefix_hits_tokens, appended_tokens;
        _Atomic uint64_t searches, searched_tokens, search_bytes, search_rest_bytes, search_ns, fetch_ns, found_ns,
            layer_work_ns;
    } published;
} engine;

/* engine_memory.c: sizes of everything for a number of blocks, and the largest number that the budget holds. */
hd_status engine_memory_open(engine *e, const engine_config *config, hd_error *error);
void engine_memory_close(engine *e); /* accepts what a failed open left */

/* engine_view.c */
engine *engine_of(attention *self); /* its step is self's from now on */
static inline const engine *engine_seen(const attention *self) {
    return ((const engine_view *)self)->engine;
}
void engine_detach(attention *self); /* a further view is closed */
/* The open step of a view other than the active one that s is in goes on without it. */
void engine_take_from_step(engine *e, sequence *s);

/* engine_step.c */
hd_status engine_step_begin(attention *self, const attention_rows *rows, uint32_t row_span_count, hd_error *error);
hd_status engine_step_submit(attention *self, const attention_layer_call *call);
hd_status engine_step_wait(attention *self, uint32_t layer);
hd_status engine_step_replayed(attention *self);
hd_status engine_step_end(attention *self);
hd_status engine_step_finish(attention *self);
hd_status engine_step_lost(attention *self, uint32_t span);
void engine_step_lose(attention *self, uint32_t span, hd_status why);

void engine_run_layer(void *engine, unsigned thread, unsigned thread_count); /* tickets up to step.ticket_end */

/* What engine_select.c shares with it. */
kernel_partial engine_scratch_partial(const engine *e, const engine_thread *t, uint32_t index);
/* The tokens at positions [begin, end) as spans of pages, appended to spans; how many. */
uint32_t engine_gather_spans(const engine *e, const engine_layer *layer, const kv_run *runs, uint32_t run_count,
                             uint64_t begin, uint64_t end, uint32_t head, kernel_span *spans);
/* Finishes the rows of a KV head's group for the step's rows first_row ... */
void engine_write_output(const engine *e, const engine_layer *layer, uint32_t first_row, uint32_t row_count,
                         uint32_t head, const kernel_partial *partial);
const void *engine_queries(const engine *e, const engine_layer *layer, uint32_t first_row, uint32_t head);

/* engine_retrieve.c. index_bytes 0: no indexes are kept, and whoever needs them is refused. */
hd_status engine_retrieve_open(engine *e, const engine_config *config, hd_error *error);
void engine_retrieve_close(engine *e);
void engine_retrieve_publish(engine *e); /* after a step */
void engine_retrieve_stats(const engine *e, attention_stats *stats);
/* Of a sequence that has just started (from cached blocks it keeps those that an index goes with), that has forked, or
 * whose tokens_max has changed. */
hd_status engine_indexes_open(engine *e, sequence *s, hd_error *error);
hd_status engine_indexes_fork(const sequence *source, sequence *s, hd_error *error);
hd_status engine_indexes_follow(engine *e, sequence *s, hd_error *error);
/* A thread's share of the step's queries and new keys goes to the indexes. */
void engine_learn(engine *e, const engine_layer *layer, unsigned thread, unsigned thread_count);
/* Before the sparse rows: what they will search is built. */
hd_status engine_await_indexes(engine *e, const engine_layer *layer);
/* What a row's queries find between sinks and newest tokens; and attention to it, merged into result. */
void engine_find(engine *e, const engine_layer *layer, unsigned thread, const engine_sparse_row *row, uint32_t head,
                 const selection_answer *answer, engine_found *found);
void engine_attend_found(engine *e, const engine_layer *layer, unsigned thread, const engine_sparse_row *row,
                         uint32_t head, const engine_found *found, kernel_attend *call, const kernel_partial *result,
                         bool is_alone);

/* engine_select.c: parts the rows of a step, by what each sequence's selection answers for the layer, and attends for
 * the sparse ones. True: the full ones are those of the layer before. */
bool engine_select_rows(engine *e, const engine_layer *layer);
void engine_ask_selection(const engine *e, const engine_layer *layer, const sequence *s, uint64_t position,
                          uint32_t head, selection_answer *answer);
/* known: what it has found already; NULL: it searches. is_alone: on the step thread, which sees to it group by group
 * that the pages are in memory. */
void engine_attend_sparse(engine *e, const engine_layer *layer, unsigned thread, const engine_sparse_row *row,
                          uint32_t head, const engine_found *known, bool is_alone);
void engine_find_sparse(engine *e, const engine_layer *layer, unsigned thread, const engine_sparse_row *row,
                        uint32_t head, engine_found *found);

/* engine_stream.c: pages that are not in memory. */
/* One run of the pool after the other, each with its pages pinned, the pages of the next one read meanwhile. */
void engine_stream_layer(engine *e, const engine_layer *layer);
/* Asks for the pages of the tokens at [begin, end) and keeps them until `round` is released; false: no room now. */
bool engine_pin_spans(engine *e, const engine_layer *layer, const kv_run *runs, uint32_t run_count, uint64_t begin,
                      uint64_t end, uint32_t head, uint64_t round, bool is_scan);
bool engine_pin_sparse(engine *e, const engine_layer *layer, const engine_sparse_row *row, uint32_t head,
                       uint64_t round); /* the same for what a sparse row sees by position; engine_select.c */
bool engine_pin_tokens(engine *e, const engine_layer *layer, const engine_sparse_row *row, const uint32_t *tokens,
                       uint32_t count, uint32_t head, uint64_t round); /* the same for tokens that were found */
void engine_pin_tokens_alone(engine *e, const engine_layer *layer, const engine_sparse_row *row, const uint32_t *tokens,
                             uint32_t count, uint32_t head);
void engine_pin_alone(engine *e, const engine_layer *layer, const engine_sparse_row *row, const uint64_t at[4],
                      uint32_t head); /* [at[0], at[1]) and [at[2], at[3]), and lets go of everything else */
/* The page of a block, wherever it is; where it cannot be had, zeros, and the sequence with these runs has lost its
 * step. */
const void *engine_page(const engine *e, const kv_run *runs, uint32_t block, uint32_t stream, uint32_t head);
/* The run that a token of the sequence lies in. */
const kv_run *engine_run_of(const sequence *s, uint64_t token);
/* Whether a token of the block was pinned as a row; and that row, as engine_page. room: for one row. */
bool engine_has_row(const engine *e, const engine_layer *layer, uint32_t block, uint32_t head);
const void *engine_row(const engine *e, const engine_layer *layer, const kv_run *runs, uint32_t block, uint32_t head,
                       uint32_t slot, unsigned char *room);
/* The sequence with these runs has lost its step. */
bool engine_has_lost(const engine *e, const kv_run *runs);
void engine_lose(const engine *e, const kv_run *runs, hd_status status);
/* Looks again whether the step's blocks are all in memory. */
void engine_look_for_cold(engine *e);
/* What a plan's item sees first, and the group of an item from there; engine_step.c. */
uint64_t engine_first_visible(const engine *e, const plan_item *item);
uint64_t engine_group_begin(const plan_span *span, uint64_t group, uint64_t first_visible);

/* After whatever changes them. */
void engine_publish(engine *e);

#endif
