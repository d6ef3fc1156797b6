/* index_clusters.c - making a segment of the clusters index, phase by phase. */
#include "attention-node/index_clusters.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "attention-node/index_linear.h"
#include "attention-node/index_points.h"
#include "attention-node/index_top.h"
#include "kernels/dtype.h"

enum {
    PIECE = 4096,   /* keys of a step */
    QUERIES = 2048, /* of which moments are taken; more do not make the space better */
};

_Static_assert(128 * INDEX_GRAIN <= 2 * CLUSTERS_EARLY, "two halves hold a segment's tokens");

typedef enum { FIT, PROJECT, TRAIN, ASSIGN, ARRANGE, ENCODE, VALUES, FINISH, DONE } build_phase;

typedef struct workspace { /* of a build; begins its memory, arrays follow */
    index_points points;
    uint32_t *clusters;    /* [count]: each key's cluster */
    uint32_t *slots;       /* [count] */
    uint32_t *fill;        /* [cluster_count] */
    float *centres;        /* [cluster_count, dim]: means, and then what is left of them in int8 */
    uint64_t *order;       /* [cluster_count] items of clusters, to put them in groups */
    float *groups;         /* [group count, dim] */
    uint16_t *values;      /* INDEX_GRAIN of the source's */
    float *value_sums;     /* [cluster_count, value_dim] */
    float *square, *cross; /* [dim, dim], [dim, value_dim]: moments of residuals and values */
} workspace;

static uint32_t cluster_count_of(uint32_t count) {
    return count / CLUSTERS_KEYS;
}

/* A segment's data begin as zeros, padding included; kernel_matrix_init, which writes it, is not for what others
 * read. */
static kernel_matrix matrix_at(hd_dtype dtype, uint32_t n, uint32_t k, void *data, float *scales) {
    return (kernel_matrix){.dtype = dtype,
                           .n = n,
                           .k = k,
                           .n_padded = HD_ALIGN_UP(n, KERNEL_N_ALIGN),
                           .k_padded = HD_ALIGN_UP(k, KERNEL_K_ALIGN),
                           .data = data,
                           .scales = scales};
}

static uint32_t fine_dim_of(const index_params *params, uint32_t count) {
    uint32_t dim = clusters_dim(params), most = CLUSTERS_FINE_DIM;
    if (params->key_dim <= CLUSTERS_SHORT_KEY && count > CLUSTERS_EARLY) most = CLUSTERS_SHORT_FINE_DIM;
    return dim < most ? dim : most;
}

clusters_segment clusters_lay_out(const index_params *params, uint32_t count, unsigned char *base) {
    index_carve carve = {.base = base};
    clusters_segment s = {.dim = clusters_dim(params), .cluster_count = cluster_count_of(count)};
    s.centre_dim = s.dim < CLUSTERS_CENTRE_DIM ? s.dim : CLUSTERS_CENTRE_DIM;
    s.block_count = count / SCAN_BLOCK;
    s.fine_bytes = fine_dim_of(params, count) / 2;
    s.header = index_carve_take(&carve, sizeof(*s.header));
    s.mean = index_carve_take(&carve, params->key_dim * sizeof(uint16_t));
    s.to_queries = index_carve_take(&carve, (size_t)s.dim * params->key_dim * sizeof(uint16_t));
    void *data = index_carve_take(&carve, kernel_matrix_bytes(HD_INT8, s.cluster_count, s.centre_dim));
    float *scales = index_carve_take(&carve, HD_ALIGN_UP(s.cluster_count, KERNEL_N_ALIGN) * sizeof(float));
    uint32_t groups = s.cluster_count < CLUSTERS_GROUPED ? 0 : s.cluster_count / CLUSTERS_GROUP;
    index_centres_lay_out(&s.groups, groups, s.dim, &carve);
    s.group_spreads = index_carve_take(&carve, groups * sizeof(float));
    s.spreads = index_carve_take(&carve, s.cluster_count * sizeof(float));
    s.sizes = index_carve_take(&carve, s.cluster_count * sizeof(uint32_t));
    s.starts = index_carve_take(&carve, s.cluster_count * sizeof(uint32_t));
    s.early_counts = index_carve_take(&carve, s.cluster_count * sizeof(uint32_t));
    s.block_clusters = index_carve_take(&carve, s.block_count * sizeof(uint16_t));
    s.blocks = index_carve_take(&carve, (size_t)s.block_count * SCAN_BLOCK_BYTES);
    s.fine = index_carve_take(&carve, (size_t)count * s.fine_bytes + SCAN_ROW_BYTES);
    s.tokens = index_carve_take(&carve, count * sizeof(uint16_t));
    void *values = NULL;
    if (params->has_rest) {
        values = index_carve_take(&carve, kernel_matrix_bytes(HD_BF16, params->value_dim, s.cluster_count + s.dim));
    }
    s.centres = matrix_at(HD_INT8, s.cluster_count, s.centre_dim, data, scales);
    s.values = matrix_at(HD_BF16, params->value_dim, s.cluster_count + s.dim, values, NULL);
    s.bytes = carve.bytes;
    return s;
}

static size_t segment_bytes(const index_params *params, uint32_t count) {
    return clusters_lay_out(params, count, NULL).bytes;
}

/* ---- workspace ---- */

static size_t lay_out_workspace(const index_params *params, uint32_t count, unsigned char *base, workspace *w) {
    index_carve carve = {.base = base};
    uint32_t dim = clusters_dim(params), centres = cluster_count_of(count);
    index_carve_take(&carve, sizeof(workspace));
    index_points_lay_out(&w->points, params, count, dim, centres, &carve);
    w->clusters = index_carve_take(&carve, count * sizeof(uint32_t));
    w->slots = index_carve_take(&carve, count * sizeof(uint32_t));
    w->fill = index_carve_take(&carve, centres * sizeof(uint32_t));
    w->centres = index_carve_take(&carve, (size_t)centres * dim * sizeof(float));
    w->order = index_carve_take(&carve, centres * sizeof(uint64_t));
    w->groups = index_carve_take(&carve, (size_t)centres / CLUSTERS_GROUP * dim * sizeof(float));
    w->values = index_carve_take(&carve, (size_t)INDEX_GRAIN * params->value_dim * sizeof(uint16_t));
    w->value_sums = index_carve_take(&carve, (size_t)centres * params->value_dim * sizeof(float));
    w->square = index_carve_take(&carve, (size_t)dim * dim * sizeof(float));
    w->cross = index_carve_take(&carve, (size_t)dim * params->value_dim * sizeof(float));
    return carve.bytes;
}

size_t clusters_workspace_bytes(const index_params *params, uint32_t count) {
    workspace unused;
    return lay_out_workspace(params, count, NULL, &unused);
}

/* ---- phases ---- */

static void fit(index_building *building, workspace *w) {
    uint32_t dim = building->params->key_dim;
    index_points_fit(&w->points, building);
    clusters_segment s = clusters_lay_out(building->params, building->segment->count, building->segment->data);
    for (uint32_t j = 0; j < dim; j++) s.mean[j] = hd_f32_to_bf16(w->points.space.mean[j]);
    for (size_t i = 0; i < (size_t)s.dim * dim; i++) s.to_queries[i] = hd_f32_to_bf16(w->points.space.to_queries[i]);
}

static void set_means(const index_building *building, workspace *w, const clusters_segment *s) {
    uint32_t dim = s->dim;
    float x[SKETCH_DIM_MAX];
    memset(w->centres, 0, (size_t)s->cluster_count * dim * sizeof(float));
    memset(s->sizes, 0, s->cluster_count * sizeof(uint32_t));
    for (uint32_t key = index_points_first(building); key < building->segment->count; key++) {
        float *sum = w->centres + (size_t)w->clusters[key] * dim;
        index_points_load(&w->points, key, x);
        for (uint32_t i = 0; i < dim; i++) sum[i] += x[i];
        s->sizes[w->clusters[key]]++;
    }
    for (uint32_t c = 0; c < s->cluster_count; c++)
        for (uint32_t i = 0; i < dim; i++)
            w->centres[(size_t)c * dim + i] /= (float)(s->sizes[c] > 0 ? s->sizes[c] : 1);
}

/* Parts the clusters of `order` in halves of equal number, along the coordinate in which they are farthest apart, until
 * each part is a group. */
static void part(workspace *w, const clusters_segment *s, uint64_t *order, uint32_t count) {
    if (count <= CLUSTERS_GROUP) return;
    uint32_t widest = 0, half = count / CLUSTERS_GROUP / 2 * CLUSTERS_GROUP;
    float most = -1.0f;
    for (uint32_t i = 0; i < s->centre_dim; i++) {
        float sum = 0.0f, squares = 0.0f;
        for (uint32_t n = 0; n < count; n++) {
            float x = w->centres[(size_t)index_item_token(order[n]) * s->dim + i];
            sum += x;
            squares += x * x;
        }
        float apart = squares - sum * sum / (float)count;
        if (apart > most) {
            most = apart;
            widest = i;
        }
    }
    for (uint32_t n = 0; n < count; n++) {
        uint32_t cluster = index_item_token(order[n]);
        order[n] = index_item(w->centres[(size_t)cluster * s->dim + widest], cluster);
    }
    index_items_select(order, count, half);
    part(w, s, order, half);
    part(w, s, order + half, count - half);
}

/* Clusters are named anew in the order of their groups. */
static void order_clusters(const index_building *building, workspace *w, const clusters_segment *s) {
    if (s->groups.count == 0) return;
    for (uint32_t c = 0; c < s->cluster_count; c++) w->order[c] = index_item(0.0f, c);
    part(w, s, w->order, s->cluster_count);
    for (uint32_t c = 0; c < s->cluster_count; c++) w->fill[index_item_token(w->order[c])] = c;
    for (uint32_t key = index_points_first(building); key < building->segment->count; key++)
        w->clusters[key] = w->fill[w->clusters[key]];
    set_means(building, w, s);
}

/* A group's centre is the mean of its clusters', and its spread that of theirs, as a cluster's is of its keys. */
static void set_groups(workspace *w, clusters_segment *s) {
    uint32_t dim = s->dim, count = s->groups.count;
    float *variances = s->header->group_variances, total = 0.0f;
    if (count == 0) return;
    memset(w->groups, 0, (size_t)count * dim * sizeof(float));
    for (uint32_t c = 0; c < s->cluster_count; c++)
        for (uint32_t i = 0; i < dim; i++)
            w->groups[(size_t)(c / CLUSTERS_GROUP) * dim + i] += w->centres[(size_t)c * dim + i] / CLUSTERS_GROUP;
    index_centres_set(&s->groups, w->groups, dim);
    for (uint32_t c = 0; c < s->cluster_count; c++) {
        for (uint32_t i = 0; i < dim; i++) {
            float apart = w->centres[(size_t)c * dim + i] - w->groups[(size_t)(c / CLUSTERS_GROUP) * dim + i];
            s->group_spreads[c / CLUSTERS_GROUP] += apart * apart;
            variances[i] += apart * apart / (float)s->cluster_count;
        }
    }
    for (uint32_t g = 0; g < count; g++) total += s->group_spreads[g];
    for (uint32_t g = 0; g < count && total > 0.0f; g++)
        s->group_spreads[g] = sqrtf(s->group_spreads[g] * (float)count / total);
}

/* Clusters get their keys' means as centres, in int8; from here on a residual is what is left of a key's coordinates
 * beside the centre as a search will see it. */
static void set_centres(const index_building *building, workspace *w, clusters_segment *s) {
    uint32_t dim = s->dim;
    set_means(building, w, s);
    order_clusters(building, w, s);
    set_groups(w, s);
    kernel_matrix_pack(&s->centres, 0, w->centres, HD_F32, dim, s->cluster_count); /* of each row its beginning */
    for (uint32_t c = 0; c < s->cluster_count; c++)
        for (uint32_t i = 0; i < dim; i++)
            w->centres[(size_t)c * dim + i] = i < s->centre_dim ? kernel_matrix_get(&s->centres, i, c) : 0.0f;
}

static void set_slots(const index_building *building, workspace *w, clusters_segment *s) {
    for (uint32_t c = 0, slot = 0; c < s->cluster_count; slot += s->sizes[c++]) {
        s->starts[c] = w->fill[c] = slot;
        for (uint32_t first = HD_ALIGN_UP(slot, (uint32_t)SCAN_BLOCK); first < slot + s->sizes[c]; first += SCAN_BLOCK)
            s->block_clusters[first / SCAN_BLOCK] = (uint16_t)c;
    }
    for (uint32_t key = index_points_first(building); key < building->segment->count; key++) {
        w->slots[key] = w->fill[w->clusters[key]]++;
        s->tokens[w->slots[key]] = (uint16_t)(key % CLUSTERS_EARLY);
        s->early_counts[w->clusters[key]] += key < CLUSTERS_EARLY;
    }
}

static void residual_of(const workspace *w, const clusters_segment *s, uint32_t key, float *x) {
    const float *centre = w->centres + (size_t)w->clusters[key] * s->dim;
    index_points_load(&w->points, key, x);
    for (uint32_t i = 0; i < s->dim; i++) x[i] -= centre[i];
}

/* A spread is the root of a cluster's mean square over everybody's; a small cluster's is drawn towards 1, since a few
 * keys do not tell. */
static void set_spreads(const index_building *building, workspace *w, clusters_segment *s) {
    const float prior = 8.0f;
    uint32_t first = index_points_first(building), end = building->segment->count, count = end - first;
    float x[SKETCH_DIM_MAX], total = 0.0f;
    memset(s->spreads, 0, s->cluster_count * sizeof(float));
    for (uint32_t key = first; key < end; key++) {
        residual_of(w, s, key, x);
        for (uint32_t i = 0; i < s->dim; i++) s->spreads[w->clusters[key]] += x[i] * x[i];
    }
    for (uint32_t c = 0; c < s->cluster_count; c++) total += s->spreads[c];
    float mean = total > 0.0f ? total / (float)count : 1.0f;
    for (uint32_t c = 0; c < s->cluster_count; c++)
        s->spreads[c] = sqrtf((s->spreads[c] / mean + prior) / ((float)s->sizes[c] + prior));
    float *variances = s->header->residual_variances;
    for (uint32_t key = first; key < end; key++) {
        float inverse = 1.0f / s->spreads[w->clusters[key]];
        residual_of(w, s, key, x);
        for (uint32_t i = 0; i < s->dim; i++) variances[i] += x[i] * inverse * (x[i] * inverse);
    }
    for (uint32_t i = 0; i < s->dim; i++) variances[i] /= (float)count;
}

static void encode(const workspace *w, const clusters_segment *s, uint32_t key) {
    float x[SKETCH_DIM_MAX];
    uint8_t code[SCAN_NIBBLES / 2];
    uint32_t slot = w->slots[key];
    float inverse = 1.0f / s->spreads[w->clusters[key]];
    residual_of(w, s, key, x);
    for (uint32_t i = 0; i < s->dim; i++) x[i] *= inverse;
    sketch_encode_coarse(&s->header->plan, x, code);
    uint8_t *block = s->blocks + (size_t)(slot / SCAN_BLOCK) * SCAN_BLOCK_BYTES;
    for (uint32_t b = 0; b < SCAN_NIBBLES / 2; b++) block[b * SCAN_BLOCK + slot % SCAN_BLOCK] = code[b];
    sketch_encode_fine(&s->header->plan, x, s->fine + (size_t)slot * s->fine_bytes);
}

/* ---- values ---- */

static void add_values(const index_building *building, workspace *w, uint32_t first) {
    uint32_t dim = building->params->value_dim;
    const uint16_t *values =
        building->source->values(building->source->context, building->segment->first + first, INDEX_GRAIN, w->values);
    for (uint32_t r = first == 0 ? index_points_first(building) : 0; r < INDEX_GRAIN; r++) {
        float *sum = w->value_sums + (size_t)w->clusters[first + r] * dim;
        for (uint32_t i = 0; i < dim; i++) sum[i] += hd_bf16_to_f32(values[(size_t)r * dim + i]);
    }
}

/* Within a cluster, a key whose coordinates differ from the centre's has another value: the least squares line through
 * sampled residuals tells by how much. */
static void fit_gradients(const index_building *building, workspace *w, const clusters_segment *s) { /* to w->cross */
    uint32_t value_dim = building->params->value_dim, dim = s->dim, sampled = index_points_sample_count(building);
    float x[SKETCH_DIM_MAX], difference[512];
    memset(w->square, 0, (size_t)dim * dim * sizeof(float));
    memset(w->cross, 0, (size_t)dim * value_dim * sizeof(float));
    for (uint32_t n = 0; n < sampled; n++) {
        uint32_t key = index_points_sample(building, n);
        const float *mean = w->value_sums + (size_t)w->clusters[key] * value_dim;
        const uint16_t *value =
            building->source->values(building->source->context, building->segment->first + key, 1, w->values);
        residual_of(w, s, key, x);
        for (uint32_t i = 0; i < value_dim; i++) difference[i] = hd_bf16_to_f32(value[i]) - mean[i];
        for (uint32_t i = 0; i < dim; i++) {
            for (uint32_t j = 0; j <= i; j++) w->square[(size_t)i * dim + j] += x[i] * x[j];
            for (uint32_t j = 0; j < value_dim; j++) w->cross[(size_t)i * value_dim + j] += x[i] * difference[j];
        }
    }
    float trace = 0.0f;
    for (uint32_t i = 0; i < dim; i++) trace += w->square[(size_t)i * dim + i];
    float ridge = 1e-4f * trace / (float)dim + 1e-30f;
    for (uint32_t i = 0; i < dim; i++) w->square[(size_t)i * dim + i] += ridge;
    linear_cholesky(w->square, dim, ridge * 0.1f);
    for (uint32_t j = 0; j < value_dim; j++) {
        for (uint32_t i = 0; i < dim; i++) x[i] = w->cross[(size_t)i * value_dim + j];
        linear_solve_lower(w->square, dim, x);
        linear_solve_upper(w->square, dim, x);
        for (uint32_t i = 0; i < dim; i++) w->cross[(size_t)i * value_dim + j] = x[i];
    }
}

static void set_values(const index_building *building, workspace *w, clusters_segment *s) {
    uint32_t dim = building->params->value_dim;
    for (uint32_t c = 0; c < s->cluster_count; c++) {
        float inverse = s->sizes[c] > 0 ? 1.0f / (float)s->sizes[c] : 0.0f;
        for (uint32_t i = 0; i < dim; i++) w->value_sums[(size_t)c * dim + i] *= inverse;
    }
    fit_gradients(building, w, s);
    /* a column of the packed matrix is an element of all clusters' values and of all gradients */
    float column[128 * INDEX_GRAIN / CLUSTERS_KEYS + SKETCH_DIM_MAX];
    for (uint32_t i = 0; i < dim; i++) {
        for (uint32_t c = 0; c < s->cluster_count; c++) column[c] = w->value_sums[(size_t)c * dim + i];
        for (uint32_t c = 0; c < s->dim; c++) column[s->cluster_count + c] = w->cross[(size_t)c * dim + i];
        kernel_matrix_pack(&s->values, i, column, HD_F32, s->values.k, 1);
    }
}

/* ---- steps ---- */

static void arrange(index_building *building, workspace *w, clusters_segment *s) {
    set_centres(building, w, s);
    set_slots(building, w, s);
    set_spreads(building, w, s);
    sketch_plan_make(&s->header->plan, s->header->residual_variances, s->dim, s->fine_bytes * 2);
}

/* Each phase but the short ones goes over the segment a piece at a time; this takes the next piece and says whether it
 * was the phase's last. */
static bool run_phase(index_building *building, workspace *w, clusters_segment *s) {
    uint32_t count = building->segment->count, first = building->cursor, skipped = index_points_first(building);
    uint32_t piece = count - first < PIECE ? count - first : PIECE;
    switch ((build_phase)building->phase) {
    case FIT: fit(building, w); return true;
    case TRAIN: return kmeans_train(&w->points.clustering);
    case ARRANGE: arrange(building, w, s); return true;
    case FINISH:
        if (building->params->has_rest) set_values(building, w, s);
        return true;
    case PROJECT:
        piece = INDEX_GRAIN;
        index_points_project(&w->points, building, first, NULL);
        break;
    case ASSIGN: index_points_assign(&w->points, building, first, piece, w->clusters); break;
    case ENCODE:
        for (uint32_t key = first < skipped ? skipped : first; key < first + piece; key++) encode(w, s, key);
        break;
    case VALUES:
        piece = INDEX_GRAIN;
        if (building->params->has_rest) add_values(building, w, first);
        break;
    case DONE: return true;
    }
    building->cursor = first + piece;
    return building->cursor == count;
}

bool clusters_build_step(index_building *building) {
    workspace *w = building->workspace;
    uint32_t count = building->segment->count;
    if (building->phase == FIT) {
        lay_out_workspace(building->params, count, building->workspace, w);
        memset(w->value_sums, 0, (size_t)cluster_count_of(count) * building->params->value_dim * sizeof(float));
    }
    clusters_segment s = clusters_lay_out(building->params, count, building->segment->data);
    if (!run_phase(building, w, &s)) return false;
    building->phase++;
    building->cursor = 0;
    if (building->phase == TRAIN) kmeans_begin(&w->points.clustering);
    return building->phase == DONE;
}

const index_kind index_kind_clusters = {
    .name = "clusters",
    .queries_max = QUERIES,
    .has_rest = true,
    .segment_bytes = segment_bytes,
    .workspace_bytes = clusters_workspace_bytes,
    .search_bytes = clusters_search_bytes,
    .build_step = clusters_build_step,
    .search = clusters_search,
};
