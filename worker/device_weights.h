/* device_weights.h - a dense model's weights in a device's memory: bf16 matrices as rows [n][k], which is what the
 * device's products read, and norms and biases in fp32.
 *
 * One region, whose size is known from the configuration. Packed matrices (kernels/matrix.h) are copied as they are, a
 * part at a time through pinned memory, and unpacked there.
 * Threads: open and close on one; the queue is in nobody else's use. */
#ifndef WORKER_DEVICE_WEIGHTS_H
#define WORKER_DEVICE_WEIGHTS_H

#include "kernels/device.h"
#include "model/config.h"
#include "model/weights.h"

typedef struct device_matrix {
    uint16_t *rows; /* [n][k] */
    uint32_t n, k;  /* multiples of 8: n is padded with rows of zeros */
} device_matrix;

typedef struct device_layer_weights {
    float *attention_norm, *mlp_norm;
    float *query_norm, *key_norm;  /* or NULL */
    float *qkv_bias, *output_bias; /* or NULL */
    device_matrix qkv, output, gate_up, down;
} device_layer_weights;

typedef struct device_weights {
    kernel_device *device;
    void *region;
    device_layer_weights *layers;
    float *final_norm;
    device_matrix lm_head;
} device_weights;

/* Copies, chooses how products are done, and waits. HD_NO_MEMORY: the device has too little. weights are bf16, of dense
 * layers. */
hd_status device_weights_open(kernel_queue *queue, const model_config *model, const model_weights *weights,
                              device_weights *out);
void device_weights_close(device_weights *weights); /* accepts what a failed open left, and a zeroed one */

#endif
