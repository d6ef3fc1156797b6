/* tile_amx.c - the bf16 product in tile registers: two tiles of rows by two tiles of columns, so that each tile
 * loaded is used twice.
 *
 * A product of fewer rows configures tiles of fewer rows, which changes no bit: tdpbf16ps computes each row by
 * itself. The intrinsics do not tell the compiler that they touch memory; the barriers do. */
#include <immintrin.h>

#include "kernels/cpu/tile.h"

enum { TILE_ROWS = 16, TILE_COLUMNS = 16 };
#define INLINE static inline __attribute__((always_inline))
#define MEMORY_BARRIER() __asm__ volatile("" ::: "memory")

/* Register numbers: C of the four blocks, A of both rows, B of both columns. */
#define C00 0
#define C01 1
#define C10 2
#define C11 3
#define A0 4
#define A1 5
#define B0 6
#define B1 7

/* The memory operand of ldtilecfg, palette 1. */
typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;
_Static_assert(sizeof(tile_config) == 64, "the operand of ldtilecfg");

static _Thread_local uint32_t configured_rows; /* of the tiles of both row blocks; more than ROWS_MAX: flat; 0: none */
enum { ROWS_MAX = 2 * TILE_ROWS };

static void configure(const uint8_t rows[8]) {
    tile_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.rows[i] = rows[i];
        config.row_bytes[i] = 64;
    }
    __asm__ volatile("" ::"r"(&config) : "memory"); /* the intrinsic reads 8 bytes of it, for all that gcc knows */
    _tile_loadconfig(&config);
}

void tile_configure(uint32_t rows) {
    if (rows == configured_rows) return;
    uint8_t first = (uint8_t)(rows < TILE_ROWS ? rows : TILE_ROWS),
            second = (uint8_t)(rows > TILE_ROWS ? rows - TILE_ROWS : 1);
    configure((uint8_t[8]){first, first, second, second, first, second, TILE_ROWS, TILE_ROWS});
    configured_rows = rows;
}

void tile_configure_flat(uint32_t rows) {
    if (configured_rows == ROWS_MAX + rows) return;
    uint8_t all = (uint8_t)rows;
    configure((uint8_t[8]){all, all, all, all, all, all, all, TILE_ROWS});
    configured_rows = ROWS_MAX + rows;
}

void tile_end(void) {
    MEMORY_BARRIER();
    if (configured_rows != 0) _tile_release();
    configured_rows = 0;
}

/* A tile is loaded line by line, and where the tile unit is shared with another thread of the core, nothing else of
 * it goes on meanwhile; so what is loaded next had better be in the first-level cache by then. */
INLINE void bring_near(const char *b, size_t b_bytes, const bool has_second_columns) {
    for (int row = 0; row < TILE_ROWS; row++, b += b_bytes) {
        _mm_prefetch(b, _MM_HINT_T0);
        if (has_second_columns) _mm_prefetch(b + TILE_COLUMNS * 4, _MM_HINT_T0);
    }
}

INLINE void multiply(tile_product *product, const tile_block *block, bool is_last, const char *next_b,
                     const bool has_second_rows, const bool has_second_columns) {
    const size_t a_bytes = product->a_stride * 2, b_bytes = block->b_bytes, c_bytes = product->c_stride * sizeof(float);
    const char *a = block->a, *a_second = a + TILE_ROWS * a_bytes, *b = block->b;
    float *c = block->c, *c_second = c + TILE_ROWS * product->c_stride;
    const bool has_both = has_second_rows && has_second_columns;
    MEMORY_BARRIER();
    if (block->is_first && product->adds) {
        _tile_loadd(C00, c, c_bytes);
        if (has_second_columns) _tile_loadd(C01, c + TILE_COLUMNS, c_bytes);
        if (has_second_rows) _tile_loadd(C10, c_second, c_bytes);
        if (has_both) _tile_loadd(C11, c_second + TILE_COLUMNS, c_bytes);
    } else if (block->is_first) {
        _tile_zero(C00);
        if (has_second_columns) _tile_zero(C01);
        if (has_second_rows) _tile_zero(C10);
        if (has_both) _tile_zero(C11);
    }
    for (uint32_t k = TILE_K; k <= block->k; k += TILE_K) {
        const char *b_after = b + TILE_K / 2 * b_bytes;
        tile_fetch_step(&product->fetch);
        bring_near(k < block->k ? b_after : next_b, b_bytes, has_second_columns);
        _tile_loadd(A0, a, a_bytes);
        _tile_loadd(B0, b, b_bytes);
        _tile_dpbf16ps(C00, A0, B0);
        if (has_second_columns) _tile_loadd(B1, b + TILE_COLUMNS * 4, b_bytes);
        if (has_second_columns) _tile_dpbf16ps(C01, A0, B1);
        if (has_second_rows) _tile_loadd(A1, a_second, a_bytes);
        if (has_second_rows) _tile_dpbf16ps(C10, A1, B0);
        if (has_both) _tile_dpbf16ps(C11, A1, B1);
        a += TILE_K * 2;
        a_second += TILE_K * 2;
        b = b_after;
    }
    MEMORY_BARRIER();
    if (!is_last) return;
    _tile_stored(C00, c, c_bytes);
    if (has_second_columns) _tile_stored(C01, c + TILE_COLUMNS, c_bytes);
    if (has_second_rows) _tile_stored(C10, c_second, c_bytes);
    if (has_both) _tile_stored(C11, c_second + TILE_COLUMNS, c_bytes);
    MEMORY_BARRIER();
}

void tile_multiply_amx(tile_product *product, const tile_block *block, bool is_last, const char *next_b) {
    tile_configure(block->rows);
    if (block->rows > TILE_ROWS && block->columns > TILE_COLUMNS) {
        multiply(product, block, is_last, next_b, true, true);
    } else if (block->rows > TILE_ROWS) {
        multiply(product, block, is_last, next_b, true, false);
    } else if (block->columns > TILE_COLUMNS) {
        multiply(product, block, is_last, next_b, false, true);
    } else {
        multiply(product, block, is_last, next_b, false, false);
    }
}
