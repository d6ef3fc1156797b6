/* index_graph.c - making a segment of the graph index (RetrievalAttention, arXiv 2409.10516; RoarGraph, VLDB 2024).
 *
 * Queries are unlike keys, so that keys which one query wants need not be near each other. Links come from two sides:
 *   1. Each sampled query has its best keys; the first of them and its neighbours in that order are candidates for each
 *      other. This is the bipartite graph of queries and keys, projected onto the keys.
 *   2. A key's neighbours in the order of clusters are candidates too, since a segment may have few queries, and most
 *      keys are no query's best.
 * Of either side the nearest are kept, less those that lie closer to one that was kept than to the key itself. Links
 * are then made to go both ways as far as there is room, and the order of clusters closes to a ring.
 * Near is meant in the space of index_space.h, in which distance is how differently queries score two keys. Places are
 * keys in the order of clusters; sinks have none. */
#include "attention-node/index_graph.h"

#include <string.h>

#include "attention-node/index_points.h"
#include "attention-node/index_top.h"
#include "kernels/dtype.h"

enum {
    DIM_MAX = SKETCH_DIM_MAX,
    QUERIES = 8192,      /* whose best keys are linked, at most */
    QUERY_KEYS = 4,      /* at least so many keys for each query that is read */
    QUERY_CLUSTERS = 32, /* in which a query's best keys are looked for */
    QUERY_BEST = 64,
    QUERY_LINKS = 10, /* links by queries, */
    NEAR_LINKS = 12,  /* and by nearness; what is left goes to links back */
    WINDOW = 96,      /* places around a key's own */
    NEAREST = 32,     /* of them, that are candidates */
    PIECE = 4096,     /* keys of a step, */
    LINK_PIECE = 512,
    QUERY_PIECE = 64, /* and queries */
};

typedef enum {
    FIT,
    PROJECT,
    TRAIN,
    ASSIGN,
    ARRANGE,
    PLACE,
    CENTRES,
    ENCODE,
    ANSWER,
    LINK,
    LINK_BACK,
    WRITE,
    DONE
} build_phase;

typedef struct workspace { /* of a build; begins its memory, arrays follow */
    index_points points;
    uint32_t *clusters;     /* [count], by key */
    uint32_t *places;       /* [count], by key */
    float *centres;         /* [cluster_count, dim]: means, and then what a search sees of them */
    uint16_t *means;        /* bf16 [cluster_count, dim] */
    float *squares;         /* [count] of points' lengths, by place */
    uint32_t *rows;         /* [count, GRAPH_LINKS], by place: candidates by queries, and then links, as places */
    uint32_t *offer_counts; /* [count]: of all that were made, of which the last ones are kept */
    uint8_t *link_counts;   /* [count] */
    float *scores;          /* of clusters, or of the keys of some */
    uint32_t *picks;        /* [QUERY_CLUSTERS] */
    uint64_t *items;
} workspace;

graph_segment graph_lay_out(const index_params *params, uint32_t count, unsigned char *base) {
    index_carve carve = {.base = base};
    uint32_t clusters = count / GRAPH_CLUSTER_KEYS, dim = graph_dim(params);
    uint32_t most = params->key_dim <= GRAPH_SHORT_KEY ? GRAPH_SHORT_CODE_DIM : GRAPH_CODE_DIM;
    graph_segment s = {
        .dim = dim, .code_bytes = (dim < most ? dim : most) / 2, .link_bytes = count - 1 <= UINT16_MAX ? 2 : 3};
    s.row_bytes = s.code_bytes + sizeof(uint16_t);
    s.header = index_carve_take(&carve, sizeof(*s.header));
    s.mean = index_carve_take(&carve, params->key_dim * sizeof(uint16_t));
    s.to_queries = index_carve_take(&carve, (size_t)dim * params->key_dim * sizeof(uint16_t));
    index_centres_lay_out(&s.centres, clusters, dim, &carve);
    s.starts = index_carve_take(&carve, (clusters + 1) * sizeof(uint32_t));
    s.rows = index_carve_take(&carve, (size_t)count * s.row_bytes + SCAN_ROW_BYTES);
    s.links = index_carve_take(&carve, (size_t)count * GRAPH_LINKS * s.link_bytes);
    s.tokens = index_carve_take(&carve, count * sizeof(uint32_t));
    s.bytes = carve.bytes;
    return s;
}

static size_t segment_bytes(const index_params *params, uint32_t count) {
    return graph_lay_out(params, count, NULL).bytes;
}

static size_t lay_out_workspace(const index_params *params, uint32_t count, unsigned char *base, workspace *w) {
    index_carve carve = {.base = base};
    uint32_t clusters = count / GRAPH_CLUSTER_KEYS, dim = graph_dim(params);
    index_carve_take(&carve, sizeof(workspace));
    index_points_lay_out(&w->points, params, count, dim, clusters, &carve);
    w->clusters = index_carve_take(&carve, count * sizeof(uint32_t));
    w->places = index_carve_take(&carve, count * sizeof(uint32_t));
    w->centres = index_carve_take(&carve, (size_t)clusters * dim * sizeof(float));
    w->means = index_carve_take(&carve, (size_t)clusters * dim * sizeof(uint16_t));
    w->squares = index_carve_take(&carve, count * sizeof(float));
    w->rows = index_carve_take(&carve, (size_t)count * GRAPH_LINKS * sizeof(uint32_t));
    w->offer_counts = index_carve_take(&carve, count * sizeof(uint32_t));
    w->link_counts = index_carve_take(&carve, count);
    w->scores = index_carve_take(&carve, count * sizeof(float)); /* one cluster may hold everything */
    w->picks = index_carve_take(&carve, QUERY_CLUSTERS * sizeof(uint32_t));
    w->items = index_carve_take(&carve, (index_top_room(QUERY_BEST) + WINDOW + GRAPH_LINKS) * sizeof(uint64_t));
    return carve.bytes;
}

size_t graph_workspace_bytes(const index_params *params, uint32_t count) {
    workspace unused;
    return lay_out_workspace(params, count, NULL, &unused);
}

/* ---- places and entries ---- */

static uint32_t place_count(const index_building *building) {
    return building->segment->count - index_points_first(building);
}

static void fit(index_building *building, workspace *w, graph_segment *s) {
    uint32_t dim = building->params->key_dim;
    index_points_fit(&w->points, building);
    for (uint32_t j = 0; j < dim; j++) s->mean[j] = hd_f32_to_bf16(w->points.space.mean[j]);
    for (size_t i = 0; i < (size_t)s->dim * dim; i++) s->to_queries[i] = hd_f32_to_bf16(w->points.space.to_queries[i]);
}

static void arrange(const index_building *building, workspace *w, graph_segment *s) {
    uint32_t count = building->segment->count, clusters = s->centres.count, skipped = index_points_first(building);
    s->header->place_count = place_count(building);
    for (uint32_t key = skipped; key < count; key++) s->starts[w->clusters[key] + 1]++;
    for (uint32_t c = 0; c < clusters; c++) s->starts[c + 1] += s->starts[c];
    for (uint32_t key = 0; key < skipped; key++) w->places[key] = count - skipped + key; /* where nobody looks */
    for (uint32_t key = skipped; key < count; key++) {
        uint32_t place = s->starts[w->clusters[key]]++;
        w->places[key] = place;
        s->tokens[place] = key;
    }
    memmove(s->starts + 1, s->starts, clusters * sizeof(*s->starts)); /* each had moved to its end */
    s->starts[0] = 0;
    memset(w->offer_counts, 0, count * sizeof(*w->offer_counts));
}

static float dot(const index_building *building, const workspace *w, const float *x, uint32_t at) {
    float product;
    building->params->kernels->scan->dot_rows(x, w->points.space.dim, index_points_at(&w->points, at), w->points.stride,
                                              1, &product);
    return product;
}

/* The centre of a cluster's points; of one without keys it is 0. */
static void set_centre(const index_building *building, workspace *w, const graph_segment *s, uint32_t cluster) {
    uint32_t dim = s->dim, first = s->starts[cluster], end = s->starts[cluster + 1];
    float *centre = w->centres + (size_t)cluster * dim, x[DIM_MAX];
    float share = 1.0f / (float)(end > first ? end - first : 1);
    memset(centre, 0, dim * sizeof(*centre));
    for (uint32_t at = first; at < end; at++) {
        index_points_load(&w->points, at, x);
        w->squares[at] = dot(building, w, x, at);
        for (uint32_t i = 0; i < dim; i++) centre[i] += x[i] * share;
        graph_row(s, at)[s->code_bytes] = (uint8_t)cluster;
        graph_row(s, at)[s->code_bytes + 1] = (uint8_t)(cluster >> 8);
    }
    building->params->kernels->convert(centre, HD_F32, w->means + (size_t)cluster * dim, HD_BF16, dim);
}

/* ---- codes ---- */

static void residual_of(const workspace *w, const graph_segment *s, uint32_t at, float *x) {
    const float *centre = w->centres + (size_t)graph_row_cluster(s, at) * s->dim;
    index_points_load(&w->points, at, x);
    for (uint32_t i = 0; i < s->dim; i++) x[i] -= centre[i];
}

static void plan_codes(workspace *w, graph_segment *s) {
    float variances[SKETCH_DIM_MAX] = {0}, x[SKETCH_DIM_MAX];
    uint32_t places = s->header->place_count;
    index_centres_set(&s->centres, w->centres, s->dim);
    for (uint32_t at = 0; at < places; at++) {
        residual_of(w, s, at, x);
        for (uint32_t i = 0; i < s->dim; i++) variances[i] += x[i] * x[i];
    }
    for (uint32_t i = 0; i < s->dim; i++) variances[i] /= (float)places;
    sketch_plan_make(&s->header->plan, variances, s->dim, s->code_bytes * 2);
}

static void encode(const workspace *w, const graph_segment *s, uint32_t at) {
    float x[SKETCH_DIM_MAX];
    residual_of(w, s, at, x);
    sketch_encode_fine(&s->header->plan, x, graph_row(s, at));
}

/* ---- what queries link ---- */

static void offer(workspace *w, uint32_t to, uint32_t candidate) {
    w->rows[(size_t)to * GRAPH_LINKS + w->offer_counts[to]++ % GRAPH_LINKS] = candidate;
}

/* The best keys of a query, best first, as items of places; there may be fewer. */
static uint32_t find_best(const index_building *building, workspace *w, const graph_segment *s, const float *z) {
    const kernel_scan *scan = building->params->kernels->scan;
    uint32_t clusters = s->centres.count, dim = s->dim;
    index_top top;
    index_top_init(&top, w->items, QUERY_BEST);
    scan->dot_rows(z, dim, w->means, dim, clusters, w->scores);
    float limit = index_cut(scan, w->scores, clusters, QUERY_CLUSTERS, 0, NULL);
    uint32_t picked = scan->collect_from(w->scores, clusters, limit, w->picks, QUERY_CLUSTERS);
    for (uint32_t p = 0; p < picked; p++) {
        uint32_t first = s->starts[w->picks[p]], count = s->starts[w->picks[p] + 1] - first;
        scan->dot_rows(z, dim, index_points_at(&w->points, first), w->points.stride, count, w->scores);
        for (uint32_t i = 0; i < count; i++) index_top_add(&top, index_item(w->scores[i], first + i));
    }
    index_top_shrink(&top);
    return top.count;
}

static void sort_descending(uint64_t *items, uint32_t count) { /* a few dozen */
    for (uint32_t i = 1; i < count; i++) {
        uint64_t item = items[i];
        uint32_t at = i;
        for (; at > 0 && items[at - 1] < item; at--) items[at] = items[at - 1];
        items[at] = item;
    }
}

static void answer(const index_building *building, workspace *w, const graph_segment *s, uint32_t row) {
    uint32_t key_dim = building->params->key_dim;
    const uint16_t *query = building->queries + (size_t)row * key_dim;
    float z[DIM_MAX] = {0};
    for (uint32_t i = 0; i < w->points.space.dim; i++)
        for (uint32_t j = 0; j < key_dim; j++)
            z[i] += w->points.space.to_queries[(size_t)i * key_dim + j] * hd_bf16_to_f32(query[j]);
    uint32_t count = find_best(building, w, s, z);
    sort_descending(w->items, count);
    for (uint32_t i = 1; i < count; i++) {
        uint32_t first = index_item_token(w->items[0]), before = index_item_token(w->items[i - 1]);
        uint32_t here = index_item_token(w->items[i]);
        offer(w, first, here);
        if (i == 1) continue;
        offer(w, here, first);
        offer(w, before, here);
        offer(w, here, before);
    }
}

/* ---- links ---- */

static bool has_link(const uint32_t *links, uint32_t count, uint32_t to) {
    for (uint32_t i = 0; i < count; i++)
        if (links[i] == to) return true;
    return false;
}

/* Adds at most `room` of the candidates, the nearest first, but for those that a link is nearer to than the key. Items
 * are scored by minus the squared distance. */
static void prune(const index_building *building, workspace *w, uint32_t at, uint64_t *items, uint32_t count,
                  uint32_t room) {
    uint32_t *links = w->rows + (size_t)at * GRAPH_LINKS, before = w->link_counts[at];
    float x[DIM_MAX];
    sort_descending(items, count);
    for (uint32_t i = 0; i < count && room > 0; i++) {
        uint32_t candidate = index_item_token(items[i]), links_now = w->link_counts[at];
        if (candidate == at || has_link(links, links_now, candidate)) continue;
        bool is_hidden = false;
        index_points_load(&w->points, candidate, x);
        for (uint32_t j = before; j < links_now && !is_hidden; j++) {
            float between = w->squares[candidate] + w->squares[links[j]] - 2.0f * dot(building, w, x, links[j]);
            is_hidden = between < -index_item_score(items[i]);
        }
        if (is_hidden) continue;
        links[w->link_counts[at]++] = candidate;
        room--;
    }
}

static uint32_t take_offers(const index_building *building, workspace *w, uint32_t at, const float *x) {
    uint32_t count = w->offer_counts[at] < GRAPH_LINKS ? w->offer_counts[at] : GRAPH_LINKS;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t candidate = w->rows[(size_t)at * GRAPH_LINKS + i];
        float distance = w->squares[at] + w->squares[candidate] - 2.0f * dot(building, w, x, candidate);
        w->items[i] = index_item(-distance, candidate);
    }
    return count;
}

static void link_by_nearness(const index_building *building, workspace *w, uint32_t at, const float *x) {
    uint32_t places = place_count(building), count = places < WINDOW ? places : WINDOW;
    uint32_t first = at < WINDOW / 2 ? 0 : at - WINDOW / 2;
    if (first > places - count) first = places - count;
    building->params->kernels->scan->dot_rows(x, w->points.space.dim, index_points_at(&w->points, first),
                                              w->points.stride, count, w->scores);
    for (uint32_t i = 0; i < count; i++)
        w->items[i] = index_item(2.0f * w->scores[i] - w->squares[at] - w->squares[first + i], first + i);
    uint32_t nearest = count < NEAREST ? count : NEAREST;
    index_items_select(w->items, count, nearest);
    prune(building, w, at, w->items, nearest, NEAR_LINKS);
}

static void link_place(const index_building *building, workspace *w, uint32_t at) {
    float x[DIM_MAX];
    index_points_load(&w->points, at, x);
    uint32_t offered = take_offers(building, w, at, x); /* out of the row, before links come into it */
    w->rows[(size_t)at * GRAPH_LINKS] = at + 1 < place_count(building) ? at + 1 : 0; /* the ring */
    w->link_counts[at] = 1;
    prune(building, w, at, w->items, offered, QUERY_LINKS);
    link_by_nearness(building, w, at, x);
}

static void link_back(workspace *w, uint32_t at) {
    const uint32_t *links = w->rows + (size_t)at * GRAPH_LINKS;
    for (uint32_t i = 0; i < w->link_counts[at]; i++) {
        uint32_t to = links[i], *back = w->rows + (size_t)to * GRAPH_LINKS;
        if (w->link_counts[to] < GRAPH_LINKS && !has_link(back, w->link_counts[to], at))
            back[w->link_counts[to]++] = at;
    }
}

static void write_links(const workspace *w, const graph_segment *s, uint32_t at) {
    uint8_t *links = graph_links(s, at);
    for (uint32_t i = 0; i < GRAPH_LINKS; i++) {
        uint32_t to = i < w->link_counts[at] ? w->rows[(size_t)at * GRAPH_LINKS + i] : at;
        for (uint32_t b = 0; b < s->link_bytes; b++) *links++ = (uint8_t)(to >> 8 * b);
    }
}

/* ---- steps ---- */

/* A short segment is given many queries from before it; a share of them tells enough of its few keys. */
static uint32_t queries_read(const index_building *building) {
    uint32_t most = building->segment->count / QUERY_KEYS;
    return building->query_count < most ? building->query_count : most;
}

static void answer_piece(const index_building *building, workspace *w, const graph_segment *s, uint32_t first,
                         uint32_t end) {
    for (uint32_t i = first; i < end; i++)
        answer(building, w, s, (uint32_t)((uint64_t)i * building->query_count / queries_read(building)));
}

/* Each phase but the short ones goes over its items a piece at a time; this takes the next piece and says whether it
 * was the phase's last. */
static bool run_phase(index_building *building, workspace *w, graph_segment *s) {
    uint32_t total = building->segment->count, first = building->cursor, piece = PIECE;
    if (building->phase == CENTRES) total = s->centres.count;
    if (building->phase == ANSWER) total = queries_read(building);
    if (building->phase == PROJECT || building->phase == PLACE) piece = INDEX_GRAIN;
    if (building->phase == ENCODE || building->phase >= LINK) total = place_count(building);
    if (building->phase == LINK) piece = LINK_PIECE;
    if (building->phase == ANSWER || building->phase == CENTRES) piece = QUERY_PIECE;
    uint32_t end = total - first < piece ? total : first + piece;
    switch ((build_phase)building->phase) {
    case FIT: fit(building, w, s); return true;
    case TRAIN: return kmeans_train(&w->points.clustering);
    case ARRANGE: arrange(building, w, s); return true;
    case PROJECT: index_points_project(&w->points, building, first, NULL); break;
    case ASSIGN: index_points_assign(&w->points, building, first, end - first, w->clusters); break;
    case PLACE: index_points_project(&w->points, building, first, w->places); break;
    case CENTRES:
        for (uint32_t c = first; c < end; c++) set_centre(building, w, s, c);
        if (end == total) plan_codes(w, s);
        break;
    case ENCODE:
        for (uint32_t at = first; at < end; at++) encode(w, s, at);
        break;
    case ANSWER: answer_piece(building, w, s, first, end); break;
    case LINK:
        for (uint32_t at = first; at < end; at++) link_place(building, w, at);
        break;
    case LINK_BACK:
        for (uint32_t at = first; at < end; at++) link_back(w, at);
        break;
    case WRITE:
        for (uint32_t at = first; at < end; at++) write_links(w, s, at);
        break;
    case DONE: return true;
    }
    building->cursor = end;
    return end == total;
}

bool graph_build_step(index_building *building) {
    workspace *w = building->workspace;
    uint32_t count = building->segment->count;
    if (building->phase == FIT) lay_out_workspace(building->params, count, building->workspace, w);
    graph_segment s = graph_lay_out(building->params, count, building->segment->data);
    if (!run_phase(building, w, &s)) return false;
    building->phase++;
    building->cursor = 0;
    if (building->phase == TRAIN) kmeans_begin(&w->points.clustering);
    return building->phase == DONE;
}

const index_kind index_kind_graph = {
    .name = "graph",
    .queries_max = QUERIES,
    .segment_bytes = segment_bytes,
    .workspace_bytes = graph_workspace_bytes,
    .search_bytes = graph_search_bytes,
    .build_step = graph_build_step,
    .search = graph_search,
};
