/* dtype.c - names, widths and the half-precision conversions. Half precision is not on any hot path here:
 * checkpoints in f16 are converted once, at load, so the conversions are plain integer code. */
#include "kernels/dtype.h"

#include <assert.h>

static const struct {
    const char *name;
    size_t bits;
} dtypes[HD_DTYPE_COUNT] = {
    [HD_F32] = {"f32", 32},  [HD_BF16] = {"bf16", 16}, [HD_F16] = {"f16", 16},
    [HD_INT8] = {"int8", 8}, [HD_INT4] = {"int4", 4},
};

const char *hd_dtype_name(hd_dtype dtype) {
    assert(dtype < HD_DTYPE_COUNT);
    return dtypes[dtype].name;
}

size_t hd_dtype_bits(hd_dtype dtype) {
    assert(dtype < HD_DTYPE_COUNT);
    return dtypes[dtype].bits;
}

static float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

float hd_f16_to_f32(uint16_t value) {
    uint32_t sign = (uint32_t)(value & 0x8000u) << 16;
    uint32_t magnitude = value & 0x7fffu;
    if (magnitude >= 0x7c00u) return from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    if (magnitude >= 0x0400u) return from_bits(sign | ((magnitude << 13) + (112u << 23)));
    float tiny = (float)magnitude * 0x1p-24f; /* subnormal: exact in f32 */
    return sign != 0 ? -tiny : tiny;
}

uint16_t hd_f32_to_f16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65,520 and above round to infinity */
    if (magnitude >= 0x38800000u) {                                  /* normal in f16 */
        uint32_t rebased = magnitude - (112u << 23);
        return (uint16_t)(sign | (rebased + 0xfffu + (rebased >> 13 & 1u)) >> 13);
    }
    /* Subnormal: adding 0.5 leaves the multiples of 2^-24 in the low bits of the sum, rounded to nearest even by the
     * addition. */
    float shifted = from_bits(magnitude) + 0.5f;
    memcpy(&bits, &shifted, sizeof(bits));
    return (uint16_t)(sign | (bits - 0x3f000000u));
}
