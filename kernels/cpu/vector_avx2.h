/* vector_avx2.h - the vector type of vector.h in 256 bits: AVX2, FMA and F16C. */
#ifndef KERNELS_CPU_VECTOR_AVX2_H
#define KERNELS_CPU_VECTOR_AVX2_H

#include <immintrin.h>
#include <stdint.h>

typedef __m256 vec;
enum { VEC_LANES = 8 };

static inline vec vec_set(float value) {
    return _mm256_set1_ps(value);
}
static inline vec vec_load(const float *from) {
    return _mm256_loadu_ps(from);
}
static inline void vec_store(float *to, vec a) {
    _mm256_storeu_ps(to, a);
}
static inline vec vec_add(vec a, vec b) {
    return _mm256_add_ps(a, b);
}
static inline vec vec_sub(vec a, vec b) {
    return _mm256_sub_ps(a, b);
}
static inline vec vec_mul(vec a, vec b) {
    return _mm256_mul_ps(a, b);
}
static inline vec vec_div(vec a, vec b) {
    return _mm256_div_ps(a, b);
}
static inline vec vec_max(vec a, vec b) {
    return _mm256_max_ps(a, b);
}
static inline vec vec_min(vec a, vec b) {
    return _mm256_min_ps(a, b);
}
static inline vec vec_fma(vec a, vec b, vec c) {
    return _mm256_fmadd_ps(a, b, c);
}
static inline vec vec_abs(vec a) {
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}

/* The first count lanes of memory; the others are zero, or are left alone. */
static inline __m256i vec_first(size_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline vec vec_load_part(const float *from, size_t count) {
    return _mm256_maskload_ps(from, vec_first(count));
}
static inline void vec_store_part(float *to, vec a, size_t count) {
    _mm256_maskstore_ps(to, vec_first(count), a);
}

/* a where low <= lane < high, else b; low and high may lie outside the lanes. */
static inline vec vec_select(vec a, vec b, int low, int high) {
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i inside = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(low), lane),
                                         _mm256_cmpgt_epi32(_mm256_set1_epi32(high), lane));
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(inside));
}

/* The bits of lanes where a == b, or a > b. */
static inline unsigned vec_equal(vec a, vec b) {
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ));
}
static inline unsigned vec_greater(vec a, vec b) {
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
}

/* sign of b on the magnitude of a */
static inline vec vec_with_sign(vec a, vec b) {
    __m256 sign = _mm256_set1_ps(-0.0f);
    return _mm256_or_ps(_mm256_andnot_ps(sign, a), _mm256_and_ps(sign, b));
}

static inline float vec_sum(vec a) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
static inline float vec_largest(vec a) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

/* Lane i: the largest of rows[i]. A transposition that takes the larger of two at every step, so that half of it
 * falls away. */
static inline vec vec_largest_each(const vec rows[VEC_LANES]) {
    vec fours[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        vec ab =
            vec_max(_mm256_unpacklo_ps(rows[4 * i], rows[4 * i + 1]), _mm256_unpackhi_ps(rows[4 * i], rows[4 * i + 1]));
        vec cd = vec_max(_mm256_unpacklo_ps(rows[4 * i + 2], rows[4 * i + 3]),
                         _mm256_unpackhi_ps(rows[4 * i + 2], rows[4 * i + 3]));
        __m256d pairs_ab = _mm256_castps_pd(ab), pairs_cd = _mm256_castps_pd(cd);
        fours[i] = vec_max(_mm256_castpd_ps(_mm256_unpacklo_pd(pairs_ab, pairs_cd)),
                           _mm256_castpd_ps(_mm256_unpackhi_pd(pairs_ab, pairs_cd)));
    }
    return vec_max(_mm256_permute2f128_ps(fours[0], fours[1], 0x20), _mm256_permute2f128_ps(fours[0], fours[1], 0x31));
}

/* x - floor(x), and p * 2^floor(x) with 0 below the normal numbers; minus infinity counts as -127. */
static inline vec vec_fraction(vec x) {
    x = _mm256_max_ps(x, _mm256_set1_ps(-127.0f));
    return _mm256_sub_ps(x, _mm256_floor_ps(x));
}
static inline vec vec_times_power(vec p, vec x) {
    x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-127.0f)), _mm256_set1_ps(128.0f));
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_floor_ps(x)), _mm256_set1_epi32(127));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

static inline vec vec_from_bf16(const uint16_t *from) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)from)), 16));
}
static inline vec vec_from_f16(const uint16_t *from) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const void *)from));
}
static inline vec vec_from_int8(const int8_t *from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)from)));
}

static inline __m128i vec_as_bf16(vec a) {
    __m256i bits = _mm256_castps_si256(a), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    rounded = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}
static inline void vec_to_bf16(uint16_t *to, vec a) {
    _mm_storeu_si128((void *)to, vec_as_bf16(a));
}
static inline void vec_to_f16(uint16_t *to, vec a) {
    _mm_storeu_si128((void *)to, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

/* Eight pairs of bf16 as they lie in memory, and what multiplies them. */
typedef struct pairs {
    vec even, odd;
} pairs;
static inline pairs pairs_split(__m256i both) {
    return (pairs){_mm256_castsi256_ps(_mm256_slli_epi32(both, 16)),
                   _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000)))};
}
static inline pairs pairs_load(const void *from) {
    return pairs_split(_mm256_loadu_si256(from));
}
static inline pairs pairs_repeat(const void *from) {
    int32_t pair;
    __builtin_memcpy(&pair, from, sizeof(pair));
    return pairs_split(_mm256_set1_epi32(pair));
}
static inline vec vec_dot(vec sum, pairs a, pairs b) {
    return vec_fma(a.odd, b.odd, vec_fma(a.even, b.even, sum));
}
static inline pairs pairs_of_ones(void) {
    return (pairs){vec_set(1.0f), vec_set(1.0f)};
}
/* Stores 16 floats as bf16 and returns what was stored. */
static inline pairs vec_store_pairs(uint16_t *to, vec low, vec high) {
    vec_to_bf16(to, low);
    vec_to_bf16(to + VEC_LANES, high);
    return pairs_load(to);
}
enum { TILE_ROWS_BF16 = 4, TILE_ROWS_F32 = 6, TILE_VECTORS = 2 }; /* of a register block: 16 registers */

#endif
