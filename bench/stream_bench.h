/* stream_bench.h - what one gRPC stream carries from one process to another: the most that a copy of blocks could.
 *
 * Threads: any one. */
#ifndef BENCH_STREAM_BENCH_H
#define BENCH_STREAM_BENCH_H

#include <stdint.h>

#include "base/status.h"

typedef struct stream_bench_config {
    const char *listen;  /* serve streams there until the input ends; or */
    const char *connect; /* read from there */
    uint64_t message_bytes, total_bytes;
    const char *json_path; /* NULL, a file, or - */
} stream_bench_config;

hd_status stream_bench_run(const stream_bench_config *config, hd_error *error);

#endif
