/* token_row.c - tokens as rows, and tokens from all over memory put together in a page. */
#include <assert.h>
#include <string.h>

#include "kernels/cpu/gather.h"
#include "kernels/cpu/page.h"

static size_t element_bytes(const kernel_page_shape *shape) {
    return hd_dtype_bits(shape->dtype) / 8;
}

static uint32_t group_count(uint32_t dim) {
    return HD_ALIGN_UP(dim, KERNEL_INT8_GROUP) / KERNEL_INT8_GROUP;
}

static size_t part_bytes(const kernel_page_shape *shape, bool is_keys) {
    uint32_t dim = is_keys ? shape->key_dim : shape->value_dim;
    return dim * element_bytes(shape) + (shape->dtype == HD_INT8 ? group_count(dim) * sizeof(uint16_t) : 0);
}

size_t kernel_token_row_bytes(const kernel_page_shape *shape) {
    return part_bytes(shape, true) + part_bytes(shape, false);
}

/* ---- Pages and rows ---- */

static void read_int8(const kernel_page_shape *shape, const void *page, bool is_keys, uint32_t slot, char *row) {
    uint32_t dim = is_keys ? shape->key_dim : shape->value_dim;
    const uint16_t *exponents = page_exponents(shape, page, is_keys) + slot;
    for (uint32_t i = 0; i < dim; i++) row[i] = ((const char *)page)[page_place(shape, is_keys, slot, i)];
    for (uint32_t group = 0; group < group_count(dim); group++)
        memcpy(row + dim + group * sizeof(uint16_t), &exponents[(size_t)group * HD_BLOCK_TOKENS], sizeof(uint16_t));
}

static void store_int8(const kernel_page_shape *shape, const char *row, bool is_keys, uint32_t slot, void *page) {
    uint32_t dim = is_keys ? shape->key_dim : shape->value_dim;
    uint16_t *exponents = (uint16_t *)page_exponents(shape, page, is_keys) + slot;
    for (uint32_t i = 0; i < dim; i++) ((char *)page)[page_place(shape, is_keys, slot, i)] = row[i];
    for (uint32_t group = 0; group < group_count(dim); group++)
        memcpy(&exponents[(size_t)group * HD_BLOCK_TOKENS], row + dim + group * sizeof(uint16_t), sizeof(uint16_t));
}

/* A key is a column of units of 32 bits. */
static void read_key(const kernel_page_shape *shape, const uint32_t *page, uint32_t slot, char *row) {
    uint32_t units = (uint32_t)(shape->key_dim * element_bytes(shape) / sizeof(*page));
    size_t units_padded = HD_ALIGN_UP(shape->key_dim, KERNEL_K_ALIGN) * element_bytes(shape) / sizeof(*page);
    const uint32_t *column = page + (size_t)(slot / KERNEL_PANEL) * KERNEL_PANEL * units_padded + slot % KERNEL_PANEL;
    for (uint32_t unit = 0; unit < units; unit++)
        memcpy(row + unit * sizeof(*page), &column[(size_t)unit * KERNEL_PANEL], sizeof(*page));
}

static void read_value(const kernel_page_shape *shape, const void *page, uint32_t slot, char *row) {
    uint32_t pair = shape->dtype == HD_F32 ? 1 : 2;
    for (uint32_t first = 0; first < shape->value_dim; first += KERNEL_PANEL) {
        uint32_t width = shape->value_dim - first < KERNEL_PANEL ? shape->value_dim - first : KERNEL_PANEL;
        size_t place = page_place(shape, false, slot, first);
        if (pair == 1) {
            memcpy(row + first * sizeof(float), (const float *)page + place, width * sizeof(float));
            continue;
        }
        const uint16_t *from = (const uint16_t *)page + place;
        for (uint32_t i = 0; i < width; i++)
            memcpy(row + (first + i) * sizeof(*from), &from[2 * (size_t)i], sizeof(*from));
    }
}

void kernel_token_rows_read(const kernel_page_shape *shape, const void *keys, const void *values, void *rows) {
    size_t row_bytes = kernel_token_row_bytes(shape), key_bytes = part_bytes(shape, true);
    for (uint32_t slot = 0; slot < HD_BLOCK_TOKENS; slot++) {
        char *row = (char *)rows + slot * row_bytes;
        if (shape->dtype == HD_INT8) {
            read_int8(shape, keys, true, slot, row);
            read_int8(shape, values, false, slot, row + key_bytes);
        } else {
            read_key(shape, keys, slot, row);
            read_value(shape, values, slot, row + key_bytes);
        }
    }
}

void kernel_token_rows_store(const kernel_page_shape *shape, const void *rows, void *keys, void *values) {
    size_t row_bytes = kernel_token_row_bytes(shape), key_bytes = part_bytes(shape, true);
    if (shape->dtype != HD_INT8) {
        size_t stride = row_bytes / element_bytes(shape);
        page_store(shape, keys, values, 0, HD_BLOCK_TOKENS, rows, stride, (const char *)rows + key_bytes, stride);
        return;
    }
    for (uint32_t slot = 0; slot < HD_BLOCK_TOKENS; slot++) {
        const char *row = (const char *)rows + slot * row_bytes;
        store_int8(shape, row, true, slot, keys);
        store_int8(shape, row + key_bytes, false, slot, values);
    }
}

static uint16_t widened(const char *part, uint32_t dim, uint32_t element) {
    uint16_t exponent;
    memcpy(&exponent, part + dim + element / KERNEL_INT8_GROUP * sizeof(exponent), sizeof(exponent));
    return page_widen_byte((int8_t)part[element], exponent);
}

void kernel_token_rows_part(const kernel_page_shape *shape, const void *rows, bool is_keys, uint32_t count,
                            uint16_t *part) {
    uint32_t dim = is_keys ? shape->key_dim : shape->value_dim;
    size_t row_bytes = kernel_token_row_bytes(shape), begin = is_keys ? 0 : part_bytes(shape, true);
    for (uint32_t i = 0; i < count; i++, part += dim) {
        const char *from = (const char *)rows + i * row_bytes + begin;
        if (shape->dtype == HD_BF16) memcpy(part, from, dim * sizeof(*part));
        for (uint32_t k = 0; shape->dtype == HD_INT8 && k < dim; k++) part[k] = widened(from, dim, k);
        for (uint32_t k = 0; shape->dtype == HD_F32 && k < dim; k++) {
            float element;
            memcpy(&element, from + k * sizeof(element), sizeof(element));
            part[k] = hd_f32_to_bf16(element);
        }
    }
}

/* ---- Gathering ---- */

static void put_row_key(const kernel_page_shape *shape, const void *row, void *to_keys, uint32_t to) {
    const kernel_page_shape read = kernel_page_shape_read(shape);
    if (shape->dtype != HD_INT8) {
        kernel_page_put_key(&read, row, to_keys, to);
        return;
    }
    for (uint32_t i = 0; i < shape->key_dim; i++)
        ((uint16_t *)to_keys)[page_place(&read, true, to, i)] = widened(row, shape->key_dim, i);
}

static void put_row_value(const kernel_page_shape *shape, const void *row, void *to_values, uint32_t to) {
    const kernel_page_shape read = kernel_page_shape_read(shape);
    const char *value = (const char *)row + part_bytes(shape, true);
    for (uint32_t i = 0; i < shape->value_dim; i++) {
        size_t place = page_place(&read, false, to, i);
        if (shape->dtype == HD_F32) memcpy((float *)to_values + place, value + i * sizeof(float), sizeof(float));
        else if (shape->dtype == HD_BF16)
            memcpy((uint16_t *)to_values + place, value + i * sizeof(uint16_t), sizeof(uint16_t));
        else ((uint16_t *)to_values)[place] = widened(value, shape->value_dim, i);
    }
}

void page_gather_value(const kernel_page_shape *shape, const kernel_token *token, void *to_values, uint32_t to) {
    if (token->row != NULL) put_row_value(shape, token->row, to_values, to);
    else kernel_page_copy_value(shape, token->values, token->slot, to_values, to);
}

void page_gather_one(const kernel_page_shape *shape, const kernel_token *token, void *to_keys, void *to_values,
                     uint32_t to) {
    const kernel_page_shape read = kernel_page_shape_read(shape);
    if (token->key_row != NULL) kernel_page_put_key(&read, token->key_row, to_keys, to);
    else if (token->row != NULL) put_row_key(shape, token->row, to_keys, to);
    else kernel_page_copy_key(shape, token->keys, token->slot, to_keys, to);
    page_gather_value(shape, token, to_values, to);
}

void page_gather(const kernel_page_shape *shape, const kernel_token *tokens, uint32_t count, void *to_keys,
                 void *to_values) {
    for (uint32_t i = 0; i < count; i++) page_gather_one(shape, &tokens[i], to_keys, to_values, i);
}
