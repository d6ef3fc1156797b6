/* tile.h - the one product under everything: rows of A times one packed panel. Weights, QK and PV all come here.
 *
 *   1. C[m, n] is summed in ascending k, in one accumulator, from what C held or from zero; so a product may be cut along k, and along
 *      m in any way, and keeps its bits.
 *   2. Every product runs between tile_begin and tile_end (the tile registers of amx; nothing elsewhere), which one operation calls once.
 * Threads: tiles belong to the calling thread. */
#ifndef KERNELS_CPU_TILE_H
#define KERNELS_CPU_TILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu/vector.h"
#include "kernels/dtype.h"

typedef struct tile_product {
    const void *a;
    size_t a_stride; /* elements */
    uint32_t rows;
    const void *b;  /* k rows of one panel */
    uint32_t width; /* columns of that panel: 16, 32, 48 or 64 */
    uint32_t k;     /* a multiple of 32 */
    float *c;
    size_t c_stride;
    bool adds;         /* to what c holds */
    const char *ahead; /* memory that is wanted next, fetched into the second-level cache meanwhile; or NULL */
    size_t ahead_bytes;
} tile_product;

#define tile_begin TABLE_NAME(tile_begin)
#define tile_end TABLE_NAME(tile_end)
#define tile_multiply_f32 TABLE_NAME(tile_multiply_f32)
#define tile_multiply_bf16 TABLE_NAME(tile_multiply_bf16)

void tile_begin(void);
void tile_end(void);
void tile_multiply_f32(const tile_product *product);
void tile_multiply_bf16(const tile_product *product);

static inline void tile_multiply(hd_dtype dtype, const tile_product *product) {
    if (dtype == HD_F32) {
        tile_multiply_f32(product);
    } else {
        tile_multiply_bf16(product);
    }
}

/* Spreads the fetching of product->ahead over a known number of steps. */
typedef struct tile_fetch {
    const char *next, *end;
    size_t step_bytes;
} tile_fetch;

static inline tile_fetch tile_fetch_start(const tile_product *product, size_t steps) {
    size_t bytes = product->ahead != NULL ? product->ahead_bytes : 0;
    return (tile_fetch){product->ahead, product->ahead + bytes, (bytes / steps + 63) / 64 * 64};
}

static inline void tile_fetch_step(tile_fetch *fetch) {
    const char *stop = fetch->end - fetch->next < (ptrdiff_t)fetch->step_bytes ? fetch->end : fetch->next + fetch->step_bytes;
    for (; fetch->next < stop; fetch->next += 64) _mm_prefetch(fetch->next, _MM_HINT_T1);
}

#endif
