/* tile.h - the one product under everything: rows of A times one packed panel. Weights, QK and PV all come here.
 *
 *   1. C[m, n] is summed in ascending k, in one accumulator, from what C held or from zero; so a product may be cut
 *      along k, and along m in any way, and keeps its bits.
 *   2. An operation that ran products ends with tile_end, which gives back the tile registers of amx and is nothing
 *      elsewhere.
 *   3. A product is a number of steps, and other work may run between them: a tile unit multiplies while the vector
 *      units do it. Of two products, one waits until the other is through a block, since a block lives in registers.
 * Threads: tiles belong to the calling thread. */
#ifndef KERNELS_CPU_TILE_H
#define KERNELS_CPU_TILE_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu/vector.h"
#include "kernels/dtype.h"

/* Memory that is wanted soon, brought into the second-level cache a few lines at a time: the first line of each 4 KiB,
 * then the second of each, since one core reads several pages side by side half as fast again as one after another. */
typedef struct tile_fetch {
    const char *next, *row, *row_end, *end; /* row: the line of the first 4 KiB */
    size_t step_lines;
} tile_fetch;

enum { TILE_FETCH_LINE = 64, TILE_FETCH_PAGE = 4096 };

static inline tile_fetch tile_fetch_start(const void *memory, size_t bytes, size_t steps) {
    assert(steps > 0);
    const char *start = memory;
    if (memory == NULL) return (tile_fetch){0};
    return (tile_fetch){start, start, start + (bytes < TILE_FETCH_PAGE ? bytes : TILE_FETCH_PAGE), start + bytes,
                        (bytes / TILE_FETCH_LINE + steps - 1) / steps};
}

static inline void tile_fetch_step(tile_fetch *fetch) {
    for (size_t line = 0; line < fetch->step_lines && fetch->row < fetch->row_end; line++) {
        _mm_prefetch(fetch->next, _MM_HINT_T1);
        fetch->next += TILE_FETCH_PAGE;
        if (fetch->next >= fetch->end) fetch->next = fetch->row += TILE_FETCH_LINE;
    }
}

/* Where the next step of a product begins. */
typedef struct tile_block {
    const char *a, *b;
    float *c;
    size_t b_bytes;         /* from one unit of k to the next in B: a pair of bf16, or one f32 */
    uint32_t rows, columns; /* of the block */
    uint32_t k;             /* that is left of it */
    bool is_first;          /* of its steps */
} tile_block;

typedef struct tile_product {
    const void *a;
    size_t a_stride; /* elements */
    uint32_t rows;
    const void *b;       /* panels of k rows */
    size_t panel_stride; /* elements from panel to panel; of no matter where there is one */
    uint32_t width;      /* columns of all panels, a multiple of 16 */
    uint32_t k;          /* a multiple of 32 */
    float *c;
    size_t c_stride;
    bool adds;         /* to what c holds */
    const void *ahead; /* memory that is wanted next, fetched meanwhile; or NULL */
    size_t ahead_bytes;

    /* From here on: set by tile_start. */
    hd_dtype dtype;
    uint32_t block_rows, block_columns; /* at most */
    uint32_t row, column;               /* where the block at hand begins */
    uint32_t steps, block_steps;        /* that are left, and of one block */
    tile_block at;
    tile_fetch fetch;
} tile_product;

#define tile_end TABLE_NAME(tile_end)
#define tile_start TABLE_NAME(tile_start)
#define tile_step TABLE_NAME(tile_step)
#define tile_step_block TABLE_NAME(tile_step_block)
#define tile_finish TABLE_NAME(tile_finish)

void tile_end(void);
void tile_start(tile_product *product, hd_dtype dtype); /* of both sides: HD_F32 or HD_BF16 */
void tile_step(tile_product *product);                  /* steps > 0 */
void tile_step_block(tile_product *product);            /* the rest of the block at hand; steps > 0 */
void tile_finish(tile_product *product);                /* all steps that are left */

/* Columns of a block; they divide a panel. */
#if defined(KERNEL_HAS_AMX)
enum { TILE_COLUMNS_F32 = 64, TILE_COLUMNS_BF16 = 32 };
#else
enum { TILE_COLUMNS_F32 = 64, TILE_COLUMNS_BF16 = 64 };
#endif

#define TILE_K 32u /* of k between two steps of fetching ahead, and in one step of a tile unit */

/* Multiplies bf16 in tile registers: k of the block, and stores C when it is_last. next_b is where B is read after
 * that. Only the amx table has it. */
void tile_multiply_amx(tile_product *product, const tile_block *block, bool is_last, const char *next_b);
/* Registers for products of up to 32 rows: 0 and 1 take C of the first 16 rows, 2 and 3 of the others, 4 and 5 take A,
 * 6 and 7 take B. Or for up to 16 rows, flat: 0 to 5 take C, 6 takes A, 7 takes B. Tiles lose what they hold when it
 * changes. */
void tile_configure(uint32_t rows);
void tile_configure_flat(uint32_t rows);

#endif
