/* device_bench_main.c - `hadal bench device` as a program of its own, for machines that lack what hadal is linked with
 * (tools/gpu_check.sh pack). Its one argument is where the JSON goes. */
#include <stdio.h>

#include "bench/device_bench.h"

int main(int argc, char **argv) {
    hd_error error = {{0}};
    kernel_device *device;
    hd_status status = kernel_device_cuda_open(0, &device, &error);
    if (status == HD_OK) {
        device_bench_config config = {
            .device = device, .context_max = 1 << 20, .scale = 1, .json_path = argc > 1 ? argv[1] : NULL};
        status = device_bench_run(&config, &error);
        device->ops->close(device);
    }
    if (status != HD_OK) fprintf(stderr, "device_bench: %s\n", error.text);
    return status == HD_OK ? 0 : 1;
}
