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

/* ---- What was found ---- */

static void mark_found(clusters_search_state *s) {
    uint32_t blocks = 0;
    for (uint32_t n = 0; n < s->segment_count; n++) blocks += s->places[n].at.block_count;
    memset(s->found_masks, 0, blocks * sizeof(*s->found_masks));
    memset(s->found_counts, 0, s->cluster_count * sizeof(*s->found_counts));
    for (uint32_t i = 0, n = 0; i < s->found_count; i++) {
        while (n + 1 < s->segment_count && s->found[i] >= s->places[n + 1].first_slot) n++;
        const clusters_place *place = &s->places[n];
        s->found_masks[s->found[i] / SCAN_BLOCK] |= (uint16_t)(1u << s->found[i] % SCAN_BLOCK);
        s->found_counts[place->first_cluster + clusters_of_slot(&place->at, s->found[i] - place->first_slot)]++;
    }
}

/* ---- Weights ---- */

/* The variance of a score whose residual is known up to these errors, at a spread of 1. */
static float score_variance(const estimate *e, const float *errors) {
    float scale = e->s->search->scale;
    return scale * scale * segment_query_variance(e->asked, errors, e->place->at.dim);
}

/* Of a normal variable with this variance, all of which is known to lie less than `below` above its mean: weighing by
 * exp moves its mean by tilt times variance, to the peak of exp(x - x^2 / 2v), which is v or the end. */
static inline float tilt_of(float variance, float below) {
    return below <= 0.0f ? 0.0f : variance > below ? below / variance : 1.0f;
}

/* The logarithm of what its spread adds to its weight: that function at its peak, v / 2 where nothing is cut off. */
static inline float spread_bonus(float variance, float tilt) {
    return variance * tilt * (1.0f - 0.5f * tilt);
}

/* Survivors weigh by their fine scores alone. */
static void begin_query(const clusters_search_state *s, clusters_query *q) {
    float greatest = -INFINITY, scale = s->search->scale;
    for (uint32_t c = 0; c < s->cluster_count; c++) greatest = q->bases[c] > greatest ? q->bases[c] : greatest;
    for (uint32_t i = 0; i < q->survivor_count; i++) {
        greatest = q->fine[i] > greatest ? q->fine[i] : greatest;
        q->scores[q->survivors[i]] = -INFINITY;
    }
    q->max = scale * greatest;
    q->limit = q->found_least < greatest ? scale * q->found_least : q->max;
    q->list_next = q->survivor_next = 0;
}

/* Clusters as wholes, less what was found of them; those whose lists were read come afterwards. */
static void weigh_clusters(estimate *e) {
    clusters_search_state *s = e->s;
    const clusters_segment *at = &e->place->at;
    const float *bases = e->q->bases + e->place->first_cluster;
    const uint32_t *found = s->found_counts + e->place->first_cluster;
    float residual = score_variance(e, at->header->residual_variances), scale = s->search->scale, unused;
    float limit = e->q->limit;
    for (uint32_t c = 0; c < at->cluster_count; c++) {
        float variance = residual * at->spreads[c] * at->spreads[c], score = scale * bases[c];
        float log_weight = score + spread_bonus(variance, tilt_of(variance, limit - score));
        s->weights[c] = (log_weight < limit ? log_weight : limit) - e->q->max;
    }
    s->view->params->kernels->scan->exponentials(s->weights, at->cluster_count, 1.0f, 0.0f, &unused);
    for (uint32_t c = 0; c < at->cluster_count; c++) s->weights[c] *= (float)(int32_t)(at->sizes[c] - found[c]);
    uint32_t segment = (uint32_t)(e->place - s->places);
    for (uint32_t i = e->q->list_next; i < e->q->list_count && e->q->lists[i].segment == segment; i++)
        s->weights[e->q->lists[i].cluster] = 0.0f;
    float sums[4] = {0};
    for (uint32_t c = 0; c < at->cluster_count; c++) {
        float square = at->spreads[c] * at->spreads[c];
        sums[c % 4] += s->weights[c] * square * tilt_of(residual * square, limit - scale * bases[c]);
    }
    e->whole = sums[0] + sums[1] + sums[2] + sums[3];
}

/* The keys of a list but the survivors and those that were found; one tilt for all of them. */
static void weigh_list(estimate *e, const clusters_list *list, float coarse) {
    clusters_search_state *s = e->s;
    const clusters_segment *at = &e->place->at;
    const uint16_t *masks = s->found_masks + e->place->first_slot / SCAN_BLOCK + at->starts[list->cluster] / SCAN_BLOCK;
    float *scores = e->q->scores + list->first, spread = at->spreads[list->cluster], square = spread * spread, unused;
    float scale = s->search->scale, base = e->q->bases[e->place->first_cluster + list->cluster];
    float tilt = tilt_of(coarse * square, e->q->limit - scale * base), bonus = spread_bonus(coarse * square, tilt);
    for (uint32_t b = 0; b < list->blocks; b++)
        for (uint32_t mask = masks[b]; mask != 0; mask &= mask - 1)
            scores[b * SCAN_BLOCK + (uint32_t)__builtin_ctz(mask)] = -INFINITY;
    float most = (e->q->limit - bonus) / scale;
    for (uint32_t k = 0; k < list->blocks * SCAN_BLOCK; k++) scores[k] = scores[k] < most ? scores[k] : most;
    float sum = s->view->params->kernels->scan->exponentials(scores, list->blocks * SCAN_BLOCK, scale,
                                                             bonus - e->q->max, &unused);
    s->weights[list->cluster] = sum;
    e->read += square * tilt * sum;
}

static void weigh_lists(estimate *e) {
    clusters_query *q = e->q;
    float coarse = score_variance(e, e->place->at.header->plan.coarse_error);
    uint32_t segment = (uint32_t)(e->place - e->s->places);
    for (; q->list_next < q->list_count && q->lists[q->list_next].segment == segment; q->list_next++)
        weigh_list(e, &q->lists[q->list_next], coarse);
}

static void add_survivors(estimate *e, uint32_t first, uint32_t end, float largest) {
    clusters_search_state *s = e->s;
    const sketch_plan *plan = &e->place->at.header->plan;
    int32_t sums[2 * SCAN_ROW_BYTES] = {0};
    if (!(largest > 1e-30f)) return;
    int32_t total = s->view->params->kernels->scan->nibble_row_sums(
        e->place->at.fine, e->place->at.fine_bytes, e->q->rows + first, end - first, s->spread_weights + first,
        SCAN_WEIGHT / largest, sums);
    for (uint32_t entry = 0; entry < plan->fine_count; entry++) {
        float codes = (float)sums[entry % 2 * SCAN_ROW_BYTES + entry / 2] - 7.5f * (float)total;
        e->moments[plan->fine_coordinates[entry]] += plan->fine_step[entry] * codes * (largest / SCAN_WEIGHT);
    }
}

/* The end of those that are in one list with the first. */
static uint32_t list_end(const clusters_query *q, uint32_t first) {
    uint32_t end = first + 1;
    while (end < q->survivor_count && q->survivor_lists[end] == q->survivor_lists[first]) end++;
    return end;
}

/* Logarithms of the weights of survivors [first, end) of a list, none of those that were found, and their tilts. */
static void weigh_list_survivors(const estimate *e, uint32_t first, uint32_t end, float variance) {
    const clusters_query *q = e->q;
    const uint16_t *masks = e->s->found_masks + e->place->first_slot / SCAN_BLOCK;
    const float shifts[2] = {-q->max, -INFINITY}; /* nobody can predict which were found: a look-up, not a branch */
    for (uint32_t i = first; i < end; i++) {
        float score = e->s->search->scale * q->fine[i], tilt = tilt_of(variance, q->limit - score);
        float log_weight = score + spread_bonus(variance, tilt);
        uint32_t row = q->rows[i];
        e->s->tilts[i] = tilt;
        q->fine[i] =
            (log_weight < q->limit ? log_weight : q->limit) + shifts[masks[row / SCAN_BLOCK] >> row % SCAN_BLOCK & 1];
    }
}

static void weigh_survivors(estimate *e) {
    clusters_search_state *s = e->s;
    clusters_query *q = e->q;
    const clusters_segment *at = &e->place->at;
    uint32_t first = q->survivor_next, end = first, segment = (uint32_t)(e->place - s->places);
    float fine = score_variance(e, at->header->plan.fine_error), largest = 0.0f, unused;
    for (uint32_t next; end < q->survivor_count && q->lists[q->survivor_lists[end]].segment == segment; end = next) {
        float spread = at->spreads[q->lists[q->survivor_lists[end]].cluster];
        next = list_end(q, end);
        weigh_list_survivors(e, end, next, fine * spread * spread);
    }
    s->view->params->kernels->scan->exponentials(q->fine + first, end - first, 1.0f, 0.0f, &unused);
    for (uint32_t list = first, next; list < end; list = next) {
        uint32_t cluster = q->lists[q->survivor_lists[list]].cluster;
        float spread = at->spreads[cluster], sum = 0.0f, tilted = 0.0f, most = 0.0f;
        next = list_end(q, list);
        for (uint32_t i = list; i < next; i++) {
            sum += q->fine[i];
            tilted += q->fine[i] * s->tilts[i];
            most = q->fine[i] > most ? q->fine[i] : most;
            s->spread_weights[i] = q->fine[i] * spread;
        }
        s->weights[cluster] += sum;
        e->fine += tilted * spread * spread;
        largest = most * spread > largest ? most * spread : largest;
    }
    add_survivors(e, first, end, largest);
    q->survivor_next = end;
}

/* ---- Values ---- */

/* A query's row of the product, and the sum of its weights. */
static float weigh_segment(estimate *e, uint16_t *row) {
    clusters_search_state *s = e->s;
    const clusters_segment *at = &e->place->at;
    weigh_clusters(e);
    weigh_lists(e);
    weigh_survivors(e);
    float *moments = s->weights + at->cluster_count, sums[4] = {0};
    for (uint32_t i = 0; i < at->dim; i++)
        moments[i] =
            e->moments[i] + s->search->scale * e->asked->z[i] *
                                (e->whole * at->header->residual_variances[i] +
                                 e->read * at->header->plan.coarse_error[i] + e->fine * at->header->plan.fine_error[i]);
    for (uint32_t c = 0; c < at->cluster_count; c++) sums[c % 4] += s->weights[c];
    memset(row, 0, at->values.k_padded * sizeof(*row));
    s->view->params->kernels->convert(s->weights, HD_F32, row, HD_BF16, at->cluster_count + at->dim);
    return sums[0] + sums[1] + sums[2] + sums[3];
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

void clusters_estimate(clusters_search_state *s) {
    const kernel_partial *rest = s->search->rest;
    uint32_t value_dim = s->view->params->value_dim, query_count = s->search->query_count;
    mark_found(s);
    memset(s->out, 0, (size_t)query_count * value_dim * sizeof(*s->out));
    for (uint32_t i = 0; i < query_count; i++) {
        begin_query(s, &s->queries[i]);
        rest->sum[i] = 0.0f;
    }
    for (uint32_t n = 0; n < s->segment_count; n++) add_segment(s, n);
    for (uint32_t i = 0; i < query_count; i++) {
        memcpy(rest->out + i * rest->out_stride, s->out + (size_t)i * value_dim, value_dim * sizeof(*s->out));
        rest->max[i] = rest->sum[i] > 0.0f ? s->queries[i].max : -INFINITY;
    }
}
