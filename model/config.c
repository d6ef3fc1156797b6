/* config.c - config.json -> model_config, field by field, by the rules of the architecture's row.
 *
 * Two kinds of refusal: a field that is wrong in itself, and a field that asks for arithmetic that the forward pass
 * does not have. The second kind is judged by what Hugging Face's code for the architecture would do with the field,
 * since its logits are what we match. */
#include "model/config.h"

#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "model/architecture.h"
#include "model/config_read.h"
#include "model/file_text.h"
#include "model/generation_read.h"
#include "model/json_fields.h"
#include "model/rope_read.h"

/* Bounds that keep every product of two of them within 64 bits, and a matrix's columns within 32. */
#define LAYERS_MAX 1024u
#define HEADS_MAX 4096u
#define HEAD_DIM_MAX 256u
#define HEAD_DIM_GRAIN 16u
#define WIDTH_MAX (1u << 20)
#define VOCABULARY_MAX (1u << 24)
#define EXPERTS_MAX 1024u
#define POSITIONS_MAX ((uint64_t)1 << 40)

/* Fields of other models whose arithmetic is not here. Harmless at their neutral value, which many files spell out. */
static const struct {
    const char *name;
    double neutral;
} foreign_numbers[] = {
    {"attn_logit_softcapping", 0}, {"final_logit_softcapping", 0}, {"clip_qkv", 0},
    {"kv_lora_rank", 0},           {"attention_multiplier", 1},    {"residual_multiplier", 1},
    {"embedding_multiplier", 1},   {"logits_scaling", 1},          {"logit_scale", 1},
    {"attention_chunk_size", 0},   {"num_attention_sinks", 0},
};
static const char *const foreign_switches[] = {"mlp_bias",        "use_qk_norm", "qk_layernorm",
                                               "attention_sinks", "use_mrope",   "alibi"};
static const char *const foreign_objects[] = {"quantization_config", "compression_config", "vision_config",
                                              "audio_config", "text_config"};

static void refuse_foreign_fields(json_fields *fields) {
    for (size_t i = 0; i < sizeof(foreign_objects) / sizeof(foreign_objects[0]); i++) {
        if (!json_fields_is_given(fields, foreign_objects[i])) continue;
        json_fields_fail(fields, HD_UNSUPPORTED, foreign_objects[i],
                         "is not supported; use a checkpoint of a text model in bf16, f16 or f32");
    }
    for (size_t i = 0; i < sizeof(foreign_switches) / sizeof(foreign_switches[0]); i++) {
        if (!json_fields_bool_or(fields, foreign_switches[i], false)) continue;
        json_fields_fail(fields, HD_UNSUPPORTED, foreign_switches[i], "is true, which is not supported");
    }
    for (size_t i = 0; i < sizeof(foreign_numbers) / sizeof(foreign_numbers[0]); i++) {
        double neutral = foreign_numbers[i].neutral;
        if (json_fields_number_or(fields, foreign_numbers[i].name, -1e30, 1e30, neutral) == neutral) continue;
        json_fields_fail(fields, HD_UNSUPPORTED, foreign_numbers[i].name, "is not supported");
    }
    const char *activation = json_fields_string_or(fields, "hidden_act", "silu");
    if (strcmp(activation, "silu") != 0 && strcmp(activation, "swish") != 0) {
        json_fields_fail(fields, HD_UNSUPPORTED, "hidden_act", "is %.40s; only silu is supported", activation);
    }
}

static const char *list_architectures(char *text, size_t text_bytes) {
    size_t length = 0;
    for (size_t i = 0; i < model_architecture_count() && length < text_bytes; i++) {
        length += (size_t)snprintf(text + length, text_bytes - length, "%s%s", i == 0 ? "" : ", ",
                                   model_architecture_at(i)->name);
    }
    return text;
}

static const model_architecture *read_architecture(json_fields *fields) {
    const json_t *names = json_fields_array(fields, "architectures");
    const char *name = json_string_value(json_array_get(names, 0));
    char known[256];
    if (json_array_size(names) != 1 || name == NULL) {
        json_fields_fail(fields, HD_INVALID, "architectures", "must be an array of one name; supported are %s",
                         list_architectures(known, sizeof(known)));
        return NULL;
    }
    const model_architecture *architecture = model_architecture_find(name);
    if (architecture == NULL) {
        json_fields_fail(fields, HD_UNSUPPORTED, "architectures", "is %.60s; supported are %s", name,
                         list_architectures(known, sizeof(known)));
        return NULL;
    }
    const char *type = json_fields_string_or(fields, "model_type", architecture->model_type);
    if (strcmp(type, architecture->model_type) != 0) {
        json_fields_fail(fields, HD_INVALID, "model_type", "is %.40s, but %s has %s", type, architecture->name,
                         architecture->model_type);
    }
    return architecture;
}

static uint32_t read_kv_heads(json_fields *fields, const model_architecture *row, uint32_t query_heads) {
    uint32_t fallback = row->default_kv_heads;
    if (fallback == 0 || json_fields_is_present(fields, "num_key_value_heads"))
        fallback = query_heads; /* null: as many */
    uint32_t heads = (uint32_t)json_fields_integer_or(fields, "num_key_value_heads", 1, HEADS_MAX, fallback);
    if (query_heads % heads != 0) {
        json_fields_fail(fields, HD_INVALID, "num_key_value_heads",
                         "is %u, which does not divide 'num_attention_heads', %u", heads, query_heads);
    }
    return heads;
}

static uint32_t read_head_dim(json_fields *fields, const model_architecture *row, uint32_t hidden_size,
                              uint32_t query_heads) {
    uint32_t derived = row->default_head_dim;
    if (derived == 0) {
        derived = hidden_size / query_heads;
        if (!json_fields_is_given(fields, "head_dim") && hidden_size % query_heads != 0) {
            json_fields_fail(fields, HD_INVALID, "hidden_size", "is %u, not a multiple of 'num_attention_heads', %u",
                             hidden_size, query_heads);
        }
    }
    uint32_t head_dim = (uint32_t)json_fields_integer_or(fields, "head_dim", 1, WIDTH_MAX, derived);
    if (head_dim == 0 || head_dim % HEAD_DIM_GRAIN != 0 || head_dim > HEAD_DIM_MAX) {
        json_fields_fail(fields, HD_UNSUPPORTED, "head_dim", "is %u; supported are multiples of %u up to %u", head_dim,
                         HEAD_DIM_GRAIN, HEAD_DIM_MAX);
    }
    return head_dim;
}

static hd_dtype read_dtype(json_fields *fields) {
    static const struct {
        const char *name;
        hd_dtype dtype;
    } dtypes[] = {{"bfloat16", HD_BF16}, {"float16", HD_F16}, {"float32", HD_F32}};
    const char *field = json_fields_is_given(fields, "dtype") ? "dtype" : "torch_dtype";
    const char *name = json_fields_string_or(fields, field, "bfloat16");
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (strcmp(dtypes[i].name, name) == 0) return dtypes[i].dtype;
    }
    json_fields_fail(fields, HD_UNSUPPORTED, field, "is %.40s; supported are bfloat16, float16 and float32", name);
    return HD_BF16;
}

static void read_shape(json_fields *fields, model_config *config) {
    const model_architecture *row = config->architecture;
    config->hidden_size = (uint32_t)json_fields_integer(fields, "hidden_size", 1, WIDTH_MAX);
    config->intermediate_size = (uint32_t)json_fields_integer(fields, "intermediate_size", 1, WIDTH_MAX);
    config->layer_count = (uint32_t)json_fields_integer(fields, "num_hidden_layers", 1, LAYERS_MAX);
    config->query_heads = (uint32_t)json_fields_integer(fields, "num_attention_heads", 1, HEADS_MAX);
    config->vocabulary_size = (uint32_t)json_fields_integer(fields, "vocab_size", 1, VOCABULARY_MAX);
    config->kv_heads = read_kv_heads(fields, row, config->query_heads);
    config->head_dim = read_head_dim(fields, row, config->hidden_size, config->query_heads);
    config->max_positions =
        json_fields_integer_or(fields, "max_position_embeddings", 1, POSITIONS_MAX, row->default_max_positions);
    config->rms_eps = (float)json_fields_number_or(fields, "rms_norm_eps", 0.0, 1.0, row->default_rms_eps);
    config->tied_embeddings = json_fields_bool_or(fields, "tie_word_embeddings", false);
    bool attention_bias = json_fields_bool_or(fields, "attention_bias", false) && row->bias == BIAS_BY_FIELD;
    config->qkv_bias = row->bias == BIAS_QKV || attention_bias;
    config->output_bias = attention_bias;
    config->qk_norm = row->qk_norm;
    config->dtype = read_dtype(fields);
}

/* The window that a windowed layer has; 0 when there is none in this model. */
static uint64_t read_window(json_fields *fields, const model_architecture *row) {
    bool is_conditional = row->window == WINDOW_EVERY_LAYER_IF_USED || row->window == WINDOW_BY_LAYER;
    if (row->window == WINDOW_NEVER) return 0;
    if (is_conditional && !json_fields_bool_or(fields, "use_sliding_window", false)) return 0;
    uint64_t fallback = json_fields_is_present(fields, "sliding_window") ? 0 : row->default_window; /* null: none */
    return json_fields_integer_or(fields, "sliding_window", 1, POSITIONS_MAX, fallback);
}

/* "layer_types" decides only WINDOW_BY_LAYER; elsewhere Hugging Face ignores it, so it must say what would be computed
 * anyway. */
static void read_layer_types(json_fields *fields, const json_t *types, uint64_t window, model_config *config) {
    if (json_array_size(types) != config->layer_count) {
        json_fields_fail(fields, HD_INVALID, "layer_types", "has %zu entries for %u layers", json_array_size(types),
                         config->layer_count);
        return;
    }
    for (uint32_t layer = 0; layer < config->layer_count; layer++) {
        const char *type = json_string_value(json_array_get(types, layer));
        bool is_sliding = type != NULL && strcmp(type, "sliding_attention") == 0;
        if (!is_sliding && (type == NULL || strcmp(type, "full_attention") != 0)) {
            json_fields_fail(fields, HD_UNSUPPORTED, "layer_types",
                             "has %.60s for layer %u; supported are full_attention and sliding_attention",
                             type != NULL ? type : "no name", layer);
            return;
        }
        bool is_settled = config->architecture->window != WINDOW_BY_LAYER;
        if ((is_sliding && window == 0) || (is_settled && is_sliding != (window != 0))) {
            json_fields_fail(fields, HD_INVALID, "layer_types",
                             "has %s for layer %u, which the other fields contradict", type, layer);
            return;
        }
        config->windows[layer] = is_sliding ? window : 0;
    }
}

static void read_windows(json_fields *fields, model_config *config) {
    uint64_t window = read_window(fields, config->architecture);
    uint32_t first = 0;
    if (config->architecture->window == WINDOW_BY_LAYER) {
        first = (uint32_t)json_fields_integer_or(fields, "max_window_layers", 0, UINT32_MAX, 28);
    }
    for (uint32_t layer = first; layer < config->layer_count; layer++) config->windows[layer] = window;
    const json_t *types = json_fields_array(fields, "layer_types");
    if (types != NULL) read_layer_types(fields, types, window, config);
}

static void read_sparse_layers(json_fields *fields, model_config *config) {
    uint32_t step = (uint32_t)json_fields_integer_or(fields, "decoder_sparse_step", 1, LAYERS_MAX, 1);
    for (uint32_t layer = 0; layer < config->layer_count; layer++) config->is_sparse[layer] = (layer + 1) % step == 0;
    const json_t *dense = json_fields_array(fields, "mlp_only_layers");
    for (size_t i = 0; i < json_array_size(dense); i++) {
        const json_t *value = json_array_get(dense, i);
        json_int_t layer = json_integer_value(value);
        if (!json_is_integer(value) || layer < 0 || layer >= (json_int_t)config->layer_count) {
            json_fields_fail(fields, HD_INVALID, "mlp_only_layers", "must hold layer numbers below %u",
                             config->layer_count);
            return;
        }
        config->is_sparse[layer] = false;
    }
}

static void read_experts(json_fields *fields, model_config *config) {
    const model_architecture *row = config->architecture;
    if (row->experts == EXPERTS_NEVER) return;
    /* Two names of one thing: newer releases of transformers write the first for every architecture. */
    const char *field = "num_local_experts";
    if (row->experts == EXPERTS_BY_LAYER && !json_fields_is_given(fields, field)) field = "num_experts";
    config->expert_count = (uint32_t)json_fields_integer(fields, field, 1, EXPERTS_MAX);
    config->experts_per_token =
        (uint32_t)json_fields_integer_or(fields, "num_experts_per_tok", 1, EXPERTS_MAX, row->default_experts_per_token);
    if (config->experts_per_token > config->expert_count) {
        json_fields_fail(fields, HD_INVALID, "num_experts_per_tok", "is %u, more than '%s', %u",
                         config->experts_per_token, field, config->expert_count);
    }
    if (row->experts == EXPERTS_EVERY_LAYER) {
        config->expert_intermediate_size = config->intermediate_size;
        config->normalise_expert_weights = true;
        for (uint32_t layer = 0; layer < config->layer_count; layer++) config->is_sparse[layer] = true;
        return;
    }
    config->expert_intermediate_size = (uint32_t)json_fields_integer(fields, "moe_intermediate_size", 1, WIDTH_MAX);
    config->normalise_expert_weights = json_fields_bool_or(fields, "norm_topk_prob", false);
    read_sparse_layers(fields, config);
}

static hd_status allocate_layers(model_config *config) {
    config->windows = hd_alloc_zeroed(config->layer_count * sizeof(*config->windows), HD_CACHE_LINE);
    config->is_sparse = hd_alloc_zeroed(config->layer_count * sizeof(*config->is_sparse), HD_CACHE_LINE);
    return config->windows != NULL && config->is_sparse != NULL ? HD_OK : HD_NO_MEMORY;
}

static hd_status read_fields(json_fields *fields, model_config *config) {
    config->architecture = read_architecture(fields);
    if (fields->status != HD_OK) return fields->status;
    refuse_foreign_fields(fields);
    read_shape(fields, config);
    if (fields->status != HD_OK) return fields->status;
    if (allocate_layers(config) != HD_OK)
        return hd_error_set(fields->error, HD_NO_MEMORY, "%s: no memory for the configuration", fields->path);
    read_windows(fields, config);
    read_experts(fields, config);
    rope_config_read(fields, config->architecture, config->head_dim, config->max_positions, &config->rope);
    generation_ids_read(fields, config->architecture->has_default_ids, config);
    return fields->status;
}

static hd_status read_config_text(const config_text *source, model_config *config, hd_error *error) {
    json_t *root = NULL;
    hd_status status = json_object_parse(source->path, source->text, source->bytes, &root, error);
    if (status != HD_OK) return status;
    json_fields fields = {.object = root, .path = source->path, .scope = "", .error = error};
    status = read_fields(&fields, config);
    json_decref(root);
    return status;
}

hd_status model_config_read(const config_text *config_json, const config_text *generation_json, model_config **config,
                            hd_error *error) {
    model_config *c = hd_alloc_zeroed(sizeof(*c), HD_CACHE_LINE);
    if (c == NULL) return hd_error_set(error, HD_NO_MEMORY, "%s: no memory for the configuration", config_json->path);
    hd_status status = read_config_text(config_json, c, error);
    if (status == HD_OK) status = generation_config_read(generation_json, c, error);
    if (status == HD_OK) *config = c;
    else model_config_close(c);
    return status;
}

void model_config_close(model_config *config) {
    if (config == NULL) return;
    hd_free(config->windows);
    hd_free(config->is_sparse);
    hd_free(config);
}

static hd_status open_text(const char *directory, const char *name, char *path, size_t path_bytes, config_text *text,
                           hd_error *error) {
    char *content = NULL;
    hd_status status = file_path_join(directory, name, path, path_bytes, error);
    if (status == HD_OK) status = file_text_read(path, CONFIG_FILE_BYTES_MAX, &content, &text->bytes, error);
    text->path = path;
    text->text = content;
    return status;
}

hd_status model_config_open(const char *model_directory, model_config **config, hd_error *error) {
    char config_path[4096], generation_path[4096];
    config_text config_json = {0}, generation_json = {0};
    hd_status status = open_text(model_directory, "config.json", config_path, sizeof(config_path), &config_json, error);
    if (status == HD_OK) {
        status = open_text(model_directory, "generation_config.json", generation_path, sizeof(generation_path),
                           &generation_json, error);
        if (status == HD_NOT_FOUND) status = HD_OK; /* config.json then says when a text ends */
    }
    if (status == HD_OK) status = model_config_read(&config_json, &generation_json, config, error);
    hd_free((char *)config_json.text);
    hd_free((char *)generation_json.text);
    return status;
}

uint64_t model_kv_bytes_per_token(const model_config *config, hd_dtype kv_dtype) {
    uint64_t head_bytes = config->head_dim * hd_dtype_bits(kv_dtype) / 8;
    if (kv_dtype == HD_INT8)
        head_bytes += (config->head_dim + 31) / 32 * sizeof(uint16_t); /* exponents of 32 bytes each */
    return (uint64_t)config->layer_count * 2 * config->kv_heads * head_bytes;
}
