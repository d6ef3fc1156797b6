/* attend_arguments.h - what the attention kernels are told: the tables that attend_tables.c makes, and one struct of
 * arguments.
 *
 * Keys and values lie token by token: a page is [128][dim] keys, then [128][dim] values, in bf16. A piece is at most
 * 128 tokens that are folded together: a run of one page, or a list of single tokens wherever they lie (device memory,
 * or pinned host memory, of which only those tokens are then read). The pieces of a group of blocks (1,024 positions)
 * make its leaf, one after the other; leaves are merged in the tree of attention-node/merge_tree.h. A piece's partial
 * depends on nothing but the piece and the row, which is why both kernels give a row the same bits.
 *
 * A tile is up to 16 (split) or 128 (block) kernel rows that see the same tokens: kernel row = row of the step *
 * group size + query head within the group. An item is a node of a tile's tree for one KV head; the split kernel's
 * are leaves. */
#ifndef KERNELS_CUDA_ATTEND_ARGUMENTS_H
#define KERNELS_CUDA_ATTEND_ARGUMENTS_H

#include <stdint.h>

#define ATTEND_PIECE_TOKENS 128u
#define ATTEND_SPLIT_ROWS 16u
#define ATTEND_BLOCK_ROWS 128u
#define ATTEND_STACK_LEVELS 15u /* of the finishing tree: contexts of up to 2^24 tokens */
#define ATTEND_FINISH_WARPS 8u
#define ATTEND_STAGES_MAX 6u
#define ATTEND_DIMS(X) X(64) X(80) X(96) X(128) X(256)

typedef struct attend_piece {
    uint64_t offset;   /* bytes from `keys` to its first key; of a list: its first entry in `tokens` */
    uint64_t position; /* of its first token; the following ones follow. A list is seen by every row */
    uint32_t count;
    uint32_t is_list;
} attend_piece;

typedef struct attend_token { /* of a list: addresses */
    uint64_t key, value;
} attend_token;

typedef struct attend_tile {
    uint32_t first_row, row_count; /* kernel rows */
    uint32_t head_first, head_count;
    uint32_t level, node_count; /* it has nodes node_first .. at this level of the tree */
    uint64_t node_first;
    uint64_t group_first, group_end;
    uint32_t group_table; /* group_pieces[group_table + g - group_first] and the next: the pieces of group g, */
    uint32_t piece_first, piece_end; /* of which those in here are seen by any row of the tile */
    uint32_t item_first;             /* items of earlier tiles; its own: head -> node */
    uint32_t result_first;           /* heads x rows of earlier tiles */
    uint32_t partial_row;            /* of its first item's first row; items follow each other */
} attend_tile;

typedef struct attend_counts { /* in device memory, so that a captured graph sees this step's */
    uint32_t tile_count, item_count, result_count;
} attend_counts;

typedef struct attend_partials {
    float *out; /* [row][dim] */
    float *max, *sum;
} attend_partials;

typedef struct attend_arguments {
    const attend_counts *counts;
    const attend_tile *tiles;
    const attend_piece *pieces;
    const uint32_t *group_pieces;
    const attend_token *tokens;
    const uint64_t *positions;          /* of the step's rows */
    const unsigned char *keys, *values; /* of KV head 0 */
    uint64_t head_stride;               /* bytes from a head's page to the next head's of the same block */
    const uint16_t *queries;            /* [head][kernel row][query_stride] */
    uint64_t query_head_stride;         /* elements */
    uint32_t query_stride, group_size;
    float scale, soft_cap;
    uint64_t window;
    attend_partials partials;
    float *stacks;          /* block kernel: [block][warp][stack_levels][dim / 2 + 4][lane] */
    uint32_t stack_levels;  /* more than log2 of the groups of the longest context */
    uint32_t exchange_rows; /* split kernel: at least every tile's row_count */
    uint32_t stages;        /* of the rings in shared memory: 2 .. ATTEND_STAGES_MAX */
} attend_arguments;

typedef struct attend_finish_arguments {
    const attend_counts *counts;
    const attend_tile *tiles;
    attend_partials partials;
    uint32_t dim, group_size;
    const float *sink_logits; /* [query heads] or NULL */
    uint16_t *output;         /* [row of the step][output_stride] */
    uint64_t output_stride;
    float *lse; /* [row of the step][query heads] or NULL */
    uint32_t query_heads;
} attend_finish_arguments;

#endif
