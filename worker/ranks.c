/* ranks.c - what crosses between ranks: a head and the input to all, and everybody's columns back. */
#include "worker/ranks.h"

#include <assert.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "worker/product.h"

#define AWAKE_NS 2000000u /* of looking again and again, behind a product; then looks have pauses */
#define PAUSE_US 100u

typedef struct rank_head {
    uint32_t matrix, layer, row_count, epilogue;
    uint64_t input_stride, input_bytes;
} rank_head;

struct ranks {
    ranks_config config;
    hd_dtype input_dtype;
    void *input;    /* of another rank: [input_bytes_max] */
    void *output;   /* a rank's columns: [output_bytes_max]. Rank 0 takes them in here */
    void **scratch; /* of another rank: one a thread */
    uint64_t input_bytes_max, output_bytes_max;
    /* Of serve. */
    product product;
    _Atomic size_t ticket;
};

/* ---- Shapes ---- */

static size_t element_bytes(hd_dtype dtype) {
    return hd_dtype_bits(dtype) / 8;
}

static uint32_t width_of(const model_config *m, ranks_matrix matrix) {
    switch (matrix) {
    case RANKS_QKV: return (m->query_heads + 2 * m->kv_heads) * m->head_dim;
    case RANKS_GATE_UP: return 2 * HD_ALIGN_UP(m->intermediate_size, KERNEL_PANEL);
    case RANKS_LOGITS: return m->vocabulary_size;
    case RANKS_OUTPUT:
    case RANKS_DOWN:
    case RANKS_END: break;
    }
    return m->hidden_size;
}

/* Columns of the output that a rank has: of gate and up, which are gone then, half as many. */
static model_columns columns_of(const ranks *r, ranks_matrix matrix, uint32_t rank) {
    bool is_gated = matrix == RANKS_GATE_UP;
    model_share share = {rank, r->config.collective->count};
    model_columns columns = model_share_columns(share, width_of(r->config.model, matrix), is_gated ? 2 : 1);
    return is_gated ? (model_columns){columns.first / 2, columns.count / 2} : columns;
}

static size_t output_element(const ranks *r, ranks_matrix matrix) {
    return matrix == RANKS_GATE_UP ? element_bytes(r->input_dtype) : sizeof(float);
}

static size_t output_bytes(const ranks *r, ranks_matrix matrix, uint32_t rank, uint32_t rows) {
    return (size_t)rows * columns_of(r, matrix, rank).count * output_element(r, matrix);
}

static const kernel_matrix *matrix_of(const ranks *r, ranks_matrix matrix, uint32_t layer) {
    const model_layer *l = &r->config.weights->layers[layer];
    switch (matrix) {
    case RANKS_QKV: return &l->qkv;
    case RANKS_OUTPUT: return &l->attention_output;
    case RANKS_GATE_UP: return &l->gate_up;
    case RANKS_DOWN: return &l->down;
    case RANKS_LOGITS:
    case RANKS_END: break;
    }
    return &r->config.weights->lm_head;
}

static const float *bias_of(const ranks *r, ranks_matrix matrix, uint32_t layer) {
    const model_layer *l = &r->config.weights->layers[layer];
    return matrix == RANKS_QKV ? l->qkv_bias : matrix == RANKS_OUTPUT ? l->attention_output_bias : NULL;
}

/* ---- Rank 0 ---- */

static void tell(ranks *r, const rank_head *head) {
    collective *c = r->config.collective;
    for (uint32_t rank = 1; rank < c->count; rank++) c->ops->send(c, rank, head, sizeof(*head));
}

void ranks_ask(ranks *r, const ranks_call *call) {
    collective *c = r->config.collective;
    const kernel_matmul *m = &call->call;
    /* Up to the last row's end: what lies behind it is nobody's. */
    uint64_t elements = (m->row_count - 1) * m->input_stride + m->weights->k_padded;
    rank_head head = {.matrix = (uint32_t)call->matrix,
                      .layer = call->layer,
                      .row_count = m->row_count,
                      .epilogue = (uint32_t)m->epilogue,
                      .input_stride = m->input_stride,
                      .input_bytes = elements * element_bytes(r->input_dtype)};
    tell(r, &head);
    c->ops->broadcast(c, (void *)m->input, head.input_bytes);
}

static void add_row(float *to, const float *from, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) to[i] += from[i];
}

void ranks_take(ranks *r, const ranks_call *call) {
    collective *c = r->config.collective;
    const kernel_matmul *m = &call->call;
    size_t element = output_element(r, call->matrix);
    for (uint32_t rank = 1; rank < c->count; rank++) {
        model_columns columns = columns_of(r, call->matrix, rank);
        if (columns.count == 0) continue;
        c->ops->receive(c, rank, r->output, output_bytes(r, call->matrix, rank, m->row_count));
        for (uint32_t row = 0; row < m->row_count; row++) {
            char *to = (char *)m->output + (row * m->output_stride + columns.first) * element;
            const char *from = (const char *)r->output + (size_t)row * columns.count * element;
            if (m->epilogue == KERNEL_ADD) add_row((float *)to, (const float *)from, columns.count);
            else memcpy(to, from, columns.count * element);
        }
    }
}

/* ---- The others ---- */

static void run_product(void *context, unsigned thread, unsigned thread_count) {
    ranks *r = context;
    product_run(&r->product, r->config.kernels, &r->ticket, r->scratch[thread]);
}

/* KERNEL_ADD adds at rank 0, where the sum is; the same two numbers as in one process. */
static void answer(ranks *r, const rank_head *head) {
    collective *c = r->config.collective;
    ranks_matrix matrix = (ranks_matrix)head->matrix;
    assert(head->input_bytes <= r->input_bytes_max && head->layer < r->config.model->layer_count);
    c->ops->broadcast(c, r->input, head->input_bytes);
    model_columns columns = columns_of(r, matrix, c->rank);
    if (columns.count == 0) return;
    const float *bias = bias_of(r, matrix, head->layer);
    kernel_matmul call = {.weights = matrix_of(r, matrix, head->layer),
                          .input = r->input,
                          .input_stride = head->input_stride,
                          .row_count = head->row_count,
                          .output = r->output,
                          .output_stride = columns.count,
                          .bias = bias != NULL ? bias + columns.first : NULL,
                          .epilogue = head->epilogue == KERNEL_ADD ? KERNEL_STORE : (kernel_epilogue)head->epilogue};
    product_init(&r->product, &call, hd_pool_thread_count(r->config.pool));
    atomic_store_explicit(&r->ticket, 0, memory_order_relaxed);
    hd_pool_run(r->config.pool, run_product, r);
    c->ops->send(c, 0, r->output, output_bytes(r, matrix, c->rank, head->row_count));
}

/* Products of a step follow each other within microseconds; between steps there may be hours. */
static void wait_for_call(const ranks *r) {
    collective *c = r->config.collective;
    uint64_t since = hd_now_ns();
    while (!c->ops->has_come(c, 0)) {
        if (hd_now_ns() - since > AWAKE_NS) usleep(PAUSE_US);
    }
}

void ranks_serve(ranks *r) {
    collective *c = r->config.collective;
    for (rank_head head;;) {
        wait_for_call(r);
        c->ops->receive(c, 0, &head, sizeof(head));
        if (head.matrix == RANKS_END) return;
        answer(r, &head);
    }
}

/* ---- Start and end ---- */

static uint64_t largest_output(const ranks *r) {
    uint64_t most = 0;
    for (ranks_matrix matrix = RANKS_QKV; matrix <= RANKS_LOGITS; matrix++) {
        for (uint32_t rank = 1; rank < r->config.collective->count; rank++) {
            uint64_t bytes = output_bytes(r, matrix, rank, r->config.rows_max);
            if (bytes > most) most = bytes;
        }
    }
    return most;
}

static bool take_memory(ranks *r) {
    const model_config *m = r->config.model;
    unsigned threads = hd_pool_thread_count(r->config.pool);
    uint32_t query_width = m->query_heads * m->head_dim;
    uint32_t deepest = m->hidden_size > query_width ? m->hidden_size : query_width;
    if (m->intermediate_size > deepest) deepest = m->intermediate_size;
    r->input_bytes_max = (uint64_t)r->config.rows_max *
                         kernel_input_stride(HD_BF16, HD_ALIGN_UP(deepest, KERNEL_PANEL)) *
                         element_bytes(r->input_dtype);
    r->output_bytes_max = largest_output(r);
    r->output = hd_alloc(r->output_bytes_max + HD_CACHE_LINE, HD_CACHE_LINE);
    if (r->config.collective->rank == 0) return r->output != NULL;
    r->input = hd_alloc(r->input_bytes_max, HD_CACHE_LINE);
    r->scratch = hd_alloc_zeroed(threads * sizeof(*r->scratch), HD_CACHE_LINE);
    bool has_all = r->output != NULL && r->input != NULL && r->scratch != NULL;
    for (unsigned i = 0; i < threads && has_all; i++) {
        r->scratch[i] = hd_alloc(r->config.kernels->scratch_bytes, HD_CACHE_LINE);
        has_all = r->scratch[i] != NULL;
    }
    return has_all;
}

hd_status ranks_open(const ranks_config *config, ranks **out, hd_error *error) {
    ranks *r = hd_alloc_zeroed(sizeof(*r), HD_CACHE_LINE);
    if (r == NULL) return hd_error_set(error, HD_NO_MEMORY, "out of memory");
    assert(config->weights->share.rank == config->collective->rank &&
           config->weights->share.count == config->collective->count);
    r->config = *config;
    r->input_dtype = kernel_matrix_input_dtype(&config->weights->lm_head);
    hd_status status = take_memory(r) ? HD_OK : hd_error_set(error, HD_NO_MEMORY, "no memory for what ranks exchange");
    if (status == HD_OK && (r->output_bytes_max > COLLECTIVE_BYTES_MAX || r->input_bytes_max > COLLECTIVE_BYTES_MAX)) {
        status = hd_error_set(error, HD_INVALID, "steps of %u rows are too many for ranks: lower --max-batch-tokens",
                              config->rows_max);
    }
    if (status == HD_OK) *out = r;
    else ranks_close(r);
    return status;
}

void ranks_close(ranks *r) {
    if (r == NULL) return;
    rank_head end = {.matrix = RANKS_END};
    if (r->config.collective->rank == 0) tell(r, &end);
    for (unsigned i = 0; r->scratch != NULL && i < hd_pool_thread_count(r->config.pool); i++) hd_free(r->scratch[i]);
    hd_free(r->scratch);
    hd_free(r->input);
    hd_free(r->output);
    hd_free(r);
}
