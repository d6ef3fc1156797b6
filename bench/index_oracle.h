/* index_oracle.h - what a searcher that knows every score would get with as much reading: the true best keys exactly,
 * and for the rest one k-means centroid per 16 keys with the mean of its values (the estimate of RetroInfer).
 *
 * Threads: one. */
#ifndef BENCH_INDEX_ORACLE_H
#define BENCH_INDEX_ORACLE_H

#include "bench/index_data.h"
#include "bench/statistics.h"

/* errors: one value for each of the data's outputs. */
hd_status index_oracle_run(const index_data *data, const kernel_ops *kernels, double share, sample *errors);

#endif
