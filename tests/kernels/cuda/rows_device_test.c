/* The device's kernels over rows and pages against the portable table, and graphs. */
#include <string.h>

#include "kernels/cuda/operations.h"
#include "tests/kernels/cuda/device_cases.h"

/* bf16 results of two ways to the same number: one unit in the last place, 2^-8, and what fp32 leaves. */
static void assert_close(uint16_t actual, float expected) {
    float got = hd_bf16_to_f32(actual);
    if (!(fabsf(got - expected) <= 1e-6f + fabsf(expected) * 8e-3f)) fail_msg("%g, not %g", got, expected);
}

static float *random_floats(size_t count, float scale, uint64_t *seed) {
    float *values = cases_take(count * sizeof(float));
    cases_fill(values, HD_F32, count, scale, seed);
    return values;
}

static uint16_t *random_halves(size_t count, float scale, uint64_t *seed) {
    uint16_t *values = cases_take(count * sizeof(uint16_t));
    cases_fill(values, HD_BF16, count, scale, seed);
    return values;
}

static void rmsnorm_is_right_and_pads_with_zeros(void **state) {
    static const uint32_t widths[] = {1, 31, 64, 300, 2048}, row_counts[] = {1, 3, 50};
    uint64_t seed = 1;
    for (size_t i = 0; i < 5; i++) {
        for (size_t r = 0; r < 3; r++) {
            uint32_t width = widths[i], rows = row_counts[r], padded = (width + 31) / 32 * 32;
            size_t stride = width + 5, output_stride = padded + 3;
            float *x = random_floats(rows * stride, 2.0f, &seed), *weight = random_floats(width, 1.0f, &seed);
            float *expected = cases_take(rows * stride * sizeof(float));
            kernel_ops_portable()->rmsnorm(x, stride, weight, 1e-5f, rows, width, HD_F32, expected, stride);
            rmsnorm_arguments call = {.input = device_put(x, rows * stride * sizeof(float)),
                                      .input_stride = stride,
                                      .output_stride = output_stride,
                                      .weight = device_put(weight, width * sizeof(float)),
                                      .eps = 1e-5f,
                                      .row_count = rows,
                                      .width = width,
                                      .output = device_take(rows * output_stride * sizeof(uint16_t))};
            assert_ok(device_rmsnorm(queue, &call));
            const uint16_t *y = device_get(call.output, rows * output_stride * sizeof(uint16_t));
            for (uint32_t row = 0; row < rows; row++) {
                for (uint32_t c = 0; c < width; c++)
                    assert_close(y[row * output_stride + c], expected[row * stride + c]);
                for (uint32_t c = width; c < padded; c++) assert_int_equal(y[row * output_stride + c], 0);
            }
            device_teardown(NULL);
        }
    }
}

static void a_row_has_the_same_bits_alone_and_together(void **state) {
    uint64_t seed = 2;
    uint32_t width = 1000, rows = 70;
    float *x = random_floats((size_t)rows * width, 2.0f, &seed), *weight = random_floats(width, 1.0f, &seed);
    rmsnorm_arguments call = {.input = device_put(x, rows * width * sizeof(float)),
                              .input_stride = width,
                              .output_stride = width,
                              .weight = device_put(weight, width * sizeof(float)),
                              .row_count = rows,
                              .width = width,
                              .output = device_take(rows * width * sizeof(uint16_t))};
    assert_ok(device_rmsnorm(queue, &call));
    const uint16_t *together = device_get(call.output, rows * width * sizeof(uint16_t));
    call.input += 69 * width;
    call.row_count = 1;
    assert_ok(device_rmsnorm(queue, &call));
    assert_memory_equal(device_get(call.output, width * sizeof(uint16_t)), together + 69 * width,
                        width * sizeof(uint16_t));
}

typedef struct heads_case {
    uint32_t query_heads, kv_heads, head_dim, rotary_dim;
    bool has_norms;
} heads_case;

static void assert_split(const heads_case *c, uint32_t rows, uint64_t *seed) {
    uint32_t d = c->head_dim, half = c->rotary_dim / 2, group = c->query_heads / c->kv_heads,
             stride = (d + 31) / 32 * 32;
    uint32_t heads = c->query_heads + 2 * c->kv_heads;
    size_t width = (size_t)heads * d, qkv_stride = width + 4, kv_width = (size_t)c->kv_heads * d;
    float *qkv = random_floats(rows * qkv_stride, 2.0f, seed), *angles = random_floats(rows * half + 1, 3.0f, seed);
    float *query_norm = random_floats(d, 1.0f, seed), *key_norm = random_floats(d, 1.0f, seed);
    float *cosines = cases_take((rows * half + 1) * sizeof(float)),
          *sines = cases_take((rows * half + 1) * sizeof(float));
    for (size_t i = 0; i < rows * half; i++) {
        cosines[i] = cosf(angles[i]);
        sines[i] = sinf(angles[i]);
    }
    size_t query_count = (size_t)rows * c->query_heads * stride;
    split_rows_arguments call = {.qkv = device_put(qkv, rows * qkv_stride * sizeof(float)),
                                 .qkv_stride = qkv_stride,
                                 .query_norm = c->has_norms ? device_put(query_norm, d * sizeof(float)) : NULL,
                                 .key_norm = c->has_norms ? device_put(key_norm, d * sizeof(float)) : NULL,
                                 .eps = 1e-6f,
                                 .cosines = device_put(cosines, (rows * half + 1) * sizeof(float)),
                                 .sines = device_put(sines, (rows * half + 1) * sizeof(float)),
                                 .row_count = rows,
                                 .query_heads = c->query_heads,
                                 .kv_heads = c->kv_heads,
                                 .head_dim = d,
                                 .rotary_dim = c->rotary_dim,
                                 .query_stride = stride,
                                 .queries = device_take(query_count * sizeof(uint16_t)),
                                 .keys = device_take(rows * kv_width * sizeof(uint16_t)),
                                 .values = device_take(rows * kv_width * sizeof(uint16_t))};
    assert_ok(device_split_rows(queue, &call));
    const uint16_t *queries = device_get(call.queries, query_count * sizeof(uint16_t));
    const uint16_t *keys = device_get(call.keys, rows * kv_width * sizeof(uint16_t));
    const uint16_t *values = device_get(call.values, rows * kv_width * sizeof(uint16_t));
    const kernel_ops *portable = kernel_ops_portable();
    for (uint32_t row = 0; row < rows; row++) {
        float *x = qkv + row * qkv_stride, *k = x + (size_t)c->query_heads * d, *v = k + kv_width;
        if (c->has_norms) {
            portable->rmsnorm(x, d, query_norm, 1e-6f, c->query_heads, d, HD_F32, x, d);
            portable->rmsnorm(k, d, key_norm, 1e-6f, c->kv_heads, d, HD_F32, k, d);
        }
        portable->rope(x, c->query_heads + c->kv_heads, d, c->rotary_dim, cosines + row * half, sines + row * half);
        for (uint32_t h = 0; h < c->query_heads; h++) {
            const uint16_t *q = queries + (((size_t)(h / group) * rows + row) * group + h % group) * stride;
            for (uint32_t i = 0; i < d; i++) {
                /* Of a rotation that cancels, fp32 leaves more than of the result's own size. */
                if (fabsf(hd_bf16_to_f32(q[i]) - x[h * d + i]) > 2e-5f) assert_close(q[i], x[h * d + i]);
            }
            for (uint32_t i = d; i < stride; i++) assert_int_equal(q[i], 0);
        }
        for (size_t i = 0; i < kv_width; i++) {
            if (fabsf(hd_bf16_to_f32(keys[row * kv_width + i]) - k[i]) > 2e-5f)
                assert_close(keys[row * kv_width + i], k[i]);
            assert_int_equal(values[row * kv_width + i], hd_f32_to_bf16(v[i]));
        }
    }
    device_teardown(NULL);
}

static void heads_are_normed_rotated_and_placed(void **state) {
    static const heads_case shapes[] = {{4, 2, 64, 64, false},   {8, 1, 80, 32, true},    {3, 3, 96, 96, true},
                                        {5, 5, 128, 128, false}, {16, 1, 256, 128, true}, {2, 1, 64, 0, false}};
    uint64_t seed = 3;
    for (size_t i = 0; i < 6; i++) {
        assert_split(&shapes[i], 1, &seed);
        assert_split(&shapes[i], 7, &seed);
    }
}

static void gates_multiply_their_up_columns(void **state) {
    uint64_t seed = 4;
    uint32_t rows = 3, width = 192;
    size_t stride = 2 * width + 6, output_stride = width + 2;
    float *x = random_floats(rows * stride, 3.0f, &seed);
    silu_multiply_arguments call = {.gate_up = device_put(x, rows * stride * sizeof(float)),
                                    .gate_up_stride = stride,
                                    .output_stride = output_stride,
                                    .row_count = rows,
                                    .width = width,
                                    .output = device_take(rows * output_stride * sizeof(uint16_t))};
    assert_ok(device_silu_multiply(queue, &call));
    const uint16_t *y = device_get(call.output, rows * output_stride * sizeof(uint16_t));
    for (uint32_t row = 0; row < rows; row++) {
        for (uint32_t i = 0; i < width; i++) {
            const float *gate = x + row * stride + i / 64 * 128 + i % 64;
            assert_close(y[row * output_stride + i], gate[0] / (1.0f + expf(-gate[0])) * gate[64]);
        }
    }
}

static void biases_are_added_to_every_row(void **state) {
    uint64_t seed = 5;
    uint32_t rows = 5, width = 37;
    float *x = random_floats(rows * 40, 3.0f, &seed), *bias = random_floats(width, 1.0f, &seed);
    add_bias_arguments call = {.output = device_put(x, rows * 40 * sizeof(float)),
                               .output_stride = 40,
                               .row_count = rows,
                               .width = width,
                               .bias = device_put(bias, width * sizeof(float))};
    assert_ok(device_add_bias(queue, &call));
    const float *y = device_get(call.output, rows * 40 * sizeof(float));
    for (uint32_t i = 0; i < rows * 40; i++) assert_true(y[i] == (i % 40 < width ? x[i] + bias[i % 40] : x[i]));
}

static void tokens_go_to_their_pages_and_replayed_ones_nowhere(void **state) {
    uint64_t seed = 6;
    uint32_t rows = 6, heads = 3, dim = 80;
    size_t width = (size_t)heads * dim, head_bytes = 40 * dim * sizeof(uint16_t), bytes = heads * head_bytes;
    uint16_t *keys = random_halves(rows * width, 1.0f, &seed), *values = random_halves(rows * width, 1.0f, &seed);
    uint64_t offsets[] = {0, 5 * dim * 2, ROW_NOT_STORED, 6 * dim * 2, 39 * dim * 2, ROW_NOT_STORED};
    unsigned char *pages = cases_take(2 * bytes);
    unsigned char *device_pages = device_put(pages, 2 * bytes);
    page_store_arguments call = {.offsets = device_put(offsets, sizeof(offsets)),
                                 .keys = device_put(keys, rows * width * sizeof(uint16_t)),
                                 .values = device_put(values, rows * width * sizeof(uint16_t)),
                                 .row_count = rows,
                                 .kv_heads = heads,
                                 .dim = dim,
                                 .keys_to = device_pages,
                                 .values_to = device_pages + bytes,
                                 .head_stride = head_bytes};
    assert_ok(device_page_store(queue, &call));
    for (uint32_t row = 0; row < rows; row++) {
        for (uint32_t head = 0; head < heads && offsets[row] != ROW_NOT_STORED; head++) {
            unsigned char *place = pages + offsets[row] + head * head_bytes;
            memcpy(place, keys + row * width + head * dim, dim * sizeof(uint16_t));
            memcpy(place + bytes, values + row * width + head * dim, dim * sizeof(uint16_t));
        }
    }
    assert_memory_equal(device_get(device_pages, 2 * bytes), pages, 2 * bytes);
}

static void summaries_are_exact_and_scores_bound_every_key(void **state) {
    uint64_t seed = 7;
    uint32_t heads = 2, dim = 96, pages = 5, rows = 3, group = 4, stride = 96;
    size_t page_elements = 128 * dim, head_elements = pages * page_elements;
    uint16_t *keys = random_halves(heads * head_elements, 1.0f, &seed);
    uint16_t *queries = random_halves((size_t)heads * rows * group * stride, 1.0f, &seed);
    page_summary_page list[5];
    for (uint32_t i = 0; i < pages; i++) {
        list[i] = (page_summary_page){
            .offset = i * page_elements * sizeof(uint16_t), .count = i == 4 ? 3 : 128 - i, .summary = pages - 1 - i};
    }
    size_t summary_bytes = pages * heads * 2 * dim * sizeof(uint16_t);
    page_summary_arguments call = {.pages = device_put(list, sizeof(list)),
                                   .page_count = pages,
                                   .kv_heads = heads,
                                   .dim = dim,
                                   .keys = device_put(keys, heads * head_elements * sizeof(uint16_t)),
                                   .head_stride = head_elements * sizeof(uint16_t),
                                   .summaries = device_take(summary_bytes)};
    assert_ok(device_page_summary(queue, &call));
    page_score_arguments score = {.queries =
                                      device_put(queries, (size_t)heads * rows * group * stride * sizeof(uint16_t)),
                                  .query_head_stride = (uint64_t)rows * group * stride,
                                  .query_stride = stride,
                                  .group_size = group,
                                  .row_count = rows,
                                  .kv_heads = heads,
                                  .dim = dim,
                                  .summaries = call.summaries,
                                  .first_summary = 1,
                                  .summary_count = pages - 1,
                                  .scale = 0.1f,
                                  .scores = device_take(rows * heads * (pages - 1) * sizeof(float))};
    assert_ok(device_page_score(queue, &score));
    const uint16_t *summaries = device_get(call.summaries, summary_bytes);
    const float *scores = device_get(score.scores, rows * heads * (pages - 1) * sizeof(float));
    for (uint32_t page = 0; page < pages; page++) {
        for (uint32_t head = 0; head < heads; head++) {
            const uint16_t *summary = summaries + (list[page].summary * heads + head) * 2 * dim;
            const uint16_t *first = keys + head * head_elements + page * page_elements;
            for (uint32_t i = 0; i < dim; i++) {
                float least = INFINITY, largest = -INFINITY;
                for (uint32_t token = 0; token < list[page].count; token++) {
                    least = fminf(least, hd_bf16_to_f32(first[token * dim + i]));
                    largest = fmaxf(largest, hd_bf16_to_f32(first[token * dim + i]));
                }
                assert_true(hd_bf16_to_f32(summary[i]) == least && hd_bf16_to_f32(summary[dim + i]) == largest);
            }
            if (list[page].summary == 0) continue;
            for (uint32_t row = 0; row < rows; row++) {
                double bound = -INFINITY;
                for (uint32_t g = 0; g < group; g++) {
                    const uint16_t *q = queries + ((size_t)head * rows * group + row * group + g) * stride;
                    double sum = 0.0;
                    for (uint32_t i = 0; i < dim; i++) {
                        double x = hd_bf16_to_f32(q[i]);
                        sum += fmax(x * hd_bf16_to_f32(summary[i]), x * hd_bf16_to_f32(summary[dim + i]));
                    }
                    bound = fmax(bound, sum * 0.1);
                }
                float got = scores[(row * heads + head) * (pages - 1) + list[page].summary - 1];
                assert_true(fabs(got - bound) <= 1e-4);
            }
        }
    }
}

static void logits_are_summarised_and_of_equals_the_first_wins(void **state) {
    static const uint32_t counts[] = {1, 7, 256, 1000, 5003};
    uint64_t seed = 8;
    for (size_t i = 0; i < 5; i++) {
        uint32_t rows = 4, count = counts[i];
        size_t stride = count + 3;
        float *logits = random_floats(rows * stride, 4.0f, &seed);
        if (count > 600) logits[stride + 600] = logits[stride + 99] = 50.0f;
        for (uint32_t c = 0; c < count; c++) logits[2 * stride + c] = 1.5f;
        logits_summary_arguments call = {.logits = device_put(logits, rows * stride * sizeof(float)),
                                         .stride = stride,
                                         .row_count = rows,
                                         .count = count,
                                         .argmax = device_take(rows * sizeof(uint32_t)),
                                         .max = device_take(rows * sizeof(float)),
                                         .log_sum_exp = device_take(rows * sizeof(float))};
        assert_ok(device_logits_summary(queue, &call));
        const uint32_t *argmax = device_get(call.argmax, rows * sizeof(uint32_t));
        const float *max = device_get(call.max, rows * sizeof(float));
        const float *lse = device_get(call.log_sum_exp, rows * sizeof(float));
        for (uint32_t row = 0; row < rows; row++) {
            uint32_t best;
            float best_logit, expected;
            kernel_ops_portable()->logits_summary(logits + row * stride, count, &best, &best_logit, &expected);
            assert_int_equal(argmax[row], best);
            assert_true(max[row] == best_logit);
            assert_true(fabsf(lse[row] - expected) <= 1e-5f * (1.0f + fabsf(expected)));
        }
        device_teardown(NULL);
    }
}

static void packed_weights_become_rows(void **state) {
    static const uint32_t shapes[][2] = {{16, 32}, {100, 70}, {192, 64}, {65, 33}};
    uint64_t seed = 9;
    for (size_t i = 0; i < 4; i++) {
        uint32_t n = shapes[i][0], k = shapes[i][1];
        kernel_matrix matrix = cases_matrix(HD_BF16, n, k, &seed);
        unpack_arguments call = {.packed = device_put(matrix.data, kernel_matrix_bytes(HD_BF16, n, k)),
                                 .n = n,
                                 .k = k,
                                 .n_padded = matrix.n_padded,
                                 .k_padded = matrix.k_padded,
                                 .rows = device_take((size_t)n * k * sizeof(uint16_t)),
                                 .row_stride = k};
        assert_ok(device_unpack(queue, &call));
        const uint16_t *rows = device_get(call.rows, (size_t)n * k * sizeof(uint16_t));
        for (uint32_t row = 0; row < n; row++) {
            for (uint32_t c = 0; c < k; c++)
                assert_true(hd_bf16_to_f32(rows[row * k + c]) == kernel_matrix_get(&matrix, c, row));
        }
        device_teardown(NULL);
    }
}

/* Also the promise of device.h: a row's bits, whatever the number of rows. */
static void products_are_right_and_the_same_for_any_number_of_rows(void **state) {
    uint64_t seed = 10;
    uint32_t n = is_quick ? 40 : 1536, k = is_quick ? 64 : 2048, rows = is_quick ? 20 : 700;
    uint16_t *weights = random_halves((size_t)n * k, 1.0f / sqrtf((float)k), &seed);
    uint16_t *input = random_halves((size_t)rows * k, 1.0f, &seed);
    float *bias = random_floats(n, 1.0f, &seed), *before = random_floats((size_t)rows * n, 1.0f, &seed);
    size_t output_bytes = (size_t)rows * n * sizeof(float);
    device_matmul call = {.weights = device_put(weights, (size_t)n * k * sizeof(uint16_t)),
                          .n = n,
                          .k = k,
                          .input = device_put(input, (size_t)rows * k * sizeof(uint16_t)),
                          .input_stride = k,
                          .output_stride = n,
                          .row_count = rows,
                          .output = device_put(before, output_bytes),
                          .bias = device_put(bias, n * sizeof(float)),
                          .epilogue = DEVICE_ADD};
    assert_ok(device->ops->matmul_prepare(queue, call.weights, n, k));
    assert_ok(device->ops->matmul(queue, &call));
    const float *output = device_get(call.output, output_bytes);
    for (uint32_t row = 0; row < rows; row += 37) {
        for (uint32_t c = 0; c < n; c++) {
            double sum = (double)before[(size_t)row * n + c] + bias[c];
            for (uint32_t i = 0; i < k; i++)
                sum += (double)hd_bf16_to_f32(input[(size_t)row * k + i]) * hd_bf16_to_f32(weights[(size_t)c * k + i]);
            assert_true(fabs(output[(size_t)row * n + c] - sum) <= 1e-4);
        }
    }
    call.epilogue = DEVICE_STORE;
    assert_ok(device->ops->matmul(queue, &call));
    const float *all = device_get(call.output, output_bytes);
    for (uint32_t few = 1; few < rows; few = few * 3 + 1) {
        call.row_count = few;
        assert_ok(device->ops->matmul(queue, &call));
        const float *some = device_get(call.output, (size_t)few * n * sizeof(float));
        assert_memory_equal(some, all, (size_t)few * n * sizeof(float));
    }
}

/* A graph does what was asked for, to what memory holds when it is replayed. */
static void graphs_read_memory_anew(void **state) {
    uint64_t seed = 11;
    uint32_t width = 100;
    float *first = random_floats(width, 1.0f, &seed), *second = random_floats(width, 5.0f, &seed);
    float *bias = random_floats(width, 1.0f, &seed);
    float *memory = device_put(first, width * sizeof(float));
    add_bias_arguments call = {.output = memory,
                               .output_stride = width,
                               .row_count = 1,
                               .width = width,
                               .bias = device_put(bias, width * sizeof(float))};
    kernel_graph *graph;
    assert_ok(device->ops->record_begin(queue));
    assert_ok(device_add_bias(queue, &call));
    assert_ok(device_add_bias(queue, &call));
    assert_ok(device->ops->record_end(queue, &graph));
    const float *values = device_get(memory, width * sizeof(float));
    for (uint32_t i = 0; i < width; i++) assert_true(values[i] == first[i]);
    for (int round = 0; round < 2; round++) {
        device_set(memory, round == 0 ? first : second, width * sizeof(float));
        assert_ok(device->ops->replay(queue, graph));
        values = device_get(memory, width * sizeof(float));
        for (uint32_t i = 0; i < width; i++)
            assert_true(values[i] == (round == 0 ? first : second)[i] + bias[i] + bias[i]);
    }
    device->ops->graph_close(graph);
}

static void one_queue_follows_another(void **state) {
    uint32_t count = 1 << 16;
    float *zeros = cases_take(count * sizeof(float)), one = 1.0f;
    float *memory = device_put(zeros, count * sizeof(float));
    float *bias = device_put(&one, sizeof(one));
    kernel_queue *other;
    kernel_event *event;
    assert_ok(device->ops->queue_open(device, &other));
    assert_ok(device->ops->event_open(device, &event));
    add_bias_arguments call = {.output = memory, .output_stride = 1, .row_count = count, .width = 1, .bias = bias};
    int rounds = is_quick ? 1 : 50;
    for (int i = 0; i < rounds; i++) assert_ok(device_add_bias(other, &call));
    assert_ok(device->ops->mark(other, event));
    assert_ok(device->ops->follow(queue, event));
    const float *values = device_get(memory, count * sizeof(float));
    for (uint32_t i = 0; i < count; i++) assert_true(values[i] == (float)rounds);
    device->ops->event_close(event);
    device->ops->queue_close(other);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(rmsnorm_is_right_and_pads_with_zeros, device_teardown),
        cmocka_unit_test_teardown(a_row_has_the_same_bits_alone_and_together, device_teardown),
        cmocka_unit_test_teardown(heads_are_normed_rotated_and_placed, device_teardown),
        cmocka_unit_test_teardown(gates_multiply_their_up_columns, device_teardown),
        cmocka_unit_test_teardown(biases_are_added_to_every_row, device_teardown),
        cmocka_unit_test_teardown(tokens_go_to_their_pages_and_replayed_ones_nowhere, device_teardown),
        cmocka_unit_test_teardown(summaries_are_exact_and_scores_bound_every_key, device_teardown),
        cmocka_unit_test_teardown(logits_are_summarised_and_of_equals_the_first_wins, device_teardown),
        cmocka_unit_test_teardown(packed_weights_become_rows, device_teardown),
        cmocka_unit_test_teardown(products_are_right_and_the_same_for_any_number_of_rows, device_teardown),
        cmocka_unit_test_teardown(graphs_read_memory_anew, device_teardown),
        cmocka_unit_test_teardown(one_queue_follows_another, device_teardown),
    };
    return device_cases_run(tests, sizeof(tests) / sizeof(tests[0]));
}
