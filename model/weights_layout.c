/* weights_layout.c - the walk over the model. */
#include "model/weights_layout.h"

#include <assert.h>

#include "base/memory.h"
#include "base/threads.h"

/* Hands out the region from its start; with region NULL it only counts. */
typedef struct carver {
    unsigned char *region;
    uint64_t used_bytes;
} carver;

static void *carve(carver *c, uint64_t bytes) {
    void *place = c->region != NULL ? c->region + c->used_bytes : NULL;
    c->used_bytes += HD_ALIGN_UP(bytes, (uint64_t)HD_CACHE_LINE);
    return place;
}

static float *carve_floats(carver *c, uint32_t count) {
    return carve(c, (uint64_t)count * sizeof(float));
}

static void carve_matrix(carver *c, kernel_matrix *matrix, hd_dtype dtype, uint32_t n, uint32_t k) {
    if (n == 0) { /* other ranks have all of it */
        *matrix = (kernel_matrix){.dtype = dtype, .k = k, .k_padded = HD_ALIGN_UP(k, KERNEL_K_ALIGN)};
        return;
    }
    void *data = carve(c, kernel_matrix_bytes(dtype, n, k));
    float *scales = dtype == HD_INT8 ? carve_floats(c, HD_ALIGN_UP(n, KERNEL_N_ALIGN)) : NULL;
    if (data != NULL) kernel_matrix_init(matrix, dtype, n, k, data, scales);
}

model_columns model_share_columns(model_share share, uint32_t n, uint32_t unit) {
    uint32_t each = unit * KERNEL_PANEL;
    size_t first, count;
    hd_share((n + each - 1) / each, 1, share.rank, share.count, &first, &count);
    uint32_t begin = (uint32_t)first * each, end = (uint32_t)(first + count) * each;
    if (count == 0) return (model_columns){0, 0};
    return (model_columns){begin, (end < n ? end : n) - begin};
}

model_columns weights_layout_alone(model_share share, uint32_t n) {
    return (model_columns){0, share.rank == 0 ? n : 0};
}

static void carve_shared(carver *c, model_share share, kernel_matrix *matrix, hd_dtype dtype, uint32_t n, uint32_t k,
                         uint32_t unit) {
    carve_matrix(c, matrix, dtype, model_share_columns(share, n, unit).count, k);
}

static void carve_attention(carver *c, const model_config *config, hd_dtype dtype, model_share share,
                            model_layer *layer) {
    uint32_t query_width = config->query_heads * config->head_dim, kv_width = config->kv_heads * config->head_dim;
    uint32_t qkv_width = query_width + 2 * kv_width;
    layer->attention_norm = carve_floats(c, config->hidden_size);
    layer->mlp_norm = carve_floats(c, config->hidden_size);
    carve_shared(c, share, &layer->qkv, dtype, qkv_width, config->hidden_size, 1);
    carve_shared(c, share, &layer->attention_output, dtype, config->hidden_size, query_width, 1);
    if (config->qkv_bias) layer->qkv_bias = carve_floats(c, qkv_width);
    if (config->output_bias) layer->attention_output_bias = carve_floats(c, config->hidden_size);
    if (!config->qk_norm) return;
    layer->query_norm = carve_floats(c, config->head_dim);
    layer->key_norm = carve_floats(c, config->head_dim);
}

static void carve_experts(carver *c, const model_config *config, hd_dtype dtype, model_share share,
                          model_layer *layer) {
    uint32_t hidden_size = config->hidden_size, width = config->expert_intermediate_size;
    /* A rounded router sends tokens to other experts, which costs far more than the bytes that it would save. */
    carve_matrix(c, &layer->router, dtype == HD_INT8 ? HD_BF16 : dtype,
                 weights_layout_alone(share, config->expert_count).count, hidden_size);
    for (uint32_t e = 0; e < config->expert_count; e++) {
        model_expert *expert = &layer->experts[e];
        uint32_t gated = weights_layout_alone(share, 2 * HD_ALIGN_UP(width, KERNEL_PANEL)).count;
        carve_matrix(c, &expert->gate_up, dtype, gated, hidden_size);
        carve_matrix(c, &expert->down, dtype, weights_layout_alone(share, hidden_size).count, width);
    }
}

static void carve_layer(carver *c, const model_config *config, hd_dtype dtype, model_share share, bool is_sparse,
                        model_layer *layer) {
    uint32_t hidden_size = config->hidden_size, width = config->intermediate_size;
    carve_attention(c, config, dtype, share, layer);
    if (is_sparse) {
        carve_experts(c, config, dtype, share, layer);
        return;
    }
    carve_shared(c, share, &layer->gate_up, dtype, 2 * HD_ALIGN_UP(width, KERNEL_PANEL), hidden_size, 2);
    carve_shared(c, share, &layer->down, dtype, hidden_size, width, 1);
}

static uint64_t carve_model(const model_config *config, model_weights *weights) {
    carver c = {.region = weights->region};
    for (uint32_t i = 0; i < config->layer_count; i++) {
        carve_layer(&c, config, weights->dtype, weights->share, config->is_sparse[i], &weights->layers[i]);
    }
    weights->final_norm = carve_floats(&c, config->hidden_size);
    carve_shared(&c, weights->share, &weights->lm_head, weights->dtype, config->vocabulary_size, config->hidden_size,
                 1);
    return c.used_bytes;
}

static hd_status allocate_tables(const model_config *config, model_weights *weights) {
    weights->layers = hd_alloc_zeroed(config->layer_count * sizeof(*weights->layers), HD_CACHE_LINE);
    if (weights->layers == NULL) return HD_NO_MEMORY;
    weights->layer_count = config->layer_count;
    for (uint32_t i = 0; i < config->layer_count; i++) {
        if (!config->is_sparse[i]) continue;
        weights->layers[i].experts = hd_alloc_zeroed(config->expert_count * sizeof(model_expert), HD_CACHE_LINE);
        if (weights->layers[i].experts == NULL) return HD_NO_MEMORY;
    }
    return HD_OK;
}

hd_status weights_layout_open(const model_config *config, hd_dtype dtype, model_share share, model_weights **weights) {
    assert(dtype == HD_BF16 || dtype == HD_F32 || dtype == HD_INT8);
    model_weights *w = hd_alloc_zeroed(sizeof(*w), HD_CACHE_LINE);
    if (w == NULL) return HD_NO_MEMORY;
    w->dtype = dtype;
    w->share = share;
    hd_status status = allocate_tables(config, w);
    if (status == HD_OK) {
        w->bytes = carve_model(config, w);
        *weights = w;
    } else {
        weights_layout_close(w);
    }
    return status;
}

void weights_layout_drop(model_weights *weights) {
    if (weights->region != NULL) hd_region_unmap(weights->region, weights->bytes);
    weights->region = NULL;
}

void weights_layout_close(model_weights *weights) {
    if (weights == NULL) return;
    for (uint32_t i = 0; i < weights->layer_count; i++) hd_free(weights->layers[i].experts);
    hd_free(weights->layers);
    weights_layout_drop(weights);
    hd_free(weights);
}

hd_status weights_layout_place(const model_config *config, model_weights *weights) {
    weights->region = hd_region_map(weights->bytes);
    if (weights->region == NULL) return HD_NO_MEMORY;
    uint64_t used_bytes = carve_model(config, weights);
    assert(used_bytes == weights->bytes);
    (void)used_bytes;
    return HD_OK;
}
