/* The benchmark of device kernels on the emulated device: what it measures, and that it measures all of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "bench/device_bench.h"
#include "bench/report.h"

/* The rows of a run over kernels with this text in their names. */
static json_t *rows_of(const char *only, uint64_t context_max) {
    kernel_device *device;
    hd_error error = {{0}};
    char path[] = "/tmp/device_bench_test.XXXXXX";
    int file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(kernel_device_emulated_open(&device), HD_OK);
    device_bench_config config = {
        .device = device, .only = only, .context_max = context_max, .scale = 64, .json_path = path};
    assert_int_equal(device_bench_run(&config, &error), HD_OK);
    device->ops->close(device);
    json_t *report = json_load_file(path, 0, NULL);
    close(file);
    unlink(path);
    assert_non_null(report);
    assert_string_equal(json_string_value(json_object_get(report, "device")), "emulated");
    json_t *rows = json_incref(json_object_get(report, "rows"));
    json_decref(report);
    return rows;
}

static void assert_rows(const char *only, uint64_t context_max, size_t count, bool has_limit) {
    json_t *rows = rows_of(only, context_max), *row;
    size_t i;
    assert_int_equal(json_array_size(rows), count);
    json_array_foreach(rows, i, row) {
        assert_true(json_number_value(json_object_get(row, "seconds")) > 0);
        assert_true(json_number_value(json_object_get(row, "bytes_per_second")) > 0);
        assert_true((json_number_value(json_object_get(row, "limit_per_second")) > 0) == has_limit);
    }
    json_decref(rows);
}

static void contexts_beyond_the_bound_are_left_out(void **state) {
    assert_rows("decode attention", 2048, 1, true);
    assert_rows("decode attention", 2047, 0, true);
}

static void rows_and_products_are_measured(void **state) {
    assert_rows("rmsnorm, 1 rows", 0, 1, false);
    assert_rows("sample the largest", 0, 1, false);
    assert_rows("product down, 1 x", 0, 1, true);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(contexts_beyond_the_bound_are_left_out),
        cmocka_unit_test(rows_and_products_are_measured),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
