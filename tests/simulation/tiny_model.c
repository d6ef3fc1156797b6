/* tiny_model.c - weights are seeds: hash_kernels.c looks at the first eight bytes of a matrix and at its shape. */
#include "tests/simulation/tiny_model.h"

#include <string.h>

#include "model/text/text.h"
#include "tests/simulation/dice.h"

enum { LAYERS = 2, HIDDEN = 32, INTERMEDIATE = 64, QUERY_HEADS = 2, HEAD_DIM = 16, MATRICES = 4 * LAYERS + 1 };

static model_config config;
static model_weights weights;
static model_layer layers[LAYERS];
static uint64_t windows[LAYERS], seeds[MATRICES];
static float ones[HIDDEN];

static kernel_matrix matrix(unsigned index, uint32_t n, uint32_t k) {
    seeds[index] = dice_mix(index + 1);
    return (kernel_matrix){.dtype = HD_F32,
                           .n = n,
                           .k = k,
                           .n_padded = (uint32_t)HD_ALIGN_UP(n, KERNEL_N_ALIGN),
                           .k_padded = (uint32_t)HD_ALIGN_UP(k, KERNEL_K_ALIGN),
                           .data = &seeds[index]};
}

void tiny_model_init(void) {
    uint32_t heads = QUERY_HEADS + 2 * TINY_KV_HEADS;
    for (int i = 0; i < HIDDEN; i++) ones[i] = 1.0f;
    for (unsigned i = 0; i < LAYERS; i++) {
        layers[i] = (model_layer){.attention_norm = ones,
                                  .mlp_norm = ones,
                                  .qkv = matrix(4 * i, heads * HEAD_DIM, HIDDEN),
                                  .attention_output = matrix(4 * i + 1, HIDDEN, QUERY_HEADS * HEAD_DIM),
                                  .gate_up = matrix(4 * i + 2, 2 * INTERMEDIATE, HIDDEN),
                                  .down = matrix(4 * i + 3, HIDDEN, INTERMEDIATE)};
    }
    config = (model_config){.hidden_size = HIDDEN,
                            .intermediate_size = INTERMEDIATE,
                            .layer_count = LAYERS,
                            .query_heads = QUERY_HEADS,
                            .kv_heads = TINY_KV_HEADS,
                            .head_dim = HEAD_DIM,
                            .vocabulary_size = TINY_VOCABULARY,
                            .max_positions = 8192,
                            .rms_eps = 1e-5f,
                            .windows = windows,
                            .rope = {.kind = ROPE_NONE, .theta = 10000, .factor = 1, .rotary_dim = HEAD_DIM},
                            .dtype = HD_F32,
                            .eos_ids = {TINY_EOS},
                            .eos_id_count = 1,
                            .default_temperature = 1,
                            .default_top_p = 1,
                            .default_repetition_penalty = 1};
    weights = (model_weights){.dtype = HD_F32,
                              .layers = layers,
                              .final_norm = ones,
                              .lm_head = matrix(MATRICES - 1, TINY_VOCABULARY, HIDDEN),
                              .layer_count = LAYERS};
    memset(weights.fingerprint, 0x5a, sizeof(weights.fingerprint));
}

const model_config *tiny_config(void) {
    return &config;
}

const model_weights *tiny_weights(void) {
    return &weights;
}

void model_embed(const model_weights *w, uint32_t token_id, float *row) {
    for (uint32_t i = 0; i < HIDDEN; i++)
        row[i] = (float)(int32_t)(dice_mix(token_id * 64ull + i + 1) >> 32) * 0x1p-31f;
}

/* ---- Text: a coordinator's router opens a tokenizer, and hands it on ---- */

struct text_model {
    char unused;
};

hd_status text_model_open(const char *model_directory, text_model **model, hd_error *error) {
    static text_model only;
    *model = &only;
    return HD_OK;
}

void text_model_close(text_model *model) {}
