/* index_data.h - keys, values and queries of one attention head, from a directory that tools/index_data.py made; and
 * what is right for them: each test query's best keys, and its attention over all of them.
 *
 * Threads: one. */
#ifndef BENCH_INDEX_DATA_H
#define BENCH_INDEX_DATA_H

#include "attention-node/index.h"
#include "model/safetensors.h"

#define INDEX_DATA_BEST 100u /* of recall@100 */

typedef struct index_data {
    safetensors *file;
    uint32_t key_dim, value_dim, key_count, query_count, test_count;
    const uint16_t *keys, *values, *queries, *tests; /* bf16 rows; key_count is a whole number of index grains */
    uint16_t *drawn;                                 /* values that are not the file's, or NULL */
    float scale;
    uint32_t *best; /* [test_count, INDEX_DATA_BEST] tokens */
    float *outputs; /* [output_count, value_dim] attention of the first tests */
    uint32_t output_count;
} index_data;

/* HD_INVALID names the tensor and what is wrong with it. */
hd_status index_data_open(const char *directory, index_data *data, hd_error *error);
void index_data_close(index_data *data); /* accepts a zeroed one */
/* Other values: each its own, drawn without a look at its key. */
hd_status index_data_draw_values(index_data *data);
hd_status index_data_solve(index_data *data, const kernel_ops *kernels, uint32_t output_count);
index_source index_data_source(const index_data *data);

/* A query as floats, and its score with every key. */
void index_data_scores(const index_data *data, const kernel_ops *kernels, uint32_t test, float *scores);

/* A softmax in the making: sums of weights and of weighted values. */
typedef struct index_attention {
    double max, sum;
    double out[512];
} index_attention;
void index_attention_add(index_attention *a, uint32_t dim, double log_weight, const uint16_t *value);
void index_attention_add_partial(index_attention *a, uint32_t dim, float max, float sum, const float *out);
/* |a / sum - right| / |right| */
double index_attention_error(const index_attention *a, uint32_t dim, const float *right);

#endif
