/* sampler_test.c - every parameter against a reference that sorts the whole vocabulary in double precision. */
#include "worker/sampler.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define VOCABULARY 3001u /* two blocks of the walk and a tail */
#define DRAWS 6000u

static const worker_sampling plain = {
    .temperature = 1, .top_p = 1, .repetition_penalty = 1, .logprobs = -1, .prompt_logprobs = -1};

static sampler *sampler_of(uint32_t vocabulary) {
    sampler *s = NULL;
    assert_int_equal(sampler_open(vocabulary, 2, kernel_ops_portable(), &s), HD_OK);
    return s;
}

/* Roughly normal logits, the same for one seed. */
static void fill_logits(float *logits, uint32_t count, uint64_t seed, double deviation) {
    for (uint32_t i = 0; i < count; i++) {
        double sum = 0;
        for (uint32_t k = 0; k < 6; k++) sum += sampler_uniform(seed, 0, (uint64_t)i * 6 + k);
        logits[i] = (float)((sum - 3) * sqrt(2) * deviation);
    }
}

/* Draws from a copy of the logits, which sampler_draw may change. */
static uint32_t draw(sampler *s, const worker_sampling *sampling, const float *logits, uint32_t count,
                     uint64_t position) {
    static float row_logits[VOCABULARY];
    memcpy(row_logits, logits, count * sizeof(float));
    sampler_row row = {.sampling = sampling, .logits = row_logits, .position = position, .may_end = true};
    sampler_draw(s, 0, &row);
    return row.token_id;
}

typedef struct ranked {
    uint32_t token_id;
    double logit, p;
} ranked;

static int by_rank(const void *left, const void *right) {
    const ranked *a = left, *b = right;
    if (a->logit != b->logit) return a->logit < b->logit ? 1 : -1;
    return a->token_id < b->token_id ? -1 : 1;
}

/* p[i] of every token by the header's definition. */
static void reference(const worker_sampling *sampling, const float *logits, uint32_t count, double *p) {
    ranked *r = calloc(count, sizeof(*r));
    assert_non_null(r);
    for (uint32_t i = 0; i < count; i++) r[i] = (ranked){.token_id = i, .logit = logits[i]};
    qsort(r, count, sizeof(*r), by_rank);
    uint32_t kept = sampling->top_k > 0 && sampling->top_k < count ? sampling->top_k : count;
    double total = 0, sum = 0;
    for (uint32_t i = 0; i < kept; i++) total += r[i].p = exp((r[i].logit - r[0].logit) / sampling->temperature);
    uint32_t nucleus = 0;
    while (nucleus < kept && (nucleus == 0 || sum < sampling->top_p * total)) sum += r[nucleus++].p;
    if (sampling->top_p >= 1) nucleus = kept;
    total = 0;
    for (uint32_t i = 0; i < nucleus; i++) {
        if (r[i].p < sampling->min_p) r[i].p = 0;
        total += r[i].p;
    }
    memset(p, 0, count * sizeof(*p));
    for (uint32_t i = 0; i < nucleus; i++) p[r[i].token_id] = r[i].p / total;
    free(r);
}

/* Pearson's statistic over tokens that are expected at least five times, the others pooled; as a number of standard
 * deviations. */
static double misfit(const uint32_t *seen, const double *p, uint32_t count) {
    double statistic = 0, pooled_expected = 0, pooled_seen = 0;
    uint32_t cells = 0;
    for (uint32_t i = 0; i < count; i++) {
        double expected = p[i] * DRAWS;
        if (expected < 5) {
            pooled_expected += expected;
            pooled_seen += seen[i];
            continue;
        }
        statistic += (seen[i] - expected) * (seen[i] - expected) / expected;
        cells++;
    }
    if (pooled_expected >= 5) {
        statistic += (pooled_seen - pooled_expected) * (pooled_seen - pooled_expected) / pooled_expected;
        cells++;
    }
    return cells < 2 ? 0 : (statistic - (cells - 1)) / sqrt(2.0 * (cells - 1));
}

static void draws_follow_the_distribution_of_every_setting(void **state) {
    static const struct {
        float temperature;
        uint32_t top_k;
        float top_p, min_p;
    } settings[] = {
        {1, 0, 1, 0},         {0.3f, 0, 1, 0},  {2.5f, 0, 1, 0},         {1, 1, 1, 0},
        {1, 5, 1, 0},         {1.5f, 64, 1, 0}, {1, 700, 1, 0},          {1, 2999, 1, 0},
        {1, 3001, 1, 0},      {1, 0, 0.01f, 0}, {1, 0, 0.5f, 0},         {1, 0, 0.9f, 0},
        {0.7f, 0, 0.999f, 0}, {3, 0, 0.95f, 0}, {1, 0, 1, 0.02f},        {1.3f, 0, 1, 0.3f},
        {1, 0, 1, 1},         {1, 40, 0.8f, 0}, {0.8f, 40, 0.95f, 0.1f}, {2, 1000, 0.7f, 0.001f},
        {1, 0, 0.6f, 0.05f},  {1, 20, 0.8f, 0}, {1, 23, 0.9f, 0.05f},    {1, 1, 0.5f, 0.5f},
    };
    static const uint32_t vocabularies[] = {50, VOCABULARY};
    static float logits[VOCABULARY];
    static double p[VOCABULARY];
    static uint32_t seen[VOCABULARY];
    for (size_t v = 0; v < sizeof(vocabularies) / sizeof(vocabularies[0]); v++) {
        uint32_t count = vocabularies[v];
        sampler *s = sampler_of(count);
        fill_logits(logits, count, 7, 3);
        for (size_t k = 0; k < sizeof(settings) / sizeof(settings[0]); k++) {
            worker_sampling sampling = plain;
            sampling.temperature = settings[k].temperature;
            sampling.top_k = settings[k].top_k;
            sampling.top_p = settings[k].top_p;
            sampling.min_p = settings[k].min_p;
            sampling.seed = 1000 + k;
            reference(&sampling, logits, count, p);
            memset(seen, 0, sizeof(seen));
            for (uint32_t i = 0; i < DRAWS; i++) seen[draw(s, &sampling, logits, count, i)]++;
            for (uint32_t i = 0; i < count; i++) {
                if (seen[i] > 0 && p[i] == 0)
                    fail_msg("setting %zu of vocabulary %u draws token %u, which was cut off", k, count, i);
            }
            double z = misfit(seen, p, count);
            if (fabs(z) > 4.5) fail_msg("setting %zu of vocabulary %u is %g deviations off", k, count, z);
        }
        sampler_close(s);
    }
}

static void a_flat_distribution_is_cut_in_order_of_ids(void **state) {
    static float logits[VOCABULARY];
    sampler *s = sampler_of(VOCABULARY);
    worker_sampling top_p = plain, top_k = plain;
    top_p.top_p = 0.25f;
    top_k.top_k = 100;
    uint32_t highest_p = 0, highest_k = 0;
    for (uint32_t i = 0; i < DRAWS; i++) {
        uint32_t drawn = draw(s, &top_p, logits, VOCABULARY, i);
        highest_p = drawn > highest_p ? drawn : highest_p;
        drawn = draw(s, &top_k, logits, VOCABULARY, i);
        highest_k = drawn > highest_k ? drawn : highest_k;
    }
    assert_int_equal(highest_p, 750); /* 751 tokens of 3001 are the fewest that reach a quarter */
    assert_int_equal(highest_k, 99);
    sampler_close(s);
}

static void temperature_zero_takes_the_largest_and_of_equals_the_lowest_id(void **state) {
    float logits[64] = {0};
    sampler *s = sampler_of(64);
    worker_sampling greedy = plain;
    greedy.temperature = 0;
    greedy.top_k = 7; /* without effect */
    assert_int_equal(draw(s, &greedy, logits, 64, 0), 0);
    logits[41] = logits[23] = 5;
    assert_int_equal(draw(s, &greedy, logits, 64, 0), 23);
    worker_sampling cold = plain;
    cold.temperature = 1e-7f; /* as good as zero */
    assert_int_equal(draw(s, &cold, logits, 64, 0), 23);
    sampler_close(s);
}

static void uniform_numbers_are_those_of_philox(void **state) {
    /* The generator's published answer for key 0 and counter 0 begins with 6627e8d5 e169c58d. */
    assert_true(sampler_uniform(0, 0, 0) == (double)(0x6627e8d5e169c58dull >> 11) * 0x1p-53);
    double sum = 0, squares = 0;
    for (uint64_t i = 0; i < 100000; i++) {
        double u = sampler_uniform(42, 0, i);
        assert_true(u >= 0 && u < 1);
        sum += u;
        squares += u * u;
    }
    assert_true(fabs(sum / 100000 - 0.5) < 0.005);
    assert_true(fabs(squares / 100000 - 1.0 / 3) < 0.005);
}

static void a_choice_draws_what_a_single_request_with_its_seed_draws(void **state) {
    for (uint32_t choice = 0; choice < 5; choice++) {
        for (uint64_t position = 0; position < 50; position++) {
            assert_true(sampler_uniform(90, choice, position) == sampler_uniform(90 + choice, 0, position));
        }
    }
    assert_true(sampler_uniform(90, 0, 3) != sampler_uniform(90, 1, 3));
    assert_true(sampler_uniform(90, 0, 3) != sampler_uniform(90, 0, 4));
}

static void a_draw_depends_on_its_row_alone(void **state) {
    static float logits[VOCABULARY], others[VOCABULARY];
    fill_logits(logits, VOCABULARY, 3, 2);
    sampler *s = sampler_of(VOCABULARY);
    worker_sampling sampling = plain;
    sampling.top_p = 0.9f;
    sampling.seed = 5;
    uint32_t expected[100];
    for (uint32_t i = 0; i < 100; i++) expected[i] = draw(s, &sampling, logits, VOCABULARY, i);
    for (uint32_t i = 100; i-- > 0;) { /* backwards, on the other thread's scratch, with other work between */
        fill_logits(others, VOCABULARY, i, 1);
        worker_sampling other = plain;
        other.top_k = i + 1;
        draw(s, &other, others, VOCABULARY, i);
        float copy[VOCABULARY];
        memcpy(copy, logits, sizeof(copy));
        sampler_row row = {.sampling = &sampling, .logits = copy, .position = i, .may_end = true};
        sampler_draw(s, 1, &row);
        assert_int_equal(row.token_id, expected[i]);
    }
    sampler_close(s);
}

static void penalties_change_the_logits_of_seen_tokens_as_defined(void **state) {
    float logits[8] = {2, -2, 3, 1, 0.5f, -1, 4, 1.5f};
    static const uint32_t prompt[] = {0, 1, 2, 1};
    token_counts counts;
    assert_int_equal(token_counts_init(&counts, 8), HD_OK);
    token_counts_add_prompt(&counts, prompt, 4);
    token_counts_add_answer(&counts, 2);
    token_counts_add_answer(&counts, 5);
    token_counts_add_answer(&counts, 5);
    worker_sampling sampling = plain;
    sampling.temperature = 0;
    sampling.repetition_penalty = 2;
    sampling.frequency_penalty = 0.5f;
    sampling.presence_penalty = 0.25f;
    static const worker_logit_bias bias[] = {
        {.token_id = 7, .bias = 1}, {.token_id = 2, .bias = 1}, {.token_id = 7, .bias = 0.5f}};
    sampling.logit_bias = bias;
    sampling.logit_bias_count = 3;
    sampler *s = sampler_of(8);
    sampler_row row = {.sampling = &sampling, .logits = logits, .counts = &counts, .may_end = true};
    sampler_draw(s, 0, &row);
    const float expected[8] = {
        2 / 2.0f, -2 * 2.0f, (3 + 1) / 2.0f - 0.5f - 0.25f, 1, 0.5f, -1 * 2.0f - 2 * 0.5f - 0.25f, 4, 1.5f + 1.5f};
    for (int i = 0; i < 8; i++) assert_true(logits[i] == expected[i]);
    assert_int_equal(row.token_id, 6);
    token_counts_fini(&counts);
    sampler_close(s);
}

static void ends_cannot_be_drawn_before_min_tokens(void **state) {
    float logits[8] = {0, 9, 8, 7, 0, 0, 0, 0};
    static const uint32_t ends[] = {1, 999}, stops[] = {2, 12345};
    worker_sampling sampling = plain;
    sampling.temperature = 0;
    sampling.stop_ids = stops;
    sampling.stop_id_count = 2;
    sampler *s = sampler_of(8);
    sampler_row row = {.sampling = &sampling, .logits = logits, .end_ids = ends, .end_id_count = 2, .may_end = true};
    sampler_draw(s, 0, &row);
    assert_int_equal(row.token_id, 1);
    row.may_end = false;
    sampler_draw(s, 0, &row);
    assert_int_equal(row.token_id, 3);
    sampling.temperature = 1;
    for (row.position = 0; row.position < 2000; row.position++) {
        sampler_draw(s, 0, &row);
        assert_true(row.token_id != 1 && row.token_id != 2);
    }
    sampler_close(s);
}

static void logprobs_are_of_the_models_own_logits(void **state) {
    static float logits[VOCABULARY], kept[VOCABULARY];
    fill_logits(logits, VOCABULARY, 11, 2);
    memcpy(kept, logits, sizeof(kept));
    double sum = 0;
    for (uint32_t i = 0; i < VOCABULARY; i++) sum += exp(kept[i]);
    static const worker_logit_bias bias[] = {{.token_id = 77, .bias = 100}};
    worker_sampling sampling = plain;
    sampling.temperature = 0.5f;
    sampling.logprobs = 20;
    sampling.logit_bias = bias;
    sampling.logit_bias_count = 1;
    worker_logprob logprobs[21];
    sampler *s = sampler_of(VOCABULARY);
    sampler_row row = {.sampling = &sampling, .logits = logits, .may_end = true, .logprobs = logprobs};
    sampler_draw(s, 0, &row);
    assert_int_equal(row.token_id, 77); /* the bias draws it, and its logprob is the unbiased one */
    for (int i = 0; i < 21; i++) {
        assert_true(fabs(logprobs[i].logprob - (kept[logprobs[i].token_id] - log(sum))) < 1e-4);
        if (i > 1) assert_true(logprobs[i].logprob <= logprobs[i - 1].logprob);
    }
    assert_int_equal(logprobs[0].token_id, 77);
    uint32_t above = 0;
    for (uint32_t i = 0; i < VOCABULARY; i++) above += kept[i] > kept[logprobs[20].token_id];
    assert_int_equal(above, 19);
    sampler_close(s);
}

static void rows_that_are_not_numbers_still_give_a_token_of_the_vocabulary(void **state) {
    static const float values[] = {NAN, INFINITY, -INFINITY};
    sampler *s = sampler_of(100);
    for (int kind = 0; kind < 5; kind++) {
        float logits[100];
        for (int i = 0; i < 100; i++) logits[i] = kind < 3 ? values[kind] : i == 50 ? values[kind - 3] : 0;
        worker_sampling settings[4] = {plain, plain, plain, plain};
        settings[1].top_p = 0.5f;
        settings[2].top_k = 3;
        settings[3].min_p = 0.5f;
        for (int i = 0; i < 4; i++) assert_true(draw(s, &settings[i], logits, 100, 1) < 100);
    }
    sampler_close(s);
}

static void one_logit_that_is_no_number_is_seen_wherever_it_is(void **state) {
    static const float values[] = {NAN, -NAN, INFINITY, -INFINITY};
    float logits[101];
    fill_logits(logits, 101, 3, 1e6);
    logits[7] = 3e38f;
    logits[8] = -0.0f;
    for (uint32_t count = 90; count <= 101; count++) assert_true(sampler_is_finite(logits, count));
    for (uint32_t i = 0; i < 101; i++) {
        float kept = logits[i];
        logits[i] = values[i % 4];
        assert_false(sampler_is_finite(logits, 101));
        assert_true(sampler_is_finite(logits, i));
        logits[i] = kept;
    }
}

static void counts_agree_with_counting(void **state) {
    enum { IDS = 5000, TOKENS = 40000 };
    static uint32_t in_prompt[IDS], in_answer[IDS];
    token_counts counts;
    assert_int_equal(token_counts_init(&counts, IDS), HD_OK);
    for (uint32_t i = 0; i < TOKENS; i++) {
        uint32_t id = (uint32_t)(sampler_uniform(1, 0, i) * sampler_uniform(2, 0, i) * IDS);
        if (i % 2 == 0) {
            token_counts_add_prompt(&counts, &id, 1);
            in_prompt[id]++;
        } else {
            token_counts_add_answer(&counts, id);
            in_answer[id]++;
        }
    }
    uint32_t distinct = 0;
    for (uint32_t i = 0; i < IDS; i++) distinct += in_prompt[i] + in_answer[i] > 0;
    assert_int_equal(counts.entry_count, distinct);
    for (uint32_t i = 0; i < counts.entry_count; i++) {
        uint32_t id = counts.entries[i].token_id;
        assert_int_equal(counts.entries[i].answer_count, in_answer[id]);
        in_answer[id] = UINT32_MAX; /* an id that comes twice does not match again */
    }
    token_counts_fini(&counts);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(draws_follow_the_distribution_of_every_setting),
        cmocka_unit_test(a_flat_distribution_is_cut_in_order_of_ids),
        cmocka_unit_test(temperature_zero_takes_the_largest_and_of_equals_the_lowest_id),
        cmocka_unit_test(uniform_numbers_are_those_of_philox),
        cmocka_unit_test(a_choice_draws_what_a_single_request_with_its_seed_draws),
        cmocka_unit_test(a_draw_depends_on_its_row_alone),
        cmocka_unit_test(penalties_change_the_logits_of_seen_tokens_as_defined),
        cmocka_unit_test(ends_cannot_be_drawn_before_min_tokens),
        cmocka_unit_test(logprobs_are_of_the_models_own_logits),
        cmocka_unit_test(rows_that_are_not_numbers_still_give_a_token_of_the_vocabulary),
        cmocka_unit_test(one_logit_that_is_no_number_is_seen_wherever_it_is),
        cmocka_unit_test(counts_agree_with_counting),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
