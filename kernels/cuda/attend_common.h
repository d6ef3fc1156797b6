/* attend_common.h - what the attention kernels of every head size share.
 *
 * Macros speak of ATTEND_DIM, which attend_every.h sets to one head size after the other. */
#ifndef KERNELS_CUDA_ATTEND_COMMON_H
#define KERNELS_CUDA_ATTEND_COMMON_H

#include "kernels/cuda/attend_tree.h"

#define ATTEND_PASTE(name, dim) name##_##dim
#define ATTEND_PASTE_LATER(name, dim) ATTEND_PASTE(name, dim)
#define ATTEND_NAME(name) ATTEND_PASTE_LATER(name, ATTEND_DIM)

#define ATTEND_TILES (ATTEND_PIECE_TOKENS / 8u) /* of 8 tokens, in a piece */
#define ATTEND_STRIDE (ATTEND_DIM * 2u + 16u)   /* bytes from row to row in shared memory: an odd number of 16 bytes */
#define ATTEND_CHUNKS (ATTEND_DIM / 8u)         /* of 16 bytes in a row */
#define ATTEND_VALUE_TILES (ATTEND_DIM / 8u)
/* Warps of a split block, and bytes of its shared memory for so many stages and rows. */
#define ATTEND_SPLIT_WARPS (ATTEND_DIM > 128u ? 4u : 8u)
#define ATTEND_SPLIT_TILE (16u * ATTEND_STRIDE)
#define ATTEND_EXCHANGE_STRIDE (ATTEND_DIM + 8u) /* floats: the rows of a fragment in different banks */
#define ATTEND_BLOCK_WARPS 8u
#define ATTEND_BLOCK_TILE (64u * ATTEND_STRIDE)

/* Where an item's tokens are. */
typedef struct attend_item {
    const attend_tile *tile;
    uint32_t head, index; /* KV head; number of the item within its tile */
    uint64_t group_first, group_end;
} attend_item;

SIMT_FUNCTION attend_item attend_item_at(const attend_arguments *a, uint32_t item) {
    uint32_t low = 0, high = a->counts->tile_count; /* the last tile whose item_first <= item */
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (a->tiles[middle].item_first <= item) low = middle;
        else high = middle;
    }
    attend_item i;
    i.tile = &a->tiles[low];
    i.index = item - i.tile->item_first;
    i.head = i.tile->head_first + i.index / i.tile->node_count;
    uint64_t node = i.tile->node_first + i.index % i.tile->node_count;
    uint64_t first = node << i.tile->level, end = (node + 1) << i.tile->level;
    i.group_first = first > i.tile->group_first ? first : i.tile->group_first;
    i.group_end = end < i.tile->group_end ? end : i.tile->group_end;
    return i;
}

SIMT_FUNCTION uint32_t attend_first_piece(const attend_arguments *a, const attend_item *i, uint64_t group) {
    const attend_tile *tile = i->tile;
    uint32_t piece = a->group_pieces[tile->group_table + (uint32_t)(group - tile->group_first)];
    return piece < tile->piece_first ? tile->piece_first : piece > tile->piece_end ? tile->piece_end : piece;
}

/* Tokens [first, end) of a piece are what the row sees. */
typedef struct attend_range {
    uint32_t first, end;
} attend_range;

SIMT_FUNCTION attend_range attend_visible(const attend_piece *piece, uint64_t window, uint64_t position, bool is_row) {
    attend_range r;
    r.first = 0;
    r.end = is_row ? piece->count : 0;
    if (piece->is_list) return r;
    if (position < piece->position) r.end = 0;
    else if (position - piece->position < r.end) r.end = (uint32_t)(position - piece->position) + 1;
    if (window != 0 && position + 1 > piece->position + window) {
        uint64_t hidden = position + 1 - piece->position - window;
        r.first = hidden < r.end ? (uint32_t)hidden : r.end;
    }
    return r;
}

/* The two rows of a fragment that a lane has a part of: lane / 4, and that + 8. */
typedef struct attend_lane_rows {
    bool is_row[2];
    uint64_t position[2];
    float max[2], sum[2];
} attend_lane_rows;

SIMT_FUNCTION void attend_lane_rows_begin(const attend_arguments *a, const attend_tile *tile, uint32_t first,
                                          attend_lane_rows *rows) {
    SIMT_UNROLL
    for (uint32_t half = 0; half < 2; half++) {
        uint32_t row = first + simt_lane() / 4 + half * 8;
        rows->is_row[half] = row < tile->row_count;
        rows->position[half] = rows->is_row[half] ? a->positions[(tile->first_row + row) / a->group_size] : 0;
        rows->max[half] = -simt_infinity();
        rows->sum[half] = 0.0f;
    }
}

/* Scores to weights in bf16, as the operand of the product with the values, and to their row's max and sum. */
SIMT_FUNCTION void attend_weigh(const attend_arguments *a, const attend_piece *piece, float scores[ATTEND_TILES][4],
                                uint32_t weights[ATTEND_TILES][2], attend_lane_rows *rows) {
    float to_natural = a->scale, soft_cap = a->soft_cap;
    if (soft_cap > 0.0f) {
        SIMT_UNROLL
        for (uint32_t j = 0; j < ATTEND_TILES; j++) {
            SIMT_UNROLL
            for (uint32_t i = 0; i < 4; i++)
                scores[j][i] = soft_cap * simt_tanh(simt_multiply(scores[j][i], a->scale) / soft_cap);
        }
        to_natural = 1.0f;
    }
    SIMT_UNROLL
    for (uint32_t half = 0; half < 2; half++) {
        attend_range range = attend_visible(piece, a->window, rows->position[half], rows->is_row[half]);
        float max = -simt_infinity();
        SIMT_UNROLL
        for (uint32_t j = 0; j < ATTEND_TILES; j++) {
            SIMT_UNROLL
            for (uint32_t i = 0; i < 2; i++) {
                uint32_t token = j * 8 + simt_lane() % 4 * 2 + i;
                bool is_visible = token >= range.first && token < range.end;
                scores[j][half * 2 + i] = is_visible ? scores[j][half * 2 + i] : -simt_infinity();
                max = simt_max(max, scores[j][half * 2 + i]);
            }
        }
        max = simt_max(max, simt_shuffle_xor(max, 1));
        max = simt_max(max, simt_shuffle_xor(max, 2));
        bool is_empty = max == -simt_infinity();
        float factor = simt_multiply(to_natural, SIMT_LOG2_E), shift = is_empty ? 0.0f : -simt_multiply(max, factor);
        float sum = 0.0f;
        SIMT_UNROLL
        for (uint32_t j = 0; j < ATTEND_TILES; j++) {
            float low = simt_exp2(simt_multiply_add(scores[j][half * 2], factor, shift));
            float high = simt_exp2(simt_multiply_add(scores[j][half * 2 + 1], factor, shift));
            uint32_t pair = simt_pack_bf16(low, high);
            weights[j][half] = pair;
            sum = simt_add(sum, simt_add(simt_from_bf16((uint16_t)pair), simt_from_bf16((uint16_t)(pair >> 16))));
        }
        sum = simt_add(sum, simt_shuffle_xor(sum, 1));
        sum = simt_add(sum, simt_shuffle_xor(sum, 2));
        rows->max[half] = is_empty ? max : simt_multiply(max, to_natural);
        rows->sum[half] = sum;
    }
}

/* Waits for the oldest of `stages` - 1 tiles on their way. The number is an immediate operand of the instruction. */
SIMT_FUNCTION void attend_wait_for_oldest(uint32_t stages) {
    if (stages == 2) simt_copy_wait(0);
    else if (stages == 3) simt_copy_wait(1);
    else if (stages == 4) simt_copy_wait(2);
    else if (stages == 5) simt_copy_wait(3);
    else simt_copy_wait(4);
}

/* ---- The split kernel ---- */

/* Where a warp stands among the tiles of 16 tokens that it goes through: item -> its pieces -> keys, then values. */
typedef struct attend_cursor {
    uint32_t item, item_end; /* of the block */
    uint32_t piece, piece_end;
    uint32_t part, part_count; /* of the piece; none when there is no piece left */
    uint32_t head;
} attend_cursor;

SIMT_FUNCTION void attend_cursor_settle(const attend_arguments *a, uint32_t warp, uint32_t warps, attend_cursor *c) {
    while (c->piece >= c->piece_end) {
        c->item++;
        if (c->item >= c->item_end) {
            c->part_count = 0;
            return;
        }
        attend_item item = attend_item_at(a, c->item);
        c->head = item.head;
        c->piece = attend_first_piece(a, &item, item.group_first) + warp;
        c->piece_end = attend_first_piece(a, &item, item.group_end);
    }
    c->part = 0;
    c->part_count = (a->pieces[c->piece].count + 15) / 16 * 2;
}

SIMT_FUNCTION attend_cursor attend_cursor_begin(const attend_arguments *a, uint32_t item, uint32_t item_end,
                                                uint32_t warp, uint32_t warps) {
    attend_cursor c;
    c.item = item - 1; /* settling goes on to the next */
    c.item_end = item_end;
    c.piece = c.piece_end = 0;
    c.part = c.part_count = 0;
    c.head = 0;
    attend_cursor_settle(a, warp, warps, &c);
    return c;
}

SIMT_FUNCTION void attend_cursor_next(const attend_arguments *a, uint32_t warp, uint32_t warps, attend_cursor *c) {
    if (++c->part < c->part_count) return;
    c->piece += warps;
    attend_cursor_settle(a, warp, warps, c);
}

#endif
