/* tile.c - the product in vector registers: a block of rows by a few vectors of columns is held in registers over the whole of k. */
#include "kernels/cpu/tile.h"

enum { FETCH_PAIRS = 8 }; /* between two steps of fetching ahead */

/* How one step of k reads its operands: for bf16 a step is a pair of k, for f32 one k; both take 4 bytes of A and 4 bytes a column of B. */
#define UNIT_BYTES 4

typedef struct block {
    const char *a, *b;
    float *c;
    size_t a_bytes, b_bytes, c_stride; /* from row to row of A, from step to step of B */
    uint32_t steps;
    bool adds;
} block;

static inline __attribute__((always_inline)) void block_multiply(const block *call, const int rows, const int vectors, const bool is_f32,
                                                                 tile_fetch *fetch) {
    vec sums[6][4];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            sums[r][v] = call->adds ? vec_load(call->c + (size_t)r * call->c_stride + v * VEC_LANES) : vec_set(0.0f);
        }
    }
    const char *b = call->b, *a = call->a;
    for (uint32_t step = 0; step < call->steps; step++, a += UNIT_BYTES, b += call->b_bytes) {
        if (step % FETCH_PAIRS == 0) tile_fetch_step(fetch);
        if (is_f32) {
            vec columns[4];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) columns[v] = vec_load((const float *)b + v * VEC_LANES);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                vec row = vec_set(*(const float *)(a + (size_t)r * call->a_bytes));
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v++) sums[r][v] = vec_fma(row, columns[v], sums[r][v]);
            }
        } else {
            pairs columns[4];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) columns[v] = pairs_load(b + (size_t)v * VEC_LANES * UNIT_BYTES);
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                pairs row = pairs_repeat(a + (size_t)r * call->a_bytes);
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v++) sums[r][v] = vec_dot(sums[r][v], row, columns[v]);
            }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) vec_store(call->c + (size_t)r * call->c_stride + v * VEC_LANES, sums[r][v]);
    }
}

static inline __attribute__((always_inline)) void rows_multiply(const block *call, uint32_t rows, const int vectors, const bool is_f32,
                                                                tile_fetch *fetch) {
    switch (rows) {
    case 1: block_multiply(call, 1, vectors, is_f32, fetch); break;
    case 2: block_multiply(call, 2, vectors, is_f32, fetch); break;
    case 3: block_multiply(call, 3, vectors, is_f32, fetch); break;
    case 4: block_multiply(call, 4, vectors, is_f32, fetch); break;
    case 5: block_multiply(call, 5, vectors, is_f32, fetch); break;
    default: block_multiply(call, 6, vectors, is_f32, fetch); break;
    }
}

static inline __attribute__((always_inline)) void panel_multiply(const tile_product *product, const bool is_f32) {
    const uint32_t rows_most = is_f32 ? TILE_ROWS_F32 : TILE_ROWS_BF16, columns_most = TILE_VECTORS * VEC_LANES;
    size_t element_bytes = is_f32 ? 4 : 2, c_stride = product->c_stride;
    block call = {.a_bytes = product->a_stride * element_bytes, .b_bytes = product->width * UNIT_BYTES, .c_stride = c_stride,
                  .steps = is_f32 ? product->k : product->k / 2, .adds = product->adds};
    size_t row_blocks = (product->rows + rows_most - 1) / rows_most, column_blocks = (product->width + columns_most - 1) / columns_most;
    tile_fetch fetch = tile_fetch_start(product, row_blocks * column_blocks * (call.steps / FETCH_PAIRS));
    for (uint32_t column = 0; column < product->width;) {
        uint32_t columns = product->width - column < columns_most ? VEC_LANES : columns_most;
        call.b = (const char *)product->b + column * UNIT_BYTES;
        for (uint32_t row = 0; row < product->rows; row += rows_most) {
            uint32_t rows = product->rows - row < rows_most ? product->rows - row : rows_most;
            call.a = (const char *)product->a + row * call.a_bytes;
            call.c = product->c + row * c_stride + column;
            if (columns == VEC_LANES) {
                rows_multiply(&call, rows, 1, is_f32, &fetch);
            } else {
                rows_multiply(&call, rows, TILE_VECTORS, is_f32, &fetch);
            }
        }
        column += columns;
    }
}

void tile_multiply_f32(const tile_product *product) {
    panel_multiply(product, true);
}

#if !defined(KERNEL_HAS_AMX)
void tile_begin(void) {
}

void tile_end(void) {
}

void tile_multiply_bf16(const tile_product *product) {
    panel_multiply(product, false);
}
#endif
