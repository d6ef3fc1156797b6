/* index_centres.h - the centres of a segment's clusters as it keeps them: a byte for each of the first coordinates.
 *
 * Coordinates come in the order in which they matter (index_space.h), so those beyond the first count as 0. A query is
 * scored against all centres by products of small integers.
 * Threads: pure functions on the caller's memory. */
#ifndef ATTENTION_NODE_INDEX_CENTRES_H
#define ATTENTION_NODE_INDEX_CENTRES_H

#include "attention-node/index_kind.h"

enum { INDEX_CENTRES_DIM = 32 }; /* coordinates of a centre, at most */

typedef struct index_centres {
    kernel_matrix matrix; /* int8, a column each */
    uint32_t dim, count;
} index_centres;

/* Takes what `count` centres of points with so many coordinates need; a segment's memory begins as zeros. */
void index_centres_lay_out(index_centres *self, uint32_t count, uint32_t point_dim, index_carve *carve);
/* From rows of [count, point_dim], which become what a search will see of them. */
void index_centres_set(index_centres *self, float *rows, uint32_t point_dim);
/* scores[i] = z . centre i + offset, [count] */
void index_centres_score(const index_centres *self, const kernel_scan *scan, const float *z, float offset,
                         float *scores);
/* What a search of all of them reads. */
static inline size_t index_centres_bytes(const index_centres *self) {
    return (size_t)self->count * (self->dim + sizeof(float));
}

#endif
