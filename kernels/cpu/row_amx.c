/* row_amx.c - one row times int8 weights, with the bits that tile registers give and without them.
 *
 * tdpbf16ps keeps two sums over its 32 of k, of the even and of the odd ones, each a chain of fused products from zero,
 * adds the two and then adds that to C; subnormal numbers are zeros on every side. Vectors can do the same from the
 * bytes as they lie: sixteen of them become floats, which are eight columns of a pair of k, and the pair of A is
 * repeated beside them. That saves what a single row has no use for, the weights as bf16 in memory. */
#include <immintrin.h>

#include "kernels/cpu/matmul.h"
#include "kernels/cpu/tile.h"

enum { COLUMNS = 16, PAIRS = TILE_K / 2, SUBNORMAL_IS_ZERO = 0x8040 };

/* 16 columns of a product over 32 of k: two vectors of (even, odd) sums, side by side for eight columns each. */
static inline __attribute__((always_inline)) void add_depth(const float *a, const int8_t *b, size_t b_bytes,
                                                            const int vectors, vec sums[4]) {
    vec pairs_of_sums[8];
#pragma GCC unroll 8
    for (int v = 0; v < 2 * vectors; v++) pairs_of_sums[v] = vec_set(0.0f);
    for (int pair = 0; pair < PAIRS; pair++, b += b_bytes) {
        vec both = _mm512_castpd_ps(_mm512_set1_pd(((const double *)a)[pair]));
#pragma GCC unroll 8
        for (int v = 0; v < 2 * vectors; v++)
            pairs_of_sums[v] = vec_fma(both, vec_from_int8(b + v * VEC_LANES), pairs_of_sums[v]);
    }
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
                  odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        vec evens = _mm512_permutex2var_ps(pairs_of_sums[2 * v], even, pairs_of_sums[2 * v + 1]),
            odds = _mm512_permutex2var_ps(pairs_of_sums[2 * v], odd, pairs_of_sums[2 * v + 1]);
        sums[v] = vec_add(sums[v], vec_add(evens, odds));
    }
}

static inline __attribute__((always_inline)) void multiply(const float *a, const int8_t *b, uint32_t k, size_t b_bytes,
                                                           const int vectors, float *c, bool adds, tile_fetch *fetch) {
    vec sums[4];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) sums[v] = adds ? vec_load(c + v * VEC_LANES) : vec_set(0.0f);
    for (uint32_t done = 0; done < k; done += TILE_K) {
        tile_fetch_step(fetch);
        add_depth(a + done, b + done / 2 * b_bytes, b_bytes, vectors, sums);
    }
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) vec_store(c + v * VEC_LANES, sums[v]);
}

void row_multiply_amx(const uint16_t *a, const int8_t *b, uint32_t k, uint32_t width, float *c, bool adds,
                      const void *ahead) {
    float row[MATMUL_DEPTH];
    unsigned control = _mm_getcsr();
    tile_fetch fetch = tile_fetch_start(ahead, (size_t)k * width, k / TILE_K);
    _mm_setcsr(control | SUBNORMAL_IS_ZERO);
    for (uint32_t i = 0; i < k; i += VEC_LANES) vec_store(row + i, vec_from_bf16(a + i));
    if (width == KERNEL_PANEL) {
        multiply(row, b, k, (size_t)width * 2, 4, c, adds, &fetch);
    } else {
        for (uint32_t column = 0; column < width; column += COLUMNS)
            multiply(row, b + column * 2, k, (size_t)width * 2, 1, c + column, adds, &fetch);
    }
    _mm_setcsr(control);
}
