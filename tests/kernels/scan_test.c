/* scan_test.c - the scans of every table against plain sums. */
#include "kernels/scan.h"

#include <string.h>

#include "tests/kernels/cases.h"

static void a_row_scores_its_dot_product_wherever_it_lies(void **state) {
    const uint32_t dims[] = {16, 64, 80, 128, 512};
    uint64_t seed = 1;
    for (size_t d = 0; d < sizeof(dims) / sizeof(dims[0]); d++) {
        uint32_t dim = dims[d], count = 37;
        size_t stride = dim + 16;
        float *query = cases_take(dim * sizeof(float)), *scores = cases_take(count * sizeof(float)), single;
        uint16_t *rows = cases_take((count * stride - 16) * sizeof(uint16_t));
        for (uint32_t i = 0; i < dim; i++) query[i] = cases_random(&seed);
        cases_fill(rows, HD_BF16, count * stride - 16, 1.0f, &seed);
        table->scan->dot_rows(query, dim, rows, stride, count, scores);
        for (uint32_t i = 0; i < count; i++) {
            double sum = 0.0, size = 0.0;
            for (uint32_t k = 0; k < dim; k++) {
                double product = (double)query[k] * cases_get(rows, HD_BF16, i * stride + k);
                sum += product;
                size += fabs(product);
            }
            assert_true(fabs(scores[i] - sum) <= 1e-6 * size);
            table->scan->dot_rows(query, dim, rows + i * stride, stride, 1, &single);
            assert_memory_equal(&single, &scores[i], sizeof(single));
        }
    }
}

static void fill_bytes(uint8_t *bytes, size_t count, uint64_t *seed) {
    for (size_t i = 0; i < count; i++) bytes[i] = (uint8_t)cases_random_below(seed, 256);
}

static void sums_of_looked_up_nibbles_become_scores(void **state) {
    enum { BLOCKS = 9 };
    uint64_t seed = 2;
    uint8_t *tables = cases_take(SCAN_NIBBLES * 16), *blocks = cases_take(BLOCKS * SCAN_BLOCK_BYTES);
    float *scores = cases_take(BLOCKS * SCAN_BLOCK * sizeof(*scores));
    for (uint32_t round = 0; round < 4; round++) {
        float base = round < 2 ? 0.0f : cases_random(&seed), step = round < 2 ? 1.0f : cases_random(&seed);
        fill_bytes(tables, SCAN_NIBBLES * 16, &seed);
        fill_bytes(blocks, BLOCKS * SCAN_BLOCK_BYTES, &seed);
        if (round == 0) memset(tables, 255, SCAN_NIBBLES * 16); /* the largest sums there are */
        table->scan->nibble_scores(tables, blocks, BLOCKS, base, step, scores);
        for (uint32_t i = 0; i < BLOCKS * SCAN_BLOCK; i++) {
            uint32_t sum = 0, block = i / SCAN_BLOCK, key = i % SCAN_BLOCK;
            for (uint32_t n = 0; n < SCAN_NIBBLES; n++) {
                uint8_t byte = blocks[block * SCAN_BLOCK_BYTES + n / 2 * SCAN_BLOCK + key];
                sum += tables[scan_table(n) * 16 + (n % 2 == 0 ? byte % 16 : byte / 16)];
            }
            assert_true(scores[i] == base + step * (float)sum);
        }
    }
}

static void every_nibble_has_a_table_of_its_own(void **state) {
    uint32_t seen = 0;
    for (uint32_t n = 0; n < SCAN_NIBBLES; n++) seen |= 1u << scan_table(n);
    assert_int_equal(seen, (1u << SCAN_NIBBLES) - 1);
}

static void products_with_nibbles_are_exact(void **state) {
    const uint32_t widths[] = {1, 16, 24, 32};
    uint64_t seed = 3;
    for (size_t w = 0; w < sizeof(widths) / sizeof(widths[0]); w++) {
        enum { ROWS = 50, ASKED = 33 };
        uint32_t row_bytes = widths[w], rows[ASKED];
        int8_t *weights = cases_take(2 * SCAN_ROW_BYTES);
        uint8_t *codes = cases_take((ROWS - 1) * row_bytes + SCAN_ROW_BYTES);
        int32_t dots[ASKED];
        fill_bytes(codes, (ROWS - 1) * row_bytes + SCAN_ROW_BYTES, &seed);
        for (uint32_t b = 0; b < row_bytes; b++) {
            weights[b] = w == 0 ? 127 : (int8_t)((int)cases_random_below(&seed, 255) - 127);
            weights[SCAN_ROW_BYTES + b] = (int8_t)((int)cases_random_below(&seed, 255) - 127);
        }
        for (uint32_t i = 0; i < ASKED; i++) rows[i] = cases_random_below(&seed, ROWS);
        table->scan->nibble_dots(weights, codes, row_bytes, rows, ASKED, dots);
        for (uint32_t i = 0; i < ASKED; i++) {
            int32_t sum = 0;
            for (uint32_t b = 0; b < row_bytes; b++) {
                int32_t byte = codes[rows[i] * row_bytes + b];
                sum += byte % 16 * weights[b] + byte / 16 * weights[SCAN_ROW_BYTES + b];
            }
            assert_int_equal(dots[i], sum);
        }
    }
}

static void products_with_bytes_are_summed_in_whole_numbers(void **state) {
    const uint32_t shapes[][2] = {{16, 32}, {2048, 64}, {80, 48}, {250, 16}};
    uint64_t seed = 4;
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        kernel_matrix matrix = cases_matrix(HD_INT8, shapes[i][0], shapes[i][1], &seed);
        int16_t *query = cases_take(matrix.k_padded * sizeof(*query));
        float *scores = cases_take(matrix.n * sizeof(*scores));
        for (uint32_t k = 0; k < matrix.k; k++) query[k] = (int16_t)((int)cases_random_below(&seed, 65535) - 32767);
        table->scan->byte_scores(query, &matrix, 3.0f, 0.5f, scores);
        for (uint32_t c = 0; c < matrix.n; c++) {
            int64_t sum = 0;
            for (uint32_t k = 0; k < matrix.k; k++)
                sum += query[k] * (int64_t)lrintf(kernel_matrix_get(&matrix, k, c) / matrix.scales[c]);
            double right = 3.0 + 0.5 * (double)matrix.scales[c] * (double)sum;
            assert_true(fabs(scores[c] - right) <= 3e-7 * fabs(right - 3.0) + 1e-6);
        }
    }
}

static void scores_from_a_limit_on_are_counted_and_collected(void **state) {
    uint64_t seed = 5;
    for (uint32_t count = 0; count < 70; count++) {
        float *scores = cases_take(count * sizeof(*scores)), limit = (float)(count % 5) - 2.0f;
        uint32_t indices[70], at = 0;
        for (uint32_t i = 0; i < count; i++) scores[i] = (float)cases_random_below(&seed, 9) - 4.0f;
        uint32_t found = table->scan->collect_from(scores, count, limit, indices, 70);
        assert_int_equal(table->scan->count_from(scores, count, limit), found);
        for (uint32_t i = 0; i < count; i++)
            if (scores[i] >= limit) assert_int_equal(indices[at++], i);
        assert_int_equal(at, found);
        assert_int_equal(table->scan->collect_from(scores, count, limit, indices, found / 2), found / 2);
    }
}

static void weighted_sums_of_rows_of_nibbles_are_exact(void **state) {
    enum { ROWS = 60, ASKED = 53, ROW_BYTES = 24 };
    uint64_t seed = 8;
    uint8_t *codes = cases_take((ROWS - 1) * ROW_BYTES + SCAN_ROW_BYTES);
    float *weights = cases_take(ASKED * sizeof(float));
    for (uint32_t round = 0; round < 3; round++) {
        uint32_t rows[ASKED];
        int32_t sums[2 * SCAN_ROW_BYTES], right[2 * SCAN_ROW_BYTES], total = 0;
        fill_bytes(codes, (ROWS - 1) * ROW_BYTES + SCAN_ROW_BYTES, &seed);
        if (round == 0) memset(codes, 255, (ROWS - 1) * ROW_BYTES + SCAN_ROW_BYTES);
        for (uint32_t b = 0; b < 2 * SCAN_ROW_BYTES; b++) sums[b] = right[b] = (int32_t)b;
        for (uint32_t i = 0; i < ASKED; i++) {
            rows[i] = cases_random_below(&seed, ROWS);
            weights[i] = round == 0 ? 1.0f : (float)cases_random_below(&seed, 1001) * 0.001f;
            int32_t weight = (int32_t)lrintf(weights[i] * 127.0f);
            total += weight;
            for (uint32_t b = 0; b < SCAN_ROW_BYTES; b++) {
                right[b] += weight * (codes[rows[i] * ROW_BYTES + b] % 16);
                right[SCAN_ROW_BYTES + b] += weight * (codes[rows[i] * ROW_BYTES + b] / 16);
            }
        }
        assert_int_equal(table->scan->nibble_row_sums(codes, ROW_BYTES, rows, ASKED, weights, 127.0f, sums), total);
        assert_memory_equal(sums, right, sizeof(sums));
    }
}

/* Tilts of 0, of 1 and between them, a variance of 0, and weights of nothing. */
static void uncertain_scores_weigh_by_mean_and_variance(void **state) {
    uint64_t seed = 7;
    for (uint32_t count = 0; count < 70; count += count < 40 ? 1 : 13) {
        const scan_weighing weighing = {
            .scale = 0.5f, .variance = count % 4 == 3 ? 0.0f : 3.0f, .limit = 6.0f, .max = 7.0f};
        float *scores = cases_take(count * sizeof(float)), *spreads = cases_take(count * sizeof(float));
        float *weights = cases_take(count * sizeof(float)), *spread_weights = cases_take(count * sizeof(float));
        double right[70], sum = 0.0, tilted = 0.0, most = 0.0;
        for (uint32_t i = 0; i < count; i++) {
            scores[i] = i % 7 == 0 ? -100.0f : 10.0f * cases_random(&seed) + 5.0f;
            spreads[i] = 1.2f + cases_random(&seed);
            weights[i] = (float)(i % 3);
            double mean = 0.5 * (double)scores[i], square = (double)spreads[i] * (double)spreads[i];
            double variance = (double)weighing.variance * square, below = fmax(6.0 - mean, 0.0);
            double tilt = variance > below ? below / variance : 1.0;
            right[i] = weights[i] * exp(fmin(mean + variance * tilt * (1.0 - 0.5 * tilt), 6.0) - 7.0);
            sum += right[i];
            tilted += right[i] * tilt * square;
            most = fmax(most, right[i] * (double)spreads[i]);
        }
        scan_weight_sums sums = table->scan->weigh(&weighing, scores, spreads, count, weights, spread_weights);
        for (uint32_t i = 0; i < count; i++) {
            assert_true(fabs(weights[i] - right[i]) <= 3e-5 * right[i]);
            assert_true(spread_weights[i] == weights[i] * spreads[i]);
        }
        assert_true(fabs(sums.weight - sum) <= 1e-5 * sum && fabs(sums.tilted - tilted) <= 1e-5 * tilted);
        assert_true(fabs(sums.most - most) <= 1e-5 * most);
    }
}

static void blocks_weigh_without_what_their_masks_name(void **state) {
    enum { BLOCKS = 3 };
    uint64_t seed = 11;
    float *scores = cases_take(BLOCKS * SCAN_BLOCK * sizeof(*scores));
    uint16_t *masks = cases_take(BLOCKS * sizeof(*masks));
    double sum = 0.0;
    for (uint32_t i = 0; i < BLOCKS * SCAN_BLOCK; i++) {
        scores[i] = i % 11 == 0 ? -INFINITY : 10.0f * cases_random(&seed);
        if (cases_random_below(&seed, 3) == 0) masks[i / SCAN_BLOCK] |= (uint16_t)(1u << i % SCAN_BLOCK);
        else if (i % 11 != 0) sum += exp(0.5 * fmin((double)scores[i], 6.0) - 3.0);
    }
    float weight = table->scan->weigh_blocks(scores, masks, BLOCKS, 6.0f, 0.5f, -3.0f);
    assert_true(fabs(weight - sum) <= 1e-5 * sum);
    memset(masks, 255, BLOCKS * sizeof(*masks));
    assert_true(table->scan->weigh_blocks(scores, masks, BLOCKS, 6.0f, 0.5f, -3.0f) == 0.0f);
    assert_true(table->scan->weigh_blocks(scores, masks, 0, 6.0f, 0.5f, -3.0f) == 0.0f);
}

static void sums_come_with_their_bounds(void **state) {
    uint64_t seed = 12;
    for (uint32_t count = 0; count < 50; count++) {
        float *a = cases_take(count * sizeof(*a)), *b = cases_take(count * sizeof(*b));
        float *sums = cases_take(count * sizeof(*sums)), least, greatest, low = INFINITY, high = -INFINITY;
        for (uint32_t i = 0; i < count; i++) {
            a[i] = cases_random(&seed);
            b[i] = cases_random(&seed);
        }
        table->scan->add_scaled(a, b, 1.5f, count, sums, &least, &greatest);
        for (uint32_t i = 0; i < count; i++) {
            assert_true(fabs((double)sums[i] - ((double)a[i] + 1.5 * (double)b[i])) <= 5e-7);
            low = sums[i] < low ? sums[i] : low;
            high = sums[i] > high ? sums[i] : high;
        }
        assert_true(least == low && greatest == high && table->scan->largest(sums, count) == high);
    }
}

/* A page put together by plain copies, and by the table; many tokens have keys as rows beside their pages, or lie in
 * token rows. */
static void gathered_tokens_are_copies(void **state) {
    const kernel_page_shape shapes[] = {{HD_BF16, 64, 64}, {HD_BF16, 80, 48}, {HD_BF16, 128, 192}, {HD_F32, 64, 64}};
    uint64_t seed = 9, row_seed = 5;
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        const kernel_page_shape *shape = &shapes[i];
        cases_context context = cases_make_context(shape, 5 * HD_BLOCK_TOKENS, &seed);
        for (uint32_t count = 1; count <= HD_BLOCK_TOKENS; count += 1 + count * 2 / 3) {
            size_t key_bytes = kernel_page_key_bytes(shape), value_bytes = kernel_page_value_bytes(shape);
            void *keys = cases_take(key_bytes), *values = cases_take(value_bytes);
            void *right_keys = cases_take(key_bytes), *right_values = cases_take(value_bytes);
            size_t token_bytes = kernel_token_row_bytes(shape);
            char *rows = cases_take(5 * HD_BLOCK_TOKENS * token_bytes);
            for (uint32_t page = 0; page < 5; page++)
                kernel_token_rows_read(shape, context.spans[page].keys, context.spans[page].values,
                                       rows + page * HD_BLOCK_TOKENS * token_bytes);
            kernel_token tokens[HD_BLOCK_TOKENS];
            for (uint32_t t = 0; t < count; t++) {
                uint32_t token = cases_random_below(&seed, 5 * HD_BLOCK_TOKENS), slot = token % HD_BLOCK_TOKENS;
                const kernel_span *span = &context.spans[token / HD_BLOCK_TOKENS];
                size_t row_bytes = shape->key_dim * hd_dtype_bits(shape->dtype) / 8;
                bool has_row = t < 64 || t % 2 == 0;
                tokens[t] = (kernel_token){.key_row = has_row ? (const char *)context.keys + token * row_bytes : NULL,
                                           .keys = span->keys,
                                           .values = span->values,
                                           .slot = slot};
                if (cases_random_below(&row_seed, 2) == 0) {
                    tokens[t].row = rows + token * token_bytes;
                    tokens[t].keys = tokens[t].values = NULL;
                }
                kernel_page_copy_key(shape, span->keys, slot, right_keys, t);
                kernel_page_copy_value(shape, span->values, slot, right_values, t);
            }
            table->gather(shape, tokens, count, keys, values);
            assert_memory_equal(keys, right_keys, key_bytes);
            assert_memory_equal(values, right_values, value_bytes);
        }
        cases_release();
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_row_scores_its_dot_product_wherever_it_lies, cases_teardown),
        cmocka_unit_test_teardown(sums_of_looked_up_nibbles_become_scores, cases_teardown),
        cmocka_unit_test(every_nibble_has_a_table_of_its_own),
        cmocka_unit_test_teardown(products_with_nibbles_are_exact, cases_teardown),
        cmocka_unit_test_teardown(weighted_sums_of_rows_of_nibbles_are_exact, cases_teardown),
        cmocka_unit_test_teardown(uncertain_scores_weigh_by_mean_and_variance, cases_teardown),
        cmocka_unit_test_teardown(blocks_weigh_without_what_their_masks_name, cases_teardown),
        cmocka_unit_test_teardown(sums_come_with_their_bounds, cases_teardown),
        cmocka_unit_test_teardown(gathered_tokens_are_copies, cases_teardown),
        cmocka_unit_test_teardown(products_with_bytes_are_summed_in_whole_numbers, cases_teardown),
        cmocka_unit_test_teardown(scores_from_a_limit_on_are_counted_and_collected, cases_teardown),
    };
    return cases_run(tests, sizeof(tests) / sizeof(tests[0]));
}
