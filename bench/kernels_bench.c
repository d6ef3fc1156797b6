/* kernels_bench.c - takes the times in turns, and prints them. */
#include "bench/kernels_bench.h"

#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "bench/bandwidth.h"
#include "bench/kernels_dnnl.h"
#include "bench/kernels_peak.h"
#include "bench/kernels_work.h"
#include "bench/report.h"
#include "bench/statistics.h"

enum { ROUNDS_MIN = 7, ROUNDS_MAX = 60 };
#define ROUNDS_NS 1500000000u /* for one kernel, where that is enough for ROUNDS_MIN */
#define TEAM_REST_US 5000     /* OpenMP's threads spin for a while after their work; ours should not run beside that */
#define MEMORY_BYTES ((size_t)1 << 30)

typedef struct bench {
    const kernels_bench_config *config;
    kernels_memory memory;
    FILE *table;
    json_t *rows; /* borrowed from the report */
    hd_status status;
} bench;

typedef struct timing {
    double values[ROUNDS_MAX];
    sample sample;
} timing;

static void timing_add(timing *t, double value) {
    t->sample.values = t->values;
    t->sample.capacity = ROUNDS_MAX;
    sample_add(&t->sample, value); /* within its capacity: never fails */
}

static double seconds_since(uint64_t start_ns) {
    return (double)(hd_now_ns() - start_ns) * 1e-9;
}

static double time_peer(kernels_dnnl *peer) {
    kernels_dnnl_run(peer); /* wakes its team */
    uint64_t start = hd_now_ns();
    kernels_dnnl_run(peer);
    double seconds = seconds_since(start);
    usleep(TEAM_REST_US);
    return seconds;
}

static double time_work(const kernels_work *work) {
    uint64_t start = hd_now_ns();
    work->run(work);
    return seconds_since(start);
}

static double limit_now(const bench *b, kernels_limit limit) {
    if (limit == KERNELS_LIMIT_MEMORY) return bench_read_pass(b->config->pool, b->memory.region, b->memory.bytes);
    if (limit == KERNELS_LIMIT_PEAK) return kernels_peak_bf16(b->config->kernels, b->config->pool);
    return 0;
}

static double peer_rate(const kernels_work *work, double peer_seconds) {
    return peer_seconds > 0 ? 2.0 * work->m * work->n * work->k / peer_seconds : 0;
}

/* peer: of oneDNN, operations a second; 0 where it has no part. */
static void print_row(bench *b, const kernels_work *work, double seconds, double best, double limit, double peer) {
    double rate = work->limit == KERNELS_LIMIT_PEAK ? work->operations / seconds : work->bytes / seconds;
    double share = limit > 0 ? rate / limit : 0, of_peer = peer > 0 ? work->operations / seconds / peer : 0;
    char limit_text[48] = "", peer_text[48] = "";
    if (limit > 0) {
        snprintf(limit_text, sizeof(limit_text), "%5.1f %% of %.1f", share * 100, limit * 1e-9);
    }
    if (peer > 0) {
        snprintf(peer_text, sizeof(peer_text), "%5.0f %% of %.1f", of_peer * 100, peer * 1e-9);
    }
    fprintf(b->table, "%-46s %10.1f %8.1f %10.1f  %-22s %s\n", work->name, seconds * 1e6, work->bytes / seconds * 1e-9,
            work->operations / seconds * 1e-9, limit_text, peer_text);
    fflush(b->table);
    json_t *row =
        json_pack("{s:s, s:f, s:f, s:f, s:f}", "name", work->name, "seconds", seconds, "best_seconds", best,
                  "bytes_per_second", work->bytes / seconds, "operations_per_second", work->operations / seconds);
    if (row != NULL && limit > 0) {
        json_object_set_new(row, "limit",
                            json_string(work->limit == KERNELS_LIMIT_PEAK ? "bf16 peak" : "read bandwidth"));
        json_object_set_new(row, "limit_per_second", json_real(limit));
        json_object_set_new(row, "share", json_real(share));
    }
    if (row != NULL && peer > 0) {
        json_object_set_new(row, "onednn_operations_per_second", json_real(peer));
        json_object_set_new(row, "speed_against_onednn", json_real(of_peer));
    }
    if (json_array_append_new(b->rows, row) != 0) b->status = HD_NO_MEMORY;
}

static void measure(const kernels_work *work, void *context) {
    bench *b = context;
    if (b->config->only != NULL && strstr(work->name, b->config->only) == NULL) return;
    timing ours = {0}, limits = {0}, peers = {0};
    kernels_dnnl *peer =
        work->m > 0 ? kernels_dnnl_open(work->m, work->n, work->k, hd_pool_thread_count(b->config->pool)) : NULL;
    work->run(work);
    uint64_t start = hd_now_ns();
    for (int round = 0; round < ROUNDS_MAX && (round < ROUNDS_MIN || hd_now_ns() - start < ROUNDS_NS); round++) {
        timing_add(&ours, time_work(work));
        if (work->limit != KERNELS_LIMIT_NONE) timing_add(&limits, limit_now(b, work->limit));
        if (peer != NULL) timing_add(&peers, time_peer(peer));
    }
    kernels_dnnl_close(peer);
    sample_summary summary = sample_summarise(&ours.sample);
    print_row(b, work, summary.median, summary.min, sample_summarise(&limits.sample).median,
              peer_rate(work, sample_summarise(&peers.sample).median));
}

hd_status kernels_bench_run(const kernels_bench_config *config, hd_error *error) {
    size_t bytes = config->memory_bytes != 0 ? config->memory_bytes : MEMORY_BYTES;
    if (config->memory_bytes == 0 && bytes > hd_memory_available_bytes() / 2) bytes = hd_memory_available_bytes() / 2;
    bench b = {.config = config, .table = bench_report_table(config->json_path), .rows = json_array()};
    json_t *report = bench_report_open("kernels");
    if (report != NULL) json_object_set_new(report, "kernels", json_string(config->kernels->name));
    if (report != NULL) json_object_set_new(report, "threads", json_integer(hd_pool_thread_count(config->pool)));
    if (report == NULL || b.rows == NULL || json_object_set_new(report, "rows", b.rows) != 0 ||
        kernels_memory_open(config->kernels, config->pool, bytes, &b.memory) != HD_OK) {
        json_decref(report);
        return hd_error_set(error, HD_NO_MEMORY, "no memory for %zu MiB of weights and pages", bytes >> 20);
    }
    fprintf(b.table, "kernels %s, %u threads; median times; limits and oneDNN measured in turns with each kernel\n",
            config->kernels->name, hd_pool_thread_count(config->pool));
    fprintf(b.table, "%-46s %10s %8s %10s  %-22s %s\n", "", "us", "GB/s", "GFLOP/s", "of the limit",
            "of oneDNN's GFLOP/s");
    hd_status status = kernels_work_each(&b.memory, measure, &b);
    kernels_memory_close(&b.memory);
    if (status == HD_OK) status = b.status;
    if (status == HD_OK) return bench_report_write(report, config->json_path, error);
    json_decref(report);
    return hd_error_set(error, status, "no memory for the report");
}
