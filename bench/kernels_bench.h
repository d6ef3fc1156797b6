/* kernels_bench.h - `hadal bench kernels`: the time of each kernel, held against what this machine can do.
 *
 * What reads much is held against the read bandwidth, what multiplies much against the peak of the table's bf16
 * instruction, and matrix products stand beside oneDNN's. The limit and the peer are measured again beside every run
 * of the kernel, in turns, so that a neighbour on the machine slows all of them alike; the medians are reported.
 * Threads: runs on the calling thread; the pool must be free. */
#ifndef BENCH_KERNELS_BENCH_H
#define BENCH_KERNELS_BENCH_H

#include "base/threads.h"
#include "kernels/ops.h"

typedef struct kernels_bench_config {
    const kernel_ops *kernels;
    hd_pool *pool;
    const char *only;      /* NULL: all; else those with this text in their names */
    size_t memory_bytes;   /* that large reads are spread over; 0: 1 GiB, or less where there is not so much */
    const char *json_path; /* NULL: none; "-": standard output */
} kernels_bench_config;

hd_status kernels_bench_run(const kernels_bench_config *config, hd_error *error);

#endif
