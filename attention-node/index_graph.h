/* index_graph.h - what a segment of the graph index holds.
 *
 * Keys are clustered in the space of index_space.h and named by their places, cluster after cluster. A key has
 * GRAPH_LINKS links to other keys of its segment; one that has fewer names itself in the rest. The first links of all
 * keys make one ring, so that from any key every other can be reached. A search follows links by what a key's code says
 * of it (index_sketch.h, the fine one, of what the key adds to its cluster's centre), and reads no keys.
 * Threads: segments are immutable; the functions are pure. */
#ifndef ATTENTION_NODE_INDEX_GRAPH_H
#define ATTENTION_NODE_INDEX_GRAPH_H

#include "attention-node/index_centres.h"
#include "attention-node/index_kind.h"
#include "attention-node/index_sketch.h"

enum {
    GRAPH_LINKS = 24,
    GRAPH_CLUSTER_KEYS = 128,  /* of a cluster, on average */
    GRAPH_CODE_DIM = 60,       /* coordinates of a code, at most: a row is then half a cache line */
    GRAPH_SHORT_CODE_DIM = 48, /* and of a key of no more than */
    GRAPH_SHORT_KEY = 64,
};

typedef struct graph_header {
    uint32_t place_count;
    sketch_plan plan;
} graph_header;

typedef struct graph_segment {                  /* where the parts of a segment's data lie */
    uint32_t dim;                               /* coordinates of the space */
    uint32_t code_bytes, row_bytes, link_bytes; /* of a code, of its row, of a link: 2 or 3 */
    graph_header *header;
    uint16_t *mean, *to_queries; /* bf16 [key_dim], [dim, key_dim] */
    index_centres centres;
    uint32_t *starts; /* [cluster count + 1]: the first place of each cluster */
    uint8_t *rows;    /* [places, row_bytes]: a key's code, and its cluster in 2 bytes; both low half first */
    uint8_t *links;   /* [places, GRAPH_LINKS] of link_bytes: places, the low byte first */
    uint32_t *tokens; /* [places], from the segment's first */
    size_t bytes;
} graph_segment;

static inline uint32_t graph_dim(const index_params *params) {
    return params->key_dim < SKETCH_DIM_MAX ? params->key_dim : SKETCH_DIM_MAX;
}

/* Of a segment of count keys whose data begin at base (NULL: only to know the bytes). */
graph_segment graph_lay_out(const index_params *params, uint32_t count, unsigned char *base);

static inline uint8_t *graph_row(const graph_segment *s, uint32_t place) {
    return s->rows + (size_t)place * s->row_bytes;
}

static inline uint32_t graph_row_cluster(const graph_segment *s, uint32_t place) {
    const uint8_t *from = graph_row(s, place) + s->code_bytes;
    return from[0] | (uint32_t)from[1] << 8;
}

static inline uint8_t *graph_links(const graph_segment *s, uint32_t place) {
    return s->links + (size_t)place * GRAPH_LINKS * s->link_bytes;
}

static inline uint32_t graph_link(const graph_segment *s, const uint8_t *links, uint32_t link) {
    const uint8_t *from = links + (size_t)link * s->link_bytes;
    return from[0] | (uint32_t)from[1] << 8 | (s->link_bytes == 3 ? (uint32_t)from[2] << 16 : 0);
}

size_t graph_workspace_bytes(const index_params *params, uint32_t count);
bool graph_build_step(index_building *building);
size_t graph_search_bytes(const index_params *params, uint32_t query_count, uint32_t tokens_each);
void graph_search(const index_view *view, index_search *search);

#endif
