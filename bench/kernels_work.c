#include "bench/kernels_work.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/memory.h"
#include "bench/random.h"

enum { ROWS_MAX = 1024, WIDTH_MAX = 16384, PATTERN_BYTES = 1 << 20 };
#define ROWS_BYTES ((size_t)ROWS_MAX * WIDTH_MAX * sizeof(float)) /* of inputs, and of outputs */

/* ---- memory ---- */

static void fill_share(void *context, unsigned thread, unsigned thread_count) {
    const kernels_memory *memory = context;
    size_t first, count;
    hd_share(memory->bytes, PATTERN_BYTES, thread, thread_count, &first, &count);
    bench_random random = {thread};
    uint16_t *values = (uint16_t *)((char *)memory->region + first);
    size_t pattern = count < PATTERN_BYTES ? count : PATTERN_BYTES;
    for (size_t i = 0; i < pattern / sizeof(uint16_t); i++) {
        float magnitude = 1.0f / (float)(1u << bench_random_below(&random, 6));
        float value = (float)(bench_random_unit(&random) + 1) * magnitude;
        values[i] = hd_f32_to_bf16(bench_random_below(&random, 2) == 0 ? value : -value);
    }
    for (size_t done = pattern; done < count; done += pattern)
        memcpy((char *)values + done, values, count - done < pattern ? count - done : pattern);
}

hd_status kernels_memory_open(const kernel_ops *kernels, hd_pool *pool, size_t bytes, kernels_memory *memory) {
    unsigned threads = hd_pool_thread_count(pool);
    kernels_memory m = {.kernels = kernels, .pool = pool, .bytes = HD_ALIGN_UP(bytes, PATTERN_BYTES)};
    m.region = hd_region_map(m.bytes);
    m.inputs = hd_region_map(ROWS_BYTES);
    m.outputs = hd_region_map(ROWS_BYTES);
    m.scratch = calloc(threads, sizeof(m.scratch[0]));
    bool is_whole = m.region != NULL && m.inputs != NULL && m.outputs != NULL && m.scratch != NULL;
    for (unsigned i = 0; is_whole && i < threads; i++) {
        m.scratch[i] = hd_region_map(kernels->scratch_bytes);
        is_whole = m.scratch[i] != NULL;
    }
    *memory = m;
    if (!is_whole) {
        kernels_memory_close(memory);
        return HD_NO_MEMORY;
    }
    hd_pool_run(pool, fill_share, memory);
    kernels_memory inputs = {.region = m.inputs, .bytes = ROWS_BYTES};
    hd_pool_run(pool, fill_share, &inputs);
    return HD_OK;
}

void kernels_memory_close(kernels_memory *m) {
    for (unsigned i = 0; m->scratch != NULL && i < hd_pool_thread_count(m->pool); i++) {
        if (m->scratch[i] != NULL) hd_region_unmap(m->scratch[i], m->kernels->scratch_bytes);
    }
    free(m->scratch);
    if (m->outputs != NULL) hd_region_unmap(m->outputs, ROWS_BYTES);
    if (m->inputs != NULL) hd_region_unmap(m->inputs, ROWS_BYTES);
    if (m->region != NULL) hd_region_unmap(m->region, m->bytes);
}

/* ---- attention ---- */

/* The product beside which prefill attention is held: the one of those below that oneDNN does best. */
enum { PEER_ROWS = 512, PEER_N = 8192, PEER_K = 2048 };

typedef struct attention_work {
    const kernels_memory *memory;
    kernel_page_shape shape;
    uint32_t rows, rows_at_once; /* of one key head, and of one call */
    uint32_t group_count;        /* leaf groups of one head's context */
    size_t head_count;
    kernel_span *spans;  /* [head_count][group_count][HD_GROUP_BLOCKS], places drawn at random */
    uint64_t *positions; /* [rows]: all after the context */
    _Atomic size_t *ticket;
} attention_work;

static kernel_partial partial_at(const attention_work *w, char **at) {
    kernel_partial partial = {.out = (float *)*at, .out_stride = w->shape.value_dim};
    partial.max = partial.out + (size_t)w->rows_at_once * w->shape.value_dim;
    partial.sum = partial.max + w->rows_at_once;
    *at += HD_ALIGN_UP((w->rows_at_once * (size_t)(w->shape.value_dim + 2)) * sizeof(float), HD_CACHE_LINE);
    return partial;
}

/* One key head and a part of its rows: group after group, merged in order. */
static void attend_share(void *context, unsigned thread, unsigned thread_count) {
    const attention_work *w = context;
    const kernel_ops *kernels = w->memory->kernels;
    char *at = (char *)w->memory->outputs + thread * (ROWS_BYTES / thread_count / HD_CACHE_LINE * HD_CACHE_LINE);
    kernel_partial total = partial_at(w, &at), part = partial_at(w, &at);
    size_t parts = w->rows / w->rows_at_once, items = w->head_count * parts, item;
    kernel_attend call = {.shape = w->shape,
                          /* What are small numbers as bf16 are large ones as bytes and exponents. */
                          .scale = w->shape.dtype == HD_INT8 ? 0x1p-26f : 0.125f,
                          .query_stride = HD_ALIGN_UP(w->shape.key_dim, KERNEL_K_ALIGN),
                          .positions = w->positions,
                          .row_count = w->rows_at_once,
                          .span_count = HD_GROUP_BLOCKS,
                          .scratch = w->memory->scratch[thread]};
    while ((item = hd_ticket_take(w->ticket, items)) < items) {
        call.queries = (const uint16_t *)w->memory->inputs + item % parts * w->rows_at_once * call.query_stride;
        for (uint32_t group = 0; group < w->group_count; group++) {
            call.spans = w->spans + (item / parts * w->group_count + group) * HD_GROUP_BLOCKS;
            call.ahead = group + 1 < w->group_count ? call.spans + HD_GROUP_BLOCKS : NULL;
            call.partial = group == 0 ? total : part;
            kernels->attend(&call);
            if (group > 0) kernels->merge(&total, &part, w->rows_at_once, w->shape.value_dim);
        }
    }
}

static void run_attention(const kernels_work *work) {
    const attention_work *w = work->context;
    atomic_store(w->ticket, 0);
    hd_pool_run(work->memory->pool, attend_share, (void *)w);
}

/* The pages of head_count contexts, each a piece of the region of its own. */
static hd_status place_pages(attention_work *w) {
    size_t key_bytes = kernel_page_key_bytes(&w->shape), page_bytes = key_bytes + kernel_page_value_bytes(&w->shape);
    size_t head_pages = (size_t)w->group_count * HD_GROUP_BLOCKS, fitting = w->memory->bytes / page_bytes;
    w->head_count = fitting / head_pages;
    size_t pages = w->head_count * head_pages;
    w->spans = calloc(pages, sizeof(*w->spans));
    w->positions = calloc(w->rows, sizeof(*w->positions));
    if (w->spans == NULL || w->positions == NULL) return HD_NO_MEMORY;
    bench_random random = {1};
    for (size_t i = 0; i < pages; i++) {
        size_t other = bench_random_below(&random, i + 1);
        w->spans[i].keys = w->spans[other].keys;
        w->spans[other].keys = (char *)w->memory->region + i * page_bytes;
    }
    for (size_t i = 0; i < pages; i++) {
        w->spans[i].values = (const char *)w->spans[i].keys + key_bytes;
        w->spans[i].count = HD_BLOCK_TOKENS;
        w->spans[i].position = i % head_pages * HD_BLOCK_TOKENS;
    }
    for (uint32_t row = 0; row < w->rows; row++) w->positions[row] = head_pages * HD_BLOCK_TOKENS + row;
    return HD_OK;
}

/* rows: query rows of one key head; few in decode, of a whole chunk in prefill. */
static hd_status attention_each(const kernels_memory *memory, hd_dtype dtype, uint32_t dim, uint32_t rows,
                                uint32_t tokens, void (*each)(const kernels_work *work, void *context), void *context) {
    _Atomic size_t ticket = 0;
    attention_work w = {.memory = memory, .shape = {dtype, dim, dim}, .rows = rows, .ticket = &ticket};
    w.group_count = tokens / (HD_BLOCK_TOKENS * HD_GROUP_BLOCKS);
    w.rows_at_once = rows < memory->kernels->attend_rows_best ? rows : memory->kernels->attend_rows_best;
    hd_status status = place_pages(&w);
    if (status == HD_OK && w.head_count > 0) {
        bool is_decode = rows < 32;
        if (!is_decode) w.head_count = w.head_count < 4 ? w.head_count : 4; /* enough for the threads to share */
        kernels_work work = {.limit = is_decode ? KERNELS_LIMIT_MEMORY : KERNELS_LIMIT_PEAK,
                             .run = run_attention,
                             .memory = memory,
                             .context = &w};
        double tokens_read = (double)w.head_count * tokens;
        work.bytes = tokens_read / HD_BLOCK_TOKENS *
                     (double)(kernel_page_key_bytes(&w.shape) + kernel_page_value_bytes(&w.shape));
        work.operations = tokens_read * rows * dim * 4;
        if (!is_decode && dtype == HD_BF16) work.m = PEER_ROWS, work.n = PEER_N, work.k = PEER_K;
        snprintf(work.name, sizeof(work.name), "%s attention, %u rows, head %u, %uK tokens%s",
                 is_decode ? "decode" : "prefill", rows, dim, tokens / 1024, dtype == HD_INT8 ? ", int8" : "");
        each(&work, context);
    }
    free(w.positions);
    free(w.spans);
    return status;
}

/* ---- matrix products ---- */

static void multiply_share(void *context, unsigned thread, unsigned thread_count) {
    const kernels_work *work = context;
    kernel_matmul call = *(const kernel_matmul *)work->context;
    call.scratch = work->memory->scratch[thread];
    size_t first, count;
    hd_share(kernel_matrix_panels(call.weights), 1, thread, thread_count, &first, &count);
    if (count > 0) work->memory->kernels->matmul(&call, (uint32_t)first, (uint32_t)count);
}

static void run_matmul(const kernels_work *work) {
    hd_pool_run(work->memory->pool, multiply_share, (void *)work);
}

static hd_status matmul_each(const kernels_memory *memory, hd_dtype dtype, uint32_t m, uint32_t n, uint32_t k,
                             void (*each)(const kernels_work *work, void *context), void *context) {
    size_t bytes = kernel_matrix_bytes(dtype, n, k);
    if (bytes > memory->bytes) return HD_OK;
    float *scales = calloc(n, sizeof(float));
    if (scales == NULL) return HD_NO_MEMORY;
    /* As packed, without packing: what the numbers are changes nothing. */
    kernel_matrix weights = {dtype, n, k, n, k, memory->region, dtype == HD_INT8 ? scales : NULL};
    kernel_matmul call = {.weights = &weights,
                          .input = memory->inputs,
                          .input_stride = kernel_input_stride(HD_BF16, k),
                          .row_count = m,
                          .output = memory->outputs,
                          .output_stride = m > 16 ? n : HD_ALIGN_UP(n, 16)};
    bool is_small = m <= 16;
    kernels_work work = {.limit = is_small ? KERNELS_LIMIT_MEMORY : KERNELS_LIMIT_PEAK,
                         .bytes = (double)bytes,
                         .operations = 2.0 * m * n * k,
                         .run = run_matmul,
                         .memory = memory,
                         .context = &call};
    if (dtype == HD_BF16) work.m = m, work.n = n, work.k = k;
    snprintf(work.name, sizeof(work.name), "matmul %s, %u x %u x %u", hd_dtype_name(dtype), m, n, k);
    each(&work, context);
    free(scales);
    return HD_OK;
}

/* ---- the small ones ---- */

enum { ELEMENT_ROWS = 512, ELEMENT_WIDTH = 2048, HEADS = 32, HEAD_DIM = 64 };

static void normalise_share(void *context, unsigned thread, unsigned thread_count) {
    const kernels_work *work = context;
    size_t first, count;
    hd_share(ELEMENT_ROWS, 1, thread, thread_count, &first, &count);
    const float *rows = (const float *)work->memory->inputs + first * ELEMENT_WIDTH, *weight = work->memory->inputs;
    uint16_t *output = (uint16_t *)work->memory->outputs + first * ELEMENT_WIDTH;
    work->memory->kernels->rmsnorm(rows, ELEMENT_WIDTH, weight, 1e-5f, (uint32_t)count, ELEMENT_WIDTH, HD_BF16, output,
                                   ELEMENT_WIDTH);
}

static void rotate_share(void *context, unsigned thread, unsigned thread_count) {
    const kernels_work *work = context;
    size_t first, count;
    hd_share(ELEMENT_ROWS, 1, thread, thread_count, &first, &count);
    /* An angle of nothing leaves the numbers as they are, run after run. */
    float cosines[HEAD_DIM / 2], sines[HEAD_DIM / 2] = {0};
    for (int i = 0; i < HEAD_DIM / 2; i++) cosines[i] = 1;
    float *rows = (float *)work->memory->outputs + first * HEADS * HEAD_DIM;
    for (size_t row = 0; row < count; row++)
        work->memory->kernels->rope(rows + row * HEADS * HEAD_DIM, HEADS, HEAD_DIM, HEAD_DIM, cosines, sines);
}

static void summarise_share(void *context, unsigned thread, unsigned thread_count) {
    const kernels_work *work = context;
    const float *logits = (const float *)work->memory->inputs + thread * work->n;
    float max, log_sum_exp;
    uint32_t argmax;
    work->memory->kernels->logits_summary(logits, work->n, &argmax, &max, &log_sum_exp);
}

static void store_share(void *context, unsigned thread, unsigned thread_count) {
    const kernels_work *work = context;
    kernel_page_shape shape = {HD_BF16, HEAD_DIM, HEAD_DIM};
    size_t key_bytes = kernel_page_key_bytes(&shape), page_bytes = key_bytes + kernel_page_value_bytes(&shape);
    size_t first, count;
    hd_share(ELEMENT_ROWS, 1, thread, thread_count, &first, &count);
    for (size_t page = first; page < first + count; page++) {
        char *keys = (char *)work->memory->outputs + page * page_bytes;
        const uint16_t *rows = (const uint16_t *)work->memory->inputs + page * HD_BLOCK_TOKENS * 2 * HEAD_DIM;
        work->memory->kernels->page_store(&shape, keys, keys + key_bytes, 0, HD_BLOCK_TOKENS, rows, 2 * HEAD_DIM,
                                          rows + HEAD_DIM, 2 * HEAD_DIM);
    }
}

static void run_shared(const kernels_work *work) {
    hd_pool_run(work->memory->pool, *(hd_pool_function *const *)work->context, (void *)work);
}

static void elements_each(const kernels_memory *memory, void (*each)(const kernels_work *work, void *context),
                          void *context) {
    static const struct {
        const char *name;
        hd_pool_function *function;
        double bytes;
        uint32_t n;
    } all[] = {
        {"rmsnorm to bf16, 512 x 2048", normalise_share, ELEMENT_ROWS * ELEMENT_WIDTH * 6.0, 0},
        {"rope, 512 rows of 32 heads of 64", rotate_share, ELEMENT_ROWS * HEADS * HEAD_DIM * 8.0, 0},
        {"logits summary, 128256 a thread", summarise_share, 128256 * 4.0, 128256},
        {"page store, 512 pages, head 64", store_share, ELEMENT_ROWS * HD_BLOCK_TOKENS * HEAD_DIM * 8.0, 0},
    };
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        kernels_work work = {.limit = KERNELS_LIMIT_NONE,
                             .bytes = all[i].bytes,
                             .n = all[i].n,
                             .run = run_shared,
                             .memory = memory,
                             .context = &all[i].function};
        if (all[i].n > 0) work.bytes *= hd_pool_thread_count(memory->pool);
        snprintf(work.name, sizeof(work.name), "%s", all[i].name);
        each(&work, context);
    }
}

hd_status kernels_work_each(const kernels_memory *memory, void (*each)(const kernels_work *work, void *context),
                            void *context) {
    static const struct {
        hd_dtype dtype;
        uint32_t dim, rows, tokens;
    } attention[] = {{HD_BF16, 64, 1, 16384},    {HD_BF16, 64, 4, 16384},    {HD_INT8, 64, 4, 16384},
                     {HD_BF16, 128, 4, 16384},   {HD_INT8, 128, 4, 16384},   {HD_BF16, 128, 8, 131072},
                     {HD_INT8, 128, 8, 131072},  {HD_BF16, 64, 1024, 32768}, {HD_INT8, 64, 1024, 32768},
                     {HD_BF16, 128, 1024, 32768}};
    static const uint32_t large[][2] = {{8192, 2048}, {2048, 8192}};
    static const uint32_t few[] = {1, 4, 8};
    hd_status status = HD_OK;
    for (size_t i = 0; status == HD_OK && i < sizeof(attention) / sizeof(attention[0]); i++)
        status = attention_each(memory, attention[i].dtype, attention[i].dim, attention[i].rows, attention[i].tokens,
                                each, context);
    for (size_t i = 0; status == HD_OK && i < 4; i++)
        status = matmul_each(memory, i < 2 ? HD_BF16 : HD_INT8, 512, large[i % 2][0], large[i % 2][1], each, context);
    for (size_t i = 0; status == HD_OK && i < 6; i++)
        status = matmul_each(memory, i < 3 ? HD_BF16 : HD_INT8, few[i % 3], 128256, 2048, each, context);
    if (status == HD_OK) elements_each(memory, each, context);
    return status;
}
