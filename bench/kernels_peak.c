/* kernels_peak.c - chains of independent products, long enough to hide the instruction's latency. */
#include "bench/kernels_peak.h"

#include <string.h>

#include "base/clock.h"

typedef double peak_loop(void); /* runs for about a millisecond and returns the operations done */

#if defined(__x86_64__)
#include <immintrin.h>

enum { CHAINS = 12, TURNS = 20000 };

/* One chain a register: MULTIPLY(sum) adds a product to it. The compiler must not see that the products are all
 * alike. */
#define PEAK_LOOP(name, instructions, vector, zero, multiply, operations)                                              \
    __attribute__((target(instructions))) static double name(void) {                                                   \
        vector sums[CHAINS];                                                                                           \
        for (int i = 0; i < CHAINS; i++) sums[i] = zero;                                                               \
        for (int turn = 0; turn < TURNS; turn++) {                                                                     \
            _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) {                                                \
                sums[i] = multiply(sums[i]);                                                                           \
                __asm__ volatile("" : "+v"(sums[i]));                                                                  \
            }                                                                                                          \
        }                                                                                                              \
        return (double)TURNS * CHAINS * (operations);                                                                  \
    }

#define MULTIPLY_256(sum) _mm256_fmadd_ps(_mm256_set1_ps(0.5f), _mm256_set1_ps(0.25f), sum)
#define MULTIPLY_512(sum) _mm512_fmadd_ps(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.25f), sum)
#define MULTIPLY_BF16(sum)                                                                                             \
    _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi16(0x3f00), (__m512bh)_mm512_set1_epi16(0x3e80))
PEAK_LOOP(loop_avx2, "avx2,fma", __m256, _mm256_setzero_ps(), MULTIPLY_256, 16)
PEAK_LOOP(loop_avx512, "avx512f", __m512, _mm512_setzero_ps(), MULTIPLY_512, 32)
PEAK_LOOP(loop_avx512bf16, "avx512f,avx512bf16", __m512, _mm512_setzero_ps(), MULTIPLY_BF16, 64)

/* The tiles hold ordinary numbers: on some processors, products with zero cost less. */
__attribute__((target("amx-tile,amx-bf16,avx512f"))) static double loop_amx(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    uint16_t ones[16 * 32];
    for (int i = 0; i < 16 * 32; i++) ones[i] = 0x3f80;
    for (int i = 0; i < 8; i++) {
        config.rows[i] = 16;
        config.row_bytes[i] = 64;
    }
    _tile_loadconfig(&config);
    __asm__ volatile("" ::"m"(ones));
    _tile_loadd(4, ones, 64);
    _tile_loadd(5, ones, 64);
    _tile_loadd(6, ones, 64);
    _tile_loadd(7, ones, 64);
    for (int turn = 0; turn < TURNS; turn++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return (double)TURNS * 4 * 16 * 16 * 32 * 2;
}
#endif

static const struct {
    const char *table;
    peak_loop *loop;
} loops[] = {
#if defined(__x86_64__)
    {"avx2", loop_avx2}, {"avx512", loop_avx512}, {"avx512bf16", loop_avx512bf16}, {"amx", loop_amx},
#endif
    {NULL, NULL},
};

typedef struct peak_run {
    peak_loop *loop;
    _Atomic uint64_t operations;
} peak_run;

static void run_loop(void *context, unsigned thread, unsigned thread_count) {
    peak_run *run = context;
    double operations = 0;
    for (int i = 0; i < 4; i++) operations += run->loop();
    atomic_fetch_add(&run->operations, (uint64_t)operations);
}

double kernels_peak_bf16(const kernel_ops *kernels, hd_pool *pool) {
    peak_run run = {NULL, 0};
    for (size_t i = 0; loops[i].table != NULL; i++) {
        if (strcmp(loops[i].table, kernels->name) == 0) run.loop = loops[i].loop;
    }
    if (run.loop == NULL) return 0;
    uint64_t start = hd_now_ns();
    hd_pool_run(pool, run_loop, &run);
    return (double)run.operations / ((double)(hd_now_ns() - start) * 1e-9);
}
