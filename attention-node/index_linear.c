/* index_linear.c - Cholesky factors and one-sided Jacobi rotations (Hestenes), whose inner loops are whole rows. */
#include "attention-node/index_linear.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

static float dot(const float *a, const float *b, uint32_t n) {
    float sums[8] = {0};
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (uint32_t lane = 0; lane < 8; lane++) sums[lane] += a[i + lane] * b[i + lane];
    for (; i < n; i++) sums[0] += a[i] * b[i];
    return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

void linear_cholesky(float *a, uint32_t n, float floor) {
    for (uint32_t i = 0; i < n; i++) {
        float *row = a + (size_t)i * n;
        for (uint32_t j = 0; j < i; j++) {
            const float *other = a + (size_t)j * n;
            row[j] = (row[j] - dot(row, other, j)) / other[j];
        }
        float pivot = row[i] - dot(row, row, i);
        row[i] = sqrtf(pivot > floor ? pivot : floor);
        memset(row + i + 1, 0, (n - i - 1) * sizeof(*row));
    }
}

void linear_solve_lower(const float *lower, uint32_t n, float *b) {
    for (uint32_t i = 0; i < n; i++) b[i] = (b[i] - dot(lower + (size_t)i * n, b, i)) / lower[(size_t)i * n + i];
}

void linear_solve_upper(const float *lower, uint32_t n, float *b) {
    for (uint32_t i = n; i-- > 0;) {
        b[i] /= lower[(size_t)i * n + i];
        for (uint32_t j = 0; j < i; j++) b[j] -= lower[(size_t)i * n + j] * b[i];
    }
}

static void turn(float *a, float *b, uint32_t n, float cosine, float sine) {
    for (uint32_t i = 0; i < n; i++) {
        float x = a[i], y = b[i];
        a[i] = cosine * x - sine * y;
        b[i] = sine * x + cosine * y;
    }
}

/* Turns rows p and q so that they become orthogonal; false when they were. */
static bool orthogonalise_pair(float *f, float *rotation, uint32_t n, uint32_t p, uint32_t q) {
    float *a = f + (size_t)p * n, *b = f + (size_t)q * n;
    float aa = dot(a, a, n), bb = dot(b, b, n), ab = dot(a, b, n);
    if (!(fabsf(ab) > 1e-5f * sqrtf(aa * bb))) return false;
    float zeta = (bb - aa) / (2.0f * ab);
    float tangent = copysignf(1.0f, zeta) / (fabsf(zeta) + sqrtf(1.0f + zeta * zeta));
    float cosine = 1.0f / sqrtf(1.0f + tangent * tangent), sine = cosine * tangent;
    turn(a, b, n, cosine, sine);
    turn(rotation + (size_t)p * n, rotation + (size_t)q * n, n, cosine, sine);
    return true;
}

void linear_orthogonalise(float *f, float *rotation, uint32_t n) {
    enum { SWEEPS_MAX = 16 };
    memset(rotation, 0, (size_t)n * n * sizeof(*rotation));
    for (uint32_t i = 0; i < n; i++) rotation[(size_t)i * n + i] = 1.0f;
    bool is_turning = true;
    for (uint32_t sweep = 0; is_turning && sweep < SWEEPS_MAX; sweep++) {
        is_turning = false;
        for (uint32_t p = 0; p + 1 < n; p++)
            for (uint32_t q = p + 1; q < n; q++) is_turning = orthogonalise_pair(f, rotation, n, p, q) || is_turning;
    }
}
