/* dtype.h - number formats, and the conversions that every folder needs.
 *
 * Threads: pure functions. */
#ifndef KERNELS_DTYPE_H
#define KERNELS_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum { HD_F32, HD_BF16, HD_F16, HD_INT8, HD_INT4, HD_DTYPE_COUNT } hd_dtype;

const char *hd_dtype_name(hd_dtype dtype); /* "f32", "bf16", "f16", "int8", "int4" */
size_t hd_dtype_bits(hd_dtype dtype);      /* 32, 16, 16, 8, 4 */

static inline float hd_bf16_to_f32(uint16_t value) {
    uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, sizeof(result));
    return result;
}

/* Of queries, and of keys and values where they are not in pages: HD_F32, or HD_BF16 for all others. */
static inline hd_dtype kernel_row_dtype(hd_dtype page_dtype) {
    return page_dtype == HD_F32 ? HD_F32 : HD_BF16;
}

/* Round to nearest even; NaN stays NaN. */
static inline uint16_t hd_f32_to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40u);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float hd_f16_to_f32(uint16_t value);
uint16_t hd_f32_to_f16(float value); /* to nearest even; too large becomes infinity, NaN stays NaN */

#endif
