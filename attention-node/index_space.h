/* index_space.h - the space in which keys that queries treat alike lie close together.
 *
 * A key's coordinates are x = T (k - mean), a query's are z = U q, with x . z = (k - mean) . q. T is chosen so that
 * queries have unit second moment in every coordinate and none is correlated with another, and neither are those of
 * the keys: with covariance S = L L^T of keys and second moment of queries Q, the rotation of L^T Q L's eigenvectors.
 * So plain distance between keys' coordinates is the mean squared difference of their scores, the coordinates come in
 * the order in which they matter, and the first few hold most of a score. That is what makes one clustering serve keys
 * with a large shared mean and keys without one: a direction that no query looks along does not count.
 * Threads: pure functions on the caller's memory. */
#ifndef ATTENTION_NODE_INDEX_SPACE_H
#define ATTENTION_NODE_INDEX_SPACE_H

#include <stddef.h>
#include <stdint.h>

typedef struct index_space {
    uint32_t key_dim, dim; /* dim coordinates, the most important first; dim <= key_dim */
    float *to_keys;        /* T [dim, key_dim] */
    float *to_queries;     /* U [dim, key_dim] */
    float *mean;           /* [key_dim] */
    float *variances;      /* [dim]: of the keys' coordinates, descending */
} index_space;

size_t index_space_bytes(uint32_t key_dim); /* of the scratch of index_space_fit */
/* From rows of bf16: keys [key_count >= 1] and queries [query_count]; without queries, every direction counts alike.
 * The arrays of `space` are the caller's. */
void index_space_fit(index_space *space, const uint16_t *keys, uint32_t key_count, const uint16_t *queries,
                     uint32_t query_count, float *scratch);

#endif
