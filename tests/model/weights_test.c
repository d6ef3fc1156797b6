/* weights_test.c - every tensor ends in its place, and a checkpoint that does not fit is refused by tensor. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "base/log.h"
#include "model/architecture.h"
#include "model/config_read.h"
#include "model/weights.h"
#include "model_files.h"

/* Widths that are no multiples of a panel, so that places inside and across panels are met. */
#define SHAPE                                                                                                          \
    "\"hidden_size\": 48, \"intermediate_size\": 80, \"num_hidden_layers\": 2, \"num_attention_heads\": 6, "           \
    "\"num_key_value_heads\": 2, \"head_dim\": 16, \"vocab_size\": 70"
static const char llama[] = "{\"architectures\": [\"LlamaForCausalLM\"], " SHAPE "}";
static const char llama_bias[] = "{\"architectures\": [\"LlamaForCausalLM\"], \"attention_bias\": true, " SHAPE "}";
static const char llama_tied[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"tie_word_embeddings\": true, " SHAPE "}";
static const char qwen2[] = "{\"architectures\": [\"Qwen2ForCausalLM\"], " SHAPE "}";
static const char qwen3_moe[] =
    "{\"architectures\": [\"Qwen3MoeForCausalLM\"], \"num_experts\": 3, \"num_experts_per_tok\": 2, "
    "\"moe_intermediate_size\": 72, \"mlp_only_layers\": [0], " SHAPE "}";
static const char mixtral[] = "{\"architectures\": [\"MixtralForCausalLM\"], \"num_local_experts\": 3, " SHAPE "}";

static model_config *read_config(const char *text) {
    config_text config_json = {.path = "config.json", .text = text, .bytes = strlen(text)}, none = {.path = "none"};
    model_config *config = NULL;
    hd_error error = {{0}};
    if (model_config_read(&config_json, &none, &config, &error) != HD_OK) fail_msg("%s", error.text);
    return config;
}

/* --- Checkpoints --- */

/* How a checkpoint is written, and how it is spoilt. */
typedef struct checkpoint {
    const char *type;      /* BF16 unless given */
    bool is_fused;         /* experts in one tensor */
    bool is_sharded;       /* the last layer in a second file */
    bool is_misaligned;    /* an odd number of bytes before every tensor */
    const char *left_out;  /* this tensor is not written */
    const char *misshapen; /* this one is a row longer */
    const char *mistyped;  /* this one is of mistyped_as */
    const char *mistyped_as;
    const char *nudged; /* this one starts at another value */
    const char *added;  /* a tensor that nobody asked for */
} checkpoint;

static float start_of(const char *name) {
    unsigned sum = 0;
    for (const char *c = name; *c != '\0'; c++) sum = sum * 31 + (unsigned char)*c;
    return (float)(sum % 64) / 64.0f;
}

typedef struct checkpoint_writer {
    const checkpoint *how;
    tensor_writer file, second_file;
} checkpoint_writer;

static void add(checkpoint_writer *w, const char *name, unsigned rank, uint64_t first, uint64_t second,
                uint64_t third) {
    const checkpoint *how = w->how;
    uint64_t shape[] = {first, second, third};
    if (how->left_out != NULL && strcmp(name, how->left_out) == 0) return;
    if (how->misshapen != NULL && strcmp(name, how->misshapen) == 0) shape[0]++;
    const char *type = how->type != NULL ? how->type : "BF16";
    if (how->mistyped != NULL && strcmp(name, how->mistyped) == 0) type = how->mistyped_as;
    float start = start_of(name) + (how->nudged != NULL && strcmp(name, how->nudged) == 0 ? 0.5f : 0.0f);
    tensor_writer *file = how->is_sharded && strstr(name, "layers.1.") != NULL ? &w->second_file : &w->file;
    tensor_writer_add(file, name, type, rank, shape, start);
}

static const char *name_in(unsigned layer, const char *rest, char *name) {
    snprintf(name, 128, "model.layers.%u.%s", layer, rest);
    return name;
}

static void add_experts(checkpoint_writer *w, const model_config *config, unsigned layer) {
    bool is_mixtral = strcmp(config->architecture->name, "MixtralForCausalLM") == 0;
    const char *block = is_mixtral && !w->how->is_fused ? "block_sparse_moe" : "mlp";
    uint64_t hidden = config->hidden_size, width = config->expert_intermediate_size, count = config->expert_count;
    char name[128], rest[96];
    snprintf(rest, sizeof(rest), "%s.gate.weight", block);
    add(w, name_in(layer, rest, name), 2, count, hidden, 0);
    if (w->how->is_fused) {
        add(w, name_in(layer, "mlp.experts.gate_up_proj", name), 3, count, 2 * width, hidden);
        add(w, name_in(layer, "mlp.experts.down_proj", name), 3, count, hidden, width);
        return;
    }
    for (unsigned e = 0; e < count; e++) {
        snprintf(rest, sizeof(rest), "%s.experts.%u.%s.weight", block, e, is_mixtral ? "w1" : "gate_proj");
        add(w, name_in(layer, rest, name), 2, width, hidden, 0);
        snprintf(rest, sizeof(rest), "%s.experts.%u.%s.weight", block, e, is_mixtral ? "w3" : "up_proj");
        add(w, name_in(layer, rest, name), 2, width, hidden, 0);
        snprintf(rest, sizeof(rest), "%s.experts.%u.%s.weight", block, e, is_mixtral ? "w2" : "down_proj");
        add(w, name_in(layer, rest, name), 2, hidden, width, 0);
    }
}

static void add_layer(checkpoint_writer *w, const model_config *config, unsigned layer) {
    uint64_t hidden = config->hidden_size, width = config->intermediate_size;
    uint64_t queries = config->query_heads * config->head_dim, keys = config->kv_heads * config->head_dim;
    char name[128];
    add(w, name_in(layer, "input_layernorm.weight", name), 1, hidden, 0, 0);
    add(w, name_in(layer, "post_attention_layernorm.weight", name), 1, hidden, 0, 0);
    add(w, name_in(layer, "self_attn.q_proj.weight", name), 2, queries, hidden, 0);
    add(w, name_in(layer, "self_attn.k_proj.weight", name), 2, keys, hidden, 0);
    add(w, name_in(layer, "self_attn.v_proj.weight", name), 2, keys, hidden, 0);
    add(w, name_in(layer, "self_attn.o_proj.weight", name), 2, hidden, queries, 0);
    if (config->qkv_bias) {
        add(w, name_in(layer, "self_attn.q_proj.bias", name), 1, queries, 0, 0);
        add(w, name_in(layer, "self_attn.k_proj.bias", name), 1, keys, 0, 0);
        add(w, name_in(layer, "self_attn.v_proj.bias", name), 1, keys, 0, 0);
    }
    if (config->output_bias) add(w, name_in(layer, "self_attn.o_proj.bias", name), 1, hidden, 0, 0);
    if (config->qk_norm) {
        add(w, name_in(layer, "self_attn.q_norm.weight", name), 1, config->head_dim, 0, 0);
        add(w, name_in(layer, "self_attn.k_norm.weight", name), 1, config->head_dim, 0, 0);
    }
    if (config->is_sparse[layer]) {
        add_experts(w, config, layer);
        return;
    }
    add(w, name_in(layer, "mlp.gate_proj.weight", name), 2, width, hidden, 0);
    add(w, name_in(layer, "mlp.up_proj.weight", name), 2, width, hidden, 0);
    add(w, name_in(layer, "mlp.down_proj.weight", name), 2, hidden, width, 0);
}

static void write_index(const checkpoint_writer *w, const model_files *files) {
    json_t *map = json_object();
    const char *name;
    json_t *value;
    json_object_foreach(w->file.header, name, value) json_object_set_new(map, name, json_string("model-a.safetensors"));
    json_object_foreach(w->second_file.header, name, value)
        json_object_set_new(map, name, json_string("model-b.safetensors"));
    json_t *index = json_pack("{s:o}", "weight_map", map);
    char *text = json_dumps(index, 0);
    model_files_write(files, "model.safetensors.index.json", text, strlen(text));
    free(text);
    json_decref(index);
}

static void write_checkpoint(const model_files *files, const model_config *config, const checkpoint *how) {
    checkpoint_writer w = {.how = how};
    tensor_writer_init(&w.file);
    tensor_writer_init(&w.second_file);
    if (how->is_misaligned) tensor_writer_add_byte(&w.file, "filler");
    add(&w, "model.embed_tokens.weight", 2, config->vocabulary_size, config->hidden_size, 0);
    for (unsigned layer = 0; layer < config->layer_count; layer++) add_layer(&w, config, layer);
    add(&w, "model.norm.weight", 1, config->hidden_size, 0, 0);
    if (!config->tied_embeddings) add(&w, "lm_head.weight", 2, config->vocabulary_size, config->hidden_size, 0);
    if (how->added != NULL) add(&w, how->added, 1, 4, 0, 0);
    tensor_writer_write(&w.file, files, how->is_sharded ? "model-a.safetensors" : "model.safetensors");
    if (how->is_sharded) {
        tensor_writer_write(&w.second_file, files, "model-b.safetensors");
        write_index(&w, files);
    }
    tensor_writer_fini(&w.file);
    tensor_writer_fini(&w.second_file);
}

static hd_status open_checkpoint(const char *model_text, const checkpoint *how, hd_dtype dtype, unsigned threads,
                                 model_config **config, model_weights **weights, hd_error *error) {
    model_files files;
    hd_pool *pool = NULL;
    *config = read_config(model_text);
    model_files_make(&files);
    write_checkpoint(&files, *config, how);
    assert_int_equal(hd_pool_open(threads, &pool), HD_OK);
    hd_status status = model_weights_open(files.directory, *config, dtype, (model_share){0, 1}, pool, weights, error);
    uint64_t bytes = 0;
    assert_int_equal(model_weights_estimate(files.directory, *config, dtype, (model_share){0, 1}, &bytes, NULL),
                     status);
    if (status == HD_OK) assert_int_equal(bytes, (*weights)->bytes);
    hd_pool_close(pool);
    model_files_remove(&files);
    return status;
}

/* The checkpoint, packed; the caller closes both. */
static model_weights *load(const char *model_text, const checkpoint *how, hd_dtype dtype, unsigned threads,
                           model_config **config) {
    model_weights *weights = NULL;
    hd_error error = {{0}};
    if (open_checkpoint(model_text, how, dtype, threads, config, &weights, &error) != HD_OK) fail_msg("%s", error.text);
    return weights;
}

/* --- Places --- */

/* Rows of a written tensor against columns of a matrix. columns: of the tensor. column_of_row: how rows were placed. */
typedef uint32_t place(uint32_t row);
static uint32_t in_order(uint32_t row) {
    return row;
}
static uint32_t as_gate(uint32_t row) {
    return row / 64 * 128 + row % 64;
}
static uint32_t as_up(uint32_t row) {
    return row / 64 * 128 + 64 + row % 64;
}

static void expect_matrix(const kernel_matrix *matrix, uint32_t first_column, place *column_of, const char *type,
                          const char *name, size_t first_element, uint32_t rows) {
    for (uint32_t row = 0; row < rows; row++) {
        for (uint32_t k = 0; k < matrix->k; k++) {
            float written = tensor_writer_value(type, start_of(name), first_element + (size_t)row * matrix->k + k);
            float packed = kernel_matrix_get(matrix, k, first_column + column_of(row));
            float tolerance = matrix->dtype == HD_INT8 ? matrix->scales[first_column + column_of(row)] * 0.5001f : 0.0f;
            if (matrix->dtype == HD_BF16) written = hd_bf16_to_f32(hd_f32_to_bf16(written));
            if (fabsf(written - packed) > tolerance) {
                fail_msg("%s[%u, %u] is %g, packed as %g", name, row, k, (double)written, (double)packed);
            }
        }
    }
}

static void expect_floats(const float *floats, const char *type, const char *name, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) assert_true(floats[i] == tensor_writer_value(type, start_of(name), i));
}

static void expect_attention(const model_config *config, const model_layer *layer, const char *type, unsigned index) {
    uint32_t queries = config->query_heads * config->head_dim, keys = config->kv_heads * config->head_dim;
    char name[128];
    expect_matrix(&layer->qkv, 0, in_order, type, name_in(index, "self_attn.q_proj.weight", name), 0, queries);
    expect_matrix(&layer->qkv, queries, in_order, type, name_in(index, "self_attn.k_proj.weight", name), 0, keys);
    expect_matrix(&layer->qkv, queries + keys, in_order, type, name_in(index, "self_attn.v_proj.weight", name), 0,
                  keys);
    expect_matrix(&layer->attention_output, 0, in_order, type, name_in(index, "self_attn.o_proj.weight", name), 0,
                  config->hidden_size);
    expect_floats(layer->attention_norm, type, name_in(index, "input_layernorm.weight", name), config->hidden_size);
    expect_floats(layer->mlp_norm, type, name_in(index, "post_attention_layernorm.weight", name), config->hidden_size);
    assert_int_equal(layer->qkv_bias != NULL, config->qkv_bias);
    assert_int_equal(layer->attention_output_bias != NULL, config->output_bias);
    assert_int_equal(layer->query_norm != NULL && layer->key_norm != NULL, config->qk_norm);
    if (config->qkv_bias) {
        expect_floats(layer->qkv_bias, type, name_in(index, "self_attn.q_proj.bias", name), queries);
        expect_floats(layer->qkv_bias + queries, type, name_in(index, "self_attn.k_proj.bias", name), keys);
        expect_floats(layer->qkv_bias + queries + keys, type, name_in(index, "self_attn.v_proj.bias", name), keys);
    }
    if (config->output_bias) {
        expect_floats(layer->attention_output_bias, type, name_in(index, "self_attn.o_proj.bias", name),
                      config->hidden_size);
    }
    if (!config->qk_norm) return;
    expect_floats(layer->query_norm, type, name_in(index, "self_attn.q_norm.weight", name), config->head_dim);
    expect_floats(layer->key_norm, type, name_in(index, "self_attn.k_norm.weight", name), config->head_dim);
}

static void expect_dense(const model_config *config, const model_layer *layer, const char *type, unsigned index) {
    char name[128];
    expect_matrix(&layer->gate_up, 0, as_gate, type, name_in(index, "mlp.gate_proj.weight", name), 0,
                  config->intermediate_size);
    expect_matrix(&layer->gate_up, 0, as_up, type, name_in(index, "mlp.up_proj.weight", name), 0,
                  config->intermediate_size);
    expect_matrix(&layer->down, 0, in_order, type, name_in(index, "mlp.down_proj.weight", name), 0,
                  config->hidden_size);
    for (uint32_t column = as_up(config->intermediate_size - 1) + 1; column < layer->gate_up.n; column++) {
        for (uint32_t k = 0; k < layer->gate_up.k; k++)
            assert_true(kernel_matrix_get(&layer->gate_up, k, column) == 0.0f);
    }
}

static void expect_dense_model(const char *model_text, const checkpoint *how, hd_dtype dtype, unsigned threads) {
    model_config *config = NULL;
    model_weights *weights = load(model_text, how, dtype, threads, &config);
    const char *type = how->type != NULL ? how->type : "BF16";
    for (unsigned i = 0; i < config->layer_count; i++) {
        expect_attention(config, &weights->layers[i], type, i);
        expect_dense(config, &weights->layers[i], type, i);
    }
    expect_floats(weights->final_norm, type, "model.norm.weight", config->hidden_size);
    const char *head = config->tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
    expect_matrix(&weights->lm_head, 0, in_order, type, head, 0, config->vocabulary_size);
    float row[48];
    for (uint32_t token = 0; token < config->vocabulary_size; token += 23) {
        model_embed(weights, token, row);
        for (size_t k = 0; k < 48; k++) {
            assert_true(row[k] == tensor_writer_value(type, start_of("model.embed_tokens.weight"), token * 48 + k));
        }
    }
    model_weights_close(weights);
    model_config_close(config);
}

static void every_tensor_is_packed_in_its_place(void **state) {
    expect_dense_model(llama, &(checkpoint){0}, HD_BF16, 1);
    expect_dense_model(llama_bias, &(checkpoint){0}, HD_F32, 2);
    expect_dense_model(llama_tied, &(checkpoint){0}, HD_BF16, 3);
    expect_dense_model(qwen2, &(checkpoint){.is_sharded = true}, HD_BF16, 2);
}

static void weights_may_be_f16_or_f32_or_lie_at_odd_addresses(void **state) {
    expect_dense_model(qwen2, &(checkpoint){.type = "F16"}, HD_F32, 2);
    expect_dense_model(llama, &(checkpoint){.type = "F16"}, HD_BF16, 1);
    expect_dense_model(llama, &(checkpoint){.type = "F32"}, HD_F32, 2);
    expect_dense_model(llama_bias, &(checkpoint){.type = "BF16", .is_misaligned = true}, HD_BF16, 2);
    expect_dense_model(llama_bias, &(checkpoint){.type = "F32", .is_misaligned = true}, HD_F32, 2);
}

static void int8_weights_are_within_half_a_step(void **state) {
    expect_dense_model(llama, &(checkpoint){0}, HD_INT8, 2);
    expect_dense_model(llama_tied, &(checkpoint){.type = "F32"}, HD_INT8, 1);
}

static void expect_experts(const model_config *config, const model_layer *layer, unsigned index, const char *block,
                           const char *gate, const char *up, const char *down) {
    char rest[96], name[128];
    snprintf(rest, sizeof(rest), "%s.gate.weight", block);
    expect_matrix(&layer->router, 0, in_order, "BF16", name_in(index, rest, name), 0, config->expert_count);
    for (unsigned e = 0; e < config->expert_count; e++) {
        snprintf(rest, sizeof(rest), "%s.experts.%u.%s.weight", block, e, gate);
        expect_matrix(&layer->experts[e].gate_up, 0, as_gate, "BF16", name_in(index, rest, name), 0,
                      config->expert_intermediate_size);
        snprintf(rest, sizeof(rest), "%s.experts.%u.%s.weight", block, e, up);
        expect_matrix(&layer->experts[e].gate_up, 0, as_up, "BF16", name_in(index, rest, name), 0,
                      config->expert_intermediate_size);
        snprintf(rest, sizeof(rest), "%s.experts.%u.%s.weight", block, e, down);
        expect_matrix(&layer->experts[e].down, 0, in_order, "BF16", name_in(index, rest, name), 0, config->hidden_size);
    }
}

static void experts_are_packed_in_their_places(void **state) {
    model_config *config = NULL;
    model_weights *weights = load(qwen3_moe, &(checkpoint){0}, HD_BF16, 2, &config);
    assert_null(weights->layers[0].experts);
    expect_attention(config, &weights->layers[1], "BF16", 1);
    expect_dense(config, &weights->layers[0], "BF16", 0);
    expect_experts(config, &weights->layers[1], 1, "mlp", "gate_proj", "up_proj", "down_proj");
    model_weights_close(weights);
    model_config_close(config);

    weights = load(mixtral, &(checkpoint){0}, HD_INT8, 2, &config);
    assert_int_equal(weights->layers[0].router.dtype, HD_BF16);
    for (unsigned i = 0; i < 2; i++)
        expect_experts(config, &weights->layers[i], i, "block_sparse_moe", "w1", "w3", "w2");
    model_weights_close(weights);
    model_config_close(config);
}

static void fused_experts_are_packed_in_the_same_places(void **state) {
    model_config *config = NULL;
    model_weights *weights = load(mixtral, &(checkpoint){.is_fused = true}, HD_F32, 2, &config);
    size_t width = config->expert_intermediate_size, hidden = config->hidden_size;
    char name[128];
    for (unsigned i = 0; i < 2; i++) {
        for (unsigned e = 0; e < config->expert_count; e++) {
            const model_expert *expert = &weights->layers[i].experts[e];
            name_in(i, "mlp.experts.gate_up_proj", name);
            expect_matrix(&expert->gate_up, 0, as_gate, "BF16", name, 2 * e * width * hidden, (uint32_t)width);
            expect_matrix(&expert->gate_up, 0, as_up, "BF16", name, (2 * e + 1) * width * hidden, (uint32_t)width);
            name_in(i, "mlp.experts.down_proj", name);
            expect_matrix(&expert->down, 0, in_order, "BF16", name, e * width * hidden, (uint32_t)hidden);
        }
    }
    model_weights_close(weights);
    model_config_close(config);
}

/* --- Identity --- */

static void fingerprint_of(const char *model_text, const checkpoint *how, hd_dtype dtype, unsigned threads,
                           unsigned char fingerprint[16]) {
    model_config *config = NULL;
    model_weights *weights = load(model_text, how, dtype, threads, &config);
    memcpy(fingerprint, weights->fingerprint, 16);
    model_weights_close(weights);
    model_config_close(config);
}

static void the_fingerprint_does_not_depend_on_files_or_threads(void **state) {
    unsigned char first[16], other[16];
    fingerprint_of(qwen2, &(checkpoint){0}, HD_BF16, 1, first);
    fingerprint_of(qwen2, &(checkpoint){0}, HD_BF16, 3, other);
    assert_memory_equal(first, other, 16);
    fingerprint_of(qwen2, &(checkpoint){.is_sharded = true}, HD_BF16, 2, other);
    assert_memory_equal(first, other, 16);
    fingerprint_of(qwen2, &(checkpoint){.is_misaligned = true, .added = "extra.weight"}, HD_BF16, 2, other);
    assert_memory_equal(first, other, 16);
}

static void the_fingerprint_changes_with_any_weight_or_number(void **state) {
    static const char *const names[] = {"model.embed_tokens.weight", "model.norm.weight",
                                        "model.layers.1.self_attn.k_proj.bias", "model.layers.0.mlp.down_proj.weight",
                                        "lm_head.weight"};
    unsigned char first[16], other[16];
    fingerprint_of(qwen2, &(checkpoint){0}, HD_BF16, 2, first);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        fingerprint_of(qwen2, &(checkpoint){.nudged = names[i]}, HD_BF16, 2, other);
        assert_memory_not_equal(first, other, 16);
    }
    static const char *const changes[] = {"{\"rope_theta\": 20000}", "{\"rms_norm_eps\": 1e-5}",
                                          "{\"use_sliding_window\": true, \"max_window_layers\": 1}",
                                          "{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}}"};
    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        char *text = model_files_merge(qwen2, changes[i]);
        fingerprint_of(text, &(checkpoint){0}, HD_BF16, 2, other);
        assert_memory_not_equal(first, other, 16);
        free(text);
    }
    fingerprint_of(qwen2, &(checkpoint){0}, HD_INT8, 2, other);
    assert_memory_not_equal(first, other, 16);
    fingerprint_of(qwen2, &(checkpoint){.type = "F16"}, HD_BF16, 2, other);
    assert_memory_not_equal(first, other, 16);
}

/* --- What is refused --- */

static void expect_refused(const char *model_text, const checkpoint *how, hd_status expected_status,
                           const char *sentence) {
    model_config *config = NULL;
    model_weights *weights = NULL;
    hd_error error = {{0}};
    hd_status status = open_checkpoint(model_text, how, HD_BF16, 2, &config, &weights, &error);
    const char *after_directory = strstr(error.text, "/model");
    if (after_directory == NULL || strcmp(after_directory + 1, sentence) != 0) fail_msg("%s", error.text);
    assert_int_equal(status, expected_status);
    assert_null(weights);
    model_config_close(config);
}

static void a_missing_tensor_is_named(void **state) {
    expect_refused(llama, &(checkpoint){.left_out = "model.layers.1.mlp.up_proj.weight"}, HD_CORRUPT,
                   "model.safetensors: tensor 'model.layers.1.mlp.up_proj.weight' is missing");
    expect_refused(llama, &(checkpoint){.left_out = "lm_head.weight"}, HD_CORRUPT,
                   "model.safetensors: tensor 'lm_head.weight' is missing");
    expect_refused(llama_tied, &(checkpoint){.left_out = "model.embed_tokens.weight"}, HD_CORRUPT,
                   "model.safetensors: tensor 'model.embed_tokens.weight' is missing");
    expect_refused(
        qwen2, &(checkpoint){.left_out = "model.layers.1.self_attn.q_proj.bias", .is_sharded = true}, HD_CORRUPT,
        "model-a.safetensors: tensor 'model.layers.1.self_attn.q_proj.bias' is missing, here and in the other files");
    expect_refused(mixtral, &(checkpoint){.left_out = "model.layers.0.block_sparse_moe.experts.2.w2.weight"},
                   HD_CORRUPT,
                   "model.safetensors: tensor 'model.layers.0.block_sparse_moe.experts.2.w2.weight' is missing");
    expect_refused(mixtral, &(checkpoint){.left_out = "model.layers.0.mlp.experts.down_proj", .is_fused = true},
                   HD_CORRUPT, "model.safetensors: tensor 'model.layers.0.mlp.experts.down_proj' is missing");
}

static void a_misshapen_tensor_is_named_with_both_shapes(void **state) {
    expect_refused(llama, &(checkpoint){.misshapen = "model.layers.0.self_attn.q_proj.weight"}, HD_CORRUPT,
                   "model.safetensors: tensor 'model.layers.0.self_attn.q_proj.weight' has shape [97, 48], but "
                   "config.json asks for "
                   "[96, 48]");
    expect_refused(llama, &(checkpoint){.misshapen = "model.norm.weight"}, HD_CORRUPT,
                   "model.safetensors: tensor 'model.norm.weight' has shape [49], but config.json asks for [48]");
    expect_refused(mixtral, &(checkpoint){.misshapen = "model.layers.1.mlp.experts.gate_up_proj", .is_fused = true},
                   HD_CORRUPT,
                   "model.safetensors: tensor 'model.layers.1.mlp.experts.gate_up_proj' has shape [4, 160, 48], but "
                   "config.json asks "
                   "for [3, 160, 48]");
}

static void a_tensor_of_another_type_is_named(void **state) {
    expect_refused(llama, &(checkpoint){.mistyped = "model.norm.weight", .mistyped_as = "I16"}, HD_UNSUPPORTED,
                   "model.safetensors: tensor 'model.norm.weight' is I16; weights must be BF16, F16 or F32");
}

static void a_tensor_of_the_model_that_nothing_reads_is_refused(void **state) {
    expect_refused(
        llama, &(checkpoint){.added = "model.layers.0.self_attn.q_proj.bias"}, HD_UNSUPPORTED,
        "model.safetensors: tensor 'model.layers.0.self_attn.q_proj.bias' has no place in the LlamaForCausalLM that "
        "config.json describes");
}

static void tensors_beside_the_model_are_ignored(void **state) {
    static const char *const names[] = {"model.layers.0.self_attn.rotary_emb.inv_freq", "v_head.weight"};
    for (size_t i = 0; i < 2; i++) {
        model_config *config = NULL;
        model_weights *weights = load(llama, &(checkpoint){.added = names[i]}, HD_BF16, 1, &config);
        model_weights_close(weights);
        model_config_close(config);
    }
}

static void open_survives_each_failed_allocation(void **state) {
    model_files files;
    model_config *config = read_config(qwen3_moe);
    hd_pool *pool = NULL;
    model_files_make(&files);
    write_checkpoint(&files, config, &(checkpoint){.is_misaligned = true});
    assert_int_equal(hd_pool_open(2, &pool), HD_OK);
    hd_status status = HD_NO_MEMORY;
    unsigned nth = 0;
    for (; status != HD_OK; nth++) {
        model_weights *weights = NULL;
        hd_error error = {{0}};
        fault_arm(FAULT_ALLOCATION, nth);
        status = model_weights_open(files.directory, config, HD_INT8, (model_share){0, 1}, pool, &weights, &error);
        fault_disarm();
        assert_int_equal(status, weights != NULL ? HD_OK : HD_NO_MEMORY);
        if (status != HD_OK) assert_non_null(strstr(error.text, "memory"));
        model_weights_close(weights);
    }
    assert_true(nth > 8);
    hd_pool_close(pool);
    model_config_close(config);
    model_files_remove(&files);
}

int main(void) {
    hd_log_set_level(HD_LOG_ERROR); /* ignored tensors are told as warnings */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_tensor_is_packed_in_its_place),
        cmocka_unit_test(weights_may_be_f16_or_f32_or_lie_at_odd_addresses),
        cmocka_unit_test(int8_weights_are_within_half_a_step),
        cmocka_unit_test(experts_are_packed_in_their_places),
        cmocka_unit_test(fused_experts_are_packed_in_the_same_places),
        cmocka_unit_test(the_fingerprint_does_not_depend_on_files_or_threads),
        cmocka_unit_test(the_fingerprint_changes_with_any_weight_or_number),
        cmocka_unit_test(a_missing_tensor_is_named),
        cmocka_unit_test(a_misshapen_tensor_is_named_with_both_shapes),
        cmocka_unit_test(a_tensor_of_another_type_is_named),
        cmocka_unit_test(a_tensor_of_the_model_that_nothing_reads_is_refused),
        cmocka_unit_test(tensors_beside_the_model_are_ignored),
        cmocka_unit_test(open_survives_each_failed_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
