/* config.h - what a Hugging Face model directory says of the model, checked before any weight is touched.
 *
 * Reads config.json in both of its forms (rope_theta + rope_scaling + torch_dtype, and rope_parameters + dtype) and
 * generation_config.json. An architecture is one row of the table in architecture.c: its name in config.json, its
 * switches, and its tensor names. Whatever the forward pass would not compute exactly is refused here with a sentence
 * that names the file and the field.
 * Threads: a config is a value; open and close once. */
#ifndef MODEL_CONFIG_H
#define MODEL_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/dtype.h"

#define MODEL_EOS_IDS_MAX 16u

typedef enum { ROPE_NONE, ROPE_LINEAR, ROPE_DYNAMIC, ROPE_LLAMA3, ROPE_YARN } rope_kind;

typedef struct rope_config {
    rope_kind kind;
    double theta;
    double factor;
    double original_max_position; /* original_max_position_embeddings, or what HF takes: max_position_embeddings */
    double low_freq_factor, high_freq_factor;                              /* llama3 */
    double beta_fast, beta_slow, attention_factor, mscale, mscale_all_dim; /* yarn; attention_factor 0: derived */
    bool truncate;                                                         /* yarn */
    uint32_t rotary_dim;
} rope_config;

typedef struct model_architecture model_architecture; /* architecture.h */

typedef struct model_config {
    const model_architecture *architecture;
    uint32_t hidden_size, intermediate_size, layer_count, query_heads, kv_heads, head_dim, vocabulary_size;
    uint64_t max_positions;
    float rms_eps;
    bool tied_embeddings;
    bool qkv_bias, output_bias, qk_norm;
    uint64_t *windows; /* [layer_count]; 0: full attention */
    rope_config rope;
    /* mixture of experts; expert_count 0: dense */
    uint32_t expert_count, experts_per_token, expert_intermediate_size;
    bool normalise_expert_weights;
    bool *is_sparse; /* [layer_count] */
    hd_dtype dtype;  /* torch_dtype / dtype: what the makers say the checkpoint holds; bf16 where they are silent */
    uint32_t eos_ids[MODEL_EOS_IDS_MAX];
    uint32_t eos_id_count;
    bool has_bos;
    uint32_t bos_id;
    float default_temperature, default_top_p,
        default_repetition_penalty; /* generation_config.json; 1 where it is silent */
    float default_min_p;            /* 0: off */
    uint32_t default_top_k;         /* 0: off */
} model_config;

hd_status model_config_open(const char *model_directory, model_config **config, hd_error *error);
void model_config_close(model_config *config); /* accepts NULL */

/* inverse_frequencies[rotary_dim / 2] and the factor on cosines and sines. sequence_tokens matters to `dynamic` only:
 * the base is fixed at admission from prompt + max_tokens (Hugging Face recomputes it as the sequence grows; one-shot
 * at that length is the same). To agree with Hugging Face at far positions, an angle is the float product
 * (float)position * inverse_frequencies[i]. */
void rope_frequencies(const rope_config *rope, uint64_t sequence_tokens, float *inverse_frequencies,
                      float *attention_factor);

/* Bytes of one token's keys and values at the given storage type, all layers. */
uint64_t model_kv_bytes_per_token(const model_config *config, hd_dtype kv_dtype);

#endif
