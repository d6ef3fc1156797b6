/* kernels_work.h - what `hadal bench kernels` times: one call of each kernel, at the sizes that a model of the
 * Llama-3 shapes gives it, split over the threads as the forward pass and the engine split it.
 *
 * Everything lies in one region of huge pages, filled with ordinary numbers: it is far larger than the caches, so
 * that what a kernel must read comes from memory. Pages of attention are page-sized pieces of it in random order, as
 * a free list hands them out after churn.
 * Threads: opened and closed by the thread that owns the pool. */
#ifndef BENCH_KERNELS_WORK_H
#define BENCH_KERNELS_WORK_H

#include "base/threads.h"
#include "kernels/ops.h"

typedef enum { KERNELS_LIMIT_MEMORY, KERNELS_LIMIT_PEAK, KERNELS_LIMIT_NONE } kernels_limit;

typedef struct kernels_memory {
    const kernel_ops *kernels;
    hd_pool *pool;
    void *region; /* numbers in bf16, between 1/64 and 2 in magnitude; never written by the work */
    size_t bytes;
    void *inputs, *outputs; /* rows of every product and attention: KERNELS_ROWS_BYTES each */
    void **scratch;         /* one a thread */
} kernels_memory;

hd_status kernels_memory_open(const kernel_ops *kernels, hd_pool *pool, size_t bytes, kernels_memory *memory);
void kernels_memory_close(kernels_memory *memory);

typedef struct kernels_work kernels_work;
struct kernels_work {
    char name[80];
    kernels_limit limit;
    double bytes, operations; /* of one run: read at least, and done; 0 where it says nothing */
    uint32_t m, n, k;         /* a matrix product that oneDNN is timed with beside it; m = 0: none */
    void (*run)(const kernels_work *work);
    const kernels_memory *memory;
    const void *context;
};

/* Calls each with every piece of work in turn; the work lives for that call only. */
hd_status kernels_work_each(const kernels_memory *memory, void (*each)(const kernels_work *work, void *context),
                            void *context);

#endif
