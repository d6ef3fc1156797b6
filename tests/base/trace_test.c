/* trace_test.c - headers that name a trace, and headers that do not. */
#include "base/trace.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#define TRACE "4bf92f3577b34da6a3ce929d0e0e4736"
#define PARENT "00f067aa0ba902b7"

static void a_header_names_its_trace(void **state) {
    static const char *const headers[] = {"00-" TRACE "-" PARENT "-01", "00-" TRACE "-" PARENT "-00",
                                          "cc-" TRACE "-" PARENT "-01-what-comes-later"};
    for (size_t i = 0; i < sizeof(headers) / sizeof(headers[0]); i++) {
        char trace[HD_TRACE_BYTES];
        assert_true(hd_trace_parse(headers[i], trace));
        assert_string_equal(trace, TRACE);
    }
}

static void what_is_no_header_names_none(void **state) {
    static const char *const headers[] = {
        NULL,
        "",
        "00",
        "00-" TRACE "-" PARENT,
        "00-" TRACE "-" PARENT "-1",
        "00-" TRACE "-" PARENT "-01-more",
        "ff-" TRACE "-" PARENT "-01",
        "0-" TRACE "-" PARENT "-011",
        "00-00000000000000000000000000000000-" PARENT "-01",
        "00-" TRACE "-0000000000000000-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-" PARENT "-01",
        "00-4bf92f3577b34da6a3ce929d0e0e473\"-" PARENT "-01",
        "00_" TRACE "_" PARENT "_01",
        "cc-" TRACE "-" PARENT "-01.later",
    };
    for (size_t i = 0; i < sizeof(headers) / sizeof(headers[0]); i++) {
        char trace[HD_TRACE_BYTES] = "before";
        assert_false(hd_trace_parse(headers[i], trace));
        assert_string_equal(trace, "");
    }
}

static void a_name_from_a_wire_is_one_or_none(void **state) {
    char trace[HD_TRACE_BYTES];
    hd_trace_take(TRACE, HD_TRACE_DIGITS, trace);
    assert_string_equal(trace, TRACE);
    hd_trace_take(TRACE, HD_TRACE_DIGITS - 1, trace);
    assert_string_equal(trace, "");
    hd_trace_take(TRACE "0", HD_TRACE_DIGITS + 1, trace);
    assert_string_equal(trace, "");
    hd_trace_take("event=forged level=error\n0000000", HD_TRACE_DIGITS, trace);
    assert_string_equal(trace, "");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_header_names_its_trace),
        cmocka_unit_test(what_is_no_header_names_none),
        cmocka_unit_test(a_name_from_a_wire_is_one_or_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
