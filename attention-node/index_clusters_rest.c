/* index_clusters_rest.c - the estimate of attention over the tokens that a search did not find.
 *
 * Each of them weighs what is best known of it: by its fine score if it was among the survivors, by its coarse score if
 * its list was read, else with its whole cluster by the centre's. A score that is known up to an error of variance v
 * weighs exp(v / 2) more on average than its mean says (RetroInfer's estimate leaves that out, and is a lower bound),
 * as long as that is likely: what was not found scores less than what was, so the mean is taken below the worst that
 * was found. Where attention is sharp and scores differ by tens, that is what keeps the rest small, and the weights
 * finite. Values are their cluster's mean, and move with a key's residual along the gradients: for a survivor, the
 * residual that its fine sketch tells; beyond that, the one that weighing by exp(score) prefers, which is variance
 * times query. (What coarse sketches tell of the lists' other keys was tried, and is not worth the time.) Weights of
 * clusters and weighted residuals of all queries are the rows of one product with a segment's mean values and
 * gradients. */
#include <math.h>
#include <string.h>

#include "attention-node/index_clusters_search.h"
#include "kernels/dtype.h"

typedef struct estimate { /* of one query before one segment */
    clusters_search_state *s;
    const clusters_place *place;
    clusters_query *q;
    const segment_query *asked;
    float moments[SKETCH_DIM_MAX]; /* residuals of survivors, by weight */
    float whole, read, fine;       /* squared spreads by weight and tilt: of clusters as wholes, lists and survivors */
} estimate;

/* ---- Weights ---- */

/* The variance of a score whose residual is known up to these errors, at a spread of 1. */
static float score_variance(const estimate *e, const float *errors) {
    float scale = e->s->search->scale;
    return scale * scale * segment_query_variance(e->asked, errors, e->place->at.dim);
}

/* Of a normal variable with this variance, all of which is known to lie less than `below` above its mean: weighing by
 * exp moves its mean by tilt times variance, to the peak of exp(x - x^2 / 2v), which is v or the end. (kernels/scan.h
 * does the same for many.) */
static inline float tilt_of(float variance, float below) {
    return below <= 0.0f ? 0.0f : variance > below ? below / variance : 1.0f;
}

/* The logarithm of what its spread adds to its weight: that function at its peak, v / 2 where nothing is cut off. */
static inline float spread_bonus(float variance, float tilt) {
    return variance * tilt * (1.0f - 0.5f * tilt);
}

static scan_weighing weighing_of(const estimate *e, const float *errors) {
    return (scan_weighing){
        .scale = e->s->search->scale, .variance = score_variance(e, errors), .limit = e->q->limit, .max = e->q->max};
}

static void begin_query(const clusters_search_state *s, clusters_query *q) {
    const kernel_scan *scan = s->view->params->kernels->scan;
    float centre = scan->largest(q->bases, s->cluster_count), key = scan->largest(q->fine, q->survivor_count);
    float greatest = centre > key ? centre : key, scale = s->search->scale;
    q->max = scale * greatest;
    q->limit = q->found_least < greatest ? scale * q->found_least : q->max;
    q->list_next = q->survivor_next = 0;
}

/* Clusters as wholes, less what was found of them; those whose lists were read come afterwards. */
static float weigh_clusters(estimate *e) {
    clusters_search_state *s = e->s;
    const clusters_segment *at = &e->place->at;
    uint32_t segment = (uint32_t)(e->place - s->places);
    const uint32_t *found = s->found_counts + e->place->first_cluster;
    for (uint32_t c = 0; c < at->cluster_count; c++) s->weights[c] = (float)(int32_t)(at->sizes[c] - found[c]);
    for (uint32_t i = e->q->list_next; i < e->q->list_count && e->q->lists[i].segment == segment; i++)
        s->weights[e->q->lists[i].cluster] = 0.0f;
    scan_weighing weighing = weighing_of(e, at->header->residual_variances);
    scan_weight_sums sums =
        s->view->params->kernels->scan->weigh(&weighing, e->q->bases + e->place->first_cluster, at->spreads,
                                              at->cluster_count, s->weights, s->spread_weights);
    e->whole = sums.tilted;
    return sums.weight;
}

/* The next few of the tokens found: what fetches them takes next to no time of a core, and the estimate no memory. */
static void announce(clusters_search_state *s, uint32_t count) {
    index_search *search = s->search;
    uint32_t left = search->token_count - s->announced;
    if (search->announce == NULL || left == 0) return;
    if (count > left) count = left;
    search->announce(search->announce_context, search->tokens + s->announced, count);
    s->announced += count;
}

/* The keys of a list but the survivors and those that were found; one tilt for all of them. */
static float weigh_list(estimate *e, const clusters_list *list, float coarse) {
    clusters_search_state *s = e->s;
    const clusters_segment *at = &e->place->at;
    const uint16_t *masks = s->found_masks + (e->place->first_slot + at->starts[list->cluster]) / SCAN_BLOCK;
    float square = list->spread * list->spread, scale = s->search->scale;
    float base = e->q->bases[e->place->first_cluster + list->cluster];
    float tilt = tilt_of(coarse * square, e->q->limit - scale * base), bonus = spread_bonus(coarse * square, tilt);
    float sum = s->view->params->kernels->scan->weigh_blocks(e->q->scores + list->first, masks, list->blocks,
                                                             (e->q->limit - bonus) / scale, scale, bonus - e->q->max);
    s->weights[list->cluster] = sum;
    e->read += square * tilt * sum;
    announce(s, s->announced_each);
    return sum;
}

static float weigh_lists(estimate *e) {
    clusters_query *q = e->q;
    float coarse = score_variance(e, e->place->at.header->plan.coarse_error), sum = 0.0f;
    uint32_t segment = (uint32_t)(e->place - e->s->places);
    for (; q->list_next < q->list_count && q->lists[q->list_next].segment == segment; q->list_next++)
        sum += weigh_list(e, &q->lists[q->list_next], coarse);
    return sum;
}

/* The residuals of survivors [first, first + count), weighed in whole numbers; most weigh next to nothing. */
static void add_residuals(estimate *e, uint32_t first, uint32_t count, float largest) {
    clusters_search_state *s = e->s;
    const kernel_scan *scan = s->view->params->kernels->scan;
    const sketch_plan *plan = &e->place->at.header->plan;
    int32_t sums[2 * SCAN_ROW_BYTES] = {0};
    if (!(largest > 1e-30f)) return;
    uint32_t *rows = s->picks,
             kept = scan->collect_from(s->spread_weights, count, largest * (0.5f / SCAN_WEIGHT), rows, count);
    for (uint32_t i = 0; i < kept; i++) {
        s->key_weights[i] = s->spread_weights[rows[i]];
        rows[i] = e->q->rows[first + rows[i]];
    }
    int32_t total = scan->nibble_row_sums(e->place->at.fine, e->place->at.fine_bytes, rows, kept, s->key_weights,
                                          SCAN_WEIGHT / largest, sums);
    for (uint32_t entry = 0; entry < plan->fine_count; entry++) {
        float codes = (float)sums[entry % 2 * SCAN_ROW_BYTES + entry / 2] - 7.5f * (float)total;
        e->moments[plan->fine_coordinates[entry]] += plan->fine_step[entry] * codes * (largest / SCAN_WEIGHT);
    }
}

/* Survivors but those that were found. */
static float weigh_survivors(estimate *e) {
    clusters_search_state *s = e->s;
    clusters_query *q = e->q;
    const clusters_segment *at = &e->place->at;
    const uint16_t *masks = s->found_masks + e->place->first_slot / SCAN_BLOCK;
    static const float is_left[2] = {1.0f, 0.0f}; /* nobody can predict which were found: a look-up, not a branch */
    uint32_t first = q->survivor_next, end = e->asked->survivors_end;
    for (uint32_t i = first; i < end; i++) {
        s->key_weights[i - first] = is_left[masks[q->rows[i] / SCAN_BLOCK] >> q->rows[i] % SCAN_BLOCK & 1];
        s->key_spreads[i - first] = q->lists[q->survivor_lists[i]].spread;
    }
    scan_weighing weighing = weighing_of(e, at->header->plan.fine_error);
    scan_weight_sums sums = s->view->params->kernels->scan->weigh(&weighing, q->fine + first, s->key_spreads,
                                                                  end - first, s->key_weights, s->spread_weights);
    for (uint32_t i = first; i < end; i++)
        s->weights[q->lists[q->survivor_lists[i]].cluster] += s->key_weights[i - first];
    e->fine = sums.tilted;
    add_residuals(e, first, end - first, sums.most);
    q->survivor_next = end;
    return sums.weight;
}

/* ---- Values ---- */

/* A query's row of the product, and the sum of its weights. */
static float weigh_segment(estimate *e, uint16_t *row) {
    clusters_search_state *s = e->s;
    const clusters_segment *at = &e->place->at;
    float sum = weigh_clusters(e);
    sum += weigh_lists(e);
    sum += weigh_survivors(e);
    float *moments = s->weights + at->cluster_count;
    for (uint32_t i = 0; i < at->dim; i++)
        moments[i] =
            e->moments[i] + s->search->scale * e->asked->z[i] *
                                (e->whole * at->header->residual_variances[i] +
                                 e->read * at->header->plan.coarse_error[i] + e->fine * at->header->plan.fine_error[i]);
    memset(row, 0, at->values.k_padded * sizeof(*row));
    s->view->params->kernels->convert(s->weights, HD_F32, row, HD_BF16, at->cluster_count + at->dim);
    return sum;
}

static void add_segment(clusters_search_state *s, uint32_t n) {
    const index_params *params = s->view->params;
    const clusters_place *place = &s->places[n];
    uint32_t query_count = s->search->query_count;
    for (uint32_t i = 0; i < query_count; i++) {
        clusters_query *q = &s->queries[i];
        estimate e = {.s = s, .place = place, .q = q, .asked = &q->segments[n]};
        s->search->rest->sum[i] += weigh_segment(&e, s->weight_rows + i * s->weight_stride);
    }
    kernel_matmul product = {.weights = &place->at.values,
                             .input = s->weight_rows,
                             .input_stride = s->weight_stride,
                             .row_count = query_count,
                             .output = s->out,
                             .output_stride = params->value_dim,
                             .epilogue = KERNEL_ADD,
                             .scratch = s->scratch};
    params->kernels->matmul(&product, 0, kernel_matrix_panels(&place->at.values));
    s->search->bytes_rest += kernel_matrix_bytes(HD_BF16, params->value_dim, place->at.values.k);
}

/* The centres that were not needed to find anything. */
static void score_unread(clusters_search_state *s, const clusters_query *q) {
    for (uint32_t n = 0; n < s->segment_count; n++) {
        const clusters_place *place = &s->places[n];
        for (uint32_t g = 0; g < place->at.groups.count; g++) {
            if (!q->is_unread[place->first_group + g]) continue;
            clusters_score_centres(s, place, &q->segments[n], g * CLUSTERS_GROUP, CLUSTERS_GROUP,
                                   q->bases + place->first_cluster);
            s->search->bytes_rest += clusters_centre_bytes(&place->at, CLUSTERS_GROUP);
        }
    }
}

void clusters_estimate(clusters_search_state *s) {
    const kernel_partial *rest = s->search->rest;
    uint32_t value_dim = s->view->params->value_dim, query_count = s->search->query_count;
    memset(s->out, 0, (size_t)query_count * value_dim * sizeof(*s->out));
    for (uint32_t i = 0; i < query_count; i++) {
        score_unread(s, &s->queries[i]);
        begin_query(s, &s->queries[i]);
        rest->sum[i] = 0.0f;
    }
    for (uint32_t n = 0; n < s->segment_count; n++) add_segment(s, n);
    for (uint32_t i = 0; i < query_count; i++) {
        memcpy(rest->out + i * rest->out_stride, s->out + (size_t)i * value_dim, value_dim * sizeof(*s->out));
        rest->max[i] = rest->sum[i] > 0.0f ? s->queries[i].max : -INFINITY;
    }
}
