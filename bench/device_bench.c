/* device_bench.c - sets up each piece of work, takes its times in turns with the limit's, and prints them. */
#include "bench/device_bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "bench/report.h"
#include "bench/statistics.h"
#include "kernels/cuda/operations.h"

#define KV_HEADS 8u
#define GROUP 4u
#define DIM 128u
#define HIDDEN 4096u
#define INTERMEDIATE 14336u
#define VOCABULARY 128256u
#define PAGE_TOKENS 128u
#define PAGE_BYTES ((uint64_t)PAGE_TOKENS * DIM * 2 * 2) /* keys and values of a head */
#define ROUNDS 9                                         /* one, where sizes are scaled down */
#define REPEATS 8                                        /* in a queue, between two looks at the clock */
#define READ_BYTES ((size_t)4 << 30)
#define TAKEN_MAX 64

typedef struct bench {
    const device_bench_config *config;
    kernel_device *device;
    kernel_queue *queue;
    FILE *table;
    json_t *rows; /* borrowed from the report */
    hd_status status;
    void *taken[TAKEN_MAX]; /* by the piece of work that runs */
    size_t taken_count;
    void *read_memory; /* that bandwidth is measured on */
    size_t read_bytes;
    uint32_t *read_result;
    device_matmul square; /* the product that peak is measured with */
} bench;

typedef enum { LIMIT_NONE, LIMIT_READ, LIMIT_SQUARE } limit_kind;

typedef struct work {
    char name[80];
    limit_kind limit;
    double bytes, operations; /* of one run */
    hd_status (*run)(bench *b, const void *call);
    const void *call;
} work;

static uint32_t scaled(const bench *b, uint32_t size) {
    uint32_t result = size / b->config->scale / 64 * 64;
    return result > 0 ? result : 64;
}

/* Device memory with numbers in it that are neither zero nor large; released behind the piece of work. */
static void *take(bench *b, size_t bytes) {
    void *memory = NULL, *pinned = NULL;
    if (b->status != HD_OK || b->taken_count == TAKEN_MAX) return NULL;
    size_t chunk = bytes < ((size_t)16 << 20) ? bytes : (size_t)16 << 20;
    b->status = b->device->ops->take(b->device, bytes, KERNEL_DEVICE_MEMORY, &memory);
    if (b->status != HD_OK) return NULL;
    b->taken[b->taken_count++] = memory;
    b->status = b->device->ops->take(b->device, chunk, KERNEL_PINNED_MEMORY, &pinned);
    if (b->status != HD_OK) return NULL;
    uint32_t state = 1;
    for (size_t i = 0; i + 2 <= chunk; i += 2) { /* bf16 of either sign between 1/64 and 1; as f32 likewise */
        state = state * 1664525u + 1013904223u;
        uint16_t value = (uint16_t)((state >> 16 & 0x8000u) | (0x3c80u + (state >> 8 & 0x1ffu)));
        memcpy((char *)pinned + i, &value, sizeof(value));
    }
    for (size_t done = 0; done < bytes && b->status == HD_OK; done += chunk) {
        b->status =
            b->device->ops->copy(b->queue, (char *)memory + done, pinned, bytes - done < chunk ? bytes - done : chunk);
    }
    hd_status waited = b->device->ops->wait(b->queue);
    b->device->ops->give(b->device, pinned, KERNEL_PINNED_MEMORY);
    if (b->status == HD_OK) b->status = waited;
    return memory;
}

static void *put(bench *b, const void *host, size_t bytes) {
    void *memory = take(b, bytes), *pinned;
    if (b->status != HD_OK) return NULL;
    b->status = b->device->ops->take(b->device, bytes, KERNEL_PINNED_MEMORY, &pinned);
    if (b->status != HD_OK) return NULL;
    memcpy(pinned, host, bytes);
    b->status = b->device->ops->copy(b->queue, memory, pinned, bytes);
    hd_status waited = b->device->ops->wait(b->queue);
    b->device->ops->give(b->device, pinned, KERNEL_PINNED_MEMORY);
    if (b->status == HD_OK) b->status = waited;
    return memory;
}

static void give_all(bench *b) {
    while (b->taken_count > 0) b->device->ops->give(b->device, b->taken[--b->taken_count], KERNEL_DEVICE_MEMORY);
}

/* ---- Times ---- */

static double time_of(bench *b, const work *w) {
    int repeats = b->config->scale > 1 ? 1 : REPEATS;
    uint64_t start = hd_now_ns();
    for (int i = 0; i < repeats && b->status == HD_OK; i++) b->status = w->run(b, w->call);
    if (b->status == HD_OK) b->status = b->device->ops->wait(b->queue);
    return (double)(hd_now_ns() - start) * 1e-9 / repeats;
}

static hd_status run_read(bench *b, const void *call) {
    return device_read_all(b->queue, call);
}

static hd_status run_matmul(bench *b, const void *call) {
    return b->device->ops->matmul(b->queue, call);
}

static double limit_now(bench *b, limit_kind limit) {
    if (limit == LIMIT_NONE) return 0;
    read_all_arguments read = {.from = b->read_memory, .bytes = b->read_bytes, .result = b->read_result};
    work w = {.run = limit == LIMIT_READ ? run_read : run_matmul,
              .call = limit == LIMIT_READ ? (const void *)&read : &b->square};
    double amount = limit == LIMIT_READ ? (double)b->read_bytes : 2.0 * b->square.n * b->square.k * b->square.row_count;
    return amount / time_of(b, &w);
}

static void print_row(bench *b, const work *w, double seconds, double best, double limit) {
    double rate = w->limit == LIMIT_SQUARE ? w->operations / seconds : w->bytes / seconds;
    char share[48] = "";
    if (limit > 0) snprintf(share, sizeof(share), "%5.1f %% of %.1f", rate / limit * 100, limit * 1e-9);
    fprintf(b->table, "%-58s %11.1f %9.1f %11.1f  %s\n", w->name, seconds * 1e6, w->bytes / seconds * 1e-9,
            w->operations / seconds * 1e-9, share);
    fflush(b->table);
    json_t *row =
        json_pack("{s:s, s:f, s:f, s:f, s:f, s:f, s:f}", "name", w->name, "seconds", seconds, "best_seconds", best,
                  "bytes_per_second", w->bytes / seconds, "operations_per_second", w->operations / seconds,
                  "limit_per_second", limit, "share", limit > 0 ? rate / limit : 0.0);
    if (json_array_append_new(b->rows, row) != 0) b->status = HD_NO_MEMORY;
}

/* Takes the work's times, unless its set-up has failed for want of memory: then says so and goes on. */
static void measure(bench *b, const work *w) {
    double times[ROUNDS], limits[ROUNDS];
    int rounds = b->config->scale > 1 ? 1 : ROUNDS;
    if (b->status == HD_OK) time_of(b, w); /* the first is not counted */
    for (int i = 0; i < rounds && b->status == HD_OK; i++) {
        times[i] = time_of(b, w);
        limits[i] = limit_now(b, w->limit);
    }
    if (b->status == HD_NO_MEMORY) {
        fprintf(b->table, "%-58s left out: no memory on the device\n", w->name);
        b->status = HD_OK;
    } else if (b->status == HD_OK) {
        sample ours = {.values = times, .count = (size_t)rounds, .capacity = ROUNDS};
        sample theirs = {.values = limits, .count = (size_t)rounds, .capacity = ROUNDS};
        sample_summary summary = sample_summarise(&ours);
        print_row(b, w, summary.median, summary.min, sample_summarise(&theirs).median);
    }
    give_all(b);
}

static bool is_wanted(const bench *b, const work *w) {
    return b->status == HD_OK && (b->config->only == NULL || strstr(w->name, b->config->only) != NULL);
}

/* ---- Attention ---- */

typedef struct attention_case {
    uint64_t depth; /* tokens of a sequence, its own rows included */
    uint32_t sequences, rows;
    uint32_t listed; /* of each group of 1,024 tokens, so many single ones instead of all; 0: all */
    bool is_pinned;  /* pages lie in host memory */
} attention_case;

typedef struct attention_setup {
    attend_tables tables;
    device_attend call;
    void *region, *pinned_pages;
} attention_setup;

static hd_status run_attention(bench *b, const void *call) {
    return device_attend_run(b->queue, call);
}

/* Pages of a sequence follow each other at a stride, so that neighbours in the context are none in memory. */
static uint64_t page_offset(uint64_t page, uint64_t page_count) {
    return page * 7919 % page_count * PAGE_BYTES;
}

static uint32_t list_span(const attention_case *c, uint64_t base, uint64_t page_count, uint64_t head_stride,
                          uint32_t head, uint64_t first_page, attend_piece *pieces, attend_token *tokens,
                          uint32_t *token_count) {
    uint32_t count = 0;
    for (uint64_t group = 0; group * ATTEND_GROUP_TOKENS + ATTEND_GROUP_TOKENS <= c->depth; group++) {
        for (uint32_t i = 0; i < c->listed; i++) {
            if (i % PAGE_TOKENS == 0) {
                pieces[count++] = (attend_piece){.offset = *token_count,
                                                 .position = group * ATTEND_GROUP_TOKENS,
                                                 .count = c->listed - i < PAGE_TOKENS ? c->listed - i : PAGE_TOKENS,
                                                 .is_list = 1};
            }
            uint64_t position = group * ATTEND_GROUP_TOKENS + i * (ATTEND_GROUP_TOKENS / c->listed);
            uint64_t key = base + head * head_stride + page_offset(first_page + position / PAGE_TOKENS, page_count) +
                           position % PAGE_TOKENS * DIM * 2;
            tokens[(*token_count)++] = (attend_token){.key = key, .value = key + PAGE_BYTES / 2};
        }
    }
    return count;
}

static uint32_t full_span(const attention_case *c, uint64_t page_count, uint64_t first_page, attend_piece *pieces) {
    uint32_t count = 0;
    for (uint64_t position = 0; position < c->depth; position += PAGE_TOKENS) {
        pieces[count++] =
            (attend_piece){.offset = page_offset(first_page + position / PAGE_TOKENS, page_count),
                           .position = position,
                           .count = c->depth - position < PAGE_TOKENS ? (uint32_t)(c->depth - position) : PAGE_TOKENS};
    }
    return count;
}

static void take_pages(bench *b, const attention_case *c, uint64_t bytes, attention_setup *s) {
    unsigned char *pages;
    if (c->is_pinned) {
        b->status = b->device->ops->take(b->device, bytes, KERNEL_PINNED_MEMORY, &s->pinned_pages);
        if (b->status != HD_OK) return;
        memset(s->pinned_pages, 0x3c, bytes);
        pages = s->pinned_pages;
    } else {
        pages = take(b, bytes);
    }
    s->call.arguments.keys = pages;
    s->call.arguments.values = pages + PAGE_BYTES / 2;
}

static void build_tables(bench *b, const attention_case *c, uint64_t page_count, attention_setup *s) {
    uint32_t heads = c->listed > 0 ? KV_HEADS : 1, span_count = c->sequences * heads;
    uint64_t pages_each = page_count / c->sequences, groups = c->depth / ATTEND_GROUP_TOKENS + 1;
    uint64_t pieces_each = c->listed > 0 ? groups * (c->listed / PAGE_TOKENS + 1) : pages_each;
    attend_tables_limits limits = {.rows_max = c->sequences * c->rows,
                                   .spans_max = span_count,
                                   .pieces_max = (uint32_t)(span_count * pieces_each),
                                   .groups_max = (uint32_t)(span_count * groups),
                                   .context_max = c->depth,
                                   .partial_rows_max =
                                       c->sequences * c->rows * GROUP * KV_HEADS * (groups < 8 ? 8 : groups),
                                   .multiprocessors = b->device->facts.multiprocessors};
    if (c->rows > 4) limits.partial_rows_max = (uint64_t)c->rows * GROUP * KV_HEADS * 8;
    s->region = malloc(attend_tables_bytes(&limits));
    attend_span *spans = calloc(span_count, sizeof(*spans));
    attend_piece *pieces = calloc(span_count * pieces_each, sizeof(*pieces));
    attend_token *tokens = calloc(span_count * groups * c->listed + 1, sizeof(*tokens));
    uint32_t token_count = 0;
    uint64_t base = (uint64_t)(uintptr_t)s->call.arguments.keys;
    bool is_taken = s->region != NULL && spans != NULL && pieces != NULL && tokens != NULL;
    for (uint32_t i = 0; is_taken && i < span_count; i++) {
        uint32_t sequence = i / heads, head = i % heads;
        attend_piece *own = pieces + i * pieces_each;
        uint32_t count = c->listed > 0 ? list_span(c, base, page_count, s->call.arguments.head_stride, head,
                                                   sequence * pages_each, own, tokens, &token_count)
                                       : full_span(c, page_count, sequence * pages_each, own);
        spans[i] = (attend_span){.pieces = own,
                                 .piece_count = count,
                                 .first_row = sequence * c->rows,
                                 .row_count = c->rows,
                                 .first_position = c->depth - c->rows,
                                 .head_first = head,
                                 .head_count = KV_HEADS / heads};
    }
    attend_tables_shape shape = {.group_size = GROUP};
    if (is_taken) {
        attend_tables_init(&s->tables, &limits, s->region);
        b->status = attend_tables_build(&s->tables, spans, span_count, &shape);
        if (b->status == HD_OK) s->call.arguments.tokens = put(b, tokens, (token_count + 1) * sizeof(*tokens));
    } else {
        b->status = HD_NO_MEMORY;
    }
    free(spans);
    free(pieces);
    free(tokens);
}

static void set_up_attention(bench *b, const attention_case *c, attention_setup *s) {
    memset(s, 0, sizeof(*s));
    uint64_t page_count = (c->depth + PAGE_TOKENS - 1) / PAGE_TOKENS * c->sequences;
    uint32_t rows = c->sequences * c->rows;
    attend_arguments *a = &s->call.arguments;
    a->head_stride = page_count * PAGE_BYTES;
    take_pages(b, c, page_count * PAGE_BYTES * KV_HEADS, s);
    if (b->status != HD_OK) return;
    build_tables(b, c, page_count, s);
    if (b->status != HD_OK) return;
    a->queries = take(b, (size_t)rows * KV_HEADS * GROUP * DIM * 2);
    a->query_head_stride = (uint64_t)rows * GROUP * DIM;
    a->query_stride = DIM;
    a->group_size = GROUP;
    a->scale = 1.0f / sqrtf((float)DIM);
    a->partials.out = take(b, s->tables.partial_rows * DIM * sizeof(float));
    a->partials.max = take(b, s->tables.partial_rows * sizeof(float));
    a->partials.sum = take(b, s->tables.partial_rows * sizeof(float));
    a->stack_levels = attend_tables_stack_levels(&s->tables.limits);
    a->stacks = take(b, device_attend_stack_bytes(&b->device->facts, DIM, a->stack_levels));
    s->call.dim = DIM;
    s->call.tables = &s->tables;
    s->call.region = put(b, s->region, s->tables.used_bytes);
    s->call.split_rows_max = c->rows * GROUP <= ATTEND_SPLIT_ROWS ? c->rows * GROUP : ATTEND_SPLIT_ROWS;
    s->call.output = take(b, (size_t)rows * KV_HEADS * GROUP * DIM * 2);
    s->call.output_stride = KV_HEADS * GROUP * DIM;
    s->call.query_heads = KV_HEADS * GROUP;
}

static void measure_attention(bench *b, const char *name, attention_case c) {
    work w = {.limit = c.rows > 4 ? LIMIT_SQUARE : c.is_pinned ? LIMIT_NONE : LIMIT_READ, .run = run_attention};
    snprintf(w.name, sizeof(w.name), "%s, %u x %u rows at %llu", name, c.sequences, c.rows,
             (unsigned long long)c.depth);
    if (!is_wanted(b, &w) || c.depth > b->config->context_max) return;
    uint64_t listed_tokens = c.depth / ATTEND_GROUP_TOKENS * c.listed;
    double seen = c.listed > 0 ? (double)listed_tokens : (double)c.depth;
    w.bytes = seen * c.sequences * KV_HEADS * DIM * 4;
    w.operations = 4.0 * DIM * KV_HEADS * GROUP * c.sequences * c.rows * (seen - (c.rows - 1) / 2.0);
    attention_setup s;
    set_up_attention(b, &c, &s);
    w.call = &s.call;
    measure(b, &w);
    b->device->ops->give(b->device, s.pinned_pages, KERNEL_PINNED_MEMORY);
    free(s.region);
}

static void measure_attentions(bench *b) {
    static const uint64_t depths[] = {2048, 8192, 32768, 131072, 524288, 1048576};
    for (size_t i = 0; i < 6; i++)
        measure_attention(b, "decode attention", (attention_case){depths[i], 1, 1, 0, false});
    measure_attention(b, "decode attention", (attention_case){8192, 16, 1, 0, false});
    measure_attention(b, "decode attention", (attention_case){32768, 16, 1, 0, false});
    measure_attention(b, "decode attention", (attention_case){8192, 64, 1, 0, false});
    for (size_t i = 0; i < 4; i++) {
        uint32_t rows = scaled(b, 2048);
        measure_attention(b, "prefill attention", (attention_case){depths[i] + rows, 1, rows, 0, false});
    }
    for (size_t i = 3; i < 6; i++) {
        measure_attention(b, "attention over 32 tokens of 1,024", (attention_case){depths[i], 1, 1, 32, false});
    }
    measure_attention(b, "the same in host memory", (attention_case){131072, 1, 1, 32, true});
    measure_attention(b, "decode attention in host memory", (attention_case){32768, 1, 1, 0, true});
}

/* ---- Products and rows ---- */

static void measure_matmul(bench *b, const char *name, uint32_t n, uint32_t k, uint32_t rows) {
    work w = {.limit = rows >= 512 ? LIMIT_SQUARE : LIMIT_READ, .run = run_matmul};
    snprintf(w.name, sizeof(w.name), "%s, %u x %u x %u", name, rows, n, k);
    if (!is_wanted(b, &w)) return;
    n = scaled(b, n);
    k = scaled(b, k);
    device_matmul call = {.weights = take(b, (size_t)n * k * 2),
                          .n = n,
                          .k = k,
                          .input = take(b, (size_t)rows * k * 2),
                          .input_stride = k,
                          .output = take(b, (size_t)rows * n * sizeof(float)),
                          .output_stride = n,
                          .row_count = rows};
    if (b->status == HD_OK) b->status = b->device->ops->matmul_prepare(b->queue, call.weights, n, k);
    w.bytes = 2.0 * n * k;
    w.operations = 2.0 * n * k * rows;
    w.call = &call;
    measure(b, &w);
}

static hd_status run_rmsnorm(bench *b, const void *call) {
    return device_rmsnorm(b->queue, call);
}

static void measure_rmsnorm(bench *b, uint32_t rows) {
    work w = {.limit = LIMIT_NONE, .run = run_rmsnorm};
    snprintf(w.name, sizeof(w.name), "rmsnorm, %u rows of %u", rows, HIDDEN);
    if (!is_wanted(b, &w)) return;
    rmsnorm_arguments call = {.input = take(b, (size_t)rows * HIDDEN * sizeof(float)),
                              .input_stride = HIDDEN,
                              .output_stride = HIDDEN,
                              .weight = take(b, HIDDEN * sizeof(float)),
                              .eps = 1e-5f,
                              .row_count = rows,
                              .width = HIDDEN,
                              .output = take(b, (size_t)rows * HIDDEN * 2)};
    w.bytes = (double)rows * HIDDEN * 6;
    w.call = &call;
    measure(b, &w);
}

static hd_status run_sample(bench *b, const void *call) {
    return device_sample(b->queue, call);
}

static void measure_sample(bench *b, uint32_t rows, const char *how, sample_row row) {
    enum { ROWS_MAX = 64 };
    sample_row host[ROWS_MAX];
    work w = {.limit = LIMIT_NONE, .run = run_sample};
    uint32_t vocabulary = scaled(b, VOCABULARY);
    snprintf(w.name, sizeof(w.name), "sample %s, %u rows of %u", how, rows, vocabulary);
    if (!is_wanted(b, &w)) return;
    for (uint32_t i = 0; i < rows; i++) host[i] = row;
    sample_arguments call = {.logits = take(b, (size_t)rows * vocabulary * sizeof(float)),
                             .stride = vocabulary,
                             .row_count = rows,
                             .count = vocabulary,
                             .rows = put(b, host, rows * sizeof(host[0])),
                             .token_ids = take(b, rows * sizeof(uint32_t))};
    w.bytes = (double)rows * vocabulary * sizeof(float);
    w.call = &call;
    measure(b, &w);
}

static void measure_rows(bench *b) {
    static const uint32_t counts[] = {1, 8, 64, 512, 2048};
    for (size_t i = 0; i < 5; i++) {
        uint32_t rows = counts[i] >= 512 ? scaled(b, counts[i]) : counts[i];
        measure_matmul(b, "product qkv", HIDDEN + 2 * KV_HEADS * DIM, HIDDEN, rows);
        measure_matmul(b, "product gate and up", 2 * INTERMEDIATE, HIDDEN, rows);
        measure_matmul(b, "product down", HIDDEN, INTERMEDIATE, rows);
        measure_rmsnorm(b, rows);
    }
    sample_row row = {.repetition_penalty = 1.0f, .temperature = 0.0f, .top_p = 1.0f, .uniform = 0.5};
    measure_sample(b, 1, "the largest", row);
    row.temperature = 1.0f;
    measure_sample(b, 64, "from all", row);
    row.top_p = 0.9f;
    row.top_k = 50;
    measure_sample(b, 64, "by top_k and top_p", row);
}

/* ---- The run ---- */

/* Memory and weights that the limits are measured with; kept to the end, so not of a piece of work. */
static hd_status open_limits(bench *b) {
    uint32_t edge = scaled(b, 8192);
    b->read_bytes = READ_BYTES / b->config->scale / b->config->scale;
    if (b->read_bytes > b->device->facts.memory_bytes / 8) b->read_bytes = b->device->facts.memory_bytes / 8;
    b->read_bytes = b->read_bytes / 4096 * 4096;
    b->read_memory = take(b, b->read_bytes);
    b->read_result = take(b, sizeof(uint32_t));
    b->square = (device_matmul){.weights = take(b, (size_t)edge * edge * 2),
                                .n = edge,
                                .k = edge,
                                .input = take(b, (size_t)edge * edge * 2),
                                .input_stride = edge,
                                .output = take(b, (size_t)edge * edge * sizeof(float)),
                                .output_stride = edge,
                                .row_count = edge};
    if (b->status == HD_OK) {
        b->status = b->device->ops->matmul_prepare(b->queue, b->square.weights, edge, edge);
    }
    return b->status;
}

static void run_all(bench *b) {
    void *limits[TAKEN_MAX];
    open_limits(b);
    size_t limit_count = b->taken_count;
    memcpy(limits, b->taken, sizeof(limits));
    b->taken_count = 0;
    if (b->status == HD_OK) {
        measure_attentions(b);
        measure_rows(b);
    }
    give_all(b);
    while (limit_count > 0) b->device->ops->give(b->device, limits[--limit_count], KERNEL_DEVICE_MEMORY);
}

hd_status device_bench_run(const device_bench_config *config, hd_error *error) {
    const kernel_device_facts *facts = &config->device->facts;
    bench b = {.config = config,
               .device = config->device,
               .table = bench_report_table(config->json_path),
               .rows = json_array()};
    json_t *report = bench_report_open("device");
    if (report != NULL) json_object_set_new(report, "device", json_string(facts->name));
    if (report == NULL || b.rows == NULL || json_object_set_new(report, "rows", b.rows) != 0) {
        json_decref(report);
        return hd_error_set(error, HD_NO_MEMORY, "no memory for the report");
    }
    fprintf(b.table, "%s, %u multiprocessors; median times; limits measured in turns with each kernel\n", facts->name,
            facts->multiprocessors);
    fprintf(b.table, "%-58s %11s %9s %11s  %s\n", "", "us", "GB/s", "GFLOP/s", "of the limit");
    b.status = b.device->ops->queue_open(b.device, &b.queue);
    if (b.status == HD_OK) run_all(&b);
    b.device->ops->queue_close(b.queue);
    if (b.status == HD_OK) return bench_report_write(report, config->json_path, error);
    json_decref(report);
    return hd_error_set(error, b.status, "the device stopped: %s", hd_status_text(b.status));
}
