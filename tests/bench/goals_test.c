/* goals_test.c - the text of --goodput. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "bench/serve.h"

static void goals_come_in_any_order(void **state) {
    bench_goals goals;
    hd_error error;
    assert_int_equal(bench_goals_parse("tpot:100,ttft:2000.5", &goals, &error), HD_OK);
    assert_true(goals.ttft_ms == 2000.5 && goals.tpot_ms == 100 && goals.e2el_ms == 0);
    assert_int_equal(bench_goals_parse("", &goals, &error), HD_OK);
    assert_true(goals.ttft_ms == 0 && goals.tpot_ms == 0 && goals.e2el_ms == 0);
}

static void what_is_no_goal_is_named(void **state) {
    static const char *const bad[] = {"itl:5",  "ttft",          "ttft:",         "ttft:x",   "ttft:5ms",
                                      "ttft:0", "ttft:-1",       "ttft:5,ttft:6", "ttft:nan", "averyveryverylongname:5",
                                      ",",      "ttft:5,,tpot:6"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        bench_goals goals = {1, 2, 3};
        hd_error error = {{0}};
        assert_int_equal(bench_goals_parse(bad[i], &goals, &error), HD_INVALID);
        assert_non_null(strstr(error.text, "is no goal; give ttft:MS"));
        assert_true(goals.ttft_ms == 1 && goals.tpot_ms == 2 && goals.e2el_ms == 3);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(goals_come_in_any_order),
                                       cmocka_unit_test(what_is_no_goal_is_named)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
