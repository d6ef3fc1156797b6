#include "coordinator/prefill_estimate.h"

#include "tests/coordinator/cmocka_all.h"

#include <math.h>

#define PER_TOKEN_S 1e-3
#define PER_TOKEN_PAIR_S 2e-8

static double time_at(double position) {
    return PER_TOKEN_S * position + PER_TOKEN_PAIR_S * position * position / 2;
}

static void run_to(prefill_estimate *estimate, uint64_t from, uint64_t to, uint64_t chunk) {
    for (uint64_t position = from; position <= to; position += chunk) {
        prefill_estimate_add(estimate, position, (uint64_t)(1e9 * (time_at((double)position) - time_at((double)from))));
    }
}

static void nothing_is_known_before_the_first_chunk(void **state) {
    prefill_estimate estimate = {0};
    assert_true(prefill_estimate_remaining_s(&estimate, 1000) < 0);
    prefill_estimate_add(&estimate, 0, 0);
    assert_true(prefill_estimate_remaining_s(&estimate, 1000) < 0);
}

static void attention_that_grows_with_depth_is_foreseen(void **state) {
    prefill_estimate estimate = {0};
    run_to(&estimate, 0, 65536, 1024);
    double expected = time_at(1000000) - time_at(65536);
    assert_true(fabs(prefill_estimate_remaining_s(&estimate, 1000000) - expected) < 0.02 * expected);
}

static void a_cached_prefix_costs_nothing(void **state) {
    prefill_estimate estimate = {0};
    run_to(&estimate, 500000, 516384, 1024);
    double expected = time_at(1000000) - time_at(516384);
    assert_true(fabs(prefill_estimate_remaining_s(&estimate, 1000000) - expected) < 0.1 * expected);
}

static void one_chunk_gives_a_straight_line(void **state) {
    prefill_estimate estimate = {0};
    prefill_estimate_add(&estimate, 0, 0);
    prefill_estimate_add(&estimate, 100, 2000000000);
    assert_true(fabs(prefill_estimate_remaining_s(&estimate, 300) - 4.0) < 1e-6);
}

static void noise_never_gives_a_negative_time(void **state) {
    prefill_estimate estimate = {0};
    const double times[] = {0, 3, 3.1, 6.4, 6.5, 9.9};
    for (int i = 0; i < 6; i++) {
        prefill_estimate_add(&estimate, (uint64_t)i * 512, (uint64_t)(times[i] * 1e9));
        if (i > 0) assert_true(prefill_estimate_remaining_s(&estimate, 1000000) >= 0);
    }
    assert_true(prefill_estimate_remaining_s(&estimate, 5 * 512) == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_known_before_the_first_chunk),
        cmocka_unit_test(attention_that_grows_with_depth_is_foreseen),
        cmocka_unit_test(a_cached_prefix_costs_nothing),
        cmocka_unit_test(one_chunk_gives_a_straight_line),
        cmocka_unit_test(noise_never_gives_a_negative_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
