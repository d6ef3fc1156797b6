/* gather.c - scattered tokens to a page in bf16, sixteen keys at a time: their rows are transposed in registers, so
 * that a unit of all of them is one store; and values by pairs of tokens, which share their units. */
#include "kernels/cpu/gather.h"

#if defined(__AVX512F__)

enum { LANES = 16 }; /* units of a vector, and keys that are transposed together */

/* Rows of sixteen units become columns. */
static inline void transpose(__m512i rows[LANES]) {
    __m512i twos[LANES], fours[LANES];
    for (int i = 0; i < LANES; i += 2) {
        twos[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        twos[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4) { /* fours[i + c]: of rows i to i + 3, columns c, c + 4, c + 8, c + 12 */
        fours[i] = _mm512_unpacklo_epi64(twos[i], twos[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(twos[i], twos[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(twos[i + 1], twos[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(twos[i + 1], twos[i + 3]);
    }
    for (int c = 0; c < 4; c++) {
        __m512i a = _mm512_shuffle_i32x4(fours[c], fours[4 + c], 0x88);
        __m512i b = _mm512_shuffle_i32x4(fours[c], fours[4 + c], 0xdd);
        __m512i d = _mm512_shuffle_i32x4(fours[8 + c], fours[12 + c], 0x88);
        __m512i e = _mm512_shuffle_i32x4(fours[8 + c], fours[12 + c], 0xdd);
        rows[c] = _mm512_shuffle_i32x4(a, d, 0x88);
        rows[4 + c] = _mm512_shuffle_i32x4(b, e, 0x88);
        rows[8 + c] = _mm512_shuffle_i32x4(a, d, 0xdd);
        rows[12 + c] = _mm512_shuffle_i32x4(b, e, 0xdd);
    }
}

/* A key in bf16 one element after another; NULL: it is not there as such. */
static inline const uint32_t *key_units(const kernel_page_shape *shape, const kernel_token *token) {
    return token->key_row == NULL && shape->dtype == HD_BF16 ? token->row : token->key_row;
}

/* Keys of tokens [first, first + LANES), all of which have key_units. */
static void put_keys(const kernel_page_shape *shape, const kernel_token *tokens, uint32_t first, uint32_t *page) {
    uint32_t units = shape->key_dim / 2;
    size_t panel = (size_t)(first / KERNEL_PANEL) * KERNEL_PANEL * HD_ALIGN_UP(units, KERNEL_K_ALIGN / 2);
    uint32_t *column = page + panel + first % KERNEL_PANEL;
    for (uint32_t unit = 0; unit < units; unit += LANES) {
        __mmask16 there = units - unit < LANES ? (__mmask16)((1u << (units - unit)) - 1u) : (__mmask16)0xffff;
        uint32_t width = units - unit < LANES ? units - unit : LANES;
        __m512i rows[LANES];
        for (uint32_t i = 0; i < LANES; i++)
            rows[i] = _mm512_maskz_loadu_epi32(there, key_units(shape, &tokens[first + i]) + unit);
        transpose(rows);
        for (uint32_t i = 0; i < width; i++) _mm512_storeu_si512(column + (size_t)(unit + i) * KERNEL_PANEL, rows[i]);
    }
}

/* Sixteen elements of a token's value from element `at` of a panel on, in the low halves of units. */
static inline __m512i value_part(const kernel_page_shape *shape, const kernel_token *token, uint32_t panel,
                                 uint32_t width, uint32_t at, __mmask16 there) {
    if (token->row != NULL) {
        const uint16_t *value = (const uint16_t *)token->row + shape->key_dim + panel + at;
        return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, value));
    }
    const uint32_t *units = (const uint32_t *)token->values + (size_t)panel * HD_BLOCK_TOKENS / 2;
    __m512i loaded = _mm512_maskz_loadu_epi32(there, units + (size_t)(token->slot / 2) * width + at);
    return token->slot % 2 != 0 ? _mm512_srli_epi32(loaded, 16) : _mm512_and_si512(loaded, _mm512_set1_epi32(0xffff));
}

/* Values of tokens first (even) and first + 1. */
static void put_values(const kernel_page_shape *shape, const kernel_token *tokens, uint32_t first, uint32_t *page) {
    uint32_t value_dim = shape->value_dim;
    for (uint32_t panel = 0; panel < value_dim; panel += KERNEL_PANEL) {
        uint32_t width = value_dim - panel < KERNEL_PANEL ? value_dim - panel : KERNEL_PANEL;
        uint32_t *to = page + (size_t)panel * HD_BLOCK_TOKENS / 2 + (size_t)(first / 2) * width;
        for (uint32_t i = 0; i < width; i += LANES) {
            __mmask16 there = width - i < LANES ? (__mmask16)((1u << (width - i)) - 1u) : (__mmask16)0xffff;
            __m512i low = value_part(shape, &tokens[first], panel, width, i, there);
            __m512i high = value_part(shape, &tokens[first + 1], panel, width, i, there);
            _mm512_mask_storeu_epi32(to + i, there, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
    }
}

static bool have_rows(const kernel_page_shape *shape, const kernel_token *tokens, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        if (key_units(shape, &tokens[i]) == NULL) return false;
    return true;
}

void table_gather(const kernel_page_shape *shape, const kernel_token *tokens, uint32_t count, void *to_keys,
                  void *to_values) {
    uint32_t first = 0;
    for (; shape->dtype != HD_F32 && first + LANES <= count && have_rows(shape, tokens + first, LANES);
         first += LANES) {
        put_keys(shape, tokens, first, to_keys);
        for (uint32_t i = first; i < first + LANES; i += 2) {
            if (shape->dtype == HD_BF16) {
                put_values(shape, tokens, i, to_values);
                continue;
            }
            page_gather_value(shape, &tokens[i], to_values, i);
            page_gather_value(shape, &tokens[i + 1], to_values, i + 1);
        }
    }
    for (; first < count; first++) page_gather_one(shape, &tokens[first], to_keys, to_values, first);
}

#else

void table_gather(const kernel_page_shape *shape, const kernel_token *tokens, uint32_t count, void *to_keys,
                  void *to_values) {
    page_gather(shape, tokens, count, to_keys, to_values);
}

#endif
