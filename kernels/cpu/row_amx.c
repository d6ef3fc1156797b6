/* row_amx.c - one row times int8 weights, with the bits that tile registers give and without them.
 *
 * tdpbf16ps keeps two sums over its 32 of k, of the even and of the odd ones, each a chain of fused products from zero,
 * adds the two and then adds that to C; subnormal numbers are zeros on every side. Vectors can do the same from the
 * bytes as they lie, which saves what a single row has no use for: the weights as bf16 in memory. 64 of them are a pair
 * of k of 32 columns, four bytes of every lane: (even, odd) of one column, then of the next. Each byte becomes the top
 * one of its lane, and so a number 2^24 times as large, in one instruction and not all four on the same port; the factor
 * is taken out where the two sums are added. */
#include <immintrin.h>

#include "kernels/cpu/matmul.h"
#include "kernels/cpu/tile.h"

enum { COLUMNS = 32, PAIRS = TILE_K / 2, SUBNORMAL_IS_ZERO = 0x8040 };
#define INLINE static inline __attribute__((always_inline))
#define BYTE_IS_TOP 0x1p-24f

/* Byte number `byte` of each lane as a number, times 2^24. */
INLINE vec from_byte(__m512i lanes, const int byte) {
    const __m512i second = _mm512_set4_epi32(0x0d808080, 0x09808080, 0x05808080, 0x01808080),
                  third = _mm512_set4_epi32(0x0e808080, 0x0a808080, 0x06808080, 0x02808080),
                  top = _mm512_set1_epi32((int)0xff000000u);
    return _mm512_cvtepi32_ps(byte == 0   ? _mm512_slli_epi32(lanes, 24)
                              : byte == 1 ? _mm512_shuffle_epi8(lanes, second)
                              : byte == 2 ? _mm512_shuffle_epi8(lanes, third)
                                          : _mm512_and_si512(lanes, top));
}

/* Adds the product over 32 of k to sums, for 32 columns each: [0] of columns 0, 2, 4..., [1] of 1, 3, 5... */
INLINE void add_depth(const float *a, const int8_t *b, size_t b_bytes, const int vectors, __mmask16 lanes,
                      vec sums[][2]) {
    vec of_pairs[2][4];
    for (int v = 0; v < vectors; v++) {
        for (int byte = 0; byte < 4; byte++) of_pairs[v][byte] = vec_set(0.0f);
    }
#pragma GCC unroll 2
    for (int pair = 0; pair < PAIRS; pair++, b += b_bytes) {
        vec even = vec_set(a[2 * pair]), odd = vec_set(a[2 * pair + 1]);
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) {
            __m512i bytes = _mm512_maskz_loadu_epi32(lanes, b + v * 2 * COLUMNS);
#pragma GCC unroll 4
            for (int byte = 0; byte < 4; byte++)
                of_pairs[v][byte] = vec_fma(byte % 2 == 0 ? even : odd, from_byte(bytes, byte), of_pairs[v][byte]);
        }
    }
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) {
        for (int i = 0; i < 2; i++)
            sums[v][i] = vec_fma(vec_add(of_pairs[v][2 * i], of_pairs[v][2 * i + 1]), vec_set(BYTE_IS_TOP), sums[v][i]);
    }
}

static inline __m512i every_second(int first) {
    return _mm512_add_epi32(_mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
                            _mm512_set1_epi32(first));
}

/* C of 32 columns, or of 16 where lanes say so, to and from even and odd ones. */
INLINE void load_sums(const float *c, __mmask16 lanes, vec sums[2]) {
    vec low = vec_load(c), high = lanes == 0xffff ? vec_load(c + VEC_LANES) : vec_set(0.0f);
    for (int i = 0; i < 2; i++) sums[i] = _mm512_permutex2var_ps(low, every_second(i), high);
}

INLINE void store_sums(float *c, __mmask16 lanes, const vec sums[2]) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    vec_store(c, _mm512_permutex2var_ps(sums[0], low, sums[1]));
    if (lanes != 0xffff) return;
    vec_store(c + VEC_LANES, _mm512_permutex2var_ps(sums[0], _mm512_add_epi32(low, _mm512_set1_epi32(8)), sums[1]));
}

INLINE void multiply(const float *a, const int8_t *b, uint32_t k, size_t b_bytes, const int vectors, __mmask16 lanes,
                     float *c, bool adds, tile_fetch *fetch) {
    vec sums[2][2];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) {
        sums[v][0] = sums[v][1] = vec_set(0.0f);
        if (adds) load_sums(c + v * COLUMNS, lanes, sums[v]);
    }
    for (uint32_t done = 0; done < k; done += TILE_K) {
        tile_fetch_step(fetch);
        add_depth(a + done, b + done / 2 * b_bytes, b_bytes, vectors, lanes, sums);
    }
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) store_sums(c + v * COLUMNS, lanes, sums[v]);
}

void row_multiply_amx(const uint16_t *a, const int8_t *b, uint32_t k, uint32_t width, float *c, bool adds,
                      const void *ahead) {
    float row[MATMUL_DEPTH];
    unsigned control = _mm_getcsr();
    tile_fetch fetch = tile_fetch_start(ahead, (size_t)k * width, k / TILE_K);
    _mm_setcsr(control | SUBNORMAL_IS_ZERO);
    for (uint32_t i = 0; i < k; i += VEC_LANES) vec_store(row + i, vec_from_bf16(a + i));
    if (width == KERNEL_PANEL) {
        multiply(row, b, k, (size_t)width * 2, KERNEL_PANEL / COLUMNS, 0xffff, c, adds, &fetch);
    } else {
        for (uint32_t column = 0; column < width; column += COLUMNS)
            multiply(row, b + column * 2, k, (size_t)width * 2, 1, width - column < COLUMNS ? 0x00ff : 0xffff,
                     c + column, adds, &fetch);
    }
    _mm_setcsr(control);
}
