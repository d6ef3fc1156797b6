/* tile_amx.c - the bf16 product in tile registers: two tiles of rows by two tiles of columns, so that each tile loaded is used twice.
 *
 * A product of fewer rows configures tiles of fewer rows, which changes no bit: tdpbf16ps computes each row by itself. The intrinsics do
 * not tell the compiler that they touch memory; the barriers do. */
#include <immintrin.h>

#include "kernels/cpu/tile.h"

enum { TILE_ROWS = 16, TILE_COLUMNS = 16, TILE_K = 32 };
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

static _Thread_local uint32_t configured_rows; /* of the tiles of both row blocks; 0: none */

static void configure(uint32_t rows) {
    if (rows == configured_rows) return;
    uint8_t first = (uint8_t)(rows < TILE_ROWS ? rows : TILE_ROWS), second = (uint8_t)(rows > TILE_ROWS ? rows - TILE_ROWS : 1);
    tile_config config = {.palette = 1, .rows = {first, first, second, second, first, second, TILE_ROWS, TILE_ROWS}};
    for (int i = 0; i < 8; i++) config.row_bytes[i] = 64;
    _tile_loadconfig(&config);
    configured_rows = rows;
}

void tile_begin(void) {
    configured_rows = 0;
}

void tile_end(void) {
    MEMORY_BARRIER();
    if (configured_rows != 0) _tile_release();
}

typedef struct block {
    const char *a, *b;
    float *c;
    size_t a_bytes, b_bytes, c_bytes; /* from row to row */
    uint32_t steps;
    bool adds;
} block;

static inline __attribute__((always_inline)) void block_multiply(const block *call, const bool has_second_rows,
                                                                 const bool has_second_columns, tile_fetch *fetch) {
    const size_t a_bytes = call->a_bytes, b_bytes = call->b_bytes, c_bytes = call->c_bytes;
    const char *a = call->a, *a_second = a + TILE_ROWS * a_bytes, *b = call->b;
    float *c = call->c, *c_second = c + TILE_ROWS * c_bytes / sizeof(float);
    MEMORY_BARRIER();
    if (call->adds) {
        _tile_loadd(C00, c, c_bytes);
        if (has_second_columns) _tile_loadd(C01, c + TILE_COLUMNS, c_bytes);
        if (has_second_rows) _tile_loadd(C10, c_second, c_bytes);
        if (has_second_rows && has_second_columns) _tile_loadd(C11, c_second + TILE_COLUMNS, c_bytes);
    } else {
        _tile_zero(C00);
        if (has_second_columns) _tile_zero(C01);
        if (has_second_rows) _tile_zero(C10);
        if (has_second_rows && has_second_columns) _tile_zero(C11);
    }
    for (uint32_t step = 0; step < call->steps; step++) {
        tile_fetch_step(fetch);
        _tile_loadd(A0, a, a_bytes);
        _tile_loadd(B0, b, b_bytes);
        _tile_dpbf16ps(C00, A0, B0);
        if (has_second_columns) _tile_loadd(B1, b + TILE_COLUMNS * 4, b_bytes);
        if (has_second_columns) _tile_dpbf16ps(C01, A0, B1);
        if (has_second_rows) _tile_loadd(A1, a_second, a_bytes);
        if (has_second_rows) _tile_dpbf16ps(C10, A1, B0);
        if (has_second_rows && has_second_columns) _tile_dpbf16ps(C11, A1, B1);
        a += TILE_K * 2;
        a_second += TILE_K * 2;
        b += TILE_K / 2 * b_bytes;
    }
    _tile_stored(C00, c, c_bytes);
    if (has_second_columns) _tile_stored(C01, c + TILE_COLUMNS, c_bytes);
    if (has_second_rows) _tile_stored(C10, c_second, c_bytes);
    if (has_second_rows && has_second_columns) _tile_stored(C11, c_second + TILE_COLUMNS, c_bytes);
    MEMORY_BARRIER();
}

void tile_multiply_bf16(const tile_product *product) {
    block call = {.a_bytes = product->a_stride * 2, .b_bytes = product->width * 4, .c_bytes = product->c_stride * sizeof(float),
                  .steps = product->k / TILE_K, .adds = product->adds};
    uint32_t row_blocks = (product->rows + 2 * TILE_ROWS - 1) / (2 * TILE_ROWS);
    uint32_t column_blocks = (product->width + 2 * TILE_COLUMNS - 1) / (2 * TILE_COLUMNS);
    tile_fetch fetch = tile_fetch_start(product, (size_t)row_blocks * column_blocks * call.steps);
    for (uint32_t column = 0; column < product->width; column += 2 * TILE_COLUMNS) {
        bool has_second_columns = product->width - column > TILE_COLUMNS;
        call.b = (const char *)product->b + column * 4;
        for (uint32_t row = 0; row < product->rows; row += 2 * TILE_ROWS) {
            uint32_t rows = product->rows - row < 2 * TILE_ROWS ? product->rows - row : 2 * TILE_ROWS;
            configure(rows);
            call.a = (const char *)product->a + row * call.a_bytes;
            call.c = product->c + row * product->c_stride + column;
            if (rows > TILE_ROWS && has_second_columns) {
                block_multiply(&call, true, true, &fetch);
            } else if (rows > TILE_ROWS) {
                block_multiply(&call, true, false, &fetch);
            } else if (has_second_columns) {
                block_multiply(&call, false, true, &fetch);
            } else {
                block_multiply(&call, false, false, &fetch);
            }
        }
    }
}
