/* selection_test.c - selections by name and options, and what each chooses. */
#include "attention-node/selection.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

static selection parsed(const char *text) {
    selection chosen;
    assert_int_equal(selection_parse(text, &chosen, NULL), HD_OK);
    return chosen;
}

static selection_answer asked(const char *text, uint32_t layer, uint64_t position) {
    selection chosen = parsed(text);
    selection_answer answer;
    chosen.ops->choose(&chosen, &(selection_question){.layer = layer, .position = position, .granule = 1024}, &answer);
    return answer;
}

static void full_is_the_default(void **state) {
    assert_string_equal(parsed(NULL).ops->name, "full");
    assert_string_equal(parsed("full").ops->name, "full");
}

static void unknown_names_are_refused_with_the_known_ones(void **state) {
    const char *unknown[] = {"nearest", "", "ful", "fullest", ",full", "full "};
    for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++) {
        hd_error error;
        selection chosen = {.ops = NULL};
        assert_int_equal(selection_parse(unknown[i], &chosen, &error), HD_INVALID);
        assert_non_null(strstr(error.text, "known: auto, full, window, retrieval"));
        assert_null(chosen.ops);
    }
    hd_error error;
    assert_int_equal(selection_parse("nearest,k=3", &(selection){0}, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "unknown selection 'nearest'"));
}

static void bad_options_are_refused_by_name(void **state) {
    const struct {
        const char *text, *message;
    } cases[] = {
        {"full,k=3", "'full' takes no options, not 'k=3'"},
        {"window,k=3", "'window' has no option 'k'; it has sinks, recent, full_layers"},
        {"window,recent", "'recent' is not an option like key=value"},
        {"window,", "'' is not an option like key=value"},
        {"window,recent=1,", "recent is a number from 128"},
        {"window,recent=-1", "recent is a number from 128 to 16777216, not '-1'"},
        {"window,recent=99999999999999999999", "recent is a number"},
        {"window,sinks=4x", "sinks is a number from 0 to 65536, not '4x'"},
        {"window,sinks=", "sinks is a number"},
        {"window,recent=4096,,sinks=3", "'' is not an option"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        hd_error error;
        assert_int_equal(selection_parse(cases[i].text, &(selection){0}, &error), HD_INVALID);
        if (strstr(error.text, cases[i].message) == NULL) print_error("%s: %s\n", cases[i].text, error.text);
        assert_non_null(strstr(error.text, cases[i].message));
    }
}

static void equal_options_make_equal_selections(void **state) {
    selection a = parsed("window"), b = parsed("window,recent=4096,sinks=128"), c = parsed("window,sinks=127");
    selection full = parsed("full");
    assert_true(selection_is_equal(&a, &b));
    assert_false(selection_is_equal(&a, &c));
    assert_false(selection_is_equal(&a, &full));
    assert_true(selection_is_full(&full));
    assert_false(selection_is_full(&a));
}

static void full_chooses_everything(void **state) {
    assert_true(asked("full", 0, 0).is_everything);
    assert_true(asked("full", 7, 1000000).is_everything);
}

static void window_leaves_out_what_is_neither_first_nor_new(void **state) {
    const char *text = "window,sinks=100,recent=1000";
    assert_true(asked(text, 0, 0).is_everything);
    assert_true(asked(text, 0, 1099).is_everything); /* 1,100 tokens, the query's own among them */
    selection_answer answer = asked(text, 0, 1100);
    assert_false(answer.is_everything);
    assert_false(answer.is_searched);
    assert_int_equal(answer.sinks_end, 100);
    assert_int_equal(answer.recent_first, 101);
    assert_int_equal(asked(text, 3, 1 << 20).recent_first, (1 << 20) - 999);
}

static void leading_layers_may_stay_full(void **state) {
    const char *text = "window,full_layers=2";
    assert_true(asked(text, 0, 100000).is_everything);
    assert_true(asked(text, 1, 100000).is_everything);
    assert_false(asked(text, 2, 100000).is_everything);
}

static void retrieval_searches_what_has_settled(void **state) {
    const char *text = "retrieval,index=exact,tokens=64";
    assert_true(asked(text, 0, 2047).is_everything); /* the first granule settles 1,024 tokens behind its end */
    selection_answer answer = asked(text, 0, 2048);
    assert_false(answer.is_everything);
    assert_true(answer.is_searched);
    assert_int_equal(answer.sinks_end, SELECTION_INDEX_FIRST);
    assert_int_equal(answer.recent_first, 1024);
    assert_int_equal(asked(text, 0, 3071).recent_first, 1024);
    assert_int_equal(asked(text, 0, 3072).recent_first, 2048);
    assert_true(asked("retrieval,full_layers=1", 0, 100000).is_everything);
    selection chosen = parsed(text);
    assert_int_equal(chosen.tokens, 64);
    assert_true(chosen.has_estimate);
    assert_string_equal(chosen.index, "exact");
    assert_false(parsed("retrieval,estimate=0").has_estimate);
    hd_error error;
    assert_int_equal(selection_parse("retrieval,index=guess", &chosen, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "index is one of exact"));
    assert_int_equal(selection_parse("retrieval,tokens=0", &chosen, &error), HD_INVALID);
}

static void auto_is_decided_by_the_length_of_the_request(void **state) {
    char out[SELECTION_TEXT_BYTES];
    const struct {
        const char *text;
        uint64_t tokens;
        const char *chosen;
    } cases[] = {{"auto", 1000, "full"},
                 {"auto", 1001, "retrieval"},
                 {"auto,tokens=99", 1000, "full"},
                 {"auto,tokens=99,index=exact", 1001, "retrieval,tokens=99,index=exact"},
                 {"window,recent=500", 5000, "window,recent=500"},
                 {"automatic", 5, "automatic"}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(selection_resolve(cases[i].text, cases[i].tokens, 1000, out, NULL), HD_OK);
        assert_string_equal(out, cases[i].chosen);
    }
    assert_int_equal(selection_parse("auto", &(selection){0}, NULL), HD_INVALID); /* nobody has decided */
    char text[SELECTION_TEXT_BYTES + 1];
    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    hd_error error;
    assert_int_equal(selection_resolve(text, 1, 1, out, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "at most"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(full_is_the_default),
        cmocka_unit_test(unknown_names_are_refused_with_the_known_ones),
        cmocka_unit_test(bad_options_are_refused_by_name),
        cmocka_unit_test(equal_options_make_equal_selections),
        cmocka_unit_test(full_chooses_everything),
        cmocka_unit_test(window_leaves_out_what_is_neither_first_nor_new),
        cmocka_unit_test(leading_layers_may_stay_full),
        cmocka_unit_test(retrieval_searches_what_has_settled),
        cmocka_unit_test(auto_is_decided_by_the_length_of_the_request),
    };
    return cmocka_run_group_tests_name("selection", tests, NULL, NULL);
}
