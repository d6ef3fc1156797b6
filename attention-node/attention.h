/* attention.h - the interface that separates who holds the keys and values from who holds the weights.
 *
 * A worker opens an attention, opens sequences in it, and runs steps: step_begin reserves everything that the step's
 * rows will append, or refuses; then for each layer submit (q, k, v) and wait (out); then step_end. Implementations:
 * engine (this process), remote (another process), sharded (several, merged by lse). They compose, and the caller
 * cannot tell which it has.
 *
 *   1. A sequence has tokens at positions 0 .. length-1. Appending a position again with the same token keeps the first
 *      bytes (a replay after a takeover is harmless); with another token it is refused until the sequence is truncated.
 *   2. Full blocks (128 positions) are immutable, named by a 128-bit keyed hash over the chain of tokens and everything
 *      that changes KV (weights, adapter, rope base, tenant salt), and shared: opening a sequence finds the longest
 *      cached prefix and copies nothing.
 *   3. Memory is a budget in bytes, taken at open and never exceeded. tokens_max of a sequence is reserved when it
 *      opens: HD_FULL then, never later (but see 7).
 *   4. Exact: `full` selection gives the same bits whatever the batch, the chunks, the threads, and the sharing of
 *      blocks. Partial results are made per group of HD_GROUP_BLOCKS blocks and merged in one fixed binary tree over
 *      group indices (ops.h, rule 2).
 *   5. An owner epoch goes with every sequence; a call with an older epoch than the newest seen gets HD_STALE. An open
 *      step of the old owner that the sequence is in ends with HD_STALE too, and without it.
 *   6. A sequence may be opened for a range of its positions only: an aligned power of two of groups, so that the range
 *      is one node of the merge tree. Its rows then give that node's partial results instead of finished output, and
 *      whoever owns the ranges merges them into the bits that one attention would give.
 *   7. Keys and values may lie on a disk. When bytes of a sequence cannot be had from there in time, or are not what
 *      was written, its rows of that step are not kept (its length tells), their output is finite and means nothing,
 *      and the step goes on for all others. When the disk takes no more and a step's rows fit nowhere else, step_begin
 *      answers HD_FULL.
 * Threads: all calls of one attention come from one thread, the step thread; stats may be read from any thread. */
#ifndef ATTENTION_NODE_ATTENTION_H
#define ATTENTION_NODE_ATTENTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "attention-node/layer_table.h"
#include "base/status.h"
#include "kernels/dtype.h"

typedef struct attention attention;

/* Where a tensor lives. An attention takes tensors of one place only. */
typedef enum { ATTENTION_HOST, ATTENTION_DEVICE } attention_place;

typedef struct attention_tensor {
    void *data;
    hd_dtype dtype;
    attention_place place;
    struct kernel_queue *queue; /* with ATTENTION_DEVICE (kernels/device.h): what is in it makes and uses the tensor */
} attention_tensor;

#define ATTENTION_SALT_BYTES 16
#define ATTENTION_PREFIX_BYTES 32
/* The bits of a name above these say which range of a sequence it is; sequence_find looks for all of them. */
#define ATTENTION_NAME_BITS 56u

typedef struct attention_sequence_params {
    uint64_t sequence; /* the caller's name for it, unique while open */
    uint64_t epoch;
    const uint32_t *token_ids; /* the prompt */
    uint64_t token_count;
    uint64_t tokens_max; /* prompt + what may be generated: reserved now */
    /* How many of the sequence's tokens are the request's prompt, whose rows attend to everything whatever the
     * selection; 0: token_count. Less than token_count after a takeover, where token_ids goes on with what was
     * generated. */
    uint64_t prompt_count;
    /* Prefix positions that may come from the cache; 0 for none. The engine caps it at token_count - 1, because the
     * last token's forward pass has to run. */
    uint64_t reuse_max;
    unsigned char salt[ATTENTION_SALT_BYTES]; /* tenant */
    uint64_t variant;                         /* adapter and rope base: anything of the request that changes KV */
    const char *selection;                    /* NULL for full; else NAME[,key=value...], never auto */
    /* Only the positions [first_position, end_position): a power of two of groups, at a multiple of its size; 0 and 0
     * for all. Then token_ids are the prompt's tokens from first_position on, as far as they lie in the range;
     * token_count and reuse_max count those (and all of them may be reused: the prompt's last row is the caller's
     * business); tokens_max stays a position. prefix: a hash of all tokens before the range (prefix_hash.h), which
     * its blocks are found by; without it (tokens that are yet to come) nothing is shared. */
    uint64_t first_position, end_position;
    bool has_prefix;
    unsigned char prefix[ATTENTION_PREFIX_BYTES];
    const char *trace_id; /* for logs (base/trace.h); NULL: none */
} attention_sequence_params;

/* A sequence, or a range of one, that is open. */
typedef struct attention_found {
    uint64_t name, epoch, first_position, end_position, length;
} attention_found;

/* One sequence's rows of a step: positions first_position .. first_position + count - 1. Of a range: no row lies before
 * it, and rows behind it attend without being kept. */
typedef struct attention_rows {
    uint64_t sequence, epoch;
    uint64_t first_position;
    uint32_t count;
    const uint32_t *token_ids; /* [count], borrowed until step_end */
    bool is_replica;           /* keep keys and values, attend to nothing: somebody else answers */
    uint64_t end_position;     /* of the range that the sequence was opened for; 0: of none */
} attention_rows;

/* Partial results (kernels/ops.h, rule 2) of the rows of ranges: [H, R, G, value_dim], and [H, R, G] twice. Rows of
 * other sequences are left alone. */
typedef struct attention_partial {
    float *out, *max, *sum;
} attention_partial;

/* One layer of the step, all rows in the order of step_begin's spans. R = sum of counts, H = KV heads of the layer, G =
 * query heads / H. Query head h*G + g reads KV head h. Tensors stay the caller's and untouched from submit until wait
 * has returned. On a device submit and wait only ask for things in the tensors' queue, and whatever is asked for there
 * behind wait finds the output. */
typedef struct attention_layer_call {
    uint32_t layer;
    /* [H, R, G, key_pad] in attention_dtype(), 64-byte aligned; key_pad: key_dim, zero padded to a multiple of 32 */
    attention_tensor queries;
    attention_tensor keys;     /* [R, H, key_dim] in attention_dtype() */
    attention_tensor values;   /* [R, H, value_dim] in attention_dtype(); ignored with value_is_key_prefix */
    attention_tensor output;   /* [R, output_stride >= H * G * value_dim] in attention_dtype(), written by wait */
    size_t output_stride;      /* elements, a multiple of 32; columns past H * G * value_dim are left alone */
    attention_partial partial; /* needed where a range is among the sequences, and output where anything else is */
    /* R, where tensors have more rows than the step, at most twice as many: the others are neither kept nor answered.
     * 0: as many. On a device only. */
    uint32_t row_count;
} attention_layer_call;

/* A sequence, or a range of one, that another node has is to be had here as well. */
typedef struct attention_pull {
    const char *address; /* of the node that has it, for pages */
    /* As it was opened there, without tokens: they come with the blocks. */
    attention_sequence_params params;
    uint64_t length;  /* 0: what is there so far, and go on; else all of these tokens, and nobody steps it meanwhile */
    uint32_t wait_ms; /* for that */
} attention_pull;

typedef struct attention_stats {
    uint64_t budget_bytes, block_bytes;
    uint64_t blocks_total;     /* what the budget holds */
    uint64_t blocks_whole;     /* what a sequence can have that is not split by positions: every one that searches */
    uint64_t blocks_sequences; /* held by open sequences */
    uint64_t blocks_reserved;  /* promised to open sequences and not yet filled */
    uint64_t blocks_cached;    /* held by the prefix cache alone */
    uint64_t sequences;
    uint64_t prefix_queries_tokens, prefix_hits_tokens; /* totals since open */
    uint64_t appended_tokens; /* positions written, each counted once per step that wrote it */
    uint64_t evicted_blocks;
    uint32_t compute_threads; /* that attend; 0: unknown */
    /* Of selections that search; totals since open, times added up over threads. */
    uint64_t searches;                        /* one for each row, layer and KV head */
    uint64_t searched_tokens;                 /* that were found and attended to */
    uint64_t search_bytes, search_rest_bytes; /* that searches read, and only estimates read */
    uint64_t search_ns, found_ns;             /* searching; attending to what was found */
    uint64_t fetch_ns;                        /* of found_ns: putting found tokens together */
    uint64_t index_waits, index_wait_ns;      /* of steps, for what was not built yet */
    uint64_t index_bytes, index_budget_bytes; /* accounted for open and retained indexes */
    uint64_t index_lag_tokens;                /* that are due to be indexed and not in every index yet */
    /* Tiers: bytes of blocks in memory, of pages of cold blocks in memory, and of blocks on disk. */
    uint64_t hot_used_bytes, warm_used_bytes, cold_used_bytes, warm_bytes, cold_bytes;
    uint64_t page_hits, page_misses; /* unit pages of cold blocks that a step asked for */
    uint64_t row_hits, row_misses;   /* tokens of cold blocks that were found by a search, and read one by one */
    uint64_t cold_reads;             /* done, of either */
    uint64_t row_wait_ns;            /* of steps, for tokens */
    uint64_t cold_read_bytes, cold_written_bytes, cold_read_errors, cold_write_errors, cold_verify_failures;
    uint64_t cold_queue; /* reads and writes that wait or run now */
    /* Of steps: time that they stood still for other processes, and time in which layers were worked on, here or, of
     * several other processes, in the one that was busiest. */
    uint64_t step_wait_ns, layer_work_ns;
} attention_stats;

typedef struct attention_ops {
    const char *name;
    void (*close)(attention *self);
    /* HD_FULL when tokens_max does not fit now (the error has the numbers; HD_INVALID when it never can).
     * *cached_tokens: how many leading positions are already there; the caller's first row is at that position.
     * A sequence that is open already is taken over by a larger epoch (HD_STALE otherwise): it keeps the tokens that
     * agree with the prompt. */
    hd_status (*sequence_open)(attention *self, const attention_sequence_params *params, uint64_t *cached_tokens,
                               hd_error *error);
    /* A new sequence with the first `length` tokens of `source`; shares full blocks, copies at most the last one. */
    hd_status (*fork)(attention *self, uint64_t source, uint64_t length, uint64_t sequence, uint64_t epoch,
                      uint64_t tokens_max, hd_error *error);
    hd_status (*truncate)(attention *self, uint64_t sequence, uint64_t epoch, uint64_t length);
    /* How many tokens are there; HD_TIMED_OUT, HD_IO, HD_CORRUPT: why its rows of the last step are not. Tables with
     * states only: fork and truncate go to the largest length that has a snapshot, or to 0. */
    hd_status (*sequence_length)(const attention *self, uint64_t sequence, uint64_t *length);
    /* Whether a step with the row at that position would begin its work at once; false: an index for it is being made
     * meanwhile, and a step now would wait for it, with everybody in it. NULL: always. */
    bool (*sequence_is_ready)(attention *self, uint64_t sequence, uint64_t position);
    /* Between two steps, now and then while there are none: the time for nodes to come and go. HD_PEER_LOST: this
     * attention is elsewhere, and was lost meanwhile. NULL: nothing to do. */
    hd_status (*idle)(attention *self);
    /* What is open under this name, and of its ranges, whoever opened it; at most found_max. For a takeover. */
    hd_status (*sequence_find)(attention *self, uint64_t sequence, attention_found *found, uint32_t found_max,
                               uint32_t *found_count);
    /* Fetches a sequence from another node, beside steps; asked again and again. HD_PENDING: *tokens are here. HD_OK,
     * to a length alone: it is open here from now on, with the bytes and the epoch that it has there. Everything else:
     * it is not, and what came of it may be prefix cache; HD_UNSUPPORTED: it cannot be fetched, HD_FULL: no room, the
     * error says why. sequence_close gives it up. NULL: there are no other nodes. */
    hd_status (*sequence_pull)(attention *self, const attention_pull *pull, uint64_t *tokens, hd_error *error);
    /* How many tokens, in whole blocks, sequence_open with these params would find: a hint, for placing it well. */
    hd_status (*prefix_find)(attention *self, const attention_sequence_params *params, uint64_t *cached_tokens);
    /* A state stream's bytes (attention_stream_state_bytes) after the first `position` tokens, position <= length. A
     * snapshot is complete when every state stream has been saved there; the oldest gives way when there is no room. */
    hd_status (*state_save)(attention *self, uint64_t sequence, uint64_t epoch, uint64_t position, uint32_t stream,
                            const void *bytes);
    hd_status (*state_load)(const attention *self, uint64_t sequence, uint64_t position, uint32_t stream,
                            void *bytes); /* or HD_NOT_FOUND */
    /* keep: its full blocks stay as prefix cache until their memory is needed; early: the work ended early, evict these
     * first. */
    hd_status (*sequence_close)(attention *self, uint64_t sequence, uint64_t epoch, bool keep, bool early);
    /* Reserves for all rows or refuses and changes nothing. HD_INVALID: a gap, or another token at a position that is
     * there already. HD_FULL: rule 7. */
    hd_status (*step_begin)(attention *self, const attention_rows *rows, uint32_t row_span_count, hd_error *error);
    /* HD_UNSUPPORTED: a layer that this implementation keeps but cannot compute. Layers come in ascending order. */
    hd_status (*submit)(attention *self, const attention_layer_call *call);
    hd_status (*wait)(attention *self, uint32_t layer);
    /* Of a step on a device: the caller is about to replay what its queue recorded (kernels/device.h) while all layers
     * of another step were submitted, with tensors of the same places and row_count. They count as submitted and
     * waited for. NULL: nothing can be recorded. */
    hd_status (*step_replayed)(attention *self);
    /* The step's tokens are there from now on. HD_CANCELLED, and none of them are, when a layer that can be computed
     * was left out. HD_TIMED_OUT, HD_IO, HD_CORRUPT: those of some sequences are not (rule 7), and sequence_length
     * tells of which; after HD_TIMED_OUT the same rows may be tried again. HD_CORRUPT tells of the worst. */
    hd_status (*step_end)(attention *self);
    /* step_begin and step_end in two halves, so that several attentions work at once: HD_PENDING, and step_finish gives
     * the answer; or the answer itself. Rows and error are borrowed until then, and no other call comes between. */
    hd_status (*step_begin_post)(attention *self, const attention_rows *rows, uint32_t row_span_count, hd_error *error);
    hd_status (*step_end_post)(attention *self);
    hd_status (*step_finish)(attention *self);
    /* Of what was posted or submitted: whether step_finish or wait would answer at once, looked for until then. NULL:
     * what they answer is computed here, in them. */
    bool (*is_answered)(attention *self, uint64_t until_ns);
    /* Nobody waits for it any more: HD_PEER_LOST from now on, for what was posted as well. NULL: as is_answered. */
    void (*give_up)(attention *self, const char *reason);
    /* Of the open step, between two layers: why a span's rows are lost so far (rule 7), or HD_OK. Who has further parts
     * of the same rows elsewhere tells those by step_lose: computed from what is lost, they must not be kept either. */
    hd_status (*step_lost)(attention *self, uint32_t span);
    void (*step_lose)(attention *self, uint32_t span, hd_status why);
    /* A further attention over the same sequences, with a step of its own that may be open while others have theirs, of
     * rows_max rows and sequences; a sequence is in one of them. Steps alone: sequences are opened and ended here. It
     * is closed before this one. HD_FULL, HD_UNSUPPORTED: none can be had; NULL: never. */
    hd_status (*attach)(attention *self, uint32_t rows_max, attention **view, hd_error *error);
    /* Drops every block that only the prefix cache holds. */
    void (*cache_reset)(attention *self);
    void (*stats)(const attention *self, attention_stats *stats); /* any thread */
    hd_dtype (*dtype)(const attention *self);                     /* of q, k, v and output */
    hd_dtype (*kv_dtype)(const attention *self);                  /* as keys and values are kept */
} attention_ops;

struct attention {
    const attention_ops *ops; /* first member of every implementation */
};

#endif
