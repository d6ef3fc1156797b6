/* device_emulated.c - the emulator as a device: memory is the heap, and a queue does at once what it is asked for.
 *
 * A graph is a list of what was asked for, with its arguments. */
#include <stdlib.h>

#include "base/memory.h"
#include "kernels/cuda/attend_every.h"
#include "kernels/cuda/attend_finish.h"
#include "kernels/cuda/emulator.h"
#include "kernels/cuda/page_kernels.h"
#include "kernels/cuda/row_kernels.h"
#include "kernels/cuda/sample_kernel.h"
#include "kernels/device.h"

#define EMULATED_MULTIPROCESSORS 5u               /* an odd number, so that nothing divides evenly */
#define EMULATED_MEMORY_BYTES ((size_t)3 << 29)   /* all of it is written when it is taken */
#define EMULATED_SHARED_BYTES ((size_t)227 << 10) /* of compute capability 9.0 */

#define BODY(name, arguments, threads, blocks)                                                                         \
    static void run_##name(const void *a) {                                                                            \
        name((const arguments *)a);                                                                                    \
    }
CUDA_KERNELS(BODY)

typedef struct emulated_kernel {
    emulator_body *body;
    uint32_t threads_max;
    size_t argument_bytes;
} emulated_kernel;

static const emulated_kernel kernels[] = {
#define ENTRY(name, arguments, threads, blocks) {run_##name, threads, sizeof(arguments)},
    CUDA_KERNELS(ENTRY)};

typedef enum { NOTE_COPY, NOTE_CLEAR, NOTE_LAUNCH, NOTE_MATMUL } note_kind;

typedef struct note { /* one thing that a queue was asked for */
    note_kind kind;
    void *to;
    const void *from;
    size_t bytes;
    device_launch launch;
    _Alignas(16) unsigned char arguments[CUDA_ARGUMENTS_BYTES_MAX];
    device_matmul matmul;
} note;

struct kernel_graph {
    note *notes;
    size_t count, capacity;
};

struct kernel_event {
    char nothing; /* queues do everything at once */
};

typedef struct emulated_queue {
    kernel_queue base;
    kernel_graph *recording; /* NULL: what comes is done */
} emulated_queue;

static void device_close(kernel_device *device) {
    hd_free(device);
}

static hd_status take(kernel_device *device, size_t bytes, kernel_place place, void **out) {
    void *memory = hd_alloc(bytes, 256);
    if (memory == NULL) return HD_NO_MEMORY;
    memset(memory, 0xff, bytes); /* NaN, for whoever reads before anybody wrote */
    *out = memory;
    return HD_OK;
}

static void give(kernel_device *device, void *memory, kernel_place place) {
    hd_free(memory);
}

static hd_status queue_open(kernel_device *device, kernel_queue **out) {
    emulated_queue *queue = calloc(1, sizeof(*queue));
    if (queue == NULL) return HD_NO_MEMORY;
    queue->base.device = device;
    *out = &queue->base;
    return HD_OK;
}

static void queue_close(kernel_queue *queue) {
    free(queue);
}

static hd_status event_open(kernel_device *device, kernel_event **out) {
    kernel_event *event = calloc(1, sizeof(*event));
    if (event == NULL) return HD_NO_MEMORY;
    *out = event;
    return HD_OK;
}

static void event_close(kernel_event *event) {
    free(event);
}

/* Plain sums in ascending k. */
static void multiply(const device_matmul *m) {
    for (uint32_t row = 0; row < m->row_count; row++) {
        for (uint32_t n = 0; n < m->n; n++) {
            float sum = 0.0f;
            for (uint32_t k = 0; k < m->k; k++) {
                sum += hd_bf16_to_f32(m->input[row * m->input_stride + k]) *
                       hd_bf16_to_f32(m->weights[(size_t)n * m->k + k]);
            }
            if (m->bias != NULL) sum += m->bias[n];
            float *place = &m->output[row * m->output_stride + n];
            *place = m->epilogue == DEVICE_ADD ? *place + sum : sum;
        }
    }
}

static void act(const note *n) {
    switch (n->kind) {
    case NOTE_COPY: memcpy(n->to, n->from, n->bytes); break;
    case NOTE_CLEAR: memset(n->to, 0, n->bytes); break;
    case NOTE_MATMUL: multiply(&n->matmul); break;
    case NOTE_LAUNCH:
        emulator_run(kernels[n->launch.kernel].body, n->arguments, n->launch.blocks, n->launch.threads,
                     n->launch.shared_bytes);
        break;
    }
}

static hd_status ask(kernel_queue *base, const note *n) {
    kernel_graph *graph = ((emulated_queue *)base)->recording;
    if (graph == NULL) {
        act(n);
        return HD_OK;
    }
    if (graph->count == graph->capacity) {
        size_t capacity = graph->capacity * 2 + 16;
        note *notes = realloc(graph->notes, capacity * sizeof(*notes));
        if (notes == NULL) return HD_NO_MEMORY;
        graph->notes = notes;
        graph->capacity = capacity;
    }
    graph->notes[graph->count++] = *n;
    return HD_OK;
}

static hd_status copy_bytes(kernel_queue *queue, void *to, const void *from, size_t bytes) {
    return ask(queue, &(note){.kind = NOTE_COPY, .to = to, .from = from, .bytes = bytes});
}

static hd_status clear(kernel_queue *queue, void *to, size_t bytes) {
    return ask(queue, &(note){.kind = NOTE_CLEAR, .to = to, .bytes = bytes});
}

static hd_status launch(kernel_queue *queue, const device_launch *l) {
    const emulated_kernel *kernel = &kernels[l->kernel];
    if (l->threads > kernel->threads_max || l->shared_bytes > queue->device->facts.shared_bytes_max) return HD_INVALID;
    note n = {.kind = NOTE_LAUNCH, .launch = *l};
    memcpy(n.arguments, l->arguments, kernel->argument_bytes);
    return ask(queue, &n);
}

static hd_status matmul_prepare(kernel_queue *queue, const uint16_t *weights, uint32_t n, uint32_t k) {
    return HD_OK;
}

static hd_status matmul(kernel_queue *queue, const device_matmul *call) {
    return ask(queue, &(note){.kind = NOTE_MATMUL, .matmul = *call});
}

static hd_status mark(kernel_queue *queue, kernel_event *event) {
    return HD_OK;
}

static hd_status wait(kernel_queue *queue) {
    return HD_OK;
}

static hd_status record_begin(kernel_queue *queue) {
    kernel_graph *graph = calloc(1, sizeof(*graph));
    if (graph == NULL) return HD_NO_MEMORY;
    ((emulated_queue *)queue)->recording = graph;
    return HD_OK;
}

static hd_status record_end(kernel_queue *queue, kernel_graph **out) {
    *out = ((emulated_queue *)queue)->recording;
    ((emulated_queue *)queue)->recording = NULL;
    return HD_OK;
}

static hd_status replay(kernel_queue *queue, kernel_graph *graph) {
    for (size_t i = 0; i < graph->count; i++) act(&graph->notes[i]);
    return HD_OK;
}

static void graph_close(kernel_graph *graph) {
    if (graph == NULL) return;
    free(graph->notes);
    free(graph);
}

static const kernel_device_ops emulated_ops = {
    .name = "emulated",
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
    .follow = mark,
    .wait = wait,
    .record_begin = record_begin,
    .record_end = record_end,
    .replay = replay,
    .graph_close = graph_close,
};

hd_status kernel_device_emulated_open(kernel_device **out) {
    kernel_device *device = hd_alloc_zeroed(sizeof(*device), HD_CACHE_LINE);
    if (device == NULL) return HD_NO_MEMORY;
    device->ops = &emulated_ops;
    device->facts = (kernel_device_facts){.name = "emulated",
                                          .capability = 90,
                                          .multiprocessors = EMULATED_MULTIPROCESSORS,
                                          .memory_bytes = EMULATED_MEMORY_BYTES,
                                          .shared_bytes_max = EMULATED_SHARED_BYTES};
    *out = device;
    return HD_OK;
}
