/* merge_tree.c - a binary counter whose digits know their place.
 *
 * Of two roots that follow each other, the later one lies under the earlier one's right sibling: the earlier one has
 * been raised as long as its parent ended before the later one began. So levels fall strictly, and two roots meet when
 * the later one has reached the earlier one's level. */
#include "attention-node/merge_tree.h"

#include <assert.h>

void merge_tree_init(merge_tree *tree, const kernel_ops *kernels, uint32_t row_count, uint32_t value_dim) {
    tree->kernels = kernels;
    tree->row_count = row_count;
    tree->value_dim = value_dim;
    tree->root_count = 0;
}

/* Merges the last two roots while they are siblings. */
static void join_siblings(merge_tree *tree) {
    while (tree->root_count > 1) {
        merge_node *left = &tree->roots[tree->root_count - 2], *right = left + 1;
        if (left->level != right->level) return;
        assert(left->index % 2 == 0 && left->index + 1 == right->index);
        tree->kernels->merge(&left->partial, &right->partial, tree->row_count, tree->value_dim);
        left->level++;
        left->index /= 2;
        tree->root_count--;
    }
}

uint32_t merge_tree_begin(merge_tree *tree, uint32_t level, uint64_t index) {
    uint64_t first = index << level;
    assert(first < MERGE_TREE_GROUPS_MAX);
    while (tree->root_count > 0) {
        merge_node *last = &tree->roots[tree->root_count - 1];
        assert((last->index + 1) << last->level <= first);
        uint64_t parent_end = (last->index / 2 + 1) << (last->level + 1);
        if (parent_end > first) break;
        last->level++;
        last->index /= 2;
        join_siblings(tree);
    }
    assert(tree->root_count < MERGE_TREE_ROOTS_MAX);
    tree->roots[tree->root_count] = (merge_node){.level = level, .index = index};
    return tree->root_count;
}

void merge_tree_push(merge_tree *tree, const kernel_partial *partial) {
    tree->roots[tree->root_count++].partial = *partial;
    join_siblings(tree);
}

bool merge_tree_collapse(merge_tree *tree, kernel_partial *result) {
    if (tree->root_count == 0) return false;
    for (; tree->root_count > 1; tree->root_count--) {
        merge_node *last = &tree->roots[tree->root_count - 1];
        tree->kernels->merge(&(last - 1)->partial, &last->partial, tree->row_count, tree->value_dim);
    }
    *result = tree->roots[0].partial;
    return true;
}

uint32_t merge_tree_partials_max(uint64_t groups) {
    uint32_t bits = 0;
    while (groups >> bits > 1) bits++;
    return bits +
           3; /* the roots of so many leaves, one more where they begin inside a node, and the one that is computed */
}
