/* page.c - pages are two packed matrices: keys as columns, values as rows of k.
 *
 * Both stores are stores of whole pairs or elements at a fixed stride; a token costs a few hundred of them, against
 * the millions of operations that made it, so one plain version serves every table. */
#include "kernels/cpu/page.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static size_t exponent_bytes(const kernel_page_shape *shape, uint32_t dim) {
    uint32_t groups = HD_ALIGN_UP(dim, KERNEL_INT8_GROUP) / KERNEL_INT8_GROUP;
    return shape->dtype == HD_INT8 ? groups * HD_BLOCK_TOKENS * sizeof(uint16_t) : 0;
}

size_t kernel_page_key_bytes(const kernel_page_shape *shape) {
    return kernel_matrix_bytes(shape->dtype, HD_BLOCK_TOKENS, shape->key_dim) + exponent_bytes(shape, shape->key_dim);
}

size_t kernel_page_value_bytes(const kernel_page_shape *shape) {
    return kernel_matrix_bytes(shape->dtype, shape->value_dim, HD_BLOCK_TOKENS) +
           exponent_bytes(shape, shape->value_dim);
}

const uint16_t *page_exponents(const kernel_page_shape *shape, const void *page, bool is_keys) {
    size_t matrix = is_keys ? kernel_matrix_bytes(HD_INT8, HD_BLOCK_TOKENS, shape->key_dim)
                            : kernel_matrix_bytes(HD_INT8, shape->value_dim, HD_BLOCK_TOKENS);
    return (const uint16_t *)((const char *)page + matrix);
}

/* ---- int8 ---- */

/* The least power of two with which the largest magnitude is below 128, as a page has it; what is so small that bf16
 * would have no exponent for it counts as 0. */
static uint16_t exponent_of(const uint16_t *row, uint32_t count) {
    uint16_t largest = 0; /* bf16 without its sign is in order */
    for (uint32_t i = 0; i < count; i++) largest = (row[i] & 0x7fff) > largest ? row[i] & 0x7fff : largest;
    int exponent = (largest >> 7) - 127 + 1 - 7 + PAGE_EXPONENT_BIAS;
    return exponent > 0 ? (uint16_t)(exponent << 7) : 0;
}

/* To nearest, by adding what leaves no room for a fraction. */
static int8_t byte_of(uint16_t element, float inverse) {
    const float magic = 0x1.8p23f;
    float scaled = fminf(fmaxf(hd_bf16_to_f32(element) * inverse, -127.0f), 127.0f);
    return (int8_t)(scaled + magic - magic);
}

static float inverse_of(uint16_t exponent) {
    return exponent == 0 ? 0.0f : ldexpf(1.0f, PAGE_EXPONENT_BIAS - (exponent >> 7));
}

static uint32_t group_size(uint32_t dim, uint32_t first) {
    return dim - first < KERNEL_INT8_GROUP ? dim - first : KERNEL_INT8_GROUP;
}

void kernel_page_round_rows(const kernel_page_shape *shape, const uint16_t *rows, size_t stride, uint32_t count,
                            uint32_t dim, uint16_t *rounded) {
    for (uint32_t i = 0; i < count; i++, rows += stride, rounded += dim) {
        if (shape->dtype != HD_INT8) {
            memcpy(rounded, rows, dim * sizeof(*rounded));
            continue;
        }
        for (uint32_t first = 0; first < dim; first += KERNEL_INT8_GROUP) {
            uint32_t size = group_size(dim, first);
            uint16_t exponent = exponent_of(rows + first, size);
            float inverse = inverse_of(exponent);
            for (uint32_t k = first; k < first + size; k++)
                rounded[k] = page_widen_byte(byte_of(rows[k], inverse), exponent);
        }
    }
}

static void store_int8(const kernel_page_shape *shape, void *page, bool is_keys, uint32_t slot, const uint16_t *row) {
    uint32_t dim = is_keys ? shape->key_dim : shape->value_dim;
    uint16_t *exponents = (uint16_t *)page_exponents(shape, page, is_keys) + slot;
    for (uint32_t first = 0; first < dim; first += KERNEL_INT8_GROUP, exponents += HD_BLOCK_TOKENS) {
        uint32_t size = group_size(dim, first);
        *exponents = exponent_of(row + first, size);
        float inverse = inverse_of(*exponents);
        for (uint32_t i = first; i < first + size; i++)
            ((int8_t *)page)[page_place(shape, is_keys, slot, i)] = byte_of(row[i], inverse);
    }
}

/* Units are 32 bits: one f32 or a pair of bf16, both along the key's own dimension. A row of bf16 need not begin on
 * a unit. */
static void store_key(uint32_t *page, size_t units_padded, uint32_t units, uint32_t slot, const char *key) {
    uint32_t *column = page + (size_t)(slot / KERNEL_PANEL) * KERNEL_PANEL * units_padded + slot % KERNEL_PANEL;
    for (uint32_t unit = 0; unit < units; unit++)
        memcpy(&column[unit * KERNEL_PANEL], key + unit * sizeof(*column), sizeof(*column));
}

static void store_value_bf16(uint16_t *page, uint32_t value_dim, uint32_t slot, const uint16_t *value) {
    for (uint32_t first = 0; first < value_dim; first += KERNEL_PANEL) {
        uint32_t width = value_dim - first < KERNEL_PANEL ? value_dim - first : KERNEL_PANEL;
        uint16_t *row = page + (size_t)first * HD_BLOCK_TOKENS + (slot / 2) * width * 2 + slot % 2;
        for (uint32_t column = 0; column < width; column++) row[column * 2] = value[first + column];
    }
}

static void store_value_f32(float *page, uint32_t value_dim, uint32_t slot, const float *value) {
    for (uint32_t first = 0; first < value_dim; first += KERNEL_PANEL) {
        uint32_t width = value_dim - first < KERNEL_PANEL ? value_dim - first : KERNEL_PANEL;
        memcpy(page + (size_t)first * HD_BLOCK_TOKENS + slot * width, value + first, width * sizeof(float));
    }
}

void page_store(const kernel_page_shape *shape, void *page_keys, void *page_values, uint32_t slot, uint32_t count,
                const void *keys, size_t key_stride, const void *values, size_t value_stride) {
    assert(slot + count <= HD_BLOCK_TOKENS);
    bool is_f32 = shape->dtype == HD_F32;
    if (shape->dtype == HD_INT8) {
        for (uint32_t i = 0; i < count; i++) {
            store_int8(shape, page_keys, true, slot + i, (const uint16_t *)keys + i * key_stride);
            store_int8(shape, page_values, false, slot + i, (const uint16_t *)values + i * value_stride);
        }
        return;
    }
    size_t element_bytes = hd_dtype_bits(shape->dtype) / 8;
    uint32_t elements_in_unit = is_f32 ? 1 : 2;
    size_t units_padded = HD_ALIGN_UP(shape->key_dim, KERNEL_K_ALIGN) / elements_in_unit;
    for (uint32_t i = 0; i < count; i++) {
        const char *key = (const char *)keys + i * key_stride * element_bytes;
        const void *value = (const char *)values + i * value_stride * element_bytes;
        store_key(page_keys, units_padded, shape->key_dim / elements_in_unit, slot + i, key);
        if (is_f32) {
            store_value_f32(page_values, shape->value_dim, slot + i, value);
        } else {
            store_value_bf16(page_values, shape->value_dim, slot + i, value);
        }
    }
}

static uint16_t to_bf16(uint32_t unit) {
    float value;
    memcpy(&value, &unit, sizeof(value));
    return hd_f32_to_bf16(value);
}

void kernel_page_rows(const kernel_page_shape *shape, const void *page, bool is_keys, uint32_t first, uint32_t count,
                      uint16_t *rows) {
    assert(first + count <= HD_BLOCK_TOKENS);
    uint32_t dim = is_keys ? shape->key_dim : shape->value_dim;
    const uint16_t *exponents = shape->dtype == HD_INT8 ? page_exponents(shape, page, is_keys) : NULL;
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t element = 0; element < dim; element++) {
            size_t place = page_place(shape, is_keys, first + i, element);
            uint16_t *to = &rows[(size_t)i * dim + element];
            if (shape->dtype == HD_INT8)
                *to = page_widen_byte(((const int8_t *)page)[place],
                                      exponents[element / KERNEL_INT8_GROUP * HD_BLOCK_TOKENS + first + i]);
            else
                *to =
                    shape->dtype == HD_F32 ? to_bf16(((const uint32_t *)page)[place]) : ((const uint16_t *)page)[place];
        }
    }
}

/* A pair of bytes or of the bf16 that they are read as; a pair is one row's of keys, two tokens' of values. */
static void widen_key(const kernel_page_shape *shape, const void *keys, uint32_t slot, void *to_keys, uint32_t to) {
    const kernel_page_shape read = kernel_page_shape_read(shape);
    const int8_t *from = (const int8_t *)keys + page_place(shape, true, slot, 0);
    const uint16_t *exponents = page_exponents(shape, keys, true) + slot;
    uint16_t *column = (uint16_t *)to_keys + page_place(&read, true, to, 0);
    for (uint32_t i = 0; i < shape->key_dim; i += 2, from += 2 * KERNEL_PANEL, column += 2 * KERNEL_PANEL) {
        uint16_t exponent = exponents[i / KERNEL_INT8_GROUP * HD_BLOCK_TOKENS];
        column[0] = page_widen_byte(from[0], exponent);
        column[1] = page_widen_byte(from[1], exponent);
    }
}

static void widen_value(const kernel_page_shape *shape, const void *values, uint32_t slot, void *to_values,
                        uint32_t to) {
    const kernel_page_shape read = kernel_page_shape_read(shape);
    const uint16_t *exponents = page_exponents(shape, values, false) + slot;
    for (uint32_t first = 0; first < shape->value_dim; first += KERNEL_INT8_GROUP, exponents += HD_BLOCK_TOKENS) {
        const int8_t *from = (const int8_t *)values + page_place(shape, false, slot, first);
        uint16_t *row = (uint16_t *)to_values + page_place(&read, false, to, first);
        uint32_t size = group_size(shape->value_dim, first);
        for (uint32_t i = 0; i < size; i++) row[2 * i] = page_widen_byte(from[2 * i], *exponents);
    }
}

static void copy_half_units(const uint32_t *from, bool from_high, uint32_t *to, bool to_high, uint32_t count) {
    uint32_t right = from_high ? 16 : 0, left = to_high ? 16 : 0, kept = to_high ? 0xffffu : 0xffff0000u;
    for (uint32_t i = 0; i < count; i++) to[i] = (to[i] & kept) | (from[i] >> right & 0xffffu) << left;
}

static uint32_t pair_of(const kernel_page_shape *shape) {
    return shape->dtype == HD_F32 ? 1 : 2;
}

/* A key is a column of units, one in each row of its panel. */
void kernel_page_copy_key(const kernel_page_shape *shape, const void *keys, uint32_t slot, void *to_keys, uint32_t to) {
    if (shape->dtype == HD_INT8) {
        widen_key(shape, keys, slot, to_keys, to);
        return;
    }
    uint32_t pair = pair_of(shape), units = shape->key_dim / pair;
    const uint32_t *from = (const uint32_t *)keys + page_place(shape, true, slot, 0) / pair;
    uint32_t *column = (uint32_t *)to_keys + page_place(shape, true, to, 0) / pair;
    for (uint32_t i = 0; i < units; i++) column[(size_t)i * KERNEL_PANEL] = from[(size_t)i * KERNEL_PANEL];
}

void kernel_page_put_key(const kernel_page_shape *shape, const void *row, void *to_keys, uint32_t to) {
    uint32_t pair = pair_of(shape), units = shape->key_dim / pair;
    const uint32_t *from = row;
    uint32_t *column = (uint32_t *)to_keys + page_place(shape, true, to, 0) / pair;
    for (uint32_t i = 0; i < units; i++) column[(size_t)i * KERNEL_PANEL] = from[i];
}

/* A row of values in bf16 shares its units with the token beside it. */
void kernel_page_copy_value(const kernel_page_shape *shape, const void *values, uint32_t slot, void *to_values,
                            uint32_t to) {
    if (shape->dtype == HD_INT8) {
        widen_value(shape, values, slot, to_values, to);
        return;
    }
    uint32_t pair = pair_of(shape);
    for (uint32_t first = 0; first < shape->value_dim; first += KERNEL_PANEL) {
        uint32_t width = shape->value_dim - first < KERNEL_PANEL ? shape->value_dim - first : KERNEL_PANEL;
        const uint32_t *from = (const uint32_t *)values + page_place(shape, false, slot, first) / pair;
        uint32_t *row = (uint32_t *)to_values + page_place(shape, false, to, first) / pair;
        if (pair == 1) memcpy(row, from, width * sizeof(*row));
        else copy_half_units(from, slot % 2 != 0, row, to % 2 != 0, width);
    }
}

void kernel_page_prefetch_value(const kernel_page_shape *shape, const void *values, uint32_t slot) {
    size_t element_bytes = hd_dtype_bits(shape->dtype) / 8,
           pair_bytes = element_bytes * (shape->dtype == HD_F32 ? 1 : 2);
    for (uint32_t first = 0; first < shape->value_dim; first += KERNEL_PANEL) {
        uint32_t width = shape->value_dim - first < KERNEL_PANEL ? shape->value_dim - first : KERNEL_PANEL;
        const char *row = (const char *)values + page_place(shape, false, slot, first) * element_bytes;
        for (uint32_t byte = 0; byte < width * pair_bytes; byte += HD_CACHE_LINE)
            __builtin_prefetch(row + byte, 0, 2); /* a page of tokens is as much as the first level holds */
    }
    if (shape->dtype == HD_INT8) __builtin_prefetch(page_exponents(shape, values, false) + slot, 0, 2);
}
