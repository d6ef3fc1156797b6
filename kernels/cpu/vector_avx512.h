/* vector_avx512.h - the vector type of vector.h in 512 bits: F, BW, VL and DQ, and AVX512-BF16 where the table has
 * it. */
#ifndef KERNELS_CPU_VECTOR_AVX512_H
#define KERNELS_CPU_VECTOR_AVX512_H

#include <immintrin.h>
#include <stdint.h>

typedef __m512 vec;
enum { VEC_LANES = 16 };

static inline vec vec_set(float value) {
    return _mm512_set1_ps(value);
}
static inline vec vec_load(const float *from) {
    return _mm512_loadu_ps(from);
}
static inline void vec_store(float *to, vec a) {
    _mm512_storeu_ps(to, a);
}
static inline vec vec_add(vec a, vec b) {
    return _mm512_add_ps(a, b);
}
static inline vec vec_sub(vec a, vec b) {
    return _mm512_sub_ps(a, b);
}
static inline vec vec_mul(vec a, vec b) {
    return _mm512_mul_ps(a, b);
}
static inline vec vec_div(vec a, vec b) {
    return _mm512_div_ps(a, b);
}
static inline vec vec_max(vec a, vec b) {
    return _mm512_max_ps(a, b);
}
static inline vec vec_min(vec a, vec b) {
    return _mm512_min_ps(a, b);
}
static inline vec vec_fma(vec a, vec b, vec c) {
    return _mm512_fmadd_ps(a, b, c);
}
static inline vec vec_abs(vec a) {
    return _mm512_abs_ps(a);
}

/* The first count lanes of memory; the others are zero, or are left alone. */
static inline __mmask16 vec_first(size_t count) {
    return (__mmask16)((1u << count) - 1u);
}
static inline vec vec_load_part(const float *from, size_t count) {
    return _mm512_maskz_loadu_ps(vec_first(count), from);
}
static inline void vec_store_part(float *to, vec a, size_t count) {
    _mm512_mask_storeu_ps(to, vec_first(count), a);
}

/* a where low <= lane < high, else b; low and high may lie outside the lanes. */
static inline vec vec_select(vec a, vec b, int low, int high) {
    __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __mmask16 inside =
        _mm512_cmpge_epi32_mask(lane, _mm512_set1_epi32(low)) & _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(high));
    return _mm512_mask_blend_ps(inside, b, a);
}

/* The bits of lanes where a == b, or a > b. */
static inline unsigned vec_equal(vec a, vec b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
}
static inline unsigned vec_greater(vec a, vec b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
}

/* sign of b on the magnitude of a */
static inline vec vec_with_sign(vec a, vec b) {
    __m512 sign = _mm512_set1_ps(-0.0f);
    return _mm512_or_ps(_mm512_andnot_ps(sign, a), _mm512_and_ps(sign, b));
}

static inline float vec_sum(vec a) {
    return _mm512_reduce_add_ps(a);
}
static inline float vec_largest(vec a) {
    return _mm512_reduce_max_ps(a);
}

/* Lane i: the largest of rows[i]. A transposition that takes the larger of two at every step, so that half of it
 * falls away. */
static inline vec vec_largest_each(const vec rows[VEC_LANES]) {
    vec fours[4], eights[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        vec ab =
            vec_max(_mm512_unpacklo_ps(rows[4 * i], rows[4 * i + 1]), _mm512_unpackhi_ps(rows[4 * i], rows[4 * i + 1]));
        vec cd = vec_max(_mm512_unpacklo_ps(rows[4 * i + 2], rows[4 * i + 3]),
                         _mm512_unpackhi_ps(rows[4 * i + 2], rows[4 * i + 3]));
        __m512d pairs_ab = _mm512_castps_pd(ab), pairs_cd = _mm512_castps_pd(cd);
        fours[i] = vec_max(_mm512_castpd_ps(_mm512_unpacklo_pd(pairs_ab, pairs_cd)),
                           _mm512_castpd_ps(_mm512_unpackhi_pd(pairs_ab, pairs_cd)));
    }
    for (int i = 0; i < 2; i++) {
        vec a = fours[2 * i], b = fours[2 * i + 1];
        eights[i] = vec_max(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    return vec_max(_mm512_shuffle_f32x4(eights[0], eights[1], 0x88), _mm512_shuffle_f32x4(eights[0], eights[1], 0xdd));
}

/* x - floor(x), and p * 2^floor(x); minus infinity gives 0 in both. */
static inline vec vec_fraction(vec x) {
    return _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);
}
static inline vec vec_times_power(vec p, vec x) {
    return _mm512_scalef_ps(p, x);
}

static inline vec vec_from_bf16(const uint16_t *from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)from)), 16));
}
static inline vec vec_from_f16(const uint16_t *from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)from));
}
static inline vec vec_from_int8(const int8_t *from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)from)));
}

static inline __m256i vec_as_bf16(vec a) {
#if defined(__AVX512BF16__)
    return (__m256i)_mm512_cvtneps_pbh(a);
#else
    __m512i bits = _mm512_castps_si512(a), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#endif
}
static inline void vec_to_bf16(uint16_t *to, vec a) {
    _mm256_storeu_si256((void *)to, vec_as_bf16(a));
}
static inline void vec_to_f16(uint16_t *to, vec a) {
    _mm256_storeu_si256((void *)to, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

/* Sixteen pairs of bf16 as they lie in memory, and what multiplies them. */
#if defined(__AVX512BF16__)
typedef __m512bh pairs;
static inline pairs pairs_load(const void *from) {
    return (__m512bh)_mm512_loadu_si512(from);
}
static inline pairs pairs_repeat(const void *from) {
    int32_t pair;
    __builtin_memcpy(&pair, from, sizeof(pair));
    return (__m512bh)_mm512_set1_epi32(pair);
}
static inline vec vec_dot(vec sum, pairs a, pairs b) {
    return _mm512_dpbf16_ps(sum, a, b);
}
enum { TILE_ROWS_BF16 = 6 };
#else
typedef struct pairs {
    vec even, odd;
} pairs;
static inline pairs pairs_split(__m512i both) {
    return (pairs){_mm512_castsi512_ps(_mm512_slli_epi32(both, 16)),
                   _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)))};
}
static inline pairs pairs_load(const void *from) {
    return pairs_split(_mm512_loadu_si512(from));
}
static inline pairs pairs_repeat(const void *from) {
    int32_t pair;
    __builtin_memcpy(&pair, from, sizeof(pair));
    return pairs_split(_mm512_set1_epi32(pair));
}
static inline vec vec_dot(vec sum, pairs a, pairs b) {
    return vec_fma(a.odd, b.odd, vec_fma(a.even, b.even, sum));
}
enum { TILE_ROWS_BF16 = 5 };
#endif
static inline pairs pairs_of_ones(void) {
    static const uint16_t ones[2] = {0x3f80, 0x3f80};
    return pairs_repeat(ones);
}
/* Stores 32 floats as bf16 and returns what was stored. */
static inline pairs vec_store_pairs(uint16_t *to, vec low, vec high) {
#if defined(__AVX512BF16__)
    pairs both = (pairs)_mm512_cvtne2ps_pbh(high, low);
    _mm512_storeu_si512(to, (__m512i)both);
    return both;
#else
    vec_to_bf16(to, low);
    vec_to_bf16(to + VEC_LANES, high);
    return pairs_load(to);
#endif
}
enum { TILE_ROWS_F32 = 6, TILE_VECTORS = 4 }; /* of a register block: 32 registers */

#endif
