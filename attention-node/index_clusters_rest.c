/* index_clusters_rest.c - the estimate of attention over the tokens that a search did not find.
 *
 * Each of them weighs what is best known of it: by its fine score if it was among the survivors, by its coarse score if
 * its list was read, else with its whole cluster by the centre's. A score that is known up to an error of variance v
 * weighs exp(v / 2) more on average than its mean says (RetroInfer's estimate leaves that out, and is a lower bound).
 * Values are their cluster's mean, and move with a key's residual along the gradients: for a key that was read, the
 * residual that its sketch tells; beyond that, the one that weighing by exp(score) prefers, which is variance times
 * query. */
#include <math.h>
#include <string.h>

#include "attention-node/index_clusters_search.h"
#include "kernels/dtype.h"

void clusters_mark_found(clusters_search_state *s) {
    uint32_t blocks = 0;
    for (uint32_t n = 0; n < s->segment_count; n++) blocks += s->segments[n].at.block_max;
    memset(s->found_masks, 0, blocks * sizeof(*s->found_masks));
    memset(s->found_counts, 0, s->cluster_count * sizeof(*s->found_counts));
    for (uint32_t i = 0, n = 0; i < s->found_count; i++) {
        while (n + 1 < s->segment_count && s->found[i] >= s->segments[n + 1].first_slot) n++;
        const segment_query *q = &s->segments[n];
        s->found_masks[s->found[i] / SCAN_BLOCK] |= (uint16_t)(1u << s->found[i] % SCAN_BLOCK);
        s->found_counts[q->first_cluster + q->at.block_clusters[(s->found[i] - q->first_slot) / SCAN_BLOCK]]++;
    }
}

/* Half the variance of a score whose residual is known up to these errors, at a spread of 1: the logarithm of what the
 * error adds to a weight. */
static float half_variance(const clusters_search_state *s, const segment_query *q, const float *errors) {
    float variance = 0.0f, scale = s->search->scale;
    for (uint32_t i = 0; i < q->at.dim; i++) variance += q->z[i] * q->z[i] * errors[i];
    return 0.5f * scale * scale * variance;
}

static float greatest_score(const clusters_search_state *s) {
    float greatest = -INFINITY;
    for (uint32_t c = 0; c < s->cluster_count; c++) greatest = s->bases[c] > greatest ? s->bases[c] : greatest;
    for (uint32_t i = 0; i < s->survivor_count; i++) greatest = s->fine[i] > greatest ? s->fine[i] : greatest;
    return greatest;
}

/* Clusters as wholes, less what was found of them; the lists that were read come afterwards. The logarithm of a weight
 * stays below 80: a sum of those is finite. */
static void weigh_clusters(clusters_search_state *s, float max) {
    for (uint32_t n = 0; n < s->segment_count; n++) {
        const segment_query *q = &s->segments[n];
        float half = half_variance(s, q, q->at.header->residual_variances), *weights = s->weights + q->first_cluster;
        for (uint32_t c = 0; c < q->at.cluster_count; c++) {
            float log_weight =
                s->search->scale * s->bases[q->first_cluster + c] - max + half * q->at.spreads[c] * q->at.spreads[c];
            weights[c] = log_weight < 80.0f ? log_weight : 80.0f;
        }
        s->view->params->kernels->scan->exponentials(weights, q->at.cluster_count);
        for (uint32_t c = 0; c < q->at.cluster_count; c++)
            weights[c] *= (float)(q->at.sizes[c] - s->found_counts[q->first_cluster + c]);
    }
    for (uint32_t i = 0; i < s->list_count; i++)
        s->weights[s->segments[s->lists[i].segment].first_cluster + s->lists[i].cluster] = 0.0f;
}

/* The scores of keys that were read become weights: 0 for what was found and for empty slots. */
static void weigh_keys(clusters_search_state *s, float max) {
    float scale = s->search->scale, coarse = 0.0f;
    uint32_t segment = UINT32_MAX;
    for (uint32_t i = 0; i < s->list_count; i++) {
        const clusters_list *list = &s->lists[i];
        const segment_query *q = &s->segments[list->segment];
        if (list->segment != segment) coarse = half_variance(s, q, q->at.header->plan.coarse_error);
        segment = list->segment;
        float spread = q->at.spreads[list->cluster], more = coarse * spread * spread - max;
        float *scores = s->scores + list->first;
        for (uint32_t k = 0; k < list->blocks * SCAN_BLOCK; k++) scores[k] = scale * scores[k] + more;
    }
    segment = UINT32_MAX;
    float fine = 0.0f;
    for (uint32_t i = 0; i < s->survivor_count; i++) {
        const clusters_list *list = &s->lists[s->survivor_lists[i]];
        const segment_query *q = &s->segments[list->segment];
        if (list->segment != segment) fine = half_variance(s, q, q->at.header->plan.fine_error);
        segment = list->segment;
        float spread = q->at.spreads[list->cluster];
        s->scores[s->survivors[i]] = scale * s->fine[i] + fine * spread * spread - max;
    }
    s->view->params->kernels->scan->exponentials(s->scores, s->score_count);
    for (uint32_t i = 0; i < s->list_count; i++) {
        const clusters_list *list = &s->lists[i];
        const segment_query *q = &s->segments[list->segment];
        const uint16_t *masks = s->found_masks + q->first_slot / SCAN_BLOCK + q->at.first_blocks[list->cluster];
        for (uint32_t b = 0; b < list->blocks; b++)
            for (uint32_t mask = masks[b]; mask != 0; mask &= mask - 1)
                s->scores[list->first + b * SCAN_BLOCK + (uint32_t)__builtin_ctz(mask)] = 0.0f;
    }
}

/* Adds the weights of the lists of a segment to their clusters', and what their keys' sketches say of the weighted
 * residuals to moments. Lists of one segment are neighbours in the list of lists. */
static uint32_t add_lists(clusters_search_state *s, uint32_t first, float *moments, float *errors) {
    uint32_t segment = s->lists[first].segment, end = first;
    const segment_query *q = &s->segments[segment];
    uint16_t coordinates[SKETCH_PARTS_MAX];
    float by_part[SKETCH_PARTS_MAX];
    uint32_t parts = sketch_parts(&q->at.header->plan, s->part_tables, s->part_nibbles, coordinates);
    for (; end < s->list_count && s->lists[end].segment == segment; end++) {
        const clusters_list *list = &s->lists[end];
        float *weights = s->scores + list->first, sum = 0.0f, spread = q->at.spreads[list->cluster];
        for (uint32_t k = 0; k < list->blocks * SCAN_BLOCK; k++) sum += weights[k];
        memset(by_part, 0, parts * sizeof(*by_part));
        s->view->params->kernels->scan->nibble_moments(s->part_tables, s->part_nibbles, parts,
                                                       q->at.blocks +
                                                           (size_t)q->at.first_blocks[list->cluster] * SCAN_BLOCK_BYTES,
                                                       list->blocks, weights, by_part);
        for (uint32_t p = 0; p < parts; p++) moments[coordinates[p]] += spread * by_part[p];
        s->weights[q->first_cluster + list->cluster] = sum;
        *errors += spread * spread * sum;
    }
    return end;
}

/* What a segment's clusters and moments come to, added to out. */
static float add_segment(clusters_search_state *s, const segment_query *q, const float *moments, float *out) {
    const index_params *params = s->view->params;
    const clusters_segment *at = &q->at;
    float sum = 0.0f;
    memset(s->weight_row, 0, at->values.k_padded * sizeof(*s->weight_row));
    for (uint32_t c = 0; c < at->cluster_count; c++) sum += s->weights[q->first_cluster + c];
    params->kernels->convert(s->weights + q->first_cluster, HD_F32, s->weight_row, HD_BF16, at->cluster_count);
    kernel_matmul product = {.weights = &at->values,
                             .input = s->weight_row,
                             .input_stride = at->values.k_padded,
                             .row_count = 1,
                             .output = out,
                             .output_stride = params->value_dim,
                             .epilogue = KERNEL_ADD,
                             .scratch = s->scratch};
    params->kernels->matmul(&product, 0, kernel_matrix_panels(&at->values));
    for (uint32_t i = 0; i < at->dim; i++) {
        const uint16_t *gradient = at->gradients + (size_t)i * params->value_dim;
        for (uint32_t j = 0; j < params->value_dim; j++) out[j] += moments[i] * hd_bf16_to_f32(gradient[j]);
    }
    s->search->bytes_rest += kernel_matrix_bytes(HD_BF16, params->value_dim, at->cluster_count) +
                             (uint64_t)at->dim * params->value_dim * sizeof(uint16_t);
    return sum;
}

void clusters_estimate(clusters_search_state *s, uint32_t row) {
    const kernel_partial *rest = s->search->rest;
    uint32_t value_dim = s->view->params->value_dim;
    float max = s->search->scale * greatest_score(s), sum = 0.0f, *out = rest->out + row * rest->out_stride;
    memset(out, 0, value_dim * sizeof(*out));
    if (s->cluster_count > 0) {
        weigh_clusters(s, max);
        weigh_keys(s, max);
    }
    memset(s->out, 0, value_dim * sizeof(*s->out));
    for (uint32_t n = 0, list = 0; n < s->segment_count; n++) {
        const segment_query *q = &s->segments[n];
        float moments[SKETCH_DIM_MAX] = {0}, whole = 0.0f, read = 0.0f;
        for (uint32_t c = 0; c < q->at.cluster_count; c++)
            whole += s->weights[q->first_cluster + c] * q->at.spreads[c] * q->at.spreads[c];
        if (list < s->list_count && s->lists[list].segment == n) list = add_lists(s, list, moments, &read);
        for (uint32_t i = 0; i < q->at.dim; i++)
            moments[i] += s->search->scale * q->z[i] *
                          (whole * q->at.header->residual_variances[i] + read * q->at.header->plan.coarse_error[i]);
        sum += add_segment(s, q, moments, s->out);
    }
    memcpy(out, s->out, value_dim * sizeof(*out));
    rest->max[row] = sum > 0.0f ? max : -INFINITY;
    rest->sum[row] = sum;
}
