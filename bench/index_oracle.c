/* index_oracle.c - k-means over the keys of each 131,072, then every score of every query. */
#include "bench/index_oracle.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attention-node/index_kmeans.h"
#include "attention-node/index_top.h"
#include "base/memory.h"

enum { KEYS_OF_CENTROID = 16, RANGE = 131072, ROUNDS = 6 };

typedef struct oracle {
    const index_data *data;
    const kernel_ops *kernels;
    uint32_t centroid_count;
    uint32_t *of;     /* [key_count]: its centroid */
    float *centroids; /* [centroid_count, key_dim] */
    float *sums;      /* [centroid_count, value_dim]: of one query's values that are not among the best */
    uint32_t *left;   /* [centroid_count]: how many those are */
    float *scores;
    uint64_t *items;
    bool *is_best;
} oracle;

/* Clusters keys [first, first + count). */
static hd_status cluster_range(oracle *o, uint32_t first, uint32_t count, uint32_t first_centroid) {
    uint32_t dim = o->data->key_dim, stride = (uint32_t)HD_ALIGN_UP(dim, KERNEL_K_ALIGN),
             centres = count / KEYS_OF_CENTROID;
    kmeans k = {.kernels = o->kernels,
                .point_stride = stride,
                .point_count = count,
                .dim = stride,
                .centre_count = centres,
                .sample_count = count,
                .rounds = ROUNDS,
                .seed = 1};
    uint16_t *points = hd_alloc_zeroed((size_t)count * stride * sizeof(*points), 64);
    void *packed = hd_alloc(kernel_matrix_bytes(HD_BF16, centres, stride), 64);
    k.centres = malloc((size_t)centres * stride * sizeof(float));
    k.sums = malloc((size_t)centres * stride * sizeof(float));
    k.bias = malloc(centres * sizeof(float));
    k.counts = malloc(centres * sizeof(uint32_t));
    k.inputs = hd_alloc(KMEANS_CHUNK * stride * sizeof(uint16_t), 64);
    k.scores = hd_alloc((size_t)KMEANS_CHUNK * HD_ALIGN_UP(centres, KERNEL_N_ALIGN) * sizeof(float), 64);
    k.scratch = hd_alloc(o->kernels->scratch_bytes, 64);
    hd_status status = points != NULL && packed != NULL && k.centres != NULL && k.sums != NULL && k.bias != NULL &&
                               k.counts != NULL && k.inputs != NULL && k.scores != NULL && k.scratch != NULL
                           ? HD_OK
                           : HD_NO_MEMORY;
    if (status == HD_OK) {
        for (uint32_t i = 0; i < count; i++)
            memcpy(points + (size_t)i * stride, o->data->keys + (size_t)(first + i) * dim, dim * sizeof(*points));
        k.points = points;
        kernel_matrix_init(&k.packed, HD_BF16, centres, stride, packed, NULL);
        kmeans_begin(&k);
        while (!kmeans_train(&k)) continue;
        kmeans_assign(&k, 0, count, o->of + first);
        for (uint32_t i = 0; i < count; i++) o->of[first + i] += first_centroid;
        for (uint32_t c = 0; c < centres; c++)
            memcpy(o->centroids + (size_t)(first_centroid + c) * dim, k.centres + (size_t)c * stride,
                   dim * sizeof(float));
    }
    hd_free(points);
    hd_free(packed);
    free(k.centres);
    free(k.sums);
    free(k.bias);
    free(k.counts);
    hd_free(k.inputs);
    hd_free(k.scores);
    hd_free(k.scratch);
    return status;
}

static hd_status cluster(oracle *o) {
    hd_status status = HD_OK;
    for (uint32_t first = 0; status == HD_OK && first < o->data->key_count; first += RANGE) {
        uint32_t count = o->data->key_count - first < RANGE ? o->data->key_count - first : RANGE;
        status = cluster_range(o, first, count, o->centroid_count);
        o->centroid_count += count / KEYS_OF_CENTROID;
    }
    return status;
}

static double error_of(oracle *o, uint32_t test, uint32_t wanted) {
    const index_data *data = o->data;
    uint32_t dim = data->value_dim;
    index_attention a = {0};
    index_top top;
    index_data_scores(data, o->kernels, test, o->scores);
    index_top_init(&top, o->items, wanted);
    for (uint32_t i = 0; i < data->key_count; i++) index_top_add(&top, index_item(o->scores[i], i));
    index_top_shrink(&top);
    memset(o->is_best, 0, data->key_count * sizeof(*o->is_best));
    for (uint32_t i = 0; i < top.count; i++) {
        uint32_t key = index_item_token(top.items[i]);
        o->is_best[key] = true;
        index_attention_add(&a, dim, (double)o->scores[key] * (double)data->scale, data->values + (size_t)key * dim);
    }
    memset(o->sums, 0, (size_t)o->centroid_count * dim * sizeof(*o->sums));
    memset(o->left, 0, o->centroid_count * sizeof(*o->left));
    for (uint32_t i = 0; i < data->key_count; i++) {
        if (o->is_best[i]) continue;
        float *sum = o->sums + (size_t)o->of[i] * dim;
        for (uint32_t k = 0; k < dim; k++) sum[k] += hd_bf16_to_f32(data->values[(size_t)i * dim + k]);
        o->left[o->of[i]]++;
    }
    for (uint32_t c = 0; c < o->centroid_count; c++) {
        float score = 0.0f;
        for (uint32_t i = 0; i < data->key_dim; i++)
            score += o->centroids[(size_t)c * data->key_dim + i] *
                     hd_bf16_to_f32(data->tests[(size_t)test * data->key_dim + i]);
        if (o->left[c] > 0)
            index_attention_add_partial(&a, dim, score * data->scale, (float)o->left[c], o->sums + (size_t)c * dim);
    }
    return index_attention_error(&a, dim, data->outputs + (size_t)test * dim);
}

hd_status index_oracle_run(const index_data *data, const kernel_ops *kernels, double share, sample *errors) {
    uint32_t wanted = (uint32_t)(share * data->key_count), centroids = data->key_count / KEYS_OF_CENTROID;
    oracle o = {.data = data, .kernels = kernels};
    o.of = calloc(data->key_count, sizeof(*o.of));
    o.centroids = calloc((size_t)centroids * data->key_dim, sizeof(*o.centroids));
    o.sums = calloc((size_t)centroids * data->value_dim, sizeof(*o.sums));
    o.left = calloc(centroids, sizeof(*o.left));
    o.scores = calloc(data->key_count, sizeof(*o.scores));
    o.items = calloc(index_top_room(wanted), sizeof(*o.items));
    o.is_best = calloc(data->key_count, sizeof(*o.is_best));
    hd_status status = o.of != NULL && o.centroids != NULL && o.sums != NULL && o.left != NULL && o.scores != NULL &&
                               o.items != NULL && o.is_best != NULL
                           ? cluster(&o)
                           : HD_NO_MEMORY;
    for (uint32_t test = 0; status == HD_OK && test < data->output_count; test++)
        status = sample_add(errors, error_of(&o, test, wanted));
    free(o.of);
    free(o.centroids);
    free(o.sums);
    free(o.left);
    free(o.scores);
    free(o.items);
    free(o.is_best);
    return status;
}
