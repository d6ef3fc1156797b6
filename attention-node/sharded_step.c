/* sharded_step.c - a step over several nodes: which rows go where, and each layer's tensors there and back.
 *
 * A node that has all of the step's rows gets the caller's tensors themselves, from its first head on. The others get
 * copies of their rows in memory of their own. */
#include <assert.h>
#include <string.h>

#include "attention-node/sharded_state.h"
#include "base/clock.h"
#include "base/memory.h"

static uint64_t least(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* ---- Memory ---- */

typedef struct {
    uint64_t queries, keys, values, output, partial_out, partial_rows; /* bytes of each */
} region_plan;

static size_t element_bytes(const sharded *s) {
    return hd_dtype_bits(kernel_row_dtype(s->config.kv_dtype)) / 8;
}

static uint32_t group_size_of(const sharded *s, const attention_layer *layer) {
    return layer->query_heads / s->kv_heads;
}

/* Elements from row to row of a node's output. */
static uint64_t output_stride(const sharded *s, const attention_layer *layer, uint32_t heads) {
    return HD_ALIGN_UP((uint64_t)heads * group_size_of(s, layer) * layer->value_dim, 32u);
}

static void grow(uint64_t *bytes, uint64_t to) {
    to = HD_ALIGN_UP(to, (uint64_t)HD_CACHE_LINE);
    if (to > *bytes) *bytes = to;
}

static region_plan plan_region(const sharded *s, placement_heads heads) {
    region_plan plan = {.queries = 0};
    uint64_t rows = s->rows_max, element = element_bytes(s);
    for (uint32_t i = 0; i < s->config.layers.layer_count; i++) {
        const attention_layer *layer = &s->layers[i];
        uint64_t group = group_size_of(s, layer), key_dim = s->streams[layer->key_stream].dim;
        uint64_t query_rows = heads.count * rows * group;
        grow(&plan.queries, query_rows * HD_ALIGN_UP(key_dim, 32u) * element);
        grow(&plan.keys, rows * heads.count * key_dim * element);
        grow(&plan.values, rows * heads.count * layer->value_dim * element);
        grow(&plan.output, rows * output_stride(s, layer, heads.count) * element);
        grow(&plan.partial_out, query_rows * layer->value_dim * sizeof(float));
        grow(&plan.partial_rows, query_rows * sizeof(float));
    }
    return plan;
}

uint64_t sharded_region_bytes(const sharded *s, placement_heads heads) {
    region_plan plan = plan_region(s, heads);
    return plan.queries + plan.keys + plan.values + plan.output + plan.partial_out + 2 * plan.partial_rows;
}

void sharded_cut_region(const sharded *s, shard_node *node) {
    region_plan plan = plan_region(s, node->heads);
    unsigned char *next = node->region;
    node->queries = next;
    node->keys = next += plan.queries;
    node->values = next += plan.keys;
    node->output = next += plan.values;
    node->partial.out = (float *)(next += plan.output);
    node->partial.max = (float *)(next += plan.partial_out);
    node->partial.sum = (float *)(next + plan.partial_rows);
}

/* ---- Beginning ---- */

/* The rows of a span that a row of its sequence's placement is asked about. */
static void add_span(sharded *s, shard_node *node, uint32_t index, const attention_rows *rows,
                     const placement_row *place, bool is_replica) {
    uint64_t end = rows->first_position + rows->count;
    uint64_t first = rows->first_position > place->first_position ? rows->first_position : place->first_position;
    uint64_t kept_end = placement_row_is_whole(place) ? end : least(end, place->end_position);
    if (is_replica) end = kept_end;
    if (first >= end) return;
    assert(node->span_count < s->spans_max);
    uint32_t skipped = (uint32_t)(first - rows->first_position);
    shard_span *span = &node->spans[node->span_count];
    *span = (shard_span){.span = index,
                         .skipped = skipped,
                         .first_row = node->row_count,
                         .count = (uint32_t)(end - first),
                         .kept = kept_end > first ? (uint32_t)(kept_end - first) : 0,
                         .is_range = !placement_row_is_whole(place),
                         .is_replica = is_replica,
                         .first_position = place->first_position,
                         .size = place->end_position - place->first_position,
                         .place = place};
    node->rows[node->span_count++] = (attention_rows){.sequence = shard_name(rows->sequence, place),
                                                      .epoch = rows->epoch,
                                                      .first_position = first,
                                                      .count = span->count,
                                                      .token_ids = rows->token_ids + skipped,
                                                      .is_replica = is_replica,
                                                      .end_position = place->end_position};
    node->row_count += span->count;
    node->has_ranges = node->has_ranges || (span->is_range && !is_replica);
    bool is_as_given = skipped == 0 && span->count == rows->count && span->first_row == s->step.first_rows[index] &&
                       node->span_count == index + 1;
    node->has_all_rows = node->has_all_rows && is_as_given;
}

static hd_status check_span(sharded *s, const attention_rows *rows, shard_sequence **out, hd_error *error) {
    unsigned long long name = (unsigned long long)rows->sequence;
    shard_sequence *sequence = sharded_find(s, rows->sequence);
    if (sequence == NULL) return hd_error_set(error, HD_NOT_FOUND, "no sequence %llu", name);
    if (rows->epoch < sequence->epoch) {
        return hd_error_set(error, HD_STALE, "sequence %llu has epoch %llu now", name,
                            (unsigned long long)sequence->epoch);
    }
    if (sequence->is_broken) {
        return hd_error_set(error, HD_PEER_LOST, "keys and values of sequence %llu went with an attention node", name);
    }
    if (rows->count == 0) return hd_error_set(error, HD_INVALID, "sequence %llu: no rows", name);
    *out = sequence;
    return HD_OK;
}

static hd_status spread_rows(sharded *s, const attention_rows *rows, uint32_t span_count, hd_error *error) {
    uint64_t row_count = 0;
    for (uint32_t i = 0; i < s->node_count; i++) {
        shard_node *node = &s->nodes[i];
        node->span_count = node->row_count = 0;
        node->is_begun = node->is_submitted = node->has_ranges = false;
        node->has_all_rows = true;
    }
    for (uint32_t i = 0; i < span_count; i++) {
        shard_sequence *sequence = NULL;
        hd_status status = check_span(s, &rows[i], &sequence, error);
        if (status != HD_OK) return status;
        s->step.first_rows[i] = (uint32_t)row_count;
        s->step.counts[i] = rows[i].count;
        bool is_done = sequence->staged_end != 0 && rows[i].first_position + rows[i].count >= sequence->staged_end;
        s->step.staged[i] = is_done ? sequence : NULL;
        row_count += rows[i].count;
        if (row_count > s->config.step_rows_max) {
            return hd_error_set(error, HD_INVALID, "a step of more than the %u rows that are possible",
                                s->config.step_rows_max);
        }
        for (uint32_t k = 0; k < sequence->map.row_count; k++) {
            const placement_row *place = &sequence->map.rows[k];
            for (uint32_t n = 0; n < place->node_count; n++) {
                shard_node *node = &s->nodes[place->nodes[n]];
                if (node->attention == NULL) { /* only a view may lack one */
                    return hd_error_set(error, HD_UNSUPPORTED, "attention node %s takes one step at a time",
                                        s->home->nodes[place->nodes[n]].name);
                }
                add_span(s, node, i, &rows[i], place, n > 0 || rows[i].is_replica);
            }
        }
    }
    s->step.span_count = span_count;
    s->step.row_count = (uint32_t)row_count;
    for (uint32_t i = 0; i < s->node_count; i++) {
        shard_node *node = &s->nodes[i];
        node->has_all_rows = node->has_all_rows && node->row_count == row_count;
    }
    return HD_OK;
}

/* Every node is asked before the first is waited for. */
static void post_begin(sharded *s) {
    s->step.asked_ns = hd_now_ns();
    for (uint32_t i = 0; i < s->node_count && s->step.status == HD_OK; i++) {
        shard_node *node = &s->nodes[i];
        if (node->span_count == 0) continue;
        node->error.text[0] = '\0';
        hd_status status =
            node->attention->ops->step_begin_post(node->attention, node->rows, node->span_count, &node->error);
        node->is_pending = status == HD_PENDING;
        node->is_begun = status == HD_OK;
        if (node->is_pending || node->is_begun) continue;
        s->step.status = status;
        if (s->step.error != NULL) *s->step.error = node->error;
        if (status == HD_PEER_LOST) sharded_lose(s, i, status);
    }
}

/* It was to answer nothing in this step, so nothing is lacking. */
static bool is_not_missed(const sharded *s, uint32_t index) {
    const shard_node *node = &s->nodes[index];
    if (!s->home->nodes[index].is_late) return false;
    for (uint32_t i = 0; i < node->span_count; i++) {
        if (!node->spans[i].is_replica) return false;
    }
    return true;
}

static void note(sharded *s, uint32_t node, hd_status status) {
    if (status == HD_OK) return;
    if (status == HD_PEER_LOST && is_not_missed(s, node)) {
        s->nodes[node].is_begun = false;
        sharded_lose(s, node, status);
        return;
    }
    if (s->step.status == HD_OK) s->step.status = status;
    if (status == HD_PEER_LOST) sharded_lose(s, node, status);
}

/* Another view may have lost it meanwhile: what it was to answer here does not come either. */
static bool is_lost_since(sharded *s, uint32_t node) {
    if (!s->nodes[node].is_lost) return false;
    if (s->step.status == HD_OK) s->step.status = HD_PEER_LOST;
    return true;
}

static void finish_begin(sharded *s) {
    sharded_give_up_late(s);
    for (uint32_t i = 0; i < s->node_count; i++) {
        shard_node *node = &s->nodes[i];
        if (!node->is_pending) continue;
        node->is_pending = false;
        hd_status status = node->attention->ops->step_finish(node->attention), before = s->step.status;
        node->is_begun = status == HD_OK;
        note(s, i, status);
        if (before == HD_OK && s->step.status != HD_OK && s->step.error != NULL) *s->step.error = node->error;
    }
}

static bool is_about_rows(hd_status status) {
    return status == HD_TIMED_OUT || status == HD_IO || status == HD_CORRUPT;
}

/* Of two, the one that says more. */
static hd_status worse(hd_status a, hd_status b) {
    if (a == HD_OK || b == HD_OK) return a == HD_OK ? b : a;
    return a == HD_CORRUPT || b == HD_CORRUPT ? HD_CORRUPT : a == HD_IO || b == HD_IO ? HD_IO : a;
}

/* Which rows are lost does not fail the step. */
static void note_end(sharded *s, uint32_t node, hd_status status) {
    if (is_about_rows(status)) s->step.lost_rows = worse(s->step.lost_rows, status);
    else note(s, node, status);
}

static void post_end(sharded *s) {
    s->step.lost_rows = HD_OK;
    s->step.asked_ns = hd_now_ns();
    for (uint32_t i = 0; i < s->node_count; i++) {
        shard_node *node = &s->nodes[i];
        if (!node->is_begun) continue;
        node->is_begun = false;
        /* Also one that another view has lost: this view's link may stand, and a layer's answer still be on its way
         * into tensors that are the next step's then. */
        (void)is_lost_since(s, i);
        hd_status status = node->attention->ops->step_end_post(node->attention);
        node->is_pending = status == HD_PENDING;
        if (!node->is_pending) note_end(s, i, status);
    }
}

static void finish_end(sharded *s) {
    sharded_give_up_late(s);
    for (uint32_t i = 0; i < s->node_count; i++) {
        shard_node *node = &s->nodes[i];
        if (!node->is_pending) continue;
        node->is_pending = false;
        note_end(s, i, node->attention->ops->step_finish(node->attention));
    }
}

static bool is_any_pending(const sharded *s) {
    for (uint32_t i = 0; i < s->node_count; i++) {
        if (s->nodes[i].is_pending) return true;
    }
    return false;
}

hd_status sharded_step_begin_post(attention *self, const attention_rows *rows, uint32_t row_span_count,
                                  hd_error *error) {
    sharded *s = sharded_of(self);
    assert(!s->step.is_open && s->step.half == SHARDED_WHOLE);
    if (s->config.tend != NULL) s->config.tend(s->config.tend_context, self);
    sharded_tend_handovers(s);
    if (row_span_count == 0 || row_span_count > s->config.sequences_max) {
        return hd_error_set(error, HD_INVALID, "a step of %u sequences, but 1 to %u are possible", row_span_count,
                            s->config.sequences_max);
    }
    hd_status status = spread_rows(s, rows, row_span_count, error);
    if (status != HD_OK) return status;
    s->step.half = SHARDED_BEGINS;
    s->step.status = HD_OK;
    s->step.error = error;
    post_begin(s);
    return is_any_pending(s) ? HD_PENDING : sharded_step_finish(self);
}

hd_status sharded_step_finish(attention *self) {
    sharded *s = sharded_of(self);
    bool is_beginning = s->step.half == SHARDED_BEGINS;
    assert(s->step.half != SHARDED_WHOLE);
    s->step.half = SHARDED_WHOLE;
    if (!is_beginning) {
        finish_end(s);
        if (s->step.status == HD_OK) sharded_unstage_done(s);
        return s->step.status != HD_OK ? s->step.status : s->step.lost_rows;
    }
    finish_begin(s);
    s->step.is_open = s->step.status == HD_OK;
    if (s->step.is_open) {
        sharded_list_merges(s);
        return HD_OK;
    }
    hd_status status = s->step.status; /* those that have begun go back */
    post_end(s);
    finish_end(s);
    return status;
}

hd_status sharded_step_begin(attention *self, const attention_rows *rows, uint32_t row_span_count, hd_error *error) {
    hd_status status = sharded_step_begin_post(self, rows, row_span_count, error);
    return status == HD_PENDING ? sharded_step_finish(self) : status;
}

/* ---- A layer ---- */

static unsigned char *at(const attention_tensor *tensor, uint64_t element) {
    return (unsigned char *)tensor->data + element * (hd_dtype_bits(tensor->dtype) / 8);
}

static attention_tensor tensor_at(const attention_tensor *tensor, uint64_t element) {
    attention_tensor part = *tensor;
    part.data = at(tensor, element);
    return part;
}

/* [H, R, G, pad]: the node's heads and rows. */
static void gather_queries(const sharded *s, const shard_node *node, const attention_tensor *from,
                           uint64_t row_elements) {
    uint64_t row_bytes = row_elements * element_bytes(s);
    for (uint32_t head = 0; head < node->heads.count; head++) {
        uint64_t source = (uint64_t)(node->heads.first + head) * s->step.row_count;
        uint64_t target = (uint64_t)head * node->row_count;
        for (uint32_t i = 0; i < node->span_count; i++) {
            const shard_span *span = &node->spans[i];
            if (span->is_replica) continue;
            uint64_t row = s->step.first_rows[span->span] + span->skipped;
            memcpy((unsigned char *)node->queries + (target + span->first_row) * row_bytes,
                   (unsigned char *)from->data + (source + row) * row_bytes, span->count * row_bytes);
        }
    }
}

/* [R, H, dim]: the node's heads of the rows that it keeps. */
static void gather_keys(const sharded *s, const shard_node *node, const attention_tensor *from, uint64_t dim,
                        void *to) {
    uint64_t head_bytes = dim * element_bytes(s), part_bytes = node->heads.count * head_bytes;
    for (uint32_t i = 0; i < node->span_count; i++) {
        const shard_span *span = &node->spans[i];
        uint64_t row = s->step.first_rows[span->span] + span->skipped;
        for (uint32_t k = 0; k < span->kept; k++) {
            memcpy((unsigned char *)to + (span->first_row + k) * part_bytes,
                   (unsigned char *)from->data + ((row + k) * s->kv_heads + node->heads.first) * head_bytes,
                   part_bytes);
        }
    }
}

static attention_tensor own_tensor(const sharded *s, void *data) {
    return (attention_tensor){.data = data, .dtype = kernel_row_dtype(s->config.kv_dtype)};
}

/* The caller's tensors where the node has all rows, else copies in the node's memory. */
static attention_layer_call call_for(const sharded *s, const shard_node *node) {
    const attention_layer_call *call = &s->step.call;
    const attention_layer *layer = &s->layers[call->layer];
    uint64_t group = group_size_of(s, layer), key_dim = s->streams[layer->key_stream].dim;
    uint64_t query_row = group * HD_ALIGN_UP(key_dim, 32u);
    bool has_all_heads = node->heads.count == s->kv_heads, has_keys = call->keys.data != NULL;
    attention_layer_call part = {.layer = call->layer, .partial = node->partial};
    if (node->has_all_rows) {
        part.queries = tensor_at(&call->queries, node->heads.first * (uint64_t)s->step.row_count * query_row);
        part.output = tensor_at(&call->output, node->heads.first * group * layer->value_dim);
        part.output_stride = call->output_stride;
    } else {
        gather_queries(s, node, &call->queries, query_row);
        part.queries = own_tensor(s, node->queries);
        part.output = own_tensor(s, node->output);
        part.output_stride = output_stride(s, layer, node->heads.count);
    }
    if (!has_keys) return part;
    if (node->has_all_rows && has_all_heads) {
        part.keys = call->keys;
        part.values = call->values;
        return part;
    }
    gather_keys(s, node, &call->keys, key_dim, node->keys);
    gather_keys(s, node, &call->values, layer->value_dim, node->values);
    part.keys = own_tensor(s, node->keys);
    part.values = own_tensor(s, node->values);
    return part;
}

hd_status sharded_step_submit(attention *self, const attention_layer_call *call) {
    sharded *s = sharded_of(self);
    assert(s->step.is_open);
    if (s->step.status != HD_OK) return s->step.status;
    if (call->layer >= s->config.layers.layer_count || call->queries.dtype != kernel_row_dtype(s->config.kv_dtype))
        return HD_INVALID;
    s->step.call = *call;
    s->step.asked_ns = hd_now_ns();
    for (uint32_t i = 0; i < s->node_count; i++) {
        shard_node *node = &s->nodes[i];
        if (!node->is_begun || is_lost_since(s, i)) continue;
        attention_layer_call part = call_for(s, node);
        hd_status status = node->attention->ops->submit(node->attention, &part);
        node->is_submitted = status == HD_OK;
        note(s, i, status);
    }
    return s->step.status;
}

/* Finished rows of a node that has not all of them. */
static void scatter_output(const sharded *s, const shard_node *node) {
    const attention_layer_call *call = &s->step.call;
    const attention_layer *layer = &s->layers[call->layer];
    uint64_t group = group_size_of(s, layer), width = node->heads.count * group * layer->value_dim;
    uint64_t stride = output_stride(s, layer, node->heads.count), element = element_bytes(s);
    for (uint32_t i = 0; i < node->span_count; i++) {
        const shard_span *span = &node->spans[i];
        if (span->is_range || span->is_replica) continue;
        uint64_t row = s->step.first_rows[span->span] + span->skipped;
        for (uint32_t k = 0; k < span->count; k++) {
            memcpy(at(&call->output, (row + k) * call->output_stride + node->heads.first * group * layer->value_dim),
                   (unsigned char *)node->output + (span->first_row + k) * stride * element, width * element);
        }
    }
}

/* Nodes elsewhere, or those that compute in here. */
static void wait_for(sharded *s, uint32_t layer, bool is_elsewhere) {
    for (uint32_t i = 0; i < s->node_count; i++) {
        shard_node *node = &s->nodes[i];
        if (!node->is_submitted || (node->attention->ops->is_answered != NULL) != is_elsewhere) continue;
        node->is_submitted = false;
        if (is_lost_since(s, i)) continue;
        hd_status status = node->attention->ops->wait(node->attention, layer);
        note(s, i, status);
        if (status == HD_OK && !node->has_all_rows) scatter_output(s, node);
    }
}

hd_status sharded_step_wait(attention *self, uint32_t layer) {
    sharded *s = sharded_of(self);
    if (s->step.call.layer != layer && s->step.status == HD_OK) return HD_INVALID;
    wait_for(s, layer, false);
    sharded_give_up_late(s);
    wait_for(s, layer, true);
    if (s->step.status == HD_OK && s->step.merge_count > 0) sharded_merge(s);
    return s->step.status;
}

/* ---- The end ---- */

hd_status sharded_step_lost(attention *self, uint32_t span) {
    sharded *s = sharded_of(self);
    hd_status lost = HD_OK;
    for (uint32_t i = 0; i < s->node_count; i++) {
        const shard_node *node = &s->nodes[i];
        for (uint32_t k = 0; node->is_begun && !node->is_lost && k < node->span_count; k++) {
            if (node->spans[k].span == span) lost = worse(lost, node->attention->ops->step_lost(node->attention, k));
        }
    }
    return lost;
}

void sharded_step_lose(attention *self, uint32_t span, hd_status why) {
    sharded *s = sharded_of(self);
    for (uint32_t i = 0; i < s->node_count; i++) {
        const shard_node *node = &s->nodes[i];
        for (uint32_t k = 0; node->is_begun && !node->is_lost && k < node->span_count; k++) {
            if (node->spans[k].span == span) node->attention->ops->step_lose(node->attention, k, why);
        }
    }
}

/* Keys and values of later layers come from the output of earlier ones: what one node has lost, no other may keep, or
 * find as a prefix of somebody else's. */
static void share_lost(sharded *s) {
    bool has_lost = false;
    for (uint32_t i = 0; i < s->step.span_count; i++) s->step.lost[i] = HD_OK;
    for (uint32_t i = 0; i < s->node_count; i++) {
        const shard_node *node = &s->nodes[i];
        for (uint32_t k = 0; node->is_begun && !node->is_lost && k < node->span_count; k++) {
            hd_status *lost = &s->step.lost[node->spans[k].span];
            *lost = worse(*lost, node->attention->ops->step_lost(node->attention, k));
            has_lost = has_lost || *lost != HD_OK;
        }
    }
    for (uint32_t i = 0; i < s->node_count && has_lost; i++) {
        const shard_node *node = &s->nodes[i];
        for (uint32_t k = 0; node->is_begun && !node->is_lost && k < node->span_count; k++) {
            hd_status why = s->step.lost[node->spans[k].span];
            if (why != HD_OK) node->attention->ops->step_lose(node->attention, k, why);
        }
    }
}

hd_status sharded_step_end_post(attention *self) {
    sharded *s = sharded_of(self);
    assert(s->step.is_open);
    s->step.is_open = false;
    s->step.half = SHARDED_ENDS;
    share_lost(s);
    post_end(s);
    return is_any_pending(s) ? HD_PENDING : sharded_step_finish(self);
}

hd_status sharded_step_end(attention *self) {
    hd_status status = sharded_step_end_post(self);
    return status == HD_PENDING ? sharded_step_finish(self) : status;
}
