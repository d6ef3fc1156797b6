/* index_clusters.h - what a segment of the clusters index holds.
 *
 * Keys are clustered in the space of index_space.h, about 64 to a cluster. A cluster's keys lie together, one cluster
 * after another without a gap, each as two sketches of what it adds to its cluster's centre (index_sketch.h). A slot is
 * a key's place. Coarse sketches come in blocks of 16 slots, so that a block may belong to several clusters: what is
 * read beside a cluster costs less than the gaps would take of memory.
 * Segments of many clusters have groups of them, which lie together in every coordinate that they were parted by, so
 * that a search reads the centres of likely groups alone.
 * Threads: segments are immutable; the functions are pure. */
#ifndef ATTENTION_NODE_INDEX_CLUSTERS_H
#define ATTENTION_NODE_INDEX_CLUSTERS_H

#include "attention-node/index_centres.h"
#include "attention-node/index_kind.h"
#include "attention-node/index_sketch.h"

enum {
    CLUSTERS_KEYS = 64,       /* of a cluster, on average */
    CLUSTERS_CENTRE_DIM = 32, /* of a centre, at most: beyond, it counts as 0 */
    CLUSTERS_GROUP = 64,      /* clusters: a panel of their centres */
    CLUSTERS_GROUPED = 1024,  /* segments of so many clusters have groups */
    CLUSTERS_FINE_DIM = 48,   /* coordinates of the fine sketch, at most, */
    CLUSTERS_SHORT_KEY = 64,  /* and for keys no longer than this, in segments where they are what takes memory, */
    CLUSTERS_SHORT_FINE_DIM = 40,
};

typedef struct clusters_header {
    float residual_variances[SKETCH_DIM_MAX]; /* by coordinate, over the square of their cluster's spread */
    float group_variances[SKETCH_DIM_MAX];    /* the same of centres in their groups */
    sketch_plan plan;
} clusters_header;

typedef struct clusters_segment { /* where the parts of a segment's data lie */
    uint32_t dim, centre_dim;     /* coordinates: of the space, and, fewer, of the centres */
    uint32_t cluster_count, block_count, fine_bytes;
    clusters_header *header;
    uint16_t *mean, *to_queries; /* bf16 [key_dim], [dim, key_dim] */
    kernel_matrix centres;       /* int8, a column each */
    index_centres groups;        /* none in short segments */
    float *group_spreads;        /* [groups.count] */
    float *spreads;              /* [cluster_count] of residuals, 1 on average */
    uint32_t *sizes, *starts;    /* [cluster_count]: starts, of slots */
    uint32_t *early_counts;   /* [cluster_count]: of a cluster's tokens, those below CLUSTERS_EARLY; they come first */
    uint16_t *block_clusters; /* [block_count]: of a block's first slot */
    uint8_t *blocks, *fine;
    uint16_t *tokens;     /* [slots], from the segment's first, ascending in a cluster: modulo CLUSTERS_EARLY */
    kernel_matrix values; /* with has_rest: bf16, as rows of k the mean value of each cluster, and behind them
                                   * how values change along each coordinate */
    size_t bytes;
} clusters_segment;

static inline uint32_t clusters_dim(const index_params *params) {
    return params->key_dim < SKETCH_DIM_MAX ? params->key_dim : SKETCH_DIM_MAX;
}

#define CLUSTERS_EARLY 65536u

/* Blocks that a cluster, which has keys, lies in: where they begin, how many there are, and the cluster's first slot in
 * the first of them. */
typedef struct clusters_span {
    uint32_t block, blocks, before;
} clusters_span;

static inline clusters_span clusters_span_of(const clusters_segment *s, uint32_t cluster) {
    uint32_t block = s->starts[cluster] / SCAN_BLOCK, end = s->starts[cluster] + s->sizes[cluster];
    return (clusters_span){block, (end + SCAN_BLOCK - 1) / SCAN_BLOCK - block, s->starts[cluster] % SCAN_BLOCK};
}

static inline uint32_t clusters_of_slot(const clusters_segment *s, uint32_t slot) {
    uint32_t cluster = s->block_clusters[slot / SCAN_BLOCK];
    while (slot - s->starts[cluster] >= s->sizes[cluster]) cluster++;
    return cluster;
}

/* From the segment's first. */
static inline uint32_t clusters_token(const clusters_segment *s, uint32_t slot) {
    uint32_t cluster = clusters_of_slot(s, slot);
    return s->tokens[slot] + (slot - s->starts[cluster] >= s->early_counts[cluster] ? CLUSTERS_EARLY : 0);
}

/* Of a segment of count keys whose data begin at base (NULL: only to know the bytes). */
clusters_segment clusters_lay_out(const index_params *params, uint32_t count, unsigned char *base);

size_t clusters_workspace_bytes(const index_params *params, uint32_t count);
bool clusters_build_step(index_building *building);
size_t clusters_search_bytes(const index_params *params, uint32_t query_count, uint32_t tokens_each);
void clusters_search(const index_view *view, index_search *search);

#endif
