/* index_clusters_search.c - from centres to lists, from lists to survivors, from survivors to tokens.
 *
 * For each query: the scores of all centres; the lists that are likeliest to hold the best keys, as many as hold a
 * fixed number of keys; the coarse sketches of these, of which the best survive; the fine sketches of the survivors, of
 * which the best are the answer. The numbers follow from how many tokens are asked for, and from the extent. */
#include "attention-node/index_clusters_search.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "attention-node/index_centres.h"
#include "attention-node/index_top.h"
#include "kernels/dtype.h"

enum { MASK_TOKENS = 64 }; /* of a word of token_masks */
_Static_assert(SCAN_BLOCK == 16 && INDEX_GRAIN % (4 * SCAN_BLOCK) == 0 && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "the masks of four blocks are a word, and the blocks of a segment are whole words");

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

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

static void lay_out_query(clusters_query *q, const index_params *params, uint32_t tokens_each, index_carve *carve) {
    size_t clusters = params->keys_max / CLUSTERS_KEYS, survivors = survivors_wanted(params->keys_max, tokens_each);
    clusters_query unused;
    if (q == NULL) q = &unused;
    *q = (clusters_query){0};
    survivors += survivors_slack((uint32_t)survivors);
    q->segments = index_carve_take(carve, index_plan_max(params->keys_max) * sizeof(*q->segments));
    q->bases = index_carve_take(carve, clusters * sizeof(*q->bases));
    q->is_unread = index_carve_take(carve, clusters / CLUSTERS_GROUP * sizeof(*q->is_unread));
    q->lists = index_carve_take(carve, clusters * sizeof(*q->lists));
    uint32_t scores = score_room(params->keys_max, tokens_each);
    q->block_lists = index_carve_take(carve, scores / SCAN_BLOCK * sizeof(*q->block_lists));
    q->scores = index_carve_take(carve, scores * sizeof(*q->scores));
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
    size_t survivors = survivors_wanted(params->keys_max, tokens_each);
    survivors += survivors_slack((uint32_t)survivors);
    clusters_search_state s = {.score_room = score_room(params->keys_max, tokens_each)};
    s.places = index_carve_take(&carve, segments * sizeof(*s.places));
    s.queries = index_carve_take(&carve, query_count * sizeof(*s.queries));
    for (uint32_t i = 0; i < query_count; i++)
        lay_out_query(s.queries != NULL ? &s.queries[i] : NULL, params, tokens_each, &carve);
    s.query = index_carve_take(&carve, params->key_dim * sizeof(*s.query));
    s.group_reaches = index_carve_take(&carve, clusters / CLUSTERS_GROUP * sizeof(*s.group_reaches));
    s.reaches = index_carve_take(&carve, clusters * sizeof(*s.reaches));
    s.picks = index_carve_take(&carve, larger(survivors, clusters) * sizeof(*s.picks));
    s.dots = index_carve_take(&carve, survivors * sizeof(*s.dots));
    s.sample = index_carve_take(&carve, (s.score_room / INDEX_CUT_SAMPLE + SCAN_BLOCK) * sizeof(*s.sample));
    s.found_masks = index_carve_take(&carve, blocks * sizeof(*s.found_masks));
    s.found_counts = index_carve_take(&carve, clusters * sizeof(*s.found_counts));
    s.token_masks = index_carve_take(&carve, params->keys_max / MASK_TOKENS * sizeof(*s.token_masks));
    if (params->has_rest) {
        size_t most = 128 * INDEX_GRAIN / CLUSTERS_KEYS + clusters_dim(params);
        s.weight_stride = kernel_input_stride(HD_BF16, (uint32_t)most);
        s.scratch = index_carve_take(&carve, params->kernels->scratch_bytes);
        s.key_weights = index_carve_take(&carve, survivors * sizeof(*s.key_weights));
        s.key_spreads = index_carve_take(&carve, survivors * sizeof(*s.key_spreads));
        s.spread_weights = index_carve_take(&carve, larger(survivors, most) * sizeof(*s.spread_weights));
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

static void ask_segment(clusters_search_state *s, const clusters_place *place, segment_query *q) {
    const index_params *params = s->view->params;
    const clusters_segment *at = &place->at;
    params->kernels->scan->dot_rows(s->query, params->key_dim, at->mean, params->key_dim, 1, &q->offset);
    params->kernels->scan->dot_rows(s->query, params->key_dim, at->to_queries, params->key_dim, at->dim, q->z);
    q->deviation = sqrtf(segment_query_variance(q, at->header->residual_variances, at->dim));
    sketch_coarse_ask(&at->header->plan, q->z, &q->coarse);
    sketch_fine_ask(&at->header->plan, q->z, &q->fine);
    s->search->bytes_scanned += (at->dim + 1) * params->key_dim * sizeof(uint16_t) + sizeof(clusters_header);
}

/* As a list by its better keys, a group is judged by its better clusters. */
static void set_group_reaches(const clusters_search_state *s, const clusters_place *place, const segment_query *q) {
    const float above = 2.0f;
    const clusters_segment *at = &place->at;
    float *reaches = s->group_reaches + place->first_group;
    if (at->groups.count == 0) return;
    index_centres_score(&at->groups, s->view->params->kernels->scan, q->z, q->offset, reaches);
    float deviations = above * sqrtf(segment_query_variance(q, at->header->group_variances, at->dim));
    for (uint32_t g = 0; g < at->groups.count; g++) reaches[g] += deviations * at->group_spreads[g];
    s->search->bytes_scanned += index_centres_bytes(&at->groups) + at->groups.count * sizeof(float);
}

/* A few times as many groups are read as would hold the keys that are wanted, if they lay side by side; of one segment's,
 * nearly all. Longer keys lie closer to each other by their first coordinates, and a centre is less beside them. */
static void choose_groups(clusters_search_state *s, clusters_query *q) {
    enum { LEAST = 16, SHARE = 16, TIMES = 3, USUAL_DIM = 64 };
    uint64_t times = TIMES * (s->view->params->key_dim + USUAL_DIM - 1) / USUAL_DIM;
    uint64_t wanted =
        LEAST + s->group_count / SHARE + times * s->group_count * s->keys_wanted / s->search->extent.covered;
    float limit = -INFINITY;
    if (wanted < s->group_count)
        limit = index_cut(s->view->params->kernels->scan, s->group_reaches, s->group_count, (uint32_t)wanted, 0, NULL);
    for (uint32_t g = 0; g < s->group_count; g++) q->is_unread[g] = s->group_reaches[g] < limit;
}

static void score_centres(clusters_search_state *s, const clusters_query *q, uint32_t segment) {
    const clusters_place *place = &s->places[segment];
    const segment_query *asked = &q->segments[segment];
    float *bases = q->bases + place->first_cluster;
    uint32_t groups = place->at.groups.count, read = 0;
    if (groups == 0) clusters_score_centres(s, place, asked, 0, read = place->at.cluster_count, bases);
    for (uint32_t g = 0; g < groups; g++) {
        uint32_t first = g * CLUSTERS_GROUP;
        if (!q->is_unread[place->first_group + g]) {
            clusters_score_centres(s, place, asked, first, CLUSTERS_GROUP, bases);
            read += CLUSTERS_GROUP;
            continue;
        }
        for (uint32_t c = first; c < first + CLUSTERS_GROUP; c++) bases[c] = s->group_reaches[place->first_group + g];
    }
    s->search->bytes_scanned += clusters_centre_bytes(&place->at, read);
}

/* ---- lists ---- */

/* A list is as good as its better keys, which score a few deviations above its centre. */
static void set_reaches(clusters_search_state *s, const clusters_query *q, float *least, float *greatest) {
    const float above = 2.0f;
    *least = INFINITY;
    *greatest = -INFINITY;
    for (uint32_t n = 0; n < s->segment_count; n++) {
        const clusters_place *place = &s->places[n];
        float low, high;
        s->view->params->kernels->scan->add_scaled(q->bases + place->first_cluster, place->at.spreads,
                                                   above * q->segments[n].deviation, place->at.cluster_count,
                                                   s->reaches + place->first_cluster, &low, &high);
        *least = low < *least ? low : *least;
        *greatest = high > *greatest ? high : *greatest;
    }
    for (uint32_t n = 0; n < s->segment_count; n++) { /* those of groups that are not read come last */
        const clusters_place *place = &s->places[n];
        for (uint32_t g = 0; g < place->at.groups.count; g++) {
            if (!q->is_unread[place->first_group + g]) continue;
            float *reaches = s->reaches + place->first_cluster + g * CLUSTERS_GROUP;
            for (uint32_t c = 0; c < CLUSTERS_GROUP; c++) reaches[c] = *least;
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

static void add_list(clusters_search_state *s, clusters_query *q, uint32_t segment, uint32_t cluster) {
    const clusters_place *place = &s->places[segment];
    const segment_query *asked = &q->segments[segment];
    if (place->at.sizes[cluster] == 0) return;
    clusters_span span = clusters_span_of(&place->at, cluster);
    if (span.blocks * SCAN_BLOCK > s->score_room - q->score_count) return; /* it is estimated as a whole */
    float spread = place->at.spreads[cluster];
    for (uint32_t b = 0; b < span.blocks; b++)
        q->block_lists[q->score_count / SCAN_BLOCK + b] = (uint16_t)q->list_count;
    q->lists[q->list_count++] =
        (clusters_list){.segment = segment,
                        .cluster = cluster,
                        .first = q->score_count,
                        .blocks = span.blocks,
                        .row = span.block * SCAN_BLOCK - q->score_count,
                        .spread = spread,
                        .fine_base = q->bases[place->first_cluster + cluster] + spread * asked->fine.bias,
                        .fine_step = spread * asked->fine.step};
    q->score_count += span.blocks * SCAN_BLOCK;
}

static void choose_lists(clusters_search_state *s, clusters_query *q) {
    float least, greatest;
    set_reaches(s, q, &least, &greatest);
    float limit = least_reach(s, least, greatest);
    uint32_t count =
        s->view->params->kernels->scan->collect_from(s->reaches, s->cluster_count, limit, s->picks, s->cluster_count);
    q->list_count = q->score_count = 0;
    for (uint32_t n = 0, i = 0; n < s->segment_count; n++) {
        const clusters_place *place = &s->places[n];
        for (; i < count && s->picks[i] < place->first_cluster + place->at.cluster_count; i++)
            add_list(s, q, n, s->picks[i] - place->first_cluster);
        q->segments[n].scores_end = q->score_count;
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

/* How many survivors lie before a place; of the first ones it is known. */
static uint32_t survivors_before(const clusters_query *q, uint32_t place, uint32_t low) {
    uint32_t high = q->survivor_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (q->survivors[middle] < place) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* Where survivors lie, and their fine scores, a segment at a time. */
static void refine(clusters_search_state *s, clusters_query *q) {
    for (uint32_t i = 0; i < q->survivor_count; i++) {
        uint32_t place = q->survivors[i], list = q->block_lists[place / SCAN_BLOCK];
        q->scores[place] = -INFINITY;
        q->survivor_lists[i] = list;
        q->rows[i] = place + q->lists[list].row;
    }
    for (uint32_t n = 0, first = 0; n < s->segment_count; n++) {
        segment_query *asked = &q->segments[n];
        const clusters_segment *at = &s->places[n].at;
        uint32_t end = asked->survivors_end = survivors_before(q, asked->scores_end, first);
        s->view->params->kernels->scan->nibble_dots(asked->fine.weights, at->fine, at->fine_bytes, q->rows + first,
                                                    end - first, s->dots + first);
        s->search->bytes_scanned += (uint64_t)(end - first) * at->fine_bytes;
        first = end;
    }
    for (uint32_t i = 0; i < q->survivor_count; i++) {
        const clusters_list *list = &q->lists[q->survivor_lists[i]];
        q->fine[i] = list->fine_base + list->fine_step * (float)s->dots[i];
    }
}

/* ---- queries ---- */

static void open_segments(clusters_search_state *s) {
    uint32_t clusters = 0, slots = 0, groups = 0;
    for (uint32_t n = 0; n < s->segment_count; n++) {
        const index_segment *segment = s->view->segments[n];
        clusters_place *place = &s->places[n];
        place->at = clusters_lay_out(s->view->params, segment->count, segment->data);
        place->first_cluster = clusters;
        place->first_slot = slots;
        place->first_group = groups;
        place->first_token = segment->first;
        clusters += place->at.cluster_count;
        slots += place->at.block_count * SCAN_BLOCK;
        groups += place->at.groups.count;
    }
    s->cluster_count = clusters;
    s->group_count = groups;
    memset(s->found_masks, 0, slots / SCAN_BLOCK * sizeof(*s->found_masks));
    memset(s->found_counts, 0, clusters * sizeof(*s->found_counts));
}

/* The first `count` of s->picks among the survivors are found, most of them by other queries too. */
static void mark_found(clusters_search_state *s, const clusters_query *q, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        uint32_t slot = q->rows[s->picks[i]];
        const clusters_list *list = &q->lists[q->survivor_lists[s->picks[i]]];
        const clusters_place *place = &s->places[list->segment];
        uint16_t *mask = &s->found_masks[(place->first_slot + slot) / SCAN_BLOCK],
                 bit = (uint16_t)(1u << slot % SCAN_BLOCK);
        s->found_counts[place->first_cluster + list->cluster] += (*mask & bit) == 0;
        *mask |= bit;
        __builtin_prefetch(&place->at.tokens[slot]);
    }
}

/* Adds the slots of what the query finds; q then holds what is known of the others. */
static void search_one(clusters_search_state *s, uint32_t row) {
    const index_search *search = s->search;
    clusters_query *q = &s->queries[row];
    for (uint32_t i = 0; i < s->view->params->key_dim; i++)
        s->query[i] = hd_bf16_to_f32(search->queries[row * search->query_stride + i]);
    for (uint32_t n = 0; n < s->segment_count; n++) {
        ask_segment(s, &s->places[n], &q->segments[n]);
        set_group_reaches(s, &s->places[n], &q->segments[n]);
    }
    choose_groups(s, q);
    for (uint32_t n = 0; n < s->segment_count; n++) score_centres(s, q, n);
    choose_lists(s, q);
    score_lists(s, q);
    q->survivor_count = pick_best(s, q->scores, q->score_count, s->survivors_wanted,
                                  survivors_slack(s->survivors_wanted), q->survivors);
    refine(s, q);
    uint32_t count = pick_best(s, q->fine, q->survivor_count, search->tokens_each, 0, s->picks);
    q->found_least = INFINITY;
    for (uint32_t i = 0; i < count && count == search->tokens_each; i++)
        q->found_least = q->fine[s->picks[i]] < q->found_least ? q->fine[s->picks[i]] : q->found_least;
    mark_found(s, q, count);
}

/* The token of a slot; only in a long segment its cluster tells which half it is in. */
static uint64_t token_at(const clusters_place *place, bool is_long, uint32_t slot) {
    return place->first_token + (is_long ? clusters_token(&place->at, slot) : place->at.tokens[slot]);
}

/* The tokens of a segment's slots whose bits are set, four blocks at a time. */
static void mark_tokens(clusters_search_state *s, const clusters_place *place) {
    enum { AT_ONCE = 4 };
    const uint16_t *masks = s->found_masks + place->first_slot / SCAN_BLOCK;
    bool is_long = place->at.block_count * SCAN_BLOCK > CLUSTERS_EARLY;
    for (uint32_t first = 0; first < place->at.block_count; first += AT_ONCE) {
        uint64_t mask;
        memcpy(&mask, masks + first, sizeof(mask));
        for (; mask != 0; mask &= mask - 1) {
            uint64_t token = token_at(place, is_long, first * SCAN_BLOCK + (uint32_t)__builtin_ctzll(mask));
            s->token_masks[token / MASK_TOKENS] |= (uint64_t)1 << token % MASK_TOKENS;
        }
    }
}

/* Slots become tokens, and tokens a list in order. */
static void write_tokens(clusters_search_state *s) {
    index_search *search = s->search;
    uint32_t words = (uint32_t)(search->extent.covered / MASK_TOKENS);
    memset(s->token_masks, 0, words * sizeof(*s->token_masks));
    for (uint32_t n = 0; n < s->segment_count; n++) mark_tokens(s, &s->places[n]);
    search->token_count = 0;
    for (uint32_t word = 0; word < words; word++)
        for (uint64_t mask = s->token_masks[word]; mask != 0; mask &= mask - 1)
            search->tokens[search->token_count++] = word * MASK_TOKENS + (uint32_t)__builtin_ctzll(mask);
    search->bytes_scanned += search->token_count * sizeof(uint32_t);
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
