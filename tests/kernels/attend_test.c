/* Attention of every table: right against a softmax in double precision, exact about what a row may see, and the
 * same bits for a row whatever runs beside it and whatever comes after it. */
#include "tests/kernels/cases.h"

static bool is_visible(const kernel_attend *call, uint32_t row, uint64_t position) {
    uint64_t own = call->positions[row];
    return position <= own && (call->window == 0 || position + call->window > own);
}

static float *floats_of(const void *elements, hd_dtype dtype, size_t count) {
    float *floats = cases_take(count * sizeof(float));
    for (size_t i = 0; i < count; i++) floats[i] = cases_get(elements, dtype, i);
    return floats;
}

/* out / sum against the definition: 1e-5 of the largest value for f32; for bf16 the weights' rounding, 2^-9 each, of
 * random sign. */
static void assert_right(const kernel_attend *call, const cases_context *context) {
    const kernel_page_shape *shape = &context->shape;
    double tolerance = shape->dtype == HD_F32 ? 1e-5 : 4e-3, lse_tolerance = shape->dtype == HD_F32 ? 1e-5 : 2e-3;
    hd_dtype dtype = kernel_row_dtype(shape->dtype);
    const float *keys = floats_of(context->keys, dtype, (size_t)context->token_count * shape->key_dim),
                *values = floats_of(context->values, dtype, (size_t)context->token_count * shape->value_dim);
    double *scores = cases_take(context->token_count * sizeof(double)),
           *out = cases_take(shape->value_dim * sizeof(double));
    float *query = cases_take(shape->key_dim * sizeof(float));
    for (uint32_t row = 0; row < call->row_count; row++) {
        for (uint32_t k = 0; k < shape->key_dim; k++)
            query[k] = cases_get(call->queries, dtype, row * call->query_stride + k);
        double max = -INFINITY, sum = 0.0;
        for (uint32_t token = 0; token < context->token_count; token++) {
            double s = 0.0;
            for (uint32_t k = 0; k < shape->key_dim; k++)
                s += (double)query[k] * keys[(size_t)token * shape->key_dim + k];
            s *= call->scale;
            if (call->soft_cap > 0.0f) s = call->soft_cap * tanh(s / call->soft_cap);
            scores[token] = is_visible(call, row, token) ? s : -INFINITY;
            max = fmax(max, scores[token]);
        }
        memset(out, 0, shape->value_dim * sizeof(double));
        for (uint32_t token = 0; token < context->token_count; token++) {
            double weight = is_visible(call, row, token) ? exp(scores[token] - max) : 0.0;
            sum += weight;
            for (uint32_t n = 0; weight > 0.0 && n < shape->value_dim; n++)
                out[n] += weight * values[(size_t)token * shape->value_dim + n];
        }
        const float *actual = call->partial.out + row * call->partial.out_stride;
        float actual_max = call->partial.max[row], actual_sum = call->partial.sum[row];
        if (sum == 0.0) {
            assert_true(actual_max == -INFINITY && actual_sum == 0.0f);
            for (uint32_t n = 0; n < shape->value_dim; n++) assert_true(actual[n] == 0.0f);
            continue;
        }
        assert_true(fabs(actual_max - max) <= 8.0); /* ops.h, rule 2 */
        assert_true(fabs(actual_max + log(actual_sum) - max - log(sum)) <= lse_tolerance);
        for (uint32_t n = 0; n < shape->value_dim; n++)
            assert_true(fabs(actual[n] / actual_sum - out[n] / sum) <= tolerance);
    }
}

static const hd_dtype dtypes[] = {HD_F32, HD_BF16, HD_INT8};
static const uint32_t dims[][2] = {{64, 64},   {80, 80}, {96, 96},   {128, 128},
                                   {256, 256}, {16, 16}, {192, 128}, {64, 272}};

static void answers_are_right_for_every_head_size(void **state) {
    uint64_t seed = 1;
    for (size_t t = 0; t < 3; t++) {
        for (size_t d = 0; d < sizeof(dims) / sizeof(dims[0]); d++) {
            kernel_page_shape shape = {dtypes[t], dims[d][0], dims[d][1]};
            if (shape.dtype == HD_INT8 && shape.value_dim > KERNEL_INT8_DIM_MAX) continue;
            cases_context context = cases_make_context(&shape, 300 + (uint32_t)d, &seed);
            kernel_attend call = cases_attend(&context, 37, 1, &seed);
            table->attend(&call);
            assert_right(&call, &context);
            cases_release();
        }
    }
}

static void answers_are_right_for_every_group_size_window_cap_and_length(void **state) {
    static const uint32_t rows[] = {1, 2, 3, 4, 7, 8, 16, 33, 70}, lengths[] = {1, 5, 127, 128, 129, 1024};
    static const uint64_t windows[] = {0, 1, 50, 128, 300};
    uint64_t seed = 2;
    for (size_t t = 0; t < 3; t++) {
        for (size_t r = 0; r < sizeof(rows) / sizeof(rows[0]); r += dtypes[t] == HD_INT8 ? 3 : 1) {
            for (size_t l = 0; l < sizeof(lengths) / sizeof(lengths[0]); l++) {
                kernel_page_shape shape = {dtypes[t], 64, 64};
                cases_context context = cases_make_context(&shape, lengths[l], &seed);
                kernel_attend call = cases_attend(&context, rows[r], 1 + cases_random_below(&seed, 8), &seed);
                call.window = windows[(r + l) % 5];
                call.soft_cap = (r + l) % 3 == 0 ? 1.5f : 0.0f;
                table->attend(&call);
                assert_right(&call, &context);
                cases_release();
            }
        }
    }
}

static void spans_may_start_inside_a_page_and_leave_positions_out(void **state) {
    uint64_t seed = 3;
    for (size_t t = 0; t < 3; t++) {
        kernel_page_shape shape = {dtypes[t], 64, 64};
        cases_context context = cases_make_context(&shape, 400, &seed);
        kernel_span parts[] = {
            {.first = 3, .count = 20}, {.first = 90, .count = 38}, {.first = 0, .count = 0}, {.first = 5, .count = 1}};
        uint32_t pages[] = {0, 0, 1, 3};
        for (int i = 0; i < 4; i++) {
            parts[i].keys = context.spans[pages[i]].keys;
            parts[i].values = context.spans[pages[i]].values;
            parts[i].position = pages[i] * HD_BLOCK_TOKENS + parts[i].first;
        }
        kernel_attend call = cases_attend(&context, 5, 1, &seed), one_by_one = cases_attend_again(&call);
        call.spans = parts;
        call.span_count = 4;
        table->attend(&call);
        /* The same through a merge of the spans, one call each. */
        for (uint32_t row = 0; row < 5; row++) one_by_one.partial.max[row] = -INFINITY;
        for (int i = 0; i < 4; i++) {
            kernel_attend part = cases_attend_again(&call);
            part.spans = &parts[i];
            part.span_count = 1;
            table->attend(&part);
            table->merge(&one_by_one.partial, &part.partial, 5, 64);
        }
        for (uint32_t row = 0; row < 5; row++) {
            float sum = call.partial.sum[row], other_sum = one_by_one.partial.sum[row];
            float lse = call.partial.max[row] + logf(sum), other_lse = one_by_one.partial.max[row] + logf(other_sum);
            assert_true(fabsf(lse - other_lse) <= (dtypes[t] == HD_F32 ? 1e-5f : 4e-3f));
            for (uint32_t n = 0; n < 64; n++) {
                float difference =
                    call.partial.out[row * 64 + n] / sum - one_by_one.partial.out[row * 64 + n] / other_sum;
                assert_true(fabsf(difference) <= (dtypes[t] == HD_F32 ? 1e-5f : 2e-2f));
            }
        }
        cases_release();
    }
}

static void assert_same_rows(const kernel_attend *a, uint32_t first_a, const kernel_attend *b, uint32_t first_b,
                             uint32_t rows) {
    size_t row_bytes = a->shape.value_dim * sizeof(float);
    for (uint32_t row = 0; row < rows; row++) {
        assert_memory_equal(a->partial.out + (first_a + row) * a->partial.out_stride,
                            b->partial.out + (first_b + row) * b->partial.out_stride, row_bytes);
    }
    assert_memory_equal(a->partial.max + first_a, b->partial.max + first_b, rows * sizeof(float));
    assert_memory_equal(a->partial.sum + first_a, b->partial.sum + first_b, rows * sizeof(float));
}

static kernel_attend rows_of(const kernel_attend *call, uint32_t first, uint32_t rows) {
    kernel_attend part = *call;
    part.row_count = rows;
    part.queries = (const char *)call->queries +
                   first * call->query_stride * (hd_dtype_bits(kernel_row_dtype(call->shape.dtype)) / 8);
    part.positions = call->positions + first;
    return cases_attend_again(&part);
}

static void a_row_has_the_same_bits_alone_and_together(void **state) {
    uint64_t seed = 4;
    for (size_t t = 0; t < 3; t++) {
        for (size_t d = 0; d < 5; d++) {
            kernel_page_shape shape = {dtypes[t], dims[d][0], dims[d][1]};
            cases_context context = cases_make_context(&shape, 400, &seed);
            kernel_attend all = cases_attend(&context, 150, 1 + (uint32_t)d, &seed);
            all.window = d == 2 ? 200 : 0;
            all.soft_cap = d == 3 ? 2.0f : 0.0f;
            table->attend(&all);
            for (uint32_t rows = 1; rows < 150; rows = rows * 2 + 1) {
                uint32_t first = cases_random_below(&seed, 150 - rows);
                kernel_attend part = rows_of(&all, first, rows);
                table->attend(&part);
                assert_same_rows(&part, 0, &all, first, rows);
            }
            cases_release();
        }
    }
}

/* A decoding row must not notice whether the rest of its page, and the pages after it, were there when it ran. */
static void later_positions_leave_a_row_its_bits(void **state) {
    uint64_t seed = 5;
    for (size_t t = 0; t < 3; t++) {
        for (uint32_t own = 0; own < 300; own += 23) {
            kernel_page_shape shape = {dtypes[t], 64, 80};
            cases_context context = cases_make_context(&shape, 512, &seed);
            kernel_attend with = cases_attend(&context, 40, 40, &seed);
            for (uint32_t row = 0; row < 40; row++) ((uint64_t *)with.positions)[row] = row % 2 == 0 ? own : own + 150;
            table->attend(&with);

            kernel_attend without = cases_attend_again(&with);
            kernel_span spans[4];
            without.span_count = own / HD_BLOCK_TOKENS + 1;
            without.spans = spans;
            memcpy(spans, context.spans, sizeof(spans));
            spans[own / HD_BLOCK_TOKENS].count = own % HD_BLOCK_TOKENS + 1;
            uint32_t slots_left = HD_BLOCK_TOKENS - 1 - own % HD_BLOCK_TOKENS;
            void *junk = cases_take(slots_left * 80 * sizeof(float));
            cases_fill(junk, kernel_row_dtype(dtypes[t]), slots_left * 80, 1000.0f, &seed);
            table->page_store(&shape, (void *)spans[own / HD_BLOCK_TOKENS].keys,
                              (void *)spans[own / HD_BLOCK_TOKENS].values, own % HD_BLOCK_TOKENS + 1, slots_left, junk,
                              64, junk, 80);
            table->attend(&without);
            for (uint32_t row = 0; row < 40; row += 2) assert_same_rows(&without, row, &with, row, 1);
            cases_release();
        }
    }
}

static void spans_that_no_row_sees_change_nothing(void **state) {
    uint64_t seed = 6;
    for (size_t t = 0; t < 3; t++) {
        kernel_page_shape shape = {dtypes[t], 96, 96};
        cases_context context = cases_make_context(&shape, 1000, &seed);
        kernel_attend all = cases_attend(&context, 4, 4, &seed), some = cases_attend_again(&all);
        all.window = some.window = 130; /* positions 870 to 999: the last two pages */
        some.spans = all.spans + 6;
        some.span_count = 2;
        table->attend(&all);
        table->attend(&some);
        assert_same_rows(&all, 0, &some, 0, 4);
        cases_release();
    }
}

static void a_row_that_sees_nothing_is_the_empty_partial(void **state) {
    uint64_t seed = 7;
    for (size_t t = 0; t < 3; t++) {
        kernel_page_shape shape = {dtypes[t], 64, 64};
        cases_context context = cases_make_context(&shape, 200, &seed);
        kernel_attend call = cases_attend(&context, 9, 9, &seed), none = cases_attend_again(&call);
        kernel_span late = context.spans[1];
        late.position = 10000;
        none.spans = &late;
        none.span_count = 1;
        ((uint64_t *)none.positions)[4] = 10003; /* one row sees a little; the others see nothing */
        memset(none.partial.out, 0x55, 9 * 64 * sizeof(float));
        table->attend(&none);
        for (uint32_t row = 0; row < 9; row++) {
            assert_int_equal(none.partial.max[row] == -INFINITY, row != 4);
            assert_int_equal(none.partial.sum[row] == 0.0f, row != 4);
            for (uint32_t n = 0; row != 4 && n < 64; n++) assert_true(none.partial.out[row * 64 + n] == 0.0f);
        }
        none.span_count = 0;
        table->attend(&none);
        for (uint32_t i = 0; i < 9 * 64; i++) assert_true(none.partial.out[i] == 0.0f);
        for (uint32_t row = 0; row < 9; row++)
            assert_true(none.partial.max[row] == -INFINITY && none.partial.sum[row] == 0.0f);
        cases_release();
    }
}

static void huge_scores_stay_finite_and_pick_the_largest(void **state) {
    uint64_t seed = 8;
    for (size_t t = 0; t < 3; t++) {
        kernel_page_shape shape = {dtypes[t], 64, 64};
        cases_context context = cases_make_context(&shape, 500, &seed);
        kernel_attend call = cases_attend(&context, 6, 1, &seed);
        call.scale = 3e4f;
        table->attend(&call);
        for (uint32_t row = 0; row < 6; row++) {
            /* At 3e5 a float is 0.03 from the next, and the weight of the largest is off by as much. */
            assert_true(isfinite(call.partial.max[row]) && call.partial.sum[row] >= 0.96f);
            for (uint32_t n = 0; n < 64; n++) assert_true(isfinite(call.partial.out[row * 64 + n]));
        }
        cases_release();
    }
}

static void the_largest_score_may_come_first_or_last(void **state) {
    uint64_t seed = 9;
    kernel_page_shape shape = {HD_BF16, 64, 64};
    cases_context context = cases_make_context(&shape, 1024, &seed);
    kernel_attend call = cases_attend(&context, 2, 2, &seed);
    for (uint32_t i = 0; i < 64; i++) { /* row 0 looks like token 0, row 1 like the last */
        ((uint16_t *)call.queries)[i] = hd_f32_to_bf16(4.0f * cases_get(context.keys, HD_BF16, i));
        ((uint16_t *)call.queries)[call.query_stride + i] =
            hd_f32_to_bf16(4.0f * cases_get(context.keys, HD_BF16, 1023 * 64 + i));
    }
    table->attend(&call);
    assert_right(&call, &context);
}

/* Weights of a row whose scores grow far beyond its first ones may have left the range of floats on the way. */
static void a_score_far_above_those_before_is_right_and_moves_no_other_row(void **state) {
    uint64_t seed = 12;
    kernel_page_shape shape = {HD_BF16, 64, 64};
    cases_context context = cases_make_context(&shape, 1024, &seed);
    kernel_attend call = cases_attend(&context, 40, 40, &seed);
    static const uint32_t steep[] = {5, 17, 39}, tokens[] = {1023, 300, 700};
    for (uint32_t i = 0; i < 3; i++) {
        for (uint32_t k = 0; k < 64; k++) {
            ((uint16_t *)call.queries)[steep[i] * call.query_stride + k] =
                hd_f32_to_bf16(40.0f * cases_get(context.keys, HD_BF16, (size_t)tokens[i] * 64 + k));
        }
    }
    table->attend(&call);
    assert_right(&call, &context);
    for (uint32_t row = 0; row < 40; row++) {
        kernel_attend alone = rows_of(&call, row, 1);
        table->attend(&alone);
        assert_same_rows(&alone, 0, &call, row, 1);
    }
    cases_release();
}

static kernel_partial make_partial(uint32_t rows, uint32_t dim, uint64_t *seed) {
    kernel_partial partial = {.out = cases_take(rows * (dim + 3) * sizeof(float)),
                              .out_stride = dim + 3,
                              .max = cases_take(rows * sizeof(float)),
                              .sum = cases_take(rows * sizeof(float))};
    cases_fill(partial.out, HD_F32, rows * (dim + 3), 1.0f, seed);
    cases_fill(partial.max, HD_F32, rows, 20.0f, seed);
    for (uint32_t row = 0; row < rows; row++) partial.sum[row] = 1.0f + fabsf(cases_random(seed));
    return partial;
}

static void merge_weighs_by_max_and_leaves_bits_alone_beside_the_empty(void **state) {
    uint64_t seed = 10;
    for (uint32_t dim = 16; dim <= 272; dim += 16) {
        kernel_partial into = make_partial(5, dim, &seed), from = make_partial(5, dim, &seed);
        from.max[1] = -INFINITY; /* row 1: nothing to add; row 2: nothing there yet; row 3: neither */
        into.max[2] = into.max[3] = from.max[3] = -INFINITY;
        for (uint32_t n = 0; n < dim; n++) {
            from.out[from.out_stride + n] = into.out[2 * into.out_stride + n] = 0.0f;
            from.out[3 * from.out_stride + n] = into.out[3 * into.out_stride + n] = 0.0f;
        }
        from.sum[1] = into.sum[2] = into.sum[3] = from.sum[3] = 0.0f;
        kernel_partial before = {
            .out = cases_take(5 * into.out_stride * sizeof(float)), .max = cases_take(20), .sum = cases_take(20)};
        memcpy(before.out, into.out, 5 * into.out_stride * sizeof(float));
        memcpy(before.max, into.max, 20);
        memcpy(before.sum, into.sum, 20);
        table->merge(&into, &from, 5, dim);
        assert_memory_equal(into.out + into.out_stride, before.out + into.out_stride, dim * sizeof(float));
        assert_memory_equal(into.out + 2 * into.out_stride, from.out + 2 * from.out_stride, dim * sizeof(float));
        assert_true(into.max[1] == before.max[1] && into.sum[1] == before.sum[1]);
        assert_true(into.max[2] == from.max[2] && into.sum[2] == from.sum[2]);
        assert_true(into.max[3] == -INFINITY && into.sum[3] == 0.0f);
        for (uint32_t row = 0; row < 5; row += 4) {
            double max = fmax(before.max[row], from.max[row]);
            double keep = exp(before.max[row] - max), add = exp(from.max[row] - max);
            assert_true(into.max[row] == (float)max);
            assert_true(fabs(into.sum[row] - before.sum[row] * keep - from.sum[row] * add) <= 1e-5);
            for (uint32_t n = 0; n < dim; n++) {
                double expected =
                    before.out[row * into.out_stride + n] * keep + from.out[row * from.out_stride + n] * add;
                assert_true(fabs(into.out[row * into.out_stride + n] - expected) <= 1e-5);
            }
        }
        cases_release();
    }
}

static void finish_divides_joins_the_sink_and_returns_the_lse(void **state) {
    uint64_t seed = 11;
    for (int variant = 0; variant < 4; variant++) {
        hd_dtype dtype = variant % 2 == 0 ? HD_F32 : HD_BF16;
        kernel_partial partial = make_partial(4, 80, &seed);
        float sinks[4] = {-3.0f, 40.0f, 0.5f, 1.0f}, lse[4];
        partial.max[2] = -INFINITY;
        partial.sum[2] = 0.0f;
        for (uint32_t n = 0; n < 80; n++) partial.out[2 * partial.out_stride + n] = 0.0f;
        bool has_sinks = variant >= 2;
        void *output = cases_take(4 * 96 * sizeof(float));
        table->finish(&partial, 4, 80, has_sinks ? sinks : NULL, dtype, output, 96, lse);
        for (uint32_t row = 0; row < 4; row++) {
            double top = fmax(partial.max[row], has_sinks ? sinks[row] : -INFINITY);
            double sum = partial.sum[row] * exp(partial.max[row] - top) + (has_sinks ? exp(sinks[row] - top) : 0.0);
            if (row == 2) {
                assert_true(lse[row] == -INFINITY);
            } else {
                assert_true(fabs(lse[row] - top - log(sum)) <= 1e-5 * (1.0 + fabs(top)));
            }
            for (uint32_t n = 0; n < 80; n++) {
                double expected =
                    row == 2 ? 0.0 : partial.out[row * partial.out_stride + n] * exp(partial.max[row] - top) / sum;
                assert_true(fabs(cases_get(output, dtype, row * 96 + n) - expected) <=
                            1e-6 + fabs(expected) * (dtype == HD_F32 ? 1e-5 : 4e-3));
            }
        }
        table->finish(&partial, 4, 80, NULL, dtype, output, 96, NULL);
        cases_release();
    }
}

static void page_store_places_every_token(void **state) {
    uint64_t seed = 12;
    for (size_t t = 0; t < 2; t++) {
        for (size_t d = 0; d < sizeof(dims) / sizeof(dims[0]); d++) {
            kernel_page_shape shape = {dtypes[t], dims[d][0], dims[d][1]};
            size_t key_stride = shape.key_dim + 7, value_stride = shape.value_dim + 3;
            void *keys = cases_take(128 * key_stride * 4), *values = cases_take(128 * value_stride * 4);
            cases_fill(keys, shape.dtype, 128 * key_stride, 1.0f, &seed);
            cases_fill(values, shape.dtype, 128 * value_stride, 1.0f, &seed);
            kernel_matrix key_page, value_page;
            kernel_matrix_init(&key_page, shape.dtype, 128, shape.key_dim, cases_take(kernel_page_key_bytes(&shape)),
                               NULL);
            kernel_matrix_init(&value_page, shape.dtype, shape.value_dim, 128,
                               cases_take(kernel_page_value_bytes(&shape)), NULL);
            size_t bytes = hd_dtype_bits(shape.dtype) / 8;
            for (uint32_t slot = 0, count = 1; slot < 128; slot += count, count = count * 2 + 1) {
                if (slot + count > 128) count = 128 - slot;
                table->page_store(&shape, key_page.data, value_page.data, slot, count,
                                  (char *)keys + slot * key_stride * bytes, key_stride,
                                  (char *)values + slot * value_stride * bytes, value_stride);
            }
            for (uint32_t slot = 0; slot < 128; slot++) {
                for (uint32_t k = 0; k < key_page.k_padded; k++) {
                    float expected = k < shape.key_dim ? cases_get(keys, shape.dtype, slot * key_stride + k) : 0.0f;
                    assert_true(kernel_matrix_get(&key_page, k, slot) == expected);
                }
                for (uint32_t n = 0; n < shape.value_dim; n++) {
                    assert_true(kernel_matrix_get(&value_page, slot, n) ==
                                cases_get(values, shape.dtype, slot * value_stride + n));
                }
            }
            cases_release();
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(answers_are_right_for_every_head_size, cases_teardown),
        cmocka_unit_test_teardown(answers_are_right_for_every_group_size_window_cap_and_length, cases_teardown),
        cmocka_unit_test_teardown(spans_may_start_inside_a_page_and_leave_positions_out, cases_teardown),
        cmocka_unit_test_teardown(a_row_has_the_same_bits_alone_and_together, cases_teardown),
        cmocka_unit_test_teardown(later_positions_leave_a_row_its_bits, cases_teardown),
        cmocka_unit_test_teardown(spans_that_no_row_sees_change_nothing, cases_teardown),
        cmocka_unit_test_teardown(a_row_that_sees_nothing_is_the_empty_partial, cases_teardown),
        cmocka_unit_test_teardown(huge_scores_stay_finite_and_pick_the_largest, cases_teardown),
        cmocka_unit_test_teardown(the_largest_score_may_come_first_or_last, cases_teardown),
        cmocka_unit_test_teardown(a_score_far_above_those_before_is_right_and_moves_no_other_row, cases_teardown),
        cmocka_unit_test_teardown(merge_weighs_by_max_and_leaves_bits_alone_beside_the_empty, cases_teardown),
        cmocka_unit_test_teardown(finish_divides_joins_the_sink_and_returns_the_lse, cases_teardown),
        cmocka_unit_test_teardown(page_store_places_every_token, cases_teardown),
    };
    return cases_run(tests, sizeof(tests) / sizeof(tests[0]));
}
