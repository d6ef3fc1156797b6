/* weights.h - the packed weights of a model, made from mapped safetensors.
 *
 * Each tensor is packed into the layout of kernels/matrix.h, and what is packed is dropped from the mapping, so that
 * peak memory is the packed weights plus a slab of one tensor. Nothing is converted on disk. Errors name the tensor and
 * the file.
 * Threads: open runs on the caller's thread and the pool; the result is read only. */
#ifndef MODEL_WEIGHTS_H
#define MODEL_WEIGHTS_H

#include "base/threads.h"
#include "kernels/matrix.h"
#include "model/config.h"
#include "model/safetensors.h"

/* Which of a worker's ranks, of how many. Every rank has some panels of columns of each matrix, in the order of ranks,
 * so that whoever computes a column computes all of it, and its bits do not depend on how many there are. Experts and
 * their router are rank 0's alone, and so is everything that is no matrix. */
typedef struct model_share {
    uint32_t rank, count;
} model_share;

typedef struct model_columns {
    uint32_t first, count;
} model_columns;

/* Of a matrix of n columns: a rank's; unit: panels that stay together, 2 where gate and up alternate. */
model_columns model_share_columns(model_share share, uint32_t n, uint32_t unit);

typedef struct model_expert {
    kernel_matrix gate_up; /* kernel_matrix_pack_gate_up */
    kernel_matrix down;
} model_expert;

typedef struct model_layer {
    float *attention_norm, *mlp_norm; /* [hidden_size] */
    kernel_matrix qkv;                /* columns: all query heads, then key heads, then value heads */
    float *qkv_bias;                  /* [n] or NULL */
    float *query_norm, *key_norm;     /* [head_dim] or NULL */
    kernel_matrix attention_output;
    float *attention_output_bias; /* or NULL */
    kernel_matrix gate_up, down;  /* dense layers */
    kernel_matrix router;         /* sparse layers: [hidden_size -> expert_count], never int8 */
    model_expert *experts;        /* [expert_count], or NULL */
} model_layer;

typedef struct model_weights {
    hd_dtype dtype; /* HD_BF16, HD_F32 or HD_INT8 */
    model_layer *layers;
    float *final_norm;
    kernel_matrix lm_head;
    /* Names what a token's keys and values depend on: the configuration's numbers, the packed type, and every tensor's
     * type, shape and bytes. How the tensors are spread over files, and when, does not matter. */
    unsigned char fingerprint[16];
    uint64_t bytes; /* packed */
    model_share share;

    /* For this module only. */
    uint32_t layer_count;
    void *region;                        /* everything above but layers and experts lies in it; of `bytes` bytes */
    safetensors *files;                  /* stay open for the embedding */
    const safetensors_tensor *embedding; /* [vocabulary_size, hidden_size] */
} model_weights;

/* dtype HD_BF16, HD_F32 or HD_INT8; share {0, 1}: all of it. Matrices are as wide as the rank's columns. Logs how far it is every few seconds, and when f16 or f32 tensors are rounded to
 * bf16. */
hd_status model_weights_open(const char *model_directory, const model_config *config, hd_dtype dtype, model_share share,
                             hd_pool *pool, model_weights **weights, hd_error *error);
void model_weights_close(model_weights *weights); /* accepts NULL */
/* Gives back the memory of matrices, norms and biases, of which somebody else has a copy. Shapes stay, and the
 * embedding. */
void model_weights_drop(model_weights *weights);

/* Row token_id of the embedding table as float[hidden_size]; from the file. */
void model_embed(const model_weights *weights, uint32_t token_id, float *row);

/* Bytes that model_weights_open would take, from the headers alone; so that a server can refuse with the numbers before
 * it loads. */
hd_status model_weights_estimate(const char *model_directory, const model_config *config, hd_dtype dtype,
                                 model_share share, uint64_t *bytes, hd_error *error);

#endif
