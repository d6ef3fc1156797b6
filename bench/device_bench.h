/* device_bench.h - `hadal bench device`: the time of a device's kernels, held against what the device can do.
 *
 * What reads much is held against the read bandwidth, what multiplies much against a square product of the device's
 * library; both are measured again beside every kernel, in turns. Shapes are those of Llama-3.1-8B.
 * Threads: runs on the calling thread. */
#ifndef BENCH_DEVICE_BENCH_H
#define BENCH_DEVICE_BENCH_H

#include "kernels/device.h"

typedef struct device_bench_config {
    kernel_device *device;
    const char *only;      /* NULL: all; else those with this text in their names */
    uint64_t context_max;  /* deeper contexts are left out */
    uint32_t scale;        /* 1: the real shapes; tests divide all sizes by more */
    const char *json_path; /* NULL: none; "-": standard output */
} device_bench_config;

hd_status device_bench_run(const device_bench_config *config, hd_error *error);

#endif
