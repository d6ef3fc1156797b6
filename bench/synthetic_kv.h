/* synthetic_kv.h - keys, values and queries of made-up heads, distributed as those of trained models are.
 *
 * The recipe is that of tools/index_data.py, `shifted`, drawn anew for every layer and KV head: keys are rotated,
 * anisotropic clusters around a large shared mean; queries have clusters, a rotation and a mean of their own, far from
 * all keys, and each leans a little towards one key; half of a value is said by its key and half is not. The queries of
 * one step are like those of the step before: their correlation, each query's mean taken away, is SYNTHETIC_KV_KEPT (in
 * a trained model's heads it was 0.50 to 0.63 over two tokens).
 * Keys and values are a function of layer, head and position alone, so that whoever checks can make them again.
 * Threads: rows and queries from any; drift and asked from one. */
#ifndef BENCH_SYNTHETIC_KV_H
#define BENCH_SYNTHETIC_KV_H

#include "kernels/ops.h"

#define SYNTHETIC_KV_KEPT 0.6

typedef struct synthetic_kv synthetic_kv;

/* dim: of keys and values, a multiple of 32, at most 256. */
hd_status synthetic_kv_open(const kernel_ops *kernels, uint32_t layers, uint32_t kv_heads, uint32_t group_size,
                            uint32_t dim, synthetic_kv **out);
void synthetic_kv_close(synthetic_kv *self); /* accepts NULL */

/* Rows of bf16 of tokens [first, first + count) of one block of 128. */
void synthetic_kv_rows(const synthetic_kv *self, uint32_t layer, uint32_t head, uint64_t first, uint32_t count,
                       uint16_t *keys, uint16_t *values);
/* A query of the prompt's token at the position, of any head of the group. */
void synthetic_kv_query(const synthetic_kv *self, uint32_t layer, uint32_t head, uint64_t position, uint16_t *query);

/* The next step's queries, of all heads; and one of them. */
void synthetic_kv_drift(synthetic_kv *self);
void synthetic_kv_asked(const synthetic_kv *self, uint32_t layer, uint32_t query_head, uint16_t *query);

#endif
