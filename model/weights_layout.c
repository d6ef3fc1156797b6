/* weights_layout.c - the walk over the model. */
#include "model/weights_layout.h"

#include <assert.h>

#include "base/memory.h"

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
    void *data = carve(c, kernel_matrix_bytes(dtype, n, k));
    float *scales = dtype == HD_INT8 ? carve_floats(c, HD_ALIGN_UP(n, KERNEL_N_ALIGN)) : NULL;
    if (data != NULL) kernel_matrix_init(matrix, dtype, n, k, data, scales);
}

static void carve_gated(carver *c, hd_dtype dtype, uint32_t hidden_size, uint32_t width, kernel_matrix *gate_up,
                        kernel_matrix *down) {
    carve_matrix(c, gate_up, dtype, 2 * HD_ALIGN_UP(width, KERNEL_PANEL), hidden_size);
    carve_matrix(c, down, dtype, hidden_size, width);
}

static void carve_attention(carver *c, const model_config *config, hd_dtype dtype, model_layer *layer) {
    uint32_t query_width = config->query_heads * config->head_dim, kv_width = config->kv_heads * config->head_dim;
    uint32_t qkv_width = query_width + 2 * kv_width;
    layer->attention_norm = carve_floats(c, config->hidden_size);
    layer->mlp_norm = carve_floats(c, config->hidden_size);
    carve_matrix(c, &layer->qkv, dtype, qkv_width, config->hidden_size);
    carve_matrix(c, &layer->attention_output, dtype, config->hidden_size, query_width);
    if (config->qkv_bias) layer->qkv_bias = carve_floats(c, qkv_width);
    if (config->output_bias) layer->attention_output_bias = carve_floats(c, config->hidden_size);
    if (!config->qk_norm) return;
    layer->query_norm = carve_floats(c, config->head_dim);
    layer->key_norm = carve_floats(c, config->head_dim);
}

static void carve_layer(carver *c, const model_config *config, hd_dtype dtype, bool is_sparse, model_layer *layer) {
    carve_attention(c, config, dtype, layer);
    if (!is_sparse) {
        carve_gated(c, dtype, config->hidden_size, config->intermediate_size, &layer->gate_up, &layer->down);
        return;
    }
    /* A rounded router sends tokens to other experts, which costs far more than the bytes that it would save. */
    carve_matrix(c, &layer->router, dtype == HD_INT8 ? HD_BF16 : dtype, config->expert_count, config->hidden_size);
    for (uint32_t e = 0; e < config->expert_count; e++) {
        model_expert *expert = &layer->experts[e];
        carve_gated(c, dtype, config->hidden_size, config->expert_intermediate_size, &expert->gate_up, &expert->down);
    }
}

static uint64_t carve_model(const model_config *config, model_weights *weights) {
    carver c = {.region = weights->region};
    for (uint32_t i = 0; i < config->layer_count; i++) {
        carve_layer(&c, config, weights->dtype, config->is_sparse[i], &weights->layers[i]);
    }
    weights->final_norm = carve_floats(&c, config->hidden_size);
    carve_matrix(&c, &weights->lm_head, weights->dtype, config->vocabulary_size, config->hidden_size);
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

hd_status weights_layout_open(const model_config *config, hd_dtype dtype, model_weights **weights) {
    assert(dtype == HD_BF16 || dtype == HD_F32 || dtype == HD_INT8);
    model_weights *w = hd_alloc_zeroed(sizeof(*w), HD_CACHE_LINE);
    if (w == NULL) return HD_NO_MEMORY;
    w->dtype = dtype;
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
