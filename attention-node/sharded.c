/* sharded.c - sequences over several nodes: nodes, names, forks, cuts and ends. Opening is sharded_open.c's. */
#include "attention-node/sharded.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "attention-node/sharded_sequences.h"
#include "base/log.h"
#include "base/memory.h"

/* ---- Sequences by name ---- */

static uint32_t *bucket_of(const sharded *s, uint64_t name) {
    uint64_t mixed = name * 0x9e3779b97f4a7c15u;
    return &s->buckets[(mixed >> 32) & (s->bucket_count - 1)];
}

shard_sequence *sharded_find(const sharded *s, uint64_t name) {
    s = s->home;
    for (uint32_t i = *bucket_of(s, name); i != 0; i = s->links[i - 1]) {
        if (s->sequences[i - 1].name == name) return &s->sequences[i - 1];
    }
    return NULL;
}

shard_sequence *sharded_take(sharded *s, uint64_t name) {
    if (s->first_free == 0) return NULL;
    uint32_t slot = s->first_free - 1, *bucket = bucket_of(s, name);
    s->first_free = s->links[slot];
    s->links[slot] = *bucket;
    *bucket = slot + 1;
    s->open_count++;
    shard_sequence *sequence = &s->sequences[slot];
    *sequence = (shard_sequence){.name = name, .is_open = true};
    return sequence;
}

void sharded_give(sharded *s, shard_sequence *sequence) {
    uint32_t slot = (uint32_t)(sequence - s->sequences), *link = bucket_of(s, sequence->name);
    while (*link != slot + 1) link = &s->links[*link - 1];
    *link = s->links[slot];
    s->links[slot] = s->first_free;
    s->first_free = slot + 1;
    s->open_count--;
    sequence->is_open = false;
}

/* Callers' names have all 64 bits, and the range takes some: what is left is a hash. Should two of them ever meet, a
 * node refuses the later one, since it has another epoch, range or prompt. */
uint64_t sharded_name(uint64_t sequence, uint32_t ordinal) {
    uint64_t z = sequence + 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return z >> (64 - ATTENTION_NAME_BITS) | (uint64_t)ordinal << ATTENTION_NAME_BITS;
}

/* ---- Nodes ---- */

void sharded_lose(sharded *s, uint32_t index, hd_status status) {
    s = s->home;
    shard_node *node = &s->nodes[index];
    if (node->is_lost) return;
    node->is_lost = true;
    for (uint32_t i = 0; i < SHARDED_VIEWS_MAX; i++) {
        if (s->views[i] != NULL) s->views[i]->nodes[index].is_lost = true;
    }
    char quoted[160];
    if (status != HD_OK) {
        hd_log(HD_LOG_WARN, "attention_node_lost", "node=%s status=%s",
               hd_log_quote(node->name, quoted, sizeof(quoted)), hd_status_name(status));
    }
    for (uint32_t i = 0; i < s->config.sequences_max; i++) {
        shard_sequence *sequence = &s->sequences[i];
        if (!sequence->is_open) continue;
        (void)placement_drop(&sequence->map, index);
        if (!sharded_has_nodes(s, &sequence->map)) sequence->is_broken = true;
    }
}

bool sharded_node_take_memory(const sharded *s, shard_node *node) {
    node->region_bytes = sharded_region_bytes(s, node->heads);
    node->region = hd_region_map(node->region_bytes);
    node->rows = hd_alloc(s->spans_max * sizeof(*node->rows), HD_CACHE_LINE);
    node->spans = hd_alloc(s->spans_max * sizeof(*node->spans), HD_CACHE_LINE);
    if (node->region == NULL || node->rows == NULL || node->spans == NULL) return false;
    sharded_cut_region(s, node);
    return true;
}

void sharded_node_free_memory(shard_node *node) {
    if (node->region != NULL) hd_region_unmap(node->region, node->region_bytes);
    hd_free(node->rows);
    hd_free(node->spans);
}

hd_status sharded_add(attention *self, const sharded_node *given, uint32_t *index, hd_error *error) {
    sharded *s = sharded_home(self);
    if (given->heads.count == 0 || given->heads.first + given->heads.count > s->kv_heads) {
        return hd_error_set(error, HD_INVALID, "attention node %s: KV heads %u to %u of a model with %u", given->name,
                            given->heads.first, given->heads.first + given->heads.count, s->kv_heads);
    }
    if (given->attention->ops->kv_dtype(given->attention) != s->config.kv_dtype) {
        return hd_error_set(error, HD_INVALID, "attention node %s keeps %s, not %s", given->name,
                            hd_dtype_name(given->attention->ops->kv_dtype(given->attention)),
                            hd_dtype_name(s->config.kv_dtype));
    }
    uint32_t at = 0;
    while (at < PLACEMENT_NODES_MAX && s->nodes[at].attention != NULL) at++;
    if (at == PLACEMENT_NODES_MAX)
        return hd_error_set(error, HD_FULL, "there are %u attention nodes already", PLACEMENT_NODES_MAX);
    shard_node *node = &s->nodes[at];
    *node = (shard_node){.attention = given->attention, .heads = given->heads, .is_stage = given->is_stage};
    snprintf(node->name, sizeof(node->name), "%s", given->name);
    if (given->address != NULL) snprintf(node->address, sizeof(node->address), "%s", given->address);
    if (!sharded_node_take_memory(s, node)) {
        node->attention = NULL; /* still the caller's */
        sharded_remove(self, at);
        return hd_error_set(error, HD_NO_MEMORY, "no memory for the tensors of attention node %s", given->name);
    }
    if (at >= s->node_count) s->node_count = at + 1;
    if (!given->is_stage) sharded_view_add(s, at);
    *index = at;
    return HD_OK;
}

void sharded_set_draining(attention *self, uint32_t index, bool is_draining) {
    sharded_home(self)->nodes[index].is_draining = is_draining;
}

void sharded_set_leaving(attention *self, uint32_t index, bool is_leaving) {
    sharded *s = sharded_home(self);
    if (s->nodes[index].is_leaving == is_leaving) return;
    s->nodes[index].is_leaving = is_leaving;
    s->handovers_ns = 0;
}

void sharded_remove(attention *self, uint32_t index) {
    sharded *s = sharded_home(self);
    shard_node *node = &s->nodes[index];
    assert(!s->step.is_open);
    sharded_view_remove(s, index);
    if (node->attention != NULL) {
        sharded_lose(s, index, HD_OK);
        sharded_forget_node(s, index);
        node->attention->ops->close(node->attention);
    }
    sharded_node_free_memory(node);
    *node = (shard_node){.attention = NULL};
    while (s->node_count > 0 && s->nodes[s->node_count - 1].attention == NULL) s->node_count--;
}

void sharded_moves_read(const attention *self, sharded_moves *moves) {
    *moves = sharded_home(self)->moves;
}

bool sharded_is_lost(const attention *self, uint32_t index) {
    return sharded_home(self)->nodes[index].is_lost;
}

bool sharded_is_late(const attention *self, uint32_t index) {
    return sharded_home(self)->nodes[index].is_late;
}

const attention_layer_table *sharded_table(const attention *self) {
    return &sharded_home(self)->config.layers;
}

const placement *sharded_placement(const attention *self, uint64_t name) {
    const shard_sequence *sequence = sharded_find(sharded_home(self), name);
    return sequence != NULL ? &sequence->map : NULL;
}

/* ---- An open sequence ---- */

static hd_status find_owned(sharded *s, uint64_t name, uint64_t epoch, shard_sequence **out) {
    shard_sequence *sequence = sharded_find(s, name);
    if (sequence == NULL) return HD_NOT_FOUND;
    if (epoch < sequence->epoch) return HD_STALE;
    *out = sequence;
    return HD_OK;
}

hd_status sharded_each_place(sharded *s, shard_sequence *sequence, shard_visit *visit, void *context) {
    hd_status first = HD_OK;
    for (uint32_t i = 0; i < sequence->map.row_count; i++) {
        const placement_row row = sequence->map.rows[i]; /* a node that is lost meanwhile leaves the map */
        for (uint32_t k = 0; k < row.node_count; k++) {
            shard_node *node = &s->nodes[row.nodes[k]];
            if (node->is_lost) continue;
            hd_status status = visit(node, &row, shard_name(sequence->name, &row), context);
            if (status == HD_PEER_LOST) sharded_lose(s, row.nodes[k], status);
            if (first == HD_OK) first = status;
        }
    }
    return first;
}

typedef struct {
    uint64_t epoch, length;
    bool keep, early;
} ending;

static hd_status close_place(shard_node *node, const placement_row *row, uint64_t name, void *context) {
    const ending *e = context;
    hd_status status = node->attention->ops->sequence_close(node->attention, name, e->epoch, e->keep, e->early);
    return status == HD_NOT_FOUND || status == HD_PEER_LOST ? HD_OK : status;
}

hd_status sharded_end(sharded *s, shard_sequence *sequence, uint64_t epoch, bool keep, bool early) {
    ending e = {.epoch = epoch, .keep = keep, .early = early};
    sharded_stop_handovers(s, sequence->name);
    hd_status status = sharded_each_place(s, sequence, close_place, &e);
    sharded_give(s, sequence);
    return status;
}

static hd_status close_sequence(attention *self, uint64_t name, uint64_t epoch, bool keep, bool early) {
    sharded *s = sharded_home(self);
    assert(!s->step.is_open);
    shard_sequence *sequence = NULL;
    hd_status status = find_owned(s, name, epoch, &sequence);
    return status == HD_OK ? sharded_end(s, sequence, epoch, keep, early) : status;
}

static hd_status truncate_place(shard_node *node, const placement_row *row, uint64_t name, void *context) {
    const ending *e = context;
    return node->attention->ops->truncate(node->attention, name, e->epoch, e->length);
}

/* Lanes' rows follow each other, so the first one that is not full ends its lane. */
static hd_status length_of(const sharded *s, const shard_sequence *sequence, uint64_t *length) {
    if (sequence->is_broken) return HD_PEER_LOST;
    uint64_t least = UINT64_MAX, lane = 0;
    bool is_going_on = true;
    for (uint32_t i = 0; i < sequence->map.row_count; i++) {
        const placement_row *row = &sequence->map.rows[i];
        if (row->first_position == 0) is_going_on = true;
        for (uint32_t k = 0; k < row->node_count && is_going_on; k++) {
            const shard_node *node = &s->nodes[row->nodes[k]];
            hd_status status =
                node->attention->ops->sequence_length(node->attention, shard_name(sequence->name, row), &lane);
            if (status != HD_OK) return status;
            if (lane < row->end_position || placement_row_is_whole(row)) {
                if (lane < least) least = lane;
                is_going_on = false;
            }
        }
        if (is_going_on && row->end_position < least && i + 1 == sequence->map.row_count) least = row->end_position;
    }
    *length = least;
    return HD_OK;
}

static hd_status sequence_length(const attention *self, uint64_t name, uint64_t *length) {
    const sharded *s = sharded_home(self);
    const shard_sequence *sequence = sharded_find(s, name);
    return sequence == NULL ? HD_NOT_FOUND : length_of(s, sequence, length);
}

static hd_status truncate_sequence(attention *self, uint64_t name, uint64_t epoch, uint64_t length) {
    sharded *s = sharded_home(self);
    assert(!s->step.is_open);
    shard_sequence *sequence = NULL;
    uint64_t there = 0;
    hd_status status = find_owned(s, name, epoch, &sequence);
    if (status != HD_OK) return status;
    status = length_of(s, sequence, &there);
    bool has_lost_rows = status == HD_TIMED_OUT || status == HD_IO || status == HD_CORRUPT; /* of the last step */
    if (status != HD_OK && !has_lost_rows) return status;
    if (status == HD_OK && length > there) return HD_INVALID;
    ending e = {.epoch = epoch, .length = length};
    sharded_stop_handovers(s, name);
    return sharded_each_place(s, sequence, truncate_place, &e);
}

static hd_status state_save(attention *self, uint64_t name, uint64_t epoch, uint64_t position, uint32_t stream,
                            const void *bytes) {
    return HD_UNSUPPORTED;
}

static hd_status state_load(const attention *self, uint64_t name, uint64_t position, uint32_t stream, void *bytes) {
    return HD_UNSUPPORTED;
}

/* Callers' names alone: what nodes have is this attention's own business. */
static hd_status find_sequence(attention *self, uint64_t name, attention_found *found, uint32_t found_max,
                               uint32_t *found_count) {
    const sharded *s = sharded_home(self);
    const shard_sequence *sequence = sharded_find(s, name);
    *found_count = 0;
    if (sequence == NULL || found_max == 0) return HD_OK;
    found[0] = (attention_found){.name = name, .epoch = sequence->epoch};
    hd_status status = length_of(s, sequence, &found[0].length);
    if (status == HD_OK) *found_count = 1;
    return status;
}

/* ---- The whole ---- */

static void cache_reset(attention *self) {
    sharded *s = sharded_home(self);
    for (uint32_t i = 0; i < s->node_count; i++) {
        attention *node = s->nodes[i].attention;
        if (node != NULL && !s->nodes[i].is_lost) node->ops->cache_reset(node);
    }
}

static void add_stats(attention_stats *sum, const attention_stats *of) {
    sum->budget_bytes += of->budget_bytes;
    sum->blocks_total += of->blocks_total;
    sum->blocks_sequences += of->blocks_sequences;
    sum->blocks_reserved += of->blocks_reserved;
    sum->blocks_cached += of->blocks_cached;
    sum->prefix_queries_tokens += of->prefix_queries_tokens;
    sum->prefix_hits_tokens += of->prefix_hits_tokens;
    sum->appended_tokens += of->appended_tokens;
    sum->evicted_blocks += of->evicted_blocks;
}

/* Of the lane that has the fewest blocks, since every lane keeps every position; bytes of all. What every node has for
 * indexes: a sequence that searches may come to lie on any of them. */
static void read_stats(const attention *self, attention_stats *stats) {
    const sharded *s = sharded_home(self);
    uint64_t budget_bytes = 0, block_bytes = 0, blocks_whole = UINT64_MAX, index_budget_bytes = UINT64_MAX;
    uint64_t step_wait_ns = 0,
             layer_work_ns = 0; /* nodes are waited for one after the other, and work at the same time */
    bool has_lane = false;
    for (uint32_t head = 0; head < s->kv_heads;) {
        attention_stats lane = {.budget_bytes = 0}, node;
        uint64_t lane_index_bytes = UINT64_MAX;
        uint32_t count = s->kv_heads - head;
        for (uint32_t i = 0; i < s->node_count; i++) {
            const shard_node *n = &s->nodes[i];
            if (n->attention == NULL || n->is_lost || n->is_stage || n->heads.first != head) continue;
            n->attention->ops->stats(n->attention, &node);
            add_stats(&lane, &node);
            step_wait_ns += node.step_wait_ns;
            if (node.layer_work_ns > layer_work_ns) layer_work_ns = node.layer_work_ns;
            if (node.blocks_whole > lane.blocks_whole) lane.blocks_whole = node.blocks_whole;
            if (node.index_budget_bytes < lane_index_bytes) lane_index_bytes = node.index_budget_bytes;
            lane.block_bytes = node.block_bytes;
            count = n->heads.count;
        }
        head += count;
        if (lane_index_bytes < index_budget_bytes) index_budget_bytes = lane_index_bytes;
        if (lane.blocks_whole < blocks_whole) blocks_whole = lane.blocks_whole;
        budget_bytes += lane.budget_bytes;
        block_bytes += lane.block_bytes;
        if (!has_lane || lane.blocks_total < stats->blocks_total) *stats = lane;
        has_lane = true;
    }
    stats->budget_bytes = budget_bytes;
    stats->block_bytes = block_bytes;
    stats->blocks_whole = has_lane ? blocks_whole : 0;
    stats->index_budget_bytes = has_lane && index_budget_bytes != UINT64_MAX ? index_budget_bytes : 0;
    stats->blocks_total /= s->config.replicas;
    stats->sequences = s->open_count;
    stats->step_wait_ns = step_wait_ns;
    stats->layer_work_ns = layer_work_ns;
}

static void look_at(sharded *s, uint32_t index, attention *link) {
    if (link == NULL || link->ops->idle == NULL || s->nodes[index].is_lost) return;
    if (link->ops->idle(link) == HD_PEER_LOST) sharded_lose(s, index, HD_PEER_LOST);
}

void sharded_look(attention *self) {
    sharded *s = sharded_home(self);
    for (uint32_t i = 0; i < s->node_count; i++) {
        look_at(s, i, s->nodes[i].attention);
        for (uint32_t k = 0; k < SHARDED_VIEWS_MAX; k++) {
            if (s->views[k] != NULL) look_at(s, i, s->views[k]->nodes[i].attention);
        }
    }
}

static hd_status idle(attention *self) {
    sharded *s = sharded_of(self);
    if (s->config.tend != NULL) s->config.tend(s->config.tend_context, self);
    sharded_tend_handovers(s);
    return HD_OK;
}

static hd_dtype dtype_of(const attention *self) {
    return kernel_row_dtype(sharded_home(self)->config.kv_dtype);
}

static hd_dtype kv_dtype_of(const attention *self) {
    return sharded_home(self)->config.kv_dtype;
}

void sharded_step_free_memory(sharded *s) {
    hd_free(s->step.first_rows);
    hd_free(s->step.counts);
    hd_free(s->step.staged);
    hd_free(s->step.lost);
    hd_free(s->step.merges);
    hd_free(s->step.parts);
}

bool sharded_step_take_memory(sharded *s) {
    uint32_t sequences = s->config.sequences_max;
    s->spans_max = sequences * SHARDED_NODE_FACTOR;
    s->rows_max = s->config.step_rows_max * SHARDED_NODE_FACTOR;
    s->step.first_rows = hd_alloc(sequences * sizeof(uint32_t), HD_CACHE_LINE);
    s->step.counts = hd_alloc(sequences * sizeof(uint32_t), HD_CACHE_LINE);
    s->step.staged = hd_alloc(sequences * sizeof(*s->step.staged), HD_CACHE_LINE);
    s->step.lost = hd_alloc(sequences * sizeof(hd_status), HD_CACHE_LINE);
    s->step.merges = hd_alloc((uint64_t)sequences * s->kv_heads * sizeof(shard_merge), HD_CACHE_LINE);
    s->step.parts = hd_alloc((uint64_t)sequences * PLACEMENT_ROWS_MAX * sizeof(shard_part), HD_CACHE_LINE);
    return s->step.first_rows != NULL && s->step.counts != NULL && s->step.staged != NULL && s->step.lost != NULL &&
           s->step.merges != NULL && s->step.parts != NULL;
}

static void close_all(attention *self) {
    if (self == NULL) return;
    sharded *s = sharded_of(self);
    if (s->home != s) {
        sharded_view_close(s);
        return;
    }
    while (s->node_count > 0) sharded_remove(self, s->node_count - 1);
    hd_free(s->streams);
    hd_free(s->layers);
    hd_free(s->sinks);
    hd_free(s->sequences);
    hd_free(s->buckets);
    hd_free(s->links);
    sharded_step_free_memory(s);
    hd_free(s);
}

static const attention_ops sharded_ops = {
    .name = "sharded",
    .close = close_all,
    .sequence_open = sharded_sequence_open,
    .fork = sharded_fork,
    .truncate = truncate_sequence,
    .sequence_length = sequence_length,
    .sequence_find = find_sequence,
    .prefix_find = sharded_prefix_find,
    .state_save = state_save,
    .state_load = state_load,
    .sequence_close = close_sequence,
    .attach = sharded_attach,
    .step_begin = sharded_step_begin,
    .submit = sharded_step_submit,
    .wait = sharded_step_wait,
    .step_end = sharded_step_end,
    .step_begin_post = sharded_step_begin_post,
    .step_end_post = sharded_step_end_post,
    .step_finish = sharded_step_finish,
    .step_lost = sharded_step_lost,
    .step_lose = sharded_step_lose,
    .cache_reset = cache_reset,
    .idle = idle,
    .stats = read_stats,
    .dtype = dtype_of,
    .kv_dtype = kv_dtype_of,
};

static bool copy_table(sharded *s) {
    const attention_layer_table *table = &s->config.layers;
    uint32_t sinks = 0;
    for (uint32_t i = 0; i < table->layer_count; i++) sinks += table->layers[i].query_heads;
    s->streams = hd_alloc(table->stream_count * sizeof(*s->streams), HD_CACHE_LINE);
    s->layers = hd_alloc(table->layer_count * sizeof(*s->layers), HD_CACHE_LINE);
    s->sinks = hd_alloc(sinks * sizeof(*s->sinks), HD_CACHE_LINE);
    if (s->streams == NULL || s->layers == NULL || s->sinks == NULL) return false;
    memcpy(s->streams, table->streams, table->stream_count * sizeof(*s->streams));
    memcpy(s->layers, table->layers, table->layer_count * sizeof(*s->layers));
    float *next = s->sinks;
    for (uint32_t i = 0; i < table->layer_count; i++) {
        if (s->layers[i].sink_logits == NULL) continue;
        memcpy(next, s->layers[i].sink_logits, s->layers[i].query_heads * sizeof(float));
        s->layers[i].sink_logits = next;
        next += s->layers[i].query_heads;
    }
    s->config.layers.streams = s->streams;
    s->config.layers.layers = s->layers;
    return true;
}

static bool take_tables(sharded *s) {
    uint32_t sequences = s->config.sequences_max;
    s->bucket_count = 16;
    while (s->bucket_count < sequences) s->bucket_count *= 2;
    s->sequences = hd_alloc_zeroed(sequences * sizeof(*s->sequences), HD_CACHE_LINE);
    s->buckets = hd_alloc_zeroed(s->bucket_count * sizeof(*s->buckets), HD_CACHE_LINE);
    s->links = hd_alloc(sequences * sizeof(*s->links), HD_CACHE_LINE);
    if (s->sequences == NULL || s->buckets == NULL || s->links == NULL || !sharded_step_take_memory(s)) return false;
    for (uint32_t i = sequences; i-- > 0;) {
        s->links[i] = s->first_free;
        s->first_free = i + 1;
    }
    return true;
}

hd_status sharded_open(const sharded_config *config, attention **out, hd_error *error) {
    hd_status status = attention_layer_table_check(&config->layers, error);
    if (status != HD_OK) return status;
    uint32_t kv_heads = attention_layer_table_kv_heads(&config->layers);
    if (kv_heads == 0 || attention_layer_table_state_bytes(&config->layers) != 0) {
        return hd_error_set(error, HD_UNSUPPORTED,
                            "a model with states or with different numbers of KV heads cannot be spread over nodes");
    }
    bool is_power = (config->range_min & (config->range_min - 1)) == 0;
    if (config->step_rows_max == 0 || config->sequences_max == 0 || config->range_min < HD_GROUP_TOKENS || !is_power ||
        config->replicas == 0 || config->replicas > PLACEMENT_REPLICAS_MAX) {
        return hd_error_set(error, HD_INVALID,
                            "rows and sequences of a step are at least 1, ranges a power of two of at least %u "
                            "positions, replicas 1 to %u",
                            HD_GROUP_TOKENS, PLACEMENT_REPLICAS_MAX);
    }
    sharded *s = hd_alloc_zeroed(sizeof(*s), HD_CACHE_LINE);
    if (s == NULL) return hd_error_set(error, HD_NO_MEMORY, "out of memory");
    s->base.ops = &sharded_ops;
    s->home = s;
    s->config = *config;
    s->kv_heads = kv_heads;
    if (!copy_table(s) || !take_tables(s)) {
        close_all(&s->base);
        return hd_error_set(error, HD_NO_MEMORY, "no memory for the tables of %u sequences", config->sequences_max);
    }
    *out = &s->base;
    return HD_OK;
}
