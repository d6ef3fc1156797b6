/* statistics_test.c - what is said about a sample. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bench/random.h"
#include "bench/statistics.h"

static sample sample_of(const double *values, size_t count) {
    sample s;
    sample_init(&s);
    for (size_t i = 0; i < count; i++) assert_int_equal(sample_add(&s, values[i]), HD_OK);
    return s;
}

static void an_empty_sample_sums_up_to_zeros(void **state) {
    sample s;
    sample_init(&s);
    sample_summary summary = sample_summarise(&s);
    assert_int_equal(summary.count, 0);
    assert_true(summary.mean == 0 && summary.median == 0 && summary.std == 0 && summary.p99 == 0);
    sample_fini(&s);
}

static void one_value_is_every_percentile(void **state) {
    sample s = sample_of((double[]){7}, 1);
    sample_summary summary = sample_summarise(&s);
    assert_true(summary.mean == 7 && summary.median == 7 && summary.p90 == 7 && summary.p99 == 7 && summary.std == 0);
    sample_fini(&s);
}

static void percentiles_lie_between_the_two_nearest_values(void **state) {
    sample s = sample_of((double[]){40, 10, 30, 20}, 4);
    sample_summary summary = sample_summarise(&s);
    assert_float_equal(summary.median, 25, 1e-12);
    assert_float_equal(summary.p90, 37, 1e-12); /* place 2.7 of 0 .. 3 */
    assert_float_equal(summary.mean, 25, 1e-12);
    assert_float_equal(summary.std, 11.180339887498949, 1e-12);
    assert_true(summary.min == 10 && summary.max == 40);
    sample_fini(&s);
}

static void a_sample_grows_past_its_first_memory(void **state) {
    sample s;
    sample_init(&s);
    for (int i = 1000; i >= 0; i--) assert_int_equal(sample_add(&s, i), HD_OK);
    sample_summary summary = sample_summarise(&s);
    assert_int_equal(summary.count, 1001);
    assert_float_equal(summary.median, 500, 1e-12);
    assert_float_equal(summary.p99, 990, 1e-9);
    sample_fini(&s);
}

static void poisson_gaps_have_the_mean_of_their_rate(void **state) {
    bench_random random = {42};
    double sum = 0;
    for (int i = 0; i < 100000; i++) {
        double gap = bench_random_exponential(&random, 4);
        assert_true(gap >= 0);
        sum += gap;
    }
    assert_float_equal(sum / 100000, 0.25, 0.005);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_empty_sample_sums_up_to_zeros),
        cmocka_unit_test(one_value_is_every_percentile),
        cmocka_unit_test(percentiles_lie_between_the_two_nearest_values),
        cmocka_unit_test(a_sample_grows_past_its_first_memory),
        cmocka_unit_test(poisson_gaps_have_the_mean_of_their_rate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
