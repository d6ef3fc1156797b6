/* matrix.c - packing into the one layout that every product reads.
 *
 * A source row is a column of B, so packing is a transposition of 32-bit units: a pair of bf16, or one f32. It goes
 * in blocks of one panel by BLOCK_DEPTH, small enough for the first-level cache on both sides, and moves 4 x 4 units
 * at a time in vector registers; that keeps up with the memory, and several threads may pack different columns at
 * once. */
#include "kernels/matrix.h"

#include <assert.h>
#include <math.h>

enum { BLOCK_COLUMNS = 16, BLOCK_DEPTH = 128 };

static size_t element_bytes(hd_dtype dtype) {
    return hd_dtype_bits(dtype) / 8;
}

size_t kernel_matrix_bytes(hd_dtype dtype, uint32_t n, uint32_t k) {
    return (size_t)HD_ALIGN_UP(n, KERNEL_N_ALIGN) * HD_ALIGN_UP(k, KERNEL_K_ALIGN) * element_bytes(dtype);
}

size_t kernel_input_stride(hd_dtype input_dtype, uint32_t k) {
    size_t line = HD_CACHE_LINE / element_bytes(input_dtype);
    return (HD_ALIGN_UP(k, KERNEL_K_ALIGN) / line | 1) * line;
}

uint32_t kernel_matrix_panels(const kernel_matrix *matrix) {
    return (matrix->n_padded + KERNEL_PANEL - 1) / KERNEL_PANEL;
}

hd_dtype kernel_matrix_input_dtype(const kernel_matrix *matrix) {
    return matrix->dtype == HD_F32 ? HD_F32 : HD_BF16;
}

static uint32_t panel_width(const kernel_matrix *matrix, uint32_t panel) {
    uint32_t left = matrix->n_padded - panel * KERNEL_PANEL;
    return left < KERNEL_PANEL ? left : KERNEL_PANEL;
}

/* Where B[k, n] is, in elements from data. */
static size_t element_index(const kernel_matrix *matrix, uint32_t k, uint32_t n) {
    uint32_t panel = n / KERNEL_PANEL, column = n % KERNEL_PANEL, width = panel_width(matrix, panel);
    size_t start = (size_t)panel * KERNEL_PANEL * matrix->k_padded;
    if (matrix->dtype == HD_F32) return start + (size_t)k * width + column;
    return start + (size_t)(k / 2) * width * 2 + column * 2 + k % 2;
}

static void zero_elements(kernel_matrix *matrix, uint32_t k, uint32_t first_n, uint32_t end_n) {
    size_t bytes = element_bytes(matrix->dtype);
    for (uint32_t n = first_n; n < end_n; n++)
        memset((char *)matrix->data + element_index(matrix, k, n) * bytes, 0, bytes);
}

void kernel_matrix_init(kernel_matrix *matrix, hd_dtype dtype, uint32_t n, uint32_t k, void *data, float *scales) {
    assert(n > 0 && k > 0 && (dtype == HD_F32 || dtype == HD_BF16 || (dtype == HD_INT8 && scales != NULL)));
    *matrix = (kernel_matrix){
        .dtype = dtype,
        .n = n,
        .k = k,
        .n_padded = HD_ALIGN_UP(n, KERNEL_N_ALIGN),
        .k_padded = HD_ALIGN_UP(k, KERNEL_K_ALIGN),
        .data = data,
        .scales = dtype == HD_INT8 ? scales : NULL,
    };
    for (uint32_t row = k; row < matrix->k_padded; row++) zero_elements(matrix, row, 0, matrix->n_padded);
    if (matrix->n_padded > n) {
        for (uint32_t row = 0; row < k; row++) zero_elements(matrix, row, n, matrix->n_padded);
    }
    for (uint32_t column = n; matrix->scales != NULL && column < matrix->n_padded; column++)
        matrix->scales[column] = 0.0f;
}

/* target[row, column] = source[column, row] for 32-bit units. */
static void transpose_units(const uint32_t *source, size_t source_stride, uint32_t columns, uint32_t rows,
                            uint32_t *target, size_t target_stride) {
    typedef uint32_t quad __attribute__((vector_size(16)));
    uint32_t column = 0;
    for (; column + 4 <= columns; column += 4) {
        uint32_t row = 0;
        for (; row + 4 <= rows; row += 4) {
            quad in[4], pairs[4], out[4];
            for (int i = 0; i < 4; i++)
                memcpy(&in[i], source + (column + (uint32_t)i) * source_stride + row, sizeof(quad));
            pairs[0] = __builtin_shufflevector(in[0], in[1], 0, 4, 1, 5);
            pairs[1] = __builtin_shufflevector(in[0], in[1], 2, 6, 3, 7);
            pairs[2] = __builtin_shufflevector(in[2], in[3], 0, 4, 1, 5);
            pairs[3] = __builtin_shufflevector(in[2], in[3], 2, 6, 3, 7);
            out[0] = __builtin_shufflevector(pairs[0], pairs[2], 0, 1, 4, 5);
            out[1] = __builtin_shufflevector(pairs[0], pairs[2], 2, 3, 6, 7);
            out[2] = __builtin_shufflevector(pairs[1], pairs[3], 0, 1, 4, 5);
            out[3] = __builtin_shufflevector(pairs[1], pairs[3], 2, 3, 6, 7);
            for (int i = 0; i < 4; i++)
                memcpy(target + (row + (uint32_t)i) * target_stride + column, &out[i], sizeof(quad));
        }
        for (; row < rows; row++) {
            for (uint32_t c = column; c < column + 4; c++)
                target[row * target_stride + c] = source[c * source_stride + row];
        }
    }
    for (; column < columns; column++) {
        for (uint32_t row = 0; row < rows; row++)
            target[row * target_stride + column] = source[column * source_stride + row];
    }
}

static void read_floats(const void *source, hd_dtype dtype, uint32_t count, float *values) {
    if (dtype == HD_F32) {
        memcpy(values, source, count * sizeof(float));
    } else if (dtype == HD_BF16) {
        for (uint32_t i = 0; i < count; i++) values[i] = hd_bf16_to_f32(((const uint16_t *)source)[i]);
    } else {
        for (uint32_t i = 0; i < count; i++) values[i] = hd_f16_to_f32(((const uint16_t *)source)[i]);
    }
}

/* A block of source rows in the matrix's element type, zero beyond the depth that the source has. */
typedef union pack_block {
    float f32[BLOCK_COLUMNS][BLOCK_DEPTH];
    uint16_t bf16[BLOCK_COLUMNS][BLOCK_DEPTH];
    int8_t int8[BLOCK_COLUMNS][BLOCK_DEPTH];
} pack_block;

static void read_block_row(pack_block *block, uint32_t row, hd_dtype dtype, const void *source, hd_dtype source_dtype,
                           uint32_t depth, float inverse_scale) {
    float values[BLOCK_DEPTH] = {0};
    if (dtype == HD_BF16 && source_dtype == HD_BF16) {
        memset(block->bf16[row], 0, sizeof(block->bf16[row]));
        memcpy(block->bf16[row], source, depth * sizeof(uint16_t));
        return;
    }
    read_floats(source, source_dtype, depth, values);
    if (dtype == HD_F32) {
        memcpy(block->f32[row], values, sizeof(values));
    } else if (dtype == HD_BF16) {
        for (uint32_t i = 0; i < BLOCK_DEPTH; i++) block->bf16[row][i] = hd_f32_to_bf16(values[i]);
    } else {
        for (uint32_t i = 0; i < BLOCK_DEPTH; i++) block->int8[row][i] = (int8_t)lrintf(values[i] * inverse_scale);
    }
}

static void write_block(kernel_matrix *matrix, const pack_block *block, uint32_t first_column, uint32_t columns,
                        uint32_t first_k, uint32_t depth) {
    uint32_t width = panel_width(matrix, first_column / KERNEL_PANEL);
    char *target = (char *)matrix->data + element_index(matrix, first_k, first_column) * element_bytes(matrix->dtype);
    uint32_t pairs = (depth + 1) / 2;
    if (matrix->dtype == HD_F32) {
        transpose_units((const uint32_t *)block->f32, BLOCK_DEPTH, columns, depth, (uint32_t *)target, width);
    } else if (matrix->dtype == HD_BF16) {
        transpose_units((const uint32_t *)block->bf16, BLOCK_DEPTH / 2, columns, pairs, (uint32_t *)target, width);
    } else {
        for (uint32_t pair = 0; pair < pairs; pair++) {
            for (uint32_t c = 0; c < columns; c++)
                memcpy(target + ((size_t)pair * width + c) * 2, &block->int8[c][pair * 2], 2);
        }
    }
}

static float largest_magnitude(const void *source, hd_dtype dtype, uint32_t count) {
    float largest = 0.0f;
    for (uint32_t first = 0; first < count; first += BLOCK_DEPTH) {
        float values[BLOCK_DEPTH] = {0};
        uint32_t depth = count - first < BLOCK_DEPTH ? count - first : BLOCK_DEPTH;
        read_floats((const char *)source + first * element_bytes(dtype), dtype, depth, values);
        for (uint32_t i = 0; i < BLOCK_DEPTH; i++) largest = fabsf(values[i]) > largest ? fabsf(values[i]) : largest;
    }
    return largest;
}

void kernel_matrix_pack(kernel_matrix *matrix, uint32_t first_column, const void *source, hd_dtype source_dtype,
                        size_t row_stride, uint32_t row_count) {
    assert(first_column + row_count <= matrix->n && row_stride >= matrix->k);
    const char *rows = source;
    size_t source_bytes = element_bytes(source_dtype), stride_bytes = row_stride * source_bytes;
    uint32_t columns;
    for (uint32_t done = 0; done < row_count; done += columns) {
        uint32_t column = first_column + done, room = BLOCK_COLUMNS - column % BLOCK_COLUMNS;
        columns = row_count - done < room ? row_count - done : room;
        float inverse_scales[BLOCK_COLUMNS] = {0};
        for (uint32_t c = 0; matrix->dtype == HD_INT8 && c < columns; c++) {
            float largest = largest_magnitude(rows + (done + c) * stride_bytes, source_dtype, matrix->k);
            matrix->scales[column + c] = largest / 127.0f;
            inverse_scales[c] = largest > 1e-30f ? 127.0f / largest : 0.0f;
        }
        for (uint32_t k = 0; k < matrix->k; k += BLOCK_DEPTH) {
            uint32_t depth = matrix->k - k < BLOCK_DEPTH ? matrix->k - k : BLOCK_DEPTH;
            pack_block block;
            for (uint32_t c = 0; c < columns; c++) {
                const char *row = rows + (done + c) * stride_bytes + k * source_bytes;
                read_block_row(&block, c, matrix->dtype, row, source_dtype, depth, inverse_scales[c]);
            }
            write_block(matrix, &block, column, columns, k, depth);
        }
    }
}

void kernel_matrix_pack_gate_up(kernel_matrix *matrix, const void *gate, const void *up, hd_dtype source_dtype,
                                uint32_t width) {
    assert(matrix->n == 2 * HD_ALIGN_UP(width, KERNEL_PANEL));
    size_t row_bytes = matrix->k * element_bytes(source_dtype);
    for (uint32_t first = 0; first < width; first += KERNEL_PANEL) {
        uint32_t rows = width - first < KERNEL_PANEL ? width - first : KERNEL_PANEL;
        kernel_matrix_pack(matrix, first * 2, (const char *)gate + first * row_bytes, source_dtype, matrix->k, rows);
        kernel_matrix_pack(matrix, first * 2 + KERNEL_PANEL, (const char *)up + first * row_bytes, source_dtype,
                           matrix->k, rows);
    }
    uint32_t filled = width % KERNEL_PANEL;
    if (filled == 0) return;
    uint32_t last = matrix->n - 2 * KERNEL_PANEL;
    for (uint32_t k = 0; k < matrix->k; k++) {
        zero_elements(matrix, k, last + filled, last + KERNEL_PANEL);
        zero_elements(matrix, k, last + KERNEL_PANEL + filled, last + 2 * KERNEL_PANEL);
    }
    for (uint32_t column = filled; matrix->scales != NULL && column < KERNEL_PANEL; column++) {
        matrix->scales[last + column] = matrix->scales[last + KERNEL_PANEL + column] = 0.0f;
    }
}

float kernel_matrix_get(const kernel_matrix *matrix, uint32_t k, uint32_t n) {
    size_t index = element_index(matrix, k, n);
    if (matrix->dtype == HD_F32) return ((const float *)matrix->data)[index];
    if (matrix->dtype == HD_BF16) return hd_bf16_to_f32(((const uint16_t *)matrix->data)[index]);
    return (float)((const int8_t *)matrix->data)[index] * matrix->scales[n];
}
