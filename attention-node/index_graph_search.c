/* index_graph_search.c - best-first search of all segments' graphs at once, by what codes say of keys.
 *
 * A query's clusters are its entries: the keys of the best are scored one after another, as they lie. One frontier then
 * holds the keys that were scored and not yet followed, of all segments; the best is followed next, until it scores
 * less than all of the best that were seen, or as many keys were scored as the budget allows.
 * Links lead to a key from others that score nearly as much. A key that stands alone, as what answers a question often
 * does, has none: it is found among the entries or by chance. So a good share of what may be scored is entries, and a
 * short extent is read in order instead. */
#include <math.h>
#include <string.h>

#include "attention-node/index_graph.h"
#include "attention-node/index_top.h"
#include "kernels/dtype.h"

enum {
    VISITS_EACH = 16,   /* keys that may be scored for each token asked for, */
    VISITS_MORE = 2048, /* and beside */
    USUAL_KEYS = 128 * INDEX_GRAIN,
    VISITS_KEYS = 64, /* of an extent's keys beyond those, for one visit more, */
    BEAM_KEYS = 2048, /* and for one more in the beam */
    ENTRY_SHARE = 4,  /* of them, one in so many is a key of the best clusters */
    ENTRY_LEAST = 16, /* of every segment's best, so that none is out of reach */
    VISIT_PIECE = 64, /* keys that are scored together */
    READ_SHARE = 2,   /* an extent of at most so many times as many keys is read in order */
};

typedef struct segment_query { /* a segment, and what the query is there */
    graph_segment at;
    uint32_t first_cluster, first_place; /* of all segments' */
    uint64_t first_token;
    sketch_fine_query fine;
} segment_query;

typedef struct search_state {
    const index_view *view;
    index_search *search;
    segment_query *segments;
    uint64_t *seen;     /* a bit for each place that was scored */
    uint64_t *frontier; /* a heap of items of places, the largest first */
    uint32_t frontier_count;
    uint32_t visits_left;
    bool is_walk; /* what is scored may be followed */
    index_top best;
    uint64_t *best_items;
    float *bases; /* of all segments' clusters */
    uint32_t *picks;
    float *query;    /* [key_dim] */
    uint32_t *other; /* room to sort */
    size_t bytes;
} search_state;

/* The best of many keys are harder to tell from the others. */
static uint64_t beyond_usual(uint64_t covered) {
    return covered > USUAL_KEYS ? covered - USUAL_KEYS : 0;
}

static uint32_t visits_most(uint64_t covered, uint32_t tokens_each) {
    uint64_t visits = (uint64_t)VISITS_EACH * tokens_each + VISITS_MORE + beyond_usual(covered) / VISITS_KEYS;
    return (uint32_t)(visits < covered ? visits : covered);
}

/* A search goes on until nothing is left to follow that scores more than so many: more than are returned, since the
 * way to a good key leads over lesser ones. */
static uint32_t beam(uint64_t covered, uint32_t tokens_each) {
    return tokens_each + tokens_each / 2 + (uint32_t)(beyond_usual(covered) / BEAM_KEYS);
}

static search_state lay_out(const index_params *params, uint32_t query_count, uint32_t tokens_each,
                            unsigned char *base) {
    index_carve carve = {.base = base};
    size_t visits = visits_most(params->keys_max, tokens_each), keys = params->keys_max;
    size_t clusters = keys / GRAPH_CLUSTER_KEYS;
    search_state s = {
        .segments = index_carve_take(&carve, index_plan_max(keys) * sizeof(segment_query)),
        .seen = index_carve_take(&carve, (keys / 64 + 1) * sizeof(uint64_t)),
        .frontier = index_carve_take(&carve, visits * sizeof(uint64_t)),
        .best_items = index_carve_take(&carve, index_top_room(beam(keys, tokens_each)) * sizeof(uint64_t)),
        .bases = index_carve_take(&carve, clusters * sizeof(float)),
        .picks = index_carve_take(&carve, clusters * sizeof(uint32_t)),
        .query = index_carve_take(&carve, params->key_dim * sizeof(float)),
        .other = index_carve_take(&carve, (size_t)query_count * tokens_each * sizeof(uint32_t)),
    };
    s.bytes = carve.bytes;
    return s;
}

size_t graph_search_bytes(const index_params *params, uint32_t query_count, uint32_t tokens_each) {
    return lay_out(params, query_count, tokens_each, NULL).bytes;
}

/* ---- the frontier ---- */

static void push(search_state *s, uint64_t item) {
    uint32_t at = s->frontier_count++;
    for (; at > 0 && s->frontier[(at - 1) / 2] < item; at = (at - 1) / 2) s->frontier[at] = s->frontier[(at - 1) / 2];
    s->frontier[at] = item;
}

static uint64_t pop(search_state *s) {
    uint64_t top = s->frontier[0], last = s->frontier[--s->frontier_count];
    uint32_t at = 0, count = s->frontier_count;
    for (uint32_t child = 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && s->frontier[child + 1] > s->frontier[child]) child++;
        if (s->frontier[child] <= last) break;
        s->frontier[at] = s->frontier[child];
        at = child;
    }
    s->frontier[at] = last;
    return top;
}

/* Scores those of at most VISIT_PIECE places of a segment that were not scored yet. */
static void visit(search_state *s, const segment_query *q, const uint32_t *places, uint32_t count) {
    const graph_segment *at = &q->at;
    uint32_t rows[VISIT_PIECE], unseen = 0;
    int32_t dots[VISIT_PIECE];
    for (uint32_t i = 0; i < count && s->visits_left > 0; i++) {
        uint32_t place = q->first_place + places[i];
        uint64_t bit = (uint64_t)1 << place % 64;
        if ((s->seen[place / 64] & bit) != 0) continue;
        s->seen[place / 64] |= bit;
        s->visits_left--;
        rows[unseen++] = places[i];
        __builtin_prefetch(graph_row(at, places[i]));
    }
    s->view->params->kernels->scan->nibble_dots(q->fine.weights, at->rows, at->row_bytes, rows, unseen, dots);
    s->search->bytes_scanned += (uint64_t)unseen * at->row_bytes;
    for (uint32_t i = 0; i < unseen; i++) {
        float base = s->bases[q->first_cluster + graph_row_cluster(at, rows[i])] + q->fine.bias;
        uint64_t item = index_item(base + q->fine.step * (float)dots[i], q->first_place + rows[i]);
        if (item <= s->best.least) continue; /* neither among the best nor ever followed */
        index_top_add(&s->best, item);
        if (s->is_walk) push(s, item);
    }
}

static void visit_range(search_state *s, const segment_query *q, uint32_t first, uint32_t end) {
    uint32_t places[VISIT_PIECE];
    for (uint32_t count; first < end; first += count) {
        count = end - first < VISIT_PIECE ? end - first : VISIT_PIECE;
        for (uint32_t i = 0; i < count; i++) places[i] = first + i;
        visit(s, q, places, count);
    }
}

/* ---- one query ---- */

static void open_segments(search_state *s) {
    uint32_t clusters = 0, places = 0;
    for (uint32_t n = 0; n < s->view->segment_count; n++) {
        const index_segment *segment = s->view->segments[n];
        segment_query *q = &s->segments[n];
        q->at = graph_lay_out(s->view->params, segment->count, segment->data);
        q->first_cluster = clusters;
        q->first_place = places;
        q->first_token = segment->first;
        clusters += q->at.centres.count;
        places += q->at.header->place_count;
    }
}

static void ask_segment(search_state *s, segment_query *q) {
    const index_params *params = s->view->params;
    const kernel_scan *scan = params->kernels->scan;
    const graph_segment *at = &q->at;
    float z[SKETCH_DIM_MAX], offset;
    scan->dot_rows(s->query, params->key_dim, at->mean, params->key_dim, 1, &offset);
    scan->dot_rows(s->query, params->key_dim, at->to_queries, params->key_dim, at->dim, z);
    index_centres_score(&at->centres, scan, z, offset, s->bases + q->first_cluster);
    sketch_fine_ask(&at->header->plan, z, &q->fine);
    s->search->bytes_scanned +=
        (at->dim + 1) * params->key_dim * sizeof(uint16_t) + sizeof(graph_header) + index_centres_bytes(&at->centres);
}

/* A few keys of every segment's best cluster, and all keys of the best of all. */
static void enter(search_state *s) {
    const kernel_ops *kernels = s->view->params->kernels;
    uint32_t count = 0, wanted = s->visits_left / ENTRY_SHARE / GRAPH_CLUSTER_KEYS;
    for (uint32_t n = 0; n < s->view->segment_count; n++) {
        const segment_query *q = &s->segments[n];
        uint32_t best;
        kernels->logits_summary(s->bases + q->first_cluster, q->at.centres.count, &best, NULL, NULL);
        uint32_t first = q->at.starts[best], end = q->at.starts[best + 1];
        visit_range(s, q, first, end - first < ENTRY_LEAST ? end : first + ENTRY_LEAST);
        count += q->at.centres.count;
    }
    float limit = index_cut(kernels->scan, s->bases, count, wanted, 0, NULL);
    uint32_t picked = kernels->scan->collect_from(s->bases, count, limit, s->picks, wanted);
    for (uint32_t i = 0, n = 0; i < picked; i++) {
        while (s->picks[i] >= s->segments[n].first_cluster + s->segments[n].at.centres.count) n++;
        const segment_query *q = &s->segments[n];
        const uint32_t *starts = q->at.starts + s->picks[i] - q->first_cluster;
        visit_range(s, q, starts[0], starts[1]);
    }
    s->search->bytes_scanned += (s->view->segment_count + picked) * 2 * sizeof(uint32_t);
}

/* Every code, as they lie. */
static void read_all(search_state *s) {
    for (uint32_t n = 0; n < s->view->segment_count; n++)
        visit_range(s, &s->segments[n], 0, s->segments[n].at.header->place_count);
}

static const segment_query *segment_of(const search_state *s, uint32_t place) {
    uint32_t low = 0, high = s->view->segment_count;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (s->segments[middle].first_place <= place) low = middle;
        else high = middle;
    }
    return &s->segments[low];
}

/* The next to be followed, most often. */
static void prefetch_links(const search_state *s, uint32_t place) {
    const segment_query *q = segment_of(s, place);
    const uint8_t *links = graph_links(&q->at, place - q->first_place);
    __builtin_prefetch(links);
    __builtin_prefetch(links + HD_CACHE_LINE);
}

static void follow(search_state *s, uint32_t place) {
    const segment_query *q = segment_of(s, place);
    const uint8_t *links = graph_links(&q->at, place - q->first_place);
    uint32_t places[GRAPH_LINKS];
    for (uint32_t i = 0; i < GRAPH_LINKS; i++) places[i] = graph_link(&q->at, links, i);
    visit(s, q, places, GRAPH_LINKS);
    s->search->bytes_scanned += GRAPH_LINKS * q->at.link_bytes;
}

static uint32_t search_one(search_state *s, uint32_t row, uint32_t *tokens) {
    const index_search *search = s->search;
    uint64_t covered = search->extent.covered;
    for (uint32_t i = 0; i < s->view->params->key_dim; i++)
        s->query[i] = hd_bf16_to_f32(search->queries[row * search->query_stride + i]);
    for (uint32_t n = 0; n < s->view->segment_count; n++) ask_segment(s, &s->segments[n]);
    memset(s->seen, 0, (covered / 64 + 1) * sizeof(*s->seen));
    s->frontier_count = 0;
    s->visits_left = visits_most(covered, search->tokens_each);
    s->is_walk = covered > (uint64_t)READ_SHARE * s->visits_left;
    if (!s->is_walk) s->visits_left = (uint32_t)covered;
    index_top_init(&s->best, s->best_items, beam(covered, search->tokens_each));
    if (s->is_walk) enter(s);
    else read_all(s);
    while (s->frontier_count > 0 && s->visits_left > 0) {
        uint64_t item = pop(s);
        if (item < s->best.least) break;
        if (s->frontier_count > 0) prefetch_links(s, index_item_token(s->frontier[0]));
        follow(s, index_item_token(item));
    }
    uint32_t count = s->best.count < search->tokens_each ? s->best.count : search->tokens_each;
    index_items_select(s->best.items, s->best.count, count);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t place = index_item_token(s->best.items[i]);
        const segment_query *q = segment_of(s, place);
        tokens[i] = (uint32_t)q->first_token + q->at.tokens[place - q->first_place];
    }
    s->search->bytes_scanned += count * sizeof(uint32_t);
    return count;
}

void graph_search(const index_view *view, index_search *search) {
    search_state s = lay_out(view->params, search->query_count, search->tokens_each, view->scratch);
    uint32_t count = 0;
    s.view = view;
    s.search = search;
    open_segments(&s);
    for (uint32_t q = 0; q < search->query_count && view->segment_count > 0; q++)
        count += search_one(&s, q, search->tokens + count);
    search->token_count = index_tokens_sort(search->tokens, s.other, count);
}
