#include "tests/kernels/cuda/device_cases.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/emulator.h"

kernel_device *device;
kernel_queue *queue;
bool is_quick;

#define TAKEN_MAX 4096
static void *taken[TAKEN_MAX];
static size_t taken_count;

void assert_ok(hd_status status) {
    if (status != HD_OK) fail_msg("%s", hd_status_name(status));
}

void *device_take(size_t bytes) {
    void *memory;
    assert_true(taken_count < TAKEN_MAX);
    assert_ok(device->ops->take(device, bytes, KERNEL_DEVICE_MEMORY, &memory));
    return taken[taken_count++] = memory;
}

/* Through pinned memory, which lives as long as the copy. */
void device_set(void *to, const void *host, size_t bytes) {
    void *pinned;
    assert_ok(device->ops->take(device, bytes, KERNEL_PINNED_MEMORY, &pinned));
    memcpy(pinned, host, bytes);
    assert_ok(device->ops->copy(queue, to, pinned, bytes));
    assert_ok(device->ops->wait(queue));
    device->ops->give(device, pinned, KERNEL_PINNED_MEMORY);
}

void *device_put(const void *host, size_t bytes) {
    void *memory = device_take(bytes);
    device_set(memory, host, bytes);
    return memory;
}

void *device_get(const void *from, size_t bytes) {
    void *pinned, *host = cases_take(bytes);
    assert_ok(device->ops->take(device, bytes, KERNEL_PINNED_MEMORY, &pinned));
    assert_ok(device->ops->copy(queue, pinned, from, bytes));
    assert_ok(device->ops->wait(queue));
    memcpy(host, pinned, bytes);
    device->ops->give(device, pinned, KERNEL_PINNED_MEMORY);
    return host;
}

int device_teardown(void **state) {
    device->ops->wait(queue);
    while (taken_count > 0) device->ops->give(device, taken[--taken_count], KERNEL_DEVICE_MEMORY);
    cases_release();
    return 0;
}

static int run_on(const char *name, const struct CMUnitTest *tests, size_t test_count) {
    if (device->ops->queue_open(device, &queue) != HD_OK) return 1;
    int failures = _cmocka_run_group_tests(name, tests, test_count, NULL, NULL);
    device->ops->queue_close(queue);
    device->ops->close(device);
    return failures;
}

static int run_emulated(const struct CMUnitTest *tests, size_t test_count) {
    static const struct {
        const char *name;
        emulator_order order;
    } orders[] = {{"emulated, late copies", {false, false}}, {"emulated, early copies, backwards", {true, true}}};
    int failures = 0;
    is_quick = true;
    for (size_t i = 0; i < 2; i++) {
        emulator_set_order(orders[i].order);
        if (kernel_device_emulated_open(&device) != HD_OK) return 1;
        failures += run_on(orders[i].name, tests, test_count);
    }
    return failures;
}

int device_cases_run(const struct CMUnitTest *tests, size_t test_count) {
    const char *wanted = getenv("HADAL_DEVICE_TESTS");
    int failures = wanted == NULL ? run_emulated(tests, test_count) : 0;
    hd_error error;
    if (kernel_device_cuda_open(0, &device, &error) != HD_OK) {
        print_message("cuda: left out: %s\n", error.text);
        return wanted == NULL ? failures : 1;
    }
    is_quick = wanted != NULL && strcmp(wanted, "cuda-quick") == 0;
    return failures + run_on(device->facts.name, tests, test_count);
}
