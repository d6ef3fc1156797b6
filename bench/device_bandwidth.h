/* device_bandwidth.h - how fast a device reads its own memory, measured beside what is compared with it.
 *
 * Threads: the queue's. */
#ifndef BENCH_DEVICE_BANDWIDTH_H
#define BENCH_DEVICE_BANDWIDTH_H

#include "kernels/device.h"

/* Far more than a device's caches hold; of its memory, for device_bandwidth. */
hd_status device_bandwidth_open(kernel_queue *queue, void **region);
void device_bandwidth_close(kernel_queue *queue, void *region); /* accepts NULL */

/* Bytes a second of several passes in a row over the region, behind what is in the queue; 0: the device failed. */
double device_bandwidth(kernel_queue *queue, const void *region);

#endif
