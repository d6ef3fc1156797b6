/* index_kind.h - what a kind of index is: how a segment is made, and how segments are searched.
 *
 * A kind holds no state. index.c keeps the segments, gives a kind memory of the sizes that it asked for, and calls it
 * with everything that it may use; so a segment cannot depend on anything else.
 * Threads: build_step on a builder's thread, search on any; both only touch what they are given. */
#ifndef ATTENTION_NODE_INDEX_KIND_H
#define ATTENTION_NODE_INDEX_KIND_H

#include <stdatomic.h>

#include "attention-node/index.h"
#include "base/memory.h"

typedef struct index_segment { /* immutable once it is published */
    _Atomic uint32_t references;
    uint32_t level, count;
    uint64_t first; /* token; covers [first, first + count) */
    size_t bytes;   /* of data */
    unsigned char *data;
} index_segment;

typedef struct index_building { /* a segment in the making; a kind may use phase and cursor as it likes, from 0 */
    const index_params *params;
    const index_source *source;
    const uint16_t *queries; /* [query_count, key_dim], sampled evenly from the tokens before the segment's end */
    uint32_t query_count;
    uint64_t seed;          /* of this segment */
    index_segment *segment; /* range set, data zeroed */
    void *workspace;        /* workspace_bytes, 64-byte aligned; contents survive from step to step */
    uint32_t phase, cursor;
} index_building;

typedef struct index_view { /* what a search may look at */
    const index_params *params;
    const index_source *source;
    const index_segment *const *segments; /* an extent's, in ascending position, without a gap from token 0 */
    uint32_t segment_count;
    unsigned char *scratch; /* search_bytes, 64-byte aligned */
} index_view;

struct index_kind {
    const char *name;
    uint32_t queries_max; /* sampled queries that a build reads; 0: none are kept */
    bool has_rest;        /* its search can estimate the rest */
    size_t (*segment_bytes)(const index_params *params, uint32_t count); /* of a segment of so many tokens */
    size_t (*workspace_bytes)(const index_params *params, uint32_t count);
    size_t (*search_bytes)(const index_params *params, uint32_t query_count, uint32_t tokens_each);
    bool (*build_step)(index_building *building); /* true when the segment is done */
    /* Writes tokens (ascending, each once, no sinks), token_count, rest where it is asked for, and what was read. */
    void (*search)(const index_view *view, index_search *search);
};

extern const index_kind index_kind_exact, index_kind_bounds, index_kind_clusters, index_kind_graph;

/* Cuts memory into arrays; without memory (base NULL) it only counts what they take, so one function both measures
 * and lays out. */
typedef struct index_carve {
    unsigned char *base;
    size_t bytes;
} index_carve;

static inline void *index_carve_take(index_carve *carve, size_t bytes) {
    void *taken = carve->base != NULL ? carve->base + carve->bytes : NULL;
    carve->bytes += HD_ALIGN_UP(bytes, HD_CACHE_LINE);
    return taken;
}

#endif
