/* index_graph_search.c - best-first search of all segments' graphs at once, by exact scores.
 *
 * One frontier holds the keys that were scored and not yet followed, of all segments; the best is followed next, until
 * it scores less than all of the best that were seen, or as many keys were scored as the budget allows. */
#include <math.h>
#include <string.h>

#include "attention-node/index_graph.h"
#include "attention-node/index_top.h"
#include "kernels/dtype.h"

enum {
    VISITS_EACH = 16,   /* keys that may be scored for each token asked for, */
    VISITS_MORE = 1024, /* and beside */
    ENTRIES_LEAST = 16,
    ENTRY_TOKENS = 8, /* one entry more for so many tokens asked for */
};

typedef struct search_state {
    const index_view *view;
    index_search *search;
    uint64_t *seen;        /* a bit for each token that was scored */
    uint64_t *frontier;    /* a heap of items, the largest first */
    uint32_t frontier_count;
    uint32_t visits_left;
    index_top best;
    uint64_t *best_items;
    float *entry_scores;   /* of all segments' entries */
    uint32_t *entry_picks;
    float *query;          /* [key_dim] */
    uint16_t *key;         /* room for one */
    uint32_t *other;       /* room to sort */
    size_t bytes;
} search_state;

static uint32_t visits_most(uint64_t covered, uint32_t tokens_each) {
    uint64_t visits = (uint64_t)VISITS_EACH * tokens_each + VISITS_MORE;
    return (uint32_t)(visits < covered ? visits : covered);
}

/* A search goes on until nothing is left to follow that scores more than so many: more than are returned, since the
 * way to a good key leads over lesser ones. */
static uint32_t beam(uint32_t tokens_each) {
    return tokens_each + tokens_each / 2;
}

static uint32_t entries_wanted(uint32_t tokens_each) {
    return ENTRIES_LEAST + tokens_each / ENTRY_TOKENS;
}

static search_state lay_out(const index_params *params, uint32_t query_count, uint32_t tokens_each,
                            unsigned char *base) {
    index_carve carve = {.base = base};
    size_t visits = visits_most(params->keys_max, tokens_each), keys = params->keys_max;
    search_state s = {
        .seen = index_carve_take(&carve, (keys / 64 + 1) * sizeof(uint64_t)),
        .frontier = index_carve_take(&carve, visits * sizeof(uint64_t)),
        .best_items = index_carve_take(&carve, index_top_room(beam(tokens_each)) * sizeof(uint64_t)),
        .entry_scores = index_carve_take(&carve, keys / GRAPH_ENTRY_KEYS * sizeof(float)),
        .entry_picks = index_carve_take(&carve, entries_wanted(tokens_each) * sizeof(uint32_t)),
        .query = index_carve_take(&carve, params->key_dim * sizeof(float)),
        .key = index_carve_take(&carve, params->key_dim * sizeof(uint16_t)),
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

static void visit(search_state *s, uint32_t token) {
    const index_params *params = s->view->params;
    uint64_t bit = (uint64_t)1 << token % 64;
    if ((s->seen[token / 64] & bit) != 0 || s->visits_left == 0) return;
    s->seen[token / 64] |= bit;
    s->visits_left--;
    const uint16_t *key = s->view->source->keys(s->view->source->context, token, 1, s->key);
    float score;
    params->kernels->scan->dot_rows(s->query, params->key_dim, key, params->key_dim, 1, &score);
    uint64_t item = index_item(score, token);
    s->search->bytes_scanned += params->key_dim * sizeof(uint16_t);
    index_top_add(&s->best, item);
    push(s, item);
}

/* ---- one query ---- */

static graph_segment segment_at(const search_state *s, uint32_t n) {
    const index_segment *segment = s->view->segments[n];
    return graph_lay_out(s->view->params, segment->count, segment->data);
}

/* The best entry of every segment, so that none is out of reach, and the best of all. */
static void enter(search_state *s) {
    const index_params *params = s->view->params;
    const kernel_scan *scan = params->kernels->scan;
    uint32_t count = 0;
    for (uint32_t n = 0; n < s->view->segment_count; n++) {
        graph_segment segment = segment_at(s, n);
        uint32_t best;
        scan->dot_rows(s->query, params->key_dim, segment.entries, params->key_dim, *segment.entry_count,
                       s->entry_scores + count);
        params->kernels->logits_summary(s->entry_scores + count, *segment.entry_count, &best, NULL, NULL);
        visit(s, (uint32_t)s->view->segments[n]->first + segment.entry_tokens[best]);
        count += *segment.entry_count;
    }
    s->search->bytes_scanned += (uint64_t)count * params->key_dim * sizeof(uint16_t);
    uint32_t wanted = entries_wanted(s->search->tokens_each);
    float limit = index_cut(scan, s->entry_scores, count, wanted);
    uint32_t picked = scan->collect_from(s->entry_scores, count, limit, s->entry_picks, wanted);
    for (uint32_t n = 0, i = 0, first = 0; n < s->view->segment_count; n++) {
        graph_segment segment = segment_at(s, n);
        for (; i < picked && s->entry_picks[i] < first + *segment.entry_count; i++)
            visit(s, (uint32_t)s->view->segments[n]->first + segment.entry_tokens[s->entry_picks[i] - first]);
        first += *segment.entry_count;
    }
}

static const index_segment *segment_of(const search_state *s, uint32_t token) {
    uint32_t low = 0, high = s->view->segment_count;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (s->view->segments[middle]->first <= token) low = middle;
        else high = middle;
    }
    return s->view->segments[low];
}

static void follow(search_state *s, uint32_t token) {
    const index_segment *segment = segment_of(s, token);
    graph_segment graph = graph_lay_out(s->view->params, segment->count, segment->data);
    uint32_t first = (uint32_t)segment->first;
    for (uint32_t i = 0; i < GRAPH_LINKS; i++) visit(s, first + graph_link(&graph, token - first, i));
    s->search->bytes_scanned += GRAPH_LINKS * graph.link_bytes;
}

static uint32_t search_one(search_state *s, uint32_t row, uint32_t *tokens) {
    const index_search *search = s->search;
    uint64_t covered = search->extent.covered;
    for (uint32_t i = 0; i < s->view->params->key_dim; i++)
        s->query[i] = hd_bf16_to_f32(search->queries[row * search->query_stride + i]);
    memset(s->seen, 0, (covered / 64 + 1) * sizeof(*s->seen));
    s->frontier_count = 0;
    s->visits_left = visits_most(covered, search->tokens_each);
    index_top_init(&s->best, s->best_items, beam(search->tokens_each));
    enter(s);
    while (s->frontier_count > 0 && s->visits_left > 0) {
        uint64_t item = pop(s);
        if (item < s->best.least) break;
        follow(s, index_item_token(item));
    }
    uint32_t count = s->best.count < search->tokens_each ? s->best.count : search->tokens_each;
    index_items_select(s->best.items, s->best.count, count);
    for (uint32_t i = 0; i < count; i++) tokens[i] = index_item_token(s->best.items[i]);
    return count;
}

void graph_search(const index_view *view, index_search *search) {
    search_state s = lay_out(view->params, search->query_count, search->tokens_each, view->scratch);
    uint32_t count = 0;
    s.view = view;
    s.search = search;
    for (uint32_t q = 0; q < search->query_count && view->segment_count > 0; q++)
        count += search_one(&s, q, search->tokens + count);
    search->token_count = index_tokens_sort(search->tokens, s.other, count);
}
