/* schedule_test.c - who gets how much of a step, on a simulated machine of known speed. */
#include "worker/schedule.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define NS_PER_MS 1e6
#define ROWS_MAX 512u

/* About the shape of a model of a billion weights. */
static const model_config model = {.hidden_size = 2048,
                                   .intermediate_size = 8192,
                                   .layer_count = 16,
                                   .query_heads = 32,
                                   .kv_heads = 8,
                                   .head_dim = 64,
                                   .windows = (uint64_t[16]){0}};

static schedule new_schedule(void) {
    schedule s;
    schedule_init(&s, &model, 2);
    return s;
}

/* What a step takes on a machine with so many operations per nanosecond, that reads its weights in 80 ms. */
static double simulate(const schedule *s, const schedule_prompt *prompts, uint32_t count, bool is_decoding,
                       double operations_per_ns) {
    double work = 0;
    for (uint32_t i = 0; i < count; i++) {
        const schedule_prompt *p = &prompts[i];
        work += p->rows * (s->row_work + s->depth_work * ((double)p->done + p->rows / 2.0));
    }
    return fmax(work / operations_per_ns, 80 * NS_PER_MS) + (is_decoding ? 10 * NS_PER_MS : 0);
}

static double run(schedule *s, schedule_prompt *prompts, uint32_t count, uint32_t rows_max, bool is_decoding,
                  double operations_per_ns) {
    schedule_step(s, prompts, count, rows_max, is_decoding);
    uint32_t rows = 0;
    for (uint32_t i = 0; i < count; i++) {
        assert_true(prompts[i].rows <= prompts[i].total - prompts[i].done);
        rows += prompts[i].rows;
    }
    assert_true(rows <= rows_max);
    if (!is_decoding && rows_max > 0) assert_true(rows > 0);
    double ns = simulate(s, prompts, count, is_decoding, operations_per_ns);
    schedule_learn(s, prompts, count, is_decoding, ns);
    for (uint32_t i = 0; i < count; i++) prompts[i].done += prompts[i].rows;
    return ns;
}

static void a_lone_prompt_gets_every_row(void **state) {
    schedule s = new_schedule();
    schedule_prompt p = {.total = 2000};
    run(&s, &p, 1, ROWS_MAX, false, 1000);
    assert_in_range(p.rows, 256, 512); /* of a machine that nothing is known of */
    for (uint64_t left; (left = p.total - p.done) > 0;) {
        run(&s, &p, 1, ROWS_MAX, false, 1000);
        assert_int_equal(p.rows, left < 512 ? left : 512);
    }
}

static void the_shortest_goes_first_and_the_oldest_keeps_a_quarter(void **state) {
    schedule s = new_schedule();
    run(&s, &(schedule_prompt){.total = 512}, 1, ROWS_MAX, false, 1000);
    schedule_prompt p[3] = {
        {.done = 512, .total = 1000000, .arrival = 1}, {.total = 2000, .arrival = 2}, {.total = 100, .arrival = 3}};
    schedule_step(&s, p, 3, ROWS_MAX, false);
    assert_int_equal(p[2].rows, 100);
    assert_in_range(p[0].rows, 64, 192); /* a quarter, and what is left over of the others' time */
    assert_int_equal(p[1].rows, (ROWS_MAX - 100 - p[0].rows) / 16 * 16);
}

static void what_a_short_prompt_waits_for_goes_as_if_it_were_short(void **state) {
    schedule s = new_schedule();
    run(&s, &(schedule_prompt){.total = 512}, 1, ROWS_MAX, false, 1000);
    schedule_prompt p[3] = {{.total = 5000, .arrival = 1},
                            {.done = 512, .total = 1000000, .followed_total = 700, .arrival = 2},
                            {.total = 1000, .arrival = 3}};
    schedule_step(&s, p, 3, ROWS_MAX, false);
    assert_in_range(p[1].rows, ROWS_MAX - ROWS_MAX / 4 - 16, ROWS_MAX);
    p[1].done = 700; /* the short one has what it waited for */
    schedule_step(&s, p, 3, ROWS_MAX, false);
    assert_int_equal(p[1].rows, 0);
    assert_true(p[2].rows > p[0].rows);
}

static void small_steps_are_shared_too(void **state) {
    static const uint32_t rows_max[] = {1, 7, 16, 32, 63};
    for (size_t i = 0; i < sizeof(rows_max) / sizeof(rows_max[0]); i++) {
        schedule s = new_schedule();
        schedule_prompt p[2] = {{.total = 100000, .arrival = 1}, {.total = 900, .arrival = 2}};
        uint64_t steps = 0;
        for (; p[1].done < p[1].total; steps++) run(&s, p, 2, rows_max[i], false, 400);
        assert_true(steps <= 2 * 900 / rows_max[i] + 8);
        assert_true(p[0].done >= steps * rows_max[i] / 8);
    }
}

static void no_prompt_starves_under_an_endless_stream_of_short_ones(void **state) {
    schedule s = new_schedule();
    schedule_prompt p[4] = {{.total = 20000, .arrival = 1}};
    uint64_t arrival = 2, steps = 0;
    for (; p[0].done < p[0].total; steps++) {
        for (uint32_t i = 1; i < 4; i++) {
            if (p[i].done == p[i].total) p[i] = (schedule_prompt){.total = 300, .arrival = arrival++};
        }
        run(&s, p, 4, ROWS_MAX, steps % 2 == 0, 400);
        assert_true(steps < 2000);
    }
    assert_true(arrival > 100); /* and the short ones were served meanwhile */
}

static void chunks_beside_decoding_are_cut_to_the_time_of_a_token(void **state) {
    static const double speeds[] = {20, 150, 400, 5000};
    for (size_t i = 0; i < sizeof(speeds) / sizeof(speeds[0]); i++) {
        schedule s = new_schedule();
        for (int k = 0; k < 5; k++) run(&s, NULL, 0, ROWS_MAX, true, speeds[i]);
        schedule_prompt p = {.total = 200000};
        double worst = 0;
        for (int k = 0; k < 100; k++) {
            double ns = run(&s, &p, 1, ROWS_MAX, true, speeds[i]);
            if (k >= 10 && p.rows > SCHEDULE_ROWS_LEAST) worst = fmax(worst, ns);
        }
        assert_true(worst < 400 * NS_PER_MS);
        assert_true(p.done > 0);
    }
}

static void a_prompt_too_deep_for_any_step_waits_and_then_gets_a_chunk(void **state) {
    schedule s = new_schedule();
    for (int k = 0; k < 5; k++) run(&s, NULL, 0, ROWS_MAX, true, 400);
    schedule_prompt p = {.done = 1000000, .total = 1001000};
    double prefill_ns = 0, all_ns = 0;
    uint32_t chunks = 0, steps = 0;
    for (; steps < 2000; steps++) {
        double ns = run(&s, &p, 1, ROWS_MAX, true, 400);
        all_ns += ns;
        if (p.rows == 0) continue;
        chunks++;
        prefill_ns += ns;
        assert_int_equal(p.rows, SCHEDULE_ROWS_LEAST);
        if (p.done + SCHEDULE_ROWS_LEAST > p.total) break;
    }
    assert_true(chunks >= 10);
    assert_true(steps > 5 * chunks); /* others decode in between */
    assert_true(prefill_ns > 0.3 * all_ns && prefill_ns < 0.9 * all_ns);
}

static void with_nothing_else_to_do_even_the_dearest_chunk_runs(void **state) {
    schedule s = new_schedule();
    schedule_prompt p[2] = {{.done = 1 << 24, .total = (1 << 24) + 100, .arrival = 1},
                            {.done = 1 << 24, .total = (1 << 24) + 100, .arrival = 2}};
    for (int k = 0; k < 14; k++) {
        bool is_first_done = p[0].done == p[0].total;
        if (p[1].done < p[1].total) run(&s, is_first_done ? p + 1 : p, is_first_done ? 1 : 2, ROWS_MAX, false, 100);
    }
    assert_int_equal(p[0].done, p[0].total);
    assert_int_equal(p[1].done, p[1].total);
}

static void no_rows_are_given_where_decoding_fills_the_step(void **state) {
    schedule s = new_schedule();
    schedule_prompt p = {.total = 100};
    schedule_step(&s, &p, 1, 0, true);
    assert_int_equal(p.rows, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_lone_prompt_gets_every_row),
        cmocka_unit_test(the_shortest_goes_first_and_the_oldest_keeps_a_quarter),
        cmocka_unit_test(what_a_short_prompt_waits_for_goes_as_if_it_were_short),
        cmocka_unit_test(small_steps_are_shared_too),
        cmocka_unit_test(no_prompt_starves_under_an_endless_stream_of_short_ones),
        cmocka_unit_test(chunks_beside_decoding_are_cut_to_the_time_of_a_token),
        cmocka_unit_test(a_prompt_too_deep_for_any_step_waits_and_then_gets_a_chunk),
        cmocka_unit_test(with_nothing_else_to_do_even_the_dearest_chunk_runs),
        cmocka_unit_test(no_rows_are_given_where_decoding_fills_the_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
