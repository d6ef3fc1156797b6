/* The packed layout: every element comes back, padding is zero, and int8 stays within half a step. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "kernels/matrix.h"

static float source_value(uint32_t row, uint32_t k) {
    return (float)((int)((row * 131 + k * 17) % 255) - 127) / 64.0f; /* exact in bf16 and f16 */
}

static void *make_source(hd_dtype dtype, uint32_t rows, uint32_t k, size_t stride) {
    size_t bytes = hd_dtype_bits(dtype) / 8;
    char *source = calloc(rows * stride, bytes);
    for (uint32_t row = 0; row < rows; row++) {
        for (uint32_t i = 0; i < k; i++) {
            float value = source_value(row, i);
            uint16_t half = dtype == HD_BF16 ? hd_f32_to_bf16(value) : hd_f32_to_f16(value);
            memcpy(source + (row * stride + i) * bytes, dtype == HD_F32 ? (void *)&value : (void *)&half, bytes);
        }
    }
    return source;
}

typedef struct made_matrix {
    kernel_matrix matrix;
    void *data, *scales;
} made_matrix;

static made_matrix make_matrix(hd_dtype dtype, uint32_t n, uint32_t k) {
    made_matrix made;
    size_t bytes = kernel_matrix_bytes(dtype, n, k), scale_bytes = HD_ALIGN_UP(n, KERNEL_N_ALIGN) * sizeof(float);
    made.data = hd_alloc(bytes, 64);
    made.scales = hd_alloc(scale_bytes, 64);
    memset(made.data, 0x55, bytes);
    memset(made.scales, 0x55, scale_bytes);
    kernel_matrix_init(&made.matrix, dtype, n, k, made.data, made.scales);
    return made;
}

static void free_matrix(made_matrix *made) {
    hd_free(made->data);
    hd_free(made->scales);
}

static void assert_holds_source(const kernel_matrix *matrix) {
    for (uint32_t n = 0; n < matrix->n_padded; n++) {
        for (uint32_t k = 0; k < matrix->k_padded; k++) {
            float expected = n < matrix->n && k < matrix->k ? source_value(n, k) : 0.0f;
            float step = matrix->dtype == HD_INT8 ? matrix->scales[n] * 0.501f : 0.0f;
            assert_true(fabsf(kernel_matrix_get(matrix, k, n) - expected) <= step);
        }
    }
}

static const hd_dtype targets[] = {HD_F32, HD_BF16, HD_INT8}, sources[] = {HD_F32, HD_BF16, HD_F16};
static const uint32_t sizes[][2] = {{1, 1}, {3, 5}, {16, 32}, {64, 128}, {65, 129}, {80, 96}, {127, 33}, {200, 257}};

static void pack_places_every_element_and_zeroes_the_padding(void **state) {
    for (size_t t = 0; t < 3; t++) {
        for (size_t s = 0; s < 3; s++) {
            for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
                uint32_t n = sizes[i][0], k = sizes[i][1];
                void *source = make_source(sources[s], n, k, k + 3);
                made_matrix made = make_matrix(targets[t], n, k);
                kernel_matrix_pack(&made.matrix, 0, source, sources[s], k + 3, n);
                assert_holds_source(&made.matrix);
                free_matrix(&made);
                free(source);
            }
        }
    }
}

static void pack_in_parts_equals_pack_at_once(void **state) {
    uint32_t n = 150, k = 70;
    uint16_t *source = make_source(HD_BF16, n, k, k);
    for (size_t t = 0; t < 3; t++) {
        made_matrix whole = make_matrix(targets[t], n, k), parts = make_matrix(targets[t], n, k);
        kernel_matrix_pack(&whole.matrix, 0, source, HD_BF16, k, n);
        for (uint32_t first = 0, count = 1; first < n; first += count, count = count * 3 + 1) {
            if (first + count > n) count = n - first;
            kernel_matrix_pack(&parts.matrix, first, source + (size_t)first * k, HD_BF16, k, count);
        }
        assert_memory_equal(whole.data, parts.data, kernel_matrix_bytes(targets[t], n, k));
        free_matrix(&whole);
        free_matrix(&parts);
    }
    free(source);
}

static void gate_and_up_panels_alternate_with_zero_columns_after_the_width(void **state) {
    uint32_t width = 100, k = 40;
    uint16_t *gate = make_source(HD_BF16, 2 * width, k, k), *up = gate + (size_t)width * k;
    for (size_t t = 0; t < 3; t++) {
        made_matrix made = make_matrix(targets[t], 2 * HD_ALIGN_UP(width, 64), k);
        kernel_matrix_pack_gate_up(&made.matrix, gate, up, HD_BF16, width);
        for (uint32_t n = 0; n < made.matrix.n; n++) {
            uint32_t column = n / 128 * 64 + n % 64, is_up = n / 64 % 2;
            for (uint32_t i = 0; i < k; i++) {
                float expected = column < width ? source_value(column + is_up * width, i) : 0.0f;
                float step = targets[t] == HD_INT8 ? made.matrix.scales[n] * 0.501f : 0.0f;
                assert_true(fabsf(kernel_matrix_get(&made.matrix, i, n) - expected) <= step);
            }
        }
        free_matrix(&made);
    }
    free(gate);
}

static void an_all_zero_int8_column_stays_zero(void **state) {
    float zeros[64] = {0};
    made_matrix made = make_matrix(HD_INT8, 1, 64);
    kernel_matrix_pack(&made.matrix, 0, zeros, HD_F32, 64, 1);
    for (uint32_t k = 0; k < 64; k++) assert_true(kernel_matrix_get(&made.matrix, k, 0) == 0.0f);
    free_matrix(&made);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pack_places_every_element_and_zeroes_the_padding),
        cmocka_unit_test(pack_in_parts_equals_pack_at_once),
        cmocka_unit_test(gate_and_up_panels_alternate_with_zero_columns_after_the_width),
        cmocka_unit_test(an_all_zero_int8_column_stays_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
