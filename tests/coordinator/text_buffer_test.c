#include "coordinator/text_buffer.h"

#include "tests/coordinator/cmocka_all.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"

static void assert_json(const char *bytes, size_t count, const char *expected) {
    text_buffer buffer;
    text_buffer_init(&buffer);
    text_buffer_json(&buffer, bytes, count);
    assert_string_equal(buffer.bytes, expected);
    text_buffer_fini(&buffer);
}

static void json_escapes_what_json_must_not_hold(void **state) {
    assert_json("a\"b\\c\n\r\t\x01\x7f", 10, "\"a\\\"b\\\\c\\n\\r\\t\\u0001\\u007f\"");
    assert_json("zero\0in", 7, "\"zero\\u0000in\"");
    assert_json("", 0, "\"\"");
}

static void json_keeps_characters_and_replaces_bytes_that_are_none(void **state) {
    assert_json("\xc3\xa9\xf0\x9f\x98\x80", 6, "\"\xc3\xa9\xf0\x9f\x98\x80\"");
    assert_json("a\xff"
                "b\xc3",
                4,
                "\"a\xef\xbf\xbd"
                "b\xef\xbf\xbd\"");
    assert_json("\xed\xa0\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""); /* a surrogate */
    assert_json("\xc0\xaf\xf5\x80\x80\x80", 6,
                "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"");
}

static void log_probabilities_are_always_json_numbers(void **state) {
    text_buffer buffer;
    text_buffer_init(&buffer);
    text_buffer_json_logprob(&buffer, -INFINITY);
    text_buffer_text(&buffer, " ");
    text_buffer_json_logprob(&buffer, NAN);
    text_buffer_text(&buffer, " ");
    text_buffer_json_logprob(&buffer, -0.125f);
    text_buffer_text(&buffer, " ");
    text_buffer_json_logprob(&buffer, 0.1f);
    assert_string_equal(buffer.bytes, "-9999.0 -9999.0 -0.125 0.100000001");
    assert_true(strtof("0.100000001", NULL) == 0.1f);
    text_buffer_fini(&buffer);
}

static void a_cut_never_splits_a_character(void **state) {
    const char *text = "ab\xc3\xa9\xe2\x82\xac";
    assert_int_equal(utf8_fit(text, 7, 7), 7);
    assert_int_equal(utf8_fit(text, 7, 6), 4);
    assert_int_equal(utf8_fit(text, 7, 3), 2);
    assert_int_equal(utf8_count(text, 7), 4);
}

static void dropping_keeps_the_rest(void **state) {
    text_buffer buffer;
    text_buffer_init(&buffer);
    text_buffer_drop(&buffer, 0);
    text_buffer_text(&buffer, "hello world");
    text_buffer_drop(&buffer, 6);
    assert_string_equal(buffer.bytes, "world");
    text_buffer_drop(&buffer, 5);
    assert_string_equal(buffer.bytes, "");
    text_buffer_fini(&buffer);
}

static void running_out_of_memory_sticks(void **state) {
    text_buffer buffer;
    text_buffer_init(&buffer);
    text_buffer_text(&buffer, "before");
    fault_arm(FAULT_ALLOCATION, 0);
    for (int i = 0; i < 100; i++) text_buffer_text(&buffer, "0123456789");
    fault_disarm();
    assert_true(buffer.is_failed);
    text_buffer_text(&buffer, "after");
    size_t bytes;
    assert_null(text_buffer_take(&buffer, &bytes));
    text_buffer_fini(&buffer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_escapes_what_json_must_not_hold),
        cmocka_unit_test(json_keeps_characters_and_replaces_bytes_that_are_none),
        cmocka_unit_test(log_probabilities_are_always_json_numbers),
        cmocka_unit_test(a_cut_never_splits_a_character),
        cmocka_unit_test(dropping_keeps_the_rest),
        cmocka_unit_test(running_out_of_memory_sticks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
