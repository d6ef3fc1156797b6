/* index_graph.h - what a segment of the graph index holds.
 *
 * A key has GRAPH_LINKS links to other keys of its segment; one that has fewer names itself in the rest. The first
 * links of all keys make one ring, so that from any key every other can be reached. Entries are clusters of keys: the
 * mean of each, which a search scores, and the key nearest to it, from which it sets out.
 * Threads: segments are immutable; the functions are pure. */
#ifndef ATTENTION_NODE_INDEX_GRAPH_H
#define ATTENTION_NODE_INDEX_GRAPH_H

#include "attention-node/index_kind.h"

enum {
    GRAPH_LINKS = 32,
    GRAPH_ENTRY_KEYS = 128, /* of a cluster, on average */
};

typedef struct graph_segment { /* where the parts of a segment's data lie */
    uint32_t entry_max;
    uint32_t *entry_count;
    uint16_t *entries;         /* bf16 [entry_count, key_dim]: means */
    uint32_t *entry_tokens;    /* [entry_count], from the segment's first, as all tokens here */
    uint8_t *links;            /* [count, GRAPH_LINKS] of link_bytes, the low byte first */
    uint32_t link_bytes;       /* 2 or 3 */
    size_t bytes;
} graph_segment;

/* Of a segment of count keys whose data begin at base (NULL: only to know the bytes). */
graph_segment graph_lay_out(const index_params *params, uint32_t count, unsigned char *base);

static inline uint8_t *graph_link_at(const graph_segment *s, uint32_t token, uint32_t link) {
    return s->links + ((size_t)token * GRAPH_LINKS + link) * s->link_bytes;
}

static inline uint32_t graph_link(const graph_segment *s, uint32_t token, uint32_t link) {
    const uint8_t *from = graph_link_at(s, token, link);
    return from[0] | (uint32_t)from[1] << 8 | (s->link_bytes == 3 ? (uint32_t)from[2] << 16 : 0);
}

static inline void graph_set_link(const graph_segment *s, uint32_t token, uint32_t link, uint32_t to) {
    uint8_t *bytes = graph_link_at(s, token, link);
    for (uint32_t i = 0; i < s->link_bytes; i++) bytes[i] = (uint8_t)(to >> 8 * i);
}

size_t graph_workspace_bytes(const index_params *params, uint32_t count);
bool graph_build_step(index_building *building);
size_t graph_search_bytes(const index_params *params, uint32_t query_count, uint32_t tokens_each);
void graph_search(const index_view *view, index_search *search);

#endif
