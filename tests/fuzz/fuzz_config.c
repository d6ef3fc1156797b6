/* fuzz_config.c - config.json and, after a zero byte, generation_config.json.
 *
 * What is accepted has to keep the promises that the rest of the program relies on. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/config_read.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool is_kept) {
    if (!is_kept) abort();
}

static void check_rope(const model_config *config) {
    float frequencies[128], factor = 0.0f;
    rope_frequencies(&config->rope, 100000, frequencies, &factor);
    require(isfinite(factor));
    for (uint32_t i = 0; i < config->rope.rotary_dim / 2; i++)
        require(frequencies[i] >= 0.0f && frequencies[i] <= 2.0f);
}

static void check_config(const model_config *config) {
    require(config->architecture != NULL && config->hidden_size > 0 && config->layer_count > 0 &&
            config->vocabulary_size > 0);
    require(config->query_heads % config->kv_heads == 0);
    require(config->head_dim % 16 == 0 && config->head_dim > 0 && config->head_dim <= 256);
    require(config->experts_per_token <= config->expert_count && config->eos_id_count <= MODEL_EOS_IDS_MAX);
    require(config->expert_count == 0 || config->expert_intermediate_size > 0);
    for (uint32_t i = 0; i < config->layer_count; i++) require(!config->is_sparse[i] || config->expert_count > 0);
    require(model_kv_bytes_per_token(config, HD_F32) > 0);
    check_rope(config);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    const uint8_t *end = memchr(data, 0, size);
    config_text config_json = {.path = "config.json", .text = (const char *)data, .bytes = size};
    config_text generation_json = {.path = "generation_config.json"};
    if (end != NULL) {
        config_json.bytes = (size_t)(end - data);
        generation_json.text = (const char *)end + 1;
        generation_json.bytes = size - config_json.bytes - 1;
    }
    model_config *config = NULL;
    hd_error error = {{0}};
    hd_status status = model_config_read(&config_json, &generation_json, &config, &error);
    require((status == HD_OK) == (config != NULL));
    require((status == HD_OK) == (error.text[0] == '\0'));
    if (config != NULL) check_config(config);
    model_config_close(config);
    return 0;
}
