/* index_clusters_search.c - from centres to lists, from lists to survivors, from survivors to tokens.
 *
 * For each query: the scores of all centres; the lists that are likeliest to hold the best keys, as many as hold a
 * fixed number of keys; the coarse sketches of these, of which the best survive; the fine sketches of the survivors, of
 * which the best are the answer. The numbers follow from how many tokens are asked for, and from the extent. */
#include "attention-node/index_clusters_search.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "attention-node/index_top.h"
#include "kernels/dtype.h"

/* ---- sizes ---- */

/* Measured on data of both kinds (docs/retrieval-index.md). */
static uint32_t survivors_wanted(uint64_t covered, uint32_t tokens_each) {
    uint64_t wanted = (uint64_t)tokens_each * 2 + 1000;
    return (uint32_t)(wanted < covered ? wanted : covered);
}

/* To end the search for the limit early, as many more survivors do no harm. */
static uint32_t survivors_slack(uint32_t wanted) {
    return wanted / 16;
}

static uint64_t keys_wanted(uint64_t covered, uint32_t tokens_each) {
    uint64_t wanted = (uint64_t)survivors_wanted(covered, tokens_each) * 5 + covered / 25;
    return wanted < covered ? wanted : covered;
}

/* Slots of the lists that a query reads: what is wanted, others in the same blocks, and a list larger than most. */
static uint32_t score_room(uint64_t keys_max, uint32_t tokens_each) {
    uint64_t all = keys_max + keys_max / CLUSTERS_KEYS * 2 * SCAN_BLOCK, room = 4 * keys_wanted(keys_max, tokens_each);
    room += 64 * (uint64_t)INDEX_GRAIN;
    return (uint32_t)(room < all ? room : all);
}

static void lay_out_query(clusters_query *q, const index_params *params, uint32_t tokens_each, index_carve *carve) {
    size_t clusters = params->keys_max / CLUSTERS_KEYS, survivors = survivors_wanted(params->keys_max, tokens_each);
    clusters_query unused;
    if (q == NULL) q = &unused;
    *q = (clusters_query){0};
    survivors += survivors_slack((uint32_t)survivors);
    q->segments = index_carve_take(carve, index_plan_max(params->keys_max) * sizeof(*q->segments));
    q->bases = index_carve_take(carve, clusters * sizeof(*q->bases));
    q->lists = index_carve_take(carve, clusters * sizeof(*q->lists));
    q->scores = index_carve_take(carve, score_room(params->keys_max, tokens_each) * sizeof(*q->scores));
    q->survivors = index_carve_take(carve, survivors * sizeof(*q->survivors));
    q->survivor_lists = index_carve_take(carve, survivors * sizeof(*q->survivor_lists));
    q->rows = index_carve_take(carve, survivors * sizeof(*q->rows));
    q->fine = index_carve_take(carve, survivors * sizeof(*q->fine));
}

static clusters_search_state lay_out(const index_params *params, uint32_t query_count, uint32_t tokens_each,
                                     unsigned char *base) {
    index_carve carve = {.base = base};
    uint32_t segments = index_plan_max(params->keys_max);
    size_t clusters = params->keys_max / CLUSTERS_KEYS, blocks = params->keys_max / SCAN_BLOCK;
    size_t survivors = survivors_wanted(params->keys_max, tokens_each), found = (size_t)query_count * tokens_each;
    survivors += survivors_slack((uint32_t)survivors);
    clusters_search_state s = {.score_room = score_room(params->keys_max, tokens_each)};
    s.places = index_carve_take(&carve, segments * sizeof(*s.places));
    s.queries = index_carve_take(&carve, query_count * sizeof(*s.queries));
    for (uint32_t i = 0; i < query_count; i++)
        lay_out_query(s.queries != NULL ? &s.queries[i] : NULL, params, tokens_each, &carve);
    s.query = index_carve_take(&carve, params->key_dim * sizeof(*s.query));
    s.sums = index_carve_take(&carve, clusters * sizeof(*s.sums));
    s.reaches = index_carve_take(&carve, clusters * sizeof(*s.reaches));
    s.picks = index_carve_take(&carve, survivors * sizeof(*s.picks));
    s.dots = index_carve_take(&carve, survivors * sizeof(*s.dots));
    s.sample = index_carve_take(&carve, (s.score_room / INDEX_CUT_SAMPLE + SCAN_BLOCK) * sizeof(*s.sample));
    s.found = index_carve_take(&carve, found * sizeof(*s.found));
    s.other = index_carve_take(&carve, found * sizeof(*s.other));
    if (params->has_rest) {
        size_t most = 128 * INDEX_GRAIN / CLUSTERS_KEYS + clusters_dim(params);
        s.weight_stride = kernel_input_stride(HD_BF16, (uint32_t)most);
        s.scratch = index_carve_take(&carve, params->kernels->scratch_bytes);
        s.found_masks = index_carve_take(&carve, blocks * sizeof(*s.found_masks));
        s.found_counts = index_carve_take(&carve, clusters * sizeof(*s.found_counts));
        s.spread_weights = index_carve_take(&carve, survivors * sizeof(*s.spread_weights));
        s.tilts = index_carve_take(&carve, survivors * sizeof(*s.tilts));
        s.out = index_carve_take(&carve, (size_t)query_count * params->value_dim * sizeof(*s.out));
        s.weights = index_carve_take(&carve, most * sizeof(*s.weights));
        s.weight_rows = index_carve_take(&carve, query_count * s.weight_stride * sizeof(*s.weight_rows));
    }
    s.bytes = carve.bytes;
    return s;
}

size_t clusters_search_bytes(const index_params *params, uint32_t query_count, uint32_t tokens_each) {
    return lay_out(params, query_count, tokens_each, NULL).bytes;
}

/* ---- centres ---- */

/* The scores of centres are products of small integers: the query's coordinates in 16 bits, the centres' in 8. */
static void score_centres(clusters_search_state *s, const clusters_place *place, const segment_query *q, float *bases) {
    const clusters_segment *at = &place->at;
    int16_t whole[SKETCH_DIM_MAX] = {0};
    float largest = 1e-30f;
    for (uint32_t i = 0; i < at->centre_dim; i++) largest = fabsf(q->z[i]) > largest ? fabsf(q->z[i]) : largest;
    for (uint32_t i = 0; i < at->centre_dim; i++) whole[i] = (int16_t)lrintf(q->z[i] * (32767.0f / largest));
    s->view->params->kernels->scan->byte_dots(whole, &at->centres, s->sums);
    for (uint32_t c = 0; c < at->cluster_count; c++)
        bases[c] = q->offset + (float)s->sums[c] * at->centres.scales[c] * (largest / 32767.0f);
}

static void ask_segment(clusters_search_state *s, const clusters_place *place, segment_query *q, float *bases) {
    const index_params *params = s->view->params;
    const clusters_segment *at = &place->at;
    params->kernels->scan->dot_rows(s->query, params->key_dim, at->mean, params->key_dim, 1, &q->offset);
    params->kernels->scan->dot_rows(s->query, params->key_dim, at->to_queries, params->key_dim, at->dim, q->z);
    q->deviation = sqrtf(segment_query_variance(q, at->header->residual_variances, at->dim));
    score_centres(s, place, q, bases);
    sketch_coarse_ask(&at->header->plan, q->z, &q->coarse);
    sketch_fine_ask(&at->header->plan, q->z, &q->fine);
    s->search->bytes_scanned += (at->dim + 1) * params->key_dim * sizeof(uint16_t) + sizeof(clusters_header) +
                                (size_t)at->cluster_count * (at->centre_dim + 3 * sizeof(float));
}

/* ---- lists ---- */

/* A list is as good as its better keys, which score a few deviations above its centre. */
static void set_reaches(clusters_search_state *s, const clusters_query *q, float *least, float *greatest) {
    const float above = 2.0f;
    *least = INFINITY;
    *greatest = -INFINITY;
    for (uint32_t n = 0; n < s->segment_count; n++) {
        const clusters_place *place = &s->places[n];
        const float *bases = q->bases + place->first_cluster, *spreads = place->at.spreads;
        float *reaches = s->reaches + place->first_cluster, deviations = above * q->segments[n].deviation;
        for (uint32_t c = 0; c < place->at.cluster_count; c++) {
            reaches[c] = bases[c] + deviations * spreads[c];
            *least = reaches[c] < *least ? reaches[c] : *least;
            *greatest = reaches[c] > *greatest ? reaches[c] : *greatest;
        }
    }
}

/* The reach from which on lists hold enough keys, to within a bucket. */
static float least_reach(const clusters_search_state *s, float least, float greatest) {
    enum { BUCKETS = 1024 };
    uint32_t keys[BUCKETS] = {0}, bucket = 0;
    float per_bucket = greatest > least ? (float)(BUCKETS - 1) / (greatest - least) : 0.0f;
    if (s->keys_wanted >= s->search->extent.covered || per_bucket <= 0.0f) return -INFINITY;
    for (uint32_t n = 0; n < s->segment_count; n++) {
        const clusters_place *place = &s->places[n];
        for (uint32_t c = 0; c < place->at.cluster_count; c++)
            keys[(uint32_t)((greatest - s->reaches[place->first_cluster + c]) * per_bucket)] += place->at.sizes[c];
    }
    for (uint64_t held = keys[0]; held < s->keys_wanted && bucket + 1 < BUCKETS;) held += keys[++bucket];
    return greatest - (float)(bucket + 1) / per_bucket;
}

static void choose_lists(clusters_search_state *s, clusters_query *q) {
    float least, greatest;
    set_reaches(s, q, &least, &greatest);
    float limit = least_reach(s, least, greatest);
    q->list_count = q->score_count = 0;
    for (uint32_t n = 0; n < s->segment_count; n++) {
        const clusters_place *place = &s->places[n];
        for (uint32_t c = 0; c < place->at.cluster_count; c++) {
            if (s->reaches[place->first_cluster + c] < limit || place->at.sizes[c] == 0) continue;
            uint32_t blocks = clusters_span_of(&place->at, c).blocks;
            if (blocks * SCAN_BLOCK > s->score_room - q->score_count) continue; /* it is estimated as a whole */
            q->lists[q->list_count++] =
                (clusters_list){.segment = n, .cluster = c, .first = q->score_count, .blocks = blocks};
            q->score_count += blocks * SCAN_BLOCK;
        }
    }
}

/* ---- sketches ---- */

static const uint8_t *list_blocks(const clusters_search_state *s, const clusters_list *list) {
    const clusters_segment *at = &s->places[list->segment].at;
    return at->blocks + (size_t)clusters_span_of(at, list->cluster).block * SCAN_BLOCK_BYTES;
}

static void score_lists(clusters_search_state *s, clusters_query *q) {
    enum { AHEAD = 3 };
    for (uint32_t i = 0; i < q->list_count; i++) {
        const clusters_list *list = &q->lists[i];
        const clusters_segment *at = &s->places[list->segment].at;
        const segment_query *before = &q->segments[list->segment];
        if (i + AHEAD < q->list_count) {
            const clusters_list *next = &q->lists[i + AHEAD];
            const uint8_t *ahead = list_blocks(s, next);
            for (uint32_t byte = 0; byte < next->blocks * SCAN_BLOCK_BYTES; byte += HD_CACHE_LINE)
                __builtin_prefetch(ahead + byte);
        }
        float spread = at->spreads[list->cluster], *scores = q->scores + list->first;
        float base = q->bases[s->places[list->segment].first_cluster + list->cluster] + spread * before->coarse.bias;
        s->view->params->kernels->scan->nibble_scores(before->coarse.tables, list_blocks(s, list), list->blocks, base,
                                                      spread * before->coarse.step, scores);
        uint32_t skipped = clusters_span_of(at, list->cluster).before;
        for (uint32_t k = 0; k < skipped; k++) scores[k] = -INFINITY;
        for (uint32_t k = skipped + at->sizes[list->cluster]; k < list->blocks * SCAN_BLOCK; k++) scores[k] = -INFINITY;
        s->search->bytes_scanned += (uint64_t)list->blocks * SCAN_BLOCK_BYTES;
    }
}

/* Ascending places of the best: all that are wanted, and up to slack more; fewer only where there are fewer. */
static uint32_t pick_best(clusters_search_state *s, const float *scores, uint32_t count, uint32_t wanted,
                          uint32_t slack, uint32_t *picks) {
    const kernel_scan *scan = s->view->params->kernels->scan;
    float limit = index_cut(scan, scores, count, wanted, slack, s->sample);
    uint32_t picked = scan->collect_from(scores, count, limit, picks, wanted + slack);
    while (picked > 0 && scores[picks[picked - 1]] == -INFINITY) picked--;
    return picked;
}

/* Fine scores of the survivors [first, end), which lie in one list. */
static void refine_list(const clusters_search_state *s, clusters_query *q, const clusters_list *list, uint32_t first,
                        uint32_t end) {
    const clusters_place *place = &s->places[list->segment];
    const sketch_fine_query *fine = &q->segments[list->segment].fine;
    float spread = place->at.spreads[list->cluster], step = spread * fine->step;
    float base = q->bases[place->first_cluster + list->cluster] + spread * fine->bias;
    for (uint32_t i = first; i < end; i++) q->fine[i] = base + step * (float)s->dots[i];
}

static void refine(clusters_search_state *s, clusters_query *q) {
    for (uint32_t i = 0, list = 0; i < q->survivor_count; list++) {
        const clusters_list *of = &q->lists[list];
        uint32_t end = of->first + of->blocks * SCAN_BLOCK;
        if (q->survivors[i] >= end) continue;
        uint32_t row = clusters_span_of(&s->places[of->segment].at, of->cluster).block * SCAN_BLOCK - of->first;
        for (; i < q->survivor_count && q->survivors[i] < end; i++) {
            q->survivor_lists[i] = list;
            q->rows[i] = row + q->survivors[i];
        }
    }
    for (uint32_t first = 0, end; first < q->survivor_count; first = end) { /* a segment at a time */
        uint32_t segment = q->lists[q->survivor_lists[first]].segment;
        const clusters_segment *at = &s->places[segment].at;
        for (end = first; end < q->survivor_count && q->lists[q->survivor_lists[end]].segment == segment;) end++;
        s->view->params->kernels->scan->nibble_dots(q->segments[segment].fine.weights, at->fine, at->fine_bytes,
                                                    q->rows + first, end - first, s->dots + first);
        s->search->bytes_scanned += (uint64_t)(end - first) * at->fine_bytes;
    }
    for (uint32_t first = 0, end; first < q->survivor_count; first = end) {
        uint32_t list = q->survivor_lists[first];
        for (end = first; end < q->survivor_count && q->survivor_lists[end] == list;) end++;
        refine_list(s, q, &q->lists[list], first, end);
    }
}

/* ---- queries ---- */

static void open_segments(clusters_search_state *s) {
    uint32_t clusters = 0, slots = 0;
    for (uint32_t n = 0; n < s->segment_count; n++) {
        const index_segment *segment = s->view->segments[n];
        clusters_place *place = &s->places[n];
        place->at = clusters_lay_out(s->view->params, segment->count, segment->data);
        place->first_cluster = clusters;
        place->first_slot = slots;
        place->first_token = segment->first;
        clusters += place->at.cluster_count;
        slots += place->at.block_count * SCAN_BLOCK;
    }
    s->cluster_count = clusters;
}

/* Adds the slots of what the query finds; q then holds what is known of the others. */
static void search_one(clusters_search_state *s, uint32_t row) {
    const index_search *search = s->search;
    clusters_query *q = &s->queries[row];
    for (uint32_t i = 0; i < s->view->params->key_dim; i++)
        s->query[i] = hd_bf16_to_f32(search->queries[row * search->query_stride + i]);
    for (uint32_t n = 0; n < s->segment_count; n++)
        ask_segment(s, &s->places[n], &q->segments[n], q->bases + s->places[n].first_cluster);
    choose_lists(s, q);
    score_lists(s, q);
    q->survivor_count = pick_best(s, q->scores, q->score_count, s->survivors_wanted,
                                  survivors_slack(s->survivors_wanted), q->survivors);
    refine(s, q);
    uint32_t count = pick_best(s, q->fine, q->survivor_count, search->tokens_each, 0, s->picks);
    q->found_least = INFINITY;
    for (uint32_t i = 0; i < count && count == search->tokens_each; i++)
        q->found_least = q->fine[s->picks[i]] < q->found_least ? q->fine[s->picks[i]] : q->found_least;
    for (uint32_t i = 0; i < count; i++) {
        const clusters_place *place = &s->places[q->lists[q->survivor_lists[s->picks[i]]].segment];
        __builtin_prefetch(&place->at.tokens[q->rows[s->picks[i]]]);
        s->found[s->found_count++] = place->first_slot + q->rows[s->picks[i]];
    }
}

/* Slots become tokens. */
static void write_tokens(clusters_search_state *s) {
    index_search *search = s->search;
    s->found_count = index_tokens_sort(s->found, s->other, s->found_count);
    for (uint32_t i = 0, n = 0; i < s->found_count; i++) {
        while (n + 1 < s->segment_count && s->found[i] >= s->places[n + 1].first_slot) n++;
        const clusters_place *place = &s->places[n];
        search->tokens[i] = (uint32_t)place->first_token + clusters_token(&place->at, s->found[i] - place->first_slot);
    }
    search->bytes_scanned += s->found_count * sizeof(uint32_t);
    search->token_count = index_tokens_sort(search->tokens, s->other, s->found_count);
}

void clusters_search(const index_view *view, index_search *search) {
    uint64_t covered = search->extent.covered;
    clusters_search_state s = lay_out(view->params, search->query_count, search->tokens_each, view->scratch);
    s.view = view;
    s.search = search;
    s.segment_count = view->segment_count;
    uint64_t findable = covered - (covered > 0 ? view->params->sinks : 0); /* others' slots would count as found */
    s.survivors_wanted = survivors_wanted(findable, search->tokens_each);
    s.keys_wanted = keys_wanted(covered, search->tokens_each);
    open_segments(&s);
    for (uint32_t q = 0; q < search->query_count && covered > 0; q++) search_one(&s, q);
    write_tokens(&s);
    if (search->rest != NULL) clusters_estimate(&s);
}
