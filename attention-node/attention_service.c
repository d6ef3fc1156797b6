/* attention_service.c - links, calls and answers; the engine that they are all about is service_engine.c's. */
#include "attention-node/attention_service.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "attention-node/service_state.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/trace.h"

#define POLL_NS 100000000ull
#define PULL_POLL_NS 1000000ull
#define NS_PER_MS 1000000ull

/* ---- Answers ---- */

static void read_wire_stats(const attention_service *s, wire_stats *w) {
    *w = (wire_stats){.budget_bytes = 0};
    if (s->engine == NULL) return;
    attention_stats stats;
    s->engine->ops->stats(s->engine, &stats);
    *w = (wire_stats){.budget_bytes = stats.budget_bytes,
                      .block_bytes = stats.block_bytes,
                      .blocks_total = stats.blocks_total,
                      .blocks_sequences = stats.blocks_sequences,
                      .blocks_reserved = stats.blocks_reserved,
                      .blocks_cached = stats.blocks_cached,
                      .sequences = stats.sequences,
                      .prefix_queries_tokens = stats.prefix_queries_tokens,
                      .prefix_hits_tokens = stats.prefix_hits_tokens,
                      .appended_tokens = stats.appended_tokens,
                      .evicted_blocks = stats.evicted_blocks,
                      .index_bytes = stats.index_bytes,
                      .index_budget_bytes = stats.index_budget_bytes,
                      .hot_used_bytes = stats.hot_used_bytes,
                      .warm_used_bytes = stats.warm_used_bytes,
                      .cold_used_bytes = stats.cold_used_bytes,
                      .warm_bytes = stats.warm_bytes,
                      .cold_bytes = stats.cold_bytes,
                      .compute_threads = stats.compute_threads};
}

/* The worker has heard the answer before when it calls again, so at most the last one is still being given back. */
static service_answer *take_answer(service_link *link) {
    for (uint32_t i = 0; i < SERVICE_ANSWERS; i++) {
        if (!link->answers[i].send.is_out) return &link->answers[i];
    }
    return NULL;
}

static void cut_link(service_link *link, const char *reason) {
    char quoted[160];
    hd_log(HD_LOG_WARN, "worker_link_cut", "link=%" PRIu64 " reason=%s", link->number,
           hd_log_quote(reason, quoted, sizeof(quoted)));
    service_link_end(link);
}

/* parts: what follows stats and sentence; lent until the answer has gone, so they lie in the answer or the link. */
static void answer(service_link *link, service_answer *a, const frame *call, hd_status status, uint64_t value,
                   const char *sentence, const frame_part *parts, uint32_t part_count) {
    read_wire_stats(link->service, &a->stats);
    snprintf(a->sentence, sizeof(a->sentence), "%s", sentence);
    frame f = {.kind = (uint16_t)(call->kind | ATTENTION_ANSWER),
               .flags = (uint16_t)status,
               .layer = call->layer,
               .tag = call->tag,
               .sequence = call->sequence,
               .value = value,
               .part_count = 2 + part_count,
               .parts = {{&a->stats, sizeof(a->stats)}, {a->sentence, strlen(a->sentence)}}};
    for (uint32_t i = 0; i < part_count; i++) f.parts[2 + i] = parts[i];
    if (link->link->owner->ops->send(link->link, &f, &a->send) != HD_OK) cut_link(link, "it takes no answers");
}

/* ---- Calls about sequences ---- */

static hd_status params_of(const frame *f, attention_sequence_params *params, char *selection, size_t selection_bytes,
                           hd_error *error) {
    if (!wire_part(f, 0, sizeof(wire_open), 1) || f->part_count < 3 || f->parts[1].count % sizeof(uint32_t) != 0)
        return hd_error_set(error, HD_CORRUPT, "a frame to open a sequence that has not its parts");
    const wire_open *open = f->parts[0].bytes;
    wire_text(f, 2, selection, selection_bytes);
    *params = (attention_sequence_params){.sequence = f->sequence,
                                          .epoch = f->epoch,
                                          .token_ids = f->parts[1].bytes,
                                          .token_count = f->parts[1].count / sizeof(uint32_t),
                                          .tokens_max = f->value,
                                          .prompt_count = open->prompt_count,
                                          .reuse_max = open->reuse_max,
                                          .variant = open->variant,
                                          .selection = open->has_selection != 0 ? selection : NULL,
                                          .first_position = open->first_position,
                                          .end_position = open->end_position,
                                          .has_prefix = open->has_prefix != 0};
    memcpy(params->salt, open->salt, sizeof(params->salt));
    memcpy(params->prefix, open->prefix, sizeof(params->prefix));
    return HD_OK;
}

static void log_opened(const service_link *link, const attention_sequence_params *params, uint64_t cached_tokens,
                       const frame *f) {
    char trace[HD_TRACE_BYTES] = "";
    if (f->part_count > 3) hd_trace_take(f->parts[3].bytes, f->parts[3].count, trace);
    hd_log(HD_LOG_INFO, "sequence_opened",
           "sequence=%016" PRIx64 " epoch=%" PRIu64 " first_position=%" PRIu64 " cached_tokens=%" PRIu64
           " link=%" PRIu64 " trace_id=%s",
           params->sequence, params->epoch, params->first_position, cached_tokens, link->number, trace);
}

/* What is being fetched under a name that is to be something else. */
static void drop_pull(attention_service *s, uint64_t name) {
    if (s->mover != NULL) page_mover_drop(s->mover, name);
}

static hd_status run_open(service_link *link, const frame *f, uint64_t *value, hd_error *error) {
    attention_service *s = link->service;
    drop_pull(s, f->sequence);
    attention_sequence_params params;
    char selection[256];
    uint64_t length;
    hd_status status = params_of(f, &params, selection, sizeof(selection), error);
    if (status != HD_OK) return status;
    bool is_new = s->engine->ops->sequence_length(s->engine, f->sequence, &length) == HD_NOT_FOUND;
    if (is_new && atomic_load(&s->is_draining))
        return hd_error_set(error, HD_FULL, "this attention node is draining and takes no new sequences");
    status = link->view->ops->sequence_open(link->view, &params, value, error);
    if (status == HD_OK) service_own(link, f->sequence, f->epoch);
    if (status == HD_OK) log_opened(link, &params, *value, f);
    return status;
}

static hd_status run_prefix(service_link *link, const frame *f, uint64_t *value, hd_error *error) {
    attention_sequence_params params;
    char selection[256];
    hd_status status = params_of(f, &params, selection, sizeof(selection), error);
    return status == HD_OK ? link->view->ops->prefix_find(link->view, &params, value) : status;
}

static hd_status run_fork(service_link *link, const frame *f, hd_error *error) {
    if (!wire_part(f, 0, sizeof(wire_fork), 1)) return hd_error_set(error, HD_CORRUPT, "a fork without its source");
    const wire_fork *fork = f->parts[0].bytes;
    drop_pull(link->service, f->sequence);
    hd_status status =
        link->view->ops->fork(link->view, fork->source, fork->length, f->sequence, f->epoch, f->value, error);
    if (status == HD_OK) service_own(link, f->sequence, f->epoch);
    return status;
}

static hd_status run_close(service_link *link, const frame *f) {
    drop_pull(link->service, f->sequence);
    hd_status status =
        link->view->ops->sequence_close(link->view, f->sequence, f->epoch, (f->value & ATTENTION_CLOSE_KEEP) != 0,
                                        (f->value & ATTENTION_CLOSE_EARLY) != 0);
    if (status != HD_STALE) service_disown(link, f->sequence);
    return status;
}

/* ---- Pulls ---- */

static hd_status read_pull(service_link *link, const frame *f, hd_error *error) {
    service_pull *p = &link->pull;
    if (!wire_part(f, 0, sizeof(wire_open), 1) || f->part_count != 3)
        return hd_error_set(error, HD_CORRUPT, "a pull that has not its parts");
    const wire_open *open = f->parts[0].bytes;
    wire_text(f, 1, p->address, sizeof(p->address));
    wire_text(f, 2, p->selection, sizeof(p->selection));
    p->call = *f;
    p->call.part_count = 0;
    p->pull = (attention_pull){.address = p->address,
                               .params = {.sequence = f->sequence,
                                          .epoch = f->epoch,
                                          .tokens_max = open->reuse_max,
                                          .prompt_count = open->prompt_count,
                                          .variant = open->variant,
                                          .selection = open->has_selection != 0 ? p->selection : NULL,
                                          .first_position = open->first_position,
                                          .end_position = open->end_position},
                               .length = f->value,
                               .wait_ms = f->layer};
    memcpy(p->pull.params.salt, open->salt, sizeof(open->salt));
    return HD_OK;
}

/* An earlier owner's, or one of this very sequence that was cut off for a while, gives way. */
static hd_status close_orphan(attention_service *s, const attention_sequence_params *params, hd_error *error) {
    service_link *owner = service_owner(s, params->sequence);
    if (owner == NULL) return HD_OK;
    if (!owner->is_ended)
        return hd_error_set(error, HD_INVALID, "sequence %" PRIu64 " is open here already", params->sequence);
    hd_status status = s->engine->ops->sequence_close(s->engine, params->sequence, params->epoch, true, true);
    if (status == HD_OK || status == HD_NOT_FOUND) service_disown(owner, params->sequence);
    return status == HD_NOT_FOUND ? HD_OK : status;
}

static hd_status run_pull(service_link *link, uint64_t *value, hd_error *error) {
    attention_service *s = link->service;
    const attention_pull *pull = &link->pull.pull;
    if (s->mover == NULL) return hd_error_set(error, HD_UNSUPPORTED, "this attention node fetches no blocks");
    if (atomic_load(&s->is_draining)) {
        page_mover_drop(s->mover, pull->params.sequence);
        return hd_error_set(error, HD_FULL, "this attention node is draining and takes no sequences");
    }
    hd_status status = close_orphan(s, &pull->params, error);
    if (status == HD_OK) status = page_mover_pull(s->mover, pull, link, value, error);
    if (status == HD_OK) service_own(link, pull->params.sequence, pull->params.epoch);
    return status;
}

static void answer_pull(service_link *link, service_answer *a, hd_status status, uint64_t value, hd_error *error) {
    if (status != HD_OK && error->text[0] == '\0') hd_error_write(error, "%s", hd_status_text(status));
    answer(link, a, &link->pull.call, status, value, status == HD_OK ? "" : error->text, NULL, 0);
}

/* Answered now, or by tend_pull. */
static void take_pull(service_link *link, const frame *f, service_answer *a) {
    hd_error error = {.text = ""};
    uint64_t value = 0;
    hd_status status = link->pull.is_waiting ? HD_INVALID : read_pull(link, f, &error);
    if (status == HD_OK) status = run_pull(link, &value, &error);
    if (status == HD_PENDING && link->pull.pull.length > 0 && link->pull.pull.wait_ms > 0) {
        link->pull.is_waiting = true;
        link->pull.answer = a;
        link->pull.deadline_ns = hd_now_ns() + link->pull.pull.wait_ms * NS_PER_MS;
        return;
    }
    answer_pull(link, a, status, value, &error);
}

static void tend_pull(service_link *link) {
    hd_error error = {.text = ""};
    uint64_t value = 0;
    hd_status status = run_pull(link, &value, &error);
    if (status == HD_PENDING && hd_now_ns() < link->pull.deadline_ns) return;
    link->pull.is_waiting = false;
    answer_pull(link, link->pull.answer, status, value, &error);
}

/* ---- Steps ---- */

static hd_status run_begin(service_link *link, const frame *f, hd_error *error) {
    if (f->part_count < 2 || f->parts[0].count % sizeof(wire_row) != 0)
        return hd_error_set(error, HD_CORRUPT, "a step without its rows");
    uint64_t span_count = f->parts[0].count / sizeof(wire_row), rows = 0;
    const wire_row *wire = f->parts[0].bytes;
    for (uint64_t i = 0; i < span_count; i++) rows += wire[i].count;
    if (span_count > link->sequences_max || rows > link->rows_max || !wire_part(f, 1, sizeof(uint32_t), rows)) {
        return hd_error_set(error, HD_INVALID, "a step of %" PRIu64 " rows of %" PRIu64 " sequences, with other tokens",
                            rows, span_count);
    }
    /* The engine borrows the tokens until the step ends, and the frame goes before. */
    memcpy(link->token_ids, f->parts[1].bytes, rows * sizeof(uint32_t));
    const uint32_t *tokens = link->token_ids;
    for (uint64_t i = 0; i < span_count; i++) {
        link->rows[i] = (attention_rows){.sequence = wire[i].sequence,
                                         .epoch = wire[i].epoch,
                                         .first_position = wire[i].first_position,
                                         .end_position = wire[i].end_position,
                                         .count = wire[i].count,
                                         .token_ids = tokens,
                                         .is_replica = wire[i].is_replica != 0};
        tokens += wire[i].count;
    }
    hd_status status = link->view->ops->step_begin(link->view, link->rows, (uint32_t)span_count, error);
    link->has_step = status == HD_OK;
    if (link->has_step) link->step = wire_step_of(link->rows, (uint32_t)span_count);
    return status;
}

/* Kept rows back to the places that they have among all rows. */
static void *spread_kept(const service_link *link, const frame_part *part, uint64_t row_bytes, void *memory) {
    if (part->count == 0 || link->step.kept_count == link->step.row_count) return (void *)part->bytes;
    const unsigned char *from = part->bytes;
    uint64_t row = 0;
    for (uint32_t i = 0; i < link->step.span_count; i++) {
        uint64_t bytes = wire_row_kept(&link->rows[i]) * row_bytes;
        memcpy((unsigned char *)memory + row * row_bytes, from, bytes);
        from += bytes;
        row += link->rows[i].count;
    }
    return memory;
}

/* Whole rows of the output move up to the front, one after the other. */
static void pack_output(const service_link *link, const wire_shape *shape, unsigned char *output, uint64_t stride) {
    uint64_t width = (uint64_t)shape->heads * shape->group_size * shape->value_dim * shape->element_bytes, row = 0;
    unsigned char *to = output;
    for (uint32_t i = 0; i < link->step.span_count; i++) {
        const attention_rows *rows = &link->rows[i];
        for (uint32_t k = 0; k < rows->count && rows->end_position == 0 && !rows->is_replica; k++, to += width)
            memmove(to, output + (row + k) * stride, width);
        row += rows->count;
    }
}

/* Ranges' rows likewise, head by head. */
static void pack_partial(const service_link *link, const wire_shape *shape, const attention_partial *partial) {
    if (link->step.range_count == link->step.row_count) return;
    uint64_t to = 0, group = shape->group_size;
    for (uint32_t head = 0; head < shape->heads; head++) {
        uint64_t from = (uint64_t)head * link->step.row_count * group;
        for (uint32_t i = 0; i < link->step.span_count; i++) {
            const attention_rows *rows = &link->rows[i];
            uint64_t count = rows->count * group;
            if (rows->end_position != 0 && !rows->is_replica) {
                memmove(partial->out + to * shape->value_dim, partial->out + from * shape->value_dim,
                        count * shape->value_dim * sizeof(float));
                memmove(partial->max + to, partial->max + from, count * sizeof(float));
                memmove(partial->sum + to, partial->sum + from, count * sizeof(float));
                to += count;
            }
            from += count;
        }
    }
}

static attention_tensor tensor_of(const attention_service *s, const void *data) {
    return (attention_tensor){.data = (void *)data, .dtype = kernel_row_dtype(s->kv_dtype)};
}

/* What the step has lost so far; nothing where it has not. */
static frame_part read_lost(const service_link *link, service_answer *a) {
    bool has_lost = false;
    for (uint32_t i = 0; i < link->step.span_count; i++) {
        a->lost[i] = (uint32_t)link->view->ops->step_lost(link->view, i);
        has_lost = has_lost || a->lost[i] != HD_OK;
    }
    return (frame_part){a->lost, has_lost ? link->step.span_count * sizeof(*a->lost) : 0};
}

static hd_status run_end(service_link *link, const frame *f, hd_error *error) {
    if (!link->has_step) return hd_error_set(error, HD_INVALID, "there is no step to end");
    if (f->part_count > 0 && f->parts[0].count > 0) {
        if (!wire_part(f, 0, sizeof(uint32_t), link->step.span_count))
            return hd_error_set(error, HD_CORRUPT, "the end of a step of other rows");
        const uint32_t *lost = f->parts[0].bytes;
        for (uint32_t i = 0; i < link->step.span_count; i++) {
            bool is_known = lost[i] == HD_TIMED_OUT || lost[i] == HD_IO || lost[i] == HD_CORRUPT;
            if (is_known) link->view->ops->step_lose(link->view, i, (hd_status)lost[i]);
        }
    }
    link->has_step = false;
    return link->view->ops->step_end(link->view);
}

static hd_status run_layer(service_link *link, const frame *f, service_answer *a, uint64_t *value, frame_part *parts,
                           hd_error *error) {
    attention_service *s = link->service;
    if (!link->has_step || f->layer >= s->table.layer_count)
        return hd_error_set(error, HD_INVALID, "a layer without a step, or one that the model has not");
    wire_shape shape = wire_shape_of(&s->table, f->layer, s->kv_dtype);
    const wire_step *step = &link->step;
    uint64_t head_bytes = (uint64_t)shape.heads * shape.element_bytes;
    uint64_t query_bytes = head_bytes * shape.group_size * shape.key_pad;
    uint64_t keys = f->part_count == 3 && f->parts[1].count == 0 ? 0 : step->kept_count;
    if (f->part_count != 3 || !wire_part(f, 0, query_bytes, step->has_queries ? step->row_count : 0) ||
        !wire_part(f, 1, head_bytes * shape.key_dim, keys) || !wire_part(f, 2, head_bytes * shape.value_dim, keys))
        return hd_error_set(error, HD_CORRUPT, "layer %u: tensors that are not of the step's rows", f->layer);

    uint64_t width = (uint64_t)shape.heads * shape.group_size * shape.value_dim;
    attention_layer_call call = {
        .layer = f->layer,
        .queries = tensor_of(s, f->parts[0].count > 0 ? f->parts[0].bytes : NULL),
        .keys = tensor_of(s, keys > 0 ? spread_kept(link, &f->parts[1], head_bytes * shape.key_dim, link->keys) : NULL),
        .values =
            tensor_of(s, keys > 0 ? spread_kept(link, &f->parts[2], head_bytes * shape.value_dim, link->values) : NULL),
        .output = tensor_of(s, a->output),
        .output_stride = HD_ALIGN_UP(width, 32u),
        .partial = a->partial};
    if (keys == 0 &&
        step->kept_count == 0) { /* rows behind their ranges: there is nothing to keep, but pages expect some */
        call.keys.data = link->keys;
        call.values.data = link->values;
    }
    uint64_t start = hd_now_ns();
    hd_status status = link->view->ops->submit(link->view, &call);
    if (status == HD_OK) status = link->view->ops->wait(link->view, f->layer);
    *value = hd_now_ns() - start;
    atomic_fetch_add_explicit(&s->busy_ns, *value, memory_order_relaxed);
    if (status != HD_OK) return status;
    pack_output(link, &shape, a->output, call.output_stride * shape.element_bytes);
    pack_partial(link, &shape, &a->partial);
    uint64_t range_rows = (uint64_t)shape.heads * shape.group_size * step->range_count;
    parts[0] = (frame_part){a->output, step->whole_count * width * shape.element_bytes};
    parts[1] = (frame_part){a->partial.out, range_rows * shape.value_dim * sizeof(float)};
    parts[2] = (frame_part){a->partial.max, range_rows * sizeof(float)};
    parts[3] = (frame_part){a->partial.sum, range_rows * sizeof(float)};
    parts[4] = read_lost(link, a);
    return HD_OK;
}

/* ---- Every call ---- */

static hd_status run_call(service_link *link, const frame *f, service_answer *a, uint64_t *value, frame_part *parts,
                          uint32_t *part_count, hd_error *error) {
    attention *view = link->view;
    if (f->kind == ATTENTION_HELLO) {
        hd_status status = service_hello(link, f, error);
        *value = ATTENTION_WIRE_VERSION;
        *part_count = 1;
        parts[0] = (frame_part){link->service->config.kernels->name, strlen(link->service->config.kernels->name)};
        return status;
    }
    if (view == NULL) return hd_error_set(error, HD_INVALID, "a link begins with HELLO");
    switch (f->kind) {
    case ATTENTION_OPEN: return run_open(link, f, value, error);
    case ATTENTION_PREFIX: return run_prefix(link, f, value, error);
    case ATTENTION_FORK: return run_fork(link, f, error);
    case ATTENTION_TRUNCATE: return view->ops->truncate(view, f->sequence, f->epoch, f->value);
    case ATTENTION_CLOSE: return run_close(link, f);
    case ATTENTION_LENGTH: return view->ops->sequence_length(view, f->sequence, value);
    case ATTENTION_FIND: {
        uint32_t count = 0;
        hd_status status = view->ops->sequence_find(view, f->sequence, a->found, SERVICE_FOUND_MAX, &count);
        parts[0] = (frame_part){a->found, count * sizeof(wire_found)};
        *part_count = 1;
        return status;
    }
    case ATTENTION_BEGIN: return run_begin(link, f, error);
    case ATTENTION_LAYER: *part_count = 5; return run_layer(link, f, a, value, parts, error);
    case ATTENTION_END: return run_end(link, f, error);
    case ATTENTION_RESET: view->ops->cache_reset(view); return HD_OK;
    default: return hd_error_set(error, HD_UNSUPPORTED, "a call of kind %u, which this version does not know", f->kind);
    }
}

/* Calls that would come in the middle of a step belong to nobody who keeps to the interface. */
static bool is_out_of_place(const service_link *link, const frame *f) {
    if (!link->has_step) return false;
    return f->kind != ATTENTION_LAYER && f->kind != ATTENTION_END && f->kind != ATTENTION_LENGTH;
}

static void on_frame(void *context, transport_link *base, const frame *f) {
    service_link *link = context;
    service_answer *a = take_answer(link);
    if (a == NULL || is_out_of_place(link, f) || link->pull.is_waiting) {
        cut_link(link,
                 a == NULL ? "it calls again before it has taken the answers" : "a call in the middle of another");
        return;
    }
    if (f->kind == ATTENTION_PULL && link->view != NULL) {
        take_pull(link, f, a);
        return;
    }
    hd_error error = {.text = ""};
    frame_part parts[5] = {{NULL, 0}};
    uint32_t part_count = 0;
    uint64_t value = 0;
    hd_status status = run_call(link, f, a, &value, parts, &part_count, &error);
    if (status != HD_OK && error.text[0] == '\0') hd_error_write(&error, "%s", hd_status_text(status));
    answer(link, a, f, status, value, status == HD_OK ? "" : error.text, parts, status == HD_OK ? part_count : 0);
}

static void on_lost(void *context, transport_link *base, hd_status status, const char *reason) {
    service_link *link = context;
    char quoted[160];
    hd_log(HD_LOG_INFO, "worker_link_lost", "link=%" PRIu64 " status=%s reason=%s", link->number,
           hd_status_name(status), hd_log_quote(reason, quoted, sizeof(quoted)));
    service_link_end(link);
}

/* ---- Links ---- */

hd_status attention_service_accept(void *listener, transport_link *base, transport_handlers *handlers, void **context) {
    attention_service *s = listener;
    service_link *link = hd_alloc_zeroed(sizeof(*link), HD_CACHE_LINE);
    if (link == NULL) return HD_NO_MEMORY;
    link->service = s;
    link->link = base;
    link->number = ++s->next_link;
    link->next = s->links;
    s->links = link;
    *handlers = (transport_handlers){.on_frame = on_frame, .on_lost = on_lost};
    *context = link;
    return HD_OK;
}

/* A link's memory is lent to the transport until its last answers have been given back. */
static bool has_answers_out(const service_link *link) {
    for (uint32_t i = 0; i < SERVICE_ANSWERS; i++) {
        if (link->answers[i].send.is_out) return true;
    }
    return false;
}

void service_link_end(service_link *link) {
    if (link->is_ended) return;
    link->is_ended = true;
    link->pull.is_waiting = false;
    if (link->service->mover != NULL) page_mover_drop_owner(link->service->mover, link);
    if (link->view != NULL) link->view->ops->close(link->view);
    link->view = NULL;
    link->ended_ns = hd_now_ns();
    link->link->owner->ops->disconnect(link->link);
}

static void free_link(service_link *link) {
    hd_free(link->memory);
    hd_free(link->owned);
    hd_free(link);
}

hd_status attention_service_accept_pages(void *listener, transport_link *base, transport_handlers *handlers,
                                         void **context) {
    return page_mover_accept(((attention_service *)listener)->mover, base, handlers, context);
}

static void wake_service(void *context) {
    attention_service *s = context;
    if (s->transport != NULL) s->transport->ops->wake(s->transport);
}

/* Ended links go when nothing of theirs is lent and their sequences have been taken over or closed. */
static void tend_links(attention_service *s) {
    uint64_t now = hd_now_ns();
    for (service_link **at = &s->links; *at != NULL;) {
        service_link *link = *at;
        if (link->pull.is_waiting) tend_pull(link);
        if (link->is_ended && link->owned_count > 0 && now - link->ended_ns >= s->config.orphan_ms * NS_PER_MS)
            service_close_owned(link);
        if (!link->is_ended || link->owned_count > 0 || has_answers_out(link)) {
            at = &link->next;
            continue;
        }
        *at = link->next;
        free_link(link);
    }
    if (now - s->published_ns < POLL_NS) return;
    s->published_ns = now;
    service_publish(s);
}

/* ---- The thread ---- */

static bool is_waiting(const attention_service *s) {
    for (const service_link *link = s->links; link != NULL; link = link->next) {
        if (link->pull.is_waiting) return true;
    }
    return false;
}

static void *service_main(void *context) {
    attention_service *s = context;
    while (!atomic_load(&s->is_closing)) {
        s->transport->ops->poll(s->transport, is_waiting(s) ? PULL_POLL_NS : POLL_NS);
        if (s->mover != NULL) page_mover_tend(s->mover);
        tend_links(s);
    }
    return NULL;
}

hd_status attention_service_start(attention_service *s, transport *driven) {
    s->transport = driven;
    sigset_t all, before; /* signals are for the threads that expect them */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    s->has_thread = pthread_create(&s->thread, NULL, service_main, s) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!s->has_thread) return HD_NO_MEMORY;
    pthread_setname_np(s->thread, "attention");
    return s->mover != NULL ? page_mover_start(s->mover) : HD_OK;
}

void attention_service_close(attention_service *s) {
    if (s == NULL) return;
    if (s->has_thread) {
        atomic_store(&s->is_closing, true);
        s->transport->ops->wake(s->transport);
        pthread_join(s->thread, NULL);
    }
    page_mover_close(s->mover);
    s->mover = NULL;
    for (service_link *link = s->links; link != NULL; link = link->next) service_link_end(link);
    while (s->links != NULL) {
        service_link *link = s->links;
        while (has_answers_out(link)) s->transport->ops->poll(s->transport, POLL_NS);
        s->links = link->next;
        free_link(link);
    }
    service_engine_close(s);
    pthread_mutex_destroy(&s->lock);
    hd_free(s);
}

hd_status attention_service_open(const attention_service_config *config, attention_service **out) {
    attention_service *s = hd_alloc_zeroed(sizeof(*s), HD_CACHE_LINE);
    if (s == NULL) return HD_NO_MEMORY;
    s->config = *config;
    pthread_mutex_init(&s->lock, NULL);
    page_mover_config pages = {.transport = config->pages, .wake = wake_service, .context = s};
    hd_status status = config->pages != NULL ? page_mover_open(&pages, &s->mover) : HD_OK;
    if (status == HD_OK) *out = s;
    else attention_service_close(s);
    return status;
}

void attention_service_set_draining(attention_service *s, bool is_draining) {
    if (atomic_exchange(&s->is_draining, is_draining) != is_draining) atomic_fetch_add(&s->drain_orders, 1);
}

void attention_service_reset_busy(attention_service *s) {
    atomic_store_explicit(&s->busy_ns, 0, memory_order_relaxed);
}

void attention_service_state_read(attention_service *s, attention_service_state *state) {
    pthread_mutex_lock(&s->lock);
    *state = s->published;
    state->is_drained = state->is_drained && s->published_orders == atomic_load(&s->drain_orders);
    pthread_mutex_unlock(&s->lock);
    state->busy_ns = atomic_load_explicit(&s->busy_ns, memory_order_relaxed);
}
