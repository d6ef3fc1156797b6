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

void page_store(const kernel_page_shape *shape, void *page_keys, void *page_values, uint32_t slot, uint32_t count,
                const void *keys, size_t key_stride, const void *values, size_t value_stride);

#endif
