/* device_bandwidth.c - enough passes that asking for them counts for nothing. */
#include "bench/device_bandwidth.h"

#include "base/clock.h"
#include "kernels/cuda/operations.h"

#define PASSES 8u

static size_t bytes_of(const kernel_device *device) {
    size_t most = (size_t)1 << 30, share = device->facts.memory_bytes / 64 / 4096 * 4096;
    return share < most ? share : most;
}

/* The word that read_all hardly ever writes is the region's last. */
hd_status device_bandwidth_open(kernel_queue *queue, void **region) {
    kernel_device *device = queue->device;
    hd_status status = device->ops->take(device, bytes_of(device) + 16, KERNEL_DEVICE_MEMORY, region);
    return status == HD_OK ? device->ops->clear(queue, *region, bytes_of(device) + 16) : status;
}

void device_bandwidth_close(kernel_queue *queue, void *region) {
    if (region != NULL) queue->device->ops->give(queue->device, region, KERNEL_DEVICE_MEMORY);
}

double device_bandwidth(kernel_queue *queue, const void *region) {
    const kernel_device_ops *ops = queue->device->ops;
    size_t bytes = bytes_of(queue->device);
    read_all_arguments call = {
        .from = region, .bytes = bytes, .result = (uint32_t *)((unsigned char *)(uintptr_t)region + bytes)};
    hd_status status = ops->wait(queue);
    uint64_t start = hd_now_ns();
    for (uint32_t i = 0; i < PASSES && status == HD_OK; i++) status = device_read_all(queue, &call);
    hd_status done = ops->wait(queue);
    double seconds = (double)(hd_now_ns() - start) * 1e-9;
    return status == HD_OK && done == HD_OK ? PASSES * (double)bytes / seconds : 0;
}
