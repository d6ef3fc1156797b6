/* index_linear_test.c - factors give their matrix back, and the space keeps every score. */
#include "attention-node/index_linear.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>

#include "attention-node/index_space.h"
#include "kernels/dtype.h"

enum { N = 32, KEYS = 600, QUERIES = 400 };

static float uniform(uint64_t *seed) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(*seed >> 40) * 0x1p-24f - 0.5f;
}

static void random_covariance(float *a, uint64_t *seed) {
    float rows[2 * N][N];
    for (uint32_t r = 0; r < 2 * N; r++)
        for (uint32_t i = 0; i < N; i++) rows[r][i] = uniform(seed) * (float)(i + 1);
    for (uint32_t i = 0; i < N * N; i++) {
        a[i] = 0.0f;
        for (uint32_t r = 0; r < 2 * N; r++) a[i] += rows[r][i / N] * rows[r][i % N];
    }
}

static void a_cholesky_factor_gives_the_matrix_back_and_solves_it(void **state) {
    uint64_t seed = 1;
    float a[N * N], lower[N * N], b[N], x[N];
    random_covariance(a, &seed);
    for (uint32_t i = 0; i < N * N; i++) lower[i] = a[i];
    linear_cholesky(lower, N, 0.0f);
    for (uint32_t i = 0; i < N; i++) {
        b[i] = x[i] = uniform(&seed);
        for (uint32_t j = 0; j < N; j++) {
            float sum = 0.0f;
            for (uint32_t k = 0; k < N; k++) sum += lower[i * N + k] * lower[j * N + k];
            assert_true(fabsf(sum - a[i * N + j]) <= 1e-4f * sqrtf(a[i * N + i] * a[j * N + j]));
            if (j > i) assert_true(lower[i * N + j] == 0.0f);
        }
    }
    linear_solve_lower(lower, N, x);
    linear_solve_upper(lower, N, x);
    for (uint32_t i = 0; i < N; i++) {
        float sum = 0.0f;
        for (uint32_t j = 0; j < N; j++) sum += a[i * N + j] * x[j];
        assert_true(fabsf(sum - b[i]) <= 1e-2f);
    }
}

static void rotations_make_rows_orthogonal_and_keep_lengths(void **state) {
    uint64_t seed = 2;
    float f[N * N], before[N * N], rotation[N * N];
    for (uint32_t i = 0; i < N * N; i++) before[i] = f[i] = uniform(&seed) * (float)(i % N + 1);
    linear_orthogonalise(f, rotation, N);
    for (uint32_t i = 0; i < N; i++) {
        for (uint32_t j = 0; j < N; j++) {
            float product = 0.0f, turned = 0.0f, own = 0.0f, others = 0.0f, rows = 0.0f;
            for (uint32_t k = 0; k < N; k++) {
                product += f[i * N + k] * f[j * N + k];
                own += f[i * N + k] * f[i * N + k];
                others += f[j * N + k] * f[j * N + k];
                turned += rotation[i * N + k] * before[k * N + j];
                rows += rotation[i * N + k] * rotation[j * N + k];
            }
            if (i != j) assert_true(fabsf(product) <= 1e-3f * sqrtf(own * others));
            assert_true(fabsf(turned - f[i * N + j]) <= 1e-3f * (float)N);
            assert_true(fabsf(rows - (i == j ? 1.0f : 0.0f)) <= 1e-4f);
        }
    }
}

/* All coordinates together are an exact change of basis; the first of them hold most of a score, and a direction that
 * no query looks along comes last, however much keys differ in it. */
static void coordinates_keep_scores_and_come_in_the_order_of_their_weight(void **state) {
    static uint16_t keys[KEYS * N], queries[QUERIES * N];
    static float to_keys[N * N], to_queries[N * N], mean[N], variances[N];
    uint64_t seed = 3;
    for (uint32_t i = 0; i < KEYS * N; i++)
        keys[i] = hd_f32_to_bf16((i % N == 5 ? 100.0f : 1.0f) * uniform(&seed) + (i % N == 7 ? 9.0f : 0.0f));
    for (uint32_t i = 0; i < QUERIES * N; i++)
        queries[i] = hd_f32_to_bf16(i % N == 5 ? 0.0f : uniform(&seed) * (float)(i % N + 1));
    index_space space = {
        .key_dim = N, .dim = N, .to_keys = to_keys, .to_queries = to_queries, .mean = mean, .variances = variances};
    float *scratch = malloc(index_space_bytes(N));
    assert_non_null(scratch);
    index_space_fit(&space, keys, KEYS, queries, QUERIES, scratch);
    free(scratch);
    for (uint32_t i = 1; i < N; i++) assert_true(variances[i] <= variances[i - 1]);
    double square = 0.0, error = 0.0;
    for (uint32_t n = 0; n < 100; n++) {
        double exact = 0.0, kept = 0.0;
        for (uint32_t i = 0; i < N; i++)
            exact += ((double)hd_bf16_to_f32(keys[n * N + i]) - (double)mean[i]) *
                     (double)hd_bf16_to_f32(queries[n * N + i]);
        for (uint32_t c = 0; c < N; c++) {
            double x = 0.0, z = 0.0;
            for (uint32_t i = 0; i < N; i++) {
                x += (double)to_keys[c * N + i] * ((double)hd_bf16_to_f32(keys[n * N + i]) - (double)mean[i]);
                z += (double)to_queries[c * N + i] * (double)hd_bf16_to_f32(queries[n * N + i]);
            }
            kept += x * z;
        }
        square += exact * exact;
        error += (exact - kept) * (exact - kept);
    }
    assert_true(error <= 1e-4 * square);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cholesky_factor_gives_the_matrix_back_and_solves_it),
        cmocka_unit_test(rotations_make_rows_orthogonal_and_keep_lengths),
        cmocka_unit_test(coordinates_keep_scores_and_come_in_the_order_of_their_weight),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
