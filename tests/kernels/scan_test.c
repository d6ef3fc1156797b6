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

static void sums_of_looked_up_nibbles_are_exact(void **state) {
    enum { BLOCKS = 9 };
    uint64_t seed = 2;
    uint8_t *tables = cases_take(SCAN_NIBBLES * 16), *blocks = cases_take(BLOCKS * SCAN_BLOCK_BYTES);
    uint16_t *sums = cases_take(BLOCKS * SCAN_BLOCK * sizeof(*sums));
    for (uint32_t round = 0; round < 4; round++) {
        fill_bytes(tables, SCAN_NIBBLES * 16, &seed);
        fill_bytes(blocks, BLOCKS * SCAN_BLOCK_BYTES, &seed);
        if (round == 0) memset(tables, 255, SCAN_NIBBLES * 16); /* the largest sums there are */
        table->scan->nibble_sums(tables, blocks, BLOCKS, sums);
        for (uint32_t i = 0; i < BLOCKS * SCAN_BLOCK; i++) {
            uint32_t sum = 0, block = i / SCAN_BLOCK, key = i % SCAN_BLOCK;
            for (uint32_t n = 0; n < SCAN_NIBBLES; n++) {
                uint8_t byte = blocks[block * SCAN_BLOCK_BYTES + n / 2 * SCAN_BLOCK + key];
                sum += tables[scan_table(n) * 16 + (n % 2 == 0 ? byte % 16 : byte / 16)];
            }
            assert_int_equal(sums[i], sum);
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

static void products_with_bytes_are_exact(void **state) {
    const uint32_t shapes[][2] = {{16, 32}, {2048, 64}, {80, 48}, {250, 16}};
    uint64_t seed = 4;
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        kernel_matrix matrix = cases_matrix(HD_INT8, shapes[i][0], shapes[i][1], &seed);
        int16_t *query = cases_take(matrix.k_padded * sizeof(*query));
        int32_t *dots = cases_take(matrix.n * sizeof(*dots));
        for (uint32_t k = 0; k < matrix.k; k++) query[k] = (int16_t)((int)cases_random_below(&seed, 65535) - 32767);
        table->scan->byte_dots(query, &matrix, dots);
        for (uint32_t c = 0; c < matrix.n; c++) {
            int64_t sum = 0;
            for (uint32_t k = 0; k < matrix.k; k++)
                sum += query[k] * (int64_t)lrintf(kernel_matrix_get(&matrix, k, c) / matrix.scales[c]);
            assert_int_equal(dots[c], sum);
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

static void weighted_moments_of_nibbles_agree(void **state) {
    enum { BLOCKS = 5, PARTS = 20 };
    uint64_t seed = 6;
    uint8_t *blocks = cases_take(BLOCKS * SCAN_BLOCK_BYTES), *nibbles = cases_take(PARTS);
    float *tables = cases_take(PARTS * 16 * sizeof(float)), *weights = cases_take(BLOCKS * SCAN_BLOCK * sizeof(float));
    float moments[PARTS];
    fill_bytes(blocks, BLOCKS * SCAN_BLOCK_BYTES, &seed);
    for (uint32_t i = 0; i < PARTS * 16; i++) tables[i] = cases_random(&seed);
    for (uint32_t i = 0; i < BLOCKS * SCAN_BLOCK; i++) weights[i] = fabsf(cases_random(&seed));
    for (uint32_t p = 0; p < PARTS; p++) {
        nibbles[p] = (uint8_t)cases_random_below(&seed, SCAN_NIBBLES);
        moments[p] = (float)p;
    }
    table->scan->nibble_moments(tables, nibbles, PARTS, blocks, BLOCKS, weights, moments);
    for (uint32_t p = 0; p < PARTS; p++) {
        double sum = p, size = p + 1.0;
        for (uint32_t i = 0; i < BLOCKS * SCAN_BLOCK; i++) {
            uint8_t byte = blocks[i / SCAN_BLOCK * SCAN_BLOCK_BYTES + nibbles[p] / 2 * SCAN_BLOCK + i % SCAN_BLOCK];
            double product = weights[i] * (double)tables[p * 16 + (nibbles[p] % 2 == 0 ? byte % 16 : byte / 16)];
            sum += product;
            size += fabs(product);
        }
        assert_true(fabs(moments[p] - sum) <= 1e-6 * size);
    }
}

static void exponentials_agree_and_vanish_at_minus_infinity(void **state) {
    uint64_t seed = 7;
    float *x = cases_take(37 * sizeof(*x)), before[37];
    for (uint32_t i = 0; i < 37; i++) before[i] = x[i] = 10.0f * cases_random(&seed) - 5.0f;
    before[3] = x[3] = before[36] = x[36] = -INFINITY;
    before[4] = x[4] = 0.0f;
    table->scan->exponentials(x, 37);
    for (uint32_t i = 0; i < 37; i++) assert_true(fabs(x[i] - exp((double)before[i])) <= 4e-6 * exp((double)before[i]));
    assert_true(x[3] == 0.0f && x[36] == 0.0f && x[4] == 1.0f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_row_scores_its_dot_product_wherever_it_lies, cases_teardown),
        cmocka_unit_test_teardown(sums_of_looked_up_nibbles_are_exact, cases_teardown),
        cmocka_unit_test(every_nibble_has_a_table_of_its_own),
        cmocka_unit_test_teardown(products_with_nibbles_are_exact, cases_teardown),
        cmocka_unit_test_teardown(weighted_moments_of_nibbles_agree, cases_teardown),
        cmocka_unit_test_teardown(exponentials_agree_and_vanish_at_minus_infinity, cases_teardown),
        cmocka_unit_test_teardown(products_with_bytes_are_exact, cases_teardown),
        cmocka_unit_test_teardown(scores_from_a_limit_on_are_counted_and_collected, cases_teardown),
    };
    return cases_run(tests, sizeof(tests) / sizeof(tests[0]));
}
