/* index_bench.c - builds each index on the data, asks it every test query, and prints a row. */
#include "bench/index_bench.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "attention-node/index_top.h"
#include "base/memory.h"
#include "bench/index_data.h"
#include "bench/index_oracle.h"
#include "bench/report.h"
#include "bench/statistics.h"

enum { PASSES = 20 };

typedef struct bench {
    const index_bench_config *config;
    index_data data;
    index_params params;
    kv_index *index;
    index_extent extent;
    uint32_t candidates;
    FILE *table;
    json_t *rows;
} bench;

typedef struct figures {
    double build_seconds, recall, scanned, queries_per_second, rest, error_median, error_p99, bare_median;
    double bytes_per_key, bytes_per_key_max; /* as built; as accounted for when a request is admitted */
} figures;

/* The best of more keys are closer together, and take more of those that an index holds for the best. */
static uint32_t usual_candidates(uint32_t key_count) {
    enum { USUAL = 350, USUAL_KEYS = 131072, KEYS_OF_ONE = 8192 };
    return USUAL + (key_count > USUAL_KEYS ? (key_count - USUAL_KEYS) / KEYS_OF_ONE : 0);
}

static double thread_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* The data's queries are spread over the positions as those of a prompt would be. */
static hd_status add_queries(bench *b) {
    hd_status status = HD_OK;
    for (uint64_t at = 0; status == HD_OK && at < b->data.key_count; at += INDEX_QUERY_POSITIONS) {
        uint64_t query = at * b->data.query_count / b->data.key_count;
        status = index_add_query(b->index, at, b->data.queries + query * b->data.key_dim, 1, 0);
    }
    return status;
}

static hd_status build(bench *b, figures *f) {
    index_source source = index_data_source(&b->data);
    index_builder *builder = NULL;
    b->extent = (index_extent){b->data.key_count, b->data.key_count};
    hd_status status = index_open(&b->params, &source, &b->index);
    if (status == HD_OK) status = index_builder_open(&b->params, &builder);
    double start = thread_seconds();
    if (status == HD_OK) status = add_queries(b);
    if (status == HD_OK) {
        index_target(b->index, &b->extent);
        while ((status = index_build(b->index, builder)) == HD_PENDING) continue;
    }
    f->build_seconds = thread_seconds() - start;
    index_builder_close(builder);
    if (status == HD_OK) f->bytes_per_key = (double)index_bytes(b->index) / b->data.key_count;
    f->bytes_per_key_max = (double)index_bytes_max(&b->params) / b->data.key_count;
    return status;
}

static hd_status search_open(const bench *b, uint32_t tokens_each, index_search *search) {
    *search = (index_search){.query_stride = b->data.key_dim,
                             .query_count = 1,
                             .scale = b->data.scale,
                             .extent = b->extent,
                             .tokens_each = tokens_each,
                             .scratch = hd_alloc(index_search_bytes(&b->params, 1, tokens_each), HD_CACHE_LINE),
                             .tokens = malloc(tokens_each * sizeof(uint32_t))};
    return search->scratch != NULL && search->tokens != NULL ? HD_OK : HD_NO_MEMORY;
}

static void search_close(index_search *search) {
    hd_free(search->scratch);
    free(search->tokens);
}

static const uint16_t *test_query(const bench *b, uint32_t test) {
    return b->data.tests + (size_t)test * b->data.key_dim;
}

/* The best 100 of the tokens found, by their keys. */
static uint32_t rank(const bench *b, const index_search *search, uint64_t *items) {
    enum { AHEAD = 8 };
    uint32_t dim = b->data.key_dim;
    float query[512], score;
    for (uint32_t i = 0; i < dim; i++) query[i] = hd_bf16_to_f32(search->queries[i]);
    for (uint32_t i = 0; i < search->token_count; i++) {
        if (i + AHEAD < search->token_count)
            for (uint32_t line = 0; line < dim; line += 32)
                __builtin_prefetch(b->data.keys + (size_t)search->tokens[i + AHEAD] * dim + line);
        b->config->kernels->scan->dot_rows(query, dim, b->data.keys + (size_t)search->tokens[i] * dim, dim, 1, &score);
        items[i] = index_item(score, search->tokens[i]);
    }
    uint32_t wanted = search->token_count < INDEX_DATA_BEST ? search->token_count : INDEX_DATA_BEST;
    index_items_select(items, search->token_count, wanted);
    return wanted;
}

static double recall_of(const bench *b, uint32_t test, const uint64_t *items, uint32_t count) {
    uint32_t found = 0;
    const uint32_t *best = b->data.best + (size_t)test * INDEX_DATA_BEST;
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t j = 0; j < INDEX_DATA_BEST; j++) found += index_item_token(items[i]) == best[j];
    return (double)found / INDEX_DATA_BEST;
}

static hd_status measure_recall(bench *b, figures *f) {
    index_search search;
    bool is_exact = strcmp(index_kind_name(b->params.kind), "exact") == 0; /* has read the keys already */
    uint64_t *items = malloc(b->candidates * sizeof(*items)), scanned = 0;
    hd_status status = search_open(b, is_exact ? INDEX_DATA_BEST : b->candidates, &search);
    sample seconds;
    sample_init(&seconds);
    for (uint32_t pass = 0; status == HD_OK && items != NULL && pass < PASSES; pass++) {
        double start = thread_seconds();
        for (uint32_t test = 0; test < b->data.test_count; test++) {
            search.queries = test_query(b, test);
            index_search_run(b->index, &search);
            uint32_t count = rank(b, &search, items);
            if (pass > 0) continue;
            f->recall += recall_of(b, test, items, count);
            scanned += search.bytes_scanned + (is_exact ? 0 : search.token_count * b->data.key_dim * sizeof(uint16_t));
        }
        status = sample_add(&seconds, thread_seconds() - start);
    }
    f->recall /= b->data.test_count;
    f->scanned =
        (double)scanned / b->data.test_count / ((double)b->data.key_count * b->data.key_dim * sizeof(uint16_t));
    f->queries_per_second = b->data.test_count / sample_summarise(&seconds).min;
    sample_fini(&seconds);
    search_close(&search);
    free(items);
    return status;
}

/* Attention over the tokens that were found, exactly. */
static void attend(const bench *b, const index_search *search, index_attention *a) {
    uint32_t dim = b->data.key_dim;
    float query[512], score;
    for (uint32_t i = 0; i < dim; i++) query[i] = hd_bf16_to_f32(search->queries[i]);
    for (uint32_t i = 0; i < search->token_count; i++) {
        b->config->kernels->scan->dot_rows(query, dim, b->data.keys + (size_t)search->tokens[i] * dim, dim, 1, &score);
        index_attention_add(a, b->data.value_dim, (double)score * (double)b->data.scale,
                            b->data.values + (size_t)search->tokens[i] * b->data.value_dim);
    }
}

static hd_status measure_error(bench *b, figures *f) {
    index_search search;
    float out[512], max, sum;
    kernel_partial rest = {.out = out, .out_stride = b->data.value_dim, .max = &max, .sum = &sum};
    sample errors, bare;
    uint64_t read = 0;
    sample_init(&errors);
    sample_init(&bare);
    hd_status status = search_open(b, (uint32_t)(b->config->share * b->data.key_count), &search);
    if (b->params.has_rest) search.rest = &rest;
    for (uint32_t test = 0; status == HD_OK && test < b->data.output_count; test++) {
        index_attention a = {0};
        const float *right = b->data.outputs + (size_t)test * b->data.value_dim;
        search.queries = test_query(b, test);
        index_search_run(b->index, &search);
        attend(b, &search, &a);
        status = sample_add(&bare, index_attention_error(&a, b->data.value_dim, right));
        if (search.rest != NULL) index_attention_add_partial(&a, b->data.value_dim, max, sum, out);
        read += search.bytes_scanned + search.bytes_rest;
        if (status == HD_OK) status = sample_add(&errors, index_attention_error(&a, b->data.value_dim, right));
    }
    sample_summary summary = sample_summarise(&errors);
    f->error_median = summary.median;
    f->error_p99 = summary.p99;
    f->bare_median = sample_summarise(&bare).median;
    f->rest = (double)read / b->data.output_count / ((double)b->data.key_count * b->data.key_dim * sizeof(uint16_t));
    sample_fini(&errors);
    sample_fini(&bare);
    search_close(&search);
    return status;
}

static void print_row(bench *b, const char *name, const figures *f) {
    fprintf(b->table, "%-10s %9.2f %9.1f %9.1f %9.3f %9.2f %9.0f", name, f->build_seconds * 1e6 / b->data.key_count,
            f->bytes_per_key, f->bytes_per_key_max, f->recall, f->scanned * 100, f->queries_per_second);
    if (b->data.output_count > 0)
        fprintf(b->table, " %9.4f %9.4f %9.4f %9.2f", f->error_median, f->error_p99, f->bare_median, f->rest * 100);
    fprintf(b->table, "\n");
    fflush(b->table);
    json_t *row =
        json_pack("{s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "index", name, "build_us_per_key",
                  f->build_seconds * 1e6 / b->data.key_count, "bytes_per_key", f->bytes_per_key, "bytes_per_key_max",
                  f->bytes_per_key_max, "recall_100", f->recall, "scanned", f->scanned, "queries_per_second",
                  f->queries_per_second, "error_median", f->error_median, "error_p99", f->error_p99,
                  "error_without_rest_median", f->bare_median, "read_for_attention", f->rest);
    if (row != NULL) json_array_append_new(b->rows, row);
}

static hd_status measure(bench *b, const index_kind *kind) {
    figures f = {0};
    b->params = (index_params){.kind = kind,
                               .kernels = b->config->kernels,
                               .key_dim = b->data.key_dim,
                               .value_dim = b->data.value_dim,
                               .keys_max = b->data.key_count,
                               .seed = 1,
                               .has_rest = index_kind_has_rest(kind)};
    hd_status status = build(b, &f);
    if (status == HD_OK) status = measure_recall(b, &f);
    if (status == HD_OK && b->data.output_count > 0) status = measure_error(b, &f);
    if (status == HD_OK) print_row(b, index_kind_name(kind), &f);
    index_close(b->index);
    b->index = NULL;
    return status;
}

static hd_status measure_oracle(bench *b) {
    sample errors;
    sample_init(&errors);
    hd_status status = index_oracle_run(&b->data, b->config->kernels, b->config->share, &errors);
    sample_summary summary = sample_summarise(&errors);
    sample_fini(&errors);
    if (status != HD_OK) return status;
    fprintf(b->table, "%-10s %69.4f %9.4f\n", "oracle", summary.median, summary.p99);
    json_t *row =
        json_pack("{s:s, s:f, s:f}", "index", "oracle", "error_median", summary.median, "error_p99", summary.p99);
    if (row != NULL) json_array_append_new(b->rows, row);
    return HD_OK;
}

static bool is_wanted(const char *only, const char *name) {
    size_t length = strlen(name);
    for (const char *at = only; at != NULL && *at != '\0'; at += strcspn(at, ","), at += *at == ',')
        if (strcspn(at, ",") == length && strncmp(at, name, length) == 0) return true;
    return only == NULL;
}

static hd_status check_names(const char *only, hd_error *error) {
    char name[64];
    const index_kind *kind;
    for (const char *at = only; at != NULL && *at != '\0'; at += strcspn(at, ","), at += *at == ',') {
        snprintf(name, sizeof(name), "%.*s", (int)strcspn(at, ","), at);
        if (strcmp(name, "oracle") == 0) continue;
        hd_status status = index_kind_find(name, &kind, error);
        if (status != HD_OK) return status;
    }
    return HD_OK;
}

static hd_status run_all(bench *b) {
    const index_kind *const *kinds;
    size_t count = index_kinds(&kinds);
    hd_status status = HD_OK;
    fprintf(b->table, "%-10s %9s %9s %9s %9s %9s %9s", "index", "us/key", "bytes/key", "at most", "recall", "read %",
            "queries/s");
    if (b->data.output_count > 0) fprintf(b->table, " %9s %9s %9s %9s", "error", "p99", "bare", "read %");
    fprintf(b->table, "\n");
    for (size_t i = 0; status == HD_OK && i < count; i++)
        if (is_wanted(b->config->only, index_kind_name(kinds[i]))) status = measure(b, kinds[i]);
    if (status == HD_OK && b->data.output_count > 0 && is_wanted(b->config->only, "oracle")) status = measure_oracle(b);
    return status;
}

hd_status index_bench_run(const index_bench_config *config, hd_error *error) {
    bench b = {.config = config, .table = bench_report_table(config->json_path), .rows = json_array()};
    hd_status status = check_names(config->only, error);
    if (status == HD_OK) status = index_data_open(config->data, &b.data, error);
    if (status == HD_OK && config->has_own_values) {
        status = index_data_draw_values(&b.data);
        if (status != HD_OK) index_data_close(&b.data);
    }
    if (status != HD_OK) {
        json_decref(b.rows);
        return status;
    }
    json_t *report = bench_report_open("index");
    status =
        report != NULL && b.rows != NULL ? index_data_solve(&b.data, config->kernels, config->outputs) : HD_NO_MEMORY;
    if (status == HD_OK) {
        fprintf(b.table, "%s: %u keys of %u, %u queries to learn from, %u tests%s; kernels %s, one thread\n",
                config->data, b.data.key_count, b.data.key_dim, b.data.query_count, b.data.test_count,
                config->has_own_values ? ", values drawn" : "", config->kernels->name);
        json_object_set_new(report, "keys", json_integer(b.data.key_count));
        json_object_set_new(report, "key_dim", json_integer(b.data.key_dim));
        json_object_set(report, "rows", b.rows);
        b.candidates = config->candidates != 0 ? config->candidates : usual_candidates(b.data.key_count);
        status = run_all(&b);
    }
    json_decref(b.rows);
    index_data_close(&b.data);
    if (status == HD_OK) return bench_report_write(report, config->json_path, error);
    json_decref(report);
    return hd_error_set(error, status, "the benchmark stopped: %s", hd_status_text(status));
}
