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

/* Measured on data of both kinds (docs/retrieval.md). */
static uint32_t survivors_wanted(uint64_t covered, uint32_t tokens_each) {
    uint64_t wanted = (uint64_t)tokens_each * 2 + 1000;
    return (uint32_t)(wanted < covered ? wanted : covered);
}

static uint64_t keys_wanted(uint64_t covered, uint32_t tokens_each) {
    uint64_t wanted = (uint64_t)survivors_wanted(covered, tokens_each) * 5 + covered / 25;
    return wanted < covered ? wanted : covered;
}

static clusters_search_state lay_out(const index_params *params, uint32_t query_count, uint32_t tokens_each,
                                     unsigned char *base) {
    index_carve carve = {.base = base};
    uint32_t segments = index_plan_max(params->keys_max);
    size_t clusters = params->keys_max / CLUSTERS_KEYS, blocks = params->keys_max / SCAN_BLOCK + clusters;
    size_t survivors = survivors_wanted(params->keys_max, tokens_each), found = (size_t)query_count * tokens_each;
    clusters_search_state s = {0};
    s.segments = index_carve_take(&carve, segments * sizeof(*s.segments));
    s.query = index_carve_take(&carve, params->key_dim * sizeof(*s.query));
    s.bases = index_carve_take(&carve, clusters * sizeof(*s.bases));
    s.sums = index_carve_take(&carve, clusters * sizeof(*s.sums));
    s.reaches = index_carve_take(&carve, clusters * sizeof(*s.reaches));
    s.lists = index_carve_take(&carve, clusters * sizeof(*s.lists));
    s.block_sums = index_carve_take(&carve, blocks * SCAN_BLOCK * sizeof(*s.block_sums));
    s.scores = index_carve_take(&carve, blocks * SCAN_BLOCK * sizeof(*s.scores));
    s.survivors = index_carve_take(&carve, survivors * sizeof(*s.survivors));
    s.survivor_lists = index_carve_take(&carve, survivors * sizeof(*s.survivor_lists));
    s.fine = index_carve_take(&carve, survivors * sizeof(*s.fine));
    s.rows = index_carve_take(&carve, survivors * sizeof(*s.rows));
    s.picks = index_carve_take(&carve, survivors * sizeof(*s.picks));
    s.dots = index_carve_take(&carve, survivors * sizeof(*s.dots));
    s.found = index_carve_take(&carve, found * sizeof(*s.found));
    s.other = index_carve_take(&carve, found * sizeof(*s.other));
    s.scratch = index_carve_take(&carve, params->kernels->scratch_bytes);
    if (params->has_rest) {
        s.found_masks = index_carve_take(&carve, blocks * sizeof(*s.found_masks));
        s.found_counts = index_carve_take(&carve, clusters * sizeof(*s.found_counts));
        s.weights = index_carve_take(&carve, clusters * sizeof(*s.weights));
        s.weight_row = index_carve_take(&carve, (clusters + KERNEL_K_ALIGN) * sizeof(*s.weight_row));
        s.part_tables = index_carve_take(&carve, SKETCH_PARTS_MAX * 16 * sizeof(*s.part_tables));
        s.part_nibbles = index_carve_take(&carve, SKETCH_PARTS_MAX);
        s.out = index_carve_take(&carve, params->value_dim * sizeof(*s.out));
    }
    s.bytes = carve.bytes;
    return s;
}

size_t clusters_search_bytes(const index_params *params, uint32_t query_count, uint32_t tokens_each) {
    return lay_out(params, query_count, tokens_each, NULL).bytes;
}

/* ---- centres ---- */

/* The scores of centres are products of small integers: the query's coordinates in 16 bits, the centres' in 8. */
static void score_centres(clusters_search_state *s, const segment_query *q) {
    const clusters_segment *at = &q->at;
    int16_t whole[SKETCH_DIM_MAX] = {0};
    float largest = 1e-30f, *bases = s->bases + q->first_cluster;
    for (uint32_t i = 0; i < at->centre_dim; i++) largest = fabsf(q->z[i]) > largest ? fabsf(q->z[i]) : largest;
    for (uint32_t i = 0; i < at->centre_dim; i++) whole[i] = (int16_t)lrintf(q->z[i] * (32767.0f / largest));
    s->view->params->kernels->scan->byte_dots(whole, &at->centres, s->sums);
    for (uint32_t c = 0; c < at->cluster_count; c++)
        bases[c] = q->offset + (float)s->sums[c] * at->centres.scales[c] * (largest / 32767.0f);
}

static void ask_segment(clusters_search_state *s, segment_query *q) {
    const index_params *params = s->view->params;
    const clusters_segment *at = &q->at;
    params->kernels->scan->dot_rows(s->query, params->key_dim, at->mean, params->key_dim, 1, &q->offset);
    params->kernels->scan->dot_rows(s->query, params->key_dim, at->to_queries, params->key_dim, at->dim, q->z);
    float variance = 0.0f;
    for (uint32_t i = 0; i < at->dim; i++) variance += q->z[i] * q->z[i] * at->header->residual_variances[i];
    q->deviation = sqrtf(variance);
    score_centres(s, q);
    sketch_coarse_ask(&at->header->plan, q->z, &q->coarse);
    sketch_fine_ask(&at->header->plan, q->z, &q->fine);
    s->search->bytes_scanned += (at->dim + 1) * params->key_dim * sizeof(uint16_t) + sizeof(clusters_header) +
                                (size_t)at->cluster_count * (at->centre_dim + 3 * sizeof(float));
}

/* ---- lists ---- */

/* A list is as good as its better keys, which score a few deviations above its centre. */
static void set_reaches(clusters_search_state *s, float *least, float *greatest) {
    const float above = 2.0f;
    *least = INFINITY;
    *greatest = -INFINITY;
    for (uint32_t n = 0; n < s->segment_count; n++) {
        const segment_query *q = &s->segments[n];
        for (uint32_t c = 0; c < q->at.cluster_count; c++) {
            float reach = s->bases[q->first_cluster + c] + above * q->deviation * q->at.spreads[c];
            s->reaches[q->first_cluster + c] = reach;
            *least = reach < *least ? reach : *least;
            *greatest = reach > *greatest ? reach : *greatest;
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
        const segment_query *q = &s->segments[n];
        for (uint32_t c = 0; c < q->at.cluster_count; c++)
            keys[(uint32_t)((greatest - s->reaches[q->first_cluster + c]) * per_bucket)] += q->at.sizes[c];
    }
    for (uint64_t held = keys[0]; held < s->keys_wanted && bucket + 1 < BUCKETS;) held += keys[++bucket];
    return greatest - (float)(bucket + 1) / per_bucket;
}

static void choose_lists(clusters_search_state *s) {
    float least, greatest;
    set_reaches(s, &least, &greatest);
    float limit = least_reach(s, least, greatest);
    s->list_count = s->score_count = 0;
    for (uint32_t n = 0; n < s->segment_count; n++) {
        const segment_query *q = &s->segments[n];
        for (uint32_t c = 0; c < q->at.cluster_count; c++) {
            if (s->reaches[q->first_cluster + c] < limit || q->at.sizes[c] == 0) continue;
            uint32_t blocks = (q->at.sizes[c] + SCAN_BLOCK - 1) / SCAN_BLOCK;
            s->lists[s->list_count++] =
                (clusters_list){.segment = n, .cluster = c, .first = s->score_count, .blocks = blocks};
            s->score_count += blocks * SCAN_BLOCK;
        }
    }
}

/* ---- sketches ---- */

static void score_lists(clusters_search_state *s) {
    for (uint32_t i = 0; i < s->list_count; i++) {
        const clusters_list *list = &s->lists[i];
        const segment_query *q = &s->segments[list->segment];
        const clusters_segment *at = &q->at;
        const uint8_t *blocks = at->blocks + (size_t)at->first_blocks[list->cluster] * SCAN_BLOCK_BYTES;
        if (i + 1 < s->list_count) {
            const clusters_list *next = &s->lists[i + 1];
            const clusters_segment *there = &s->segments[next->segment].at;
            const uint8_t *ahead = there->blocks + (size_t)there->first_blocks[next->cluster] * SCAN_BLOCK_BYTES;
            for (uint32_t line = 0; line < 8; line++) __builtin_prefetch(ahead + line * HD_CACHE_LINE);
        }
        s->view->params->kernels->scan->nibble_sums(q->coarse.tables, blocks, list->blocks, s->block_sums);
        float spread = at->spreads[list->cluster], step = spread * q->coarse.step, *scores = s->scores + list->first;
        float base = s->bases[q->first_cluster + list->cluster] + spread * q->coarse.bias;
        uint32_t slots = list->blocks * SCAN_BLOCK;
        for (uint32_t k = 0; k < slots; k++) scores[k] = base + step * (float)s->block_sums[k];
        for (uint32_t k = at->sizes[list->cluster]; k < slots; k++) scores[k] = -INFINITY;
        s->search->bytes_scanned += (uint64_t)list->blocks * SCAN_BLOCK_BYTES;
    }
}

/* Ascending places of the best; fewer than wanted only where there are fewer. */
static uint32_t pick_best(const clusters_search_state *s, const float *scores, uint32_t count, uint32_t wanted,
                          uint32_t *picks) {
    const kernel_scan *scan = s->view->params->kernels->scan;
    float limit = index_cut(scan, scores, count, wanted);
    uint32_t picked = scan->collect_from(scores, count, limit, picks, wanted);
    while (picked > 0 && scores[picks[picked - 1]] == -INFINITY) picked--;
    return picked;
}

/* Fine scores of the survivors [first, end), which lie in one list. */
static void refine_list(clusters_search_state *s, const clusters_list *list, uint32_t first, uint32_t end) {
    const segment_query *q = &s->segments[list->segment];
    float base = s->bases[q->first_cluster + list->cluster], spread = q->at.spreads[list->cluster];
    for (uint32_t i = first; i < end; i++)
        s->fine[i] = base + spread * (q->fine.bias + q->fine.step * (float)s->dots[i]);
}

static uint32_t slot_in_segment(const clusters_search_state *s, uint32_t survivor) {
    const clusters_list *list = &s->lists[s->survivor_lists[survivor]];
    return s->segments[list->segment].at.first_blocks[list->cluster] * SCAN_BLOCK + s->survivors[survivor] -
           list->first;
}

static void refine(clusters_search_state *s) {
    for (uint32_t i = 0, list = 0; i < s->survivor_count; i++) {
        while (s->survivors[i] >= s->lists[list].first + s->lists[list].blocks * SCAN_BLOCK) list++;
        s->survivor_lists[i] = list;
        s->rows[i] = slot_in_segment(s, i);
    }
    for (uint32_t first = 0, end; first < s->survivor_count; first = end) { /* a segment at a time */
        uint32_t segment = s->lists[s->survivor_lists[first]].segment;
        const segment_query *q = &s->segments[segment];
        for (end = first; end < s->survivor_count && s->lists[s->survivor_lists[end]].segment == segment;) end++;
        s->view->params->kernels->scan->nibble_dots(q->fine.weights, q->at.fine, q->at.fine_bytes, s->rows + first,
                                                    end - first, s->dots + first);
        s->search->bytes_scanned += (uint64_t)(end - first) * q->at.fine_bytes;
    }
    for (uint32_t first = 0, end; first < s->survivor_count; first = end) {
        uint32_t list = s->survivor_lists[first];
        for (end = first; end < s->survivor_count && s->survivor_lists[end] == list;) end++;
        refine_list(s, &s->lists[list], first, end);
    }
}

/* ---- queries ---- */

static void open_segments(clusters_search_state *s) {
    uint32_t clusters = 0, slots = 0;
    for (uint32_t n = 0; n < s->segment_count; n++) {
        const index_segment *segment = s->view->segments[n];
        segment_query *q = &s->segments[n];
        q->at = clusters_lay_out(s->view->params, segment->count, segment->data);
        q->first_cluster = clusters;
        q->first_slot = slots;
        q->first_token = segment->first;
        clusters += q->at.cluster_count;
        slots += q->at.block_max * SCAN_BLOCK;
    }
    s->cluster_count = clusters;
}

/* Adds the slots of what the query finds; the state then holds what is known of the others. */
static void search_one(clusters_search_state *s, uint32_t row, bool is_again) {
    const index_search *search = s->search;
    for (uint32_t i = 0; i < s->view->params->key_dim; i++)
        s->query[i] = hd_bf16_to_f32(search->queries[row * search->query_stride + i]);
    for (uint32_t n = 0; n < s->segment_count; n++) ask_segment(s, &s->segments[n]);
    choose_lists(s);
    score_lists(s);
    s->survivor_count = pick_best(s, s->scores, s->score_count, s->survivors_wanted, s->survivors);
    refine(s);
    if (is_again) return;
    uint32_t count = pick_best(s, s->fine, s->survivor_count, search->tokens_each, s->picks);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t segment = s->lists[s->survivor_lists[s->picks[i]]].segment;
        s->found[s->found_count++] = s->segments[segment].first_slot + s->rows[s->picks[i]];
    }
}

/* Slots become tokens. */
static void write_tokens(clusters_search_state *s) {
    index_search *search = s->search;
    s->found_count = index_tokens_sort(s->found, s->other, s->found_count);
    for (uint32_t i = 0, n = 0; i < s->found_count; i++) {
        while (n + 1 < s->segment_count && s->found[i] >= s->segments[n + 1].first_slot) n++;
        const segment_query *q = &s->segments[n];
        search->tokens[i] = (uint32_t)q->first_token + q->at.tokens[s->found[i] - q->first_slot];
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
    uint64_t findable = covered - (covered > 0 ? view->params->sinks : 0); /* empty slots would count as found */
    s.survivors_wanted = survivors_wanted(findable, search->tokens_each);
    s.keys_wanted = keys_wanted(covered, search->tokens_each);
    open_segments(&s);
    for (uint32_t q = 0; q < search->query_count && covered > 0; q++) search_one(&s, q, false);
    write_tokens(&s);
    if (search->rest == NULL) return;
    uint64_t scanned = search->bytes_scanned;
    clusters_mark_found(&s);
    for (uint32_t q = 0; q < search->query_count; q++) {
        if (search->query_count > 1 && covered > 0) search_one(&s, q, true);
        clusters_estimate(&s, q);
    }
    search->bytes_scanned = scanned; /* the same bytes, read a second time */
}
