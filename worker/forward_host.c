/* forward_host.c - the layers as phases of pool runs.
 *
 * A run begins behind one attention and ends before the next: output product, norm, mlp, and then the next layer's
 * norm, qkv and rope. A product is spread by tickets over panels of columns, everything else over rows, and
 * neighbouring phases on rows are one. */
#include "worker/forward.h"

#include <assert.h>
#include <string.h>

#include "base/memory.h"
#include "worker/experts.h"
#include "worker/forward_rows.h"
#include "worker/product.h"

enum { PRODUCT_OUTPUT, PRODUCT_GATE_UP, PRODUCT_DOWN, PRODUCT_QKV, PRODUCT_LOGITS, PRODUCT_COUNT };

typedef struct forward_host {
    forward base; /* first */
    forward_config config;
    const model_config *model;
    const model_weights *weights;
    const kernel_ops *kernels;
    experts *experts; /* NULL for dense models */
    hd_dtype input_dtype, attention_dtype;

    uint32_t hidden, rotary_half;
    uint32_t query_width, key_width, qkv_width, key_padded; /* key_width: all KV heads; key_padded: one head's query */
    size_t normed_stride, qkv_stride, attended_stride, gated_stride, logits_stride;

    forward_rows rows;      /* of the step */
    float *cosines, *sines; /* [rows_max, rotary_half] */
    float *residual;        /* [rows_max, hidden] */
    void *normed;           /* [rows_max, normed_stride] in input_dtype */
    float *qkv;             /* [rows_max, qkv_stride] */
    void *queries;          /* [kv_heads, R, group, key_padded] in attention_dtype; the padding is never written */
    void *keys, *values;    /* [R, key_width] in attention_dtype */
    void *attended;         /* [rows_max, attended_stride] in attention_dtype */
    void *attended_input;   /* the same in input_dtype; the same memory where the types are equal */
    void *gated;            /* [rows_max, gated_stride] in input_dtype */
    float *logits;          /* [logits_rows_max, logits_stride] */
    void **scratch;         /* one a thread */

    /* Of the step. */
    hd_status lost;      /* of the last step */
    uint32_t live_count; /* rows behind attention: fewer in the last layer */

    /* Of the run. */
    uint32_t layer; /* behind whose attention the run begins; UINT32_MAX: the run before the first */
    product products[PRODUCT_COUNT];
    ranks_call calls[PRODUCT_COUNT]; /* the same, for other ranks */
    struct {
        _Alignas(HD_CACHE_LINE) _Atomic size_t next;
    } tickets[PRODUCT_COUNT];
} forward_host;

#define BEFORE_LAYERS UINT32_MAX

static forward_host *of(forward *self) {
    return (forward_host *)self;
}

static size_t bytes_of(hd_dtype dtype, size_t elements) {
    return elements * hd_dtype_bits(dtype) / 8;
}

static hd_status take_buffers(forward_host *f) {
    size_t rows = f->config.rows_max;
    struct {
        void *target;
        size_t bytes;
    } buffers[] = {
        {&f->cosines, rows * f->rotary_half * sizeof(float)},
        {&f->sines, rows * f->rotary_half * sizeof(float)},
        {&f->residual, rows * f->hidden * sizeof(float)},
        {&f->normed, bytes_of(f->input_dtype, rows * f->normed_stride)},
        {&f->qkv, rows * f->qkv_stride * sizeof(float)},
        {&f->queries, bytes_of(f->attention_dtype, rows * f->model->query_heads * f->key_padded)},
        {&f->keys, bytes_of(f->attention_dtype, rows * f->key_width)},
        {&f->values, bytes_of(f->attention_dtype, rows * f->key_width)},
        {&f->attended, bytes_of(f->attention_dtype, rows * f->attended_stride)},
        {&f->gated, bytes_of(f->input_dtype, rows * f->gated_stride)},
        {&f->logits, f->config.logits_rows_max * f->logits_stride * sizeof(float)},
        {&f->scratch, hd_pool_thread_count(f->config.pool) * sizeof(void *)},
    };
    hd_status status = forward_rows_init(&f->rows, f->config.rows_max, f->config.spans_max);
    if (status != HD_OK) return status;
    for (size_t i = 0; i < sizeof(buffers) / sizeof(buffers[0]); i++) {
        void *memory = hd_alloc_zeroed(buffers[i].bytes, HD_CACHE_LINE);
        if (memory == NULL) return HD_NO_MEMORY;
        memcpy(buffers[i].target, &memory, sizeof(memory));
    }
    if (f->input_dtype == f->attention_dtype) {
        f->attended_input = f->attended;
    } else {
        f->attended_input = hd_alloc_zeroed(bytes_of(f->input_dtype, rows * f->attended_stride), HD_CACHE_LINE);
        if (f->attended_input == NULL) return HD_NO_MEMORY;
    }
    for (unsigned i = 0; i < hd_pool_thread_count(f->config.pool); i++) {
        f->scratch[i] = hd_alloc(f->kernels->scratch_bytes, HD_CACHE_LINE);
        if (f->scratch[i] == NULL) return HD_NO_MEMORY;
    }
    return HD_OK;
}

static void host_close(forward *self) {
    forward_host *f = (forward_host *)self;
    experts_close(f->experts);
    for (unsigned i = 0; f->scratch != NULL && i < hd_pool_thread_count(f->config.pool); i++) hd_free(f->scratch[i]);
    if (f->attended_input != f->attended) hd_free(f->attended_input);
    forward_rows_fini(&f->rows);
    void *buffers[] = {f->cosines, f->sines,  f->residual, f->normed, f->qkv,    f->queries,
                       f->keys,    f->values, f->attended, f->gated,  f->logits, f->scratch};
    for (size_t i = 0; i < sizeof(buffers) / sizeof(buffers[0]); i++) hd_free(buffers[i]);
    hd_free(f);
}

static float *residual_row(forward_host *f, size_t row) {
    return f->residual + row * f->hidden;
}

static void norm_row(forward_host *f, size_t row, const float *weight) {
    void *output = (char *)f->normed + bytes_of(f->input_dtype, row * f->normed_stride);
    f->kernels->rmsnorm(residual_row(f, row), f->hidden, weight, f->model->rms_eps, 1, f->hidden, f->input_dtype,
                        output, f->normed_stride);
}

/* Query and key norms, rotation, and the heads to where attention wants them. */
static void split_row(forward_host *f, const model_layer *layer, size_t row) {
    const model_config *model = f->model;
    const kernel_ops *ops = f->kernels;
    uint32_t head_dim = model->head_dim, group = model->query_heads / model->kv_heads;
    float *queries = f->qkv + row * f->qkv_stride, *keys = queries + f->query_width, *values = keys + f->key_width;
    if (layer->query_norm != NULL) {
        ops->rmsnorm(queries, head_dim, layer->query_norm, model->rms_eps, model->query_heads, head_dim, HD_F32,
                     queries, head_dim);
        ops->rmsnorm(keys, head_dim, layer->key_norm, model->rms_eps, model->kv_heads, head_dim, HD_F32, keys,
                     head_dim);
    }
    /* Queries and keys lie side by side: one call rotates both. */
    ops->rope(queries, model->query_heads + model->kv_heads, head_dim, model->rope.rotary_dim,
              f->cosines + row * f->rotary_half, f->sines + row * f->rotary_half);

    for (uint32_t kv_head = 0; kv_head < model->kv_heads; kv_head++) {
        const float *source = queries + (size_t)kv_head * group * head_dim;
        size_t place = ((size_t)kv_head * f->rows.row_count + row) * group * f->key_padded;
        uint32_t calls = head_dim == f->key_padded ? 1 : group, count = head_dim * group / calls;
        for (uint32_t i = 0; i < calls; i++) {
            ops->convert(source + (size_t)i * head_dim, HD_F32,
                         (char *)f->queries + bytes_of(f->attention_dtype, place + i * f->key_padded),
                         f->attention_dtype, count);
        }
    }
    size_t place = bytes_of(f->attention_dtype, row * f->key_width);
    ops->convert(keys, HD_F32, (char *)f->keys + place, f->attention_dtype, f->key_width);
    ops->convert(values, HD_F32, (char *)f->values + place, f->attention_dtype, f->key_width);
}

static void start_row(forward_host *f, size_t row) {
    const row_place *place = &f->rows.places[row];
    model_embed(f->weights, place->token_id, residual_row(f, row));
    rope_table_row(place->rope, place->position, f->cosines + row * f->rotary_half, f->sines + row * f->rotary_half);
}

/* The other ranks compute their columns meanwhile. */
static void run_product(forward_host *f, int which, unsigned thread) {
    ranks *others = f->config.ranks;
    if (others != NULL && thread == 0) ranks_ask(others, &f->calls[which]);
    product_run(&f->products[which], f->kernels, &f->tickets[which].next, f->scratch[thread]);
    hd_pool_barrier(f->config.pool);
    if (others == NULL) return;
    if (thread == 0) ranks_take(others, &f->calls[which]);
    hd_pool_barrier(f->config.pool);
}

static void run_mlp(forward_host *f, const model_layer *layer, unsigned thread, unsigned thread_count) {
    if (layer->experts != NULL) {
        experts_run(f->experts, thread, thread_count, f->scratch[thread]);
    } else {
        run_product(f, PRODUCT_GATE_UP, thread);
        run_product(f, PRODUCT_DOWN, thread);
    }
}

/* From one attention to the next, on every thread of the pool. */
static void run_between(void *context, unsigned thread, unsigned thread_count) {
    forward_host *f = context;
    bool is_first = f->layer == BEFORE_LAYERS, is_last = !is_first && f->layer + 1 == f->model->layer_count;
    const model_layer *layer = is_first ? NULL : &f->weights->layers[f->layer];
    const model_layer *next = is_last ? NULL : &f->weights->layers[is_first ? 0 : f->layer + 1];
    size_t first, count;
    hd_share(is_first ? f->rows.row_count : f->live_count, 1, thread, thread_count, &first, &count);

    if (!is_first) {
        if (f->attended_input != f->attended) {
            size_t place = first * f->attended_stride;
            f->kernels->convert((char *)f->attended + bytes_of(f->attention_dtype, place), f->attention_dtype,
                                (char *)f->attended_input + bytes_of(f->input_dtype, place), f->input_dtype,
                                count * f->attended_stride);
            hd_pool_barrier(f->config.pool);
        }
        run_product(f, PRODUCT_OUTPUT, thread);
        for (size_t row = first; row < first + count; row++) norm_row(f, row, layer->mlp_norm);
        hd_pool_barrier(f->config.pool);
        run_mlp(f, layer, thread, thread_count);
    }
    for (size_t row = first; row < first + count; row++) {
        if (is_first) start_row(f, row);
        else if (layer->experts != NULL) experts_add(f->experts, (uint32_t)row, residual_row(f, row));
        norm_row(f, row, is_last ? f->weights->final_norm : next->attention_norm);
    }
    if (is_last) return;
    hd_pool_barrier(f->config.pool);
    run_product(f, PRODUCT_QKV, thread);
    for (size_t row = first; row < first + count; row++) split_row(f, next, row);
}

static void prepare_product(forward_host *f, int which, uint32_t layer, const kernel_matmul *call) {
    static const ranks_matrix matrices[PRODUCT_COUNT] = {[PRODUCT_OUTPUT] = RANKS_OUTPUT,
                                                         [PRODUCT_GATE_UP] = RANKS_GATE_UP,
                                                         [PRODUCT_DOWN] = RANKS_DOWN,
                                                         [PRODUCT_QKV] = RANKS_QKV,
                                                         [PRODUCT_LOGITS] = RANKS_LOGITS};
    product_init(&f->products[which], call, hd_pool_thread_count(f->config.pool));
    f->calls[which] = (ranks_call){.matrix = matrices[which], .layer = layer, .call = *call};
    atomic_store_explicit(&f->tickets[which].next, 0, memory_order_relaxed);
}

/* Only rows that need logits go on behind the last attention; they move up, in order. */
static void drop_rows(forward_host *f) {
    size_t attended_bytes = bytes_of(f->attention_dtype, f->attended_stride);
    for (uint32_t i = 0; i < f->rows.logits_row_count; i++) {
        uint32_t row = f->rows.logits_rows[i];
        if (row == i) continue;
        memcpy(residual_row(f, i), residual_row(f, row), f->hidden * sizeof(float));
        memcpy((char *)f->attended + i * attended_bytes, (char *)f->attended + row * attended_bytes, attended_bytes);
    }
    f->live_count = f->rows.logits_row_count;
}

static void run_behind(forward_host *f, uint32_t layer_index) {
    bool is_first = layer_index == BEFORE_LAYERS, is_last = !is_first && layer_index + 1 == f->model->layer_count;
    f->layer = layer_index;
    f->live_count = f->rows.row_count;
    if (is_last) drop_rows(f);
    if (f->live_count == 0) return;

    uint32_t rows = f->live_count;
    kernel_matmul normed = {.input = f->normed, .input_stride = f->normed_stride, .row_count = rows};
    if (!is_first) {
        const model_layer *layer = &f->weights->layers[layer_index];
        kernel_matmul output = {.weights = &layer->attention_output,
                                .input = f->attended_input,
                                .input_stride = f->attended_stride,
                                .row_count = rows,
                                .output = f->residual,
                                .output_stride = f->hidden,
                                .bias = layer->attention_output_bias,
                                .epilogue = KERNEL_ADD};
        prepare_product(f, PRODUCT_OUTPUT, layer_index, &output);
        if (layer->experts != NULL) {
            experts_prepare(f->experts, layer, f->normed, f->normed_stride, rows);
        } else {
            kernel_matmul gate_up = normed;
            gate_up.weights = &layer->gate_up;
            gate_up.output = f->gated;
            gate_up.output_stride = f->gated_stride;
            gate_up.epilogue = KERNEL_SWIGLU;
            prepare_product(f, PRODUCT_GATE_UP, layer_index, &gate_up);
            kernel_matmul down = {.weights = &layer->down,
                                  .input = f->gated,
                                  .input_stride = f->gated_stride,
                                  .row_count = rows,
                                  .output = f->residual,
                                  .output_stride = f->hidden,
                                  .epilogue = KERNEL_ADD};
            prepare_product(f, PRODUCT_DOWN, layer_index, &down);
        }
    }
    if (!is_last) {
        uint32_t next_index = is_first ? 0 : layer_index + 1;
        const model_layer *next = &f->weights->layers[next_index];
        kernel_matmul qkv = normed;
        qkv.weights = &next->qkv;
        qkv.output = f->qkv;
        qkv.output_stride = f->qkv_stride;
        qkv.bias = next->qkv_bias;
        qkv.epilogue = KERNEL_STORE;
        prepare_product(f, PRODUCT_QKV, next_index, &qkv);
    }
    hd_pool_run(f->config.pool, run_between, f);
}

static hd_status submit(forward_host *f, uint32_t layer) {
    attention *a = f->config.attention;
    attention_layer_call call = {
        .layer = layer,
        .queries = {.data = f->queries, .dtype = f->attention_dtype},
        .keys = {.data = f->keys, .dtype = f->attention_dtype},
        .values = {.data = f->values, .dtype = f->attention_dtype},
        .output = {.data = f->attended, .dtype = f->attention_dtype},
        .output_stride = f->attended_stride,
    };
    return a->ops->submit(a, &call);
}

/* ---- Steps, one or several in turns ---- */

static void begin(forward_batch *b) {
    forward_host *f = of(b->forward);
    attention *a = f->config.attention;
    assert(b->span_count > 0 && b->span_count <= f->config.spans_max);
    forward_rows_place(&f->rows, b->spans, b->span_count);
    f->lost = HD_OK;
    b->has_begun = false;
    b->status = a->ops->step_begin_post(a, f->rows.spans, b->span_count, &b->error);
}

/* The first layer's rows are made while attention makes up its mind. */
static void start(forward_batch *b) {
    forward_host *f = of(b->forward);
    attention *a = f->config.attention;
    if (b->status != HD_OK && b->status != HD_PENDING) return;
    run_behind(f, BEFORE_LAYERS);
    if (b->status == HD_PENDING) b->status = a->ops->step_finish(a);
    b->has_begun = b->status == HD_OK;
    if (b->has_begun) b->status = submit(f, 0);
}

static hd_status lost_of(hd_status ended) {
    return ended == HD_TIMED_OUT || ended == HD_IO || ended == HD_CORRUPT ? ended : HD_OK;
}

/* From a layer's attention to the next one's. Attention ends the step while the last rows are made. */
static void go_on(forward_batch *b, uint32_t layer) {
    forward_host *f = of(b->forward);
    attention *a = f->config.attention;
    bool is_last = layer + 1 == f->model->layer_count;
    if (!b->has_begun || b->status != HD_OK) return;
    b->status = a->ops->wait(a, layer);
    if (is_last) b->ended = a->ops->step_end_post(a);
    b->has_ended = is_last;
    if (b->status == HD_OK) run_behind(f, layer);
    if (b->status == HD_OK && !is_last) b->status = submit(f, layer + 1);
}

static void end(forward_batch *b) {
    forward_host *f = of(b->forward);
    attention *a = f->config.attention;
    if (!b->has_begun) return;
    if (!b->has_ended) b->ended = a->ops->step_end_post(a);
    if (b->ended == HD_PENDING) b->ended = a->ops->step_finish(a);
    if (b->status == HD_OK) f->lost = lost_of(b->ended);
    if (b->status == HD_OK && f->lost == HD_OK) b->status = b->ended;
    if (b->status != HD_OK)
        hd_error_write(&b->error, "attention failed in the middle of a step: %s", hd_status_text(b->status));
}

static void host_run(forward_batch *batches, uint32_t count) {
    uint32_t layer_count = of(batches[0].forward)->model->layer_count;
    for (uint32_t i = 0; i < count; i++) {
        batches[i].has_ended = false;
        begin(&batches[i]);
    }
    for (uint32_t i = 0; i < count; i++) start(&batches[i]);
    for (uint32_t layer = 0; layer < layer_count; layer++) {
        for (uint32_t i = 0; i < count; i++) go_on(&batches[i], layer);
    }
    for (uint32_t i = 0; i < count; i++) end(&batches[i]);
}

static hd_status host_lost(const forward *self) {
    return ((const forward_host *)self)->lost;
}

static uint32_t host_logits_rows(const forward *self) {
    return ((const forward_host *)self)->rows.logits_row_count;
}

static size_t host_logits_stride(const forward *self) {
    return ((const forward_host *)self)->logits_stride;
}

static void run_logits(void *context, unsigned thread, unsigned thread_count) {
    run_product(context, PRODUCT_LOGITS, thread);
}

static float *host_logits(forward *self, uint32_t first, uint32_t count) {
    forward_host *f = of(self);
    assert(count > 0 && count <= f->config.logits_rows_max && first + count <= f->rows.logits_row_count);
    kernel_matmul call = {.weights = &f->weights->lm_head,
                          .input = (char *)f->normed + bytes_of(f->input_dtype, (size_t)first * f->normed_stride),
                          .input_stride = f->normed_stride,
                          .row_count = count,
                          .output = f->logits,
                          .output_stride = f->logits_stride,
                          .epilogue = KERNEL_STORE};
    prepare_product(f, PRODUCT_LOGITS, 0, &call);
    hd_pool_run(f->config.pool, run_logits, f);
    return f->logits;
}

/* The sampler is on the same processor. */
static bool host_draw(forward *self, uint32_t first, uint32_t count, struct sampler_row *const *draws,
                      bool *is_finite) {
    return false;
}

static const forward_ops host_ops = {.close = host_close,
                                     .run = host_run,
                                     .lost = host_lost,
                                     .logits_rows = host_logits_rows,
                                     .logits = host_logits,
                                     .logits_stride = host_logits_stride,
                                     .draw = host_draw};

hd_status forward_host_open(const forward_config *config, forward **out) {
    forward_host *f = hd_alloc_zeroed(sizeof(*f), HD_CACHE_LINE);
    if (f == NULL) return HD_NO_MEMORY;
    f->base.ops = &host_ops;
    const model_config *model = config->model;
    f->config = *config;
    f->model = model;
    f->weights = config->weights;
    f->kernels = config->kernels;
    f->input_dtype = kernel_matrix_input_dtype(&config->weights->lm_head);
    f->attention_dtype = config->attention->ops->dtype(config->attention);
    f->hidden = model->hidden_size;
    f->rotary_half = model->rope.rotary_dim / 2;
    f->query_width = model->query_heads * model->head_dim;
    f->key_width = model->kv_heads * model->head_dim;
    f->qkv_width = f->query_width + 2 * f->key_width;
    f->key_padded = HD_ALIGN_UP(model->head_dim, KERNEL_K_ALIGN);
    f->qkv_stride = HD_ALIGN_UP(f->qkv_width, KERNEL_N_ALIGN);
    /* As for bf16 whatever the type: rows stay a multiple of 32 elements apart. */
    f->normed_stride = kernel_input_stride(HD_BF16, f->hidden);
    f->attended_stride = kernel_input_stride(HD_BF16, f->query_width);
    f->gated_stride = kernel_input_stride(HD_BF16, HD_ALIGN_UP(model->intermediate_size, KERNEL_PANEL));
    f->logits_stride = HD_ALIGN_UP(model->vocabulary_size, KERNEL_N_ALIGN);

    hd_status status = take_buffers(f);
    if (status == HD_OK && model->expert_count > 0) {
        status = experts_open(model, f->input_dtype, config->rows_max, config->pool, config->kernels, &f->experts);
    }
    if (status == HD_OK) *out = &f->base;
    else host_close(&f->base);
    return status;
}
