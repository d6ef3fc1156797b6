/* sharded_open.c - where a sequence goes: what was found of it, the prefix that nodes have, room for the rest. */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "attention-node/prefix_hash.h"
#include "attention-node/sharded_sequences.h"

static uint64_t least(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

static uint64_t above(uint64_t value, uint64_t from, uint64_t most) {
    return value > from ? least(value - from, most) : 0;
}

/* ---- Rows as nodes know them ---- */

/* What of the prompt a row's nodes get; the hash goes on from row to row of a lane. */
static attention_sequence_params params_of(const attention_sequence_params *params, const placement_row *row,
                                           prefix_hash *before) {
    attention_sequence_params part = *params;
    part.sequence = shard_name(params->sequence, row);
    if (placement_row_is_whole(row)) return part;
    uint64_t first = row->first_position, size = row->end_position - first;
    uint64_t reuse_max = params->token_count > 0 ? least(params->reuse_max, params->token_count - 1) : 0;
    part.first_position = first;
    part.end_position = row->end_position;
    part.token_ids = params->token_ids + least(first, params->token_count);
    part.token_count = above(params->token_count, first, size);
    part.reuse_max = above(reuse_max, first, size);
    part.prompt_count = 0;
    part.has_prefix = params->token_count >= first;
    if (!part.has_prefix) return part;
    if (before->token_count > first) prefix_hash_init(before); /* another lane begins */
    prefix_hash_add(before, params->token_ids + before->token_count, first - before->token_count);
    prefix_hash_read(before, part.prefix);
    return part;
}

/* ---- Requests for places ---- */

typedef struct {
    placement_node nodes[PLACEMENT_NODES_MAX];
    placement_request request;
    placement_heads lanes[PLACEMENT_NODES_MAX];
    uint32_t lane_count;
} search;

static hd_status start_search(const sharded *s, uint64_t tokens_max, bool is_whole_only, search *out, hd_error *error) {
    for (uint32_t i = 0; i < s->node_count; i++) {
        const shard_node *node = &s->nodes[i];
        out->nodes[i] = (placement_node){.heads = node->heads};
        if (node->attention == NULL || node->is_lost || node->is_stage) continue;
        attention_stats stats;
        node->attention->ops->stats(node->attention, &stats);
        uint64_t taken = stats.blocks_sequences + stats.blocks_reserved;
        out->nodes[i].is_usable = !node->is_draining;
        out->nodes[i].total_tokens = stats.blocks_total * HD_BLOCK_TOKENS;
        out->nodes[i].free_tokens = (stats.blocks_total - least(taken, stats.blocks_total)) * HD_BLOCK_TOKENS;
    }
    out->request = (placement_request){.nodes = out->nodes,
                                       .node_count = s->node_count,
                                       .kv_heads = s->kv_heads,
                                       .tokens_max = tokens_max,
                                       .range_min = s->config.range_min,
                                       .replicas = s->config.replicas,
                                       .is_whole_only = is_whole_only};
    return placement_lanes(&out->request, out->lanes, &out->lane_count, error);
}

/* ---- What is open somewhere already ---- */

static bool has_heads(const shard_node *node, placement_heads heads) {
    return node->heads.first == heads.first && node->heads.count == heads.count;
}

static void find_open(sharded *s, shard_sequence *sequence) {
    attention_found found[PLACEMENT_ROWS_MAX];
    for (uint32_t i = 0; i < s->node_count; i++) {
        shard_node *node = &s->nodes[i];
        if (node->attention == NULL || node->is_lost || node->is_stage) continue;
        uint32_t count = 0;
        hd_status status = node->attention->ops->sequence_find(node->attention, sharded_name(sequence->name, 0), found,
                                                               PLACEMENT_ROWS_MAX, &count);
        if (status == HD_PEER_LOST) sharded_lose(s, i, status);
        for (uint32_t k = 0; k < count && status == HD_OK; k++) {
            placement_row row = {.first_position = found[k].first_position,
                                 .end_position = found[k].end_position,
                                 .heads = node->heads,
                                 .node_count = 1,
                                 .nodes = {i},
                                 .ordinal = (uint32_t)(found[k].name >> ATTENTION_NAME_BITS)};
            if (!placement_put(&sequence->map, &row))
                (void)node->attention->ops->sequence_close(node->attention, found[k].name, found[k].epoch, true, true);
        }
    }
}

/* Rows that nobody has, and what lay behind them, are closed; their blocks stay as prefix cache. So are those that a
 * smaller tokens_max does not reach. */
static void drop_rest(sharded *s, shard_sequence *sequence, uint64_t epoch, uint64_t tokens_max) {
    uint32_t position = 0;
    for (uint32_t i = 0; i < sequence->map.row_count;) {
        const placement_row row = sequence->map.rows[i];
        position =
            i > 0 && memcmp(&sequence->map.rows[i - 1].heads, &row.heads, sizeof(row.heads)) == 0 ? position + 1 : 0;
        bool is_needed = row.first_position == 0 || row.first_position < tokens_max;
        if (position < placement_whole_rows(&sequence->map, row.heads) && is_needed) {
            i++;
            continue;
        }
        for (uint32_t k = 0; k < row.node_count; k++) {
            attention *node = s->nodes[row.nodes[k]].attention;
            (void)node->ops->sequence_close(node, shard_name(sequence->name, &row), epoch, true, true);
        }
        placement_remove_row(&sequence->map, i);
        position--;
    }
}

/* ---- Prefixes ---- */

typedef struct {
    uint32_t nodes[PLACEMENT_NODES_MAX]; /* that have most of it */
    uint32_t node_count;
    uint64_t tokens;
} prefix_holders;

static void ask_for_prefix(sharded *s, placement_heads lane, const attention_sequence_params *part,
                           prefix_holders *holders) {
    *holders = (prefix_holders){.tokens = 0};
    for (uint32_t i = 0; i < s->node_count; i++) {
        shard_node *node = &s->nodes[i];
        if (node->attention == NULL || node->is_lost || node->is_draining || node->is_stage || !has_heads(node, lane))
            continue;
        uint64_t tokens = 0;
        hd_status status = node->attention->ops->prefix_find(node->attention, part, &tokens);
        if (status == HD_PEER_LOST) sharded_lose(s, i, status);
        if (status != HD_OK || tokens < holders->tokens || tokens == 0) continue;
        if (tokens > holders->tokens) holders->node_count = 0;
        holders->tokens = tokens;
        holders->nodes[holders->node_count++] = i;
    }
}

/* The chain of blocks that begins where the lane ends, on whichever nodes have most of it, and the one after it. */
static void inherit_lane(sharded *s, placement *map, const search *where, placement_heads lane,
                         const attention_sequence_params *params) {
    uint64_t reuse_max = params->token_count > 0 ? least(params->reuse_max, params->token_count - 1) : 0, first;
    prefix_hash before;
    prefix_hash_init(&before);
    while ((first = placement_lane_end(map, lane)) < reuse_max) {
        placement_row rest = {.first_position = first, .end_position = first + MERGE_TREE_GROUPS_MAX};
        attention_sequence_params part = params_of(params, &rest, &before);
        prefix_holders holders;
        ask_for_prefix(s, lane, &part, &holders);
        if (holders.tokens == 0) return;
        if (!placement_inherit(map, &where->request, lane, holders.nodes, holders.node_count, holders.tokens)) return;
        if (placement_lane_end(map, lane) > first + holders.tokens) return; /* it ends inside that row */
    }
}

hd_status sharded_prefix_find(attention *self, const attention_sequence_params *params, uint64_t *cached_tokens) {
    sharded *s = sharded_home(self);
    search where;
    *cached_tokens = 0;
    hd_status status = start_search(s, params->token_count, false, &where, NULL);
    uint64_t found = UINT64_MAX;
    for (uint32_t i = 0; i < where.lane_count && status == HD_OK; i++) {
        prefix_holders holders;
        ask_for_prefix(s, where.lanes[i], params, &holders);
        found = least(found, holders.tokens);
    }
    if (status == HD_OK) *cached_tokens = found;
    return status;
}

/* ---- Opening ---- */

/* How many of the prompt's leading tokens every lane has on all of its nodes. */
static hd_status open_rows(sharded *s, shard_sequence *sequence, const attention_sequence_params *params,
                           uint64_t *cached_tokens, hd_error *error) {
    prefix_hash before;
    prefix_hash_init(&before);
    uint64_t cached_all = params->token_count, lane_end = 0;
    bool is_going_on = true;
    for (uint32_t i = 0; i < sequence->map.row_count; i++) {
        const placement_row row = sequence->map.rows[i];
        if (row.first_position == 0) {
            if (i > 0) cached_all = least(cached_all, lane_end);
            is_going_on = true;
            lane_end = 0;
        }
        attention_sequence_params part = params_of(params, &row, &before);
        uint64_t row_cached = UINT64_MAX;
        for (uint32_t k = 0; k < row.node_count; k++) {
            attention *node = s->nodes[row.nodes[k]].attention;
            uint64_t cached = 0;
            hd_status status = node->ops->sequence_open(node, &part, &cached, error);
            if (status == HD_PEER_LOST) sharded_lose(s, row.nodes[k], status);
            if (status != HD_OK) return status;
            row_cached = least(row_cached, cached);
        }
        if (is_going_on) lane_end = row.first_position + row_cached;
        is_going_on = is_going_on && lane_end == row.end_position;
    }
    cached_all = least(cached_all, lane_end);
    *cached_tokens = params->token_count > 0 ? least(cached_all, params->token_count - 1) : 0;
    return HD_OK;
}

static bool has_row(const placement *map, const placement_row *row) {
    for (uint32_t i = 0; i < map->row_count; i++) {
        if (map->rows[i].ordinal == row->ordinal && map->rows[i].heads.first == row->heads.first) return true;
    }
    return false;
}

/* Back to the rows that were there before. */
static void undo(sharded *s, shard_sequence *sequence, const placement *base, uint64_t epoch) {
    for (uint32_t i = 0; i < sequence->map.row_count; i++) {
        const placement_row *row = &sequence->map.rows[i];
        for (uint32_t k = 0; k < row->node_count && !has_row(base, row); k++) {
            const shard_node *node = &s->nodes[row->nodes[k]];
            if (node->is_lost) continue;
            (void)node->attention->ops->sequence_close(node->attention, shard_name(sequence->name, row), epoch, true,
                                                       true);
        }
    }
    sequence->map = *base;
}

/* What searches, or sees a window, is not split by positions: a range's part of it would not be a function of the
 * request alone. */
static hd_status explain_whole(const sharded *s, const attention_sequence_params *params, hd_error *error) {
    attention_stats stats;
    s->base.ops->stats(&s->base, &stats);
    uint64_t holds = stats.blocks_whole * HD_BLOCK_TOKENS;
    if (params->tokens_max <= holds) return HD_INVALID; /* an attention node has said why */
    return hd_error_set(error, HD_INVALID,
                        "selection '%s' keeps a request's keys and values of a KV head on one attention node, and "
                        "%llu tokens never fit, since the largest holds %llu: ask with selection full, which is split "
                        "by positions, split the KV heads further by --kv-lanes, or give attention nodes more memory",
                        params->selection, (unsigned long long)params->tokens_max, (unsigned long long)holds);
}

/* Beside what is there: first with as much of the prefix as nodes have, then, where these have no room, without. */
static hd_status place_and_open(sharded *s, shard_sequence *sequence, const attention_sequence_params *params,
                                bool is_whole_only, uint64_t *cached_tokens, hd_error *error) {
    const placement base = sequence->map;
    search where;
    hd_status status = start_search(s, params->tokens_max, is_whole_only, &where, error);
    if (status != HD_OK) return status;
    for (uint32_t i = 0; i < where.lane_count; i++) inherit_lane(s, &sequence->map, &where, where.lanes[i], params);
    for (bool has_inherited = sequence->map.row_count > base.row_count;; has_inherited = false) {
        status = placement_place(&sequence->map, &where.request, error);
        if (status == HD_OK) status = open_rows(s, sequence, params, cached_tokens, error);
        if (status == HD_OK) return HD_OK;
        undo(s, sequence, &base, params->epoch);
        if (has_inherited && (status == HD_FULL || status == HD_INVALID)) continue;
        return status == HD_INVALID && is_whole_only ? explain_whole(s, params, error) : status;
    }
}

static hd_status check_params(const attention_sequence_params *params, bool *is_whole_only, hd_error *error) {
    selection chosen;
    hd_status status = selection_parse(params->selection, &chosen, error);
    if (status != HD_OK) return status;
    *is_whole_only = !selection_is_full(&chosen);
    if (params->token_count > params->tokens_max || params->end_position != 0) {
        return hd_error_set(error, HD_INVALID, "%llu tokens of prompt, but %llu at most",
                            (unsigned long long)params->token_count, (unsigned long long)params->tokens_max);
    }
    return HD_OK;
}

static shard_sequence *take_slot(sharded *s, uint64_t name, hd_error *error) {
    shard_sequence *sequence = sharded_take(s, name);
    if (sequence == NULL) hd_error_write(error, "all %u sequences are open", s->config.sequences_max);
    return sequence;
}

hd_status sharded_sequence_open(attention *self, const attention_sequence_params *params, uint64_t *cached_tokens,
                                hd_error *error) {
    sharded *s = sharded_home(self);
    assert(!s->step.is_open);
    if (s->config.tend != NULL) s->config.tend(s->config.tend_context, self);
    sharded_tend_handovers(s);
    bool is_whole_only = false;
    hd_status status = check_params(params, &is_whole_only, error);
    if (status != HD_OK) return status;
    shard_sequence *sequence = sharded_find(s, params->sequence);
    bool is_new = sequence == NULL;
    if (!is_new && params->epoch <= sequence->epoch) {
        return hd_error_set(error, HD_STALE, "sequence %llu is open under epoch %llu",
                            (unsigned long long)params->sequence, (unsigned long long)sequence->epoch);
    }
    if (is_new && (sequence = take_slot(s, params->sequence, error)) == NULL) return HD_FULL;
    if (is_new) find_open(s, sequence);
    sharded_stop_handovers(s, params->sequence);
    sharded_unstage(s, sequence);
    drop_rest(s, sequence, params->epoch, params->tokens_max);
    status = place_and_open(s, sequence, params, is_whole_only, cached_tokens, error);
    if (status != HD_OK) {
        if (is_new) sharded_give(s, sequence);
        else sequence->is_broken = true;
        return status;
    }
    sequence->epoch = params->epoch;
    sequence->tokens_max = params->tokens_max;
    sequence->variant = params->variant;
    sequence->prompt_count = params->prompt_count == 0 ? params->token_count : params->prompt_count;
    sequence->has_selection = params->selection != NULL;
    sequence->move_ns = 0;
    snprintf(sequence->selection, sizeof(sequence->selection), "%s",
             params->selection != NULL ? params->selection : "");
    sequence->is_broken = false;
    memcpy(sequence->salt, params->salt, sizeof(sequence->salt));
    sharded_stage(s, sequence, params, *cached_tokens);
    return HD_OK;
}

/* ---- Forking ---- */

/* A range that holds nothing yet. What it will be found by is not known, so it is nobody's prefix. */
static hd_status open_empty(shard_node *node, const placement_row *row, const shard_sequence *sequence, uint64_t epoch,
                            uint64_t tokens_max, hd_error *error) {
    attention_sequence_params params = {.sequence = shard_name(sequence->name, row),
                                        .epoch = epoch,
                                        .tokens_max = tokens_max,
                                        .variant = sequence->variant,
                                        .first_position = row->first_position,
                                        .end_position = row->end_position};
    memcpy(params.salt, sequence->salt, sizeof(params.salt));
    uint64_t cached = 0;
    return node->attention->ops->sequence_open(node->attention, &params, &cached, error);
}

static hd_status fork_rows(sharded *s, const shard_sequence *source, uint64_t length, shard_sequence *sequence,
                           uint64_t epoch, uint64_t tokens_max, hd_error *error) {
    hd_status status = HD_OK;
    for (uint32_t i = 0; i < sequence->map.row_count; i++) {
        const placement_row row = sequence->map.rows[i];
        bool has_tokens = row.first_position == 0 || row.first_position < length;
        for (uint32_t k = 0; k < row.node_count && status == HD_OK; k++) {
            shard_node *node = &s->nodes[row.nodes[k]];
            if (has_tokens) {
                status = node->attention->ops->fork(node->attention, shard_name(source->name, &row), length,
                                                    shard_name(sequence->name, &row), epoch, tokens_max, error);
            } else {
                status = open_empty(node, &row, sequence, epoch, tokens_max, error);
            }
            if (status == HD_PEER_LOST) sharded_lose(s, row.nodes[k], status);
        }
    }
    return status;
}

hd_status sharded_fork(attention *self, uint64_t source_name, uint64_t length, uint64_t name, uint64_t epoch,
                       uint64_t tokens_max, hd_error *error) {
    sharded *s = sharded_home(self);
    assert(!s->step.is_open);
    shard_sequence *source = sharded_find(s, source_name);
    uint64_t there = 0;
    if (source == NULL) return hd_error_set(error, HD_NOT_FOUND, "no sequence %llu", (unsigned long long)source_name);
    hd_status status = self->ops->sequence_length(self, source_name, &there);
    if (status != HD_OK) return status;
    if (length > there || length > tokens_max) {
        return hd_error_set(error, HD_INVALID,
                            "cannot fork %llu tokens of sequence %llu, which has %llu, to at most %llu",
                            (unsigned long long)length, (unsigned long long)source_name, (unsigned long long)there,
                            (unsigned long long)tokens_max);
    }
    if (sharded_find(s, name) != NULL)
        return hd_error_set(error, HD_INVALID, "sequence %llu is open already", (unsigned long long)name);
    shard_sequence *sequence = take_slot(s, name, error);
    if (sequence == NULL) return HD_FULL;
    sharded_unstage(s, source);
    *sequence = *source;
    sequence->name = name;
    sequence->epoch = epoch;
    sequence->tokens_max = tokens_max;
    placement_cut(&sequence->map, tokens_max);
    search where;
    status = start_search(s, tokens_max, false, &where, error);
    if (status == HD_OK) status = placement_place(&sequence->map, &where.request, error);
    if (status == HD_OK) status = fork_rows(s, source, length, sequence, epoch, tokens_max, error);
    if (status != HD_OK) (void)sharded_end(s, sequence, epoch, false, false);
    return status;
}
