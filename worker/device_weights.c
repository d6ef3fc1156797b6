/* device_weights.c - the walk over the model, which is made twice: to count, and to copy. */
#include "worker/device_weights.h"

#include <string.h>

#include "base/memory.h"
#include "kernels/cuda/operations.h"

#define ALIGNMENT 256u
#define PART_BYTES ((size_t)32 << 20) /* copied at once */

/* Hands out the region from its start. Without a region it only counts. */
typedef struct loader {
    kernel_queue *queue;
    unsigned char *region;
    uint64_t used_bytes, part_bytes; /* part_bytes: the most that has to be copied at once */
    unsigned char *pinned, *packed;  /* [part_bytes], on the host and on the device */
    hd_status status;
} loader;

static void *place(loader *l, uint64_t bytes) {
    void *memory = l->region != NULL ? l->region + l->used_bytes : NULL;
    l->used_bytes += HD_ALIGN_UP(bytes, (uint64_t)ALIGNMENT);
    return memory;
}

static const kernel_device_ops *ops_of(const loader *l) {
    return l->queue->device->ops;
}

/* Through the pinned part, which is free again when this returns. */
static void copy_part(loader *l, void *to, const void *from, size_t bytes) {
    memcpy(l->pinned, from, bytes);
    if (l->status == HD_OK) l->status = ops_of(l)->copy(l->queue, to, l->pinned, bytes);
}

static void await(loader *l) {
    hd_status status = ops_of(l)->wait(l->queue);
    if (l->status == HD_OK) l->status = status;
}

static float *load_floats(loader *l, const float *from, uint32_t count) {
    if (from == NULL) return NULL;
    float *to = place(l, count * sizeof(float));
    if (count * sizeof(float) > l->part_bytes) l->part_bytes = count * sizeof(float);
    if (to == NULL) return NULL;
    copy_part(l, to, from, count * sizeof(float));
    await(l);
    return to;
}

/* Columns [first, first + count) of a packed matrix, whole panels but for the last. */
static void load_panels(loader *l, const kernel_matrix *from, uint32_t first, uint32_t count, uint16_t *rows) {
    uint32_t padded = from->n_padded - first < count ? from->n_padded - first : count;
    copy_part(l, l->packed, (const uint16_t *)from->data + (size_t)first * from->k_padded,
              (size_t)padded * from->k_padded * sizeof(uint16_t));
    unpack_arguments call = {.packed = (const uint16_t *)l->packed,
                             .n = from->n - first < count ? from->n - first : count,
                             .k = from->k,
                             .n_padded = padded,
                             .k_padded = from->k_padded,
                             .rows = rows + (size_t)first * from->k,
                             .row_stride = from->k};
    if (l->status == HD_OK) l->status = device_unpack(l->queue, &call);
    await(l);
}

static device_matrix load_matrix(loader *l, const kernel_matrix *from) {
    device_matrix to = {.n = (uint32_t)HD_ALIGN_UP(from->n, 8u), .k = from->k};
    size_t panel_bytes = (size_t)KERNEL_PANEL * from->k_padded * sizeof(uint16_t);
    if (panel_bytes > l->part_bytes) l->part_bytes = panel_bytes;
    to.rows = place(l, (uint64_t)to.n * to.k * sizeof(uint16_t));
    if (to.rows == NULL) return to;
    if (to.n > from->n && l->status == HD_OK) {
        l->status = ops_of(l)->clear(l->queue, to.rows + (size_t)from->n * to.k,
                                     (size_t)(to.n - from->n) * to.k * sizeof(uint16_t));
    }
    uint32_t columns = (uint32_t)(l->part_bytes / panel_bytes) * KERNEL_PANEL;
    for (uint32_t first = 0; first < from->n && l->status == HD_OK; first += columns)
        load_panels(l, from, first, columns, to.rows);
    if (l->status == HD_OK) l->status = ops_of(l)->matmul_prepare(l->queue, to.rows, to.n, to.k);
    return to;
}

static void load_model(loader *l, const model_config *model, const model_weights *weights, device_weights *out) {
    uint32_t qkv_width = (model->query_heads + 2 * model->kv_heads) * model->head_dim;
    for (uint32_t i = 0; i < model->layer_count; i++) {
        const model_layer *from = &weights->layers[i];
        out->layers[i] = (device_layer_weights){
            .attention_norm = load_floats(l, from->attention_norm, model->hidden_size),
            .mlp_norm = load_floats(l, from->mlp_norm, model->hidden_size),
            .query_norm = load_floats(l, from->query_norm, model->head_dim),
            .key_norm = load_floats(l, from->key_norm, model->head_dim),
            .qkv_bias = load_floats(l, from->qkv_bias, qkv_width),
            .output_bias = load_floats(l, from->attention_output_bias, model->hidden_size),
            .qkv = load_matrix(l, &from->qkv),
            .output = load_matrix(l, &from->attention_output),
            .gate_up = load_matrix(l, &from->gate_up),
            .down = load_matrix(l, &from->down),
        };
    }
    out->final_norm = load_floats(l, weights->final_norm, model->hidden_size);
    out->lm_head = load_matrix(l, &weights->lm_head);
}

static hd_status take_parts(loader *l) {
    kernel_device *device = l->queue->device;
    void *pinned, *packed;
    hd_status status = device->ops->take(device, l->part_bytes, KERNEL_PINNED_MEMORY, &pinned);
    if (status != HD_OK) return status;
    l->pinned = pinned;
    status = device->ops->take(device, l->part_bytes, KERNEL_DEVICE_MEMORY, &packed);
    if (status == HD_OK) l->packed = packed;
    return status;
}

hd_status device_weights_open(kernel_queue *queue, const model_config *model, const model_weights *weights,
                              device_weights *out) {
    kernel_device *device = queue->device;
    *out = (device_weights){.device = device};
    out->layers = hd_alloc_zeroed(model->layer_count * sizeof(*out->layers), HD_CACHE_LINE);
    if (out->layers == NULL) return HD_NO_MEMORY;
    loader counted = {.queue = queue, .part_bytes = PART_BYTES};
    load_model(&counted, model, weights, out);
    hd_status status = device->ops->take(device, counted.used_bytes, KERNEL_DEVICE_MEMORY, &out->region);
    if (status != HD_OK) return status;
    loader l = {.queue = queue, .region = out->region, .part_bytes = counted.part_bytes};
    l.status = take_parts(&l);
    if (l.status == HD_OK) load_model(&l, model, weights, out);
    device->ops->give(device, l.packed, KERNEL_DEVICE_MEMORY);
    device->ops->give(device, l.pinned, KERNEL_PINNED_MEMORY);
    return l.status;
}

void device_weights_close(device_weights *weights) {
    if (weights->device != NULL) weights->device->ops->give(weights->device, weights->region, KERNEL_DEVICE_MEMORY);
    hd_free(weights->layers);
    *weights = (device_weights){.region = NULL};
}
