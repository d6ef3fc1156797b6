/* widen.c - bytes times the power of two of their group, in the order in which they lie.
 *
 * Of keys, 32 elements that lie together are 16 tokens' in all rows of a group; of values, 16 pairs of the same two
 * tokens'. Where the machine converts integers to f16, that takes one operation for all 32, and what is left are
 * shifts: f16 has seven and more bits behind a shorter exponent, and the power is added there. */
#include "kernels/cpu/widen.h"

#include "kernels/cpu/page.h"

#define INLINE static inline __attribute__((always_inline))

enum { KEY_ROW = 2 * KERNEL_PANEL, KEY_TOKENS = 16, GROUP_ROWS = KERNEL_INT8_GROUP / 2, ELEMENTS = 32 };

/* Where a group of a panel of keys begins, in elements; the next panel's groups follow. */
static size_t key_start(uint32_t groups, uint32_t panel, uint32_t group) {
    return ((size_t)panel * groups + group) * GROUP_ROWS * KEY_ROW;
}

static uint32_t key_groups(const kernel_page_shape *shape) {
    return HD_ALIGN_UP(shape->key_dim, KERNEL_K_ALIGN) / KERNEL_INT8_GROUP;
}

/* ---- Through f16 ---- */

#if defined(__AVX512BF16__)
#define HALF __attribute__((target("avx512fp16")))

/* The sign and the exponent's and the mantissa's upper bits of an f16, each where bf16 has it; and 0 stays 0. */
static inline HALF void widen_half(const int8_t *from, uint16_t *to, __m512i powers) {
    const __m512i kept = _mm512_set1_epi16((short)0x8fff);
    __m512i integers = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const void *)from));
    __m512i halves = _mm512_castph_si512(_mm512_cvtepi16_ph(integers));
    __m512i placed = _mm512_and_si512(_mm512_srai_epi16(halves, 3), kept);
    _mm512_storeu_si512(to, _mm512_maskz_add_epi16(_mm512_test_epi16_mask(integers, integers), placed, powers));
}

static HALF void widen_keys_half(const kernel_page_shape *shape, const int8_t *keys, uint16_t *widened) {
    static const uint16_t twice[ELEMENTS] = {0, 0, 1, 1, 2,  2,  3,  3,  4,  4,  5,  5,  6,  6,  7,  7,
                                             8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15};
    const uint16_t *own = page_exponents(shape, keys, true);
    const __m512i order = _mm512_loadu_si512(twice);
    uint32_t groups = key_groups(shape);
    for (uint32_t slot = 0; slot < HD_BLOCK_TOKENS; slot += KEY_TOKENS) {
        for (uint32_t group = 0; group < groups; group++) {
            __m256i powers = _mm256_loadu_si256((const void *)(own + group * HD_BLOCK_TOKENS + slot));
            __m512i both = _mm512_permutexvar_epi16(order, _mm512_castsi256_si512(powers));
            size_t start = key_start(groups, slot / KERNEL_PANEL, group) + 2 * (slot % KERNEL_PANEL);
            for (uint32_t row = 0; row < GROUP_ROWS; row++, start += KEY_ROW)
                widen_half(keys + start, widened + start, both);
        }
    }
}

static HALF void widen_values_half(const kernel_page_shape *shape, const int8_t *values, uint16_t *widened) {
    const uint16_t *own = page_exponents(shape, values, false);
    for (uint32_t first = 0, width; first < shape->value_dim; first += width) {
        width = shape->value_dim - first < KERNEL_PANEL ? shape->value_dim - first : KERNEL_PANEL;
        for (uint32_t token = 0; token < HD_BLOCK_TOKENS; token += 2) {
            for (uint32_t i = 0; i < 2 * width; i += ELEMENTS, values += ELEMENTS, widened += ELEMENTS) {
                uint32_t both;
                memcpy(&both, own + (first + i / 2) / KERNEL_INT8_GROUP * HD_BLOCK_TOKENS + token, sizeof(both));
                widen_half(values, widened, _mm512_set1_epi32((int)both));
            }
        }
    }
}

static bool has_half(void) {
    return __builtin_cpu_supports("avx512fp16");
}
#endif

/* ---- Through f32 ---- */

INLINE void widen_row(const int8_t *from, uint16_t *to, const float powers[ELEMENTS]) {
    for (int i = 0; i < ELEMENTS; i += 2 * VEC_LANES) {
        vec_store_pairs(to + i, vec_mul(vec_from_int8(from + i), vec_load(powers + i)),
                        vec_mul(vec_from_int8(from + i + VEC_LANES), vec_load(powers + i + VEC_LANES)));
    }
}

static void widen_keys_plain(const kernel_page_shape *shape, const int8_t *keys, uint16_t *widened) {
    const uint16_t *own = page_exponents(shape, keys, true);
    uint32_t groups = key_groups(shape);
    for (uint32_t slot = 0; slot < HD_BLOCK_TOKENS; slot += KEY_TOKENS) {
        for (uint32_t group = 0; group < groups; group++) {
            float powers[ELEMENTS];
            for (uint32_t i = 0; i < ELEMENTS; i++) powers[i] = page_power(own[group * HD_BLOCK_TOKENS + slot + i / 2]);
            size_t start = key_start(groups, slot / KERNEL_PANEL, group) + 2 * (slot % KERNEL_PANEL);
            for (uint32_t row = 0; row < GROUP_ROWS; row++, start += KEY_ROW)
                widen_row(keys + start, widened + start, powers);
        }
    }
}

static void widen_values_plain(const kernel_page_shape *shape, const int8_t *values, uint16_t *widened) {
    const uint16_t *own = page_exponents(shape, values, false);
    for (uint32_t first = 0, width; first < shape->value_dim; first += width) {
        width = shape->value_dim - first < KERNEL_PANEL ? shape->value_dim - first : KERNEL_PANEL;
        for (uint32_t token = 0; token < HD_BLOCK_TOKENS; token += 2) {
            for (uint32_t i = 0; i < 2 * width; i += ELEMENTS, values += ELEMENTS, widened += ELEMENTS) {
                const uint16_t *both = own + (first + i / 2) / KERNEL_INT8_GROUP * HD_BLOCK_TOKENS + token;
                float powers[ELEMENTS], even = page_power(both[0]), odd = page_power(both[1]);
                for (uint32_t k = 0; k < ELEMENTS; k++) powers[k] = k % 2 == 0 ? even : odd;
                widen_row(values, widened, powers);
            }
        }
    }
}

void widen_keys(const kernel_page_shape *shape, const void *keys, uint16_t *widened) {
#if defined(__AVX512BF16__)
    if (has_half()) {
        widen_keys_half(shape, keys, widened);
        return;
    }
#endif
    widen_keys_plain(shape, keys, widened);
}

void widen_values(const kernel_page_shape *shape, const void *values, uint16_t *widened) {
#if defined(__AVX512BF16__)
    if (has_half()) {
        widen_values_half(shape, values, widened);
        return;
    }
#endif
    widen_values_plain(shape, values, widened);
}
