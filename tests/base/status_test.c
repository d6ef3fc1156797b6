#include "base/status.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

static void every_status_has_its_own_name_and_text(void **state) {
    for (int a = 0; a < HD_STATUS_COUNT; a++) {
        assert_int_equal(strncmp(hd_status_name((hd_status)a), "HD_", 3), 0);
        assert_true(strlen(hd_status_text((hd_status)a)) > 0);
        for (int b = 0; b < a; b++) {
            assert_string_not_equal(hd_status_name((hd_status)a), hd_status_name((hd_status)b));
            assert_string_not_equal(hd_status_text((hd_status)a), hd_status_text((hd_status)b));
        }
    }
    assert_string_equal(hd_status_name(HD_FULL), "HD_FULL");
    assert_string_equal(hd_status_text(HD_FULL), "at capacity");
}

static void a_number_outside_the_list_has_a_name_too(void **state) {
    assert_string_equal(hd_status_name((hd_status)1000), "HD_UNKNOWN");
    assert_string_equal(hd_status_text((hd_status)-1), "unknown status");
}

static void error_set_writes_the_sentence_and_returns_the_status(void **state) {
    hd_error error;
    assert_int_equal(hd_error_set(&error, HD_INVALID, "%s: bad field %d", "config.json", 7), HD_INVALID);
    assert_string_equal(error.text, "config.json: bad field 7");
    assert_int_equal(hd_error_set(NULL, HD_CORRUPT, "nobody reads this"), HD_CORRUPT);
}

static void a_long_sentence_is_cut_and_terminated(void **state) {
    char text[2000];
    struct {
        hd_error error;
        char guard[8];
    } memory;
    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    memset(&memory, 'g', sizeof(memory));
    hd_error_set(&memory.error, HD_IO, "%s", text);
    assert_int_equal(strlen(memory.error.text), sizeof(memory.error.text) - 1);
    assert_memory_equal(memory.guard, "gggggggg", 8);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_status_has_its_own_name_and_text),
        cmocka_unit_test(a_number_outside_the_list_has_a_name_too),
        cmocka_unit_test(error_set_writes_the_sentence_and_returns_the_status),
        cmocka_unit_test(a_long_sentence_is_cut_and_terminated),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
