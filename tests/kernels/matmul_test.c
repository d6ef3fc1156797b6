/* Matrix products of every table: right, confined to their columns, and the same bits for a row whatever runs beside
 * it. */
#include "tests/kernels/cases.h"

typedef struct product {
    kernel_matmul call;
    size_t input_bytes, output_bytes; /* of one row */
} product;

static product make_product(const kernel_matrix *weights, uint32_t rows, kernel_epilogue epilogue, bool has_bias,
                            uint64_t *seed) {
    hd_dtype input_dtype = kernel_matrix_input_dtype(weights);
    size_t input_element = hd_dtype_bits(input_dtype) / 8,
           output_element = epilogue == KERNEL_SWIGLU ? input_element : sizeof(float);
    size_t output_stride = (epilogue == KERNEL_SWIGLU ? weights->n / 2 : weights->n) + 5;
    float *bias = has_bias ? cases_take(weights->n * sizeof(float)) : NULL;
    char *input = cases_take(rows * weights->k_padded * input_element);
    for (uint32_t row = 0; row < rows; row++) {
        cases_fill(input + row * weights->k_padded * input_element, input_dtype, weights->k, 1.0f, seed);
    }
    if (has_bias) cases_fill(bias, HD_F32, weights->n, 1.0f, seed);
    product made = {
        .call = {.weights = weights,
                 .input = input,
                 .input_stride = weights->k_padded,
                 .row_count = rows,
                 .output = cases_take(rows * output_stride * output_element),
                 .output_stride = output_stride,
                 .bias = bias,
                 .epilogue = epilogue,
                 .scratch = cases_take(table->scratch_bytes)},
        .input_bytes = weights->k_padded * input_element,
        .output_bytes = output_stride * output_element,
    };
    memset(made.call.output, 0, rows * made.output_bytes);
    return made;
}

static void *run_rows(const product *made, uint32_t first_row, uint32_t rows, uint32_t panels_at_once) {
    kernel_matmul call = made->call;
    call.input = (const char *)call.input + first_row * made->input_bytes;
    call.row_count = rows;
    call.output = cases_take(rows * made->output_bytes);
    uint32_t panels = kernel_matrix_panels(call.weights);
    for (uint32_t panel = 0; panel < panels; panel += panels_at_once) {
        uint32_t count = panels - panel < panels_at_once ? panels - panel : panels_at_once;
        table->matmul(&call, panel, count);
    }
    return call.output;
}

static float silu(float x) {
    return x / (1.0f + expf(-x));
}

/* Every output against a sum in double precision over the packed values: 3e-6 of the sum of magnitudes for f32
 * accumulation, and half a unit of bf16 where the output is bf16. */
static void assert_right(const product *made) {
    const kernel_matmul *call = &made->call;
    const kernel_matrix *b = call->weights;
    hd_dtype input_dtype = kernel_matrix_input_dtype(b);
    uint32_t outputs = call->epilogue == KERNEL_SWIGLU ? b->n / 2 : b->n;
    for (uint32_t row = 0; row < call->row_count; row++) {
        for (uint32_t i = 0; i < outputs; i++) {
            double sums[2] = {0}, magnitudes[2] = {0};
            uint32_t columns[2] = {call->epilogue == KERNEL_SWIGLU ? i / 64 * 128 + i % 64 : i,
                                   i / 64 * 128 + i % 64 + 64};
            for (int part = 0; part < (call->epilogue == KERNEL_SWIGLU ? 2 : 1); part++) {
                for (uint32_t k = 0; k < b->k; k++) {
                    double term = (double)cases_get(call->input, input_dtype, row * call->input_stride + k);
                    term *= kernel_matrix_get(b, k, columns[part]);
                    sums[part] += term;
                    magnitudes[part] += fabs(term);
                }
            }
            size_t index = row * call->output_stride + i;
            if (call->epilogue == KERNEL_SWIGLU) {
                float expected = silu((float)sums[0]) * (float)sums[1],
                      actual = cases_get(call->output, input_dtype, index);
                double slack = 4e-6 * (1.0 + magnitudes[0]) * (1.0 + magnitudes[1]);
                if (input_dtype == HD_BF16) slack += fabsf(expected) / 256.0;
                assert_true(fabs(actual - expected) <= slack);
            } else {
                double expected = sums[0] + (call->bias != NULL ? call->bias[i] : 0.0f);
                assert_true(fabs(((float *)call->output)[index] - expected) <= 3e-6 * (1.0 + magnitudes[0]));
            }
        }
    }
}

static const hd_dtype dtypes[] = {HD_F32, HD_BF16, HD_INT8};
static const uint32_t shapes[][3] = {{1, 1, 1},     {2, 16, 32},   {3, 17, 33},   {5, 64, 64},
                                     {7, 65, 100},  {15, 80, 160}, {16, 96, 96},  {17, 128, 1},
                                     {31, 48, 544}, {33, 112, 70}, {40, 200, 31}, {70, 130, 1100}};

static void products_are_right_at_every_odd_size(void **state) {
    uint64_t seed = 1;
    for (size_t d = 0; d < 3; d++) {
        for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++) {
            kernel_matrix weights = cases_matrix(dtypes[d], shapes[s][1], shapes[s][2], &seed);
            product made = make_product(&weights, shapes[s][0], KERNEL_STORE, s % 2 == 0, &seed);
            table->matmul(&made.call, 0, kernel_matrix_panels(&weights));
            assert_right(&made);
            cases_release();
        }
    }
}

static void add_leaves_the_sum_of_what_was_there_and_the_product(void **state) {
    uint64_t seed = 2;
    for (size_t d = 0; d < 3; d++) {
        kernel_matrix weights = cases_matrix(dtypes[d], 80, 100, &seed);
        product made = make_product(&weights, 19, KERNEL_ADD, d % 2 == 0, &seed);
        float *stored = run_rows(&made, 0, 19, 9), *before;
        size_t count = 19 * made.call.output_stride;
        before = cases_take(count * sizeof(float));
        cases_fill(before, HD_F32, count, 100.0f, &seed);
        memcpy(made.call.output, before, count * sizeof(float));
        table->matmul(&made.call, 0, kernel_matrix_panels(&weights));
        for (size_t i = 0; i < count; i++) {
            bool is_output = i % made.call.output_stride < weights.n;
            assert_true(((float *)made.call.output)[i] == (is_output ? before[i] + stored[i] : before[i]));
        }
        cases_release();
    }
}

static void swiglu_gates_pairs_of_panels(void **state) {
    uint64_t seed = 3;
    for (size_t d = 0; d < 3; d++) {
        for (uint32_t rows = 1; rows < 40; rows += 19) {
            kernel_matrix weights = cases_matrix(dtypes[d], 384, 200, &seed);
            product made = make_product(&weights, rows, KERNEL_SWIGLU, false, &seed);
            table->matmul(&made.call, 0, 2);
            table->matmul(&made.call, 2, 4);
            assert_right(&made);
            cases_release();
        }
    }
}

static void swiglu_of_large_values_is_finite(void **state) {
    uint64_t seed = 4;
    kernel_matrix weights = cases_matrix(HD_F32, 128, 32, &seed);
    product made = make_product(&weights, 2, KERNEL_SWIGLU, false, &seed);
    cases_fill((void *)made.call.input, HD_F32, 64, 1000.0f, &seed);
    table->matmul(&made.call, 0, 2);
    for (uint32_t i = 0; i < 2 * made.call.output_stride; i++) assert_true(isfinite(((float *)made.call.output)[i]));
    assert_right(&made);
}

static void columns_past_n_and_other_panels_are_not_written(void **state) {
    uint64_t seed = 5;
    for (size_t d = 0; d < 3; d++) {
        kernel_matrix weights = cases_matrix(dtypes[d], 201, 64, &seed);
        product made = make_product(&weights, 20, KERNEL_STORE, false, &seed);
        float *output = made.call.output;
        for (size_t i = 0; i < 20 * made.call.output_stride; i++) output[i] = -7.5f;
        table->matmul(&made.call, 1, 1);
        table->matmul(&made.call, 3, 1);
        for (size_t i = 0; i < 20 * made.call.output_stride; i++) {
            size_t column = i % made.call.output_stride;
            bool is_written = (column >= 64 && column < 128) || (column >= 192 && column < 201);
            assert_int_equal(output[i] != -7.5f, is_written);
        }
        cases_release();
    }
}

static void a_row_has_the_same_bits_for_any_number_of_rows(void **state) {
    uint64_t seed = 6;
    enum { ROWS = 70 };
    for (size_t d = 0; d < 3; d++) {
        for (int epilogue = KERNEL_STORE; epilogue <= KERNEL_SWIGLU; epilogue++) {
            kernel_matrix weights = cases_matrix(dtypes[d], epilogue == KERNEL_SWIGLU ? 128 : 80, 1300, &seed);
            product made = make_product(&weights, ROWS, (kernel_epilogue)epilogue, epilogue == KERNEL_ADD, &seed);
            char *together = run_rows(&made, 0, ROWS, 100);
            for (uint32_t rows = 1; rows < ROWS; rows++) {
                uint32_t first = cases_random_below(&seed, ROWS - rows + 1);
                char *part = run_rows(&made, first, rows, 100);
                assert_memory_equal(part, together + first * made.output_bytes, rows * made.output_bytes);
            }
            for (uint32_t row = 0; row < ROWS; row++) {
                assert_memory_equal(run_rows(&made, row, 1, 100), together + row * made.output_bytes,
                                    made.output_bytes);
            }
            cases_release();
        }
    }
}

static void rows_of_a_large_batch_have_the_bits_that_they_have_alone(void **state) {
    uint64_t seed = 7;
    enum { ROWS = 1100 };
    for (size_t d = 0; d < 3; d++) {
        kernel_matrix weights = cases_matrix(dtypes[d], 144, 1056, &seed);
        product made = make_product(&weights, ROWS, KERNEL_STORE, false, &seed);
        char *together = run_rows(&made, 0, ROWS, 100);
        for (uint32_t row = 0; row < ROWS; row += 61) {
            assert_memory_equal(run_rows(&made, row, 1, 100), together + row * made.output_bytes, made.output_bytes);
        }
        cases_release();
    }
}

static void any_split_of_the_panels_gives_the_same_bits(void **state) {
    uint64_t seed = 8;
    for (size_t d = 0; d < 3; d++) {
        for (uint32_t rows = 1; rows <= 64; rows += 21) {
            kernel_matrix weights = cases_matrix(dtypes[d], 720, 320, &seed);
            product made = make_product(&weights, rows, KERNEL_STORE, false, &seed);
            void *whole = run_rows(&made, 0, rows, 100);
            for (uint32_t at_once = 1; at_once < 12; at_once++) {
                assert_memory_equal(run_rows(&made, 0, rows, at_once), whole, rows * made.output_bytes);
            }
            cases_release();
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(products_are_right_at_every_odd_size, cases_teardown),
        cmocka_unit_test_teardown(add_leaves_the_sum_of_what_was_there_and_the_product, cases_teardown),
        cmocka_unit_test_teardown(swiglu_gates_pairs_of_panels, cases_teardown),
        cmocka_unit_test_teardown(swiglu_of_large_values_is_finite, cases_teardown),
        cmocka_unit_test_teardown(columns_past_n_and_other_panels_are_not_written, cases_teardown),
        cmocka_unit_test_teardown(a_row_has_the_same_bits_for_any_number_of_rows, cases_teardown),
        cmocka_unit_test_teardown(rows_of_a_large_batch_have_the_bits_that_they_have_alone, cases_teardown),
        cmocka_unit_test_teardown(any_split_of_the_panels_gives_the_same_bits, cases_teardown),
    };
    return cases_run(tests, sizeof(tests) / sizeof(tests[0]));
}
