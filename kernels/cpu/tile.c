/* tile.c - how products are cut into blocks, and the block in vector registers: a few rows by a few vectors of
 * columns, held there over the whole of k. */
#include "kernels/cpu/tile.h"

#include <assert.h>

#define INLINE static inline __attribute__((always_inline))

enum { PANEL = 64, UNIT_BYTES = 4 }; /* a step of k reads 4 bytes of A, and 4 bytes a column of B */

INLINE void step_f32(const char *a, size_t a_bytes, const char *b, const int rows, const int vectors, vec sums[6][4]) {
    vec columns[4];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) columns[v] = vec_load((const float *)b + v * VEC_LANES);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        vec row = vec_set(*(const float *)(a + (size_t)r * a_bytes));
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) sums[r][v] = vec_fma(row, columns[v], sums[r][v]);
    }
}

INLINE void step_bf16(const char *a, size_t a_bytes, const char *b, const int rows, const int vectors, vec sums[6][4]) {
    pairs columns[4];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) columns[v] = pairs_load(b + (size_t)v * VEC_LANES * UNIT_BYTES);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        pairs row = pairs_repeat(a + (size_t)r * a_bytes);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) sums[r][v] = vec_dot(sums[r][v], row, columns[v]);
    }
}

INLINE void multiply(tile_product *product, const tile_block *block, const int rows, const int vectors,
                     const bool is_f32) {
    vec sums[6][4];
    const char *a = block->a, *b = block->b;
    const size_t a_bytes = product->a_stride * UNIT_BYTES / (is_f32 ? 1 : 2), b_bytes = block->b_bytes,
                 c_stride = product->c_stride;
    const int steps = is_f32 ? TILE_K : TILE_K / 2;
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            sums[r][v] = product->adds ? vec_load(block->c + (size_t)r * c_stride + v * VEC_LANES) : vec_set(0.0f);
        }
    }
    for (uint32_t k = 0; k < block->k; k += TILE_K) {
        tile_fetch_step(&product->fetch);
#pragma GCC unroll 2
        for (int step = 0; step < steps; step++, a += UNIT_BYTES, b += b_bytes) {
            if (is_f32) {
                step_f32(a, a_bytes, b, rows, vectors, sums);
            } else {
                step_bf16(a, a_bytes, b, rows, vectors, sums);
            }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) vec_store(block->c + (size_t)r * c_stride + v * VEC_LANES, sums[r][v]);
    }
}

INLINE void multiply_rows(tile_product *product, const tile_block *block, const int vectors, const bool is_f32) {
    switch (block->rows) {
    case 1: multiply(product, block, 1, vectors, is_f32); break;
    case 2: multiply(product, block, 2, vectors, is_f32); break;
    case 3: multiply(product, block, 3, vectors, is_f32); break;
    case 4: multiply(product, block, 4, vectors, is_f32); break;
    case 5: multiply(product, block, 5, vectors, is_f32); break;
    default: multiply(product, block, 6, vectors, is_f32); break;
    }
}

INLINE void multiply_columns(tile_product *product, tile_block block, const bool is_f32) {
    const uint32_t most = TILE_VECTORS * VEC_LANES;
    for (uint32_t taken; block.columns > 0; block.columns -= taken) {
        taken = block.columns < most ? VEC_LANES : most;
        if (taken == most) {
            multiply_rows(product, &block, TILE_VECTORS, is_f32);
        } else {
            multiply_rows(product, &block, 1, is_f32);
        }
        block.b += (size_t)taken * UNIT_BYTES;
        block.c += taken;
    }
}

static size_t element_bytes(const tile_product *product) {
    return product->dtype == HD_F32 ? 4 : 2;
}

static void begin_block(tile_product *product) {
    uint32_t panel = product->column / PANEL, panel_left = product->width - panel * PANEL;
    uint32_t rows = product->rows - product->row, columns = product->width - product->column;
    product->at = (tile_block){
        .a = (const char *)product->a + product->row * product->a_stride * element_bytes(product),
        .b = (const char *)product->b + panel * product->panel_stride * element_bytes(product) +
             (product->column % PANEL) * UNIT_BYTES,
        .c = product->c + product->row * product->c_stride + product->column,
        .b_bytes = (size_t)(panel_left < PANEL ? panel_left : PANEL) * UNIT_BYTES,
        .rows = rows < product->block_rows ? rows : product->block_rows,
        .columns = columns < product->block_columns ? columns : product->block_columns,
        .k = product->k,
        .is_first = true,
    };
}

/* With the cut as constants: starting a product of a few steps must not cost divisions. */
INLINE void start(tile_product *product, const uint32_t block_rows, const uint32_t block_columns,
                  const bool steps_along_k) {
    uint32_t blocks =
        (product->rows + block_rows - 1) / block_rows * ((product->width + block_columns - 1) / block_columns);
    product->block_rows = block_rows;
    product->block_columns = block_columns;
    product->block_steps = steps_along_k ? product->k / TILE_K : 1;
    product->steps = blocks * product->block_steps;
    product->row = product->column = 0;
    product->fetch = (tile_fetch){0};
    if (product->ahead != NULL)
        product->fetch = tile_fetch_start(product->ahead, product->ahead_bytes, blocks * (product->k / TILE_K));
    begin_block(product);
}

void tile_start(tile_product *product, hd_dtype dtype) {
    assert(product->rows > 0 && product->width % 16 == 0 && product->k % TILE_K == 0);
    product->dtype = dtype;
    if (dtype == HD_F32) {
        start(product, TILE_ROWS_F32, TILE_COLUMNS_F32, false);
    } else {
#if defined(KERNEL_HAS_AMX)
        start(product, 32, TILE_COLUMNS_BF16, true);
#else
        start(product, TILE_ROWS_BF16, TILE_COLUMNS_BF16, false);
#endif
    }
}

/* Moves on by a depth of k. */
static void advance(tile_product *product, uint32_t depth) {
    tile_block *at = &product->at;
    if (depth < at->k) {
        size_t units = depth * element_bytes(product) / UNIT_BYTES;
        at->a += units * UNIT_BYTES;
        at->b += units * at->b_bytes;
        at->k -= depth;
        at->is_first = false;
        return;
    }
    product->row += product->block_rows;
    if (product->row >= product->rows) {
        product->row = 0;
        product->column += product->block_columns;
    }
    if (product->column < product->width) begin_block(product);
}

static void take_step(tile_product *product, uint32_t depth) {
    tile_block block = product->at;
    bool is_last = depth == block.k;
    block.k = depth;
    advance(product, depth);
    if (product->dtype == HD_F32) {
        multiply_columns(product, block, true);
    } else {
#if defined(KERNEL_HAS_AMX)
        tile_multiply_amx(product, &block, is_last, product->at.b);
#else
        multiply_columns(product, block, false);
        (void)is_last;
#endif
    }
}

void tile_step(tile_product *product) {
    product->steps--;
    take_step(product, product->block_steps > 1 ? TILE_K : product->at.k);
}

void tile_step_block(tile_product *product) {
    product->steps -= product->block_steps > 1 ? product->at.k / TILE_K : 1;
    take_step(product, product->at.k);
}

void tile_finish(tile_product *product) {
    while (product->column < product->width) take_step(product, product->at.k);
    product->steps = 0;
}

#if !defined(KERNEL_HAS_AMX)
void tile_end(void) {}
#endif
