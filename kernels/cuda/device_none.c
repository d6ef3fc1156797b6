/* device_none.c - what a build without the CUDA back end says about it. */
#include <stdio.h>

#include "kernels/device.h"

hd_status kernel_device_cuda_open(unsigned index, kernel_device **out, hd_error *error) {
    return hd_error_set(error, HD_UNSUPPORTED, "this build has no CUDA back end: build with -DHADAL_CUDA=ON");
}

void kernel_device_report_make(kernel_device_report *report) {
    snprintf(report->text, sizeof(report->text), "cuda=not_built");
}
