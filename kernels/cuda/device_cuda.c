/* device_cuda.c - a CUDA device: the runtime (linked statically), streams, graphs, and cuBLASLt for products. */
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "kernels/cuda/libraries.h"
#include "kernels/cuda/matmul_lt.h"
#include "kernels/cuda/operations.h"
#include "kernels/device.h"

#define CAPABILITY_LEAST 80u

/* attend.cu and rows.cu, in the order of kernel_list.h. */
extern const void *const cuda_attend_functions[];
extern const void *const cuda_row_functions[];

typedef struct cuda_device {
    kernel_device base; /* first */
    int index;
    const void *functions[CUDA_KERNEL_COUNT];
    _Atomic bool has_failed;
} cuda_device;

typedef struct cuda_queue {
    kernel_queue base; /* first */
    cudaStream_t stream;
    matmul_lt *matmul;
} cuda_queue;

struct kernel_event {
    cudaEvent_t event;
};

struct kernel_graph {
    cudaGraphExec_t executable;
};

static cuda_device *device_of(kernel_queue *queue) {
    return (cuda_device *)queue->device;
}

static cudaStream_t stream_of(kernel_queue *queue) {
    return ((cuda_queue *)queue)->stream;
}

/* The first error of a device is logged; what follows from it is not. */
static hd_status checked(kernel_device *base, cudaError_t error, const char *what) {
    cuda_device *device = (cuda_device *)base;
    if (error == cudaSuccess) return atomic_load_explicit(&device->has_failed, memory_order_relaxed) ? HD_IO : HD_OK;
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError(); /* not sticky: memory may be there later */
        return HD_NO_MEMORY;
    }
    if (!atomic_exchange(&device->has_failed, true)) {
        char quoted[160];
        hd_log(HD_LOG_ERROR, "device_failed", "device=%d call=%s error=%s", device->index, what,
               hd_log_quote(cudaGetErrorString(error), quoted, sizeof(quoted)));
    }
    return HD_IO;
}

/* Every thread has a current device of its own. */
static hd_status use(kernel_device *device) {
    return checked(device, cudaSetDevice(((cuda_device *)device)->index), "set_device");
}

static void device_close(kernel_device *device) {
    free(device);
}

static hd_status take(kernel_device *device, size_t bytes, kernel_place place, void **out) {
    hd_status status = use(device);
    if (status != HD_OK) return status;
    void *memory;
    cudaError_t error = place == KERNEL_PINNED_MEMORY ? cudaHostAlloc(&memory, bytes, cudaHostAllocPortable)
                                                      : cudaMalloc(&memory, bytes);
    status = checked(device, error, "take");
    if (status == HD_OK) *out = memory;
    return status;
}

static void give(kernel_device *device, void *memory, kernel_place place) {
    if (memory == NULL || use(device) != HD_OK) return;
    if (place == KERNEL_PINNED_MEMORY) cudaFreeHost(memory);
    else cudaFree(memory);
}

static void queue_close(kernel_queue *base) {
    if (base == NULL) return;
    cuda_queue *queue = (cuda_queue *)base;
    if (queue->stream != NULL) cudaStreamSynchronize(queue->stream);
    matmul_lt_close(queue->matmul);
    if (queue->stream != NULL) cudaStreamDestroy(queue->stream);
    free(queue);
}

static hd_status queue_open(kernel_device *device, kernel_queue **out) {
    cuda_queue *queue = calloc(1, sizeof(*queue));
    if (queue == NULL) return HD_NO_MEMORY;
    queue->base.device = device;
    hd_status status = use(device);
    if (status == HD_OK) {
        status = checked(device, cudaStreamCreateWithFlags(&queue->stream, cudaStreamNonBlocking), "stream_create");
    }
    if (status == HD_OK) *out = &queue->base;
    else queue_close(&queue->base);
    return status;
}

static hd_status event_open(kernel_device *device, kernel_event **out) {
    kernel_event *event = calloc(1, sizeof(*event));
    if (event == NULL) return HD_NO_MEMORY;
    hd_status status = use(device);
    if (status == HD_OK) {
        status = checked(device, cudaEventCreateWithFlags(&event->event, cudaEventDisableTiming), "event_create");
    }
    if (status == HD_OK) *out = event;
    else free(event);
    return status;
}

static void event_close(kernel_event *event) {
    if (event == NULL) return;
    cudaEventDestroy(event->event);
    free(event);
}

static hd_status copy_bytes(kernel_queue *queue, void *to, const void *from, size_t bytes) {
    if (bytes == 0) return HD_OK;
    return checked(queue->device, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_of(queue)), "copy");
}

static hd_status clear(kernel_queue *queue, void *to, size_t bytes) {
    if (bytes == 0) return HD_OK;
    return checked(queue->device, cudaMemsetAsync(to, 0, bytes, stream_of(queue)), "clear");
}

static hd_status launch(kernel_queue *queue, const device_launch *l) {
    void *arguments[] = {(void *)l->arguments};
    dim3 grid = {l->blocks, 1, 1}, block = {l->threads, 1, 1};
    if (l->shared_bytes > queue->device->facts.shared_bytes_max) return HD_INVALID;
    return checked(queue->device,
                   cudaLaunchKernel(device_of(queue)->functions[l->kernel], grid, block, arguments, l->shared_bytes,
                                    stream_of(queue)),
                   "launch");
}

static hd_status matmul_prepare(kernel_queue *base, const uint16_t *weights, uint32_t n, uint32_t k) {
    cuda_queue *queue = (cuda_queue *)base;
    hd_error error;
    hd_status status = use(base->device);
    if (status == HD_OK && queue->matmul == NULL) {
        status = matmul_lt_open(queue->stream, &queue->matmul, &error);
        char quoted[600];
        if (status != HD_OK) {
            hd_log(HD_LOG_ERROR, "no_products", "error=%s", hd_log_quote(error.text, quoted, sizeof(quoted)));
        }
    }
    return status == HD_OK ? matmul_lt_prepare(queue->matmul, weights, n, k) : status;
}

static hd_status matmul(kernel_queue *base, const device_matmul *call) {
    cuda_queue *queue = (cuda_queue *)base;
    if (queue->matmul == NULL) return HD_NOT_FOUND;
    hd_status status = matmul_lt_run(queue->matmul, call);
    if (status != HD_OK || call->bias == NULL) return status;
    add_bias_arguments bias = {.output = call->output,
                               .output_stride = call->output_stride,
                               .row_count = call->row_count,
                               .width = call->n,
                               .bias = call->bias};
    return device_add_bias(base, &bias);
}

static hd_status mark(kernel_queue *queue, kernel_event *event) {
    return checked(queue->device, cudaEventRecord(event->event, stream_of(queue)), "mark");
}

static hd_status follow(kernel_queue *queue, kernel_event *event) {
    return checked(queue->device, cudaStreamWaitEvent(stream_of(queue), event->event, 0), "follow");
}

static hd_status wait(kernel_queue *queue) {
    return checked(queue->device, cudaStreamSynchronize(stream_of(queue)), "wait");
}

static hd_status record_begin(kernel_queue *queue) {
    return checked(queue->device, cudaStreamBeginCapture(stream_of(queue), cudaStreamCaptureModeThreadLocal), "record");
}

static hd_status record_end(kernel_queue *queue, kernel_graph **out) {
    cudaGraph_t recorded;
    hd_status status = checked(queue->device, cudaStreamEndCapture(stream_of(queue), &recorded), "record");
    if (status != HD_OK) return status;
    kernel_graph *graph = calloc(1, sizeof(*graph));
    status = graph == NULL
                 ? HD_NO_MEMORY
                 : checked(queue->device, cudaGraphInstantiate(&graph->executable, recorded, 0), "instantiate");
    cudaGraphDestroy(recorded);
    if (status == HD_OK) *out = graph;
    else free(graph);
    return status;
}

static hd_status replay(kernel_queue *queue, kernel_graph *graph) {
    return checked(queue->device, cudaGraphLaunch(graph->executable, stream_of(queue)), "replay");
}

static void graph_close(kernel_graph *graph) {
    if (graph == NULL) return;
    cudaGraphExecDestroy(graph->executable);
    free(graph);
}

static const kernel_device_ops cuda_ops = {
    .name = "cuda",
    .close = device_close,
    .take = take,
    .give = give,
    .queue_open = queue_open,
    .queue_close = queue_close,
    .event_open = event_open,
    .event_close = event_close,
    .copy = copy_bytes,
    .clear = clear,
    .launch = launch,
    .matmul_prepare = matmul_prepare,
    .matmul = matmul,
    .mark = mark,
    .follow = follow,
    .wait = wait,
    .record_begin = record_begin,
    .record_end = record_end,
    .replay = replay,
    .graph_close = graph_close,
};

/* ---- Opening ---- */

static hd_status count_devices(unsigned *count, hd_error *error) {
    int found = 0, driver = 0;
    cudaError_t result = cudaGetDeviceCount(&found);
    if (result == cudaSuccess && found > 0) {
        *count = (unsigned)found;
        return HD_OK;
    }
    cudaGetLastError();
    cudaDriverGetVersion(&driver);
    if (driver == 0) return hd_error_set(error, HD_UNSUPPORTED, "there is no NVIDIA driver (libcuda.so.1) here");
    return hd_error_set(error, HD_UNSUPPORTED, "the NVIDIA driver (for CUDA %d.%d) gives no device: %s", driver / 1000,
                        driver % 1000 / 10, result == cudaSuccess ? "none is visible" : cudaGetErrorString(result));
}

static hd_status read_facts(int index, kernel_device_facts *facts, hd_error *error) {
    struct cudaDeviceProp properties;
    cudaError_t result = cudaGetDeviceProperties(&properties, index);
    if (result != cudaSuccess)
        return hd_error_set(error, HD_IO, "CUDA device %d: %s", index, cudaGetErrorString(result));
    *facts = (kernel_device_facts){.capability = (uint32_t)(properties.major * 10 + properties.minor),
                                   .multiprocessors = (uint32_t)properties.multiProcessorCount,
                                   .memory_bytes = properties.totalGlobalMem,
                                   .shared_bytes_max = properties.sharedMemPerBlockOptin};
    snprintf(facts->name, sizeof(facts->name), "%.95s", properties.name);
    if (facts->capability >= CAPABILITY_LEAST) return HD_OK;
    return hd_error_set(error, HD_UNSUPPORTED, "%s has compute capability %u.%u, but 8.0 is the least", facts->name,
                        facts->capability / 10, facts->capability % 10);
}

/* Kernels may use all of a block's shared memory; this also finds out that there is code for this device. */
static hd_status prepare_kernels(cuda_device *device, hd_error *error) {
    enum { ATTEND_COUNT = CUDA_attend_finish };
    for (int i = 0; i < CUDA_KERNEL_COUNT; i++) {
        device->functions[i] = i < ATTEND_COUNT ? cuda_attend_functions[i] : cuda_row_functions[i - ATTEND_COUNT];
        struct cudaFuncAttributes attributes;
        cudaError_t result = cudaFuncGetAttributes(&attributes, device->functions[i]);
        if (result == cudaSuccess) {
            size_t dynamic = device->base.facts.shared_bytes_max - attributes.sharedSizeBytes;
            result =
                cudaFuncSetAttribute(device->functions[i], cudaFuncAttributeMaxDynamicSharedMemorySize, (int)dynamic);
        }
        if (result != cudaSuccess) {
            return hd_error_set(error, HD_UNSUPPORTED, "%s: no kernels for compute capability %u.%u in this build: %s",
                                device->base.facts.name, device->base.facts.capability / 10,
                                device->base.facts.capability % 10, cudaGetErrorString(result));
        }
    }
    return HD_OK;
}

hd_status kernel_device_cuda_open(unsigned index, kernel_device **out, hd_error *error) {
    unsigned count;
    hd_status status = count_devices(&count, error);
    if (status != HD_OK) return status;
    if (index >= count)
        return hd_error_set(error, HD_UNSUPPORTED, "there is no CUDA device %u: %u in all", index, count);
    cuda_device *device = calloc(1, sizeof(*device));
    if (device == NULL) return hd_error_set(error, HD_NO_MEMORY, "no memory");
    device->base.ops = &cuda_ops;
    device->index = (int)index;
    status = read_facts(device->index, &device->base.facts, error);
    if (status == HD_OK) status = use(&device->base);
    if (status == HD_OK) status = prepare_kernels(device, error);
    if (status == HD_OK) *out = &device->base;
    else device_close(&device->base);
    return status;
}

/* ---- What is here ---- */

static void describe_nccl(char *text, size_t bytes) {
    int (*get_version)(int *version);
    const library_symbol symbols[] = {{"ncclGetVersion", &get_version}};
    library *opened;
    hd_error error;
    int version = 0;
    snprintf(text, bytes, "none");
    if (library_open("libnccl.so.2", symbols, 1, &opened, &error) != HD_OK) return;
    if (get_version(&version) == 0)
        snprintf(text, bytes, "%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
    library_close(opened);
}

void kernel_device_report_make(kernel_device_report *report) {
    unsigned count = 0;
    hd_error error;
    char quoted[200], products[96], quoted_products[112], nccl[32];
    if (count_devices(&count, &error) != HD_OK) {
        snprintf(report->text, sizeof(report->text), "cuda=%s", hd_log_quote(error.text, quoted, sizeof(quoted)));
        return;
    }
    kernel_device_facts facts;
    if (read_facts(0, &facts, &error) != HD_OK) {
        snprintf(report->text, sizeof(report->text), "cuda=%s", hd_log_quote(error.text, quoted, sizeof(quoted)));
        return;
    }
    matmul_lt_describe(products, sizeof(products));
    describe_nccl(nccl, sizeof(nccl));
    snprintf(report->text, sizeof(report->text), "cuda=%s devices=%u cublaslt=%s nccl=%s",
             hd_log_quote(facts.name, quoted, sizeof(quoted)), count,
             hd_log_quote(products, quoted_products, sizeof(quoted_products)), nccl);
}
