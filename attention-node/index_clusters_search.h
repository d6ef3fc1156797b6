/* index_clusters_search.h - one search of a clusters index: what the finding of tokens leaves for the estimate of the
 * rest.
 *
 * Threads: one; the memory is the search's scratch. */
#ifndef ATTENTION_NODE_INDEX_CLUSTERS_SEARCH_H
#define ATTENTION_NODE_INDEX_CLUSTERS_SEARCH_H

#include "attention-node/index_clusters.h"

typedef struct segment_query { /* one query before one segment */
    clusters_segment at;
    uint32_t first_cluster, first_slot; /* of the segment's, among those of all */
    uint64_t first_token;
    float z[SKETCH_DIM_MAX];
    float offset;                       /* q . mean: what every key's score has in it */
    float deviation;                    /* of residuals' scores, at a spread of 1 */
    sketch_coarse_query coarse;
    sketch_fine_query fine;
} segment_query;

typedef struct clusters_list { /* a cluster whose sketches are read */
    uint32_t segment, cluster;
    uint32_t first, blocks;    /* its keys' places in `scores`, and how many blocks of them */
} clusters_list;

typedef struct clusters_search_state {
    const index_view *view;
    index_search *search;
    uint32_t segment_count, cluster_count, survivors_wanted;
    uint64_t keys_wanted;      /* of the lists that are read */
    segment_query *segments;
    float *query;              /* [key_dim] */
    float *bases;              /* [cluster_count] scores of centres, offset included */
    int32_t *sums;             /* [cluster_count] */
    float *reaches;            /* [cluster_count] what a list's better keys score */
    uint16_t *block_sums;
    /* The lists that are read, in the order of clusters, and their keys, slot by slot; minus infinity where a slot is
     * empty. */
    clusters_list *lists;
    uint32_t list_count, score_count;
    float *scores;
    /* The best of them. */
    uint32_t survivor_count;
    uint32_t *survivors;       /* ascending places in `scores` */
    uint32_t *survivor_lists;  /* the list of each */
    float *fine;               /* scores by their fine sketches */
    uint32_t *rows, *picks;
    int32_t *dots;
    uint32_t *found, *other;   /* slots, of all queries; room to sort */
    uint32_t found_count;
    /* Of the rest. */
    uint16_t *found_masks;     /* a mask of a block's slots that were found */
    uint32_t *found_counts;    /* [cluster_count] */
    float *weights;            /* [cluster_count] */
    uint16_t *weight_row;      /* bf16 weights of a segment's clusters, 64-byte aligned */
    float *part_tables;        /* a segment's sketches as nibble_moments takes them */
    uint8_t *part_nibbles;
    float *out;                /* [value_dim] */
    void *scratch;
    size_t bytes;
} clusters_search_state;

/* Writes the row of search->rest for the query that the state was last used for; found is complete. */
void clusters_estimate(clusters_search_state *state, uint32_t row);
/* Tells estimates what was found, by all queries together. */
void clusters_mark_found(clusters_search_state *state);

#endif
