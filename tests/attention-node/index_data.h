/* index_data.h - keys, values and queries for tests of indexes, of the two kinds that fool other indexes.
 *
 * SHIFTED: anisotropic clusters around one large mean, queries far from them. TURNING: no shared mean, spread over
 * many directions that turn with position as a rotary embedding does; queries are near the keys that they look for.
 * Threads: one. */
#ifndef TESTS_ATTENTION_NODE_INDEX_DATA_H
#define TESTS_ATTENTION_NODE_INDEX_DATA_H

#include "attention-node/index.h"

typedef enum { INDEX_DATA_SHIFTED, INDEX_DATA_TURNING } index_data_kind;

typedef struct index_data {
    uint32_t dim, count, query_count;
    float scale;
    uint16_t *keys, *values; /* bf16 [count, dim] */
    uint16_t *queries;       /* bf16 [count / INDEX_QUERY_POSITIONS, dim]: the sample */
    uint16_t *tests;         /* bf16 [query_count, dim]: drawn alike, and not in the sample */
} index_data;

index_data index_data_make(index_data_kind kind, uint32_t dim, uint32_t count, uint32_t query_count, uint64_t seed);
void index_data_free(index_data *data);
index_source index_data_source(const index_data *data); /* keeps a pointer to the data */

/* Opens an index of the kind over the data, adds the sample and builds everything up to `covered`, all of it settled,
 * with targets `step` tokens apart. */
kv_index *index_data_build(const index_data *data, const index_params *params, uint64_t covered, uint64_t step);
void index_data_finish(kv_index *index, const index_params *params, const index_extent *extent); /* as a builder does */
/* The tokens that one test query finds; the caller frees what search->tokens is. */
index_search index_data_search(const kv_index *index, const index_params *params, const index_data *data,
                               const index_extent *extent, uint32_t test, uint32_t tokens_each);
void index_data_scores(const index_data *data, uint32_t test, uint64_t covered, float *scores);
/* The share of the best `best` tokens that are among the found ones. */
float index_data_recall(const index_data *data, uint32_t test, uint64_t covered, uint32_t best,
                        const index_search *search);

#endif
