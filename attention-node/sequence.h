/* sequence.h - one open sequence: its tokens as runs of blocks, what it may still grow by, and how it shares.
 *
 *   tokens 0 .. length-1 are there;  extend adds the rows of a step up to `end`;  commit makes length = end, rollback
 *   end = length
 *
 *   1. A block holds the positions 128 b .. 128 b + 127 for some b. All blocks but the last are full, and sealed by
 *      commit.
 *   2. What it may still take is reserved in the store: blocks for tokens_max, less those it has. So extend never
 *      fails.
 *   3. Of a range of positions (attention.h, rule 6), everything here counts from its first one: since a range is a
 *      node of the merge tree, the tree over its groups is the same, wherever it counts from.
 *   4. Truncating into what others hold too needs memory that nobody promised, and may answer HD_FULL; it changes
 *      nothing then.
 * Threads: one. Threads of a step may read runs and tokens. */
#ifndef ATTENTION_NODE_SEQUENCE_H
#define ATTENTION_NODE_SEQUENCE_H

#include "attention-node/block_store.h"
#include "attention-node/run_table.h"
#include "attention-node/selection.h"

/* What all sequences of an engine have in common. */
typedef struct sequence_home {
    block_store store;
    run_table runs;
    unsigned char key[IDENTITY_KEY_BYTES];
    unsigned char fingerprint[16];
    hd_dtype kv_dtype;
    bool is_sharing; /* false: prefixes are not reused, because more than blocks would be needed to resume them */
} sequence_home;

typedef struct sequence {
    uint64_t name, epoch;
    uint64_t first, range; /* position of the first token, and how many may follow it; range 0: all there are */
    uint32_t slot;         /* in the table of sequences, and of its list of runs */
    identity_scope scope;
    identity root;
    bool is_private; /* its blocks are never found by identity */
    selection selection;
    struct index_set *indexes; /* the engine's, of a selection that searches; or NULL */
    uint64_t exact_count;      /* positions before attend to everything; what comes later is private but with full */
    kv_run *runs;
    uint32_t run_count, sealed_count; /* the first sealed_count runs are of sealed blocks */
    uint64_t length, end, tokens_max;
    uint32_t reserved;             /* blocks */
    block_claim claim, cold_claim; /* of frames, and of slots on the cold tier */
    uint64_t step;                 /* the last one that it had rows in */
    _Atomic uint32_t step_status;  /* of that step: what else than HD_OK became of its pages */
    attention *view_in_step;       /* whose step it is in now; NULL for none */
    bool is_importing;             /* its blocks are being copied here: it takes no rows yet, and nobody finds it */
} sequence;

/* A position of the caller's, counted from the range's first; what lies outside is cut to its ends. */
static inline uint64_t sequence_place(const sequence *s, uint64_t position) {
    uint64_t place = position > s->first ? position - s->first : 0;
    return s->range != 0 && place > s->range ? s->range : place;
}

static inline uint64_t sequence_blocks_of(uint64_t tokens) {
    return tokens / HD_BLOCK_TOKENS + (tokens % HD_BLOCK_TOKENS != 0);
}

/* Starts an empty sequence with as much of the prompt as the cache has, at most reuse_max tokens' worth of blocks, and
 * reserves the rest of tokens_max. HD_FULL changes nothing. The caller has set name, epoch, slot, scope,
 * selection and exact_count. */
hd_status sequence_start(sequence_home *home, sequence *s, const uint32_t *token_ids, uint64_t token_count,
                         uint64_t reuse_max, uint64_t tokens_max, hd_error *error);
/* How many of the tokens, in whole blocks, the cache has under that scope. */
uint64_t sequence_find_prefix(const sequence_home *home, const identity_scope *scope, const uint32_t *token_ids,
                              uint64_t token_count);
/* The first `length` tokens of source: full blocks are shared, the last one copied. Salt, variant, selection and
 * exact_count are source's. */
hd_status sequence_start_fork(sequence_home *home, sequence *s, const sequence *source, uint64_t length,
                              uint64_t tokens_max, hd_error *error);
void sequence_finish(sequence_home *home, sequence *s, block_retention retention);
/* Another tokens_max; HD_FULL or HD_INVALID (less than what is there) change nothing. */
hd_status sequence_set_tokens_max(sequence_home *home, sequence *s, uint64_t tokens_max, hd_error *error);

/* How many of the tokens, put at first_position, agree with those that are there: up to the first that differs, or to
 * `end`. */
uint64_t sequence_match(const sequence_home *home, const sequence *s, uint64_t first_position,
                        const uint32_t *token_ids, uint64_t count);

void sequence_extend(sequence_home *home, sequence *s, const uint32_t *token_ids, uint64_t count);
void sequence_commit(sequence_home *home, sequence *s);
/* The same for the first `length` tokens, where a run ends, of those that were extended. */
void sequence_commit_to(sequence_home *home, sequence *s, uint64_t length);
void sequence_rollback(sequence_home *home, sequence *s);
hd_status sequence_truncate(sequence_home *home, sequence *s, uint64_t length);

/* Index of the first run that has tokens at or after position; run_count when there is none. */
uint32_t sequence_run_at(const kv_run *runs, uint32_t run_count, uint64_t position);

#endif
