/* attend_tree.h - partial results of attention folded into each other, in one arithmetic for every kernel. */
#ifndef KERNELS_CUDA_ATTEND_TREE_H
#define KERNELS_CUDA_ATTEND_TREE_H

#include "kernels/cuda/attend_arguments.h"
#include "kernels/cuda/simt.h"

/* What merging (into, from) multiplies each by. Never asked for a `from` that is empty. */
typedef struct attend_factors {
    float keep, add;
} attend_factors;

/* Merges the max and sum of one row. False, and nothing changed, when `from` is empty. */
SIMT_FUNCTION bool attend_merge_row(float *into_max, float *into_sum, float from_max, float from_sum,
                                    attend_factors *factors) {
    if (from_max == -simt_infinity()) return false;
    float max = simt_max(*into_max, from_max);
    factors->keep = simt_exp(simt_add(*into_max, -max));
    factors->add = simt_exp(simt_add(from_max, -max));
    *into_sum = simt_multiply_add(*into_sum, factors->keep, simt_multiply(from_sum, factors->add));
    *into_max = max;
    return true;
}

SIMT_FUNCTION float attend_merge_value(float into, float from, attend_factors factors) {
    return simt_multiply_add(into, factors.keep, simt_multiply(from, factors.add));
}

/* The walk of a node that has just been completed up its tree, of which nodes before `first` (at level 0) are not
 * there: while it is its parent's right child it goes up, merged with its left sibling if that waits there,
 * and then waits itself, at c.level. */
typedef struct attend_climb {
    uint64_t index;
    uint32_t level;
    bool has_left; /* at this level an earlier sibling waits */
} attend_climb;

SIMT_FUNCTION attend_climb attend_climb_begin(uint64_t index) {
    attend_climb c;
    c.index = index;
    c.level = 0;
    c.has_left = false;
    return c;
}

/* Whether the node goes up from c->level; has_left says if it takes the sibling there along. */
SIMT_FUNCTION bool attend_climb_is_right(attend_climb *c, uint64_t first) {
    c->has_left = (c->index << c->level) > first;
    return c->index % 2 == 1;
}

SIMT_FUNCTION void attend_climb_up(attend_climb *c) {
    c->index /= 2;
    c->level++;
}

#endif
