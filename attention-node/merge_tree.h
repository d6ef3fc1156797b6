/* merge_tree.h - partial results of attention, merged in one canonical order.
 *
 * The order is a binary tree over groups of HD_GROUP_BLOCKS blocks, by position: the leaf of group g covers the
 * positions 1024 g .. 1024 g + 1023, and node (level, index) covers the groups index << level .. ((index + 1) << level)
 * - 1. A node is the merge of its two children, or the only one of them that is there: a group that was not pushed
 * (nothing selected in it, outside every window, in the future) is empty, and merging with the empty partial changes no
 * bits. So whoever merges a subtree (a thread its range of groups, a shard its share of a context) gets the node that
 * anybody else would get, and the result depends on the leaves alone. Nodes are pushed in ascending order. What has
 * been pushed waits as the few roots that are not complete yet, as in a binary counter: memory grows with the logarithm
 * of the context.
 * Threads: one per tree. */
#ifndef ATTENTION_NODE_MERGE_TREE_H
#define ATTENTION_NODE_MERGE_TREE_H

#include "kernels/ops.h"

#define HD_GROUP_TOKENS (HD_GROUP_BLOCKS * HD_BLOCK_TOKENS)
#define MERGE_TREE_GROUPS_MAX ((uint64_t)1 << 40)
#define MERGE_TREE_ROOTS_MAX 42u

typedef struct merge_node {
    kernel_partial partial;
    uint32_t level;
    uint64_t index;
} merge_node;

typedef struct merge_tree {
    const kernel_ops *kernels;
    uint32_t row_count, value_dim;
    uint32_t root_count;
    merge_node roots[MERGE_TREE_ROOTS_MAX]; /* in ascending order, each of a lower level than the one before */
} merge_tree;

void merge_tree_init(merge_tree *tree, const kernel_ops *kernels, uint32_t row_count, uint32_t value_dim);

/* Says which node comes next, before it is computed, and completes what ends before it. Returns root_count: a caller
 * with memory for a few partials computes the node in the partial of that number, which no root occupies, and root i
 * always lies in partial i. */
uint32_t merge_tree_begin(merge_tree *tree, uint32_t level, uint64_t index);
/* The node that begin named. The partial's memory is the caller's and is written: merges go into the earlier of two. */
void merge_tree_push(merge_tree *tree, const kernel_partial *partial);

/* Merges the roots into one, which lies where the first of them lay. False when nothing was pushed. */
bool merge_tree_collapse(merge_tree *tree, kernel_partial *result);

/* How many partials a caller needs who pushes at most `groups` consecutive leaves. */
uint32_t merge_tree_partials_max(uint64_t groups);

#endif
