#include "base/metrics.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "base/threads.h"

static int open_metrics(void **state) {
    return hd_metrics_open((hd_metrics **)state) != HD_OK;
}

static int close_metrics(void **state) {
    hd_metrics_close(*state);
    return 0;
}

static void assert_rendered(hd_metrics *metrics, const char *expected) {
    char *text;
    size_t bytes;
    assert_int_equal(hd_metrics_render(metrics, &text, &bytes), HD_OK);
    assert_string_equal(text, expected);
    assert_int_equal(bytes, strlen(text));
    free(text);
}

static void nothing_registered_renders_nothing(void **state) {
    assert_rendered(*state, "");
}

static void a_family_has_its_help_and_type_once(void **state) {
    hd_metrics *metrics = *state;
    hd_counter *stop =
        hd_counter_register(metrics, "hadal:request_success_total", "finished_reason=\"stop\"", "Requests that ended.");
    hd_gauge *running = hd_gauge_register(metrics, "hadal:num_requests_running", "", "Requests in a step.");
    hd_counter *length =
        hd_counter_register(metrics, "hadal:request_success_total", "finished_reason=\"length\"", "Another text.");
    hd_counter_add(stop, 3);
    hd_counter_add(length, 18000000000000000000u);
    hd_gauge_set(running, 2.5);
    hd_gauge_add(running, -4);
    assert_rendered(metrics, "# HELP hadal:request_success_total Requests that ended.\n"
                             "# TYPE hadal:request_success_total counter\n"
                             "hadal:request_success_total{finished_reason=\"stop\"} 3\n"
                             "hadal:request_success_total{finished_reason=\"length\"} 18000000000000000000\n"
                             "# HELP hadal:num_requests_running Requests in a step.\n"
                             "# TYPE hadal:num_requests_running gauge\n"
                             "hadal:num_requests_running -1.5\n");
}

static void a_name_and_labels_registered_twice_are_one_series(void **state) {
    hd_counter *a = hd_counter_register(*state, "hadal:x_total", "", "X.");
    hd_counter *b = hd_counter_register(*state, "hadal:x_total", "", "X.");
    assert_ptr_equal(a, b);
    assert_rendered(*state, "# HELP hadal:x_total X.\n# TYPE hadal:x_total counter\nhadal:x_total 0\n");
}

static void buckets_are_cumulative_and_bounds_inclusive(void **state) {
    static const double bounds[] = {0.001, 0.5, 7680};
    hd_histogram *h = hd_histogram_register(*state, "hadal:ttft_seconds", "model=\"m\"", "Time.", bounds, 3);
    const double values[] = {0.0005, 0.001, 0.25, 0.5, 0.50001, 9000, -1};
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) hd_histogram_observe(h, values[i]);
    assert_rendered(*state, "# HELP hadal:ttft_seconds Time.\n"
                            "# TYPE hadal:ttft_seconds histogram\n"
                            "hadal:ttft_seconds_bucket{model=\"m\",le=\"0.001\"} 3\n"
                            "hadal:ttft_seconds_bucket{model=\"m\",le=\"0.5\"} 5\n"
                            "hadal:ttft_seconds_bucket{model=\"m\",le=\"7680\"} 6\n"
                            "hadal:ttft_seconds_bucket{model=\"m\",le=\"+Inf\"} 7\n"
                            "hadal:ttft_seconds_sum{model=\"m\"} 9000.25151\n"
                            "hadal:ttft_seconds_count{model=\"m\"} 7\n");
}

static void a_histogram_without_labels_has_only_the_bound(void **state) {
    static const double bounds[] = {1};
    hd_histogram_register(*state, "hadal:n", "", "N.", bounds, 1);
    assert_rendered(*state, "# HELP hadal:n N.\n# TYPE hadal:n histogram\nhadal:n_bucket{le=\"1\"} 0\n"
                            "hadal:n_bucket{le=\"+Inf\"} 0\nhadal:n_sum 0\nhadal:n_count 0\n");
}

static void help_and_labels_are_escaped(void **state) {
    char label[64];
    hd_gauge_register(*state, "hadal:info", hd_metrics_label("model", "a\"b\\c\nd", label, sizeof(label)),
                      "Line one\nback\\slash \"kept\"");
    assert_rendered(*state, "# HELP hadal:info Line one\\nback\\\\slash \"kept\"\n# TYPE hadal:info gauge\n"
                            "hadal:info{model=\"a\\\"b\\\\c\\nd\"} 0\n");
}

static void a_long_label_is_cut_between_escapes(void **state) {
    char label[32], expected[32];
    for (size_t room = 8; room < sizeof(label); room++) {
        memset(label, '#', sizeof(label));
        hd_metrics_label("m", "\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n", label, room);
        strcpy(expected, "m=\"");
        while (strlen(expected) + 2 <= room - 2) strcat(expected, "\\n");
        strcat(expected, "\"");
        assert_string_equal(label, expected);
        assert_int_equal(label[room], '#');
    }
}

static void special_values_have_prometheus_spelling(void **state) {
    hd_gauge_set(hd_gauge_register(*state, "hadal:a", "", "A."), (double)INFINITY);
    hd_gauge_set(hd_gauge_register(*state, "hadal:b", "", "B."), (double)-INFINITY);
    hd_gauge_set(hd_gauge_register(*state, "hadal:c", "", "C."), (double)NAN);
    char *text;
    size_t bytes;
    assert_int_equal(hd_metrics_render(*state, &text, &bytes), HD_OK);
    assert_non_null(strstr(text, "\nhadal:a +Inf\n"));
    assert_non_null(strstr(text, "\nhadal:b -Inf\n"));
    assert_non_null(strstr(text, "\nhadal:c NaN\n"));
    free(text);
}

static void updates_without_metrics_do_nothing(void **state) {
    hd_counter_add(NULL, 1);
    hd_gauge_set(NULL, 1);
    hd_gauge_add(NULL, 1);
    hd_histogram_observe(NULL, 1);
    assert_int_equal(hd_counter_value(NULL), 0);
    assert_true(hd_gauge_value(NULL) == 0);
}

typedef struct {
    hd_metrics *metrics;
    hd_counter *counter;
    hd_gauge *gauge;
    hd_histogram *histogram;
} shared_metrics;

static void update_many(void *context, unsigned thread, unsigned thread_count) {
    shared_metrics *s = context;
    for (int i = 0; i < 2000; i++) {
        hd_counter_add(s->counter, 2);
        hd_gauge_add(s->gauge, thread % 2 == 0 ? 1 : -1);
        hd_histogram_observe(s->histogram, i % 4);
        if (thread == 0 && i % 500 == 0) {
            char *text;
            size_t bytes;
            if (hd_metrics_render(s->metrics, &text, &bytes) == HD_OK) free(text);
        }
    }
}

static void no_update_of_several_threads_is_lost(void **state) {
    static const double bounds[] = {0, 1, 2};
    shared_metrics s = {.metrics = *state};
    hd_pool *pool;
    s.counter = hd_counter_register(s.metrics, "hadal:c_total", "", "C.");
    s.gauge = hd_gauge_register(s.metrics, "hadal:g", "", "G.");
    s.histogram = hd_histogram_register(s.metrics, "hadal:h", "", "H.", bounds, 3);
    assert_int_equal(hd_pool_open(4, &pool), HD_OK);
    hd_pool_run(pool, update_many, &s);
    hd_pool_close(pool);
    assert_int_equal(hd_counter_value(s.counter), 4 * 2000 * 2);
    assert_true(hd_gauge_value(s.gauge) == 0);
    char *text;
    size_t bytes;
    assert_int_equal(hd_metrics_render(s.metrics, &text, &bytes), HD_OK);
    assert_non_null(strstr(
        text, "hadal:h_bucket{le=\"1\"} 4000\nhadal:h_bucket{le=\"2\"} 6000\nhadal:h_bucket{le=\"+Inf\"} 8000\n"));
    assert_non_null(strstr(text, "hadal:h_sum 12000\nhadal:h_count 8000\n"));
    free(text);
}

static void the_shared_bounds_ascend_and_reach_far_enough(void **state) {
    for (size_t i = 1; i < hd_bounds_seconds_count; i++) assert_true(hd_bounds_seconds[i] > hd_bounds_seconds[i - 1]);
    for (size_t i = 1; i < hd_bounds_tokens_count; i++) assert_true(hd_bounds_tokens[i] > hd_bounds_tokens[i - 1]);
    assert_true(hd_bounds_seconds[0] == 0.001 && hd_bounds_seconds[hd_bounds_seconds_count - 1] == 7680);
    assert_true(hd_bounds_tokens[0] == 1 && hd_bounds_tokens[hd_bounds_tokens_count - 1] == 2097152);
}

static void registering_survives_each_failed_allocation(void **state) {
    static const double bounds[] = {1, 2};
    hd_histogram *h = NULL;
    for (unsigned nth = 0; h == NULL; nth++) {
        hd_metrics *metrics = NULL;
        fault_arm(FAULT_ALLOCATION, nth);
        hd_status status = hd_metrics_open(&metrics);
        if (status == HD_OK) h = hd_histogram_register(metrics, "hadal:h", "a=\"b\"", "H.", bounds, 2);
        fault_disarm();
        assert_int_equal(status, metrics != NULL ? HD_OK : HD_NO_MEMORY);
        hd_metrics_close(metrics);
        assert_true(nth < 20);
    }
}

#define WITH_METRICS(test) cmocka_unit_test_setup_teardown(test, open_metrics, close_metrics)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH_METRICS(nothing_registered_renders_nothing),
        WITH_METRICS(a_family_has_its_help_and_type_once),
        WITH_METRICS(a_name_and_labels_registered_twice_are_one_series),
        WITH_METRICS(buckets_are_cumulative_and_bounds_inclusive),
        WITH_METRICS(a_histogram_without_labels_has_only_the_bound),
        WITH_METRICS(help_and_labels_are_escaped),
        cmocka_unit_test(a_long_label_is_cut_between_escapes),
        WITH_METRICS(special_values_have_prometheus_spelling),
        cmocka_unit_test(updates_without_metrics_do_nothing),
        WITH_METRICS(no_update_of_several_threads_is_lost),
        cmocka_unit_test(the_shared_bounds_ascend_and_reach_far_enough),
        cmocka_unit_test(registering_survives_each_failed_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
