/* attend_block.h - the block kernel (attend_every.h) for one head size. */
/* 16 rows of one warp: the node so far, in fragments. */
typedef struct {
    float out[ATTEND_VALUE_TILES][4];
    float max[2], sum[2];
} ATTEND_NAME(attend_node);

SIMT_FUNCTION void ATTEND_NAME(attend_node_clear)(ATTEND_NAME(attend_node) * node) {
    SIMT_UNROLL
    for (uint32_t n = 0; n < ATTEND_VALUE_TILES; n++) {
        SIMT_UNROLL
        for (uint32_t i = 0; i < 4; i++) node->out[n][i] = 0.0f;
    }
    SIMT_UNROLL
    for (uint32_t half = 0; half < 2; half++) {
        node->max[half] = -simt_infinity();
        node->sum[half] = 0.0f;
    }
}

/* node = node merged with a piece behind it. */
SIMT_FUNCTION void ATTEND_NAME(attend_node_fold)(ATTEND_NAME(attend_node) * node, const attend_lane_rows *rows,
                                                 float out[ATTEND_VALUE_TILES][4]) {
    SIMT_UNROLL
    for (uint32_t half = 0; half < 2; half++) {
        attend_factors f;
        if (attend_merge_row(&node->max[half], &node->sum[half], rows->max[half], rows->sum[half], &f)) {
            SIMT_UNROLL
            for (uint32_t n = 0; n < ATTEND_VALUE_TILES; n++) {
                node->out[n][half * 2] = attend_merge_value(node->out[n][half * 2], out[n][half * 2], f);
                node->out[n][half * 2 + 1] = attend_merge_value(node->out[n][half * 2 + 1], out[n][half * 2 + 1], f);
            }
        }
    }
}

/* A warp's place for the node that waits at a level: [ATTEND_DIM / 2 + 4][lane]. */
SIMT_FUNCTION float *ATTEND_NAME(attend_stack)(const attend_arguments *a, uint32_t level) {
    uint64_t place = ((uint64_t)simt_block() * ATTEND_BLOCK_WARPS + simt_warp()) * a->stack_levels + level;
    return a->stacks + place * (ATTEND_DIM / 2 + 4) * SIMT_WARP + simt_lane();
}

SIMT_FUNCTION void ATTEND_NAME(attend_node_put)(const attend_arguments *a, uint32_t level,
                                                const ATTEND_NAME(attend_node) * node) {
    float *to = ATTEND_NAME(attend_stack)(a, level);
    SIMT_UNROLL
    for (uint32_t i = 0; i < ATTEND_DIM / 2; i++) to[i * SIMT_WARP] = node->out[i / 4][i % 4];
    SIMT_UNROLL
    for (uint32_t half = 0; half < 2; half++) {
        to[(ATTEND_DIM / 2 + half) * SIMT_WARP] = node->max[half];
        to[(ATTEND_DIM / 2 + 2 + half) * SIMT_WARP] = node->sum[half];
    }
}

/* node = what waits at the level, merged with node behind it. */
SIMT_FUNCTION void ATTEND_NAME(attend_node_join)(const attend_arguments *a, uint32_t level,
                                                 ATTEND_NAME(attend_node) * node) {
    const float *from = ATTEND_NAME(attend_stack)(a, level);
    SIMT_UNROLL
    for (uint32_t half = 0; half < 2; half++) {
        float max = from[(ATTEND_DIM / 2 + half) * SIMT_WARP], sum = from[(ATTEND_DIM / 2 + 2 + half) * SIMT_WARP];
        attend_factors f;
        f.keep = 1.0f;
        f.add = 0.0f;
        bool is_joined = attend_merge_row(&max, &sum, node->max[half], node->sum[half], &f);
        SIMT_UNROLL
        for (uint32_t i = 0; i < ATTEND_DIM / 2; i++) {
            if (i % 4 / 2 == half) {
                float waiting = from[i * SIMT_WARP];
                node->out[i / 4][i % 4] = is_joined ? attend_merge_value(waiting, node->out[i / 4][i % 4], f) : waiting;
            }
        }
        node->max[half] = max;
        node->sum[half] = sum;
    }
}

/* Where the block stands among the tiles of 64 tokens that it goes through: group -> piece -> keys, then values. */
typedef struct {
    uint32_t piece, piece_end, part, part_count;
} ATTEND_NAME(attend_walk);

SIMT_FUNCTION void ATTEND_NAME(attend_walk_settle)(const attend_arguments *a, ATTEND_NAME(attend_walk) * w) {
    w->part = 0;
    w->part_count = w->piece < w->piece_end ? (a->pieces[w->piece].count + 63) / 64 * 2 : 0;
}

SIMT_FUNCTION void ATTEND_NAME(attend_walk_fill)(const attend_arguments *a, uint32_t head, unsigned char *to,
                                                 ATTEND_NAME(attend_walk) * w) {
    if (w->part_count > 0) {
        uint32_t half = w->part_count / 2;
        bool is_value = w->part >= half;
        ATTEND_NAME(attend_fetch)
        (a, &a->pieces[w->piece], head, is_value, (is_value ? w->part - half : w->part) * 64, 64, to, simt_thread(),
         simt_thread_count());
        if (++w->part == w->part_count) {
            w->piece++;
            ATTEND_NAME(attend_walk_settle)(a, w);
        }
    }
    simt_copy_commit();
}

typedef struct {
    unsigned char *tiles;
    uint32_t stages, next_filled, next_used, head;
    ATTEND_NAME(attend_walk) ahead;
} ATTEND_NAME(attend_block_ring);

SIMT_FUNCTION void ATTEND_NAME(attend_block_fill)(const attend_arguments *a, ATTEND_NAME(attend_block_ring) * ring) {
    ATTEND_NAME(attend_walk_fill)(a, ring->head, ring->tiles + ring->next_filled * ATTEND_BLOCK_TILE, &ring->ahead);
    ring->next_filled = ring->next_filled + 1 == ring->stages ? 0 : ring->next_filled + 1;
}

SIMT_FUNCTION const unsigned char *ATTEND_NAME(attend_block_take)(const attend_arguments *a,
                                                                  ATTEND_NAME(attend_block_ring) * ring) {
    attend_wait_for_oldest(ring->stages);
    simt_sync();
    ATTEND_NAME(attend_block_fill)(a, ring);
    const unsigned char *tile = ring->tiles + ring->next_used * ATTEND_BLOCK_TILE;
    ring->next_used = ring->next_used + 1 == ring->stages ? 0 : ring->next_used + 1;
    return tile;
}

/* A piece for the warp's 16 rows, folded into its node. All warps walk through all pieces, whose tiles they share. */
SIMT_FUNCTION void ATTEND_NAME(attend_block_piece)(const attend_arguments *a, const attend_piece *piece,
                                                   const unsigned char *queries, ATTEND_NAME(attend_block_ring) * ring,
                                                   attend_lane_rows *rows, ATTEND_NAME(attend_node) * node) {
    float scores[ATTEND_TILES][4];
    uint32_t weights[ATTEND_TILES][2];
    SIMT_UNROLL
    for (uint32_t j = 0; j < ATTEND_TILES; j++) {
        SIMT_UNROLL
        for (uint32_t i = 0; i < 4; i++) scores[j][i] = 0.0f;
    }
    SIMT_UNROLL
    for (uint32_t part = 0; part < 2; part++) {
        if (part * 64 < piece->count) {
            const unsigned char *keys = ATTEND_NAME(attend_block_take)(a, ring);
            ATTEND_NAME(attend_score)(&scores[part * 8], queries, keys, 4);
        }
    }
    attend_weigh(a, piece, scores, weights, rows);
    float out[ATTEND_VALUE_TILES][4];
    SIMT_UNROLL
    for (uint32_t n = 0; n < ATTEND_VALUE_TILES; n++) {
        SIMT_UNROLL
        for (uint32_t i = 0; i < 4; i++) out[n][i] = 0.0f;
    }
    SIMT_UNROLL
    for (uint32_t part = 0; part < 2; part++) {
        if (part * 64 < piece->count) {
            const unsigned char *values = ATTEND_NAME(attend_block_take)(a, ring);
            SIMT_UNROLL
            for (uint32_t j = 0; j < 4; j++) {
                uint32_t tile = part * 8 + j * 2;
                ATTEND_NAME(attend_add_values)
                (out, weights[tile], weights[tile + 1], values + j * 16 * ATTEND_STRIDE);
            }
        }
    }
    ATTEND_NAME(attend_node_fold)(node, rows, out);
}

SIMT_FUNCTION void ATTEND_NAME(attend_node_write)(const attend_arguments *a, const attend_item *item,
                                                  const ATTEND_NAME(attend_node) * node) {
    uint64_t partial_row = ATTEND_NAME(attend_item_row)(item);
    SIMT_UNROLL
    for (uint32_t half = 0; half < 2; half++) {
        uint32_t row = simt_warp() * 16 + simt_lane() / 4 + half * 8;
        if (row < item->tile->row_count) {
            float *to = a->partials.out + (partial_row + row) * ATTEND_DIM + simt_lane() % 4 * 2;
            SIMT_UNROLL
            for (uint32_t n = 0; n < ATTEND_VALUE_TILES; n++) {
                /* An item has at least one group, and its last node stays here. */
                to[n * 8] = node->out[n][half * 2];         // NOLINT(clang-analyzer-core.uninitialized.Assign)
                to[n * 8 + 1] = node->out[n][half * 2 + 1]; // NOLINT(clang-analyzer-core.uninitialized.Assign)
            }
            if (simt_lane() % 4 == 0) {
                a->partials.max[partial_row + row] = node->max[half];
                a->partials.sum[partial_row + row] = node->sum[half];
            }
        }
    }
}

/* The leaves of an item, merged in the order of the tree. */
SIMT_FUNCTION void ATTEND_NAME(attend_block_item)(const attend_arguments *a, const attend_item *item,
                                                  unsigned char *queries, unsigned char *tiles) {
    uint32_t first_row = simt_warp() * 16;
    attend_lane_rows rows;
    attend_lane_rows_begin(a, item->tile, first_row, &rows);
    ATTEND_NAME(attend_block_ring) ring;
    ring.tiles = tiles;
    ring.stages = a->stages;
    ring.next_filled = ring.next_used = 0;
    ring.head = item->head;
    ring.ahead.piece = attend_first_piece(a, item, item->group_first);
    ring.ahead.piece_end = attend_first_piece(a, item, item->group_end);
    ATTEND_NAME(attend_walk_settle)(a, &ring.ahead);

    simt_sync(); /* nobody reads queries or tiles of the item before */
    ATTEND_NAME(attend_load_queries)(a, item, ATTEND_BLOCK_ROWS, queries);
    for (uint32_t i = 0; i + 1 < a->stages; i++) ATTEND_NAME(attend_block_fill)(a, &ring);
    simt_sync();

    ATTEND_NAME(attend_node) node;
    SIMT_KEEP_LOOP
    for (uint64_t group = item->group_first; group < item->group_end; group++) {
        ATTEND_NAME(attend_node_clear)(&node);
        uint32_t end = attend_first_piece(a, item, group + 1);
        SIMT_KEEP_LOOP
        for (uint32_t piece = attend_first_piece(a, item, group); piece < end; piece++) ATTEND_NAME(attend_block_piece)
        (a, &a->pieces[piece], queries + first_row * ATTEND_STRIDE, &ring, &rows, &node);
        bool is_last = group + 1 == item->group_end;
        attend_climb climb = attend_climb_begin(group);
        /* The last node goes on to the root, and takes along what waits on its way. */
        while (attend_climb_is_right(&climb, item->group_first) || (is_last && climb.has_left)) {
            if (climb.index % 2 == 1 && climb.has_left) ATTEND_NAME(attend_node_join)(a, climb.level, &node);
            attend_climb_up(&climb);
        }
        if (!is_last) ATTEND_NAME(attend_node_put)(a, climb.level, &node);
    }
    ATTEND_NAME(attend_node_write)(a, item, &node);
}

/* Shared memory: queries, ring. Blocks take items in turn: those of one tile differ little. */
SIMT_FUNCTION void ATTEND_NAME(attend_block)(const attend_arguments *a) {
    unsigned char *queries = simt_shared(), *tiles = queries + ATTEND_BLOCK_ROWS * ATTEND_STRIDE;
    SIMT_KEEP_LOOP
    for (uint32_t number = simt_block(); number < a->counts->item_count; number += simt_block_count()) {
        attend_item item = attend_item_at(a, number);
        ATTEND_NAME(attend_block_item)(a, &item, queries, tiles);
    }
}
