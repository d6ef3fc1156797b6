/* index.h - finds, among a sequence's earlier keys, those that a query scores highest, without reading all of them.
 *
 * One index belongs to one sequence, layer and KV head. It is made of segments: immutable summaries of aligned ranges
 * of tokens, each a pure function of the keys and values in its range, the sampled queries before its end, and the
 * seed. Four sizes of segment form a ladder: tokens are summarised 1,024 at a time, and 4,096, 16,384 and 131,072 of
 * them are summarised again as one when they are there.
 *
 *   1. What a search sees is named by an extent and never by what happens to be built: the segments of an extent are
 *      a function of its two numbers alone (index_plan). So the same request finds the same tokens however it was cut
 *      into chunks and however fast the builder was. Tokens past the extent are the caller's to attend to.
 *   2. index_target says which extent will be asked for next; index_build, on a builder's thread, makes its segments
 *      one after another, in pieces; index_is_ready says that they are all there. What was built for an earlier extent
 *      stays until index_drop, so searches of that one go on meanwhile.
 *   3. Segments may be shared: a fork takes those that its tokens reach, and copies none.
 *   4. index_bytes_max bounds what an index of so many keys ever holds whose owner drops what an extent does not need
 *      before it targets what lies a grain behind that extent; index_bytes says what it holds now. A search allocates
 *      nothing.
 *   5. Queries and keys come from different distributions (RetrievalAttention, arXiv 2409.10516), so an index is given
 *      a sample of the queries too, as they come.
 * Kinds are tables (index_kind.h): index_kind_find knows them by name.
 * Threads: everything but index_build, index_is_ready and index_bytes is the owner's (the step thread; searches may
 * run on several threads of its pool at once). index_build runs on one other thread at a time, beside anything but
 * drop, truncate, fork (of or into it) and close. */
#ifndef ATTENTION_NODE_INDEX_H
#define ATTENTION_NODE_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/ops.h"

#define INDEX_GRAIN 1024u /* tokens: extents are multiples of it */
#define INDEX_LEVELS 4u
#define INDEX_LEVEL_TOKENS                                                                                             \
    { INDEX_GRAIN, 4u * INDEX_GRAIN, 16u * INDEX_GRAIN, 128u * INDEX_GRAIN }
#define INDEX_QUERY_POSITIONS 16u /* of as many positions, one query row is sampled */
#define INDEX_QUERIES_MAX 32u     /* of one search */

typedef struct kv_index kv_index;
typedef struct index_builder index_builder; /* a builder thread's workspace, for indexes of one set of parameters */
typedef struct index_kind index_kind;

/* Where the keys and values of a sequence are read from, by the builder's thread and by searches. A row is bf16,
 * key_dim or value_dim long. The rows must not change, and must stay readable while they are part of an extent that
 * was a target or is searched. */
typedef struct index_source {
    void *context;
    /* Rows [first, first + count) one after another: where they lie, or copied into `room`, which is large enough.
     * count <= INDEX_GRAIN, and the range does not cross a multiple of INDEX_GRAIN. Any thread. */
    const uint16_t *(*keys)(void *context, uint64_t first, uint32_t count, uint16_t *room);
    const uint16_t *(*values)(void *context, uint64_t first, uint32_t count, uint16_t *room);
} index_source;

typedef struct index_params {
    const index_kind *kind;
    const kernel_ops *kernels;
    uint32_t key_dim, value_dim; /* multiples of 16, at most 512 */
    uint64_t keys_max;
    uint32_t sinks; /* leading tokens that no search finds or estimates; 16 n < INDEX_GRAIN */
    uint64_t seed;  /* from the sequence's identity, layer and head; equal seeds and data, equal indexes */
    bool has_rest;  /* keep what search needs for `rest` */
} index_params;

/* Which tokens the segments of a search cover, and how. */
typedef struct index_extent {
    uint64_t covered; /* tokens [0, covered), a multiple of INDEX_GRAIN */
    uint64_t settled; /* the prompt's length, say: a segment that ends past it replaces its parts only once an eighth
                       * of its own length lies behind it, so that a builder has the time to make it while decoding */
} index_extent;

typedef struct index_search {
    const uint16_t *queries; /* bf16 [query_count, query_stride], the query heads that share this KV head */
    size_t query_stride;     /* elements, >= key_dim */
    uint32_t query_count;    /* 1 .. INDEX_QUERIES_MAX */
    float scale;             /* of q.k in the softmax; tells the estimate how sharp it is */
    index_extent extent;     /* one for which index_is_ready */
    uint32_t tokens_each;    /* how many tokens each query asks for, >= 1 */
    void *scratch;           /* index_search_bytes of the extent and tokens_each, 64-byte aligned; one a thread */
    /* NULL, or called for the tokens found, a few at a time, while the estimate is made: their keys and values can be on
     * their way meanwhile. */
    void (*announce)(void *context, const uint32_t *tokens, uint32_t count);
    void *announce_context;
    /* Results. */
    uint32_t *tokens; /* room for query_count * tokens_each: ascending, each once, for all queries together */
    uint32_t token_count;
    const kernel_partial *rest; /* NULL, or (with has_rest) the estimate of all covered tokens but the sinks and
                                 * `tokens`, a row per query, in the form that kernel_ops.merge takes */
    uint64_t bytes_scanned;     /* what the search read: keys, centroids, sketches, links; not the estimate's part */
    uint64_t bytes_rest;        /* what only the estimate read */
} index_search;

/* The kind by that name; HD_INVALID lists the names. index_kinds: every kind there is. */
hd_status index_kind_find(const char *name, const index_kind **kind, hd_error *error);
size_t index_kinds(const index_kind *const **kinds);
const char *index_kind_name(const index_kind *kind);
bool index_kind_has_rest(const index_kind *kind); /* whether params may ask for has_rest */

/* What an index of keys_max keys holds at most (rule 4); the params' kinds and sizes alone. */
uint64_t index_bytes_max(const index_params *params);
/* What a builder takes; and a search's scratch, for extents up to keys_max and so many tokens for each query. */
size_t index_builder_bytes(const index_params *params);
size_t index_search_bytes(const index_params *params, uint32_t query_count, uint32_t tokens_each);

hd_status index_open(const index_params *params, const index_source *source, kv_index **out); /* source is copied */
void index_close(kv_index *self);                                                             /* accepts NULL */

/* The query heads of the token at a position that is a multiple of INDEX_QUERY_POSITIONS, in ascending position: bf16
 * [count, stride]. Others are ignored, so a caller may pass every row. A position that is there already keeps its
 * rows. HD_NO_MEMORY. */
hd_status index_add_query(kv_index *self, uint64_t position, const uint16_t *queries, uint32_t count, size_t stride);

/* Keys and values of tokens below extent->covered can be read, and their queries have been added. */
void index_target(kv_index *self, const index_extent *extent);
bool index_is_ready(const kv_index *self, const index_extent *extent); /* any thread */
uint64_t index_bytes(const kv_index *self);                            /* any thread */
/* Lets go of segments that are neither in this extent nor in the target. */
void index_drop(kv_index *self, const index_extent *extent);
/* Forgets what tokens from length on had a part in. */
void index_truncate(kv_index *self, uint64_t length);
/* A new index that has the first `length` tokens of source, which has the same params but for keys_max. */
hd_status index_fork(const kv_index *source, uint64_t length, uint64_t keys_max, const index_source *rows,
                     kv_index **out);

hd_status index_builder_open(const index_params *params, index_builder **out); /* seed and keys_max do not matter */
void index_builder_close(index_builder *builder);                              /* accepts NULL */
/* A piece of the work towards the target, a few milliseconds: HD_PENDING when there is more, HD_OK when the target is
 * reached, HD_NO_MEMORY. A builder that turns to another index forgets the segment that it was at. */
hd_status index_build(kv_index *self, index_builder *builder);

void index_search_run(const kv_index *self, index_search *search);

/* The segments of an extent in ascending position, at most plan_max of them; returns how many. */
typedef struct index_range {
    uint64_t first;
    uint32_t level, count; /* count tokens, as the level says */
} index_range;
uint32_t index_plan(const index_extent *extent, index_range *plan, uint32_t plan_max);
uint32_t index_plan_max(uint64_t keys_max); /* segments that any extent of so many keys has at most */

#endif
