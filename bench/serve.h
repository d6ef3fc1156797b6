/* serve.h - `hadal bench serve`: load.h's figures as a table, as JSON, and against goals.
 *
 * Threads: runs on the calling thread. */
#ifndef BENCH_SERVE_H
#define BENCH_SERVE_H

#include "bench/load.h"

typedef struct bench_goals { /* milliseconds; 0: no goal */
    double ttft_ms, tpot_ms, e2el_ms;
} bench_goals;

/* "ttft:2000,tpot:100,e2el:60000", in any order, each at most once. */
hd_status bench_goals_parse(const char *text, bench_goals *goals, hd_error *error);

typedef struct bench_serve_config {
    load_config load; /* on_progress and context are set here */
    bench_goals goals;
    const char *json_path; /* NULL: none; "-": standard output */
} bench_serve_config;

/* Fails when no request could be completed, too; some failures are figures of the report. */
hd_status bench_serve_run(const bench_serve_config *config, hd_error *error);

#endif
