/* selection_test.c - selections by name, and what full chooses. */
#include "attention-node/selection.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

static void full_is_the_default(void **state) {
    selection chosen;
    assert_int_equal(selection_parse(NULL, &chosen, NULL), HD_OK);
    assert_string_equal(chosen.ops->name, "full");
    assert_int_equal(selection_parse("full", &chosen, NULL), HD_OK);
    assert_string_equal(chosen.ops->name, "full");
}

static void unknown_names_are_refused_with_the_known_ones(void **state) {
    const char *const unknown[] = {"", "ful", "fuller", "window", "nearest,k=3"};
    for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++) {
        selection chosen = {.ops = NULL};
        hd_error error;
        assert_int_equal(selection_parse(unknown[i], &chosen, &error), HD_INVALID);
        assert_null(chosen.ops);
        assert_non_null(strstr(error.text, "known: full"));
    }
    hd_error error;
    assert_int_equal(selection_parse("nearest,k=3", &(selection){0}, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "unknown selection 'nearest'"));
}

static void full_takes_no_options(void **state) {
    hd_error error;
    assert_int_equal(selection_parse("full,k=3", &(selection){0}, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "'k=3'"));
}

static void full_chooses_everything(void **state) {
    selection full;
    assert_int_equal(selection_parse("full", &full, NULL), HD_OK);
    kv_run runs[3] = {{.position = 0}};
    selection_answer answer;
    full.ops->choose(&full, &(selection_question){.runs = runs, .run_count = 3}, &answer);
    assert_ptr_equal(answer.runs, runs);
    assert_int_equal(answer.run_count, 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(full_is_the_default),
        cmocka_unit_test(unknown_names_are_refused_with_the_known_ones),
        cmocka_unit_test(full_takes_no_options),
        cmocka_unit_test(full_chooses_everything),
    };
    return cmocka_run_group_tests_name("selection", tests, NULL, NULL);
}
