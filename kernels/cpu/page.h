/* page.h - what the CPU tables share about pages: which slots a row may see, and how tokens get in.
 *
 * Threads: pure functions on the caller's memory. */
#ifndef KERNELS_CPU_PAGE_H
#define KERNELS_CPU_PAGE_H

#include "kernels/ops.h"

typedef struct page_slots {
    uint32_t first, end; /* first == end: nothing to see */
} page_slots;

/* The slots of the span that a row at the position sees, window and causality applied. */
static inline page_slots page_slots_visible(const kernel_span *span, uint64_t position, uint64_t window) {
    page_slots slots = {span->first, span->first + span->count};
    if (position < span->position) return (page_slots){span->first, span->first};
    uint64_t seen = position - span->position + 1;
    if (seen < span->count) slots.end = span->first + (uint32_t)seen;
    if (window != 0 && seen > window) {
        uint64_t skipped = seen - window;
        slots.first = skipped < slots.end - span->first ? span->first + (uint32_t)skipped : slots.end;
    }
    return slots;
}

/* Where an element of a token lies: keys by pairs of elements, values by pairs of tokens (matrix.h). */
static inline size_t page_place(const kernel_page_shape *shape, bool is_keys, uint32_t slot, uint32_t element) {
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

#define PAGE_EXPONENT_BIAS 112 /* in bf16's exponent; 15 less than its own, which those of f16 have */

/* int8: the exponents of a page's keys or values, [groups][HD_BLOCK_TOKENS]; a byte as it is read, and an element. */
const uint16_t *page_exponents(const kernel_page_shape *shape, const void *page, bool is_keys);
static inline float page_power(uint16_t exponent) {
    uint32_t bits = ((uint32_t)exponent << 16) + (15u << 23);
    float power;
    memcpy(&power, &bits, sizeof(power));
    return power;
}
static inline uint16_t page_widen_byte(int8_t byte, uint16_t exponent) {
    return hd_f32_to_bf16((float)byte * page_power(exponent));
}

void page_store(const kernel_page_shape *shape, void *page_keys, void *page_values, uint32_t slot, uint32_t count,
                const void *keys, size_t key_stride, const void *values, size_t value_stride);

#endif
