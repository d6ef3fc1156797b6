/* widen.h - pages of int8 as the pages of bf16 that they are read as, for kernels that multiply bf16.
 *
 * A page comes from memory as bytes, once, and is multiplied out of the nearer caches. Attention widens keys when their
 * scores are next and values when their product is next, each into one place of a call's scratch.
 * Threads: pure functions on the caller's memory. */
#ifndef KERNELS_CPU_WIDEN_H
#define KERNELS_CPU_WIDEN_H

#include "kernels/cpu/vector.h"
#include "kernels/ops.h"

enum { WIDENED_BYTES = HD_BLOCK_TOKENS * KERNEL_INT8_DIM_MAX * 2 }; /* of keys, or of values */

#define widen_keys TABLE_NAME(widen_keys)
#define widen_values TABLE_NAME(widen_values)
void widen_keys(const kernel_page_shape *shape, const void *keys, uint16_t *widened);
void widen_values(const kernel_page_shape *shape, const void *values, uint16_t *widened);

#endif
