/* offload_turns.c - every round is made four ways at the same positions, and each way has to give the same logits. */
#include <stdlib.h>

#include "base/clock.h"
#include "base/memory.h"
#include "bench/offload_state.h"

static hd_status open_forward(const bench *b, attention *a, uint32_t rows, forward **out, hd_error *error) {
    const bench_offload_config *c = b->config;
    forward_config shape = {.model = c->model,
                            .weights = c->weights,
                            .kernels = c->kernels,
                            .pool = c->pool,
                            .attention = a,
                            .rows_max = rows,
                            .spans_max = rows,
                            .logits_rows_max = rows};
    hd_status status = forward_open(&shape, out);
    return status == HD_OK ? HD_OK : hd_error_set(error, status, "no memory for a step of %u rows", rows);
}

static hd_status open_pair(const bench *b, offload_pair *p, attention *a, hd_error *error) {
    p->attentions[0] = a;
    hd_status status = a->ops->attach(a, b->config->batch, &p->attentions[1], error);
    for (uint32_t i = 0; i < 2 && status == HD_OK; i++)
        status = open_forward(b, p->attentions[i], b->config->batch, &p->forwards[i], error);
    return status;
}

static hd_status open_turns(bench *b, const void *rows, hd_error *error) {
    const bench_offload_config *c = b->config;
    offload_turns *t = &b->turns;
    uint32_t count = 2 * c->batch;
    t->tokens = calloc(count, sizeof(*t->tokens));
    t->bits = calloc(count, sizeof(*t->bits));
    t->spans = calloc(count, sizeof(*t->spans));
    if (t->tokens == NULL || t->bits == NULL || t->spans == NULL)
        return hd_error_set(error, HD_NO_MEMORY, "out of memory");
    hd_status status = delay_relay_open(rpc_server_address(b->server), c->delay_ms * 1000000u, &t->relay, error);
    if (status == HD_OK) status = bench_offload_link(b, delay_relay_address(t->relay), &t->delayed, error);
    if (status == HD_OK) status = open_pair(b, &t->near, b->remote, error);
    if (status == HD_OK) status = open_pair(b, &t->far, t->delayed, error);
    if (status == HD_OK) status = open_forward(b, b->remote, count, &t->whole, error);
    for (uint32_t i = c->batch; i < count && status == HD_OK; i++)
        status = bench_offload_sequence(b, b->remote, i + 1, rows, error);
    return status;
}

/* FNV-1a over the row, word by word. */
static uint64_t hash_row(const float *row, uint32_t count) {
    uint64_t hash = 0xcbf29ce484222325u;
    const uint32_t *words = (const uint32_t *)(const void *)row;
    for (uint32_t i = 0; i < count; i++) hash = (hash ^ words[i]) * 0x100000001b3u;
    return hash;
}

/* The rows' logits, which have to be those of the round's first way. */
static hd_status take_logits(bench *b, forward *f, uint32_t first, uint32_t count, bool is_first_way, uint32_t *next,
                             hd_error *error) {
    const bench_offload_config *c = b->config;
    const float *logits = forward_logits(f, 0, count);
    for (uint32_t i = 0; i < count; i++) {
        const float *row = logits + i * forward_logits_stride(f);
        uint64_t bits = hash_row(row, c->model->vocabulary_size);
        if (is_first_way) b->turns.bits[first + i] = bits;
        if (b->turns.bits[first + i] != bits)
            return hd_error_set(error, HD_CORRUPT, "sequence %u has other logits in this way of running a round",
                                first + i + 1);
        c->kernels->logits_summary(row, c->model->vocabulary_size, &next[first + i], NULL, NULL);
    }
    return HD_OK;
}

typedef enum { IN_TURNS, ONE_AFTER_THE_OTHER } order;

static double waited_ms(const offload_pair *p) {
    remote_traffic traffic[2];
    for (uint32_t i = 0; i < 2; i++) remote_traffic_read(p->attentions[i], &traffic[i]);
    return (double)(traffic[0].waited_ns + traffic[1].waited_ns) * 1e-6;
}

static hd_status run_pair(bench *b, offload_pair *p, order how, sample *ms, bool is_first_way, uint32_t *next,
                          hd_error *error) {
    const bench_offload_config *c = b->config;
    forward_batch batches[2];
    double waited = waited_ms(p);
    for (uint32_t i = 0; i < 2; i++)
        batches[i] =
            (forward_batch){.forward = p->forwards[i], .spans = b->turns.spans + i * c->batch, .span_count = c->batch};
    uint64_t start = hd_now_ns();
    if (how == IN_TURNS) forward_run(batches, 2);
    for (uint32_t i = 0; i < 2 && how == ONE_AFTER_THE_OTHER; i++) forward_run(&batches[i], 1);
    double round_ms = (double)(hd_now_ns() - start) * 1e-6;
    for (uint32_t i = 0; i < 2; i++) {
        if (batches[i].status != HD_OK) return hd_error_set(error, batches[i].status, "%s", batches[i].error.text);
    }
    hd_status status = ms != NULL ? sample_add(ms, round_ms) : HD_OK;
    if (status == HD_OK && ms == &p->round_ms) status = sample_add(&p->waited_ms, waited_ms(p) - waited);
    for (uint32_t i = 0; i < 2 && status == HD_OK; i++)
        status = take_logits(b, p->forwards[i], i * c->batch, c->batch, is_first_way, next, error);
    return status;
}

static hd_status run_whole(bench *b, sample *ms, uint32_t *next, hd_error *error) {
    uint32_t count = 2 * b->config->batch;
    bool has_begun;
    uint64_t start = hd_now_ns();
    hd_status status = forward_step(b->turns.whole, b->turns.spans, count, &has_begun, error);
    if (status == HD_OK && ms != NULL) status = sample_add(ms, (double)(hd_now_ns() - start) * 1e-6);
    return status == HD_OK ? take_logits(b, b->turns.whole, 0, count, false, next, error) : status;
}

static hd_status run_round(bench *b, uint32_t number, uint32_t *next, hd_error *error) {
    const bench_offload_config *c = b->config;
    offload_turns *t = &b->turns;
    bool is_timed = number > 0;
    for (uint32_t i = 0; i < 2 * c->batch; i++) {
        uint64_t before = i < c->batch ? c->steps + 1 : 0; /* the first ones have been stepped alone */
        t->spans[i] = (forward_span){.rows = {.sequence = i + 1,
                                              .epoch = BENCH_EPOCH,
                                              .first_position = c->depth + before + number,
                                              .count = 1,
                                              .token_ids = &t->tokens[i]},
                                     .need = FORWARD_LAST_LOGITS,
                                     .rope = b->rope};
    }
    hd_status status = run_pair(b, &t->near, IN_TURNS, is_timed ? &t->near.round_ms : NULL, true, next, error);
    if (status == HD_OK)
        status = run_pair(b, &t->far, IN_TURNS, is_timed ? &t->far.round_ms : NULL, false, next, error);
    if (status == HD_OK) status = run_whole(b, is_timed ? &t->whole_ms : NULL, next, error);
    if (status == HD_OK)
        status = run_pair(b, &t->far, ONE_AFTER_THE_OTHER, is_timed ? &t->after_ms : NULL, false, next, error);
    return status;
}

hd_status offload_turns_run(bench *b, const void *rows, hd_error *error) {
    const bench_offload_config *c = b->config;
    offload_turns *t = &b->turns;
    sample_init(&t->near.round_ms);
    sample_init(&t->far.round_ms);
    sample_init(&t->near.waited_ms);
    sample_init(&t->far.waited_ms);
    sample_init(&t->whole_ms);
    sample_init(&t->after_ms);
    hd_status status = open_turns(b, rows, error);
    uint32_t *next = calloc(2u * c->batch, sizeof(*next));
    if (status == HD_OK && next == NULL) status = hd_error_set(error, HD_NO_MEMORY, "out of memory");
    for (uint32_t i = 0; i <= c->steps && status == HD_OK; i++) {
        status = run_round(b, i, next, error);
        for (uint32_t k = 0; k < 2 * c->batch && status == HD_OK; k++) t->tokens[k] = next[k];
    }
    free(next);
    return status;
}

static void close_pair(offload_pair *p) {
    for (uint32_t i = 0; i < 2; i++) forward_close(p->forwards[i]);
    if (p->attentions[1] != NULL) p->attentions[1]->ops->close(p->attentions[1]);
    sample_fini(&p->round_ms);
    sample_fini(&p->waited_ms);
}

void offload_turns_close(bench *b) {
    offload_turns *t = &b->turns;
    close_pair(&t->near);
    close_pair(&t->far);
    forward_close(t->whole);
    if (t->delayed != NULL) t->delayed->ops->close(t->delayed);
    delay_relay_close(t->relay);
    sample_fini(&t->whole_ms);
    sample_fini(&t->after_ms);
    free(t->tokens);
    free(t->bits);
    free(t->spans);
}
