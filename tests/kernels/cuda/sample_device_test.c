/* Sampling on a device: every step of worker/sampler.h's definition, against the definition in double precision. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/operations.h"
#include "tests/kernels/cuda/device_cases.h"

static uint32_t draw(const float *logits, uint32_t count, sample_row row, const sample_change *changes) {
    sample_arguments call = {
        .logits = device_put(logits, count * sizeof(float)),
        .stride = count,
        .row_count = 1,
        .count = count,
        .rows = device_put(&row, sizeof(row)),
        .changes =
            changes != NULL ? device_put(changes, (row.first_change + row.change_count) * sizeof(*changes)) : NULL,
        .token_ids = device_take(sizeof(uint32_t))};
    assert_ok(device_sample(queue, &call));
    return *(const uint32_t *)device_get(call.token_ids, sizeof(uint32_t));
}

static sample_row plain_row(void) {
    return (sample_row){.repetition_penalty = 1.0f, .temperature = 1.0f, .top_p = 1.0f};
}

typedef struct candidate {
    double weight;
    uint32_t id;
} candidate;

static int likelier(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    if (x->weight != y->weight) return x->weight > y->weight ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

/* The token by definition, or UINT32_MAX where the answer hangs on rounding. */
static uint32_t by_definition(const float *logits, uint32_t count, const sample_row *row) {
    candidate *c = cases_take(count * sizeof(*c));
    double *weights = cases_take(count * sizeof(double)), max = -INFINITY, mass = 0.0, total = 0.0, sum = 0.0;
    for (uint32_t i = 0; i < count; i++) max = fmax(max, logits[i]);
    for (uint32_t i = 0; i < count; i++) c[i] = (candidate){exp((logits[i] - max) / row->temperature), i};
    qsort(c, count, sizeof(*c), likelier);
    uint32_t kept = row->top_k > 0 && row->top_k < count ? row->top_k : count;
    for (uint32_t i = 0; i < kept; i++) mass += c[i].weight;
    if (row->top_p < 1.0f) {
        uint32_t needed = 0;
        double need = (double)row->top_p * mass;
        while (needed < kept && (needed == 0 || sum < need)) sum += c[needed++].weight;
        double without_last = sum - c[needed - 1].weight;
        if (fabs(sum - need) < 1e-5 * mass || (needed > 1 && need - without_last < 1e-5 * mass)) return UINT32_MAX;
        kept = needed;
    }
    while (row->min_p > 0.0f && kept > 1 && c[kept - 1].weight < row->min_p) {
        if (fabs(c[kept - 1].weight - row->min_p) < 1e-5) return UINT32_MAX;
        kept--;
    }
    for (uint32_t i = 0; i < kept; i++) {
        weights[c[i].id] = c[i].weight;
        total += c[i].weight;
    }
    double target = row->uniform * total, before = 0.0;
    for (uint32_t id = 0; id < count; id++) {
        before += weights[id];
        if (weights[id] > 0.0 && fabs(before - target) < 1e-5 * total) return UINT32_MAX;
        if (weights[id] > 0.0 && before > target) return id;
    }
    return UINT32_MAX;
}

static void draws_are_those_of_the_definition(void **state) {
    static const uint32_t counts[] = {1, 5, 511, 512, 1300}, top_ks[] = {0, 1, 3, 50, 2000};
    static const float top_ps[] = {1.0f, 0.9f, 0.3f, 1e-6f}, min_ps[] = {0.0f, 0.0f, 0.1f},
                       temperatures[] = {1.0f, 0.3f, 5.0f};
    uint64_t seed = 1;
    uint32_t compared = 0, rounds = is_quick ? 9 : 1000;
    for (uint32_t i = 0; i < rounds; i++) {
        uint32_t count = is_quick || i % 10 != 0 ? counts[i % 5] : 128256;
        float *logits = cases_take(count * sizeof(float));
        cases_fill(logits, HD_F32, count, 3.0f, &seed);
        sample_row row = plain_row();
        row.temperature = temperatures[i % 3];
        row.top_k = top_ks[i / 2 % 5];
        row.top_p = top_ps[i / 3 % 4];
        row.min_p = min_ps[i / 5 % 3];
        row.uniform = cases_random_below(&seed, 1 << 20) / 1048576.0;
        uint32_t expected = by_definition(logits, count, &row), got = draw(logits, count, row, NULL);
        assert_true(got < count);
        if (expected != UINT32_MAX) {
            if (got != expected) fail_msg("round %u: token %u, not %u", i, got, expected);
            compared++;
        }
        device_teardown(NULL);
    }
    assert_true(compared >= rounds * 8 / 10);
}

static void of_equals_the_first_ids_stay(void **state) {
    enum { COUNT = 600 };
    float logits[COUNT];
    for (int i = 0; i < COUNT; i++) logits[i] = i % 3 == 0 ? 2.0f : 1.0f;
    sample_row row = plain_row();
    /* Of 200 equals the 7 with the lowest ids: 0, 3 .. 18. */
    row.top_k = 7;
    for (int i = 0; i < 7; i++) {
        row.uniform = (i + 0.5) / 7;
        assert_int_equal(draw(logits, COUNT, row, NULL), i * 3);
    }
    /* All 200 weigh 200, the others 400 / e; top_p of a fiftieth of all is 7 of the former. */
    row.top_k = 0;
    row.top_p = (float)(6.5 / (200 + 400 * exp(-1.0)));
    row.uniform = 0.999;
    assert_int_equal(draw(logits, COUNT, row, NULL), 18);
}

static void a_low_temperature_takes_the_largest(void **state) {
    float logits[] = {1.0f, 7.0f, 3.0f, 7.0f};
    sample_row row = plain_row();
    row.temperature = 0.0f;
    row.uniform = 0.9;
    assert_int_equal(draw(logits, 4, row, NULL), 1);
}

static void changes_come_in_their_order(void **state) {
    float logits[] = {2.0f, -2.0f, 1.0f, 3.0f, 0.0f};
    const sample_change changes[] = {
        {.token_id = 0, .is_counted = 1},                                  /* 2 / 2 = 1 */
        {.token_id = 1, .is_counted = 1, .bias = 1.0f},                    /* (-2 + 1) * 2 = -2 */
        {.token_id = 2, .is_counted = 1, .bias = 3.0f, .answer_count = 2}, /* (1 + 3) / 2 - 0.5 * 2 - 0.25 = 0.75 */
        {.token_id = 3, .is_forbidden = 1},
    };
    sample_row row = plain_row();
    row.change_count = 4;
    row.repetition_penalty = 2.0f;
    row.frequency_penalty = 0.5f;
    row.presence_penalty = 0.25f;
    row.temperature = 0.0f;
    float *memory = device_put(logits, sizeof(logits));
    sample_arguments call = {.logits = memory,
                             .stride = 5,
                             .row_count = 1,
                             .count = 5,
                             .rows = device_put(&row, sizeof(row)),
                             .changes = device_put(changes, sizeof(changes)),
                             .token_ids = device_take(sizeof(uint32_t))};
    assert_ok(device_sample(queue, &call));
    assert_int_equal(*(const uint32_t *)device_get(call.token_ids, sizeof(uint32_t)), 0);
    const float *after = device_get(memory, sizeof(logits));
    static const float expected[] = {1.0f, -2.0f, 0.75f, -INFINITY, 0.0f};
    for (int i = 0; i < 5; i++) assert_true(after[i] == expected[i]);
}

static void rows_do_not_depend_on_each_other(void **state) {
    enum { ROWS = 9, COUNT = 700 };
    uint64_t seed = 5;
    float *logits = cases_take(ROWS * COUNT * sizeof(float));
    cases_fill(logits, HD_F32, ROWS * COUNT, 2.0f, &seed);
    sample_row rows[ROWS];
    for (int i = 0; i < ROWS; i++) {
        rows[i] = plain_row();
        rows[i].top_k = (uint32_t)i * 4;
        rows[i].top_p = i % 2 == 0 ? 0.8f : 1.0f;
        rows[i].uniform = (i + 0.3) / ROWS;
    }
    sample_arguments call = {.logits = device_put(logits, ROWS * COUNT * sizeof(float)),
                             .stride = COUNT,
                             .row_count = ROWS,
                             .count = COUNT,
                             .rows = device_put(rows, sizeof(rows)),
                             .token_ids = device_take(ROWS * sizeof(uint32_t))};
    assert_ok(device_sample(queue, &call));
    const uint32_t *ids = device_get(call.token_ids, ROWS * sizeof(uint32_t));
    for (int i = 0; i < ROWS; i++) assert_int_equal(draw(logits + i * COUNT, COUNT, rows[i], NULL), ids[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(draws_are_those_of_the_definition, device_teardown),
        cmocka_unit_test_teardown(of_equals_the_first_ids_stay, device_teardown),
        cmocka_unit_test_teardown(a_low_temperature_takes_the_largest, device_teardown),
        cmocka_unit_test_teardown(changes_come_in_their_order, device_teardown),
        cmocka_unit_test_teardown(rows_do_not_depend_on_each_other, device_teardown),
    };
    return device_cases_run(tests, sizeof(tests) / sizeof(tests[0]));
}
