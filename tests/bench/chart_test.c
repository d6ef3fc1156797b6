/* chart_test.c - a chart's bars, and what it says about a file that cannot be written. */
#include "bench/chart.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const categories[] = {"one", "two"};
static const char *const series[] = {"a < b & c", "second"};

static size_t count_of(const char *text, const char *what) {
    size_t count = 0;
    for (const char *at = text; (at = strstr(at, what)) != NULL; at += strlen(what)) count++;
    return count;
}

static void every_value_has_a_bar_of_its_height(void **state) {
    const double values[] = {100, 50, NAN, 0};
    chart c = {.title = "title",
               .unit = "%",
               .categories = categories,
               .category_count = 2,
               .series = series,
               .series_count = 2,
               .values = values,
               .most = 100};
    char path[] = "/tmp/chart-XXXXXX", text[8192] = "";
    int file = mkstemp(path);
    assert_true(file >= 0);
    assert_int_equal(chart_write(&c, path, NULL), HD_OK);
    assert_true(read(file, text, sizeof(text) - 1) > 0);
    close(file);
    unlink(path);
    assert_int_equal(count_of(text, "<title>"), 3); /* not what is missing */
    assert_non_null(strstr(text, "height=\"240.0\" fill=\"#4269d0\"><title>100%</title>"));
    assert_non_null(strstr(text, "height=\"120.0\" fill=\"#efb118\"><title>50%</title>"));
    assert_non_null(strstr(text, "a &lt; b &amp; c"));
    assert_non_null(strstr(text, "</svg>\n"));
}

static void a_file_that_cannot_be_written_is_named(void **state) {
    chart c = {.title = "", .unit = "", .most = 1};
    hd_error error;
    assert_int_equal(chart_write(&c, "/nowhere/chart.svg", &error), HD_IO);
    assert_non_null(strstr(error.text, "/nowhere/chart.svg"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_value_has_a_bar_of_its_height),
        cmocka_unit_test(a_file_that_cannot_be_written_is_named),
    };
    return cmocka_run_group_tests_name("chart", tests, NULL, NULL);
}
