/* sharded_merge.c - partial results of ranges become the output of their rows.
 *
 * A range is a node of the merge tree. Rows that lie before a range have no part of it, which is the same as an empty
 * one; so a span's rows are merged in pieces that have the same parts. */
#include <math.h>

#include "attention-node/sharded_state.h"

/* The parts of one lane and span stand in ascending position, because placements list ranges so and every node's spans
 * keep the order. */
static void add_part(sharded *s, shard_merge *merge, const shard_node *node, const shard_span *span) {
    uint32_t at = merge->first_part + merge->part_count++;
    while (at > merge->first_part && s->step.parts[at - 1].span->first_position > span->first_position) {
        s->step.parts[at] = s->step.parts[at - 1];
        at--;
    }
    s->step.parts[at] = (shard_part){.node = node, .span = span};
    s->step.part_count++;
}

static bool has_heads(const shard_node *node, placement_heads heads) {
    return node->heads.first == heads.first && node->heads.count == heads.count;
}

static void list_lane(sharded *s, placement_heads heads) {
    for (uint32_t span = 0; span < s->step.span_count; span++) {
        shard_merge *merge = &s->step.merges[s->step.merge_count];
        *merge = (shard_merge){.span = span, .first_part = s->step.part_count, .heads = heads};
        for (uint32_t i = 0; i < s->node_count; i++) {
            const shard_node *node = &s->nodes[i];
            if (!node->is_begun || !node->has_ranges || !has_heads(node, heads)) continue;
            for (uint32_t k = 0; k < node->span_count; k++) {
                const shard_span *part = &node->spans[k];
                if (part->span == span && part->is_range && !part->is_replica) add_part(s, merge, node, part);
            }
        }
        if (merge->part_count > 0) s->step.merge_count++;
    }
}

void sharded_list_merges(sharded *s) {
    s->step.merge_count = s->step.part_count = 0;
    for (uint32_t i = 0; i < s->node_count; i++) {
        const shard_node *node = &s->nodes[i];
        bool is_new = node->is_begun && node->has_ranges;
        for (uint32_t k = 0; k < i && is_new; k++)
            is_new = !(s->nodes[k].is_begun && s->nodes[k].has_ranges && has_heads(&s->nodes[k], node->heads));
        if (is_new) list_lane(s, node->heads);
    }
}

static kernel_partial partial_of(const shard_part *part, uint32_t head, uint32_t row, uint32_t group_size,
                                 uint32_t value_dim) {
    const attention_partial *p = &part->node->partial;
    uint64_t first =
        ((uint64_t)head * part->node->row_count + part->span->first_row + row - part->span->skipped) * group_size;
    return (kernel_partial){
        .out = p->out + first * value_dim, .out_stride = value_dim, .max = p->max + first, .sum = p->sum + first};
}

static void finish_rows(const sharded *s, const shard_merge *merge, uint32_t head, uint32_t first_row,
                        uint32_t row_count, const kernel_partial *partial) {
    const attention_layer_call *call = &s->step.call;
    const attention_layer *layer = &s->layers[call->layer];
    uint32_t group_size = layer->query_heads / s->kv_heads, value_dim = layer->value_dim;
    uint32_t query_head = (merge->heads.first + head) * group_size;
    const float *sinks = layer->sink_logits != NULL ? layer->sink_logits + query_head : NULL;
    for (uint32_t row = 0; row < row_count; row++) {
        kernel_partial rows = {.out = partial->out + (uint64_t)row * group_size * value_dim,
                               .out_stride = value_dim,
                               .max = partial->max + (uint64_t)row * group_size,
                               .sum = partial->sum + (uint64_t)row * group_size};
        uint64_t element = (uint64_t)(s->step.first_rows[merge->span] + first_row + row) * call->output_stride +
                           (uint64_t)query_head * value_dim;
        s->config.kernels->finish(
            &rows, group_size, value_dim, sinks, call->output.dtype,
            (unsigned char *)call->output.data + element * (hd_dtype_bits(call->output.dtype) / 8), value_dim, NULL);
    }
}

static uint32_t level_of(const shard_span *span) {
    return (uint32_t)__builtin_ctzll(span->size / HD_GROUP_TOKENS);
}

/* Rows [first, end) of the span, all of which have the first part_count parts. */
static void merge_rows(const sharded *s, const shard_merge *merge, uint32_t head, uint32_t part_count, uint32_t first,
                       uint32_t end) {
    const attention_layer *layer = &s->layers[s->step.call.layer];
    uint32_t group_size = layer->query_heads / s->kv_heads;
    merge_tree tree;
    merge_tree_init(&tree, s->config.kernels, (end - first) * group_size, layer->value_dim);
    for (uint32_t i = 0; i < part_count; i++) {
        const shard_part *part = &s->step.parts[merge->first_part + i];
        kernel_partial partial = partial_of(part, head, first, group_size, layer->value_dim);
        merge_tree_begin(&tree, level_of(part->span), part->span->first_position / part->span->size);
        merge_tree_push(&tree, &partial);
    }
    kernel_partial result;
    if (merge_tree_collapse(&tree, &result)) finish_rows(s, merge, head, first, end - first, &result);
}

static void merge_head(const sharded *s, const shard_merge *merge, uint32_t head) {
    uint32_t first = 0, count = s->step.counts[merge->span];
    for (uint32_t parts = 1; parts <= merge->part_count; parts++) {
        bool is_last = parts == merge->part_count;
        uint32_t end = is_last ? count : s->step.parts[merge->first_part + parts].span->skipped;
        if (end > first) merge_rows(s, merge, head, parts, first, end);
        if (end > first) first = end;
    }
}

static void run_merges(void *context, unsigned thread, unsigned thread_count) {
    sharded *s = context;
    size_t heads = s->kv_heads, count = s->step.merge_count * heads;
    for (size_t ticket; (ticket = hd_ticket_take(&s->step.ticket, count)) < count;) {
        const shard_merge *merge = &s->step.merges[ticket / heads];
        if (ticket % heads < merge->heads.count) merge_head(s, merge, (uint32_t)(ticket % heads));
    }
}

void sharded_merge(sharded *s) {
    atomic_store_explicit(&s->step.ticket, 0, memory_order_relaxed);
    hd_pool_run(s->config.pool, run_merges, s);
}
