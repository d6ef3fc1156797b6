/* index_data.c - reading a data set, and solving it by brute force. */
#include "bench/index_data.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attention-node/index_top.h"
#include "base/memory.h"
#include "bench/random.h"

static hd_status take(const safetensors *file, const char *directory, const char *name, uint32_t *rows, uint32_t *dim,
                      const uint16_t **data, hd_error *error) {
    const safetensors_tensor *tensor = safetensors_find(file, name);
    if (tensor == NULL) return hd_error_set(error, HD_INVALID, "%s: no tensor '%s'", directory, name);
    if (tensor->rank != 2 || !tensor->is_float || tensor->dtype != HD_BF16 || (uintptr_t)tensor->data % 2 != 0)
        return hd_error_set(error, HD_INVALID, "%s: tensor '%s' must be a matrix of BF16", directory, name);
    if (tensor->shape[1] % 16 != 0 || tensor->shape[1] == 0 || tensor->shape[1] > 512 || tensor->shape[0] == 0 ||
        tensor->shape[0] > 1u << 30)
        return hd_error_set(error, HD_INVALID, "%s: rows of '%s' must be a multiple of 16 long, at most 512", directory,
                            name);
    *rows = (uint32_t)tensor->shape[0];
    *dim = (uint32_t)tensor->shape[1];
    *data = (const uint16_t *)(const void *)tensor->data;
    return HD_OK;
}

hd_status index_data_open(const char *directory, index_data *data, hd_error *error) {
    uint32_t values = 0, query_dim = 0, test_dim = 0;
    *data = (index_data){0};
    hd_status status = safetensors_open(directory, &data->file, error);
    if (status == HD_OK)
        status = take(data->file, directory, "keys", &data->key_count, &data->key_dim, &data->keys, error);
    if (status == HD_OK)
        status = take(data->file, directory, "values", &values, &data->value_dim, &data->values, error);
    if (status == HD_OK)
        status = take(data->file, directory, "queries", &data->query_count, &query_dim, &data->queries, error);
    if (status == HD_OK)
        status = take(data->file, directory, "tests", &data->test_count, &test_dim, &data->tests, error);
    if (status == HD_OK && (values != data->key_count || query_dim != data->key_dim || test_dim != data->key_dim))
        status = hd_error_set(error, HD_INVALID, "%s: 'keys', 'values', 'queries' and 'tests' do not fit each other",
                              directory);
    if (status == HD_OK && data->key_count < INDEX_GRAIN)
        status = hd_error_set(error, HD_INVALID, "%s: %u keys; there must be %u at least", directory, data->key_count,
                              INDEX_GRAIN);
    if (status != HD_OK) {
        index_data_close(data);
        return status;
    }
    data->key_count = data->key_count / INDEX_GRAIN * INDEX_GRAIN;
    data->scale = 1.0f / sqrtf((float)data->key_dim);
    return HD_OK;
}

void index_data_close(index_data *data) {
    safetensors_close(data->file);
    free(data->drawn);
    free(data->best);
    free(data->outputs);
    *data = (index_data){0};
}

hd_status index_data_draw_values(index_data *data) {
    size_t count = (size_t)data->key_count * data->value_dim;
    bench_random random = {1};
    data->drawn = malloc(count * sizeof(*data->drawn));
    if (data->drawn == NULL) return HD_NO_MEMORY;
    for (size_t i = 0; i < count; i++) data->drawn[i] = hd_f32_to_bf16((float)bench_random_normal(&random));
    data->values = data->drawn;
    return HD_OK;
}

static const uint16_t *keys_of(void *context, uint64_t first, uint32_t count, uint16_t *room) {
    const index_data *data = context;
    return data->keys + first * data->key_dim;
}

static const uint16_t *values_of(void *context, uint64_t first, uint32_t count, uint16_t *room) {
    const index_data *data = context;
    return data->values + first * data->value_dim;
}

index_source index_data_source(const index_data *data) {
    return (index_source){.context = (void *)(uintptr_t)data, .keys = keys_of, .values = values_of};
}

void index_data_scores(const index_data *data, const kernel_ops *kernels, uint32_t test, float *scores) {
    float query[512];
    for (uint32_t i = 0; i < data->key_dim; i++)
        query[i] = hd_bf16_to_f32(data->tests[(size_t)test * data->key_dim + i]);
    kernels->scan->dot_rows(query, data->key_dim, data->keys, data->key_dim, data->key_count, scores);
}

static void rescale(index_attention *a, uint32_t dim, double max) {
    if (a->sum == 0.0) a->max = max;
    if (max <= a->max) return;
    double factor = exp(a->max - max);
    a->sum *= factor;
    for (uint32_t i = 0; i < dim; i++) a->out[i] *= factor;
    a->max = max;
}

void index_attention_add(index_attention *a, uint32_t dim, double log_weight, const uint16_t *value) {
    rescale(a, dim, log_weight);
    double weight = exp(log_weight - a->max);
    a->sum += weight;
    if (weight < 1e-12) return;
    for (uint32_t i = 0; i < dim; i++) a->out[i] += weight * (double)hd_bf16_to_f32(value[i]);
}

void index_attention_add_partial(index_attention *a, uint32_t dim, float max, float sum, const float *out) {
    if (!(sum > 0.0f)) return;
    rescale(a, dim, max);
    double factor = exp(max - a->max);
    a->sum += factor * (double)sum;
    for (uint32_t i = 0; i < dim; i++) a->out[i] += factor * (double)out[i];
}

double index_attention_error(const index_attention *a, uint32_t dim, const float *right) {
    double difference = 0.0, length = 0.0;
    for (uint32_t i = 0; i < dim; i++) {
        double delta = a->out[i] / a->sum - (double)right[i];
        difference += delta * delta;
        length += (double)right[i] * (double)right[i];
    }
    return sqrt(difference / length);
}

static void solve_output(index_data *data, uint32_t test, const float *scores) {
    index_attention a = {0};
    float greatest = scores[0];
    for (uint32_t i = 1; i < data->key_count; i++) greatest = scores[i] > greatest ? scores[i] : greatest;
    a.max = (double)greatest * (double)data->scale;
    for (uint32_t i = 0; i < data->key_count; i++)
        index_attention_add(&a, data->value_dim, (double)scores[i] * (double)data->scale,
                            data->values + (size_t)i * data->value_dim);
    for (uint32_t i = 0; i < data->value_dim; i++)
        data->outputs[(size_t)test * data->value_dim + i] = (float)(a.out[i] / a.sum);
}

hd_status index_data_solve(index_data *data, const kernel_ops *kernels, uint32_t output_count) {
    data->output_count = output_count < data->test_count ? output_count : data->test_count;
    data->best = calloc((size_t)data->test_count * INDEX_DATA_BEST, sizeof(*data->best));
    data->outputs = calloc((size_t)data->output_count * data->value_dim, sizeof(*data->outputs));
    float *scores = malloc(data->key_count * sizeof(*scores));
    uint64_t *items = malloc(index_top_room(INDEX_DATA_BEST) * sizeof(*items));
    bool is_whole = data->best != NULL && data->outputs != NULL && scores != NULL && items != NULL;
    for (uint32_t test = 0; is_whole && test < data->test_count; test++) {
        index_top top;
        index_data_scores(data, kernels, test, scores);
        index_top_init(&top, items, INDEX_DATA_BEST);
        for (uint32_t i = 0; i < data->key_count; i++) index_top_add(&top, index_item(scores[i], i));
        index_top_shrink(&top);
        for (uint32_t i = 0; i < INDEX_DATA_BEST; i++)
            data->best[(size_t)test * INDEX_DATA_BEST + i] = index_item_token(top.items[i]);
        if (test < data->output_count) solve_output(data, test, scores);
    }
    free(scores);
    free(items);
    return is_whole ? HD_OK : HD_NO_MEMORY;
}
