/* config_test.c - what is read from config.json and generation_config.json, and what is refused in which words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "model/architecture.h"
#include "model/config_read.h"
#include "model_files.h"

#define COMMON                                                                                                         \
    "\"hidden_size\": 64, \"intermediate_size\": 96, \"num_hidden_layers\": 4, \"num_attention_heads\": 4, "           \
    "\"vocab_size\": 320"
static const char llama[] = "{\"architectures\": [\"LlamaForCausalLM\"], " COMMON "}";
static const char mistral[] = "{\"architectures\": [\"MistralForCausalLM\"], \"num_key_value_heads\": 2, " COMMON "}";
static const char qwen2[] = "{\"architectures\": [\"Qwen2ForCausalLM\"], \"num_key_value_heads\": 2, " COMMON "}";
static const char qwen3[] = "{\"architectures\": [\"Qwen3ForCausalLM\"], \"num_key_value_heads\": 2, " COMMON "}";
static const char qwen3_moe[] =
    "{\"architectures\": [\"Qwen3MoeForCausalLM\"], \"num_experts\": 8, \"moe_intermediate_size\": 32, " COMMON "}";
static const char mixtral[] =
    "{\"architectures\": [\"MixtralForCausalLM\"], \"num_local_experts\": 4, \"num_key_value_heads\": 2, " COMMON "}";

static hd_status read_texts(const char *config_json, const char *generation_json, model_config **config,
                            hd_error *error) {
    config_text first = {.path = "model/config.json", .text = config_json, .bytes = strlen(config_json)};
    config_text second = {.path = "model/generation_config.json", .text = generation_json};
    if (generation_json != NULL) second.bytes = strlen(generation_json);
    return model_config_read(&first, &second, config, error);
}

static model_config *read_with(const char *base, const char *changes, const char *generation_json) {
    char *text = model_files_merge(base, changes);
    model_config *config = NULL;
    hd_error error = {{0}};
    if (read_texts(text, generation_json, &config, &error) != HD_OK) fail_msg("%s: %s", text, error.text);
    free(text);
    return config;
}

/* --- What is read --- */

static void absent_fields_take_the_defaults_of_transformers(void **state) {
    model_config *config = read_with(llama, "{}", NULL);
    assert_string_equal(config->architecture->name, "LlamaForCausalLM");
    assert_int_equal(config->kv_heads, 4);
    assert_int_equal(config->head_dim, 16);
    assert_int_equal(config->max_positions, 2048);
    assert_true(config->rms_eps == 1e-6f);
    assert_true(config->rope.kind == ROPE_NONE && config->rope.theta == 10000.0);
    assert_false(config->tied_embeddings || config->qkv_bias || config->output_bias || config->qk_norm);
    assert_int_equal(config->dtype, HD_BF16);
    assert_true(config->has_bos && config->bos_id == 1 && config->eos_id_count == 1 && config->eos_ids[0] == 2);
    assert_true(config->default_temperature == 1.0f && config->default_top_p == 1.0f && config->default_top_k == 0);
    assert_true(config->default_min_p == 0.0f && config->default_repetition_penalty == 1.0f);
    for (int i = 0; i < 4; i++) assert_true(config->windows[i] == 0 && !config->is_sparse[i]);
    model_config_close(config);

    config = read_with(qwen3, "{\"num_key_value_heads\": \"<absent>\", \"num_attention_heads\": 32}", NULL);
    assert_true(config->head_dim == 128 && config->kv_heads == 32 && config->qk_norm && !config->has_bos &&
                config->eos_id_count == 0);
    model_config_close(config);

    config = read_with(mixtral, "{\"num_key_value_heads\": null}", NULL);
    assert_true(config->kv_heads == 4 && config->rope.theta == 1000000.0 && config->rms_eps == 1e-5f);
    model_config_close(config);
}

static void given_fields_are_taken(void **state) {
    model_config *config =
        read_with(llama,
                  "{\"head_dim\": 80, \"num_key_value_heads\": 1, \"max_position_embeddings\": 1048576, "
                  "\"rms_norm_eps\": 1e-5, \"tie_word_embeddings\": true, \"torch_dtype\": \"float16\", "
                  "\"attention_bias\": true, \"bos_token_id\": null, \"eos_token_id\": [7, 9]}",
                  NULL);
    assert_true(config->head_dim == 80 && config->kv_heads == 1 && config->max_positions == 1048576);
    assert_true(config->rms_eps == 1e-5f && config->tied_embeddings && config->dtype == HD_F16);
    assert_true(config->qkv_bias && config->output_bias);
    assert_true(!config->has_bos && config->eos_id_count == 2 && config->eos_ids[0] == 7 && config->eos_ids[1] == 9);
    assert_int_equal(model_kv_bytes_per_token(config, HD_BF16), 4 * 2 * 1 * 80 * 2);
    model_config_close(config);

    config = read_with(qwen2, "{\"dtype\": \"float32\", \"torch_dtype\": \"float16\"}", NULL);
    assert_true(config->qkv_bias && !config->output_bias && config->dtype == HD_F32);
    model_config_close(config);
}

static void expect_windows(const char *base, const char *changes, const uint64_t expected[4]) {
    model_config *config = read_with(base, changes, NULL);
    for (int i = 0; i < 4; i++) {
        if (config->windows[i] != expected[i])
            fail_msg("%s: layer %d has window %lu", changes, i, (unsigned long)config->windows[i]);
    }
    model_config_close(config);
}

static void windows_follow_the_rule_of_the_architecture(void **state) {
    const uint64_t none[4] = {0}, all[4] = {32, 32, 32, 32}, usual[4] = {4096, 4096, 4096, 4096};
    const uint64_t upper[4] = {0, 0, 0, 32}, mixed[4] = {32, 0, 32, 0};
    expect_windows(llama, "{\"sliding_window\": 32}", none);
    expect_windows(mistral, "{}", usual);
    expect_windows(mistral, "{\"sliding_window\": null}", none);
    expect_windows(mistral, "{\"sliding_window\": 32}", all);
    expect_windows(mixtral, "{}", none);
    expect_windows(mixtral, "{\"sliding_window\": 32}", all);
    expect_windows(qwen2, "{\"sliding_window\": 32, \"max_window_layers\": 0}", none);
    expect_windows(qwen2, "{\"sliding_window\": 32, \"use_sliding_window\": true}", none);
    expect_windows(qwen2, "{\"sliding_window\": 32, \"use_sliding_window\": true, \"max_window_layers\": 3}", upper);
    expect_windows(qwen3,
                   "{\"sliding_window\": 32, \"use_sliding_window\": true, \"layer_types\": [\"sliding_attention\", "
                   "\"full_attention\", \"sliding_attention\", \"full_attention\"]}",
                   mixed);
    expect_windows(qwen3_moe, "{\"sliding_window\": 32, \"max_window_layers\": 3}", none);
    expect_windows(qwen3_moe, "{\"sliding_window\": 32, \"use_sliding_window\": true, \"max_window_layers\": 3}", all);
}

static void experts_follow_the_rule_of_the_architecture(void **state) {
    model_config *config = read_with(mixtral, "{}", NULL);
    assert_true(config->expert_count == 4 && config->experts_per_token == 2 && config->expert_intermediate_size == 96);
    assert_true(config->normalise_expert_weights);
    for (int i = 0; i < 4; i++) assert_true(config->is_sparse[i]);
    model_config_close(config);

    config = read_with(qwen3_moe,
                       "{\"num_experts\": \"<absent>\", \"num_local_experts\": 16, \"num_experts_per_tok\": 3}", NULL);
    assert_true(config->expert_count == 16 && config->experts_per_token == 3 && config->expert_intermediate_size == 32);
    assert_false(config->normalise_expert_weights);
    for (int i = 0; i < 4; i++) assert_true(config->is_sparse[i]);
    model_config_close(config);

    const bool every_second[4] = {false, true, false, false};
    config =
        read_with(qwen3_moe, "{\"decoder_sparse_step\": 2, \"mlp_only_layers\": [3], \"norm_topk_prob\": true}", NULL);
    assert_true(config->normalise_expert_weights && config->experts_per_token == 8);
    assert_memory_equal(config->is_sparse, every_second, sizeof(every_second));
    model_config_close(config);
}

static void rope_is_read_from_both_forms(void **state) {
    static const char *const forms[] = {
        "{\"rope_theta\": 5e5, \"rope_scaling\": {\"type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1, "
        "\"high_freq_factor\": 4, \"original_max_position_embeddings\": 512}}",
        "{\"rope_theta\": 7, \"rope_parameters\": {\"rope_type\": \"llama3\", \"rope_theta\": 5e5, \"factor\": 8.0, "
        "\"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 512}}",
        "{\"rope_scaling\": {}, \"rope_parameters\": {\"sliding_attention\": {\"rope_type\": \"llama3\", "
        "\"rope_theta\": "
        "5e5, \"factor\": 8.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, "
        "\"original_max_position_embeddings\": "
        "512}, \"full_attention\": {\"rope_type\": \"llama3\", \"rope_theta\": 5e5, \"factor\": 8.0, "
        "\"low_freq_factor\": "
        "1.0, \"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 512}}}",
    };
    for (size_t i = 0; i < sizeof(forms) / sizeof(forms[0]); i++) {
        model_config *config = read_with(llama, forms[i], NULL);
        const rope_config *rope = &config->rope;
        assert_true(rope->kind == ROPE_LLAMA3 && rope->theta == 5e5 && rope->factor == 8.0 &&
                    rope->original_max_position == 512.0);
        assert_true(rope->low_freq_factor == 1.0 && rope->high_freq_factor == 4.0 && rope->rotary_dim == 16);
        model_config_close(config);
    }
}

static void an_original_length_outside_the_rope_object_wins(void **state) {
    model_config *config = read_with(llama,
                                     "{\"original_max_position_embeddings\": 256, \"rope_scaling\": {\"rope_type\": "
                                     "\"yarn\", \"factor\": 2, \"original_max_position_embeddings\": 512}}",
                                     NULL);
    assert_true(config->rope.original_max_position == 256.0);
    model_config_close(config);
}

static void generation_config_replaces_ids_and_sets_sampling(void **state) {
    model_config *config =
        read_with(llama, "{\"eos_token_id\": 5}",
                  "{\"bos_token_id\": 3, \"eos_token_id\": [11, 12, 13], \"temperature\": 0.6, \"top_p\": "
                  "0.95, \"top_k\": 20, \"min_p\": 0.05, \"repetition_penalty\": 1.1}");
    assert_true(config->has_bos && config->bos_id == 3 && config->eos_id_count == 3 && config->eos_ids[2] == 13);
    assert_true(config->default_temperature == 0.6f && config->default_top_p == 0.95f && config->default_top_k == 20);
    assert_true(config->default_min_p == 0.05f && config->default_repetition_penalty == 1.1f);
    model_config_close(config);

    config = read_with(llama, "{\"eos_token_id\": 5}", "{\"temperature\": 0.6}");
    assert_true(config->eos_id_count == 1 && config->eos_ids[0] == 5);
    model_config_close(config);
}

static bool is_same_config(const model_config *a, const model_config *b) {
    return a->architecture == b->architecture && a->hidden_size == b->hidden_size &&
           a->intermediate_size == b->intermediate_size && a->query_heads == b->query_heads &&
           a->kv_heads == b->kv_heads && a->head_dim == b->head_dim && a->max_positions == b->max_positions &&
           a->rms_eps == b->rms_eps && a->tied_embeddings == b->tied_embeddings && a->qkv_bias == b->qkv_bias &&
           a->output_bias == b->output_bias && memcmp(&a->rope, &b->rope, sizeof(a->rope)) == 0 &&
           a->layer_count == b->layer_count && a->dtype == b->dtype && a->expert_count == b->expert_count &&
           a->experts_per_token == b->experts_per_token && a->expert_intermediate_size == b->expert_intermediate_size &&
           a->normalise_expert_weights == b->normalise_expert_weights &&
           memcmp(a->windows, b->windows, a->layer_count * sizeof(*a->windows)) == 0 &&
           memcmp(a->is_sparse, b->is_sparse, a->layer_count * sizeof(*a->is_sparse)) == 0;
}

static void both_forms_of_the_golden_models_say_the_same(void **state) {
    static const char *const names[] = {
        "llama",   "llama-dynamic", "llama-head-dim", "llama-linear", "llama-llama3", "llama-yarn",       "mistral",
        "mixtral", "qwen2",         "qwen2-window",   "qwen3",        "qwen3-moe",    "qwen3-moe-sparse", "qwen3-yarn"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char older_path[256], newer_path[256];
        snprintf(older_path, sizeof(older_path), "tests/golden/models/%s/config.json", names[i]);
        snprintf(newer_path, sizeof(newer_path), "tests/golden/models/%s/config.newer.json", names[i]);
        json_t *older_json = json_load_file(older_path, 0, NULL), *newer_json = json_load_file(newer_path, 0, NULL);
        assert_true(older_json != NULL && newer_json != NULL);
        char *older_text = json_dumps(older_json, 0), *newer_text = json_dumps(newer_json, 0);
        model_config *older = read_with(older_text, "{}", NULL), *newer = read_with(newer_text, "{}", NULL);
        if (!is_same_config(older, newer)) fail_msg("%s: its two forms differ", names[i]);
        model_config_close(older);
        model_config_close(newer);
        free(older_text);
        free(newer_text);
        json_decref(older_json);
        json_decref(newer_json);
    }
}

/* --- What is refused --- */

typedef struct bad_config {
    const char *base, *changes;
    hd_status status;
    const char *sentence; /* after "model/config.json: " */
} bad_config;

#define ROPE(text) "{\"rope_scaling\": {" text "}}"
#define PARAMETERS(text) "{\"rope_parameters\": {" text "}}"
#define KNOWN                                                                                                          \
    "supported are LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM, "    \
    "MixtralForCausalLM"

static const bad_config bad_configs[] = {
    {llama, "{\"architectures\": \"<absent>\"}", HD_INVALID, "'architectures' must be an array of one name; " KNOWN},
    {llama, "{\"architectures\": [\"LlamaForCausalLM\", \"X\"]}", HD_INVALID,
     "'architectures' must be an array of one name; " KNOWN},
    {llama, "{\"architectures\": [7]}", HD_INVALID, "'architectures' must be an array of one name; " KNOWN},
    {llama, "{\"architectures\": \"LlamaForCausalLM\"}", HD_INVALID, "'architectures' must be an array"},
    {llama, "{\"architectures\": [\"GPT2LMHeadModel\"]}", HD_UNSUPPORTED, "'architectures' is GPT2LMHeadModel; " KNOWN},
    {llama, "{\"model_type\": \"qwen2\"}", HD_INVALID, "'model_type' is qwen2, but LlamaForCausalLM has llama"},
    {llama, "{\"model_type\": 1}", HD_INVALID, "'model_type' must be a string"},
    /* arithmetic of other models */
    {llama, "{\"quantization_config\": {\"quant_method\": \"gptq\"}}", HD_UNSUPPORTED,
     "'quantization_config' is not supported; use a checkpoint of a text model in bf16, f16 or f32"},
    {llama, "{\"vision_config\": {}}", HD_UNSUPPORTED,
     "'vision_config' is not supported; use a checkpoint of a text model in bf16, f16 or f32"},
    {llama, "{\"text_config\": {}}", HD_UNSUPPORTED,
     "'text_config' is not supported; use a checkpoint of a text model in bf16, f16 or f32"},
    {llama, "{\"hidden_act\": \"gelu\"}", HD_UNSUPPORTED, "'hidden_act' is gelu; only silu is supported"},
    {llama, "{\"hidden_act\": false}", HD_INVALID, "'hidden_act' must be a string"},
    {llama, "{\"attn_logit_softcapping\": 50.0}", HD_UNSUPPORTED, "'attn_logit_softcapping' is not supported"},
    {llama, "{\"final_logit_softcapping\": 30}", HD_UNSUPPORTED, "'final_logit_softcapping' is not supported"},
    {llama, "{\"attention_sinks\": true}", HD_UNSUPPORTED, "'attention_sinks' is true, which is not supported"},
    {llama, "{\"mlp_bias\": true}", HD_UNSUPPORTED, "'mlp_bias' is true, which is not supported"},
    {llama, "{\"mlp_bias\": 1}", HD_INVALID, "'mlp_bias' must be true or false"},
    {llama, "{\"embedding_multiplier\": 12.0}", HD_UNSUPPORTED, "'embedding_multiplier' is not supported"},
    {llama, "{\"torch_dtype\": \"float8_e4m3fn\"}", HD_UNSUPPORTED,
     "'torch_dtype' is float8_e4m3fn; supported are bfloat16, float16 and float32"},
    {llama, "{\"dtype\": \"int4\"}", HD_UNSUPPORTED, "'dtype' is int4; supported are bfloat16, float16 and float32"},
    /* sizes */
    {llama, "{\"hidden_size\": \"<absent>\"}", HD_INVALID, "'hidden_size' is missing"},
    {llama, "{\"hidden_size\": 0}", HD_INVALID, "'hidden_size' must be an integer from 1 to 1048576"},
    {llama, "{\"hidden_size\": -64}", HD_INVALID, "'hidden_size' must be an integer from 1 to 1048576"},
    {llama, "{\"hidden_size\": 64.0}", HD_INVALID, "'hidden_size' must be an integer from 1 to 1048576"},
    {llama, "{\"hidden_size\": \"64\"}", HD_INVALID, "'hidden_size' must be an integer from 1 to 1048576"},
    {llama, "{\"intermediate_size\": 9223372036854775807}", HD_INVALID,
     "'intermediate_size' must be an integer from 1 to 1048576"},
    {llama, "{\"num_hidden_layers\": 100000}", HD_INVALID, "'num_hidden_layers' must be an integer from 1 to 1024"},
    {llama, "{\"num_attention_heads\": null}", HD_INVALID, "'num_attention_heads' is missing"},
    {llama, "{\"num_key_value_heads\": 3}", HD_INVALID,
     "'num_key_value_heads' is 3, which does not divide 'num_attention_heads', 4"},
    {llama, "{\"num_attention_heads\": 3}", HD_INVALID,
     "'hidden_size' is 64, not a multiple of 'num_attention_heads', 3"},
    {llama, "{\"head_dim\": 24}", HD_UNSUPPORTED, "'head_dim' is 24; supported are multiples of 16 up to 256"},
    {llama, "{\"head_dim\": 512}", HD_UNSUPPORTED, "'head_dim' is 512; supported are multiples of 16 up to 256"},
    {llama, "{\"num_attention_heads\": 64}", HD_UNSUPPORTED,
     "'head_dim' is 1; supported are multiples of 16 up to 256"},
    {llama, "{\"vocab_size\": 100000000}", HD_INVALID, "'vocab_size' must be an integer from 1 to 16777216"},
    {llama, "{\"max_position_embeddings\": 0}", HD_INVALID,
     "'max_position_embeddings' must be an integer from 1 to 1099511627776"},
    {llama, "{\"rms_norm_eps\": -1e-6}", HD_INVALID, "'rms_norm_eps' must be a number from 0 to 1"},
    {llama, "{\"rms_norm_eps\": \"1e-6\"}", HD_INVALID, "'rms_norm_eps' must be a number from 0 to 1"},
    {llama, "{\"tie_word_embeddings\": \"yes\"}", HD_INVALID, "'tie_word_embeddings' must be true or false"},
    /* windows and layer types */
    {mistral, "{\"sliding_window\": 0}", HD_INVALID, "'sliding_window' must be an integer from 1 to 1099511627776"},
    {qwen2, "{\"layer_types\": [\"full_attention\"]}", HD_INVALID, "'layer_types' has 1 entries for 4 layers"},
    {qwen2, "{\"layer_types\": {}}", HD_INVALID, "'layer_types' must be an array"},
    {qwen2, "{\"layer_types\": [\"full_attention\", \"linear_attention\", \"full_attention\", \"full_attention\"]}",
     HD_UNSUPPORTED,
     "'layer_types' has linear_attention for layer 1; supported are full_attention and sliding_attention"},
    {qwen2, "{\"layer_types\": [\"full_attention\", null, \"full_attention\", \"full_attention\"]}", HD_UNSUPPORTED,
     "'layer_types' has no name for layer 1; supported are full_attention and sliding_attention"},
    {qwen2, "{\"layer_types\": [\"full_attention\", \"full_attention\", \"full_attention\", \"sliding_attention\"]}",
     HD_INVALID, "'layer_types' has sliding_attention for layer 3, which the other fields contradict"},
    {mistral,
     "{\"layer_types\": [\"sliding_attention\", \"full_attention\", \"sliding_attention\", \"full_attention\"]}",
     HD_INVALID, "'layer_types' has full_attention for layer 1, which the other fields contradict"},
    /* experts */
    {mixtral, "{\"num_local_experts\": \"<absent>\"}", HD_INVALID, "'num_local_experts' is missing"},
    {qwen3_moe, "{\"num_experts\": null}", HD_INVALID, "'num_experts' is missing"},
    {mixtral, "{\"num_experts_per_tok\": 5}", HD_INVALID,
     "'num_experts_per_tok' is 5, more than 'num_local_experts', 4"},
    {mixtral, "{\"num_experts_per_tok\": 0}", HD_INVALID, "'num_experts_per_tok' must be an integer from 1 to 1024"},
    {qwen3_moe, "{\"moe_intermediate_size\": \"<absent>\"}", HD_INVALID, "'moe_intermediate_size' is missing"},
    {qwen3_moe, "{\"decoder_sparse_step\": 0}", HD_INVALID, "'decoder_sparse_step' must be an integer from 1 to 1024"},
    {qwen3_moe, "{\"mlp_only_layers\": [4]}", HD_INVALID, "'mlp_only_layers' must hold layer numbers below 4"},
    {qwen3_moe, "{\"mlp_only_layers\": [\"0\"]}", HD_INVALID, "'mlp_only_layers' must hold layer numbers below 4"},
    /* rope */
    {llama, "{\"rope_theta\": -1}", HD_INVALID, "'rope_theta' must be a number from 2 to 1e+38"},
    {llama, "{\"rope_scaling\": \"yarn\"}", HD_INVALID, "'rope_scaling' must be an object"},
    {llama, "{\"partial_rotary_factor\": 0.5}", HD_UNSUPPORTED, "'partial_rotary_factor' is 0.5; only 1 is supported"},
    {llama, ROPE("\"rope_type\": \"longrope\""), HD_UNSUPPORTED,
     "'rope_scaling.rope_type' is longrope; supported are default, linear, dynamic, llama3 and yarn"},
    {llama, ROPE("\"type\": \"su\""), HD_UNSUPPORTED,
     "'rope_scaling.type' is su; supported are default, linear, dynamic, llama3 and yarn"},
    {llama, ROPE("\"type\": 5"), HD_INVALID, "'rope_scaling.type' must be a string"},
    {llama, PARAMETERS("\"rope_type\": \"default\", \"mrope_section\": [8, 4, 4]"), HD_UNSUPPORTED,
     "'rope_parameters.mrope_section' is not supported"},
    {llama, PARAMETERS("\"partial_rotary_factor\": 0.25"), HD_UNSUPPORTED,
     "'rope_parameters.partial_rotary_factor' is 0.25; only 1 is supported"},
    {llama, PARAMETERS("\"full_attention\": {\"rope_theta\": 1e4}, \"sliding_attention\": {\"rope_theta\": 1e6}"),
     HD_UNSUPPORTED, "'rope_parameters' differs between layer types, which is not supported"},
    {llama, ROPE("\"type\": \"linear\""), HD_INVALID, "'rope_scaling.factor' is missing"},
    {llama, ROPE("\"type\": \"dynamic\", \"factor\": 0.5"), HD_INVALID,
     "'rope_scaling.factor' must be a number from 1 to 1e+06"},
    {llama, ROPE("\"type\": \"llama3\", \"factor\": 8, \"high_freq_factor\": 4"), HD_INVALID,
     "'rope_scaling.low_freq_factor' is missing"},
    {llama, ROPE("\"type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, \"high_freq_factor\": 4"), HD_INVALID,
     "'rope_scaling.high_freq_factor' must be greater than 'low_freq_factor'"},
    {llama, ROPE("\"type\": \"yarn\", \"factor\": 8, \"original_max_position_embeddings\": 0"), HD_INVALID,
     "'rope_scaling.original_max_position_embeddings' must be a number from 1 to 1e+15"},
    {llama, ROPE("\"type\": \"yarn\", \"factor\": 8, \"attention_factor\": -1"), HD_INVALID,
     "'rope_scaling.attention_factor' must be a number from 1e-06 to 1e+06"},
    {llama, ROPE("\"type\": \"yarn\", \"factor\": 8, \"truncate\": 0"), HD_INVALID,
     "'rope_scaling.truncate' must be true or false"},
    /* token ids */
    {llama, "{\"eos_token_id\": -1}", HD_INVALID, "'eos_token_id' must be a token id or an array of them"},
    {llama, "{\"eos_token_id\": [1, \"2\"]}", HD_INVALID, "'eos_token_id' must be a token id or an array of them"},
    {llama, "{\"eos_token_id\": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]}", HD_UNSUPPORTED,
     "'eos_token_id' has more than 16 ids"},
    {llama, "{\"bos_token_id\": 4294967296}", HD_INVALID, "'bos_token_id' must be an integer from 0 to 4294967295"},
};

static void every_unsupported_or_wrong_field_is_refused_by_name(void **state) {
    for (size_t i = 0; i < sizeof(bad_configs) / sizeof(bad_configs[0]); i++) {
        const bad_config *bad = &bad_configs[i];
        char *text = model_files_merge(bad->base, bad->changes), expected[512];
        snprintf(expected, sizeof(expected), "model/config.json: %s", bad->sentence);
        model_config *config = NULL;
        hd_error error = {{0}};
        hd_status status = read_texts(text, NULL, &config, &error);
        if (status != bad->status || strcmp(error.text, expected) != 0 || config != NULL) {
            fail_msg("%s gives %s: %s", bad->changes, hd_status_name(status), error.text);
        }
        free(text);
    }
}

static void expect_sentence(const char *config_json, const char *generation_json, hd_status expected_status,
                            const char *sentence) {
    model_config *config = NULL;
    hd_error error = {{0}};
    hd_status status = read_texts(config_json, generation_json, &config, &error);
    assert_string_equal(error.text, sentence);
    assert_int_equal(status, expected_status);
    assert_null(config);
}

static void a_file_that_is_no_json_object_is_refused(void **state) {
    expect_sentence("", NULL, HD_CORRUPT,
                    "model/config.json: is not JSON: '[' or '{' expected near end of file (line 1, column 0)");
    expect_sentence("[]", NULL, HD_CORRUPT, "model/config.json: is JSON, but not an object");
    expect_sentence("{\"a\": 1, \"a\": 2}", NULL, HD_CORRUPT,
                    "model/config.json: is not JSON: duplicate object key near '\"a\"' (line 1, column 12)");
    expect_sentence(
        llama, "{", HD_CORRUPT,
        "model/generation_config.json: is not JSON: string or '}' expected near end of file (line 1, column 1)");
}

static void wrong_fields_of_generation_config_are_refused_by_name(void **state) {
    expect_sentence(llama, "{\"temperature\": \"hot\"}", HD_INVALID,
                    "model/generation_config.json: 'temperature' must be a number from 0 to 100");
    expect_sentence(llama, "{\"top_p\": 2}", HD_INVALID,
                    "model/generation_config.json: 'top_p' must be a number from 0 to 1");
    expect_sentence(llama, "{\"top_k\": -1}", HD_INVALID,
                    "model/generation_config.json: 'top_k' must be an integer from 0 to 4294967295");
    expect_sentence(llama, "{\"eos_token_id\": {}}", HD_INVALID,
                    "model/generation_config.json: 'eos_token_id' must be a token id or an array of them");
}

/* --- Files --- */

static void a_missing_or_unreadable_file_is_named(void **state) {
    model_files files;
    model_config *config = NULL;
    hd_error error = {{0}};
    char expected[1024];
    model_files_make(&files);
    assert_int_equal(model_config_open(files.directory, &config, &error), HD_NOT_FOUND);
    snprintf(expected, sizeof(expected), "%s/config.json: cannot be opened: No such file or directory",
             files.directory);
    assert_string_equal(error.text, expected);

    model_files_write(&files, "config.json", llama, strlen(llama));
    assert_int_equal(model_config_open(files.directory, &config, &error), HD_OK);
    model_config_close(config);

    config = NULL;
    fault_arm(FAULT_READ, 0);
    assert_int_equal(model_config_open(files.directory, &config, &error), HD_IO);
    fault_disarm();
    snprintf(expected, sizeof(expected), "%s/config.json: cannot be read: Input/output error", files.directory);
    assert_string_equal(error.text, expected);
    model_files_remove(&files);
}

static void a_file_that_is_too_large_is_refused(void **state) {
    model_files files;
    model_config *config = NULL;
    hd_error error = {{0}};
    size_t bytes = CONFIG_FILE_BYTES_MAX + 1;
    char *text = calloc(1, bytes), expected[1024];
    model_files_make(&files);
    model_files_write(&files, "config.json", text, bytes);
    assert_int_equal(model_config_open(files.directory, &config, &error), HD_INVALID);
    snprintf(expected, sizeof(expected), "%s/config.json: has 16777217 bytes; at most 16777216 are read",
             files.directory);
    assert_string_equal(error.text, expected);
    model_files_remove(&files);
    free(text);
}

static void open_survives_each_failed_allocation_and_read(void **state) {
    static const fault_kind kinds[] = {FAULT_ALLOCATION, FAULT_READ};
    model_files files;
    model_files_make(&files);
    model_files_write(&files, "config.json", llama, strlen(llama));
    model_files_write(&files, "generation_config.json", "{}", 2);
    for (size_t kind = 0; kind < 2; kind++) {
        hd_status status = HD_NO_MEMORY;
        unsigned nth = 0;
        for (; status != HD_OK; nth++) {
            model_config *config = NULL;
            hd_error error = {{0}};
            fault_arm(kinds[kind], nth);
            status = model_config_open(files.directory, &config, &error);
            fault_disarm();
            assert_int_equal(status == HD_OK, config != NULL);
            if (status != HD_OK) assert_int_equal(status, kinds[kind] == FAULT_READ ? HD_IO : HD_NO_MEMORY);
            if (status != HD_OK) assert_true(error.text[0] != '\0');
            model_config_close(config);
        }
        assert_true(nth > 2);
    }
    model_files_remove(&files);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(absent_fields_take_the_defaults_of_transformers),
        cmocka_unit_test(given_fields_are_taken),
        cmocka_unit_test(windows_follow_the_rule_of_the_architecture),
        cmocka_unit_test(experts_follow_the_rule_of_the_architecture),
        cmocka_unit_test(rope_is_read_from_both_forms),
        cmocka_unit_test(an_original_length_outside_the_rope_object_wins),
        cmocka_unit_test(generation_config_replaces_ids_and_sets_sampling),
        cmocka_unit_test(both_forms_of_the_golden_models_say_the_same),
        cmocka_unit_test(every_unsupported_or_wrong_field_is_refused_by_name),
        cmocka_unit_test(a_file_that_is_no_json_object_is_refused),
        cmocka_unit_test(wrong_fields_of_generation_config_are_refused_by_name),
        cmocka_unit_test(a_missing_or_unreadable_file_is_named),
        cmocka_unit_test(a_file_that_is_too_large_is_refused),
        cmocka_unit_test(open_survives_each_failed_allocation_and_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
