/* sharded_stage.c - prompts whose keys and values are kept here as well while they are prefilled.
 *
 * A staged row has this process's own engine in front of its nodes, so that answers for it and its nodes only store,
 * which is what a replica does: each chunk is written through as it is made, and what is merged, in which order, stays
 * as it is. Rows that nodes have something of already are answered there, and so is what there was no room for. When
 * the prompt is there, the engine lets go of it, and nothing has to be moved. */
#include <assert.h>

#include "attention-node/selection.h"
#include "attention-node/sharded_sequences.h"

static uint64_t threads_of(const shard_node *node) {
    attention_stats stats;
    node->attention->ops->stats(node->attention, &stats);
    return stats.compute_threads;
}

/* Nodes with the same kernels are as fast as their threads; those that do not say how many they have stay in charge. */
static bool is_faster_here(const sharded *s, const shard_sequence *sequence, const shard_node *stage) {
    uint64_t theirs = 0;
    for (uint32_t i = 0; i < s->node_count; i++) {
        const shard_node *node = &s->nodes[i];
        bool is_asked = false;
        for (uint32_t k = 0; k < sequence->map.row_count; k++)
            is_asked = is_asked || placement_row_has(&sequence->map.rows[k], i);
        if (!is_asked || node->is_stage || node->is_lost) continue;
        uint64_t threads = threads_of(node);
        if (threads == 0) return false;
        theirs += threads;
    }
    return threads_of(stage) > theirs;
}

static uint32_t stage_of(const sharded *s, placement_heads heads) {
    for (uint32_t i = 0; i < s->node_count; i++) {
        const shard_node *node = &s->nodes[i];
        bool is_same = node->heads.first == heads.first && node->heads.count == heads.count;
        if (node->attention != NULL && node->is_stage && is_same) return i;
    }
    return UINT32_MAX;
}

static hd_status open_here(shard_node *stage, const placement_row *row, const attention_sequence_params *params) {
    attention_sequence_params part = {.sequence = shard_name(params->sequence, row),
                                      .epoch = params->epoch,
                                      .tokens_max = params->token_count,
                                      .prompt_count = params->token_count,
                                      .variant = params->variant,
                                      .first_position = row->first_position,
                                      .end_position = row->end_position};
    uint64_t cached;
    hd_error error;
    return stage->attention->ops->sequence_open(stage->attention, &part, &cached, &error);
}

void sharded_stage(sharded *s, shard_sequence *sequence, const attention_sequence_params *params,
                   uint64_t cached_tokens) {
    uint32_t shares[PLACEMENT_NODES_MAX] = {0};
    selection chosen;
    /* Other selections learn from the prompt's queries, which nodes do not see of what is answered here. */
    if (selection_parse(params->selection, &chosen, NULL) != HD_OK || !selection_is_full(&chosen)) return;
    if (cached_tokens + 1 >= params->token_count) return;
    for (uint32_t i = 0; i < sequence->map.row_count; i++) {
        placement_row *row = &sequence->map.rows[i];
        uint32_t index = stage_of(s, row->heads);
        bool is_new = cached_tokens <= row->first_position && row->first_position < params->token_count;
        if (index == UINT32_MAX || !is_new || row->node_count == PLACEMENT_REPLICAS_MAX ||
            shares[index] == PLACEMENT_SHARE_MAX)
            continue;
        if (s->config.stage_where_faster && !is_faster_here(s, sequence, &s->nodes[index])) return;
        if (open_here(&s->nodes[index], row, params) != HD_OK) continue;
        for (uint32_t k = row->node_count++; k > 0; k--) row->nodes[k] = row->nodes[k - 1];
        row->nodes[0] = index;
        shares[index]++;
        sequence->map.version++;
        sequence->staged_end = params->token_count;
    }
}

void sharded_unstage(sharded *s, shard_sequence *sequence) {
    if (sequence->staged_end == 0) return;
    sequence->staged_end = 0;
    for (uint32_t i = 0; i < sequence->map.row_count; i++) {
        placement_row *row = &sequence->map.rows[i];
        if (row->node_count == 0 || !s->nodes[row->nodes[0]].is_stage) continue;
        attention *stage = s->nodes[row->nodes[0]].attention;
        /* Nobody else has it here, so no epoch is older than ours. */
        (void)stage->ops->sequence_close(stage, shard_name(sequence->name, row), UINT64_MAX, false, true);
        for (uint32_t k = 1; k < row->node_count; k++) row->nodes[k - 1] = row->nodes[k];
        row->node_count--;
        sequence->map.version++;
        if (row->node_count == 0) sequence->is_broken = true;
    }
}

bool sharded_has_nodes(const sharded *s, const placement *map) {
    for (uint32_t i = 0; i < map->row_count; i++) {
        const placement_row *row = &map->rows[i];
        if (row->node_count == 0 || (row->node_count == 1 && s->nodes[row->nodes[0]].is_stage)) return false;
    }
    return true;
}

void sharded_unstage_done(sharded *s) {
    for (uint32_t i = 0; i < s->step.span_count; i++) {
        if (s->step.staged[i] == NULL || s->step.lost[i] != HD_OK) continue;
        sharded_unstage(s->home, s->step.staged[i]);
    }
}
