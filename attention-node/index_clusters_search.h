/* index_clusters_search.h - one search of a clusters index: what the finding of tokens leaves for the estimate of the
 * rest.
 *
 * The queries of a search go over the index one after another, and what each has learnt on its way is kept until all of
 * them have found their tokens: then the estimates follow from it, without reading anything again.
 * Threads: one; the memory is the search's scratch. */
#ifndef ATTENTION_NODE_INDEX_CLUSTERS_SEARCH_H
#define ATTENTION_NODE_INDEX_CLUSTERS_SEARCH_H

#include "attention-node/index_clusters.h"

typedef struct clusters_place { /* a segment among those of the extent */
    clusters_segment at;
    uint32_t first_cluster, first_slot, first_group; /* among those of all segments */
    uint64_t first_token;
} clusters_place;

typedef struct segment_query { /* one query before one segment */
    float z[SKETCH_DIM_MAX];
    float offset;    /* q . mean: what every key's score has in it */
    float deviation; /* of residuals' scores, at a spread of 1 */
    sketch_coarse_query coarse;
    sketch_fine_query fine;
    uint32_t scores_end, survivors_end; /* where its part of the query's scores and survivors ends */
} segment_query;

typedef struct clusters_list { /* a cluster whose sketches are read */
    uint32_t segment, cluster;
    uint32_t first, blocks;     /* its keys' places in `scores`, and how many blocks of them */
    uint32_t row;               /* added to a place in `scores`, its slot in the segment */
    float spread;               /* of its keys */
    float fine_base, fine_step; /* of their fine scores */
} clusters_list;

typedef struct clusters_query {
    segment_query *segments;
    float *bases;    /* [cluster_count] scores of centres, offset included; of groups that are not read, their own */
    bool *is_unread; /* [group_count] */
    /* The lists that are read, in the order of clusters, and their keys, slot by slot; minus infinity in the slots
     * of others. */
    clusters_list *lists;
    uint32_t list_count, score_count;
    uint16_t *block_lists; /* the list of a block of scores */
    float *scores;         /* once the best have survived, minus infinity for them */
    /* The best of them. */
    uint32_t survivor_count;
    uint32_t *survivors;      /* ascending places in `scores` */
    uint32_t *survivor_lists; /* the list of each */
    uint32_t *rows;           /* their slots in their segments */
    float *fine;              /* their scores by their fine sketches */
    float found_least;        /* score of the worst that it found; infinity where it found fewer than it asked for */
    /* How far the estimate has come. */
    uint32_t list_next, survivor_next;
    float max;   /* what exponentials refer to */
    float limit; /* what the score of a key that was not found stays below, times scale; at most max */
} clusters_query;

typedef struct clusters_search_state {
    const index_view *view;
    index_search *search;
    uint32_t segment_count, cluster_count, group_count; /* of the extent */
    uint32_t survivors_wanted, score_room;
    uint64_t keys_wanted;               /* of the lists that are read */
    uint32_t announced, announced_each; /* of the tokens found, and with each list that is weighed */
    clusters_place *places;
    clusters_query *queries; /* [query_count] */
    float *query;            /* [key_dim] */
    float *group_reaches;    /* [group_count] what a group's better clusters score */
    float *reaches;          /* [cluster_count] what a list's better keys score */
    uint32_t *picks;
    int32_t *dots;
    float *sample;          /* of scores, to find their limit */
    uint16_t *found_masks;  /* for each block of all segments, the slots that any query found */
    uint32_t *found_counts; /* [cluster_count] */
    uint64_t *token_masks;  /* the same of 64 tokens */
    /* Of the rest. */
    float *key_weights;    /* of survivors */
    float *key_spreads;    /* of the same, their clusters' */
    float *spread_weights; /* of survivors or clusters, times their spreads */
    float *weights;        /* [cluster_count of a segment + dim]: of clusters, then of their gradients */
    uint16_t *weight_rows; /* the same in bf16, a row for each query, 64-byte aligned */
    size_t weight_stride;
    float *out; /* [query_count, value_dim] */
    void *scratch;
    size_t bytes;
} clusters_search_state;

/* The variance of a query's score whose coordinates have these: dim is a multiple of 16. */
static inline float segment_query_variance(const segment_query *q, const float *variances, uint32_t dim) {
    enum { LANES = 8 }; /* sums that wait for each other no longer than a register takes */
    float sums[LANES] = {0};
    for (uint32_t i = 0; i < dim; i += LANES)
        for (uint32_t lane = 0; lane < LANES; lane++)
            sums[lane] += q->z[i + lane] * q->z[i + lane] * variances[i + lane];
    for (uint32_t lane = 0; lane < LANES / 2; lane++) sums[lane] += sums[lane + LANES / 2];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

/* The scores of the centres of clusters [first, first + count), whole groups or all that a segment has. */
static inline void clusters_score_centres(const clusters_search_state *s, const clusters_place *place,
                                          const segment_query *q, uint32_t first, uint32_t count, float *bases) {
    index_centres part = {.matrix = place->at.centres, .dim = place->at.centre_dim, .count = count};
    part.matrix.n = count;
    part.matrix.n_padded = HD_ALIGN_UP(count, KERNEL_N_ALIGN);
    part.matrix.data = (int8_t *)part.matrix.data + (size_t)first * part.matrix.k_padded;
    part.matrix.scales += first;
    index_centres_score(&part, s->view->params->kernels->scan, q->z, q->offset, bases + first);
}

/* What that reads, with spreads and sizes. */
static inline size_t clusters_centre_bytes(const clusters_segment *at, uint32_t count) {
    return (size_t)count * (at->centre_dim + 3 * sizeof(float));
}

/* Fills search->rest; every query has been over the index, and found is complete. */
void clusters_estimate(clusters_search_state *state);

#endif
