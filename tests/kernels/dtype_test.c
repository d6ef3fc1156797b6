/* Conversions between number formats: every half-precision value, and the rounding of all halves between them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/dtype.h"

static void f16_round_trips_every_value(void **state) {
    for (uint32_t half = 0; half < 0x10000; half++) {
        float value = hd_f16_to_f32((uint16_t)half);
        if ((half & 0x7c00) == 0x7c00 && (half & 0x3ff) != 0) {
            assert_true(isnan(value));
            assert_true(isnan(hd_f16_to_f32(hd_f32_to_f16(value))));
        } else {
            assert_int_equal(hd_f32_to_f16(value), half);
        }
    }
    assert_true(hd_f16_to_f32(0x3c00) == 1.0f);
    assert_true(hd_f16_to_f32(0x0001) == 0x1p-24f);
    assert_true(hd_f16_to_f32(0xfbff) == -65504.0f);
    assert_true(isinf(hd_f16_to_f32(0x7c00)));
}

static void f16_rounds_to_nearest_even(void **state) {
    for (uint32_t half = 0; half < 0x7bff; half++) {
        float low = hd_f16_to_f32((uint16_t)half), high = hd_f16_to_f32((uint16_t)(half + 1)),
              middle = low + (high - low) / 2;
        assert_int_equal(hd_f32_to_f16(middle), half % 2 == 0 ? half : half + 1);
        assert_int_equal(hd_f32_to_f16(nextafterf(middle, 0.0f)), half);
        assert_int_equal(hd_f32_to_f16(nextafterf(middle, INFINITY)), half + 1);
    }
    assert_int_equal(hd_f32_to_f16(65519.0f), 0x7bff);
    assert_int_equal(hd_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(hd_f32_to_f16(-1e30f), 0xfc00);
}

static void bf16_rounds_to_nearest_even_and_keeps_nan(void **state) {
    for (uint32_t half = 0; half < 0x7f7f; half++) {
        uint32_t bits[3] = {half << 16 | 0x7fff, half << 16 | 0x8000, half << 16 | 0x8001};
        uint32_t expected[3] = {half, half % 2 == 0 ? half : half + 1, half + 1};
        for (int i = 0; i < 3; i++) {
            float value;
            memcpy(&value, &bits[i], sizeof(value));
            assert_int_equal(hd_f32_to_bf16(value), expected[i]);
        }
    }
    assert_true(isnan(hd_bf16_to_f32(hd_f32_to_bf16(NAN))));
    assert_true(hd_bf16_to_f32(hd_f32_to_bf16(-INFINITY)) == -INFINITY);
}

static void dtypes_have_names_and_widths(void **state) {
    assert_string_equal(hd_dtype_name(HD_BF16), "bf16");
    assert_string_equal(hd_dtype_name(HD_INT4), "int4");
    assert_int_equal(hd_dtype_bits(HD_F32), 32);
    assert_int_equal(hd_dtype_bits(HD_INT8), 8);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f16_round_trips_every_value),
        cmocka_unit_test(f16_rounds_to_nearest_even),
        cmocka_unit_test(bf16_rounds_to_nearest_even_and_keeps_nan),
        cmocka_unit_test(dtypes_have_names_and_widths),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
