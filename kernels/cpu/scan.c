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

#if defined(__AVX512F__)
static inline void store_scores(__m128i low, __m128i high, float base, float step, float *scores) {
    __m512i sums = _mm512_cvtepu16_epi32(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
    vec_store(scores, vec_add(vec_mul(_mm512_cvtepi32_ps(sums), vec_set(step)), vec_set(base)));
}
#else
static inline void store_scores(__m128i low, __m128i high, float base, float step, float *scores) {
    vec first = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(low)),
        second = _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(high));
    vec_store(scores, vec_add(vec_mul(first, vec_set(step)), vec_set(base)));
    vec_store(scores + 8, vec_add(vec_mul(second, vec_set(step)), vec_set(base)));
}
#endif

static void nibble_scores(const uint8_t tables[SCAN_NIBBLES * 16], const uint8_t *blocks, uint32_t block_count,
                          float base, float step, float *scores) {
    block_table table[BLOCK_TABLES];
    memcpy(table, tables, sizeof(table));
    for (uint32_t b = 0; b < block_count; b++) {
        __m128i low, high;
        block_sums(table, blocks + (size_t)b * SCAN_BLOCK_BYTES, &low, &high);
        store_scores(low, high, base, step, scores + b * SCAN_BLOCK);
    }
}

static void nibble_dots(const int8_t weights[2 * SCAN_ROW_BYTES], const uint8_t *codes, uint32_t row_bytes,
                        const uint32_t *rows, uint32_t count, int32_t *dots) {
    enum { AHEAD = 24 };
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
static inline vec column_dots(const int16_t *query, uint32_t pairs_of_k, const int8_t *bytes, uint32_t width) {
#if defined(__AVX512F__)
    __m512i sums = _mm512_setzero_si512();
    for (uint32_t pair = 0; pair < pairs_of_k; pair++, bytes += width * 2) {
        int32_t both;
        memcpy(&both, query + 2 * pair, sizeof(both));
        __m512i wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const void *)bytes));
        sums = _mm512_add_epi32(sums, _mm512_madd_epi16(wide, _mm512_set1_epi32(both)));
    }
    return _mm512_cvtepi32_ps(sums);
#else
    __m256i sums = _mm256_setzero_si256();
    for (uint32_t pair = 0; pair < pairs_of_k; pair++, bytes += width * 2) {
        int32_t both;
        memcpy(&both, query + 2 * pair, sizeof(both));
        __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)bytes));
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(wide, _mm256_set1_epi32(both)));
    }
    return _mm256_cvtepi32_ps(sums);
#endif
}

static void byte_scores(const int16_t *query, const kernel_matrix *matrix, float base, float step, float *scores) {
    for (uint32_t first = 0; first < matrix->n; first += VEC_LANES) {
        uint32_t panel = first / KERNEL_PANEL * KERNEL_PANEL, columns = matrix->n - first;
        uint32_t width = matrix->n_padded - panel < KERNEL_PANEL ? matrix->n_padded - panel : KERNEL_PANEL;
        const int8_t *bytes = (const int8_t *)matrix->data + (size_t)panel * matrix->k_padded + (first - panel) * 2;
        vec dots = column_dots(query, matrix->k_padded / 2, bytes, width);
        vec steps = vec_mul(vec_load(matrix->scales + first), vec_set(step)); /* padded as the columns are */
        vec all = vec_fma(steps, dots, vec_set(base));
        if (columns >= VEC_LANES) vec_store(scores + first, all);
        else vec_store_part(scores + first, all, columns);
    }
}

/* Sixteen weights as whole numbers in bytes. */
#if defined(__AVX512F__)
static inline __m128i whole_weights(const float *weights, float per_weight) {
    return _mm512_cvtepi32_epi8(
        _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(weights), _mm512_set1_ps(per_weight))));
}
#else
static inline __m128i whole_weights(const float *weights, float per_weight) {
    __m256 factor = _mm256_set1_ps(per_weight);
    __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(weights), factor));
    __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(weights + 8), factor));
    __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
    return _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
#endif

/* Rows by twos, byte beside byte, so that one product adds both: at most 2 * 15 * 127 in 16 bits, for eight of which
 * there is room before they are widened. */
static int32_t nibble_row_sums(const uint8_t *codes, uint32_t row_bytes, const uint32_t *rows, uint32_t count,
                               const float *weights, float per_weight, int32_t sums[2 * SCAN_ROW_BYTES]) {
    int32_t total = 0;
    enum { PORTION = SCAN_BLOCK, AHEAD = 24 };
    const __m256i nibbles = _mm256_set1_epi8(15);
    for (uint32_t first = 0; first < count; first += PORTION) {
        uint32_t taken = count - first < PORTION ? count - first : PORTION;
        float padded[PORTION] = {0};
        int8_t whole[PORTION];
        __m256i part[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                           _mm256_setzero_si256()};
        memcpy(padded, weights + first, taken * sizeof(*padded));
        __m128i weights_of_all = whole_weights(padded, per_weight), totals;
        _mm_storeu_si128((void *)whole, weights_of_all);
        totals = _mm_sad_epu8(weights_of_all, _mm_setzero_si128());
        total += _mm_cvtsi128_si32(totals) + _mm_extract_epi16(totals, 4);
        for (uint32_t i = 0; i < taken; i += 2) {
            const uint8_t *row = codes + (size_t)rows[first + i] * row_bytes;
            if (first + i + AHEAD + 1 < count) {
                __builtin_prefetch(codes + (size_t)rows[first + i + AHEAD] * row_bytes);
                __builtin_prefetch(codes + (size_t)rows[first + i + AHEAD + 1] * row_bytes);
            }
            const uint8_t *other = i + 1 < taken ? codes + (size_t)rows[first + i + 1] * row_bytes : row;
            __m256i a = _mm256_loadu_si256((const void *)row), b = _mm256_loadu_si256((const void *)other);
            __m256i weight = _mm256_set1_epi16((short)((uint8_t)whole[i] | (uint8_t)whole[i + 1] << 8));
            __m256i first_half = _mm256_unpacklo_epi8(a, b), second_half = _mm256_unpackhi_epi8(a, b);
            const __m256i halves[4] = {_mm256_and_si256(first_half, nibbles), _mm256_and_si256(second_half, nibbles),
                                       _mm256_and_si256(_mm256_srli_epi16(first_half, 4), nibbles),
                                       _mm256_and_si256(_mm256_srli_epi16(second_half, 4), nibbles)};
            for (int h = 0; h < 4; h++) part[h] = _mm256_add_epi16(part[h], _mm256_maddubs_epi16(halves[h], weight));
        }
        for (int h = 0; h < 4; h++) { /* lanes hold bytes 0 .. 7 and 16 .. 23, or 8 .. 15 and 24 .. 31 */
            int16_t lanes[16];
            int32_t *to = sums + h / 2 * SCAN_ROW_BYTES + h % 2 * 8;
            _mm256_storeu_si256((void *)lanes, part[h]);
            for (int i = 0; i < 8; i++) {
                to[i] += lanes[i];
                to[16 + i] += lanes[8 + i];
            }
        }
    }
    return total;
}

static inline vec exponential_of(vec x) {
    return vec_exp2(vec_mul(x, vec_set(LOG2_E)));
}

/* A part of a vector ends with zeros, whose weights are 0. */
static scan_weight_sums weigh(const scan_weighing *weighing, const float *scores, const float *spreads, uint32_t count,
                              float *weights, float *spread_weights) {
    const vec zero = vec_set(0.0f), one = vec_set(1.0f), limit = vec_set(weighing->limit);
    vec sum = zero, tilted = zero, most = zero;
    for (uint32_t i = 0; i < count; i += VEC_LANES) {
        uint32_t taken = count - i < VEC_LANES ? count - i : VEC_LANES;
        vec spread = vec_load_part(spreads + i, taken), square = vec_mul(spread, spread);
        vec mean = vec_mul(vec_load_part(scores + i, taken), vec_set(weighing->scale));
        vec variance = vec_mul(square, vec_set(weighing->variance));
        vec tilt = vec_min(vec_div(vec_max(vec_sub(limit, mean), zero), variance), one); /* 0 / 0 counts as 1 */
        vec bonus = vec_mul(vec_mul(variance, tilt), vec_fma(tilt, vec_set(-0.5f), one));
        vec log_weight = vec_sub(vec_min(vec_add(mean, bonus), limit), vec_set(weighing->max));
        vec weight = vec_mul(vec_load_part(weights + i, taken), exponential_of(log_weight));
        vec spread_weight = vec_mul(weight, spread);
        vec_store_part(weights + i, weight, taken);
        vec_store_part(spread_weights + i, spread_weight, taken);
        sum = vec_add(sum, weight);
        tilted = vec_fma(vec_mul(weight, tilt), square, tilted);
        most = vec_max(most, spread_weight);
    }
    return (scan_weight_sums){.weight = vec_sum(sum), .tilted = vec_sum(tilted), .most = vec_largest(most)};
}

/* Scores whose bits are set become minus infinity. */
#if defined(__AVX512F__)
static inline vec without(vec scores, unsigned mask) {
    return _mm512_mask_blend_ps((__mmask16)mask, scores, _mm512_set1_ps(-__builtin_inff()));
}
#else
static inline vec without(vec scores, unsigned mask) {
    const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i is_set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)mask), bits), bits);
    return _mm256_blendv_ps(scores, _mm256_set1_ps(-__builtin_inff()), _mm256_castsi256_ps(is_set));
}
#endif

static float weigh_blocks(const float *scores, const uint16_t *masks, uint32_t block_count, float most, float factor,
                          float term) {
    vec sum = vec_set(0.0f), scale = vec_set(factor * LOG2_E), shift = vec_set(term * LOG2_E);
    for (uint32_t b = 0; b < block_count; b++) {
        for (uint32_t i = 0; i < SCAN_BLOCK; i += VEC_LANES) {
            vec held = vec_min(vec_load(scores + b * SCAN_BLOCK + i), vec_set(most));
            sum = vec_add(sum, vec_exp2(vec_fma(without(held, (unsigned)masks[b] >> i), scale, shift)));
        }
    }
    return vec_sum(sum);
}

static inline float vec_least(vec a) {
    return -vec_largest(vec_sub(vec_set(0.0f), a));
}

static void add_scaled(const float *a, const float *b, float factor, uint32_t count, float *sums, float *least,
                       float *greatest) {
    vec low = vec_set(__builtin_inff()), high = vec_set(-__builtin_inff());
    uint32_t i = 0;
    for (; i + VEC_LANES <= count; i += VEC_LANES) {
        vec sum = vec_fma(vec_load(b + i), vec_set(factor), vec_load(a + i));
        vec_store(sums + i, sum);
        low = vec_min(low, sum);
        high = vec_max(high, sum);
    }
    *least = vec_least(low);
    *greatest = vec_largest(high);
    for (; i < count; i++) {
        sums[i] = __builtin_fmaf(b[i], factor, a[i]);
        *least = sums[i] < *least ? sums[i] : *least;
        *greatest = sums[i] > *greatest ? sums[i] : *greatest;
    }
}

static float largest(const float *x, uint32_t count) {
    vec most = vec_set(-__builtin_inff());
    uint32_t i = 0;
    for (; i + VEC_LANES <= count; i += VEC_LANES) most = vec_max(most, vec_load(x + i));
    float all = vec_largest(most);
    for (; i < count; i++) all = x[i] > all ? x[i] : all;
    return all;
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
    uint32_t found = 0, i = 0;
#if defined(__AVX512F__)
    const vec least = vec_set(limit);
    __m512i reached = _mm512_setzero_si512();
    for (; i + VEC_LANES <= count; i += VEC_LANES)
        reached = _mm512_mask_add_epi32(reached, _mm512_cmp_ps_mask(vec_load(scores + i), least, _CMP_GE_OQ), reached,
                                        _mm512_set1_epi32(1));
    found = (uint32_t)_mm512_reduce_add_epi32(reached);
#endif
    for (; i < count; i += VEC_LANES) found += (uint32_t)__builtin_popcount(at_least(scores + i, count - i, limit));
    return found;
}

static uint32_t collect_from(const float *scores, uint32_t count, float limit, uint32_t *indices, uint32_t room) {
    uint32_t found = 0, i = 0;
#if defined(__AVX512F__)
    __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (; i < count && found + VEC_LANES <= room; i += VEC_LANES) {
        __mmask16 mask = (__mmask16)at_least(scores + i, count - i, limit);
        _mm512_storeu_si512(indices + found, _mm512_maskz_compress_epi32(mask, places));
        found += (uint32_t)__builtin_popcount(mask);
        places = _mm512_add_epi32(places, _mm512_set1_epi32(VEC_LANES));
    }
#endif
    for (; i < count; i += VEC_LANES) {
        for (unsigned mask = at_least(scores + i, count - i, limit); mask != 0; mask &= mask - 1) {
            if (found == room) return found;
            indices[found++] = i + (uint32_t)__builtin_ctz(mask);
        }
    }
    return found;
}

const kernel_scan table_scan = {
    .dot_rows = dot_rows,
    .nibble_scores = nibble_scores,
    .nibble_dots = nibble_dots,
    .byte_scores = byte_scores,
    .nibble_row_sums = nibble_row_sums,
    .weigh = weigh,
    .weigh_blocks = weigh_blocks,
    .add_scaled = add_scaled,
    .largest = largest,
    .count_from = count_from,
    .collect_from = collect_from,
};
