/* index_set.h - the indexes of a sequence, one for each layer and KV head, who builds them, and who gets them next.
 *
 *   open or adopted --grow, as blocks are sealed--> built up to the target --close(keep)--> retained
 *   retained --the next sequence that begins alike--> adopted;   retained --memory is needed--> given up
 *
 *   1. Memory is accounted when a set opens, for the longest that its sequence may become, and HD_FULL is answered
 *      then or never. Retained sets give way, the one that was retained first first.
 *   2. A set is a function of the tokens that its sequence begins with. So a sequence that starts from cached blocks
 *      takes the indexes of whoever had the same blocks: a retained set as it is, an open one by a fork, which copies
 *      no segment. Where nobody has them, and the kind learns from queries, the blocks have to be computed again:
 *      without their queries the index would be another one (index_set_reusable).
 *   3. Builders run at low priority, beside steps, and take one index after another, those of the oldest sets first. A
 *      step that needs what is not built yet waits (index_set_wait).
 *   4. Where the budget leaves the memory when a set opens, it keeps its keys as rows too, which makes attention to
 *      what was found and the building quicker, and changes no result.
 *   5. Keys and values are read where the sequence's runs lie, and only those of sealed blocks.
 * Threads: the step thread calls everything; index_set_add_query and index_set_search also run on the threads of a
 * step, for different indexes at once. */
#ifndef ATTENTION_NODE_INDEX_SET_H
#define ATTENTION_NODE_INDEX_SET_H

#include "attention-node/index.h"
#include "attention-node/sequence.h"

bool index_kind_learns(const index_kind *kind); /* whether it reads sampled queries */

typedef struct index_home index_home;
typedef struct index_set index_set;

typedef struct index_home_config {
    const attention_layer_table *table; /* borrowed; all that is given here outlives the home */
    block_store *store;
    const kernel_ops *kernels;
    uint64_t budget_bytes; /* of all sets together */
    unsigned builder_count;
    uint32_t head_first; /* of the model's KV heads the table's first: seeds are those of the model's heads */
} index_home_config;

typedef struct index_home_stats {
    uint64_t budget_bytes, held_bytes; /* accounted */
    uint64_t sets, retained_sets;
    uint64_t waits, wait_ns; /* of steps for builders */
    uint64_t lag_tokens;     /* that are in a target and not in all indexes yet */
} index_home_stats;

hd_status index_home_open(const index_home_config *config, index_home **out); /* starts the builders */
void index_home_close(index_home *home);                                      /* accepts NULL; every set is closed */
void index_home_stats_read(index_home *home, index_home_stats *stats);        /* any thread */
/* What a home has to have for a sequence of so many tokens with that selection, builders included; UINT64_MAX: nothing
 * is enough. has_rows: with the keys once more (key_rows.h), which sets have where there is room. Of the config, table,
 * kernels and builder_count are read. */
uint64_t index_home_bytes(const index_home_config *config, const selection *chosen, uint64_t tokens, bool has_rows);
/* Gives up every retained set. */
void index_home_reset(index_home *home);

/* How many of a sequence's tokens, of those that it has, an index set of that selection can start with. */
uint64_t index_set_reusable(index_home *home, const sequence *s);
/* For a sequence that has no more tokens than index_set_reusable says. HD_FULL, HD_INVALID (never fits), HD_NO_MEMORY.
 * HD_UNSUPPORTED: the table has layers that no index can be made for. */
hd_status index_set_open(index_home *home, const sequence *s, index_set **out, hd_error *error);
/* The same for a fork of a sequence with the first tokens of source's. */
hd_status index_set_fork(const index_set *source, const sequence *s, index_set **out, hd_error *error);
uint64_t index_set_keys_max(const index_set *set);
bool index_set_has_rest(const index_set *set);
/* keep: for the next sequence that begins alike. Accepts NULL. */
void index_set_close(index_set *set, bool keep);
/* The sequence was cut. */
void index_set_truncate(index_set *set, uint64_t length);
/* More of the sequence's blocks are sealed. */
void index_set_grow(index_set *set, const sequence *s);

/* The extent that a query at a position searches: all tokens before `covered`, a multiple of INDEX_GRAIN. */
index_extent index_set_extent(const index_set *set, uint64_t covered);
/* Until the layer's indexes have what an extent needs. HD_NO_MEMORY: a builder found none, and the sequence ends. */
hd_status index_set_wait(index_set *set, uint32_t layer, const index_extent *extent);
/* Whether a step whose first row is at that position would not wait; what that needs is the builders' target now. */
bool index_set_is_ready(index_set *set, uint64_t position);
/* What it would find is not what it should: every later wait ends with HD_NO_MEMORY. Any thread. */
void index_set_fail(index_set *set);
hd_status index_set_add_query(index_set *set, uint32_t layer, uint32_t head, uint64_t position, const uint16_t *queries,
                              uint32_t count, size_t stride);
/* Keys of new tokens, in bf16; where the set has the memory they are kept as rows (key_rows.h). */
hd_status index_set_add_keys(index_set *set, uint32_t layer, uint32_t head, uint64_t position, const uint16_t *keys,
                             uint32_t count, size_t stride);
/* The row of a token's key; NULL: it is in its page alone. */
const uint16_t *index_set_key(const index_set *set, uint32_t layer, uint32_t head, uint64_t position);
const kv_index *index_set_index(const index_set *set, uint32_t layer, uint32_t head);

#endif
