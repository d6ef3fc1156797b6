/* index_points.c - the space fitted to a sample, and the projection into it as a matrix product. */
#include "attention-node/index_points.h"

#include <string.h>

enum {
    TRAIN_KEYS = 24, /* sampled for each centre */
    TRAIN_ROUNDS = 6,
};

static void lay_out_clustering(kmeans *k, const index_params *params, uint32_t cluster_count, index_carve *carve) {
    uint32_t dim = k->dim;
    size_t row = params->key_dim > dim ? HD_ALIGN_UP(params->key_dim, KERNEL_K_ALIGN) : dim;
    k->kernels = params->kernels;
    k->centre_count = cluster_count;
    k->sample_count = TRAIN_KEYS * cluster_count;
    k->rounds = TRAIN_ROUNDS;
    k->centres = index_carve_take(carve, (size_t)cluster_count * dim * sizeof(float));
    k->sums = index_carve_take(carve, (size_t)cluster_count * dim * sizeof(float));
    k->bias = index_carve_take(carve, cluster_count * sizeof(float));
    k->counts = index_carve_take(carve, cluster_count * sizeof(uint32_t));
    k->scores =
        index_carve_take(carve, (size_t)KMEANS_CHUNK * HD_ALIGN_UP(cluster_count, KERNEL_N_ALIGN) * sizeof(float));
    k->scratch = index_carve_take(carve, params->kernels->scratch_bytes);
    k->inputs = index_carve_take(carve, KMEANS_CHUNK * row * sizeof(uint16_t));
    void *packed = index_carve_take(carve, kernel_matrix_bytes(HD_BF16, cluster_count, dim));
    if (carve->base != NULL) kernel_matrix_init(&k->packed, HD_BF16, cluster_count, dim, packed, NULL);
}

void index_points_lay_out(index_points *self, const index_params *params, uint32_t count, uint32_t dim,
                          uint32_t cluster_count, index_carve *carve) {
    size_t d = params->key_dim;
    *self = (index_points){.stride = dim > INDEX_POINTS_TRAIN_DIM ? dim : INDEX_POINTS_TRAIN_DIM};
    self->space = (index_space){.key_dim = params->key_dim,
                                .dim = dim,
                                .to_keys = index_carve_take(carve, dim * d * sizeof(float)),
                                .to_queries = index_carve_take(carve, dim * d * sizeof(float)),
                                .mean = index_carve_take(carve, d * sizeof(float)),
                                .variances = index_carve_take(carve, dim * sizeof(float))};
    void *projection = index_carve_take(carve, kernel_matrix_bytes(HD_BF16, dim, params->key_dim));
    self->bias = index_carve_take(carve, dim * sizeof(float));
    self->points = index_carve_take(carve, count * self->stride * sizeof(uint16_t));
    self->projected = index_carve_take(carve, (size_t)KMEANS_CHUNK * dim * sizeof(float));
    self->rows = index_carve_take(carve, INDEX_GRAIN * d * sizeof(uint16_t));
    self->sample = index_carve_take(carve, INDEX_POINTS_SAMPLE * d * sizeof(uint16_t));
    self->dense = index_carve_take(carve, index_space_bytes(params->key_dim));
    self->clustering = (kmeans){
        .points = self->points, .point_stride = self->stride, .point_count = count, .dim = INDEX_POINTS_TRAIN_DIM};
    lay_out_clustering(&self->clustering, params, cluster_count, carve);
    if (carve->base != NULL) kernel_matrix_init(&self->projection, HD_BF16, dim, params->key_dim, projection, NULL);
}

static const uint16_t *read_keys(const index_building *building, uint32_t first, uint32_t count, uint16_t *room) {
    return building->source->keys(building->source->context, building->segment->first + first, count, room);
}

void index_points_fit(index_points *self, const index_building *building) {
    uint32_t first = index_points_first(building), dim = self->space.key_dim;
    uint32_t sampled = index_points_sample_count(building);
    for (uint32_t i = 0; i < sampled; i++) {
        const uint16_t *key = read_keys(building, index_points_sample(building, i), 1, self->rows);
        memcpy(self->sample + (size_t)i * dim, key, dim * sizeof(*key));
    }
    index_space_fit(&self->space, self->sample, sampled, building->queries, building->query_count, self->dense);
    kernel_matrix_pack(&self->projection, 0, self->space.to_keys, HD_F32, dim, self->space.dim);
    for (uint32_t i = 0; i < self->space.dim; i++) {
        self->bias[i] = 0.0f;
        for (uint32_t j = 0; j < dim; j++)
            self->bias[i] -= kernel_matrix_get(&self->projection, j, i) * self->space.mean[j];
    }
    self->clustering.seed = building->seed;
    self->clustering.points += first * self->stride;
    self->clustering.point_count -= first;
}

static void project_chunk(index_points *self, const uint16_t *keys) {
    uint32_t key_dim = self->space.key_dim;
    size_t stride = HD_ALIGN_UP(key_dim, KERNEL_K_ALIGN);
    kmeans *k = &self->clustering; /* its inputs and scratch are free until it is trained, and after */
    for (uint32_t r = 0; r < KMEANS_CHUNK; r++) {
        memcpy(k->inputs + r * stride, keys + (size_t)r * key_dim, key_dim * sizeof(*keys));
        memset(k->inputs + r * stride + key_dim, 0, (stride - key_dim) * sizeof(*keys));
    }
    kernel_matmul product = {.weights = &self->projection,
                             .input = k->inputs,
                             .input_stride = stride,
                             .row_count = KMEANS_CHUNK,
                             .output = self->projected,
                             .output_stride = self->space.dim,
                             .bias = self->bias,
                             .epilogue = KERNEL_STORE,
                             .scratch = k->scratch};
    k->kernels->matmul(&product, 0, kernel_matrix_panels(&self->projection));
}

void index_points_project(index_points *self, const index_building *building, uint32_t first, const uint32_t *places) {
    uint32_t key_dim = self->space.key_dim, dim = self->space.dim;
    const uint16_t *keys = read_keys(building, first, INDEX_GRAIN, self->rows);
    for (uint32_t at = 0; at < INDEX_GRAIN; at += KMEANS_CHUNK) {
        project_chunk(self, keys + (size_t)at * key_dim);
        for (uint32_t r = 0; r < KMEANS_CHUNK; r++) {
            uint32_t key = first + at + r, place = places != NULL ? places[key] : key;
            uint16_t *point = self->points + place * self->stride;
            self->clustering.kernels->convert(self->projected + (size_t)r * dim, HD_F32, point, HD_BF16, dim);
            memset(point + dim, 0, (self->stride - dim) * sizeof(*point));
        }
    }
}

void index_points_assign(index_points *self, const index_building *building, uint32_t first, uint32_t count,
                         uint32_t *clusters) {
    uint32_t skipped = index_points_first(building), from = first < skipped ? skipped : first;
    if (from >= first + count) return;
    kmeans_assign(&self->clustering, from - skipped, first + count - from, clusters + from);
}
