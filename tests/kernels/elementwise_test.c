/* The small operations of every table, against double precision, at sizes that no vector divides. */
#include "tests/kernels/cases.h"

static void rmsnorm_is_right_and_pads_with_zeros(void **state) {
    uint64_t seed = 1;
    static const uint32_t widths[] = {1, 16, 33, 64, 80, 100, 1000, 2048};
    for (size_t w = 0; w < sizeof(widths) / sizeof(widths[0]); w++) {
        for (int is_f32 = 0; is_f32 < 2; is_f32++) {
            uint32_t width = widths[w], stride = HD_ALIGN_UP(width, 32) + 32;
            hd_dtype dtype = is_f32 ? HD_F32 : HD_BF16;
            float *input = cases_take(3 * (width + 5) * sizeof(float)), *weight = cases_take(width * sizeof(float));
            cases_fill(input, HD_F32, 3 * (width + 5), 3.0f, &seed);
            cases_fill(weight, HD_F32, width, 1.0f, &seed);
            void *output = cases_take(3 * stride * 4);
            memset(output, 0x41, 3 * stride * 4);
            table->rmsnorm(input, width + 5, weight, 1e-5f, 3, width, dtype, output, stride);
            for (uint32_t row = 0; row < 3; row++) {
                double squares = 0.0;
                for (uint32_t i = 0; i < width; i++)
                    squares += (double)input[row * (width + 5) + i] * input[row * (width + 5) + i];
                double factor = 1.0 / sqrt(squares / width + 1e-5);
                for (uint32_t i = 0; i < width; i++) {
                    double expected = input[row * (width + 5) + i] * factor * weight[i];
                    double slack = 1e-6 + fabs(expected) * (is_f32 ? 2e-6 : 1.0 / 256);
                    assert_true(fabs(cases_get(output, dtype, row * stride + i) - expected) <= slack);
                }
                for (uint32_t i = width; i < HD_ALIGN_UP(width, 32); i++)
                    assert_true(cases_get(output, dtype, row * stride + i) == 0.0f);
            }
            cases_release();
        }
    }
}

static void rmsnorm_in_place_stays_inside_rows_that_touch(void **state) {
    uint64_t seed = 2;
    enum { HEADS = 5, DIM = 80 };
    float *heads = cases_take(HEADS * DIM * sizeof(float)), *apart = cases_take(HEADS * DIM * sizeof(float));
    float *weight = cases_take(DIM * sizeof(float));
    cases_fill(heads, HD_F32, HEADS * DIM, 1.0f, &seed);
    cases_fill(weight, HD_F32, DIM, 1.0f, &seed);
    for (uint32_t i = 0; i < HEADS; i++)
        table->rmsnorm(heads + i * DIM, DIM, weight, 1e-6f, 1, DIM, HD_F32, apart + i * DIM, DIM);
    table->rmsnorm(heads, DIM, weight, 1e-6f, HEADS, DIM, HD_F32, heads, DIM);
    assert_memory_equal(heads, apart, HEADS * DIM * sizeof(float));
}

static void rope_rotates_pairs_of_halves_and_leaves_the_rest(void **state) {
    uint64_t seed = 3;
    static const uint32_t dims[][2] = {{64, 64}, {80, 80}, {128, 128}, {128, 64}, {96, 24}, {16, 16}, {6, 2}};
    for (size_t d = 0; d < sizeof(dims) / sizeof(dims[0]); d++) {
        uint32_t dim = dims[d][0], rotary = dims[d][1], half = rotary / 2;
        float *row = cases_take(3 * dim * sizeof(float)), *before = cases_take(3 * dim * sizeof(float));
        float *cosines = cases_take(half * sizeof(float)), *sines = cases_take(half * sizeof(float));
        cases_fill(row, HD_F32, 3 * dim, 1.0f, &seed);
        cases_fill(cosines, HD_F32, half, 1.0f, &seed);
        cases_fill(sines, HD_F32, half, 1.0f, &seed);
        memcpy(before, row, 3 * dim * sizeof(float));
        table->rope(row, 3, dim, rotary, cosines, sines);
        for (uint32_t i = 0; i < 3 * dim; i++) {
            uint32_t column = i % dim, angle = column % half;
            const float *x = before + i - column + angle;
            double expected = before[i];
            if (column < half) expected = (double)x[0] * cosines[angle] - (double)x[half] * sines[angle];
            if (column >= half && column < rotary)
                expected = (double)x[half] * cosines[angle] + (double)x[0] * sines[angle];
            assert_true(column < rotary ? fabs(row[i] - expected) <= 2e-6 : row[i] == before[i]);
        }
        cases_release();
    }
}

static void convert_rounds_to_nearest_between_all_formats(void **state) {
    uint64_t seed = 4;
    static const hd_dtype formats[] = {HD_F32, HD_BF16, HD_F16};
    for (size_t count = 0; count < 70; count += 7) {
        float *values = cases_take((count + 4) * sizeof(float));
        cases_fill(values, HD_F32, count, 100.0f, &seed);
        values[count] = INFINITY, values[count + 1] = -0.0f, values[count + 2] = 1e-6f, values[count + 3] = 3e38f;
        for (int f = 0; f < 9; f++) {
            hd_dtype from = formats[f / 3], to = formats[f % 3];
            void *input = cases_take((count + 4) * hd_dtype_bits(from) / 8),
                 *output = cases_take((count + 4) * hd_dtype_bits(to) / 8);
            void *expected = cases_take((count + 4) * hd_dtype_bits(to) / 8);
            kernel_ops_portable()->convert(values, HD_F32, input, from, count + 4);
            kernel_ops_portable()->convert(input, from, expected, to, count + 4);
            table->convert(input, from, output, to, count + 4);
            assert_memory_equal(output, expected, (count + 4) * hd_dtype_bits(to) / 8);
        }
        cases_release();
    }
}

static void convert_keeps_nan(void **state) {
    float values[20];
    uint16_t halves[20];
    for (int i = 0; i < 20; i++) values[i] = NAN;
    for (int f = 1; f < 3; f++) {
        hd_dtype to = f == 1 ? HD_BF16 : HD_F16;
        table->convert(values, HD_F32, halves, to, 20);
        table->convert(halves, to, values, HD_F32, 20);
        for (int i = 0; i < 20; i++) assert_true(isnan(values[i]));
    }
}

static void add_scaled_adds_a_multiple(void **state) {
    uint64_t seed = 5;
    for (size_t count = 0; count < 100; count += 9) {
        float *x = cases_take(count * sizeof(float)), *y = cases_take(count * sizeof(float)),
              *before = cases_take(count * sizeof(float));
        cases_fill(x, HD_F32, count, 1.0f, &seed);
        cases_fill(y, HD_F32, count, 1.0f, &seed);
        memcpy(before, y, count * sizeof(float));
        table->add_scaled(y, x, -0.37f, count);
        for (size_t i = 0; i < count; i++) assert_true(fabs(y[i] - (before[i] - 0.37 * x[i])) <= 1e-6);
        cases_release();
    }
}

static void logits_summary_finds_the_first_largest_and_the_mass(void **state) {
    uint64_t seed = 6;
    static const uint32_t counts[] = {1, 2, 15, 16, 17, 63, 100, 1000, 128256};
    for (size_t c = 0; c < sizeof(counts) / sizeof(counts[0]); c++) {
        uint32_t count = counts[c], expected = 0, argmax;
        float *logits = cases_take(count * sizeof(float)), max, lse;
        cases_fill(logits, HD_F32, count, 5.0f, &seed);
        uint32_t twice[2] = {cases_random_below(&seed, count), cases_random_below(&seed, count)};
        if (c % 2 == 0) logits[twice[0]] = logits[twice[1]] = 1000.0f; /* equal ones: the first counts */
        double sum = 0.0;
        for (uint32_t i = 1; i < count; i++) expected = logits[i] > logits[expected] ? i : expected;
        for (uint32_t i = 0; i < count; i++) sum += exp((double)logits[i] - logits[expected]);
        table->logits_summary(logits, count, &argmax, &max, &lse);
        assert_int_equal(argmax, expected);
        assert_true(max == logits[expected]);
        assert_true(fabs(lse - (logits[expected] + log(sum))) <= 1e-6 * (1.0 + fabs(logits[expected])) + 2e-6);
        table->logits_summary(logits, count, NULL, NULL, NULL);
        cases_release();
    }
}

static void logits_of_minus_infinity_count_for_nothing(void **state) {
    float logits[50], max, lse;
    uint32_t argmax;
    for (int i = 0; i < 50; i++) logits[i] = -INFINITY;
    logits[37] = -2.0f;
    table->logits_summary(logits, 50, &argmax, &max, &lse);
    assert_int_equal(argmax, 37);
    assert_true(max == -2.0f && lse == -2.0f);
}

/* A caller takes the index for one of an array. */
static void the_largest_of_rows_with_nan_has_an_index_below_count(void **state) {
    float logits[64];
    uint32_t argmax;
    for (uint32_t count = 1; count <= 64; count++) {
        for (uint32_t numbers = 0; numbers < count; numbers += 5) {
            for (uint32_t i = 0; i < count; i++) logits[i] = i < numbers ? (float)i : NAN;
            table->logits_summary(logits, count, &argmax, NULL, NULL);
            assert_true(argmax < count);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(rmsnorm_is_right_and_pads_with_zeros, cases_teardown),
        cmocka_unit_test_teardown(rmsnorm_in_place_stays_inside_rows_that_touch, cases_teardown),
        cmocka_unit_test_teardown(rope_rotates_pairs_of_halves_and_leaves_the_rest, cases_teardown),
        cmocka_unit_test_teardown(convert_rounds_to_nearest_between_all_formats, cases_teardown),
        cmocka_unit_test(convert_keeps_nan),
        cmocka_unit_test_teardown(add_scaled_adds_a_multiple, cases_teardown),
        cmocka_unit_test_teardown(logits_summary_finds_the_first_largest_and_the_mass, cases_teardown),
        cmocka_unit_test(logits_of_minus_infinity_count_for_nothing),
        cmocka_unit_test(the_largest_of_rows_with_nan_has_an_index_below_count),
    };
    return cases_run(tests, sizeof(tests) / sizeof(tests[0]));
}
