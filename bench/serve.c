/* serve.c - from single requests to percentiles. Field names are those that other serving benchmarks use, so that
 * scripts can compare files. */
#include "bench/serve.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/report.h"

#define BAR_WIDTH 30

hd_status bench_goals_parse(const char *text, bench_goals *goals, hd_error *error) {
    bench_goals parsed = {0};
    while (*text != '\0') {
        size_t length = strcspn(text, ",");
        char name[16] = "", *end = NULL;
        size_t name_length = strcspn(text, ":,");
        if (name_length < sizeof(name)) memcpy(name, text, name_length);
        double *goal = strcmp(name, "ttft") == 0   ? &parsed.ttft_ms
                       : strcmp(name, "tpot") == 0 ? &parsed.tpot_ms
                       : strcmp(name, "e2el") == 0 ? &parsed.e2el_ms
                                                   : NULL;
        double value = goal != NULL && text[name_length] == ':' ? strtod(text + name_length + 1, &end) : 0;
        if (goal == NULL || *goal > 0 || end != text + length || !(value > 0) || !isfinite(value))
            return hd_error_set(error, HD_INVALID,
                                "'%.*s' is no goal; give ttft:MS, tpot:MS, e2el:MS, separated by commas", (int)length,
                                text);
        *goal = value;
        text += length + (text[length] == ',');
    }
    *goals = parsed;
    return HD_OK;
}

static double tpot_ms(const load_request *r) {
    return (r->end_s - r->first_s) * 1e3 / (double)(r->output_tokens - 1);
}

static bool meets(const load_request *r, const bench_goals *goals) {
    if (goals->ttft_ms > 0 && (r->first_s - r->start_s) * 1e3 > goals->ttft_ms) return false;
    if (goals->e2el_ms > 0 && (r->end_s - r->start_s) * 1e3 > goals->e2el_ms) return false;
    return goals->tpot_ms == 0 || r->output_tokens < 2 || tpot_ms(r) <= goals->tpot_ms;
}

typedef struct figures {
    sample ttft_ms, tpot_ms, e2el_ms;
    sample_summary ttft, tpot, itl, e2el;
    uint64_t prompt_tokens, cached_tokens, output_tokens, good;
} figures;

static hd_status count_up(load_result *result, const bench_goals *goals, figures *f) {
    *f = (figures){0};
    hd_status status = HD_OK;
    for (uint64_t i = 0; i < result->request_count && status == HD_OK; i++) {
        const load_request *r = &result->requests[i];
        if (!r->is_ok) continue;
        f->prompt_tokens += r->prompt_tokens;
        f->cached_tokens += r->cached_tokens;
        f->output_tokens += r->output_tokens;
        f->good += meets(r, goals);
        status = sample_add(&f->ttft_ms, (r->first_s - r->start_s) * 1e3);
        if (status == HD_OK) status = sample_add(&f->e2el_ms, (r->end_s - r->start_s) * 1e3);
        if (status == HD_OK && r->output_tokens > 1) status = sample_add(&f->tpot_ms, tpot_ms(r));
    }
    f->ttft = sample_summarise(&f->ttft_ms);
    f->tpot = sample_summarise(&f->tpot_ms);
    f->e2el = sample_summarise(&f->e2el_ms);
    f->itl = sample_summarise(&result->itl_ms);
    return status;
}

static void figures_fini(figures *f) {
    sample_fini(&f->ttft_ms);
    sample_fini(&f->tpot_ms);
    sample_fini(&f->e2el_ms);
}

static void print_row(FILE *stream, const char *name, const sample_summary *s) {
    fprintf(stream, "%-8s %12.2f %12.2f %12.2f %12.2f %12.2f\n", name, s->mean, s->median, s->std, s->p90, s->p99);
}

static void print_table(FILE *stream, const bench_serve_config *config, const load_result *result, const figures *f) {
    const load_config *load = &config->load;
    fprintf(stream, "%s, model %s\n", load->url, result->model);
    if (load->rate > 0)
        fprintf(stream, "%llu requests, Poisson at %g/s", (unsigned long long)load->requests, load->rate);
    else fprintf(stream, "%llu requests at once", (unsigned long long)load->requests);
    if (load->concurrency > 0) fprintf(stream, ", at most %llu running", (unsigned long long)load->concurrency);
    fprintf(stream, ", seed %llu; prompts of %llu %s, answers of %llu tokens\n", (unsigned long long)load->seed,
            (unsigned long long)load->prompt_tokens, result->has_ids ? "tokens" : "words",
            (unsigned long long)load->output_tokens);
    fprintf(stream, "completed %llu, failed %llu in %.2f s; prompt tokens %llu (%llu from cache), output tokens %llu\n",
            (unsigned long long)result->completed, (unsigned long long)result->failed, result->duration_s,
            (unsigned long long)f->prompt_tokens, (unsigned long long)f->cached_tokens,
            (unsigned long long)f->output_tokens);
    if (result->failed > 0) fprintf(stream, "first failure: %s\n", result->first_failure);
    fprintf(stream, "\n%-8s %12s %12s %12s %12s %12s\n", "ms", "mean", "median", "std", "p90", "p99");
    print_row(stream, "ttft", &f->ttft);
    print_row(stream, "tpot", &f->tpot);
    print_row(stream, "itl", &f->itl);
    print_row(stream, "e2el", &f->e2el);
    double seconds = result->duration_s;
    fprintf(stream, "\nrequests/s %.3f   output tokens/s %.2f   total tokens/s %.2f\n",
            (double)result->completed / seconds, (double)f->output_tokens / seconds,
            (double)(f->prompt_tokens + f->output_tokens) / seconds);
    const bench_goals *g = &config->goals;
    if (g->ttft_ms > 0 || g->tpot_ms > 0 || g->e2el_ms > 0)
        fprintf(stream, "goodput %.3f requests/s (%llu of %llu within the goals)\n", (double)f->good / seconds,
                (unsigned long long)f->good, (unsigned long long)result->request_count);
}

static void put_summary(json_t *report, const char *name, const sample_summary *s) {
    const struct {
        const char *prefix;
        double value;
    } rows[] = {{"mean", s->mean}, {"median", s->median}, {"std", s->std}, {"p90", s->p90}, {"p99", s->p99}};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        char key[32];
        snprintf(key, sizeof(key), "%s_%s_ms", rows[i].prefix, name);
        json_object_set_new(report, key, json_real(rows[i].value));
    }
}

static json_t *make_report(const bench_serve_config *config, const load_result *result, const figures *f) {
    const load_config *load = &config->load;
    json_t *report = bench_report_open("serve");
    if (report == NULL) return NULL;
    double seconds = result->duration_s;
    json_t *fields = json_pack(
        "{s:s, s:s, s:f, s:I, s:I, s:I, s:I, s:f, s:I, s:I, s:I, s:f, s:I, s:I, s:I, s:f, s:f, s:f, s:f}", "url",
        load->url, "model_id", result->model, "request_rate", load->rate, "num_prompts", (json_int_t)load->requests,
        "max_concurrency", (json_int_t)load->concurrency, "prompt_tokens", (json_int_t)load->prompt_tokens,
        "output_tokens", (json_int_t)load->output_tokens, "spread", load->spread, "prefix_tokens",
        (json_int_t)load->prefix_tokens, "completed", (json_int_t)result->completed, "failed",
        (json_int_t)result->failed, "duration", seconds, "total_input_tokens", (json_int_t)f->prompt_tokens,
        "total_cached_tokens", (json_int_t)f->cached_tokens, "total_output_tokens", (json_int_t)f->output_tokens,
        "request_throughput", (double)result->completed / seconds, "output_throughput",
        (double)f->output_tokens / seconds, "total_token_throughput",
        (double)(f->prompt_tokens + f->output_tokens) / seconds, "request_goodput", (double)f->good / seconds);
    json_object_update(report, fields);
    json_decref(fields);
    json_object_set_new(report, "first_failure", json_string(result->first_failure));
    put_summary(report, "ttft", &f->ttft);
    put_summary(report, "tpot", &f->tpot);
    put_summary(report, "itl", &f->itl);
    put_summary(report, "e2el", &f->e2el);
    return report;
}

static void draw_progress(void *context, const load_progress *p) {
    char bar[BAR_WIDTH + 1];
    uint64_t ended = p->completed + p->failed, filled = ended * BAR_WIDTH / p->requests;
    memset(bar, '.', BAR_WIDTH);
    memset(bar, '#', filled);
    bar[BAR_WIDTH] = '\0';
    fprintf(stderr, "\r[%s] %llu/%llu  running %llu  failed %llu  %.0f s", bar, (unsigned long long)ended,
            (unsigned long long)p->requests, (unsigned long long)(p->sent - ended), (unsigned long long)p->failed,
            p->elapsed_s);
    if (ended == p->requests) fputc('\n', stderr);
}

hd_status bench_serve_run(const bench_serve_config *config, hd_error *error) {
    load_config load = config->load;
    load.on_progress = isatty(STDERR_FILENO) ? draw_progress : NULL;
    load_result result;
    hd_status status = load_run(&load, &result, error);
    if (status != HD_OK) return status;

    figures f;
    status = count_up(&result, &config->goals, &f);
    if (status != HD_OK) hd_error_set(error, status, "no memory for the figures");
    else if (result.completed == 0)
        status = hd_error_set(error, HD_IO, "no request was completed; the first failure: %s", result.first_failure);
    if (status == HD_OK) {
        print_table(bench_report_table(config->json_path), config, &result, &f);
        status = bench_report_write(make_report(config, &result, &f), config->json_path, error);
    }
    figures_fini(&f);
    load_result_fini(&result);
    return status;
}
