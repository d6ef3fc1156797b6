/* index_bench.h - `hadal bench index`: what each kind of index finds, reads, takes and costs, on one head's data.
 *
 * Recall is judged as of a searcher that hands back the best 100 keys: the index names candidates, their keys are read
 * and scored, and those bytes count as scanned. The error is that of attention over a share of the tokens and, where
 * the index has one, the estimate of the rest, against attention over all of them; beside it stands an oracle's
 * (index_oracle.h). Bytes are shares of the keys' own in bf16.
 * Threads: everything is timed on the calling thread. */
#ifndef BENCH_INDEX_BENCH_H
#define BENCH_INDEX_BENCH_H

#include "base/status.h"
#include "kernels/ops.h"

typedef struct index_bench_config {
    const kernel_ops *kernels;
    const char *data;    /* a directory that tools/index_data.py made */
    const char *only;    /* NULL: every index; else names, separated by commas */
    uint32_t candidates; /* tokens that are asked for, of which the best 100 are handed back; 0: what is usual */
    double share;        /* of the keys, that attention reads exactly */
    bool has_own_values; /* drawn, rather than the data's: nothing in a key tells its value */
    uint32_t outputs;    /* test queries whose attention is compared; 0: no oracle either */
    const char *json_path;
} index_bench_config;

hd_status index_bench_run(const index_bench_config *config, hd_error *error);

#endif
