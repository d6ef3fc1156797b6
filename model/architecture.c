/* architecture.c - the rows. To add an architecture, add its row and a model of it to the golden tests. */
#include "model/architecture.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

static const dense_names llama_names = {
    .embedding = "model.embed_tokens.weight",
    .final_norm = "model.norm.weight",
    .lm_head = "lm_head.weight",
    .attention_norm = "model.layers.#.input_layernorm.weight",
    .mlp_norm = "model.layers.#.post_attention_layernorm.weight",
    .query = "model.layers.#.self_attn.q_proj",
    .key = "model.layers.#.self_attn.k_proj",
    .value = "model.layers.#.self_attn.v_proj",
    .attention_output = "model.layers.#.self_attn.o_proj",
    .query_norm = "model.layers.#.self_attn.q_norm.weight",
    .key_norm = "model.layers.#.self_attn.k_norm.weight",
    .gate = "model.layers.#.mlp.gate_proj.weight",
    .up = "model.layers.#.mlp.up_proj.weight",
    .down = "model.layers.#.mlp.down_proj.weight",
};

static const expert_names qwen_experts = {
    .router = "model.layers.#.mlp.gate.weight",
    .gate = "model.layers.#.mlp.experts.#.gate_proj.weight",
    .up = "model.layers.#.mlp.experts.#.up_proj.weight",
    .down = "model.layers.#.mlp.experts.#.down_proj.weight",
};

static const expert_names mixtral_experts = {
    .router = "model.layers.#.block_sparse_moe.gate.weight",
    .gate = "model.layers.#.block_sparse_moe.experts.#.w1.weight",
    .up = "model.layers.#.block_sparse_moe.experts.#.w3.weight",
    .down = "model.layers.#.block_sparse_moe.experts.#.w2.weight",
};

/* What newer checkpoints of either hold when they are not saved in the original format. */
static const expert_names fused_experts = {
    .router = "model.layers.#.mlp.gate.weight",
    .gate_up = "model.layers.#.mlp.experts.gate_up_proj",
    .down = "model.layers.#.mlp.experts.down_proj",
};

static const model_architecture architectures[] = {
    {
        .name = "LlamaForCausalLM",
        .model_type = "llama",
        .bias = BIAS_BY_FIELD,
        .default_max_positions = 2048,
        .default_rope_theta = 10000.0,
        .default_rms_eps = 1e-6,
        .has_default_ids = true,
        .names = &llama_names,
    },
    {
        .name = "MistralForCausalLM",
        .model_type = "mistral",
        .window = WINDOW_EVERY_LAYER,
        .default_kv_heads = 8,
        .default_max_positions = 131072,
        .default_window = 4096,
        .default_rope_theta = 10000.0,
        .default_rms_eps = 1e-6,
        .has_default_ids = true,
        .names = &llama_names,
    },
    {
        .name = "Qwen2ForCausalLM",
        .model_type = "qwen2",
        .bias = BIAS_QKV,
        .window = WINDOW_BY_LAYER,
        .default_kv_heads = 32,
        .default_max_positions = 32768,
        .default_window = 4096,
        .default_rope_theta = 10000.0,
        .default_rms_eps = 1e-6,
        .names = &llama_names,
    },
    {
        .name = "Qwen3ForCausalLM",
        .model_type = "qwen3",
        .bias = BIAS_BY_FIELD,
        .window = WINDOW_BY_LAYER,
        .qk_norm = true,
        .default_kv_heads = 32,
        .default_head_dim = 128,
        .default_max_positions = 32768,
        .default_window = 4096,
        .default_rope_theta = 10000.0,
        .default_rms_eps = 1e-6,
        .names = &llama_names,
    },
    {
        .name = "Qwen3MoeForCausalLM",
        .model_type = "qwen3_moe",
        .bias = BIAS_BY_FIELD,
        .window = WINDOW_EVERY_LAYER_IF_USED,
        .experts = EXPERTS_BY_LAYER,
        .qk_norm = true,
        .default_kv_heads = 4,
        .default_max_positions = 32768,
        .default_window = 4096,
        .default_rope_theta = 10000.0,
        .default_rms_eps = 1e-6,
        .default_experts_per_token = 8,
        .names = &llama_names,
        .expert_names = {&qwen_experts, &fused_experts},
    },
    {
        .name = "MixtralForCausalLM",
        .model_type = "mixtral",
        .window = WINDOW_EVERY_LAYER,
        .experts = EXPERTS_EVERY_LAYER,
        .default_kv_heads = 8,
        .default_max_positions = 131072,
        .default_rope_theta = 1000000.0,
        .default_rms_eps = 1e-5,
        .default_experts_per_token = 2,
        .has_default_ids = true,
        .names = &llama_names,
        .expert_names = {&mixtral_experts, &fused_experts},
    },
};

size_t model_architecture_count(void) {
    return sizeof(architectures) / sizeof(architectures[0]);
}

const model_architecture *model_architecture_at(size_t index) {
    assert(index < model_architecture_count());
    return &architectures[index];
}

const model_architecture *model_architecture_find(const char *name) {
    for (size_t i = 0; i < model_architecture_count(); i++) {
        if (strcmp(architectures[i].name, name) == 0) return &architectures[i];
    }
    return NULL;
}

const char *model_tensor_name(const char *pattern, uint32_t layer, uint32_t expert, const char *suffix, char *name) {
    size_t length = 0;
    bool is_layer = true;
    for (const char *p = pattern; *p != '\0'; p++) {
        if (*p != '#') {
            name[length++] = *p;
            continue;
        }
        length += (size_t)snprintf(name + length, MODEL_TENSOR_NAME_BYTES - length, "%u", is_layer ? layer : expert);
        is_layer = false;
    }
    assert(length + strlen(suffix) < MODEL_TENSOR_NAME_BYTES);
    strcpy(name + length, suffix);
    return name;
}
