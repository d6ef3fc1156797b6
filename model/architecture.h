/* architecture.h - the table of model architectures: what differs between them, one row each.
 *
 * A row says which rules of config.json apply, what an absent field means, and how the tensors are called. Everything
 * that reads a model (config.c, weights_plan.c) asks the row and never the name, so an architecture whose parts are all
 * known is added by its row alone, and a new part by one switch here and one place that obeys it.
 * Threads: constant data. */
#ifndef MODEL_ARCHITECTURE_H
#define MODEL_ARCHITECTURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    BIAS_NEVER,
    BIAS_QKV,      /* query, key and value always have one */
    BIAS_BY_FIELD, /* "attention_bias" gives one to query, key, value and output */
} architecture_bias;

typedef enum {
    WINDOW_NEVER,
    WINDOW_EVERY_LAYER,         /* "sliding_window", when it is a number */
    WINDOW_EVERY_LAYER_IF_USED, /* the same, and only with "use_sliding_window" */
    WINDOW_BY_LAYER,            /* "layer_types", or else from "max_window_layers" on; only with "use_sliding_window" */
} architecture_window;

typedef enum {
    EXPERTS_NEVER,
    EXPERTS_EVERY_LAYER, /* of "intermediate_size"; weights of the chosen ones always sum to 1 */
    EXPERTS_BY_LAYER,    /* of "moe_intermediate_size"; "decoder_sparse_step", "mlp_only_layers", "norm_topk_prob" */
} architecture_experts;

/* In a tensor name the first '#' is the layer, the second the expert. */
typedef struct dense_names {
    const char *embedding, *final_norm, *lm_head;
    const char *attention_norm, *mlp_norm;
    const char *query, *key, *value, *attention_output; /* with ".weight" or ".bias" appended */
    const char *query_norm, *key_norm;
    const char *gate, *up, *down;
} dense_names;

/* One way in which a checkpoint may hold experts: a tensor for each (gate, up), or all in one (gate_up: gate's rows,
 * then up's). */
typedef struct expert_names {
    const char *router;
    const char *gate, *up; /* NULL where gate_up is given */
    const char *gate_up;   /* [experts, 2 * width, hidden], and down [experts, hidden, width] */
    const char *down;
} expert_names;

#define ARCHITECTURE_EXPERT_NAMES_MAX 2

typedef struct model_architecture {
    const char *name;       /* "architectures" in config.json */
    const char *model_type; /* "model_type" there */
    architecture_bias bias;
    architecture_window window;
    architecture_experts experts;
    bool qk_norm;

    /* What Hugging Face's configuration class takes where config.json is silent. */
    uint32_t default_kv_heads; /* 0: as many as query heads */
    uint32_t default_head_dim; /* 0: hidden_size / query heads */
    uint64_t default_max_positions;
    uint64_t default_window; /* 0: none */
    double default_rope_theta;
    double default_rms_eps;
    uint32_t default_experts_per_token;
    bool has_default_ids; /* bos 1, eos 2 */

    const dense_names *names;
    const expert_names *expert_names[ARCHITECTURE_EXPERT_NAMES_MAX]; /* alternatives; NULL after the last */
} model_architecture;

/* NULL when there is no such row. */
const model_architecture *model_architecture_find(const char *name);
size_t model_architecture_count(void);
const model_architecture *model_architecture_at(size_t index);

/* Fills in the '#'s of a pattern and appends suffix. Returns name, truncated never: name_bytes is at least
 * MODEL_TENSOR_NAME_BYTES. */
#define MODEL_TENSOR_NAME_BYTES 128u
const char *model_tensor_name(const char *pattern, uint32_t layer, uint32_t expert, const char *suffix, char *name);

#endif
