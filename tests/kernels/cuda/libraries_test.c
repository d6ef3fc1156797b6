/* Libraries that are opened at run time: absent ones, other versions, and where they are searched. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cuda/libraries.h"
#include "kernels/device.h"

static void an_absent_library_is_not_found_and_named(void **state) {
    hd_error error = {{0}};
    library *l = NULL;
    assert_int_equal(library_open("libhadal-is-not-here.so.7", NULL, 0, &l, &error), HD_NOT_FOUND);
    assert_null(l);
    assert_non_null(strstr(error.text, "libhadal-is-not-here.so.7"));
    assert_non_null(strstr(error.text, "HADAL_CUDA_LIBRARIES"));
}

static void symbols_are_found(void **state) {
    double (*cosine)(double x) = NULL;
    const library_symbol symbols[] = {{"cos", &cosine}};
    hd_error error;
    library *l;
    assert_int_equal(library_open("libm.so.6", symbols, 1, &l, &error), HD_OK);
    assert_true(cosine(0.0) == 1.0);
    assert_non_null(strstr(library_path(l), "libm"));
    library_close(l);
}

static void a_missing_symbol_is_named(void **state) {
    void (*function)(void) = NULL;
    const library_symbol symbols[] = {{"cos", &function}, {"hadal_is_not_in_there", &function}};
    hd_error error = {{0}};
    library *l = NULL;
    assert_int_equal(library_open("libm.so.6", symbols, 2, &l, &error), HD_UNSUPPORTED);
    assert_null(l);
    assert_non_null(strstr(error.text, "hadal_is_not_in_there"));
}

/* Bad folders are passed over; the first folder that has the library is taken. */
static void named_folders_come_first(void **state) {
    hd_error error;
    library *l;
    assert_int_equal(library_open("libm.so.6", NULL, 0, &l, &error), HD_OK);
    char folders[2048], path[1024], found[1024];
    assert_non_null(realpath(library_path(l), path));
    library_close(l);
    *strrchr(path, '/') = '\0';
    snprintf(folders, sizeof(folders), "::/nowhere:%s:", path);
    setenv("HADAL_CUDA_LIBRARIES", folders, 1);
    assert_int_equal(library_open("libm.so.6", NULL, 0, &l, &error), HD_OK);
    assert_non_null(realpath(library_path(l), found));
    assert_memory_equal(found, path, strlen(path));
    library_close(l);
    assert_int_equal(library_open("libhadal-is-not-here.so.7", NULL, 0, &l, &error), HD_NOT_FOUND);
    unsetenv("HADAL_CUDA_LIBRARIES");
}

static void without_a_device_the_reason_is_given(void **state) {
    hd_error error = {{0}};
    kernel_device *device = NULL;
    kernel_device_report report = {{0}};
    kernel_device_report_make(&report);
    assert_memory_equal(report.text, "cuda=", 5);
    hd_status status = kernel_device_cuda_open(0, &device, &error);
    if (status == HD_OK) {
        device->ops->close(device);
        status = kernel_device_cuda_open(1000, &device, &error);
    }
    assert_int_equal(status, HD_UNSUPPORTED);
    assert_true(strlen(error.text) > 10);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_absent_library_is_not_found_and_named),
        cmocka_unit_test(symbols_are_found),
        cmocka_unit_test(a_missing_symbol_is_named),
        cmocka_unit_test(named_folders_come_first),
        cmocka_unit_test(without_a_device_the_reason_is_given),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
