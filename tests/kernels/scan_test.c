/* scan_test.c - the scans of every table against plain sums. */
#include "kernels/scan.h"

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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_row_scores_its_dot_product_wherever_it_lies, cases_teardown),
    };
    return cases_run(tests, sizeof(tests) / sizeof(tests[0]));
}
