/* device.h - a place other than the CPU where kernels run: memory, queues of work, and graphs of it.
 *
 * Implementations: cuda (cuda/device_cuda.c, with HADAL_CUDA) and emulated (cuda/device_emulated.c: the same kernels
 * run by the emulator on the CPU, for tests; always built). What to run is in cuda/operations.h, which turns an
 * operation into launches and is the same for both.
 *
 *   1. Calls that take a queue return at once. What they ask for happens in the order of the queue, after everything
 *      that was in it; only `wait` blocks. Arguments are copied by the call; memory they point to is read later.
 *   2. Events order queues: `follow` makes a queue wait for what was in another one at `mark`.
 *   3. Between record_begin and record_end calls on the queue are noted instead of done; `replay` does them all, with
 *      the arguments of then and the memory's contents of now. So sizes that change lie in memory (attend_counts),
 *      and a graph is made once for each of a few padded sizes (cuda/graph_sizes.h).
 *   4. Nothing in a queue allocates. Memory is taken at open; pinned memory is host memory that kernels read too.
 *   5. An error of the device is final: every later call on it returns HD_IO, and the log says once what it was.
 * Threads: one thread a queue; take and give from any thread. */
#ifndef KERNELS_DEVICE_H
#define KERNELS_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/cuda/kernel_list.h"
#include "kernels/dtype.h"

typedef struct kernel_device kernel_device;
typedef struct kernel_queue kernel_queue;
typedef struct kernel_event kernel_event;
typedef struct kernel_graph kernel_graph;

typedef enum { KERNEL_DEVICE_MEMORY, KERNEL_PINNED_MEMORY } kernel_place;

typedef struct kernel_device_facts {
    char name[96];
    uint32_t capability; /* 80, 90, 100: of the CUDA architecture */
    uint32_t multiprocessors;
    size_t memory_bytes, shared_bytes_max; /* shared: of a block */
} kernel_device_facts;

typedef struct device_launch {
    cuda_kernel kernel;
    uint32_t blocks, threads;
    size_t shared_bytes;
    const void *arguments; /* the kernel's struct */
} device_launch;

typedef enum { DEVICE_STORE, DEVICE_ADD } device_epilogue;

/* output = input x weights^T (+ bias), all rows; weights as Hugging Face has them. A row's bits do not depend on how
 * many rows there are. */
typedef struct device_matmul {
    const uint16_t *weights;              /* bf16 [n][k] */
    uint32_t n, k;                        /* multiples of 8 */
    const uint16_t *input;                /* bf16 [row_count][input_stride] */
    uint64_t input_stride, output_stride; /* elements; multiples of 8 */
    uint32_t row_count;
    float *output;     /* [row_count][output_stride] */
    const float *bias; /* [n] or NULL */
    device_epilogue epilogue;
} device_matmul;

typedef struct kernel_device_ops {
    const char *name;
    void (*close)(kernel_device *device); /* everything else that was opened is closed */
    hd_status (*take)(kernel_device *device, size_t bytes, kernel_place place, void **out); /* 256-byte aligned */
    void (*give)(kernel_device *device, void *memory, kernel_place place);                  /* accepts NULL */
    hd_status (*queue_open)(kernel_device *device, kernel_queue **out);
    void (*queue_close)(kernel_queue *queue); /* accepts NULL */
    hd_status (*event_open)(kernel_device *device, kernel_event **out);
    void (*event_close)(kernel_event *event);                                         /* accepts NULL */
    hd_status (*copy)(kernel_queue *queue, void *to, const void *from, size_t bytes); /* host memory is pinned */
    hd_status (*clear)(kernel_queue *queue, void *to, size_t bytes);                  /* to zeros */
    hd_status (*launch)(kernel_queue *queue, const device_launch *launch);
    /* Chooses how products with weights of this shape are done, once, before anything is recorded. It runs some of them
     * and waits. */
    hd_status (*matmul_prepare)(kernel_queue *queue, const uint16_t *weights, uint32_t n, uint32_t k);
    hd_status (*matmul)(kernel_queue *queue, const device_matmul *call);
    hd_status (*mark)(kernel_queue *queue, kernel_event *event);
    hd_status (*follow)(kernel_queue *queue, kernel_event *event);
    hd_status (*wait)(kernel_queue *queue);
    hd_status (*record_begin)(kernel_queue *queue);
    hd_status (*record_end)(kernel_queue *queue, kernel_graph **out);
    hd_status (*replay)(kernel_queue *queue, kernel_graph *graph);
    void (*graph_close)(kernel_graph *graph); /* accepts NULL */
} kernel_device_ops;

struct kernel_device { /* first member of every implementation */
    const kernel_device_ops *ops;
    kernel_device_facts facts;
};

struct kernel_queue { /* likewise */
    kernel_device *device;
};

/* The emulator as a device. shared_bytes_max as of a real one, so that the same sizes are chosen. */
hd_status kernel_device_emulated_open(kernel_device **out);

/* Device `index` of this machine. HD_UNSUPPORTED when this build has no CUDA, or there is no driver or device; the
 * error says which. */
hd_status kernel_device_cuda_open(unsigned index, kernel_device **out, hd_error *error);

/* One line about what this process could use ("cuda=no_driver"), for the log at start. */
typedef struct kernel_device_report {
    char text[256];
} kernel_device_report;
void kernel_device_report_make(kernel_device_report *report);

#endif
