/* offload.c - two sides with the same sequences, steps in turns, and an echo; micro-batches are offload_turns.c's. */
#include "bench/offload.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "bench/offload_state.h"
#include "bench/report.h"
#include "worker/worker.h"

#define POLL_NS 50000000ull
#define ANSWER_MS 120000u
#define LINK_MS 5000u

/* ---- The attention node ---- */

static void on_echo(void *context, transport_link *link, const frame *f) {
    bench *b = context;
    frame back = {.kind = f->kind, .tag = f->tag, .part_count = 1, .parts = {{b->echo.bytes, b->echo.in_bytes}}};
    (void)link->owner->ops->send(link, &back, &b->echo.answer);
}

static void on_echo_lost(void *context, transport_link *link, hd_status status, const char *reason) {
    link->owner->ops->disconnect(link);
}

static hd_status accept_echo(void *listener, transport_link *link, transport_handlers *handlers, void **context) {
    *handlers = (transport_handlers){.on_frame = on_echo, .on_lost = on_echo_lost};
    *context = listener;
    return HD_OK;
}

static hd_status open_node(bench *b, hd_error *error) {
    const bench_offload_config *c = b->config;
    attention_service_config config = {
        .hot_bytes = c->node_bytes, .links_max = 4, .orphan_ms = 1000, .kernels = c->kernels};
    hd_status status = hd_pool_open(c->node_threads, &b->node_pool);
    config.pool = b->node_pool;
    if (status == HD_OK) status = attention_service_open(&config, &b->service);
    if (status == HD_OK) status = transport_grpc_open(NULL, &b->far);
    if (status == HD_OK) status = transport_grpc_open(NULL, &b->near);
    if (status != HD_OK) return hd_error_set(error, status, "no memory for an attention node");
    rpc_method methods[2];
    status = transport_grpc_listen(b->far, "step", attention_service_accept, b->service, &methods[0]);
    if (status == HD_OK) status = transport_grpc_listen(b->far, "pages", accept_echo, b, &methods[1]);
    rpc_server_config serving = {.listen_address = "127.0.0.1:0", .methods = methods, .method_count = 2};
    if (status == HD_OK) status = rpc_server_open(&serving, &b->server, error);
    if (status == HD_OK) status = attention_service_start(b->service, b->far);
    if (status != HD_OK) return status;
    return bench_offload_link(b, rpc_server_address(b->server), &b->remote, error);
}

hd_status bench_offload_link(bench *b, const char *address, attention **out, hd_error *error) {
    const bench_offload_config *c = b->config;
    remote_config linked = {.transport = b->near,
                            .address = address,
                            .model_name = c->model_name,
                            .layers = b->layers,
                            .heads = {0, c->model->kv_heads},
                            .kv_dtype = c->kv_dtype,
                            .step_rows_max = c->rows_max,
                            .sequences_max = 2 * c->batch,
                            .answer_ms = ANSWER_MS,
                            .link_ms = LINK_MS,
                            .kernels = c->kernels->name};
    memcpy(linked.fingerprint, c->weights->fingerprint, sizeof(linked.fingerprint));
    return remote_open(&linked, out, error);
}

/* ---- Sequences ---- */

/* Rows of a replica are kept without being attended to, so depth costs no quadratic prefill. */
static hd_status fill(bench *b, attention *a, uint64_t sequence, const void *rows, hd_error *error) {
    const bench_offload_config *c = b->config;
    uint32_t *tokens = calloc(c->rows_max, sizeof(*tokens));
    if (tokens == NULL) return hd_error_set(error, HD_NO_MEMORY, "out of memory");
    hd_status status = HD_OK;
    for (uint64_t done = 0; done < c->depth && status == HD_OK;) {
        uint32_t count = c->depth - done < c->rows_max ? (uint32_t)(c->depth - done) : c->rows_max;
        attention_rows span = {.sequence = sequence,
                               .epoch = BENCH_EPOCH,
                               .first_position = done,
                               .count = count,
                               .token_ids = tokens,
                               .is_replica = true};
        status = a->ops->step_begin(a, &span, 1, error);
        if (status != HD_OK) break;
        attention_tensor tensor = {.data = (void *)rows, .dtype = kernel_row_dtype(c->kv_dtype)};
        for (uint32_t layer = 0; layer < b->layers.layer_count && status == HD_OK; layer++) {
            attention_layer_call call = {.layer = layer, .keys = tensor, .values = tensor};
            status = a->ops->submit(a, &call);
            if (status == HD_OK) status = a->ops->wait(a, layer);
        }
        hd_status ended = a->ops->step_end(a);
        if (status == HD_OK) status = ended;
        if (status != HD_OK) hd_error_set(error, status, "cannot fill a sequence: %s", hd_status_text(status));
        done += count;
    }
    free(tokens);
    return status;
}

hd_status bench_offload_sequence(bench *b, attention *a, uint64_t name, const void *rows, hd_error *error) {
    uint64_t cached, most = b->config->depth + 2 * b->config->steps + 3;
    attention_sequence_params params = {.sequence = name, .epoch = BENCH_EPOCH, .tokens_max = most};
    hd_status status = a->ops->sequence_open(a, &params, &cached, error);
    return status == HD_OK ? fill(b, a, name, rows, error) : status;
}

static hd_status open_side(bench *b, side *s, attention *a, const void *rows, hd_error *error) {
    const bench_offload_config *c = b->config;
    timed_attention_init(&s->attention, a);
    sample_init(&s->step_ms);
    sample_init(&s->layer_us);
    s->tokens = calloc(c->batch, sizeof(*s->tokens));
    forward_config shape = {.model = c->model,
                            .weights = c->weights,
                            .kernels = c->kernels,
                            .pool = c->pool,
                            .attention = &s->attention.base,
                            .rows_max = c->batch,
                            .spans_max = c->batch,
                            .logits_rows_max = c->batch};
    if (s->tokens == NULL || forward_open(&shape, &s->forward) != HD_OK)
        return hd_error_set(error, HD_NO_MEMORY, "no memory for a step of %u rows", c->batch);
    hd_status status = HD_OK;
    for (uint32_t i = 0; i < c->batch && status == HD_OK; i++)
        status = bench_offload_sequence(b, a, i + 1, rows, error);
    return status;
}

static hd_status step(bench *b, side *s, uint64_t number, bool is_timed, hd_error *error) {
    const bench_offload_config *c = b->config;
    for (uint32_t i = 0; i < c->batch; i++) {
        b->spans[i] = (forward_span){.rows = {.sequence = i + 1,
                                              .epoch = BENCH_EPOCH,
                                              .first_position = c->depth + number,
                                              .count = 1,
                                              .token_ids = &s->tokens[i]},
                                     .need = FORWARD_LAST_LOGITS,
                                     .rope = b->rope};
    }
    s->attention.attend_ns = 0;
    bool has_begun;
    uint64_t start = hd_now_ns();
    hd_status status = forward_step(s->forward, b->spans, c->batch, &has_begun, error);
    if (status != HD_OK) return status;
    const float *logits = forward_logits(s->forward, 0, c->batch);
    for (uint32_t i = 0; i < c->batch; i++)
        c->kernels->logits_summary(logits + i * forward_logits_stride(s->forward), c->model->vocabulary_size,
                                   &s->tokens[i], NULL, NULL);
    if (!is_timed) return HD_OK;
    status = sample_add(&s->step_ms, (double)(hd_now_ns() - start) * 1e-6);
    if (status == HD_OK)
        status = sample_add(&s->layer_us, (double)s->attention.attend_ns * 1e-3 / b->layers.layer_count);
    return status;
}

/* ---- The wire alone ---- */

static void on_back(void *context, transport_link *link, const frame *f) {
    ((echo *)context)->is_back = true;
}

static void on_lost(void *context, transport_link *link, hd_status status, const char *reason) {
    ((echo *)context)->is_lost = true;
}

static hd_status open_echo(bench *b, hd_error *error) {
    static const transport_handlers handlers = {.on_frame = on_back, .on_lost = on_lost};
    const model_config *m = b->config->model;
    echo *e = &b->echo;
    uint64_t element = hd_dtype_bits(kernel_row_dtype(b->config->kv_dtype)) / 8, pad = (m->head_dim + 31u) / 32 * 32;
    e->out_bytes = b->config->batch * ((uint64_t)m->query_heads * pad + 2ull * m->kv_heads * m->head_dim) * element;
    e->in_bytes = (uint64_t)b->config->batch * m->query_heads * m->head_dim * element;
    uint64_t largest = e->out_bytes > e->in_bytes ? e->out_bytes : e->in_bytes;
    e->bytes = hd_alloc_zeroed(largest, HD_CACHE_LINE);
    if (e->bytes == NULL) return hd_error_set(error, HD_NO_MEMORY, "out of memory");
    return b->near->ops->connect(b->near, rpc_server_address(b->server), "pages", &handlers, e, &e->link, error);
}

static void echo_once(void *context) {
    bench *b = context;
    echo *e = &b->echo;
    frame f = {.kind = 1, .part_count = 1, .parts = {{e->bytes, e->out_bytes}}};
    e->is_back = false;
    uint64_t start = hd_now_ns();
    hd_status status = b->near->ops->send(e->link, &f, &e->send);
    e->is_lost = e->is_lost || status != HD_OK;
    while (!e->is_lost && (!e->is_back || e->send.is_out)) b->near->ops->poll(b->near, POLL_NS);
    if (e->round_us != NULL && !e->is_lost) (void)sample_add(e->round_us, (double)(hd_now_ns() - start) * 1e-3);
}

static void echo_between(void *context, const attention_layer_call *call) {
    echo_once(context);
}

/* ---- The run ---- */

static void report_turns(bench *b, FILE *table, json_t *json) {
    const bench_offload_config *c = b->config;
    offload_turns *t = &b->turns;
    sample_summary near = sample_summarise(&t->near.round_ms), far = sample_summarise(&t->far.round_ms);
    sample_summary whole = sample_summarise(&t->whole_ms), after = sample_summarise(&t->after_ms);
    double near_waited = sample_summarise(&t->near.waited_ms).median;
    double far_waited = sample_summarise(&t->far.waited_ms).median;
    double unhidden = 2.0 * 2.0 * b->layers.layer_count * (double)c->delay_ms;
    fprintf(table, "two micro-batches of %u in turns, the same bits each way\n", c->batch);
    fprintf(table, "  a round             straight %11.2f ms   behind %llu ms each way %7.2f ms   %+.2f of %.0f ms\n",
            near.median, (unsigned long long)c->delay_ms, far.median, far.median - near.median, unhidden);
    fprintf(table, "  of it waited for    straight %11.2f ms   behind the delay %10.2f ms   %+.2f ms\n", near_waited,
            far_waited, far_waited - near_waited);
    fprintf(table, "  one after the other behind the delay %.2f ms; one step of %u, straight %.2f ms\n", after.median,
            2 * c->batch, whole.median);
    json_object_set_new(json, "turns",
                        json_pack("{s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "delay_ms", (json_int_t)c->delay_ms,
                                  "round_ms", near.median, "round_delayed_ms", far.median, "round_waited_ms",
                                  near_waited, "round_delayed_waited_ms", far_waited, "unhidden_ms", unhidden,
                                  "one_after_the_other_delayed_ms", after.median, "one_step_ms", whole.median));
}

static void report(bench *b, const remote_traffic *traffic, double seconds, const attention_service_state *state,
                   json_t *json) {
    const bench_offload_config *c = b->config;
    sample_summary here = sample_summarise(&b->here.step_ms), there = sample_summarise(&b->there.step_ms);
    sample_summary here_layer = sample_summarise(&b->here.layer_us), there_layer = sample_summarise(&b->there.layer_us);
    sample_summary round = sample_summarise(&b->between_us), alone = sample_summarise(&b->alone_us);
    double added = there_layer.median - here_layer.median, bytes = (double)(traffic->bytes_out + traffic->bytes_in);
    double worker_busy = 1 - (double)traffic->waited_ns * 1e-9 / seconds,
           node_busy = (double)state->busy_ns * 1e-9 / seconds;
    FILE *table = bench_report_table(c->json_path);
    fprintf(table, "batch %u at depth %llu, %u layers, %u steps each in turns\n", c->batch,
            (unsigned long long)c->depth, b->layers.layer_count, c->steps);
    fprintf(table, "  step                in process %8.2f ms   attention node %8.2f ms   %.3fx\n", here.median,
            there.median, there.median / here.median);
    fprintf(table, "  attention a layer   in process %8.0f us   attention node %8.0f us   added %.0f us\n",
            here_layer.median, there_layer.median, added);
    fprintf(table, "  echo of a layer's bytes (%.1f KiB there, %.1f KiB back)   %.0f us; added is %.2fx of it\n",
            (double)b->echo.out_bytes / 1024, (double)b->echo.in_bytes / 1024, round.median, added / round.median);
    fprintf(table, "  the same echo with nothing beside it   %.0f us\n", alone.median);
    fprintf(table, "  wire  %.2f MB a step, %.3f GB/s while steps ran; busy: worker %.0f %%, attention node %.0f %%\n",
            bytes / c->steps * 1e-6, bytes / seconds * 1e-9, 100 * worker_busy, 100 * node_busy);
    json_object_set_new(json, "model", json_string(c->model_name));
    json_object_set_new(json, "figures",
                        json_pack("{s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "batch",
                                  (json_int_t)c->batch, "depth", (json_int_t)c->depth, "steps", (json_int_t)c->steps,
                                  "step_in_process_ms", here.median, "step_offloaded_ms", there.median,
                                  "layer_in_process_us", here_layer.median, "layer_offloaded_us", there_layer.median,
                                  "echo_us", round.median, "echo_alone_us", alone.median, "wire_bytes_step",
                                  bytes / c->steps, "wire_bytes_second", bytes / seconds, "worker_busy", worker_busy,
                                  "node_busy", node_busy));
    report_turns(b, table, json);
}

/* Random signs and mantissas of moderate size, as bf16 or as f32. */
static uint16_t *draw_rows(bench *b) {
    const bench_offload_config *c = b->config;
    uint64_t row_bytes =
        (uint64_t)c->model->kv_heads * c->model->head_dim * hd_dtype_bits(kernel_row_dtype(c->kv_dtype)) / 8;
    uint16_t *rows = hd_alloc(c->rows_max * row_bytes, HD_CACHE_LINE);
    for (uint64_t i = 0; rows != NULL && i < c->rows_max * row_bytes / 2; i++)
        rows[i] = (uint16_t)((bench_random_u64(&b->random) & 0x80ff) | 0x3e00);
    return rows;
}

static hd_status run(bench *b, const void *rows, json_t *json, hd_error *error) {
    const bench_offload_config *c = b->config;
    hd_status status = open_side(b, &b->here, c->attention, rows, error);
    if (status == HD_OK) status = open_side(b, &b->there, b->remote, rows, error);
    b->here.attention.context = b;
    if (status == HD_OK) status = open_echo(b, error);
    remote_traffic before, after;
    double seconds = 0;
    for (uint64_t i = 0; i <= c->steps && status == HD_OK; i++) {
        status = step(b, &b->here, 2 * i, i > 0, error);
        b->echo.round_us = i > 0 ? &b->between_us : NULL;
        b->here.attention.before_submit = echo_between;
        if (status == HD_OK) status = step(b, &b->here, 2 * i + 1, false, error);
        b->here.attention.before_submit = NULL;
        if (i == 1) attention_service_reset_busy(b->service);
        if (i == 1) remote_traffic_read(b->remote, &before);
        uint64_t start = hd_now_ns();
        if (status == HD_OK) status = step(b, &b->there, i, i > 0, error);
        if (i > 0) seconds += (double)(hd_now_ns() - start) * 1e-9;
    }
    if (status != HD_OK) return status;
    remote_traffic_read(b->remote, &after);
    remote_traffic spent = {.frames_out = after.frames_out - before.frames_out,
                            .frames_in = after.frames_in - before.frames_in,
                            .bytes_out = after.bytes_out - before.bytes_out,
                            .bytes_in = after.bytes_in - before.bytes_in,
                            .waited_ns = after.waited_ns - before.waited_ns};
    b->echo.round_us = &b->alone_us;
    for (uint32_t i = 0; i < c->steps * b->layers.layer_count && !b->echo.is_lost; i++) echo_once(b);
    if (b->echo.is_lost) return hd_error_set(error, HD_PEER_LOST, "the echo was lost");
    attention_service_state busy; /* before turns are taken */
    attention_service_state_read(b->service, &busy);
    status = offload_turns_run(b, rows, error);
    if (status == HD_OK) report(b, &spent, seconds, &busy, json);
    return status;
}

static void close_side(side *s) {
    forward_close(s->forward);
    free(s->tokens);
    sample_fini(&s->step_ms);
    sample_fini(&s->layer_us);
}

static void close_bench(bench *b) {
    offload_turns_close(b);
    close_side(&b->here);
    close_side(&b->there);
    sample_fini(&b->between_us);
    sample_fini(&b->alone_us);
    if (b->remote != NULL) b->remote->ops->close(b->remote);
    if (b->echo.link != NULL) b->near->ops->disconnect(b->echo.link);
    if (b->near != NULL) b->near->ops->close(b->near);
    attention_service_close(b->service);
    rpc_server_close(b->server);
    if (b->far != NULL) b->far->ops->close(b->far);
    hd_pool_close(b->node_pool);
    hd_free(b->echo.bytes);
    free((void *)b->layers.streams);
    free((void *)b->layers.layers);
    free(b->rope);
    free(b->spans);
}

hd_status bench_offload_run(const bench_offload_config *config, hd_error *error) {
    bench b = {.config = config, .random = {11}};
    sample_init(&b.between_us);
    sample_init(&b.alone_us);
    b.rope = malloc(rope_table_bytes(&config->model->rope));
    b.spans = calloc(config->batch, sizeof(*b.spans));
    hd_status status = b.rope != NULL && b.spans != NULL ? HD_OK : HD_NO_MEMORY;
    if (status == HD_OK) status = worker_layer_table(config->model, config->kv_dtype, &b.layers);
    if (status != HD_OK) hd_error_set(error, status, "out of memory");
    if (status == HD_OK) rope_table_init(b.rope, &config->model->rope, config->depth + 2 * config->steps + 3);
    if (status == HD_OK) status = open_node(&b, error);
    json_t *json = bench_report_open("offload");
    uint16_t *rows = draw_rows(&b);
    if (status == HD_OK && rows == NULL) status = hd_error_set(error, HD_NO_MEMORY, "out of memory");
    if (status == HD_OK) status = run(&b, rows, json, error);
    hd_free(rows);
    if (status == HD_OK) status = bench_report_write(json, config->json_path, error);
    else json_decref(json);
    close_bench(&b);
    return status;
}
