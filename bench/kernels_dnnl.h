/* kernels_dnnl.h - oneDNN's own matrix product, as a peer of ours in the same run. Built with it where it is installed.
 *
 * Threads: oneDNN runs its own OpenMP team of thread_count. */
#ifndef BENCH_KERNELS_DNNL_H
#define BENCH_KERNELS_DNNL_H

#include <stdbool.h>
#include <stdint.h>

typedef struct kernels_dnnl kernels_dnnl;

/* A product [m, k] x [k, n] of bf16 with f32 results, its weights in the order that oneDNN likes best. NULL where
 * there is no oneDNN, or it has no such product. */
kernels_dnnl *kernels_dnnl_open(uint32_t m, uint32_t n, uint32_t k, unsigned thread_count);
void kernels_dnnl_close(kernels_dnnl *product); /* accepts NULL */
void kernels_dnnl_run(kernels_dnnl *product);

#endif
