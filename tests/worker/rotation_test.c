/* rotation_test.c - steps are cut where that has measured faster, and as asked where it was asked for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "worker/rotation.h"

/* A thousand steps of so many rows, of which those cut into n take ns[n]; how many were cut into each n. */
static void run(rotation *r, uint32_t rows, const double *ns, uint32_t *counts) {
    for (uint32_t i = 0; i < 1000; i++) {
        uint32_t n = rotation_choose(r, rows);
        assert_in_range(n, 1, rows);
        counts[n]++;
        rotation_learn(r, rows, n, ns[n]);
    }
}

static void the_faster_way_is_taken_and_the_other_tried_now_and_then(void **state) {
    rotation r;
    rotation_init(&r, 2, false);
    uint32_t cut[3] = {0}, whole[3] = {0};
    run(&r, 16, (double[3]){0, 100, 70}, cut);
    assert_in_range(cut[1], 10, 30);
    run(&r, 2, (double[3]){0, 100, 180}, whole); /* other rows: measured for themselves */
    assert_in_range(whole[2], 10, 30);
}

static void a_change_of_what_is_faster_is_followed(void **state) {
    rotation r;
    rotation_init(&r, 2, false);
    uint32_t before[3] = {0}, after[3] = {0};
    run(&r, 8, (double[3]){0, 100, 200}, before);
    run(&r, 8, (double[3]){0, 300, 200}, after);
    assert_true(before[1] > 900);
    assert_true(after[2] > 800);
}

static void a_gain_too_small_to_be_one_cuts_nothing(void **state) {
    rotation r;
    rotation_init(&r, 2, false);
    uint32_t counts[3] = {0};
    run(&r, 8, (double[3]){0, 100, 99.5}, counts);
    assert_true(counts[1] > 900);
}

static void a_fixed_number_is_kept_as_far_as_rows_go(void **state) {
    rotation r;
    rotation_init(&r, 3, true);
    for (uint32_t i = 0; i < 200; i++) assert_int_equal(rotation_choose(&r, 8), 3);
    assert_int_equal(rotation_choose(&r, 2), 2);
    assert_int_equal(rotation_choose(&r, 1), 1);
    rotation_init(&r, 1, false);
    for (uint32_t i = 0; i < 200; i++) assert_int_equal(rotation_choose(&r, 8), 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_faster_way_is_taken_and_the_other_tried_now_and_then),
        cmocka_unit_test(a_change_of_what_is_faster_is_followed),
        cmocka_unit_test(a_gain_too_small_to_be_one_cuts_nothing),
        cmocka_unit_test(a_fixed_number_is_kept_as_far_as_rows_go),
    };
    return cmocka_run_group_tests_name("rotation", tests, NULL, NULL);
}
