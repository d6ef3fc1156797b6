/* operations.h - the operations of a forward pass and of attention on a device, as launches in a queue.
 *
 * Grids, threads and shared memory are chosen here, from the device's facts and the shapes alone, never from the
 * contents: so a recorded graph is right for every step of its size. Threads: as device.h. */
#ifndef KERNELS_CUDA_OPERATIONS_H
#define KERNELS_CUDA_OPERATIONS_H

#include <stdbool.h>

#include "kernels/cuda/attend_tables.h"
#include "kernels/device.h"

hd_status device_rmsnorm(kernel_queue *queue, const rmsnorm_arguments *call);
hd_status device_split_rows(kernel_queue *queue, const split_rows_arguments *call);
hd_status device_silu_multiply(kernel_queue *queue, const silu_multiply_arguments *call);
hd_status device_add_bias(kernel_queue *queue, const add_bias_arguments *call);
hd_status device_page_store(kernel_queue *queue, const page_store_arguments *call);
hd_status device_page_summary(kernel_queue *queue, const page_summary_arguments *call);
hd_status device_page_score(kernel_queue *queue, const page_score_arguments *call);
hd_status device_logits_summary(kernel_queue *queue, const logits_summary_arguments *call);
hd_status device_sample(kernel_queue *queue, const sample_arguments *call);
hd_status device_unpack(kernel_queue *queue, const unpack_arguments *call);
hd_status device_read_all(kernel_queue *queue, const read_all_arguments *call);

/* One layer's attention over tables that are on the device already. */
typedef struct device_attend {
    uint32_t dim;                /* of keys and of values: one of ATTEND_DIMS */
    attend_arguments arguments;  /* counts, tiles, group_pieces, pieces and positions are filled in here */
    const attend_tables *tables; /* sizes and offsets; what they contain is not read */
    const unsigned char *region; /* the tables on the device */
    uint32_t split_rows_max;     /* of any tile that these tables may hold: at most 16 */
    const float *sink_logits;
    uint16_t *output;
    uint64_t output_stride;
    float *lse;
    uint32_t query_heads;
} device_attend;

/* HD_UNSUPPORTED: a head size that no kernel has. */
hd_status device_attend_run(kernel_queue *queue, const device_attend *call);
/* Bytes of arguments.stacks, for this device. */
size_t device_attend_stack_bytes(const kernel_device_facts *facts, uint32_t dim, uint32_t stack_levels);

#endif
