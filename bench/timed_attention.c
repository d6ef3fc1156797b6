/* timed_attention.c - one function a slot of the table. */
#include "bench/timed_attention.h"

#include "base/clock.h"

static timed_attention *of(attention *self) {
    return (timed_attention *)self;
}

static void timed_close(attention *self) {
    (void)self; /* the inner one is lent */
}

static hd_status timed_sequence_open(attention *self, const attention_sequence_params *params, uint64_t *cached_tokens,
                                     hd_error *error) {
    attention *inner = of(self)->inner;
    return inner->ops->sequence_open(inner, params, cached_tokens, error);
}

static hd_status timed_fork(attention *self, uint64_t source, uint64_t length, uint64_t sequence, uint64_t epoch,
                            uint64_t tokens_max, hd_error *error) {
    attention *inner = of(self)->inner;
    return inner->ops->fork(inner, source, length, sequence, epoch, tokens_max, error);
}

static hd_status timed_truncate(attention *self, uint64_t sequence, uint64_t epoch, uint64_t length) {
    attention *inner = of(self)->inner;
    return inner->ops->truncate(inner, sequence, epoch, length);
}

static hd_status timed_sequence_length(const attention *self, uint64_t sequence, uint64_t *length) {
    const attention *inner = ((const timed_attention *)self)->inner;
    return inner->ops->sequence_length(inner, sequence, length);
}

static bool timed_sequence_is_ready(attention *self, uint64_t sequence, uint64_t position) {
    attention *inner = of(self)->inner;
    return inner->ops->sequence_is_ready(inner, sequence, position);
}

static hd_status timed_idle(attention *self) {
    attention *inner = of(self)->inner;
    return inner->ops->idle(inner);
}

static hd_status timed_sequence_find(attention *self, uint64_t sequence, attention_found *found, uint32_t found_max,
                                     uint32_t *found_count) {
    attention *inner = of(self)->inner;
    return inner->ops->sequence_find(inner, sequence, found, found_max, found_count);
}

static hd_status timed_sequence_pull(attention *self, const attention_pull *pull, uint64_t *tokens, hd_error *error) {
    attention *inner = of(self)->inner;
    return inner->ops->sequence_pull(inner, pull, tokens, error);
}

static hd_status timed_prefix_find(attention *self, const attention_sequence_params *params, uint64_t *cached_tokens) {
    attention *inner = of(self)->inner;
    return inner->ops->prefix_find(inner, params, cached_tokens);
}

static hd_status timed_state_save(attention *self, uint64_t sequence, uint64_t epoch, uint64_t position,
                                  uint32_t stream, const void *bytes) {
    attention *inner = of(self)->inner;
    return inner->ops->state_save(inner, sequence, epoch, position, stream, bytes);
}

static hd_status timed_state_load(const attention *self, uint64_t sequence, uint64_t position, uint32_t stream,
                                  void *bytes) {
    const attention *inner = ((const timed_attention *)self)->inner;
    return inner->ops->state_load(inner, sequence, position, stream, bytes);
}

static hd_status timed_sequence_close(attention *self, uint64_t sequence, uint64_t epoch, bool keep, bool early) {
    attention *inner = of(self)->inner;
    return inner->ops->sequence_close(inner, sequence, epoch, keep, early);
}

static hd_status timed_step_begin(attention *self, const attention_rows *rows, uint32_t row_span_count,
                                  hd_error *error) {
    timed_attention *timed = of(self);
    uint64_t start = hd_now_ns();
    hd_status status = timed->inner->ops->step_begin(timed->inner, rows, row_span_count, error);
    timed->begin_ns += hd_now_ns() - start;
    return status;
}

static hd_status timed_submit(attention *self, const attention_layer_call *call) {
    timed_attention *timed = of(self);
    timed->call = *call;
    if (timed->before_submit != NULL) timed->before_submit(timed->context, call);
    uint64_t start = hd_now_ns();
    hd_status status = timed->inner->ops->submit(timed->inner, call);
    timed->attend_ns += hd_now_ns() - start;
    return status;
}

static hd_status timed_wait(attention *self, uint32_t layer) {
    timed_attention *timed = of(self);
    uint64_t start = hd_now_ns();
    hd_status status = timed->inner->ops->wait(timed->inner, layer);
    timed->attend_ns += hd_now_ns() - start;
    if (timed->after_wait != NULL && status == HD_OK) timed->after_wait(timed->context, &timed->call);
    return status;
}

static hd_status timed_step_replayed(attention *self) {
    attention *inner = of(self)->inner;
    return inner->ops->step_replayed(inner);
}

static hd_status timed_step_end(attention *self) {
    timed_attention *timed = of(self);
    uint64_t start = hd_now_ns();
    hd_status status = timed->inner->ops->step_end(timed->inner);
    timed->begin_ns += hd_now_ns() - start;
    return status;
}

static hd_status timed_step_begin_post(attention *self, const attention_rows *rows, uint32_t row_span_count,
                                       hd_error *error) {
    timed_attention *timed = of(self);
    uint64_t start = hd_now_ns();
    hd_status status = timed->inner->ops->step_begin_post(timed->inner, rows, row_span_count, error);
    timed->begin_ns += hd_now_ns() - start;
    return status;
}

static hd_status timed_step_end_post(attention *self) {
    timed_attention *timed = of(self);
    uint64_t start = hd_now_ns();
    hd_status status = timed->inner->ops->step_end_post(timed->inner);
    timed->begin_ns += hd_now_ns() - start;
    return status;
}

static hd_status timed_step_finish(attention *self) {
    timed_attention *timed = of(self);
    uint64_t start = hd_now_ns();
    hd_status status = timed->inner->ops->step_finish(timed->inner);
    timed->begin_ns += hd_now_ns() - start;
    return status;
}

static hd_status timed_step_lost(attention *self, uint32_t span) {
    attention *inner = of(self)->inner;
    return inner->ops->step_lost(inner, span);
}

static void timed_step_lose(attention *self, uint32_t span, hd_status why) {
    attention *inner = of(self)->inner;
    inner->ops->step_lose(inner, span, why);
}

/* Its steps are not timed. */
static hd_status timed_attach(attention *self, uint32_t rows_max, attention **view, hd_error *error) {
    attention *inner = of(self)->inner;
    return inner->ops->attach(inner, rows_max, view, error);
}

static void timed_cache_reset(attention *self) {
    attention *inner = of(self)->inner;
    inner->ops->cache_reset(inner);
}

static void timed_stats(const attention *self, attention_stats *stats) {
    const attention *inner = ((const timed_attention *)self)->inner;
    inner->ops->stats(inner, stats);
}

static hd_dtype timed_dtype(const attention *self) {
    const attention *inner = ((const timed_attention *)self)->inner;
    return inner->ops->dtype(inner);
}

static hd_dtype timed_kv_dtype(const attention *self) {
    const attention *inner = ((const timed_attention *)self)->inner;
    return inner->ops->kv_dtype(inner);
}

static const attention_ops timed_ops = {
    .name = "timed",
    .close = timed_close,
    .sequence_open = timed_sequence_open,
    .fork = timed_fork,
    .truncate = timed_truncate,
    .sequence_length = timed_sequence_length,
    .sequence_is_ready = timed_sequence_is_ready,
    .idle = timed_idle,
    .sequence_find = timed_sequence_find,
    .sequence_pull = timed_sequence_pull,
    .prefix_find = timed_prefix_find,
    .state_save = timed_state_save,
    .state_load = timed_state_load,
    .sequence_close = timed_sequence_close,
    .step_begin = timed_step_begin,
    .submit = timed_submit,
    .wait = timed_wait,
    .step_replayed = timed_step_replayed,
    .step_end = timed_step_end,
    .step_begin_post = timed_step_begin_post,
    .step_end_post = timed_step_end_post,
    .step_finish = timed_step_finish,
    .step_lost = timed_step_lost,
    .step_lose = timed_step_lose,
    .attach = timed_attach,
    .cache_reset = timed_cache_reset,
    .stats = timed_stats,
    .dtype = timed_dtype,
    .kv_dtype = timed_kv_dtype,
};

void timed_attention_init(timed_attention *timed, attention *inner) {
    *timed = (timed_attention){.base = {.ops = &timed->ops}, .ops = timed_ops, .inner = inner};
    /* What an attention need not have, this one has where the inner one does. */
    if (inner->ops->sequence_is_ready == NULL) timed->ops.sequence_is_ready = NULL;
    if (inner->ops->idle == NULL) timed->ops.idle = NULL;
    if (inner->ops->sequence_pull == NULL) timed->ops.sequence_pull = NULL;
    if (inner->ops->step_replayed == NULL) timed->ops.step_replayed = NULL;
    if (inner->ops->attach == NULL) timed->ops.attach = NULL;
}
