/* page.c - pages are two packed matrices: keys as columns, values as rows of k.
 *
 * Both stores are stores of whole pairs or elements at a fixed stride; a token costs a few hundred of them, against
 * the millions of operations that made it, so one plain version serves every table. */
#include "kernels/cpu/page.h"

#include <assert.h>

#include "kernels/cpu/gather.h"

size_t kernel_page_key_bytes(const kernel_page_shape *shape) {
    return kernel_matrix_bytes(shape->dtype, HD_BLOCK_TOKENS, shape->key_dim);
}

size_t kernel_page_value_bytes(const kernel_page_shape *shape) {
    return kernel_matrix_bytes(shape->dtype, shape->value_dim, HD_BLOCK_TOKENS);
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

/* Where an element of a token lies: keys by pairs of elements, values by pairs of tokens (matrix.h). */
static size_t place_of(const kernel_page_shape *shape, bool is_keys, uint32_t slot, uint32_t element) {
    uint32_t pair = shape->dtype == HD_F32 ? 1 : 2;
    if (is_keys) {
        size_t panel = (size_t)(slot / KERNEL_PANEL) * KERNEL_PANEL * HD_ALIGN_UP(shape->key_dim, KERNEL_K_ALIGN);
        return panel + (size_t)(element / pair) * KERNEL_PANEL * pair + slot % KERNEL_PANEL * pair + element % pair;
    }
    uint32_t first = element / KERNEL_PANEL * KERNEL_PANEL;
    uint32_t width = shape->value_dim - first < KERNEL_PANEL ? shape->value_dim - first : KERNEL_PANEL;
    return (size_t)first * HD_BLOCK_TOKENS + (size_t)(slot / pair) * width * pair + (element - first) * pair +
           slot % pair;
}

void kernel_page_rows(const kernel_page_shape *shape, const void *page, bool is_keys, uint32_t first, uint32_t count,
                      uint16_t *rows) {
    assert(first + count <= HD_BLOCK_TOKENS);
    uint32_t dim = is_keys ? shape->key_dim : shape->value_dim;
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t element = 0; element < dim; element++) {
            size_t place = place_of(shape, is_keys, first + i, element);
            rows[(size_t)i * dim + element] =
                shape->dtype == HD_F32 ? to_bf16(((const uint32_t *)page)[place]) : ((const uint16_t *)page)[place];
        }
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
    uint32_t pair = pair_of(shape), units = shape->key_dim / pair;
    const uint32_t *from = (const uint32_t *)keys + place_of(shape, true, slot, 0) / pair;
    uint32_t *column = (uint32_t *)to_keys + place_of(shape, true, to, 0) / pair;
    for (uint32_t i = 0; i < units; i++) column[(size_t)i * KERNEL_PANEL] = from[(size_t)i * KERNEL_PANEL];
}

void kernel_page_put_key(const kernel_page_shape *shape, const void *row, void *to_keys, uint32_t to) {
    uint32_t pair = pair_of(shape), units = shape->key_dim / pair;
    const uint32_t *from = row;
    uint32_t *column = (uint32_t *)to_keys + place_of(shape, true, to, 0) / pair;
    for (uint32_t i = 0; i < units; i++) column[(size_t)i * KERNEL_PANEL] = from[i];
}

/* A row of values in bf16 shares its units with the token beside it. */
void kernel_page_copy_value(const kernel_page_shape *shape, const void *values, uint32_t slot, void *to_values,
                            uint32_t to) {
    uint32_t pair = pair_of(shape);
    for (uint32_t first = 0; first < shape->value_dim; first += KERNEL_PANEL) {
        uint32_t width = shape->value_dim - first < KERNEL_PANEL ? shape->value_dim - first : KERNEL_PANEL;
        const uint32_t *from = (const uint32_t *)values + place_of(shape, false, slot, first) / pair;
        uint32_t *row = (uint32_t *)to_values + place_of(shape, false, to, first) / pair;
        if (pair == 1) memcpy(row, from, width * sizeof(*row));
        else copy_half_units(from, slot % 2 != 0, row, to % 2 != 0, width);
    }
}

void page_gather_one(const kernel_page_shape *shape, const kernel_token *token, void *to_keys, void *to_values,
                     uint32_t to) {
    if (token->key_row != NULL) kernel_page_put_key(shape, token->key_row, to_keys, to);
    else kernel_page_copy_key(shape, token->keys, token->slot, to_keys, to);
    kernel_page_copy_value(shape, token->values, token->slot, to_values, to);
}

void page_gather(const kernel_page_shape *shape, const kernel_token *tokens, uint32_t count, void *to_keys,
                 void *to_values) {
    for (uint32_t i = 0; i < count; i++) page_gather_one(shape, &tokens[i], to_keys, to_values, i);
}

void kernel_page_prefetch_value(const kernel_page_shape *shape, const void *values, uint32_t slot) {
    uint32_t pair = pair_of(shape);
    for (uint32_t first = 0; first < shape->value_dim; first += KERNEL_PANEL) {
        uint32_t width = shape->value_dim - first < KERNEL_PANEL ? shape->value_dim - first : KERNEL_PANEL;
        const char *row = (const char *)((const uint32_t *)values + place_of(shape, false, slot, first) / pair);
        for (uint32_t byte = 0; byte < width * sizeof(uint32_t); byte += HD_CACHE_LINE) __builtin_prefetch(row + byte);
    }
}
