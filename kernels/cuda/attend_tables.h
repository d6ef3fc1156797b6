/* attend_tables.h - what a step attends to, as the tables that the attention kernels read (attend_arguments.h).
 *
 * Made on the CPU once a step for all layers that see the same, in memory of one size, and copied to the device as one
 * region, so that a captured graph finds new tables where it found the old ones. Rows of a sequence are cut into
 * tiles: at most 16 kernel rows in all go to the split kernel, more to the block kernel. A tile's context is cut at
 * nodes of the merge tree only, so bits do not depend on the cuts:
 *   1. Tiles of the split kernel are cut into leaves, and each of its blocks takes as many: every multiprocessor works,
 *      whatever the batch.
 *   2. Tiles of the block kernel are cut where there are too few of them for all multiprocessors.
 *   3. Where partial results have no room, there are fewer cuts; where even that does not fit, the answer is HD_FULL.
 * Threads: one. */
#ifndef KERNELS_CUDA_ATTEND_TABLES_H
#define KERNELS_CUDA_ATTEND_TABLES_H

#include <stddef.h>

#include "base/status.h"
#include "kernels/cuda/attend_arguments.h"

#define ATTEND_GROUP_TOKENS 1024u /* of a leaf */

/* One sequence's rows and what they see, for some KV heads: different lists for different heads are different spans. */
typedef struct attend_span {
    const attend_piece *pieces; /* in ascending position, none across a multiple of ATTEND_GROUP_TOKENS */
    uint32_t piece_count;
    uint32_t first_row, row_count; /* of the step */
    uint64_t first_position;
    uint32_t head_first, head_count;
} attend_span;

typedef struct attend_tables_shape {
    uint32_t group_size; /* query heads of a KV head: at most 16 */
    uint64_t window;
} attend_tables_shape;

typedef struct attend_tables_limits {
    uint32_t rows_max, spans_max, pieces_max;
    uint32_t groups_max;       /* of all spans together: each has those up to its last row */
    uint64_t context_max;      /* tokens of one sequence */
    uint64_t partial_rows_max; /* of both kernels together */
    uint32_t multiprocessors;
} attend_tables_limits;

typedef enum { ATTEND_SPLIT, ATTEND_BLOCK, ATTEND_PATHS } attend_path;

/* A region of attend_tables_bytes: offsets of its parts, which are the same on the device. */
typedef struct attend_tables {
    attend_tables_limits limits;
    unsigned char *region;
    size_t bytes, used_bytes; /* what has to be copied is the first used_bytes */
    size_t counts_at, positions_at, tiles_at[ATTEND_PATHS], group_pieces_at, pieces_at;
    uint32_t tiles_max, group_entries_max;
    uint32_t piece_count, group_entry_count;
    uint64_t partial_rows;
    uint32_t split_rows; /* of its largest tile */
} attend_tables;

size_t attend_tables_bytes(const attend_tables_limits *limits);
void attend_tables_init(attend_tables *tables, const attend_tables_limits *limits, void *region);

/* What is in the region. */
attend_counts *attend_tables_counts(const attend_tables *tables); /* [ATTEND_PATHS] */
attend_tile *attend_tables_tiles(const attend_tables *tables, attend_path path);

/* Spans are in the order of rows. HD_FULL when a limit does not hold them. */
hd_status attend_tables_build(attend_tables *tables, const attend_span *spans, uint32_t span_count,
                              const attend_tables_shape *shape);

/* How many levels of nodes may wait in the block kernel. */
uint32_t attend_tables_stack_levels(const attend_tables_limits *limits);

#endif
