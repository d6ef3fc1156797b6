/* forward_device.c - a step as launches in one queue.
 *
 * A step is asked for from its first row to its last and waited for once: with the tokens that were drawn, with logits,
 * or, where it has none, at its end. What changes from step to step lies in memory (rows, angles, attention's tables),
 * so a step of decode rows is recorded once for each padded size (graph_cache.h) and then replayed. A step with prompts
 * is not: it takes long enough to hide its launches. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "kernels/cuda/graph_cache.h"
#include "kernels/cuda/operations.h"
#include "worker/device_draw.h"
#include "worker/device_weights.h"
#include "worker/forward_rows.h"

#define GRAPHS_MAX 48u /* padded sizes of up to 256 rows are 28 */
#define ALIGNMENT 256u
#define CHANGES_LEAST 65536u

typedef struct step_sizes { /* elements from row to row */
    uint32_t hidden, normed, qkv, key_width, query_stride, attended, gate_up, gated, logits, rotary_half;
} step_sizes;

typedef struct device_buffers {
    float *residual, *qkv, *gate_up, *cosines, *sines, *logits, *log_sum_exp;
    uint16_t *normed, *queries, *keys, *values, *attended, *gated;
    sample_row *draws;
    sample_change *changes;
    uint32_t *token_ids;
} device_buffers;

typedef struct pinned_buffers {
    float *residual, *cosines, *sines, *logits, *log_sum_exp;
    sample_row *draws;
    sample_change *changes;
    uint32_t *token_ids;
} pinned_buffers;

typedef struct forward_device {
    forward base; /* first */
    forward_config config;
    const model_config *model;
    kernel_queue *queue;
    kernel_device *device;
    const kernel_device_ops *ops;
    device_weights weights;
    graph_cache *graphs;
    device_draw drawing;
    step_sizes sizes;
    void *memory, *pinned;
    device_buffers on_device;
    pinned_buffers on_host;
    forward_rows rows; /* of the step */
    uint32_t padded;   /* rows that the step is computed with */
} forward_device;

static forward_device *of(forward *self) {
    return (forward_device *)self;
}

/* ---- What it can do ---- */

hd_status forward_device_check(const model_config *model, hd_dtype weights_dtype, hd_error *error) {
    if (weights_dtype != HD_BF16) {
        return hd_error_set(error, HD_UNSUPPORTED, "weights on a device are bf16, so --weights bf16 is needed");
    }
    if (model->expert_count > 0)
        return hd_error_set(error, HD_UNSUPPORTED, "a mixture of experts is not computed on a device yet");
    uint32_t query_width = model->query_heads * model->head_dim;
    if (model->hidden_size % 8 != 0 || model->intermediate_size % 8 != 0 || query_width % 8 != 0 ||
        model->head_dim % 8 != 0) {
        return hd_error_set(error, HD_UNSUPPORTED,
                            "a device computes with hidden, intermediate and head sizes that are multiples of 8");
    }
    return HD_OK;
}

/* ---- Memory ---- */

static step_sizes sizes_of(const model_config *model) {
    uint32_t query_width = model->query_heads * model->head_dim, key_width = model->kv_heads * model->head_dim;
    uint32_t gated = (uint32_t)HD_ALIGN_UP(model->intermediate_size, KERNEL_PANEL);
    return (step_sizes){.hidden = model->hidden_size,
                        .normed = (uint32_t)HD_ALIGN_UP(model->hidden_size, KERNEL_K_ALIGN),
                        .qkv = query_width + 2 * key_width,
                        .key_width = key_width,
                        .query_stride = (uint32_t)HD_ALIGN_UP(model->head_dim, KERNEL_K_ALIGN),
                        .attended = (uint32_t)HD_ALIGN_UP(query_width, KERNEL_K_ALIGN),
                        .gate_up = 2 * gated,
                        .gated = gated,
                        .logits = (uint32_t)HD_ALIGN_UP(model->vocabulary_size, 8u),
                        .rotary_half = model->rope.rotary_dim / 2};
}

static uint32_t changes_max_of(const model_config *model) {
    return model->vocabulary_size > CHANGES_LEAST ? model->vocabulary_size : CHANGES_LEAST;
}

/* Hands out memory from its start; with base NULL it only counts. */
typedef struct carver {
    unsigned char *base;
    uint64_t used_bytes;
} carver;

static void *carve(carver *c, uint64_t bytes) {
    void *place = c->base != NULL ? c->base + c->used_bytes : NULL;
    c->used_bytes += HD_ALIGN_UP(bytes, (uint64_t)ALIGNMENT);
    return place;
}

static uint64_t carve_device(const model_config *model, uint64_t rows, uint64_t logits_rows, carver c,
                             device_buffers *out) {
    step_sizes s = sizes_of(model);
    *out = (device_buffers){
        .residual = carve(&c, rows * s.hidden * sizeof(float)),
        .qkv = carve(&c, rows * s.qkv * sizeof(float)),
        .gate_up = carve(&c, rows * s.gate_up * sizeof(float)),
        .cosines = carve(&c, rows * s.rotary_half * sizeof(float)),
        .sines = carve(&c, rows * s.rotary_half * sizeof(float)),
        .logits = carve(&c, logits_rows * s.logits * sizeof(float)),
        .log_sum_exp = carve(&c, logits_rows * sizeof(float)),
        .normed = carve(&c, rows * s.normed * sizeof(uint16_t)),
        .queries = carve(&c, rows * model->query_heads * s.query_stride * sizeof(uint16_t)),
        .keys = carve(&c, rows * s.key_width * sizeof(uint16_t)),
        .values = carve(&c, rows * s.key_width * sizeof(uint16_t)),
        .attended = carve(&c, rows * s.attended * sizeof(uint16_t)),
        .gated = carve(&c, rows * s.gated * sizeof(uint16_t)),
        .draws = carve(&c, logits_rows * sizeof(sample_row)),
        .changes = carve(&c, changes_max_of(model) * sizeof(sample_change)),
        .token_ids = carve(&c, logits_rows * sizeof(uint32_t)),
    };
    return c.used_bytes;
}

static uint64_t carve_pinned(const model_config *model, uint64_t rows, uint64_t logits_rows, carver c,
                             pinned_buffers *out) {
    step_sizes s = sizes_of(model);
    *out = (pinned_buffers){
        .residual = carve(&c, rows * s.hidden * sizeof(float)),
        .cosines = carve(&c, rows * s.rotary_half * sizeof(float)),
        .sines = carve(&c, rows * s.rotary_half * sizeof(float)),
        .logits = carve(&c, logits_rows * s.logits * sizeof(float)),
        .log_sum_exp = carve(&c, logits_rows * sizeof(float)),
        .draws = carve(&c, logits_rows * sizeof(sample_row)),
        .changes = carve(&c, changes_max_of(model) * sizeof(sample_change)),
        .token_ids = carve(&c, logits_rows * sizeof(uint32_t)),
    };
    return c.used_bytes;
}

uint64_t forward_device_bytes(const model_config *model, uint32_t rows_max, uint32_t logits_rows_max) {
    device_buffers nowhere;
    return carve_device(model, rows_max, logits_rows_max, (carver){0}, &nowhere);
}

static hd_status take_buffers(forward_device *f) {
    uint32_t rows = f->config.rows_max, logits_rows = f->config.logits_rows_max;
    uint64_t device_bytes = forward_device_bytes(f->model, rows, logits_rows);
    uint64_t pinned_bytes = carve_pinned(f->model, rows, logits_rows, (carver){0}, &f->on_host);
    hd_status status = f->ops->take(f->device, device_bytes, KERNEL_DEVICE_MEMORY, &f->memory);
    if (status == HD_OK) status = f->ops->take(f->device, pinned_bytes, KERNEL_PINNED_MEMORY, &f->pinned);
    if (status != HD_OK) return status;
    carve_device(f->model, rows, logits_rows, (carver){.base = f->memory}, &f->on_device);
    carve_pinned(f->model, rows, logits_rows, (carver){.base = f->pinned}, &f->on_host);
    memset(f->pinned, 0, pinned_bytes); /* rows of padding are numbers */
    status = f->ops->clear(f->queue, f->memory, device_bytes);
    if (status != HD_OK) return status;
    return device_draw_init(&f->drawing, f->model->vocabulary_size, f->on_host.changes, changes_max_of(f->model));
}

static void device_close(forward *self) {
    forward_device *f = of(self);
    f->ops->wait(f->queue);
    graph_cache_close(f->graphs);
    device_weights_close(&f->weights);
    f->ops->give(f->device, f->memory, KERNEL_DEVICE_MEMORY);
    f->ops->give(f->device, f->pinned, KERNEL_PINNED_MEMORY);
    device_draw_fini(&f->drawing);
    forward_rows_fini(&f->rows);
    hd_free(f);
}

/* ---- Layers ---- */

static hd_status multiply(forward_device *f, const device_matrix *weights, const uint16_t *input, uint32_t input_stride,
                          uint32_t row_count, float *output, uint32_t output_stride, const float *bias,
                          device_epilogue epilogue) {
    device_matmul call = {.weights = weights->rows,
                          .n = weights->n,
                          .k = weights->k,
                          .input = input,
                          .input_stride = input_stride,
                          .output_stride = output_stride,
                          .row_count = row_count,
                          .output = output,
                          .bias = bias,
                          .epilogue = epilogue};
    return f->ops->matmul(f->queue, &call);
}

static hd_status norm(forward_device *f, const float *weight, uint32_t row_count) {
    rmsnorm_arguments call = {.input = f->on_device.residual,
                              .input_stride = f->sizes.hidden,
                              .output_stride = f->sizes.normed,
                              .weight = weight,
                              .eps = f->model->rms_eps,
                              .row_count = row_count,
                              .width = f->sizes.hidden,
                              .output = f->on_device.normed};
    return device_rmsnorm(f->queue, &call);
}

/* From the residual stream to queries, keys and values. */
static hd_status project(forward_device *f, const device_layer_weights *w) {
    const device_buffers *b = &f->on_device;
    const step_sizes *s = &f->sizes;
    hd_status status = norm(f, w->attention_norm, f->padded);
    if (status == HD_OK)
        status = multiply(f, &w->qkv, b->normed, s->normed, f->padded, b->qkv, s->qkv, w->qkv_bias, DEVICE_STORE);
    if (status != HD_OK) return status;
    split_rows_arguments split = {.qkv = b->qkv,
                                  .qkv_stride = s->qkv,
                                  .query_norm = w->query_norm,
                                  .key_norm = w->key_norm,
                                  .eps = f->model->rms_eps,
                                  .cosines = b->cosines,
                                  .sines = b->sines,
                                  .row_count = f->padded,
                                  .query_heads = f->model->query_heads,
                                  .kv_heads = f->model->kv_heads,
                                  .head_dim = f->model->head_dim,
                                  .rotary_dim = f->model->rope.rotary_dim,
                                  .query_stride = s->query_stride,
                                  .queries = b->queries,
                                  .keys = b->keys,
                                  .values = b->values};
    return device_split_rows(f->queue, &split);
}

static attention_tensor tensor(const forward_device *f, void *data) {
    return (attention_tensor){.data = data, .dtype = HD_BF16, .place = ATTENTION_DEVICE, .queue = f->queue};
}

static hd_status attend(forward_device *f, uint32_t layer) {
    attention *a = f->config.attention;
    attention_layer_call call = {.layer = layer,
                                 .row_count = f->padded,
                                 .queries = tensor(f, f->on_device.queries),
                                 .keys = tensor(f, f->on_device.keys),
                                 .values = tensor(f, f->on_device.values),
                                 .output = tensor(f, f->on_device.attended),
                                 .output_stride = f->sizes.attended};
    hd_status status = a->ops->submit(a, &call);
    return status == HD_OK ? a->ops->wait(a, layer) : status;
}

/* From what was attended to back to the residual stream, of the first row_count rows. */
static hd_status go_on(forward_device *f, const device_layer_weights *w, uint32_t row_count) {
    const device_buffers *b = &f->on_device;
    const step_sizes *s = &f->sizes;
    hd_status status = multiply(f, &w->output, b->attended, s->attended, row_count, b->residual, s->hidden,
                                w->output_bias, DEVICE_ADD);
    if (status == HD_OK) status = norm(f, w->mlp_norm, row_count);
    if (status == HD_OK)
        status = multiply(f, &w->gate_up, b->normed, s->normed, row_count, b->gate_up, s->gate_up, NULL, DEVICE_STORE);
    silu_multiply_arguments gate = {.gate_up = b->gate_up,
                                    .gate_up_stride = s->gate_up,
                                    .output_stride = s->gated,
                                    .row_count = row_count,
                                    .width = s->gated,
                                    .output = b->gated};
    if (status == HD_OK) status = device_silu_multiply(f->queue, &gate);
    if (status != HD_OK) return status;
    return multiply(f, &w->down, b->gated, s->gated, row_count, b->residual, s->hidden, NULL, DEVICE_ADD);
}

/* Only rows that need logits go on behind the last attention; they move up, in order. */
static hd_status drop_rows(forward_device *f) {
    const device_buffers *b = &f->on_device;
    const step_sizes *s = &f->sizes;
    hd_status status = HD_OK;
    for (uint32_t i = 0; i < f->rows.logits_row_count && status == HD_OK; i++) {
        size_t row = f->rows.logits_rows[i];
        if (row == i) continue;
        status = f->ops->copy(f->queue, b->residual + (size_t)i * s->hidden, b->residual + row * s->hidden,
                              s->hidden * sizeof(float));
        if (status == HD_OK)
            status = f->ops->copy(f->queue, b->attended + (size_t)i * s->attended, b->attended + row * s->attended,
                                  s->attended * sizeof(uint16_t));
    }
    return status;
}

/* all_live: every row needs logits, those of padding included. */
static hd_status run_layers(forward_device *f, bool all_live) {
    const step_sizes *s = &f->sizes;
    const device_buffers *to = &f->on_device;
    const pinned_buffers *from = &f->on_host;
    uint32_t layers = f->model->layer_count, live = all_live ? f->padded : f->rows.logits_row_count;
    size_t half_bytes = (size_t)f->padded * s->rotary_half * sizeof(float);
    hd_status status =
        f->ops->copy(f->queue, to->residual, from->residual, (size_t)f->padded * s->hidden * sizeof(float));
    if (status == HD_OK) status = f->ops->copy(f->queue, to->cosines, from->cosines, half_bytes);
    if (status == HD_OK) status = f->ops->copy(f->queue, to->sines, from->sines, half_bytes);
    for (uint32_t i = 0; i < layers && status == HD_OK; i++) {
        const device_layer_weights *w = &f->weights.layers[i];
        bool is_last = i + 1 == layers;
        status = project(f, w);
        if (status == HD_OK) status = attend(f, i);
        if (status == HD_OK && is_last && !all_live) status = drop_rows(f);
        if (status == HD_OK && (!is_last || live > 0)) status = go_on(f, w, is_last ? live : f->padded);
    }
    return status == HD_OK && live > 0 ? norm(f, f->weights.final_norm, live) : status;
}

/* ---- A step ---- */

static void start_rows(void *context, unsigned thread, unsigned thread_count) {
    forward_device *f = context;
    const step_sizes *s = &f->sizes;
    size_t first, count;
    hd_share(f->rows.row_count, 1, thread, thread_count, &first, &count);
    for (size_t row = first; row < first + count; row++) {
        const row_place *place = &f->rows.places[row];
        model_embed(f->config.weights, place->token_id, f->on_host.residual + row * s->hidden);
        rope_table_row(place->rope, place->position, f->on_host.cosines + row * s->rotary_half,
                       f->on_host.sines + row * s->rotary_half);
    }
}

static bool has_decode_rows_alone(const forward_batch *b) {
    for (uint32_t i = 0; i < b->span_count; i++) {
        if (b->spans[i].rows.count != 1 || b->spans[i].need == FORWARD_NO_LOGITS) return false;
    }
    return true;
}

static hd_status record(forward_device *f, kernel_graph **graph) {
    hd_status status = f->ops->record_begin(f->queue);
    if (status != HD_OK) return status;
    hd_status asked = run_layers(f, true);
    kernel_graph *made = NULL;
    status = f->ops->record_end(f->queue, &made);
    if (asked == HD_OK && status == HD_OK) *graph = made;
    else f->ops->graph_close(made);
    return asked != HD_OK ? asked : status;
}

/* A step of decode rows, by the graph of its size. */
static hd_status run_recorded(forward_device *f) {
    attention *a = f->config.attention;
    graph_key key = {.rows = f->padded, .logits_rows = f->padded};
    kernel_graph *graph = graph_cache_find(f->graphs, key);
    hd_status status;
    if (graph != NULL) {
        status = a->ops->step_replayed(a);
    } else {
        status = record(f, &graph);
        if (status == HD_OK) graph_cache_put(f->graphs, key, graph);
    }
    return status == HD_OK ? f->ops->replay(f->queue, graph) : status;
}

static void run_step(forward_device *f, forward_batch *b) {
    attention *a = f->config.attention;
    assert(b->span_count > 0 && b->span_count <= f->config.spans_max);
    b->has_begun = false;
    b->status = f->ops->wait(f->queue); /* what lies in pinned memory has been copied */
    if (b->status != HD_OK) {
        hd_error_write(&b->error, "%s has failed; see device_failed in the log", f->device->facts.name);
        return;
    }
    forward_rows_place(&f->rows, b->spans, b->span_count);
    b->status = a->ops->step_begin(a, f->rows.spans, b->span_count, &b->error);
    b->has_begun = b->status == HD_OK;
    if (!b->has_begun) return;
    hd_pool_run(f->config.pool, start_rows, f);
    bool is_decode = has_decode_rows_alone(b) && a->ops->step_replayed != NULL;
    uint32_t padded = graph_padded_rows(f->rows.row_count);
    f->padded = is_decode && padded <= f->config.rows_max ? padded : f->rows.row_count;
    b->status = is_decode ? run_recorded(f) : run_layers(f, false);
    hd_status ended = a->ops->step_end(a);
    if (b->status == HD_OK) b->status = ended;
    if (b->status == HD_OK && f->rows.logits_row_count == 0) b->status = f->ops->wait(f->queue);
    if (b->status != HD_OK)
        hd_error_write(&b->error, "%s failed in the middle of a step: %s", f->device->facts.name,
                       hd_status_text(b->status));
}

/* One after the other: they would share the device. */
static void device_run(forward_batch *batches, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) run_step(of(batches[i].forward), &batches[i]);
}

static hd_status device_lost(const forward *self) {
    return HD_OK;
}

static uint32_t device_logits_rows(const forward *self) {
    return ((const forward_device *)self)->rows.logits_row_count;
}

static size_t device_logits_stride(const forward *self) {
    return ((const forward_device *)self)->sizes.logits;
}

/* ---- Logits and tokens ---- */

static hd_status make_logits(forward_device *f, uint32_t first, uint32_t count) {
    assert(count > 0 && count <= f->config.logits_rows_max && first + count <= f->rows.logits_row_count);
    return multiply(f, &f->weights.lm_head, f->on_device.normed + (size_t)first * f->sizes.normed, f->sizes.normed,
                    count, f->on_device.logits, f->sizes.logits, NULL, DEVICE_STORE);
}

/* Of a device that has failed they are no numbers, which whoever asked has to look for anyway. */
static float *device_logits(forward *self, uint32_t first, uint32_t count) {
    forward_device *f = of(self);
    size_t values = (size_t)count * f->sizes.logits;
    hd_status status = make_logits(f, first, count);
    if (status == HD_OK)
        status = f->ops->copy(f->queue, f->on_host.logits, f->on_device.logits, values * sizeof(float));
    hd_status done = f->ops->wait(f->queue);
    for (size_t i = 0; (status != HD_OK || done != HD_OK) && i < values; i++) f->on_host.logits[i] = NAN;
    return f->on_host.logits;
}

/* Rows [first, first + count) of the slice, with the changes that are in pinned memory. */
static hd_status draw_some(forward_device *f, uint32_t first, uint32_t count) {
    const device_buffers *b = &f->on_device;
    const pinned_buffers *h = &f->on_host;
    kernel_queue *q = f->queue;
    sample_arguments call = {.logits = b->logits + (size_t)first * f->sizes.logits,
                             .stride = f->sizes.logits,
                             .row_count = count,
                             .count = f->model->vocabulary_size,
                             .rows = b->draws + first,
                             .changes = b->changes,
                             .token_ids = b->token_ids + first};
    hd_status status = f->ops->copy(q, b->draws + first, h->draws + first, count * sizeof(sample_row));
    if (status == HD_OK)
        status = f->ops->copy(q, b->changes, h->changes, f->drawing.change_count * sizeof(sample_change));
    if (status == HD_OK) status = device_sample(q, &call);
    if (status == HD_OK) status = f->ops->copy(q, h->token_ids + first, b->token_ids + first, count * sizeof(uint32_t));
    return status;
}

static hd_status summarise(forward_device *f, uint32_t count) {
    logits_summary_arguments call = {.logits = f->on_device.logits,
                                     .stride = f->sizes.logits,
                                     .row_count = count,
                                     .count = f->model->vocabulary_size,
                                     .log_sum_exp = f->on_device.log_sum_exp};
    hd_status status = device_logits_summary(f->queue, &call);
    if (status != HD_OK) return status;
    return f->ops->copy(f->queue, f->on_host.log_sum_exp, f->on_device.log_sum_exp, count * sizeof(float));
}

/* All rows at once, unless they have more changes than there is room for. */
static hd_status draw_all(forward_device *f, uint32_t count, sampler_row *const *draws) {
    hd_status status = HD_OK;
    uint32_t first = 0;
    device_draw_begin(&f->drawing);
    for (uint32_t i = 0; i < count && status == HD_OK; i++) {
        sample_row *to = &f->on_host.draws[i];
        if (draws[i] == NULL) {
            device_draw_skip(&f->drawing, to);
        } else if (!device_draw_add(&f->drawing, draws[i], to)) {
            status = draw_some(f, first, i - first);
            if (status == HD_OK) status = f->ops->wait(f->queue); /* changes are overwritten */
            first = i;
            device_draw_begin(&f->drawing);
            device_draw_add(&f->drawing, draws[i], to);
        }
    }
    return status == HD_OK ? draw_some(f, first, count - first) : status;
}

static bool draw_tokens(forward *self, uint32_t first, uint32_t count, struct sampler_row *const *draws,
                        bool *is_finite) {
    forward_device *f = of(self);
    hd_status status = make_logits(f, first, count);
    if (status == HD_OK) status = summarise(f, count);
    if (status == HD_OK) status = draw_all(f, count, draws);
    hd_status done = f->ops->wait(f->queue);
    for (uint32_t i = 0; i < count; i++) {
        is_finite[i] = status == HD_OK && done == HD_OK && isfinite(f->on_host.log_sum_exp[i]);
        if (draws[i] != NULL) draws[i]->token_id = f->on_host.token_ids[i];
    }
    return true;
}

static const forward_ops device_ops = {.close = device_close,
                                       .run = device_run,
                                       .lost = device_lost,
                                       .logits_rows = device_logits_rows,
                                       .logits = device_logits,
                                       .logits_stride = device_logits_stride,
                                       .draw = draw_tokens};

hd_status forward_device_open(const forward_config *config, forward **out) {
    forward_device *f = hd_alloc_zeroed(sizeof(*f), HD_CACHE_LINE);
    if (f == NULL) return HD_NO_MEMORY;
    f->base.ops = &device_ops;
    f->config = *config;
    f->model = config->model;
    f->queue = config->queue;
    f->device = config->queue->device;
    f->ops = f->device->ops;
    f->sizes = sizes_of(config->model);
    hd_error ignored;
    hd_status status = forward_device_check(config->model, config->weights->dtype, &ignored);
    if (status == HD_OK) status = forward_rows_init(&f->rows, config->rows_max, config->spans_max);
    if (status == HD_OK) status = graph_cache_open(f->ops, GRAPHS_MAX, &f->graphs);
    if (status == HD_OK) status = take_buffers(f);
    if (status == HD_OK) status = device_weights_open(f->queue, config->model, config->weights, &f->weights);
    if (status == HD_OK) *out = &f->base;
    else device_close(&f->base);
    return status;
}
