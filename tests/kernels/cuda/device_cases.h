/* device_cases.h - what the tests of device kernels share: the device under test, and its memory.
 *
 * Every test runs on the emulated device, in two orders of what hardware leaves open; and on a CUDA device where this
 * build and this machine have one, else its group says that it was left out. HADAL_DEVICE_TESTS=cuda asks for the CUDA
 * device alone and fails without one; cuda-quick likewise, with small sizes. */
#ifndef TESTS_KERNELS_CUDA_DEVICE_CASES_H
#define TESTS_KERNELS_CUDA_DEVICE_CASES_H

#include "kernels/device.h"
#include "tests/kernels/cases.h"

extern kernel_device *device; /* the one under test */
extern kernel_queue *queue;
extern bool is_quick; /* sizes stay small: emulated, or under a tool that looks at every access */

int device_cases_run(const struct CMUnitTest *tests, size_t test_count);

/* Device memory, which lives until device_release: NaN, or a copy of host memory. */
void *device_take(size_t bytes);
void *device_put(const void *host, size_t bytes);
void device_set(void *to, const void *host, size_t bytes);
/* A copy on the host, after everything in the queue; of cases_take. */
void *device_get(const void *from, size_t bytes);
int device_teardown(void **state); /* releases the test's device and host memory */

void assert_ok(hd_status status);

#endif
