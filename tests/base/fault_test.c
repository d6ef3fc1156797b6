#include "base/fault.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void disarmed_nothing_fails(void **state) {
    for (int kind = 0; kind < FAULT_KIND_COUNT; kind++) assert_false(fault_strikes((fault_kind)kind));
}

static void only_the_armed_question_of_the_armed_kind_fails(void **state) {
    for (unsigned nth = 0; nth < 5; nth++) {
        fault_arm(FAULT_READ, nth);
        for (unsigned i = 0; i < 10; i++) {
            assert_false(fault_strikes(FAULT_WRITE));
            assert_false(fault_strikes(FAULT_ALLOCATION));
            assert_int_equal(fault_strikes(FAULT_READ), i == nth);
        }
        fault_disarm();
    }
}

static void disarming_ends_it(void **state) {
    fault_arm(FAULT_WRITE, 0);
    fault_disarm();
    fault_disarm();
    assert_false(fault_strikes(FAULT_WRITE));
}

static void what_is_held_fails_until_it_is_disarmed(void **state) {
    fault_hold(FAULT_VERIFY);
    for (int i = 0; i < 5; i++) assert_true(fault_strikes(FAULT_VERIFY));
    assert_false(fault_strikes(FAULT_READ));
    fault_disarm();
    assert_false(fault_strikes(FAULT_VERIFY));
    fault_arm(FAULT_VERIFY, 1); /* holding is over */
    assert_false(fault_strikes(FAULT_VERIFY));
    assert_true(fault_strikes(FAULT_VERIFY));
    assert_false(fault_strikes(FAULT_VERIFY));
    fault_disarm();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(disarmed_nothing_fails),
        cmocka_unit_test(only_the_armed_question_of_the_armed_kind_fails),
        cmocka_unit_test(disarming_ends_it),
        cmocka_unit_test(what_is_held_fails_until_it_is_disarmed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
