/* scan.c - scans in vectors, compiled once per table. */
#include "kernels/cpu/scan.h"

#include <string.h>

#include "kernels/matrix.h"

static float dot_row(const float *query, uint32_t dim, const uint16_t *row) {
    vec sum = vec_set(0.0f);
    for (uint32_t i = 0; i < dim; i += VEC_LANES) sum = vec_fma(vec_load(query + i), vec_from_bf16(row + i), sum);
    return vec_sum(sum);
}

static void dot_rows(const float *query, uint32_t dim, const uint16_t *rows, size_t stride, uint32_t count,
                     float *scores) {
    for (uint32_t i = 0; i < count; i++) scores[i] = dot_row(query, dim, rows + i * stride);
}

/* Sixteen look-ups a key, as many keys and tables at once as a register is wide (the fast scan of product
 * quantisation: Andre et al., VLDB 2015). A byte shuffle looks up in 16 bytes for each lane of 128 bits, so that the
 * lanes hold different bytes of the same 16 keys, each with its own table. Sums are kept in 16 bits, those of the even
 * keys apart from those of the odd ones. */
#if defined(__AVX512F__)
static inline void block_sums(const __m512i table[4], const uint8_t *block, __m128i *low_keys, __m128i *high_keys) {
    const __m512i nibbles = _mm512_set1_epi8(15), even_bytes = _mm512_set1_epi16(255);
    __m512i even = _mm512_setzero_si512(), odd = even;
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        __m512i bytes = _mm512_loadu_si512(block + half * 64);
        __m512i low = _mm512_shuffle_epi8(table[half * 2], _mm512_and_si512(bytes, nibbles));
        __m512i high = _mm512_shuffle_epi8(table[half * 2 + 1], _mm512_and_si512(_mm512_srli_epi16(bytes, 4), nibbles));
        even = _mm512_add_epi16(
            even, _mm512_add_epi16(_mm512_and_si512(low, even_bytes), _mm512_and_si512(high, even_bytes)));
        odd = _mm512_add_epi16(odd, _mm512_add_epi16(_mm512_srli_epi16(low, 8), _mm512_srli_epi16(high, 8)));
    }
    __m256i evens = _mm256_add_epi16(_mm512_castsi512_si256(even), _mm512_extracti64x4_epi64(even, 1));
    __m256i odds = _mm256_add_epi16(_mm512_castsi512_si256(odd), _mm512_extracti64x4_epi64(odd, 1));
    __m128i e = _mm_add_epi16(_mm256_castsi256_si128(evens), _mm256_extracti128_si256(evens, 1));
    __m128i o = _mm_add_epi16(_mm256_castsi256_si128(odds), _mm256_extracti128_si256(odds, 1));
    *low_keys = _mm_unpacklo_epi16(e, o);
    *high_keys = _mm_unpackhi_epi16(e, o);
}
typedef __m512i block_table;
enum { BLOCK_TABLES = 4 };
#else
static inline void block_sums(const __m256i table[8], const uint8_t *block, __m128i *low_keys, __m128i *high_keys) {
    const __m256i nibbles = _mm256_set1_epi8(15), even_bytes = _mm256_set1_epi16(255);
    __m256i even = _mm256_setzero_si256(), odd = even;
#pragma GCC unroll 4
    for (int quarter = 0; quarter < 4; quarter++) { /* tables: half, low or high, then which of four bytes */
        int first = quarter / 2 * 4 + quarter % 2;
        __m256i bytes = _mm256_loadu_si256((const void *)(block + quarter * 32));
        __m256i low = _mm256_shuffle_epi8(table[first], _mm256_and_si256(bytes, nibbles));
        __m256i high = _mm256_shuffle_epi8(table[first + 2], _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibbles));
        even = _mm256_add_epi16(
            even, _mm256_add_epi16(_mm256_and_si256(low, even_bytes), _mm256_and_si256(high, even_bytes)));
        odd = _mm256_add_epi16(odd, _mm256_add_epi16(_mm256_srli_epi16(low, 8), _mm256_srli_epi16(high, 8)));
    }
    __m128i e = _mm_add_epi16(_mm256_castsi256_si128(even), _mm256_extracti128_si256(even, 1));
    __m128i o = _mm_add_epi16(_mm256_castsi256_si128(odd), _mm256_extracti128_si256(odd, 1));
    *low_keys = _mm_unpacklo_epi16(e, o);
    *high_keys = _mm_unpackhi_epi16(e, o);
}
typedef __m256i block_table;
enum { BLOCK_TABLES = 8 };
#endif

static void nibble_sums(const uint8_t tables[SCAN_NIBBLES * 16], const uint8_t *blocks, uint32_t block_count,
                        uint16_t *sums) {
    block_table table[BLOCK_TABLES];
    memcpy(table, tables, sizeof(table));
    for (uint32_t b = 0; b < block_count; b++) {
        __m128i low, high;
        block_sums(table, blocks + (size_t)b * SCAN_BLOCK_BYTES, &low, &high);
        _mm_storeu_si128((void *)(sums + b * SCAN_BLOCK), low);
        _mm_storeu_si128((void *)(sums + b * SCAN_BLOCK + 8), high);
    }
}

static void nibble_dots(const int8_t weights[2 * SCAN_ROW_BYTES], const uint8_t *codes, uint32_t row_bytes,
                        const uint32_t *rows, uint32_t count, int32_t *dots) {
    enum { AHEAD = 12 };
    const __m256i low_weights = _mm256_loadu_si256((const void *)weights);
    const __m256i high_weights = _mm256_loadu_si256((const void *)(weights + SCAN_ROW_BYTES));
    const __m256i nibbles = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    for (uint32_t i = 0; i < count; i++) {
        if (i + AHEAD < count) __builtin_prefetch(codes + (size_t)rows[i + AHEAD] * row_bytes);
        __m256i bytes = _mm256_loadu_si256((const void *)(codes + (size_t)rows[i] * row_bytes));
        __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(bytes, nibbles), low_weights);
        __m256i high = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibbles), high_weights);
        __m256i sums = _mm256_madd_epi16(_mm256_add_epi16(low, high), ones);
        __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
        four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        dots[i] = _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
    }
}

/* Sixteen columns (eight in AVX2): a pair of their bytes as 16 bits, times the query's pair, into 32 bits. */
static void byte_dots(const int16_t *query, const kernel_matrix *matrix, int32_t *dots) {
    uint32_t pairs_of_k = matrix->k_padded / 2;
    for (uint32_t first = 0; first < matrix->n; first += VEC_LANES) {
        uint32_t panel = first / KERNEL_PANEL * KERNEL_PANEL;
        uint32_t width = matrix->n_padded - panel < KERNEL_PANEL ? matrix->n_padded - panel : KERNEL_PANEL;
        const int8_t *bytes = (const int8_t *)matrix->data + (size_t)panel * matrix->k_padded + (first - panel) * 2;
        int32_t results[VEC_LANES];
#if defined(__AVX512F__)
        __m512i sums = _mm512_setzero_si512();
        for (uint32_t pair = 0; pair < pairs_of_k; pair++, bytes += width * 2) {
            int32_t both;
            memcpy(&both, query + 2 * pair, sizeof(both));
            __m512i wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const void *)bytes));
            sums = _mm512_add_epi32(sums, _mm512_madd_epi16(wide, _mm512_set1_epi32(both)));
        }
        _mm512_storeu_si512(results, sums);
#else
        __m256i sums = _mm256_setzero_si256();
        for (uint32_t pair = 0; pair < pairs_of_k; pair++, bytes += width * 2) {
            int32_t both;
            memcpy(&both, query + 2 * pair, sizeof(both));
            __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)bytes));
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(wide, _mm256_set1_epi32(both)));
        }
        _mm256_storeu_si256((void *)results, sums);
#endif
        uint32_t columns = matrix->n - first < VEC_LANES ? matrix->n - first : VEC_LANES;
        memcpy(dots + first, results, columns * sizeof(*dots));
    }
}

/* Sixteen floats looked up by nibbles: one permutation, or two of half the table and a choice. */
#if defined(__AVX512F__)
static float part_moment(const float *values, const uint8_t *column, int shift, uint32_t block_count,
                         const float *weights) {
    __m512 table = _mm512_loadu_ps(values), sum = _mm512_setzero_ps();
    __m128i count = _mm_cvtsi32_si128(shift);
    for (uint32_t b = 0; b < block_count; b++) {
        __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(column + (size_t)b * SCAN_BLOCK_BYTES)));
        __m512 looked = _mm512_permutexvar_ps(_mm512_srl_epi32(bytes, count), table);
        sum = _mm512_fmadd_ps(_mm512_loadu_ps(weights + b * SCAN_BLOCK), looked, sum);
    }
    return vec_sum(sum);
}
#else
static float part_moment(const float *values, const uint8_t *column, int shift, uint32_t block_count,
                         const float *weights) {
    __m256 low_half = _mm256_loadu_ps(values), high_half = _mm256_loadu_ps(values + 8), sum = _mm256_setzero_ps();
    __m128i count = _mm_cvtsi32_si128(shift);
    for (uint32_t i = 0; i < block_count * 2; i++) {
        const uint8_t *eight = column + (size_t)(i / 2) * SCAN_BLOCK_BYTES + i % 2 * 8;
        __m256i index = _mm256_srl_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)eight)), count);
        __m256 is_high = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)); /* bit 3 of the nibble to the sign */
        __m256 looked = _mm256_blendv_ps(_mm256_permutevar8x32_ps(low_half, index),
                                         _mm256_permutevar8x32_ps(high_half, index), is_high);
        sum = _mm256_fmadd_ps(_mm256_loadu_ps(weights + i * 8), looked, sum);
    }
    return vec_sum(sum);
}
#endif

static void nibble_moments(const float *tables, const uint8_t *nibbles, uint32_t part_count, const uint8_t *blocks,
                           uint32_t block_count, const float *weights, float *moments) {
    for (uint32_t p = 0; p < part_count; p++)
        moments[p] += part_moment(tables + p * 16, blocks + nibbles[p] / 2 * SCAN_BLOCK, nibbles[p] % 2 * 4,
                                  block_count, weights);
}

static void exponentials(float *x, uint32_t count) {
    uint32_t i = 0;
    for (; i + VEC_LANES <= count; i += VEC_LANES) {
        vec value = vec_load(x + i);
        vec_store(x + i, vec_exp2(vec_mul(value, vec_set(LOG2_E))));
    }
    for (; i < count; i++) {
        float lanes[VEC_LANES] = {x[i]};
        vec_store(lanes, vec_exp2(vec_mul(vec_load(lanes), vec_set(LOG2_E))));
        x[i] = lanes[0];
    }
}

#if defined(__AVX512F__)
static inline unsigned at_least(const float *scores, uint32_t count, float limit) {
    __mmask16 valid = count < 16 ? (__mmask16)((1u << count) - 1u) : (__mmask16)0xffff;
    return _mm512_mask_cmp_ps_mask(valid, _mm512_maskz_loadu_ps(valid, scores), _mm512_set1_ps(limit), _CMP_GE_OQ);
}
#else
static inline unsigned at_least(const float *scores, uint32_t count, float limit) {
    unsigned valid = count < 8 ? (1u << count) - 1u : 0xffu;
    __m256 loaded = count < 8 ? vec_load_part(scores, count) : _mm256_loadu_ps(scores);
    return valid & (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(loaded, _mm256_set1_ps(limit), _CMP_GE_OQ));
}
#endif

static uint32_t count_from(const float *scores, uint32_t count, float limit) {
    uint32_t found = 0;
    for (uint32_t i = 0; i < count; i += VEC_LANES)
        found += (uint32_t)__builtin_popcount(at_least(scores + i, count - i, limit));
    return found;
}

static uint32_t collect_from(const float *scores, uint32_t count, float limit, uint32_t *indices, uint32_t room) {
    uint32_t found = 0;
    for (uint32_t i = 0; i < count; i += VEC_LANES) {
        for (unsigned mask = at_least(scores + i, count - i, limit); mask != 0; mask &= mask - 1) {
            if (found == room) return found;
            indices[found++] = i + (uint32_t)__builtin_ctz(mask);
        }
    }
    return found;
}

const kernel_scan table_scan = {
    .dot_rows = dot_rows,
    .nibble_sums = nibble_sums,
    .nibble_dots = nibble_dots,
    .byte_dots = byte_dots,
    .nibble_moments = nibble_moments,
    .exponentials = exponentials,
    .count_from = count_from,
    .collect_from = collect_from,
};
