/* decode.c - fills sequences, times steps, and holds the times against what memory gives.
 *
 * The floor of a decode step is the memory it must read: every weight once, and every key and value of every sequence
 * once. Share = floor at the bandwidth, divided by the step's time; the bandwidth is measured in turns with the steps,
 * because that of a virtual machine changes from second to second. */
#include "bench/decode.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "attention-node/engine_bench.h"
#include "attention-node/selection.h"
#include "base/clock.h"
#include "base/flags.h"
#include "base/memory.h"
#include "bench/bandwidth.h"
#include "bench/decode_tiers.h"
#include "bench/device_bandwidth.h"
#include "bench/random.h"
#include "bench/report.h"
#include "bench/statistics.h"
#include "bench/synthetic_steps.h"
#include "bench/timed_attention.h"
#include "worker/forward.h"
#include "worker/sampler.h"

#define EPOCH 1u
#define STEPS_MIN 3u /* of a timed series, however long they take */
#define SERIES_NS 20000000000u
#define CHUNK_REPEATS 2u                 /* the best counts */
#define REGION_BYTES ((size_t)512 << 20) /* read to measure the bandwidth: far more than the caches hold */

typedef struct sequence {
    uint64_t name, length;
    uint32_t next_token;
} sequence;

typedef struct bench {
    const bench_decode_config *config;
    timed_attention attention;
    forward *forward;
    rope_table *rope;
    sequence *sequences; /* [batch] */
    forward_span *spans; /* [batch] */
    uint32_t *tokens;    /* of the chunk in hand */
    uint64_t next_name;
    bench_random random;
    synthetic_steps synthetic; /* opened when a depth is filled with made-up keys and values */
    bool has_synthetic;        /* the sequences are filled from it */
    void *region;              /* [REGION_BYTES] */
    void *device_region;       /* with a device: of its memory */
    sampler_row *draws;        /* [batch] */
    sampler_row **draw_list;   /* [batch]: all of them */
    bool *is_finite;           /* [batch] */
    double bandwidth;          /* bytes a second, at the start of the run */
    FILE *table;
    json_t *decode, *chunks, *prefills; /* borrowed from the report */
} bench;

typedef struct step_times {
    sample total_ms, attention_ms, begin_ms; /* begin: of the attention's step, and its end */
    sample bandwidth;                        /* bytes a second, between the steps */
    attention_stats before;                  /* the timed steps */
    double ready_s;                          /* the first step's, with what it waited for */
} step_times;

hd_status bench_list_parse(const char *flag, const char *text, bench_list *list, hd_error *error) {
    bench_list parsed = {.count = 0};
    const char *at = text;
    while (*at != '\0') {
        char *end;
        if (*at < '0' || *at > '9') break;
        uint64_t value = strtoull(at, &end, 10);
        if ((*end != ',' && *end != '\0') || (*end == ',' && end[1] == '\0')) break;
        if (parsed.count == BENCH_LIST_MAX)
            return hd_error_set(error, HD_INVALID, "--%s: more than %u values", flag, BENCH_LIST_MAX);
        parsed.values[parsed.count++] = value;
        at = end + (*end == ',');
    }
    if (*at != '\0') return hd_error_set(error, HD_INVALID, "--%s: '%s' is not a list like 0,4096,32768", flag, text);
    *list = parsed;
    return HD_OK;
}

static double milliseconds_since(uint64_t start_ns) {
    return (double)(hd_now_ns() - start_ns) * 1e-6;
}

/* Bytes of weights that a step of `rows` rows reads: all of them, but of experts only those that can be chosen. */
static uint64_t weight_bytes_read(const bench_decode_config *c, uint32_t rows) {
    uint64_t bytes = c->weights->bytes;
    for (uint32_t i = 0; i < c->model->layer_count; i++) {
        const model_layer *layer = &c->weights->layers[i];
        uint64_t chosen = (uint64_t)rows * c->model->experts_per_token;
        if (layer->experts == NULL || chosen >= c->model->expert_count) continue;
        const kernel_matrix *gate_up = &layer->experts[0].gate_up, *down = &layer->experts[0].down;
        bytes -= (c->model->expert_count - chosen) * (kernel_matrix_bytes(gate_up->dtype, gate_up->n, gate_up->k) +
                                                      kernel_matrix_bytes(down->dtype, down->n, down->k));
    }
    return bytes;
}

/* Bytes of keys and values that one row at `depth` attends to. */
static uint64_t kv_bytes_read(const bench_decode_config *c, uint64_t depth) {
    uint64_t bytes = 0;
    hd_dtype dtype = c->attention->ops->kv_dtype(c->attention);
    for (uint32_t i = 0; i < c->model->layer_count; i++) {
        uint64_t window = c->model->windows[i], visible = window > 0 && window < depth ? window : depth;
        bytes += visible * c->model->kv_heads * c->model->head_dim * 2 * hd_dtype_bits(dtype) / 8;
    }
    return bytes;
}

/* Multiplications and additions of `count` tokens from position `first` on; attention is causal. */
static double prefill_operations(const bench_decode_config *c, uint64_t first, uint64_t count) {
    const model_config *m = c->model;
    double products = 0, attended = 0;
    for (uint32_t i = 0; i < m->layer_count; i++) {
        const model_layer *layer = &c->weights->layers[i];
        products += (double)layer->qkv.n * layer->qkv.k + (double)layer->attention_output.n * layer->attention_output.k;
        if (layer->experts != NULL)
            products += 3.0 * m->hidden_size * m->expert_intermediate_size * m->experts_per_token;
        else products += 3.0 * m->hidden_size * m->intermediate_size;
        double depth = (double)first + (double)count / 2, window = (double)m->windows[i];
        attended += 2.0 * m->query_heads * m->head_dim * (window > 0 && window < depth ? window : depth);
    }
    return 2.0 * (double)count * (products + attended);
}

static hd_status sequence_begin(bench *b, sequence *s, uint64_t prompt_count, uint64_t tokens_max, hd_error *error) {
    attention_stats stats;
    b->config->attention->ops->stats(b->config->attention, &stats);
    uint64_t fits = stats.blocks_total * HD_BLOCK_TOKENS, full_up_to = b->config->full_up_to;
    char chosen[SELECTION_TEXT_BYTES];
    hd_status status =
        selection_resolve(b->config->selection, tokens_max, full_up_to < fits ? full_up_to : fits, chosen, error);
    if (status != HD_OK) return status;
    s->name = ++b->next_name;
    s->length = 0;
    s->next_token = 0;
    attention_sequence_params params = {.sequence = s->name,
                                        .epoch = EPOCH,
                                        .tokens_max = tokens_max,
                                        .prompt_count = prompt_count,
                                        .selection = chosen};
    uint64_t cached_tokens;
    attention *a = &b->attention.base;
    return a->ops->sequence_open(a, &params, &cached_tokens, error);
}

static void sequence_end(bench *b, const sequence *s) {
    attention *a = &b->attention.base;
    a->ops->sequence_close(a, s->name, EPOCH, false, false);
}

/* One step of the first `span_count` spans. */
static hd_status run_step(bench *b, uint32_t span_count, hd_error *error) {
    bool has_begun;
    return forward_step(b->forward, b->spans, span_count, &has_begun, error);
}

/* `count` random tokens at the sequence's end, in chunks of batch_tokens_max rows; logits of the last, as a server
 * needs them. */
static hd_status prefill(bench *b, sequence *s, uint64_t count, hd_error *error) {
    hd_status status = HD_OK;
    while (count > 0 && status == HD_OK) {
        uint32_t rows = count < b->config->batch_tokens_max ? (uint32_t)count : b->config->batch_tokens_max;
        for (uint32_t i = 0; i < rows; i++)
            b->tokens[i] = (uint32_t)bench_random_below(&b->random, b->config->model->vocabulary_size);
        b->spans[0] = (forward_span){.rows = {s->name, EPOCH, s->length, rows, b->tokens},
                                     .need = count == rows ? FORWARD_LAST_LOGITS : FORWARD_NO_LOGITS,
                                     .rope = b->rope};
        status = run_step(b, 1, error);
        if (status == HD_OK && count == rows) (void)forward_logits(b->forward, 0, 1);
        s->length += rows;
        count -= rows;
    }
    return status;
}

/* One token of every sequence, drawn greedily. */
static hd_status decode_step(bench *b, hd_error *error) {
    uint32_t batch = b->config->batch;
    for (uint32_t i = 0; i < batch; i++)
        b->spans[i] = (forward_span){
            .rows = {b->sequences[i].name, EPOCH, b->sequences[i].length, 1, &b->sequences[i].next_token},
            .need = FORWARD_LAST_LOGITS,
            .rope = b->rope};
    hd_status status = run_step(b, batch, error);
    if (status != HD_OK) return status;
    if (forward_draw(b->forward, 0, batch, b->draw_list, b->is_finite)) {
        for (uint32_t i = 0; i < batch; i++) {
            if (!b->is_finite[i]) return hd_error_set(error, HD_IO, "the logits are no numbers");
            b->sequences[i].next_token = b->draws[i].token_id;
            b->sequences[i].length++;
        }
        return HD_OK;
    }
    const float *logits = forward_logits(b->forward, 0, batch);
    for (uint32_t i = 0; i < batch; i++) {
        b->config->kernels->logits_summary(logits + i * forward_logits_stride(b->forward),
                                           b->config->model->vocabulary_size, &b->sequences[i].next_token, NULL, NULL);
        b->sequences[i].length++;
    }
    return HD_OK;
}

static double read_pass(const bench *b) {
    if (b->config->queue != NULL) return device_bandwidth(b->config->queue, b->device_region);
    return bench_read_pass(b->config->pool, b->region, REGION_BYTES);
}

static void ask(bench *b, bool is_checked) {
    if (b->has_synthetic)
        synthetic_steps_next(&b->synthetic, &b->attention, b->config->batch, b->sequences[0].length, is_checked);
}

static hd_status open_draws(bench *b) {
    static const worker_sampling greedy = {.top_p = 1, .repetition_penalty = 1, .logprobs = -1};
    uint32_t batch = b->config->batch;
    b->draws = calloc(batch, sizeof(*b->draws));
    b->draw_list = calloc(batch, sizeof(sampler_row *));
    b->is_finite = calloc(batch, sizeof(*b->is_finite));
    if (b->draws == NULL || b->draw_list == NULL || b->is_finite == NULL) return HD_NO_MEMORY;
    for (uint32_t i = 0; i < batch; i++) {
        b->draws[i] = (sampler_row){.sampling = &greedy, .may_end = true};
        b->draw_list[i] = &b->draws[i];
    }
    return HD_OK;
}

static hd_status time_steps(bench *b, step_times *times, hd_error *error) {
    const attention *a = b->config->attention;
    uint64_t fill_start = hd_now_ns();
    ask(b, false);
    hd_status status = decode_step(b, error); /* the first step finds the caches cold, and waits for indexes */
    times->ready_s = milliseconds_since(fill_start) * 1e-3;
    a->ops->stats(a, &times->before);
    uint64_t start = hd_now_ns();
    for (uint32_t i = 0; i < b->config->steps && status == HD_OK; i++) {
        if (i >= STEPS_MIN && hd_now_ns() - start > SERIES_NS) break;
        ask(b, false);
        uint64_t step_start = hd_now_ns();
        b->attention.attend_ns = b->attention.begin_ns = 0;
        status = decode_step(b, error);
        if (status == HD_OK) status = sample_add(&times->total_ms, milliseconds_since(step_start));
        if (status == HD_OK) status = sample_add(&times->attention_ms, (double)b->attention.attend_ns * 1e-6);
        if (status == HD_OK) status = sample_add(&times->begin_ms, (double)b->attention.begin_ns * 1e-6);
        if (status == HD_OK) status = sample_add(&times->bandwidth, read_pass(b));
    }
    return status;
}

/* What selections that search did in the timed steps; times are of all threads together. */
static attention_stats searches_of(const bench *b, const step_times *times) {
    attention_stats now, before = times->before;
    const attention *a = b->config->attention;
    a->ops->stats(a, &now);
    now.searches -= before.searches;
    now.searched_tokens -= before.searched_tokens;
    now.search_bytes -= before.search_bytes;
    now.search_rest_bytes -= before.search_rest_bytes;
    now.search_ns -= before.search_ns;
    now.fetch_ns -= before.fetch_ns;
    now.found_ns -= before.found_ns;
    return now;
}

/* Times of all threads become a step's: what each of them took on average. */
static double step_ms(const bench *b, uint64_t ns, size_t steps) {
    return (double)ns * 1e-6 / (double)steps / hd_pool_thread_count(b->config->pool);
}

static void print_searches(bench *b, const step_times *times, size_t steps, double total_ms, double attention_ms) {
    attention_stats found = searches_of(b, times);
    if (found.searches == 0) return;
    double each = 1.0 / (double)found.searches, search_ms = step_ms(b, found.search_ns, steps),
           fetch_ms = step_ms(b, found.fetch_ns, steps);
    fprintf(b->table, "%16s  a step of %.2f ms: search %.2f, fetch %.2f, attention %.2f, other %.2f\n", "", total_ms,
            search_ms, fetch_ms, attention_ms - search_ms - fetch_ms, total_ms - attention_ms);
    fprintf(b->table,
            "%16s  a search: %.0f tokens found, %.1f KiB read and %.1f KiB for the rest; indexes %.1f MiB, filled and "
            "built "
            "in %.1f s\n",
            "", (double)found.searched_tokens * each, (double)found.search_bytes * each / 1024,
            (double)found.search_rest_bytes * each / 1024, (double)found.index_bytes / (1 << 20), times->ready_s);
}

static json_t *searches_json(const bench *b, const step_times *times, size_t steps) {
    attention_stats found = searches_of(b, times);
    if (found.searches == 0) return json_null();
    double each = 1.0 / (double)found.searches;
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:f}", "search_ms", step_ms(b, found.search_ns, steps),
                     "fetch_ms", step_ms(b, found.fetch_ns, steps), "found_ms", step_ms(b, found.found_ns, steps),
                     "tokens", (double)found.searched_tokens * each, "bytes", (double)found.search_bytes * each,
                     "rest_bytes", (double)found.search_rest_bytes * each, "index_bytes", (json_int_t)found.index_bytes,
                     "ready_s", times->ready_s);
}

/* Of a token's key and value of one head. */
static double token_bytes_of(const bench_decode_config *c) {
    return (double)model_kv_bytes_per_token(c->model, c->attention->ops->kv_dtype(c->attention)) /
           ((double)c->model->layer_count * c->model->kv_heads);
}

static void report_decode(bench *b, uint64_t depth, bool is_synthetic, step_times *times) {
    const bench_decode_config *c = b->config;
    sample_summary total = sample_summarise(&times->total_ms), attention_ms = sample_summarise(&times->attention_ms),
                   begin_ms = sample_summarise(&times->begin_ms), bandwidth = sample_summarise(&times->bandwidth);
    double kv_bytes = (double)c->batch * (double)kv_bytes_read(c, depth),
           bytes = (double)weight_bytes_read(c, c->batch) + kv_bytes;
    double rate = bytes / (total.median * 1e-3), kv_rate = 0;
    if (b->config->queue == NULL) kv_rate = kv_bytes / (attention_ms.median * 1e-3); /* a device is waited for once */
    double other_ms = total.median - attention_ms.median - begin_ms.median, share = rate / bandwidth.median;
    fprintf(b->table, "%9llu %6u %-9s %10.2f %10.2f %10.2f %10.2f %10.2f %8.2f %10.2f %8.2f %8.2f %8.2f %6.0f%%\n",
            (unsigned long long)depth, c->batch, is_synthetic ? "synthetic" : "prefilled", total.median, total.min,
            total.p90, 1e3 * c->batch / total.median, attention_ms.median, begin_ms.median, other_ms, rate * 1e-9,
            kv_rate * 1e-9, bandwidth.median * 1e-9, 100 * share);
    print_searches(b, times, total.count, total.median, attention_ms.median);
    attention_stats now;
    c->attention->ops->stats(c->attention, &now);
    decode_tiers tiers;
    decode_tiers_measure(&tiers, &times->before, &now,
                         &(decode_tiers_run){.steps = total.count,
                                             .step_ms = total.mean,
                                             .token_bytes = token_bytes_of(c),
                                             .own_bytes = REGION_BYTES,
                                             .cold_directory = c->cold_directory});
    decode_tiers_print(&tiers, b->table);
    fflush(b->table);
    json_t *row = json_pack("{s:I, s:i, s:b, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "depth", (json_int_t)depth,
                            "batch", (int)c->batch, "synthetic_kv", (int)is_synthetic, "steps", (json_int_t)total.count,
                            "step_ms_median", total.median, "step_ms_min", total.min, "step_ms_p90", total.p90,
                            "tokens_per_s", 1e3 * c->batch / total.median, "attention_ms", attention_ms.median,
                            "begin_ms", begin_ms.median, "other_ms", other_ms);
    json_t *limits =
        json_pack("{s:f, s:f, s:f, s:f, s:f}", "read_bytes", bytes, "read_bytes_per_s", rate, "kv_read_bytes_per_s",
                  kv_rate, "read_bandwidth_bytes_per_s", bandwidth.median, "bandwidth_share", share);
    json_object_update(row, limits);
    json_decref(limits);
    json_object_set_new(row, "searches", searches_json(b, times, total.count));
    json_object_set_new(row, "tiers", decode_tiers_json(&tiers));
    json_array_append_new(b->decode, row);
}

/* One more step, whose output is held against exact attention; goes into the row of the depth. */
static hd_status check_output(bench *b, hd_error *error) {
    if (!b->has_synthetic) return HD_OK;
    ask(b, true);
    hd_status status = decode_step(b, error);
    synthetic_steps_end(&b->attention);
    if (status == HD_OK && b->synthetic.status != HD_OK)
        status = hd_error_set(error, b->synthetic.status, "no memory to check the output");
    if (status != HD_OK) return status;
    sample_summary errors = sample_summarise(&b->synthetic.errors);
    fprintf(b->table, "%16s  output against exact attention, of %zu queries: error %.4f median, %.4f p99\n", "",
            errors.count, errors.median, errors.p99);
    json_t *row = json_array_get(b->decode, json_array_size(b->decode) - 1);
    json_object_set_new(row, "output_error_median", json_real(errors.median));
    json_object_set_new(row, "output_error_p99", json_real(errors.p99));
    return HD_OK;
}

/* What fills the depth: heads like a trained model's, or where there are none of that size random numbers. */
static hd_status open_synthetic(bench *b, hd_error *error) {
    synthetic_steps_close(&b->synthetic);
    hd_status status = synthetic_steps_open(&b->synthetic, b->config->model, b->config->kernels);
    b->has_synthetic = status == HD_OK;
    if (status == HD_OK || status == HD_UNSUPPORTED) return HD_OK;
    return hd_error_set(error, status, "no memory for made-up keys and values");
}

static hd_status fill(bench *b, sequence *s, uint64_t depth, bool is_synthetic, hd_error *error) {
    if (depth == 0) return HD_OK;
    if (!is_synthetic) return prefill(b, s, depth, error);
    engine_fill_source source = synthetic_steps_source(&b->synthetic);
    hd_status status = engine_fill_synthetic(b->config->attention, s->name, depth, b->config->model->vocabulary_size,
                                             s->name, b->has_synthetic ? &source : NULL);
    s->length = depth;
    return status == HD_OK ? HD_OK
                           : hd_error_set(error, status, "cannot fill %llu tokens: %s", (unsigned long long)depth,
                                          hd_status_text(status));
}

/* A chunk of a prompt behind `depth` tokens, on the first sequence; what it appended is taken back. */
static hd_status time_chunk(bench *b, uint64_t depth, hd_error *error) {
    const bench_decode_config *c = b->config;
    attention *a = &b->attention.base;
    sequence *s = &b->sequences[0];
    double best_ms = 0, attention_ms = 0;
    hd_status status = a->ops->truncate(a, s->name, EPOCH, depth);
    for (uint32_t i = 0; i < CHUNK_REPEATS && status == HD_OK; i++) {
        s->length = depth;
        b->attention.attend_ns = 0;
        uint64_t start = hd_now_ns();
        status = prefill(b, s, c->chunk, error);
        double ms = milliseconds_since(start);
        if (i == 0 || ms < best_ms) {
            best_ms = ms;
            attention_ms = (double)b->attention.attend_ns * 1e-6;
        }
        if (status == HD_OK) status = a->ops->truncate(a, s->name, EPOCH, depth);
    }
    if (status != HD_OK) return status;
    double tokens_per_s = 1e3 * c->chunk / best_ms, rate = prefill_operations(c, depth, c->chunk) / (best_ms * 1e-3);
    fprintf(b->table, "%9llu  chunk of %u: %.2f tokens/s (%.0f ms, attention %.0f ms, %.0f GFLOP/s)\n",
            (unsigned long long)depth, c->chunk, tokens_per_s, best_ms, attention_ms, rate * 1e-9);
    fflush(b->table);
    json_array_append_new(b->chunks, json_pack("{s:I, s:i, s:f, s:f, s:f, s:f}", "depth", (json_int_t)depth, "tokens",
                                               (int)c->chunk, "ms", best_ms, "tokens_per_s", tokens_per_s,
                                               "attention_ms", attention_ms, "flops_per_s", rate));
    return HD_OK;
}

static hd_status bench_depth(bench *b, uint64_t depth, hd_error *error) {
    const bench_decode_config *c = b->config;
    bool is_synthetic = depth * c->batch > c->prefill_up_to;
    uint64_t tokens_max = depth + c->chunk + c->steps + 2, most = c->model->max_positions;
    if (depth <= most && tokens_max > most) { /* up to where the model ends, not past it */
        depth -= tokens_max - most;
        tokens_max = most;
    }
    rope_table_init(b->rope, &c->model->rope, tokens_max);
    step_times times = {.ready_s = 0};
    /* Made-up heads rewrite tensors on their way, which a device's are not in reach for. */
    hd_status status = is_synthetic && c->queue == NULL ? open_synthetic(b, error) : HD_OK;
    b->has_synthetic = b->has_synthetic && is_synthetic;
    uint32_t opened = 0;
    for (; opened < c->batch && status == HD_OK; opened += status == HD_OK)
        status = sequence_begin(b, &b->sequences[opened], depth, tokens_max, error);
    for (uint32_t i = 0; i < c->batch && status == HD_OK; i++)
        status = fill(b, &b->sequences[i], depth, is_synthetic, error);
    if (status == HD_OK) status = time_steps(b, &times, error);
    if (status == HD_OK) report_decode(b, depth, is_synthetic, &times);
    if (status == HD_OK) status = check_output(b, error);
    if (status == HD_OK && c->chunk > 0 && depth > 0) status = time_chunk(b, depth, error);
    for (uint32_t i = 0; i < opened; i++) sequence_end(b, &b->sequences[i]);
    sample_fini(&times.total_ms);
    sample_fini(&times.attention_ms);
    sample_fini(&times.begin_ms);
    sample_fini(&times.bandwidth);
    return status;
}

static hd_status bench_prefill(bench *b, uint64_t count, hd_error *error) {
    const bench_decode_config *c = b->config;
    sequence s;
    rope_table_init(b->rope, &c->model->rope, count);
    hd_status status = sequence_begin(b, &s, count, count, error);
    if (status != HD_OK) return status;
    b->attention.attend_ns = 0;
    uint64_t start = hd_now_ns();
    status = prefill(b, &s, count, error);
    double ms = milliseconds_since(start), attention_ms = (double)b->attention.attend_ns * 1e-6;
    sequence_end(b, &s);
    if (status != HD_OK) return status;
    double rate = prefill_operations(c, 0, count) / (ms * 1e-3);
    fprintf(b->table, "%9llu  prefill: %.2f tokens/s (%.0f ms, attention %.0f ms, %.0f GFLOP/s)\n",
            (unsigned long long)count, 1e3 * (double)count / ms, ms, attention_ms, rate * 1e-9);
    fflush(b->table);
    json_array_append_new(b->prefills,
                          json_pack("{s:I, s:f, s:f, s:f, s:f}", "tokens", (json_int_t)count, "ms", ms, "tokens_per_s",
                                    1e3 * (double)count / ms, "attention_ms", attention_ms, "flops_per_s", rate));
    return HD_OK;
}

static const char *kernels_name(const bench *b) {
    return b->config->queue != NULL ? b->config->queue->device->ops->name : b->config->kernels->name;
}

static json_t *open_report(bench *b) {
    const bench_decode_config *c = b->config;
    json_t *report = bench_report_open("decode");
    json_t *fields =
        json_pack("{s:s, s:s, s:s, s:s, s:i, s:i, s:f}", "model", c->model_name, "weights",
                  hd_dtype_name(c->weights->dtype), "kv", hd_dtype_name(c->attention->ops->kv_dtype(c->attention)),
                  "kernels", kernels_name(b), "threads", (int)hd_pool_thread_count(c->pool), "max_batch_tokens",
                  (int)c->batch_tokens_max, "read_bandwidth_bytes_per_s", b->bandwidth);
    json_object_update(report, fields);
    json_decref(fields);
    json_object_set_new(report, "decode", b->decode = json_array());
    json_object_set_new(report, "chunks", b->chunks = json_array());
    json_object_set_new(report, "prefill", b->prefills = json_array());
    return report;
}

static void print_head(bench *b) {
    const bench_decode_config *c = b->config;
    char cpu[256], weights[32];
    fprintf(b->table, "%s, %u threads, %s kernels; %s, weights %s (%s), KV %s; read bandwidth %.1f GB/s\n",
            c->queue != NULL ? c->queue->device->facts.name : bench_cpu_name(cpu, sizeof(cpu)),
            hd_pool_thread_count(c->pool), kernels_name(b), c->model_name, hd_dtype_name(c->weights->dtype),
            hd_format_size(c->weights->bytes, weights, sizeof(weights)),
            hd_dtype_name(c->attention->ops->kv_dtype(c->attention)), b->bandwidth * 1e-9);
}

static hd_status run_all(bench *b, hd_error *error) {
    const bench_decode_config *c = b->config;
    hd_status status = HD_OK;
    for (size_t i = 0; i < c->prefills.count && status == HD_OK; i++)
        if (c->prefills.values[i] > 0) status = bench_prefill(b, c->prefills.values[i], error);
    if (c->depths.count > 0 && status == HD_OK)
        fprintf(b->table, "%9s %6s %-9s %10s %10s %10s %10s %10s %8s %10s %8s %8s %8s %7s\n", "depth", "batch", "kv",
                "ms/step", "best", "p90", "tokens/s", "attention", "begin", "other", "GB/s", "kv GB/s", "of GB/s",
                "share");
    for (size_t i = 0; i < c->depths.count && status == HD_OK; i++) status = bench_depth(b, c->depths.values[i], error);
    return status;
}

hd_status bench_decode_run(const bench_decode_config *config, hd_error *error) {
    assert(config->batch >= 1 && config->batch <= config->batch_tokens_max && config->steps >= 1);
    bench b = {.config = config, .random = {1}, .table = bench_report_table(config->json_path)};
    timed_attention_init(&b.attention, config->attention);
    b.rope = malloc(rope_table_bytes(&config->model->rope));
    b.sequences = calloc(config->batch, sizeof(*b.sequences));
    b.spans = calloc(config->batch, sizeof(*b.spans));
    b.tokens = calloc(config->batch_tokens_max, sizeof(*b.tokens));
    b.region = hd_region_map(REGION_BYTES);
    forward_config shape = {.model = config->model,
                            .weights = config->weights,
                            .kernels = config->kernels,
                            .pool = config->pool,
                            .queue = config->queue,
                            .attention = &b.attention.base,
                            .rows_max = config->batch_tokens_max,
                            .spans_max = config->batch,
                            .logits_rows_max = config->batch};
    hd_status status = b.rope != NULL && b.sequences != NULL && b.spans != NULL && b.tokens != NULL && b.region != NULL
                           ? open_draws(&b)
                           : HD_NO_MEMORY;
    if (status == HD_OK && config->queue != NULL) status = device_bandwidth_open(config->queue, &b.device_region);
    if (status == HD_OK) status = forward_open(&shape, &b.forward);
    if (status != HD_OK) hd_error_set(error, status, "no memory for a step of %u rows", config->batch_tokens_max);
    if (status == HD_OK) {
        memset(b.region, 1, REGION_BYTES); /* memory of its own: untouched pages are all one page of zeros */
        b.bandwidth = config->queue != NULL ? read_pass(&b) : bench_read_bandwidth(config->pool);
        print_head(&b);
        json_t *report = open_report(&b);
        status = run_all(&b, error);
        if (status == HD_OK) status = bench_report_write(report, config->json_path, error);
        else json_decref(report);
    }
    forward_close(b.forward);
    synthetic_steps_close(&b.synthetic);
    hd_region_unmap(b.region, REGION_BYTES);
    if (config->queue != NULL) device_bandwidth_close(config->queue, b.device_region);
    free(b.draws);
    free(b.draw_list);
    free(b.is_finite);
    free(b.rope);
    free(b.sequences);
    free(b.spans);
    free(b.tokens);
    return status;
}
