#include "base/clock.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <time.h>

static void monotonic_time_never_goes_back(void **state) {
    uint64_t before = hd_now_ns();
    for (int i = 0; i < 100000; i++) {
        uint64_t now = hd_clock_system.monotonic_ns(hd_clock_system.context);
        assert_true(now >= before);
        before = now;
    }
    assert_true(hd_now_ns() >= before);
}

static void wall_time_counts_from_the_epoch(void **state) {
    uint64_t low = (uint64_t)time(NULL);
    uint64_t wall = hd_clock_system.wall_ns(hd_clock_system.context) / 1000000000u;
    uint64_t high = (uint64_t)time(NULL);
    assert_true(wall + 1 >= low && wall <= high + 1); /* time() may be a tick of the kernel behind */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(monotonic_time_never_goes_back),
        cmocka_unit_test(wall_time_counts_from_the_epoch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
