/* attend_finish.h - the nodes of each tile merged in the order of the tree, divided, and written as the layer's output.
 *
 * A block does one row of one head. Its warps take a subtree each, side by side; the first warp then merges their
 * roots. */
#ifndef KERNELS_CUDA_ATTEND_FINISH_H
#define KERNELS_CUDA_ATTEND_FINISH_H

#include "kernels/cuda/attend_tree.h"

#define ATTEND_FINISH_COLUMNS 8u /* of a lane: dim / 32, at most 256 / 32 */

typedef struct attend_row { /* a lane's columns lane, lane + 32, ... of one row's node */
    float out[ATTEND_FINISH_COLUMNS];
    float max, sum;
} attend_row;

/* Merges nodes pushed in ascending order; what waits lies in shared memory, [level][dim + 2]. */
typedef struct attend_row_tree {
    float *waiting;
    uint32_t dim;
    uint64_t first;
} attend_row_tree;

SIMT_FUNCTION void attend_row_put(const attend_row_tree *t, uint32_t level, const attend_row *row) {
    float *to = t->waiting + level * (t->dim + 2);
    SIMT_UNROLL
    for (uint32_t c = 0; c < ATTEND_FINISH_COLUMNS; c++) {
        uint32_t column = simt_lane() + c * SIMT_WARP;
        /* Every subtree that a warp takes has a node, which was read whole. */
        if (column < t->dim) to[column] = row->out[c]; // NOLINT(clang-analyzer-core.uninitialized.Assign)
    }
    simt_sync_warp();
    if (simt_lane() == 0) {
        to[t->dim] = row->max;
        to[t->dim + 1] = row->sum;
    }
    simt_sync_warp();
}

SIMT_FUNCTION attend_row attend_row_get(const float *from, uint32_t dim) {
    attend_row row;
    SIMT_UNROLL
    for (uint32_t c = 0; c < ATTEND_FINISH_COLUMNS; c++) {
        uint32_t column = simt_lane() + c * SIMT_WARP;
        row.out[c] = column < dim ? from[column] : 0.0f;
    }
    row.max = from[dim];
    row.sum = from[dim + 1];
    return row;
}

SIMT_FUNCTION void attend_row_join(attend_row *row, const attend_row *earlier) {
    float max = earlier->max, sum = earlier->sum;
    attend_factors f;
    bool is_joined = attend_merge_row(&max, &sum, row->max, row->sum, &f);
    SIMT_UNROLL
    for (uint32_t c = 0; c < ATTEND_FINISH_COLUMNS; c++)
        row->out[c] = is_joined ? attend_merge_value(earlier->out[c], row->out[c], f) : earlier->out[c];
    row->max = max;
    row->sum = sum;
}

/* Pushes node `index`; the last one takes along what waits and is the root. */
SIMT_FUNCTION void attend_row_push(const attend_row_tree *t, uint64_t index, bool is_last, attend_row *row) {
    attend_climb climb = attend_climb_begin(index);
    while (attend_climb_is_right(&climb, t->first) || (is_last && climb.has_left)) {
        if (climb.index % 2 == 1 && climb.has_left) {
            attend_row earlier = attend_row_get(t->waiting + climb.level * (t->dim + 2), t->dim);
            attend_row_join(row, &earlier);
        }
        attend_climb_up(&climb);
    }
    if (!is_last) attend_row_put(t, climb.level, row);
}

SIMT_FUNCTION const attend_tile *attend_result_tile(const attend_finish_arguments *a, uint32_t result) {
    uint32_t low = 0, high = a->counts->tile_count;
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (a->tiles[middle].result_first <= result) low = middle;
        else high = middle;
    }
    return &a->tiles[low];
}

SIMT_FUNCTION attend_row attend_read_node(const attend_finish_arguments *a, uint64_t partial_row) {
    const float *from = a->partials.out + partial_row * a->dim;
    attend_row row;
    SIMT_UNROLL
    for (uint32_t c = 0; c < ATTEND_FINISH_COLUMNS; c++) {
        uint32_t column = simt_lane() + c * SIMT_WARP;
        row.out[c] = column < a->dim ? from[column] : 0.0f;
    }
    row.max = a->partials.max[partial_row];
    row.sum = a->partials.sum[partial_row];
    return row;
}

SIMT_FUNCTION void attend_write_result(const attend_finish_arguments *a, const attend_tile *tile, uint32_t head,
                                       uint32_t tile_row, const attend_row *row) {
    uint32_t kernel_row = tile->first_row + tile_row;
    uint32_t step_row = kernel_row / a->group_size, query_head = head * a->group_size + kernel_row % a->group_size;
    float top = row->max, sum = row->sum, factor = 0.0f;
    if (top != -simt_infinity()) {
        if (a->sink_logits != NULL) {
            float sink = a->sink_logits[query_head];
            top = simt_max(row->max, sink);
            float keep = simt_exp(simt_add(row->max, -top));
            sum = simt_multiply_add(sum, keep, simt_exp(simt_add(sink, -top)));
            factor = keep / sum;
        } else {
            factor = 1.0f / sum;
        }
        top = simt_add(top, simt_log(sum));
    }
    uint16_t *output = a->output + step_row * a->output_stride + (uint64_t)query_head * a->dim;
    SIMT_UNROLL
    for (uint32_t c = 0; c < ATTEND_FINISH_COLUMNS; c++) {
        uint32_t column = simt_lane() + c * SIMT_WARP;
        if (column < a->dim) output[column] = simt_to_bf16(simt_multiply(row->out[c], factor));
    }
    if (a->lse != NULL && simt_lane() == 0) a->lse[(uint64_t)step_row * a->query_heads + query_head] = top;
}

/* Shared memory: [warp][ATTEND_STACK_LEVELS][dim + 2], and the roots of the warps [warp][dim + 2]. */
SIMT_FUNCTION void attend_finish(const attend_finish_arguments *a) {
    uint32_t warp = simt_warp(), record = a->dim + 2;
    float *stacks = (float *)simt_shared(), *roots = stacks + ATTEND_FINISH_WARPS * ATTEND_STACK_LEVELS * record;
    attend_row_tree tree;
    tree.waiting = stacks + warp * ATTEND_STACK_LEVELS * record;
    tree.dim = a->dim;
    SIMT_KEEP_LOOP
    for (uint32_t result = simt_block(); result < a->counts->result_count; result += simt_block_count()) {
        const attend_tile *tile = attend_result_tile(a, result);
        uint32_t tile_row = (result - tile->result_first) % tile->row_count;
        uint32_t head_index = (result - tile->result_first) / tile->row_count;
        uint64_t node_end = tile->node_first + tile->node_count;
        uint32_t level = 0; /* of the subtrees that the warps take */
        while (((node_end - 1) >> level) - (tile->node_first >> level) + 1 > ATTEND_FINISH_WARPS) level++;
        uint64_t subtree = (tile->node_first >> level) + warp;
        uint64_t first = subtree << level, end = (subtree + 1) << level;
        if (first < tile->node_first) first = tile->node_first;
        if (end > node_end) end = node_end;
        uint32_t subtrees = (uint32_t)(((node_end - 1) >> level) - (tile->node_first >> level)) + 1;
        if (warp < subtrees) {
            attend_row row;
            tree.first = first;
            for (uint64_t node = first; node < end; node++) {
                uint64_t index = (uint64_t)head_index * tile->node_count + (node - tile->node_first);
                row = attend_read_node(a, (uint64_t)tile->partial_row + index * tile->row_count + tile_row);
                attend_row_push(&tree, node, node + 1 == end, &row);
            }
            attend_row_tree root;
            root.waiting = roots + warp * record;
            root.dim = a->dim;
            attend_row_put(&root, 0, &row);
        }
        simt_sync();
        if (warp == 0) {
            attend_row row;
            tree.first = tile->node_first >> level;
            for (uint32_t i = 0; i < subtrees; i++) {
                row = attend_row_get(roots + i * record, a->dim);
                attend_row_push(&tree, tree.first + i, i + 1 == subtrees, &row);
            }
            attend_write_result(a, tile, tile->head_first + head_index, tile_row, &row);
        }
        simt_sync();
    }
}

#endif
