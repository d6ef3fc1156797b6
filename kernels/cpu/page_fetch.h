/* page_fetch.h - a page on its way to the second-level cache while the one before it is worked on.
 *
 * Several places of the page are asked for in turns: memory gives half as much again to eight streams of a core as to
 * one, and the processor's own prefetching, which helps them, goes no further than 4 KiB.
 * Threads: functions on the caller's memory. */
#ifndef KERNELS_CPU_PAGE_FETCH_H
#define KERNELS_CPU_PAGE_FETCH_H

#include <immintrin.h>

#include "base/memory.h"
#include "kernels/ops.h"

enum { FETCH_STREAMS = 8, FETCH_STREAM_BYTES_MIN = 4096 };

typedef struct page_fetch {
    const char *pieces[FETCH_STREAMS]; /* of the keys, then of the values */
    uint32_t count;
    size_t next, end, step; /* bytes into every piece */
} page_fetch;

/* Pieces of one side of a page; of at most half of the streams. */
static inline size_t page_fetch_add(page_fetch *fetch, const void *memory, size_t bytes) {
    size_t count = bytes / FETCH_STREAM_BYTES_MIN;
    count = count < 1 ? 1 : count > FETCH_STREAMS / 2 ? FETCH_STREAMS / 2 : count;
    size_t piece = HD_ALIGN_UP((bytes + count - 1) / count, (size_t)HD_CACHE_LINE);
    for (size_t i = 0; i < count; i++) fetch->pieces[fetch->count++] = (const char *)memory + i * piece;
    return piece;
}

/* The share-th of so many parts of a page, in so many steps; of no page where span is NULL. */
static inline page_fetch page_fetch_start(const kernel_page_shape *shape, const kernel_span *span, uint32_t share,
                                          uint32_t share_count, uint32_t steps) {
    page_fetch fetch = {.count = 0};
    if (span == NULL) return fetch;
    size_t of_keys = page_fetch_add(&fetch, span->keys, kernel_page_key_bytes(shape)),
           of_values = page_fetch_add(&fetch, span->values, kernel_page_value_bytes(shape)),
           lines = (of_keys > of_values ? of_keys : of_values) / HD_CACHE_LINE, first = lines * share / share_count,
           end = lines * (share + 1) / share_count;
    fetch.next = first * HD_CACHE_LINE;
    fetch.end = end * HD_CACHE_LINE;
    fetch.step = (end - first + steps - 1) / steps * HD_CACHE_LINE;
    return fetch;
}

static inline void page_fetch_step(page_fetch *fetch) {
    size_t left = fetch->end - fetch->next, stop = fetch->next + (left < fetch->step ? left : fetch->step);
    for (; fetch->next < stop; fetch->next += HD_CACHE_LINE)
        for (uint32_t i = 0; i < fetch->count; i++) _mm_prefetch(fetch->pieces[i] + fetch->next, _MM_HINT_T1);
}

#endif
