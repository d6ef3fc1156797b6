/* kernels_peak.h - the most arithmetic that this machine does: a loop of the table's widest instruction over
 * registers alone.
 *
 * Threads: every thread of the pool runs the loop; nothing else may run on it meanwhile. */
#ifndef BENCH_KERNELS_PEAK_H
#define BENCH_KERNELS_PEAK_H

#include "base/threads.h"
#include "kernels/ops.h"

/* Floating-point operations a second, a multiply and an add counting as two, of the instruction that the table
 * multiplies bf16 with, on all threads together over a few milliseconds. 0 where this build has no loop for the
 * table. */
double kernels_peak_bf16(const kernel_ops *kernels, hd_pool *pool);

#endif
