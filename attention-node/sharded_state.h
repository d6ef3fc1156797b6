/* sharded_state.h - what a sharded attention consists of; for sharded*.c only. */
#ifndef ATTENTION_NODE_SHARDED_STATE_H
#define ATTENTION_NODE_SHARDED_STATE_H

#include <stdatomic.h>

#include "attention-node/handover.h"
#include "attention-node/merge_tree.h"
#include "attention-node/selection.h"
#include "attention-node/sharded.h"

#define SHARDED_NODE_NAME_BYTES 128u
#define SHARDED_ADDRESS_BYTES 256u
#define SHARDED_HANDOVERS 4u /* at once: while some wait for the end of a step, others copy */

/* Some rows of one of the caller's spans, as a node gets them. */
typedef struct shard_span {
    uint32_t span;        /* the caller's */
    uint32_t skipped;     /* rows of it before these */
    uint32_t first_row;   /* of the node's step */
    uint32_t count, kept; /* how many in all, and how many of them the node keeps */
    bool is_range, is_replica;
    uint64_t first_position, size; /* of the range */
    const placement_row *place;    /* of the sequence's map; nodes that are lost leave it */
} shard_span;

typedef struct shard_node {
    attention *attention; /* NULL: no node has this index */
    char name[SHARDED_NODE_NAME_BYTES], address[SHARDED_ADDRESS_BYTES];
    placement_heads heads;
    bool is_lost, is_draining, is_leaving, is_stage;
    bool is_late; /* why it is lost: others that have the same did not wait for it */

    /* The step. */
    attention_rows *rows; /* [span_count]; room for spans_max */
    shard_span *spans;
    uint32_t span_count, row_count;
    bool is_begun, is_submitted, is_pending;
    hd_error error;    /* of its step_begin */
    bool has_all_rows; /* the caller's rows as they are: its tensors are handed on */
    bool has_ranges;
    unsigned char *region; /* queries, keys, values, output, partial, one after the other */
    uint64_t region_bytes;
    void *queries, *keys, *values, *output;
    attention_partial partial;
} shard_node;

typedef struct shard_sequence {
    uint64_t name, epoch, tokens_max;
    bool is_open, is_broken;
    uint64_t staged_end; /* of the prompt, some of which is staged; 0: none is */
    uint64_t variant;
    unsigned char salt[ATTENTION_SALT_BYTES];
    uint64_t prompt_count;
    bool has_selection; /* else full */
    char selection[SELECTION_TEXT_BYTES];
    uint64_t move_ns; /* no handover before */
    placement map;
} shard_sequence;

/* What step_finish finishes. */
typedef enum { SHARDED_WHOLE, SHARDED_BEGINS, SHARDED_ENDS } sharded_half;

/* One row of a sequence goes from one node to another. */
typedef struct shard_handover {
    handover state;
    uint64_t number; /* of its beginning */
    uint64_t sequence;
    placement_heads heads;
    uint32_t ordinal, from, to;
    bool is_move; /* else a replica more */
} shard_handover;

/* Parts of one lane's answer for one span, in ascending position. */
typedef struct shard_merge {
    uint32_t span, first_part, part_count;
    placement_heads heads;
} shard_merge;

typedef struct shard_part {
    const shard_node *node;
    const shard_span *span;
} shard_part;

#define SHARDED_VIEWS_MAX 3u

/* The attention itself, or a view of it: a step of its own, with links of its own to the same nodes. */
typedef struct sharded {
    attention base;                           /* first */
    struct sharded *home;                     /* who has the sequences; itself where it is no view */
    struct sharded *views[SHARDED_VIEWS_MAX]; /* of the home */
    sharded_config config;
    attention_stream *streams; /* the table's own copies */
    attention_layer *layers;
    float *sinks;
    uint32_t kv_heads;
    shard_node nodes[PLACEMENT_NODES_MAX];
    uint32_t node_count;       /* indices in use end here */
    shard_sequence *sequences; /* [sequences_max] */
    uint32_t *buckets, *links; /* slot + 1; links chains a bucket, or the free slots */
    uint32_t bucket_count, first_free, open_count;
    uint32_t spans_max, rows_max; /* of a node's step */
    shard_handover handovers[SHARDED_HANDOVERS];
    uint64_t handovers_ns; /* when to look for work next */
    uint64_t handovers_begun;
    sharded_moves moves;

    struct {
        bool is_open;
        uint64_t asked_ns; /* its beginning, the layer at hand, or its end */
        uint32_t span_count, row_count;
        uint32_t *first_rows; /* [span_count] */
        uint32_t *counts;
        shard_sequence **staged; /* [span_count]: whose prompt is there when the step is; NULL */
        shard_merge *merges;
        shard_part *parts;
        uint32_t merge_count, part_count;
        attention_layer_call call;
        hd_status status;    /* the first that failed */
        hd_status lost_rows; /* the worst of what nodes said of rows when it ended */
        sharded_half half;
        hd_error *error; /* of its beginning; the caller's */
        hd_status *lost; /* [span_count]: rows that some node has lost, and why; set when the step ends */
        _Atomic size_t ticket;
    } step;
} sharded;

static inline sharded *sharded_of(const attention *self) {
    return (sharded *)self;
}
/* For everything but steps. */
static inline sharded *sharded_home(const attention *self) {
    return ((sharded *)self)->home;
}

shard_sequence *sharded_find(const sharded *s, uint64_t name); /* NULL: not open */
static inline uint64_t shard_name(uint64_t sequence, const placement_row *row) {
    return sharded_name(sequence, row->ordinal);
}
/* The node's rows go to whoever else has them; sequences with rows that nobody has are broken. */
void sharded_lose(sharded *s, uint32_t node, hd_status status);

/* sharded_view.c */
hd_status sharded_attach(attention *self, uint32_t rows_max, attention **view, hd_error *error);
void sharded_view_close(sharded *view);
/* The node that the home has got at that index, for each of its views; where a view cannot have it, steps that need it
 * there are refused. */
void sharded_view_add(sharded *home, uint32_t index);
void sharded_view_remove(sharded *home, uint32_t index);

/* sharded.c: memory of a node's steps, and of steps. */
bool sharded_node_take_memory(const sharded *s, shard_node *node);
void sharded_node_free_memory(shard_node *node);
bool sharded_step_take_memory(sharded *s);
void sharded_step_free_memory(sharded *s);

/* sharded_handover.c. Between two steps: what goes on, and what begins. */
void sharded_tend_handovers(sharded *s);
/* A sequence was cut, opened anew or closed: what goes on with it ends. */
void sharded_stop_handovers(sharded *s, uint64_t sequence);
/* A node is about to be removed. */
void sharded_forget_node(sharded *s, uint32_t node);

/* sharded_stage.c */
void sharded_stage(sharded *s, shard_sequence *sequence, const attention_sequence_params *params,
                   uint64_t cached_tokens);
void sharded_unstage(sharded *s, shard_sequence *sequence);     /* between two steps */
void sharded_unstage_done(sharded *s);                          /* what the step that has just ended has completed */
bool sharded_has_nodes(const sharded *s, const placement *map); /* each row has one beside the stage */

/* sharded_step.c */
uint64_t sharded_region_bytes(const sharded *s, placement_heads heads);
void sharded_cut_region(const sharded *s, shard_node *node);
hd_status sharded_step_begin(attention *self, const attention_rows *rows, uint32_t row_span_count, hd_error *error);
hd_status sharded_step_begin_post(attention *self, const attention_rows *rows, uint32_t row_span_count,
                                  hd_error *error);
hd_status sharded_step_end_post(attention *self);
hd_status sharded_step_submit(attention *self, const attention_layer_call *call);
hd_status sharded_step_wait(attention *self, uint32_t layer);
hd_status sharded_step_end(attention *self);
hd_status sharded_step_finish(attention *self);
hd_status sharded_step_lost(attention *self, uint32_t span);
void sharded_step_lose(attention *self, uint32_t span, hd_status why);

/* sharded_late.c. Before what was asked of nodes is waited for: gives up who is late where others have the same. */
void sharded_give_up_late(sharded *s);

/* sharded_merge.c: the parts of the step's answers, and a layer's merging. */
void sharded_list_merges(sharded *s);
void sharded_merge(sharded *s);

#endif
