/* remote.c - calls out, answers in.
 *
 * One call is outstanding at a time. What it lends to the transport is held until the transport has given it back, even
 * where the answer was there before. */
#include "attention-node/remote.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "attention-node/attention_frames.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"

#define POLL_NS 50000000ull
#define NS_PER_MS 1000000ull

typedef struct remote {
    attention base; /* first */
    transport *transport;
    transport_link *link;
    remote_config config; /* for further links; its pointers are to what is kept here */
    char name[128], model_name[128];
    bool is_lost;
    hd_status lost_status;
    char lost_reason[256];
    uint64_t answer_ns, call_ns; /* for answers of steps; for others */

    attention_stream *streams;
    attention_layer *layers;
    float *sinks;
    attention_layer_table table;
    hd_dtype kv_dtype;
    uint32_t rows_max, sequences_max;

    /* The call. */
    transport_send send;
    uint64_t tag;
    uint16_t kind;
    bool is_answered;
    hd_status status;
    uint64_t value;
    hd_error *error;        /* where the node's sentence goes; may be NULL */
    attention_found *found; /* of FIND */
    uint32_t found_max, found_count;
    char kernels[32]; /* of HELLO */
    uint64_t version; /* likewise: the newest that the node speaks */

    /* The step. */
    attention_rows *rows;
    wire_row *wire_rows;
    uint32_t *token_ids;
    wire_step step;
    attention_layer_call layer_call;
    bool is_submitted;
    uint32_t *lost; /* [sequences_max]: statuses of the step's spans, the node's and those that it is told */
    bool has_lost;
    void *kept_keys, *kept_values; /* where not every row is kept */

    _Atomic uint64_t stats[sizeof(wire_stats) / sizeof(uint64_t)]; /* in the order of wire_stats */
    remote_traffic traffic;
    _Atomic uint64_t step_wait_ns, layer_work_ns;
} remote;

static remote *of(const attention *self) {
    return (remote *)self;
}

/* ---- Answers ---- */

static void lose(remote *r, hd_status status, const char *reason) {
    if (r->is_lost) return;
    r->is_lost = true;
    r->lost_status = status;
    snprintf(r->lost_reason, sizeof(r->lost_reason), "%s", reason);
    char name[160], quoted[300];
    hd_log(HD_LOG_WARN, "attention_node_link_lost", "node=%s status=%s reason=%s",
           hd_log_quote(r->name, name, sizeof(name)), hd_status_name(status),
           hd_log_quote(reason, quoted, sizeof(quoted)));
}

static void take_stats(remote *r, const frame_part *part) {
    const uint64_t *words = part->bytes;
    for (size_t i = 0; i < sizeof(wire_stats) / sizeof(uint64_t); i++) {
        uint64_t word = i < part->count / sizeof(uint64_t) ? words[i] : 0;
        atomic_store_explicit(&r->stats[i], word, memory_order_relaxed);
    }
}

/* The node's statuses; what it has been told stays. */
static bool take_lost(remote *r, const frame *f, uint32_t part) {
    if (f->part_count <= part || f->parts[part].count == 0) return true;
    if (!wire_part(f, part, sizeof(uint32_t), r->step.span_count)) return false;
    const uint32_t *lost = f->parts[part].bytes;
    for (uint32_t i = 0; i < r->step.span_count; i++) {
        if (lost[i] >= HD_STATUS_COUNT) return false;
        if (lost[i] == HD_OK) continue;
        r->lost[i] = lost[i];
        r->has_lost = true;
    }
    return true;
}

/* The rows of one KV head, from the answer's dense order to the places that the caller's rows have. */
static void place_partial_head(const remote *r, const wire_shape *shape, uint32_t head, const float *out,
                               const float *max, const float *sum) {
    const attention_partial *to = &r->layer_call.partial;
    uint64_t row = 0, source = (uint64_t)head * r->step.range_count * shape->group_size;
    for (uint32_t i = 0; i < r->step.span_count; i++) {
        const attention_rows *rows = &r->rows[i];
        if (rows->end_position != 0 && !rows->is_replica) {
            uint64_t target = ((uint64_t)head * r->step.row_count + row) * shape->group_size;
            uint64_t count = (uint64_t)rows->count * shape->group_size;
            memcpy(to->out + target * shape->value_dim, out + source * shape->value_dim,
                   count * shape->value_dim * sizeof(float));
            memcpy(to->max + target, max + source, count * sizeof(float));
            memcpy(to->sum + target, sum + source, count * sizeof(float));
            source += count;
        }
        row += rows->count;
    }
}

static void place_output(const remote *r, const wire_shape *shape, const unsigned char *output) {
    const attention_layer_call *call = &r->layer_call;
    uint64_t width = (uint64_t)shape->heads * shape->group_size * shape->value_dim * shape->element_bytes, row = 0;
    for (uint32_t i = 0; i < r->step.span_count; i++) {
        const attention_rows *rows = &r->rows[i];
        bool is_whole = rows->end_position == 0 && !rows->is_replica;
        for (uint32_t k = 0; k < rows->count && is_whole; k++, output += width) {
            memcpy((unsigned char *)call->output.data + (row + k) * call->output_stride * shape->element_bytes, output,
                   width);
        }
        row += rows->count;
    }
}

static bool take_layer(remote *r, const frame *f) {
    wire_shape shape = wire_shape_of(&r->table, r->layer_call.layer, r->kv_dtype);
    uint64_t per_row = (uint64_t)shape.heads * shape.group_size, range_rows = per_row * r->step.range_count;
    if (!wire_part(f, 2, (size_t)per_row * shape.value_dim * shape.element_bytes, r->step.whole_count) ||
        !wire_part(f, 3, shape.value_dim * sizeof(float), range_rows) || !wire_part(f, 4, sizeof(float), range_rows) ||
        !wire_part(f, 5, sizeof(float), range_rows) || !take_lost(r, f, 6))
        return false;
    place_output(r, &shape, f->parts[2].bytes);
    for (uint32_t head = 0; head < shape.heads && range_rows > 0; head++)
        place_partial_head(r, &shape, head, f->parts[3].bytes, f->parts[4].bytes, f->parts[5].bytes);
    return true;
}

static bool take_found(remote *r, const frame *f) {
    if (f->part_count < 3 || f->parts[2].count % sizeof(wire_found) != 0) return false;
    uint64_t count = f->parts[2].count / sizeof(wire_found);
    r->found_count = count < r->found_max ? (uint32_t)count : r->found_max;
    memcpy(r->found, f->parts[2].bytes, r->found_count * sizeof(wire_found));
    return true;
}

static bool take_answer(remote *r, const frame *f) {
    if (r->is_answered || f->tag != r->tag || f->kind != (r->kind | ATTENTION_ANSWER) || f->flags >= HD_STATUS_COUNT ||
        f->part_count < 2 || f->parts[0].count % sizeof(uint64_t) != 0)
        return false;
    if (f->flags == HD_PENDING && r->kind != ATTENTION_PULL) return false; /* answers are answers */
    take_stats(r, &f->parts[0]);
    r->status = (hd_status)f->flags;
    r->value = f->value;
    if (r->status != HD_OK) {
        if (r->error != NULL) wire_text(f, 1, r->error->text, sizeof(r->error->text));
    } else if (r->kind == ATTENTION_LAYER) {
        if (!take_layer(r, f)) return false;
        atomic_fetch_add_explicit(&r->layer_work_ns, f->value, memory_order_relaxed);
    } else if (r->kind == ATTENTION_FIND) {
        if (!take_found(r, f)) return false;
    } else if (r->kind == ATTENTION_HELLO) {
        wire_text(f, 2, r->kernels, sizeof(r->kernels));
    }
    r->is_answered = true;
    return true;
}

static void on_frame(void *context, transport_link *link, const frame *f) {
    remote *r = context;
    r->traffic.frames_in++;
    r->traffic.bytes_in += frame_bytes(f);
    if (!r->is_lost && !take_answer(r, f)) lose(r, HD_CORRUPT, "an answer that does not fit the call");
}

static void on_lost(void *context, transport_link *link, hd_status status, const char *reason) {
    lose(context, status, reason);
}

static const transport_handlers handlers = {.on_frame = on_frame, .on_lost = on_lost};

/* ---- Calls ---- */

static hd_status lost_error(const remote *r, hd_error *error) {
    return hd_error_set(error, HD_PEER_LOST, "attention node %s is lost: %s", r->name, r->lost_reason);
}

static hd_status begin_call(remote *r, frame *f, hd_error *error) {
    if (r->is_lost) return lost_error(r, error);
    f->tag = ++r->tag;
    r->kind = f->kind;
    r->is_answered = false;
    r->error = error;
    hd_status status;
    /* A link that is full has the node's answers to wait for; there is none but ours, so it is being emptied. */
    while ((status = r->link->owner->ops->send(r->link, f, &r->send)) == HD_FULL && !r->is_lost)
        r->transport->ops->poll(r->transport, POLL_NS);
    if (r->is_lost) return lost_error(r, error);
    if (status != HD_OK) {
        lose(r, status, "the link takes no frames");
        return lost_error(r, error);
    }
    r->traffic.frames_out++;
    r->traffic.bytes_out += frame_bytes(f);
    return HD_OK;
}

static bool is_of_step(const remote *r) {
    return r->kind == ATTENTION_BEGIN || r->kind == ATTENTION_LAYER || r->kind == ATTENTION_END;
}

static bool has_come(const remote *r) {
    return r->is_lost || (r->is_answered && !r->send.is_out);
}

/* False: not until then. */
static bool await_answer(remote *r, uint64_t until_ns) {
    if (has_come(r)) return true;
    uint64_t start = hd_now_ns(), now = start;
    while (!has_come(r) && now < until_ns) {
        r->transport->ops->poll(r->transport, until_ns - now < POLL_NS ? until_ns - now : POLL_NS);
        now = hd_now_ns();
    }
    r->traffic.waited_ns += now - start;
    if (is_of_step(r)) atomic_fetch_add_explicit(&r->step_wait_ns, now - start, memory_order_relaxed);
    return has_come(r);
}

static bool is_answered(attention *self, uint64_t until_ns) {
    return await_answer(of(self), until_ns);
}

static void give_up(attention *self, const char *reason) {
    lose(of(self), HD_TIMED_OUT, reason);
}

static hd_status end_call(remote *r, hd_error *error) {
    if (!await_answer(r, hd_now_ns() + (is_of_step(r) ? r->answer_ns : r->call_ns)))
        lose(r, HD_TIMED_OUT, "no answer in time");
    if (r->is_lost) {
        /* What was lent is not anybody's before the transport has given it back. */
        if (r->link != NULL) r->link->owner->ops->disconnect(r->link);
        r->link = NULL;
        while (r->send.is_out) r->transport->ops->poll(r->transport, POLL_NS);
        return lost_error(r, error);
    }
    return r->status;
}

static hd_status call(remote *r, frame *f, hd_error *error) {
    hd_status status = begin_call(r, f, error);
    return status == HD_OK ? end_call(r, error) : status;
}

/* ---- Sequences ---- */

static hd_status call_open(remote *r, uint16_t kind, const attention_sequence_params *params, uint64_t *cached_tokens,
                           hd_error *error) {
    wire_open open = {.prompt_count = params->prompt_count,
                      .reuse_max = params->reuse_max,
                      .variant = params->variant,
                      .first_position = params->first_position,
                      .end_position = params->end_position,
                      .has_prefix = params->has_prefix,
                      .has_selection = params->selection != NULL};
    memcpy(open.salt, params->salt, sizeof(open.salt));
    if (params->has_prefix) memcpy(open.prefix, params->prefix, sizeof(open.prefix));
    frame f = {.kind = kind,
               .sequence = params->sequence,
               .epoch = params->epoch,
               .value = params->tokens_max,
               .part_count = 4,
               .parts = {{&open, sizeof(open)},
                         {params->token_ids, params->token_count * sizeof(uint32_t)},
                         {params->selection, params->selection != NULL ? strlen(params->selection) : 0},
                         {params->trace_id, params->trace_id != NULL ? strlen(params->trace_id) : 0}}};
    hd_status status = call(r, &f, error);
    if (status == HD_OK) *cached_tokens = r->value;
    return status;
}

static hd_status sequence_open(attention *self, const attention_sequence_params *params, uint64_t *cached_tokens,
                               hd_error *error) {
    return call_open(of(self), ATTENTION_OPEN, params, cached_tokens, error);
}

static hd_status prefix_find(attention *self, const attention_sequence_params *params, uint64_t *cached_tokens) {
    return call_open(of(self), ATTENTION_PREFIX, params, cached_tokens, NULL);
}

/* tokens_max goes where a sequence that is opened says what it may reuse: the frame's value is the length. */
static hd_status sequence_pull(attention *self, const attention_pull *pull, uint64_t *tokens, hd_error *error) {
    remote *r = of(self);
    const attention_sequence_params *params = &pull->params;
    if (r->version < ATTENTION_WIRE_VERSION_PULL)
        return hd_error_set(error, HD_UNSUPPORTED, "attention node %s is of an older version: upgrade it", r->name);
    wire_open open = {.prompt_count = params->prompt_count,
                      .reuse_max = params->tokens_max,
                      .variant = params->variant,
                      .first_position = params->first_position,
                      .end_position = params->end_position,
                      .has_selection = params->selection != NULL};
    memcpy(open.salt, params->salt, sizeof(open.salt));
    frame f = {.kind = ATTENTION_PULL,
               .layer = pull->wait_ms,
               .sequence = params->sequence,
               .epoch = params->epoch,
               .value = pull->length,
               .part_count = 3,
               .parts = {{&open, sizeof(open)},
                         {pull->address, strlen(pull->address)},
                         {params->selection, params->selection != NULL ? strlen(params->selection) : 0}}};
    hd_status status = call(r, &f, error);
    if (status == HD_OK || status == HD_PENDING) *tokens = r->value;
    return status;
}

static hd_status fork_sequence(attention *self, uint64_t source, uint64_t length, uint64_t sequence, uint64_t epoch,
                               uint64_t tokens_max, hd_error *error) {
    wire_fork fork = {.source = source, .length = length};
    frame f = {.kind = ATTENTION_FORK,
               .sequence = sequence,
               .epoch = epoch,
               .value = tokens_max,
               .part_count = 1,
               .parts = {{&fork, sizeof(fork)}}};
    return call(of(self), &f, error);
}

static hd_status truncate_sequence(attention *self, uint64_t sequence, uint64_t epoch, uint64_t length) {
    frame f = {.kind = ATTENTION_TRUNCATE, .sequence = sequence, .epoch = epoch, .value = length};
    return call(of(self), &f, NULL);
}

static hd_status sequence_length(const attention *self, uint64_t sequence, uint64_t *length) {
    remote *r = of(self);
    frame f = {.kind = ATTENTION_LENGTH, .sequence = sequence};
    hd_status status = call(r, &f, NULL);
    if (status == HD_OK) *length = r->value;
    return status;
}

static hd_status sequence_find(attention *self, uint64_t sequence, attention_found *found, uint32_t found_max,
                               uint32_t *found_count) {
    remote *r = of(self);
    frame f = {.kind = ATTENTION_FIND, .sequence = sequence};
    r->found = found;
    r->found_max = found_max;
    r->found_count = 0;
    hd_status status = call(r, &f, NULL);
    *found_count = status == HD_OK ? r->found_count : 0;
    return status;
}

static hd_status sequence_close(attention *self, uint64_t sequence, uint64_t epoch, bool keep, bool early) {
    uint64_t flags = (keep ? ATTENTION_CLOSE_KEEP : 0u) | (early ? ATTENTION_CLOSE_EARLY : 0u);
    frame f = {.kind = ATTENTION_CLOSE, .sequence = sequence, .epoch = epoch, .value = flags};
    return call(of(self), &f, NULL);
}

static hd_status state_save(attention *self, uint64_t sequence, uint64_t epoch, uint64_t position, uint32_t stream,
                            const void *bytes) {
    return HD_UNSUPPORTED;
}

static hd_status state_load(const attention *self, uint64_t sequence, uint64_t position, uint32_t stream, void *bytes) {
    return HD_UNSUPPORTED;
}

static void cache_reset(attention *self) {
    frame f = {.kind = ATTENTION_RESET};
    (void)call(of(self), &f, NULL);
}

/* No call is out, so what comes in is the end of a link: this one, or another of the same transport. */
static hd_status idle(attention *self) {
    remote *r = of(self);
    while (!r->is_lost && r->transport->ops->poll(r->transport, 0)) {}
    return r->is_lost ? HD_PEER_LOST : HD_OK;
}

/* ---- Steps ---- */

/* A call whose answer is waited for later. */
static hd_status post(remote *r, frame *f, hd_error *error) {
    hd_status status = begin_call(r, f, error);
    return status == HD_OK ? HD_PENDING : status;
}

static hd_status step_finish(attention *self) {
    remote *r = of(self);
    return end_call(r, r->error);
}

static hd_status step_begin_post(attention *self, const attention_rows *rows, uint32_t row_span_count,
                                 hd_error *error) {
    remote *r = of(self);
    wire_step step = wire_step_of(rows, row_span_count);
    if (row_span_count > r->sequences_max || step.row_count > r->rows_max) {
        return hd_error_set(error, HD_INVALID,
                            "a step of %u rows of %u sequences, but attention node %s takes %u of %u", step.row_count,
                            row_span_count, r->name, r->rows_max, r->sequences_max);
    }
    uint32_t *tokens = r->token_ids;
    for (uint32_t i = 0; i < row_span_count; i++) {
        r->rows[i] = rows[i];
        r->wire_rows[i] = (wire_row){.sequence = rows[i].sequence,
                                     .epoch = rows[i].epoch,
                                     .first_position = rows[i].first_position,
                                     .end_position = rows[i].end_position,
                                     .count = rows[i].count,
                                     .is_replica = rows[i].is_replica};
        memcpy(tokens, rows[i].token_ids, rows[i].count * sizeof(uint32_t));
        tokens += rows[i].count;
    }
    r->step = step;
    r->is_submitted = r->has_lost = false;
    memset(r->lost, 0, row_span_count * sizeof(*r->lost));
    frame f = {.kind = ATTENTION_BEGIN,
               .part_count = 2,
               .parts = {{r->wire_rows, row_span_count * sizeof(wire_row)},
                         {r->token_ids, step.row_count * sizeof(uint32_t)}}};
    return post(r, &f, error);
}

static hd_status step_begin(attention *self, const attention_rows *rows, uint32_t row_span_count, hd_error *error) {
    hd_status status = step_begin_post(self, rows, row_span_count, error);
    return status == HD_PENDING ? step_finish(self) : status;
}

/* [R, H, dim] of the rows that are kept, one after the other; the caller's own memory where all are. */
static frame_part kept_rows(const remote *r, const attention_tensor *tensor, uint64_t row_bytes, void *memory) {
    if (tensor->data == NULL) return (frame_part){NULL, 0};
    if (r->step.kept_count == r->step.row_count) return (frame_part){tensor->data, r->step.row_count * row_bytes};
    uint64_t row = 0;
    unsigned char *to = memory;
    for (uint32_t i = 0; i < r->step.span_count; i++) {
        uint64_t bytes = wire_row_kept(&r->rows[i]) * row_bytes;
        memcpy(to, (unsigned char *)tensor->data + row * row_bytes, bytes);
        to += bytes;
        row += r->rows[i].count;
    }
    return (frame_part){memory, r->step.kept_count * row_bytes};
}

static hd_status submit(attention *self, const attention_layer_call *given) {
    remote *r = of(self);
    if (given->layer >= r->table.layer_count) return HD_INVALID;
    wire_shape shape = wire_shape_of(&r->table, given->layer, r->kv_dtype);
    r->layer_call = *given;
    uint64_t query_bytes =
        (uint64_t)shape.heads * r->step.row_count * shape.group_size * shape.key_pad * shape.element_bytes;
    uint64_t head_bytes = (uint64_t)shape.heads * shape.element_bytes;
    frame f = {.kind = ATTENTION_LAYER,
               .layer = given->layer,
               .part_count = 3,
               .parts = {{given->queries.data, r->step.has_queries ? query_bytes : 0},
                         kept_rows(r, &given->keys, head_bytes * shape.key_dim, r->kept_keys),
                         kept_rows(r, &given->values, head_bytes * shape.value_dim, r->kept_values)}};
    hd_status status = begin_call(r, &f, NULL);
    r->is_submitted = status == HD_OK;
    return status;
}

static hd_status wait_layer(attention *self, uint32_t layer) {
    remote *r = of(self);
    if (!r->is_submitted || r->layer_call.layer != layer) return r->is_lost ? HD_PEER_LOST : HD_INVALID;
    r->is_submitted = false;
    return end_call(r, NULL);
}

static hd_status step_lost(attention *self, uint32_t span) {
    return (hd_status)of(self)->lost[span];
}

static void step_lose(attention *self, uint32_t span, hd_status why) {
    remote *r = of(self);
    if (r->lost[span] != HD_OK) return;
    r->lost[span] = (uint32_t)why;
    r->has_lost = true;
}

static hd_status step_end_post(attention *self) {
    remote *r = of(self);
    if (r->is_submitted) { /* left without waiting; the answer goes nowhere that is still there */
        r->is_submitted = false;
        hd_status status = end_call(r, NULL);
        if (status == HD_PEER_LOST) return status;
    }
    frame f = {.kind = ATTENTION_END,
               .part_count = 1,
               .parts = {{r->lost, r->has_lost ? r->step.span_count * sizeof(*r->lost) : 0}}};
    return post(r, &f, NULL);
}

static hd_status step_end(attention *self) {
    hd_status status = step_end_post(self);
    return status == HD_PENDING ? step_finish(self) : status;
}

/* ---- The whole ---- */

static void stats(const attention *self, attention_stats *out) {
    const remote *r = of(self);
    union {
        uint64_t words[sizeof(wire_stats) / sizeof(uint64_t)];
        wire_stats stats;
    } w;
    for (size_t i = 0; i < sizeof(wire_stats) / sizeof(uint64_t); i++)
        w.words[i] = atomic_load_explicit(&r->stats[i], memory_order_relaxed);
    *out = (attention_stats){.budget_bytes = w.stats.budget_bytes,
                             .block_bytes = w.stats.block_bytes,
                             .blocks_total = w.stats.blocks_total,
                             .blocks_whole = w.stats.blocks_total,
                             .blocks_sequences = w.stats.blocks_sequences,
                             .blocks_reserved = w.stats.blocks_reserved,
                             .blocks_cached = w.stats.blocks_cached,
                             .sequences = w.stats.sequences,
                             .prefix_queries_tokens = w.stats.prefix_queries_tokens,
                             .prefix_hits_tokens = w.stats.prefix_hits_tokens,
                             .appended_tokens = w.stats.appended_tokens,
                             .evicted_blocks = w.stats.evicted_blocks,
                             .index_bytes = w.stats.index_bytes,
                             .index_budget_bytes = w.stats.index_budget_bytes,
                             .hot_used_bytes = w.stats.hot_used_bytes,
                             .warm_used_bytes = w.stats.warm_used_bytes,
                             .cold_used_bytes = w.stats.cold_used_bytes,
                             .warm_bytes = w.stats.warm_bytes,
                             .step_wait_ns = atomic_load_explicit(&r->step_wait_ns, memory_order_relaxed),
                             .layer_work_ns = atomic_load_explicit(&r->layer_work_ns, memory_order_relaxed),
                             .compute_threads = (uint32_t)w.stats.compute_threads,
                             .cold_bytes = w.stats.cold_bytes};
}

static hd_dtype dtype_of(const attention *self) {
    return kernel_row_dtype(of(self)->kv_dtype);
}

static hd_dtype kv_dtype_of(const attention *self) {
    return of(self)->kv_dtype;
}

void remote_traffic_read(const attention *self, remote_traffic *traffic) {
    *traffic = of(self)->traffic;
}

static void close_remote(attention *self) {
    if (self == NULL) return;
    remote *r = of(self);
    if (r->link != NULL) r->link->owner->ops->disconnect(r->link);
    while (r->send.is_out) r->transport->ops->poll(r->transport, POLL_NS);
    hd_free(r->streams);
    hd_free(r->layers);
    hd_free(r->sinks);
    hd_free(r->rows);
    hd_free(r->wire_rows);
    hd_free(r->token_ids);
    hd_free(r->lost);
    hd_free(r->kept_keys);
    hd_free(r->kept_values);
    hd_free(r);
}

static hd_status attach(attention *self, uint32_t rows_max, attention **view, hd_error *error);

static const attention_ops remote_ops = {
    .name = "remote",
    .close = close_remote,
    .sequence_open = sequence_open,
    .fork = fork_sequence,
    .truncate = truncate_sequence,
    .sequence_length = sequence_length,
    .sequence_find = sequence_find,
    .sequence_pull = sequence_pull,
    .prefix_find = prefix_find,
    .state_save = state_save,
    .state_load = state_load,
    .sequence_close = sequence_close,
    .attach = attach,
    .step_begin = step_begin,
    .submit = submit,
    .wait = wait_layer,
    .step_end = step_end,
    .step_begin_post = step_begin_post,
    .step_end_post = step_end_post,
    .step_finish = step_finish,
    .is_answered = is_answered,
    .give_up = give_up,
    .step_lost = step_lost,
    .step_lose = step_lose,
    .cache_reset = cache_reset,
    .idle = idle,
    .stats = stats,
    .dtype = dtype_of,
    .kv_dtype = kv_dtype_of,
};

static bool take_memory(remote *r, const remote_config *config) {
    const attention_layer_table *table = &config->layers;
    uint64_t sinks = 1, row_bytes = 0;
    for (uint32_t i = 0; i < table->layer_count; i++) {
        wire_shape shape = wire_shape_of(table, i, config->kv_dtype);
        uint64_t widest = shape.key_dim > shape.value_dim ? shape.key_dim : shape.value_dim;
        uint64_t bytes = widest * shape.heads * shape.element_bytes;
        if (bytes > row_bytes) row_bytes = bytes;
        sinks += table->layers[i].query_heads;
    }
    r->streams = hd_alloc(table->stream_count * sizeof(*r->streams), HD_CACHE_LINE);
    r->layers = hd_alloc(table->layer_count * sizeof(*r->layers), HD_CACHE_LINE);
    r->sinks = hd_alloc(sinks * sizeof(float), HD_CACHE_LINE);
    r->rows = hd_alloc(r->sequences_max * sizeof(*r->rows), HD_CACHE_LINE);
    r->wire_rows = hd_alloc(r->sequences_max * sizeof(*r->wire_rows), HD_CACHE_LINE);
    r->token_ids = hd_alloc(r->rows_max * sizeof(*r->token_ids), HD_CACHE_LINE);
    r->lost = hd_alloc_zeroed(r->sequences_max * sizeof(*r->lost), HD_CACHE_LINE);
    r->kept_keys = hd_alloc(r->rows_max * row_bytes, HD_CACHE_LINE);
    r->kept_values = hd_alloc(r->rows_max * row_bytes, HD_CACHE_LINE);
    return r->streams != NULL && r->layers != NULL && r->sinks != NULL && r->rows != NULL && r->wire_rows != NULL &&
           r->token_ids != NULL && r->lost != NULL && r->kept_keys != NULL && r->kept_values != NULL;
}

static void copy_table(remote *r, const attention_layer_table *table) {
    memcpy(r->streams, table->streams, table->stream_count * sizeof(*r->streams));
    memcpy(r->layers, table->layers, table->layer_count * sizeof(*r->layers));
    float *next = r->sinks;
    for (uint32_t i = 0; i < table->layer_count; i++) {
        if (r->layers[i].sink_logits == NULL) continue;
        memcpy(next, r->layers[i].sink_logits, r->layers[i].query_heads * sizeof(float));
        r->layers[i].sink_logits = next;
        next += r->layers[i].query_heads;
    }
    r->table = (attention_layer_table){r->streams, table->stream_count, r->layers, table->layer_count};
}

static hd_status say_hello(remote *r, const remote_config *config, hd_error *error) {
    wire_stream *streams = hd_alloc(r->table.stream_count * sizeof(*streams), HD_CACHE_LINE);
    wire_layer *layers = hd_alloc(r->table.layer_count * sizeof(*layers), HD_CACHE_LINE);
    wire_hello hello = {.version_min = ATTENTION_WIRE_VERSION_MIN,
                        .version_max = ATTENTION_WIRE_VERSION,
                        .kv_dtype = (uint32_t)r->kv_dtype,
                        .stream_count = r->table.stream_count,
                        .layer_count = r->table.layer_count,
                        .rows_max = r->rows_max,
                        .sequences_max = r->sequences_max,
                        .head_first = config->heads.first,
                        .head_count = config->heads.count};
    memcpy(hello.fingerprint, config->fingerprint, sizeof(hello.fingerprint));
    hd_status status = HD_NO_MEMORY;
    if (streams != NULL && layers != NULL) {
        wire_table_encode(&r->table, streams, layers, NULL, &hello.sink_count); /* the sinks lie in order already */
        frame f = {.kind = ATTENTION_HELLO,
                   .part_count = 5,
                   .parts = {{&hello, sizeof(hello)},
                             {streams, r->table.stream_count * sizeof(*streams)},
                             {layers, r->table.layer_count * sizeof(*layers)},
                             {r->sinks, hello.sink_count * sizeof(float)},
                             {config->model_name, strlen(config->model_name)}}};
        status = call(r, &f, error);
        r->version = status == HD_OK ? r->value : 0;
    }
    hd_free(streams);
    hd_free(layers);
    if (status == HD_OK && strcmp(r->kernels, config->kernels) != 0) {
        hd_log(HD_LOG_WARN, "attention_node_kernels_differ", "node=%s kernels=%s own=%s", r->name, r->kernels,
               config->kernels);
    }
    return status;
}

hd_status remote_open(const remote_config *config, attention **out, hd_error *error) {
    remote *r = hd_alloc_zeroed(sizeof(*r), HD_CACHE_LINE);
    if (r == NULL) return hd_error_set(error, HD_NO_MEMORY, "out of memory");
    r->base.ops = &remote_ops;
    r->transport = config->transport;
    r->kv_dtype = config->kv_dtype;
    r->rows_max = config->step_rows_max;
    r->sequences_max = config->sequences_max;
    r->answer_ns = config->answer_ms * NS_PER_MS;
    r->call_ns = (config->link_ms != 0 ? config->link_ms : config->answer_ms) * NS_PER_MS;
    snprintf(r->name, sizeof(r->name), "%s", config->address);
    snprintf(r->model_name, sizeof(r->model_name), "%s", config->model_name);
    hd_status status = take_memory(r, config) ? HD_OK : hd_error_set(error, HD_NO_MEMORY, "out of memory");
    if (status == HD_OK) {
        copy_table(r, &config->layers);
        r->config = *config;
        r->config.address = r->name;
        r->config.model_name = r->model_name;
        r->config.layers = r->table;
        status = r->transport->ops->connect(r->transport, config->address, "step", &handlers, r, &r->link, error);
    }
    if (status == HD_OK) status = say_hello(r, config, error);
    r->call_ns = (config->call_ms != 0 ? config->call_ms : config->answer_ms) * NS_PER_MS;
    if (status == HD_OK) *out = &r->base;
    else close_remote(&r->base);
    return status;
}

/* One more link to the same node: there, every link has a step of its own. */
static hd_status attach(attention *self, uint32_t rows_max, attention **view, hd_error *error) {
    remote_config config = of(self)->config;
    if (rows_max < config.step_rows_max) config.step_rows_max = rows_max;
    if (rows_max < config.sequences_max) config.sequences_max = rows_max;
    return remote_open(&config, view, error);
}
