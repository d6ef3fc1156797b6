/* synthetic_steps.c - tensors rewritten on their way, and exact attention over keys made again, block by block. */
#include "bench/synthetic_steps.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/dtype.h"

enum { DIM_MAX = 256 };

hd_status synthetic_steps_open(synthetic_steps *self, const model_config *model, const kernel_ops *kernels) {
    *self = (synthetic_steps){.kernels = kernels,
                              .layers = model->layer_count,
                              .kv_heads = model->kv_heads,
                              .group_size = model->query_heads / model->kv_heads,
                              .dim = model->head_dim};
    sample_init(&self->errors);
    return synthetic_kv_open(kernels, self->layers, self->kv_heads, self->group_size, self->dim, &self->kv);
}

void synthetic_steps_close(synthetic_steps *self) {
    if (self->kv == NULL) return;
    synthetic_kv_close(self->kv);
    sample_fini(&self->errors);
    self->kv = NULL;
}

static void source_rows(void *context, uint32_t layer, uint32_t head, uint64_t first, uint32_t count, uint16_t *keys,
                        uint16_t *values) {
    synthetic_kv_rows(((synthetic_steps *)context)->kv, layer, head, first, count, keys, values);
}

static void source_query(void *context, uint32_t layer, uint32_t head, uint64_t position, uint16_t *query) {
    synthetic_kv_query(((synthetic_steps *)context)->kv, layer, head, position, query);
}

engine_fill_source synthetic_steps_source(synthetic_steps *self) {
    return (engine_fill_source){.context = self, .rows = source_rows, .query = source_query};
}

/* ---- What a layer submits ---- */

static void put(const attention_tensor *tensor, size_t first, const uint16_t *row, uint32_t dim) {
    if (tensor->dtype == HD_BF16) memcpy((uint16_t *)tensor->data + first, row, dim * sizeof(*row));
    for (uint32_t i = 0; tensor->dtype == HD_F32 && i < dim; i++)
        ((float *)tensor->data)[first + i] = hd_bf16_to_f32(row[i]);
}

static void rewrite(void *context, const attention_layer_call *call) {
    synthetic_steps *self = context;
    uint16_t query[DIM_MAX], key[DIM_MAX], value[DIM_MAX];
    size_t padded = HD_ALIGN_UP(self->dim, KERNEL_K_ALIGN);
    for (uint32_t head = 0; head < self->kv_heads; head++) {
        synthetic_kv_rows(self->kv, call->layer, head, self->position, 1, key, value);
        for (uint32_t row = 0; row < self->rows; row++) {
            put(&call->keys, ((size_t)row * self->kv_heads + head) * self->dim, key, self->dim);
            put(&call->values, ((size_t)row * self->kv_heads + head) * self->dim, value, self->dim);
        }
        for (uint32_t g = 0; g < self->group_size; g++) {
            synthetic_kv_asked(self->kv, call->layer, head * self->group_size + g, query);
            for (uint32_t row = 0; row < self->rows; row++)
                put(&call->queries, (((size_t)head * self->rows + row) * self->group_size + g) * padded, query,
                    self->dim);
        }
    }
}

/* ---- What it should be answered ---- */

typedef struct exact {
    float query[DIM_MAX];
    double max, sum, out[DIM_MAX];
} exact;

static void exact_add(exact *e, double score, const uint16_t *value, uint32_t dim) {
    if (score > e->max) {
        double keep = exp(e->max - score);
        e->sum *= keep;
        for (uint32_t i = 0; i < dim; i++) e->out[i] *= keep;
        e->max = score;
    }
    double weight = exp(score - e->max);
    e->sum += weight;
    for (uint32_t i = 0; i < dim; i++) e->out[i] += weight * (double)hd_bf16_to_f32(value[i]);
}

static hd_status attend_exactly(const synthetic_steps *self, uint32_t layer, uint32_t head, exact *queries) {
    uint32_t dim = self->dim;
    uint16_t *keys = malloc((size_t)2 * HD_BLOCK_TOKENS * dim * sizeof(*keys)), query[DIM_MAX];
    if (keys == NULL) return HD_NO_MEMORY;
    uint16_t *values = keys + (size_t)HD_BLOCK_TOKENS * dim;
    for (uint32_t g = 0; g < self->group_size; g++) {
        queries[g] = (exact){.max = -INFINITY};
        synthetic_kv_asked(self->kv, layer, head * self->group_size + g, query);
        for (uint32_t i = 0; i < dim; i++) queries[g].query[i] = hd_bf16_to_f32(query[i]);
    }
    for (uint64_t first = 0; first <= self->position; first += HD_BLOCK_TOKENS) {
        uint64_t left = self->position + 1 - first;
        uint32_t count = left < HD_BLOCK_TOKENS ? (uint32_t)left : HD_BLOCK_TOKENS;
        float scores[HD_BLOCK_TOKENS];
        synthetic_kv_rows(self->kv, layer, head, first, count, keys, values);
        for (uint32_t g = 0; g < self->group_size; g++) {
            self->kernels->scan->dot_rows(queries[g].query, dim, keys, dim, count, scores);
            for (uint32_t i = 0; i < count; i++)
                exact_add(&queries[g], (double)scores[i] / sqrt(dim), values + (size_t)i * dim, dim);
        }
    }
    free(keys);
    return HD_OK;
}

static double answered(const attention_tensor *output, size_t at) {
    if (output->dtype == HD_F32) return (double)((const float *)output->data)[at];
    return (double)hd_bf16_to_f32(((const uint16_t *)output->data)[at]);
}

static void compare(void *context, const attention_layer_call *call) {
    synthetic_steps *self = context;
    uint32_t dim = self->dim, head = call->layer * 3 % self->kv_heads;
    exact *queries = calloc(self->group_size, sizeof(*queries));
    hd_status status = queries != NULL ? attend_exactly(self, call->layer, head, queries) : HD_NO_MEMORY;
    for (uint32_t g = 0; g < self->group_size && status == HD_OK; g++) {
        double error = 0.0, length = 0.0;
        for (uint32_t i = 0; i < dim; i++) {
            double right = queries[g].out[i] / queries[g].sum;
            double is = answered(&call->output, ((size_t)head * self->group_size + g) * dim + i);
            error += (is - right) * (is - right);
            length += right * right;
        }
        status = sample_add(&self->errors, sqrt(error / length));
    }
    free(queries);
    if (status != HD_OK) self->status = status;
}

void synthetic_steps_next(synthetic_steps *self, timed_attention *timed, uint32_t rows, uint64_t position,
                          bool is_checked) {
    self->rows = rows;
    self->position = position;
    synthetic_kv_drift(self->kv);
    timed->context = self;
    timed->before_submit = rewrite;
    timed->after_wait = is_checked ? compare : NULL;
}

void synthetic_steps_end(timed_attention *timed) {
    timed->before_submit = timed->after_wait = NULL;
}
