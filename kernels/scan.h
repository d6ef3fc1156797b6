/* scan.h - operations of searches among keys: each reads many short rows once and leaves a number for each.
 *
 * A table of them is part of each table of ops.h and follows its rules: no allocation, the same bits for the same
 * row whatever else is in the call, and "portable" says what is right.
 * Threads: pure functions on the caller's memory. */
#ifndef KERNELS_SCAN_H
#define KERNELS_SCAN_H

#include <stddef.h>
#include <stdint.h>

typedef struct kernel_scan {
    /* scores[i] = query . rows[i], rows of bf16 `stride` elements apart; dim a multiple of 16 */
    void (*dot_rows)(const float *query, uint32_t dim, const uint16_t *rows, size_t stride, uint32_t count,
                     float *scores);
} kernel_scan;

#endif
