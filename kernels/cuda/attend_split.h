/* attend_split.h - the split kernel (attend_every.h) for one head size. */

/* One warp's ring. */
typedef struct {
    unsigned char *tiles;
    uint32_t stages, next_filled, next_used;
    attend_cursor ahead;
} ATTEND_NAME(attend_ring);

SIMT_FUNCTION void ATTEND_NAME(attend_ring_fill)(const attend_arguments *a, ATTEND_NAME(attend_ring) * ring) {
    attend_cursor *c = &ring->ahead;
    if (c->part_count > 0) {
        uint32_t half = c->part_count / 2;
        bool is_value = c->part >= half;
        ATTEND_NAME(attend_fetch)
        (a, &a->pieces[c->piece], c->head, is_value, (is_value ? c->part - half : c->part) * 16, 16,
         ring->tiles + ring->next_filled * ATTEND_SPLIT_TILE, simt_lane(), SIMT_WARP);
        attend_cursor_next(a, simt_warp(), ATTEND_SPLIT_WARPS, c);
    }
    simt_copy_commit(); /* empty ones too, so that groups can be counted */
    ring->next_filled = ring->next_filled + 1 == ring->stages ? 0 : ring->next_filled + 1;
}

/* The oldest tile, which holds until the next call. The slot that is filled is the one that was used last. */
SIMT_FUNCTION const unsigned char *ATTEND_NAME(attend_ring_take)(const attend_arguments *a,
                                                                 ATTEND_NAME(attend_ring) * ring) {
    attend_wait_for_oldest(ring->stages);
    simt_sync_warp();
    ATTEND_NAME(attend_ring_fill)(a, ring);
    const unsigned char *tile = ring->tiles + ring->next_used * ATTEND_SPLIT_TILE;
    ring->next_used = ring->next_used + 1 == ring->stages ? 0 : ring->next_used + 1;
    return tile;
}

/* A warp's partial of a piece: out in fragments, max and sum in rows. */
SIMT_FUNCTION void ATTEND_NAME(attend_split_piece)(const attend_arguments *a, const attend_piece *piece,
                                                   const unsigned char *queries, ATTEND_NAME(attend_ring) * ring,
                                                   attend_lane_rows *rows, float out[ATTEND_VALUE_TILES][4]) {
    float scores[ATTEND_TILES][4];
    uint32_t weights[ATTEND_TILES][2];
    SIMT_UNROLL
    for (uint32_t j = 0; j < ATTEND_TILES; j++) {
        SIMT_UNROLL
        for (uint32_t i = 0; i < 4; i++) scores[j][i] = 0.0f;
    }
    SIMT_UNROLL
    for (uint32_t j = 0; j < ATTEND_TILES / 2; j++) {
        if (j * 16 < piece->count)
            ATTEND_NAME(attend_score)(&scores[j * 2], queries, ATTEND_NAME(attend_ring_take)(a, ring), 1);
    }
    attend_weigh(a, piece, scores, weights, rows);
    SIMT_UNROLL
    for (uint32_t n = 0; n < ATTEND_VALUE_TILES; n++) {
        SIMT_UNROLL
        for (uint32_t i = 0; i < 4; i++) out[n][i] = 0.0f;
    }
    SIMT_UNROLL
    for (uint32_t j = 0; j < ATTEND_TILES / 2; j++) {
        if (j * 16 < piece->count) ATTEND_NAME(attend_add_values)
        (out, weights[j * 2], weights[j * 2 + 1], ATTEND_NAME(attend_ring_take)(a, ring));
    }
}

/* The warps' partials of one round, and the leaf so far, in shared memory. */
typedef struct {
    float *out;                 /* [warp][row][ATTEND_EXCHANGE_STRIDE] */
    float *max, *sum;           /* [warp][row] */
    float *leaf_max, *leaf_sum; /* [2][row]: as the round before left them, and as this one does */
    uint32_t rows;
} ATTEND_NAME(attend_exchange);

SIMT_FUNCTION void ATTEND_NAME(attend_give)(const ATTEND_NAME(attend_exchange) * e, const attend_lane_rows *rows,
                                            float partial[ATTEND_VALUE_TILES][4]) {
    SIMT_UNROLL
    for (uint32_t half = 0; half < 2; half++) {
        uint32_t row = simt_lane() / 4 + half * 8, place = simt_warp() * e->rows + row;
        if (row < e->rows) {
            float *to = e->out + place * ATTEND_EXCHANGE_STRIDE + simt_lane() % 4 * 2;
            SIMT_UNROLL
            for (uint32_t n = 0; n < ATTEND_VALUE_TILES; n++) {
                to[n * 8] = partial[n][half * 2];
                to[n * 8 + 1] = partial[n][half * 2 + 1];
            }
            if (simt_lane() % 4 == 0) {
                e->max[place] = rows->max[half];
                e->sum[place] = rows->sum[half];
            }
        }
    }
}

/* Each thread folds its columns of the leaf, of which `out` holds what the rounds before made. */
SIMT_FUNCTION void ATTEND_NAME(attend_fold)(const attend_arguments *a, const ATTEND_NAME(attend_exchange) * e,
                                            const attend_item *item, uint32_t round, uint32_t present, bool is_last) {
    uint64_t partial_row = ATTEND_NAME(attend_item_row)(item);
    float *out = a->partials.out + partial_row * ATTEND_DIM;
    uint32_t before = round % 2 * e->rows, after = (round + 1) % 2 * e->rows;
    for (uint32_t i = simt_thread(); i < item->tile->row_count * ATTEND_DIM; i += simt_thread_count()) {
        uint32_t row = i / ATTEND_DIM, column = i % ATTEND_DIM;
        float max = -simt_infinity(), sum = 0.0f, value = 0.0f;
        if (round > 0) {
            max = e->leaf_max[before + row];
            sum = e->leaf_sum[before + row];
            value = out[i];
        }
        for (uint32_t w = 0; w < present; w++) {
            attend_factors factors;
            uint32_t place = w * e->rows + row;
            if (attend_merge_row(&max, &sum, e->max[place], e->sum[place], &factors))
                value = attend_merge_value(value, e->out[place * ATTEND_EXCHANGE_STRIDE + column], factors);
        }
        out[i] = value;
        if (column == 0) {
            float *to_max = is_last ? a->partials.max + partial_row : e->leaf_max + after;
            float *to_sum = is_last ? a->partials.sum + partial_row : e->leaf_sum + after;
            to_max[row] = max;
            to_sum[row] = sum;
        }
    }
}

/* Shared memory: queries, rings, exchange. */
SIMT_FUNCTION void ATTEND_NAME(attend_split)(const attend_arguments *a) {
    const uint32_t warps = ATTEND_SPLIT_WARPS, warp = simt_warp(), stages = a->stages;
    unsigned char *queries = simt_shared();
    ATTEND_NAME(attend_exchange) exchange;
    exchange.rows = a->exchange_rows;
    exchange.out = (float *)(queries + ATTEND_SPLIT_TILE * (1 + warps * stages));
    exchange.max = exchange.out + warps * exchange.rows * ATTEND_EXCHANGE_STRIDE;
    exchange.sum = exchange.max + warps * exchange.rows;
    exchange.leaf_max = exchange.sum + warps * exchange.rows;
    exchange.leaf_sum = exchange.leaf_max + 2 * exchange.rows;

    uint64_t item_count = a->counts->item_count;
    uint32_t begin = (uint32_t)(item_count * simt_block() / simt_block_count());
    uint32_t end = (uint32_t)(item_count * (simt_block() + 1) / simt_block_count());
    ATTEND_NAME(attend_ring) ring;
    ring.tiles = queries + ATTEND_SPLIT_TILE * (1 + warp * stages);
    ring.stages = stages;
    ring.next_filled = ring.next_used = 0;
    ring.ahead = attend_cursor_begin(a, begin, end, warp, warps);
    for (uint32_t i = 0; i + 1 < stages; i++) ATTEND_NAME(attend_ring_fill)(a, &ring);

    SIMT_KEEP_LOOP
    for (uint32_t number = begin; number < end; number++) {
        attend_item item = attend_item_at(a, number);
        uint32_t first = attend_first_piece(a, &item, item.group_first);
        uint32_t count = attend_first_piece(a, &item, item.group_end) - first;
        simt_sync(); /* nobody reads the queries of the item before */
        ATTEND_NAME(attend_load_queries)(a, &item, ATTEND_SPLIT_ROWS, queries);
        simt_sync();
        if (count == 0) ATTEND_NAME(attend_fold)(a, &exchange, &item, 0, 0, true);
        SIMT_KEEP_LOOP
        for (uint32_t done = 0; done < count; done += warps) {
            if (done + warp < count) {
                float partial[ATTEND_VALUE_TILES][4];
                attend_lane_rows rows;
                attend_lane_rows_begin(a, item.tile, 0, &rows);
                ATTEND_NAME(attend_split_piece)(a, &a->pieces[first + done + warp], queries, &ring, &rows, partial);
                ATTEND_NAME(attend_give)(&exchange, &rows, partial);
            }
            simt_sync();
            uint32_t present = count - done < warps ? count - done : warps;
            ATTEND_NAME(attend_fold)(a, &exchange, &item, done / warps, present, done + warps >= count);
            simt_sync();
        }
    }
}
