/* attend_amx_flat.c - attention over bf16 pages in tile registers, for heads of up to 64 values: 16 rows of out are
 * four tiles, which stay in registers for a page, two more take scores, one A and one B.
 *
 * Such heads weigh as many scores as wide ones for half of the products, so what reaches memory matters more. Here it
 * is little: a block's weights are multiplied one block after they were made, and rows are half as many as in
 * attend_amx.c, so that all of it and most of a page stay in the first-level cache; one and a half tiles are loaded for
 * a product instead of one, which the tile unit does beside it.
 *
 * The pipeline goes by blocks of 32 positions: while one is weighed, the scores of the next and the values of the one
 * before are multiplied. */
#include "kernels/cpu/attend_amx.h"

enum { TILES_MAX = ATTEND_AMX_ROWS / TILE_ROWS };

/* Tile registers, as tile_configure_flat sets them: 0 to 3 take columns of out. */
#define SCORES_LOW 4
#define SCORES_HIGH 5
#define A 6
#define B 7

typedef struct flat_scratch {
    _Alignas(64) float scores[2][TILE_ROWS * BLOCK]; /* of blocks, in turns */
    uint16_t weights[2][TILE_ROWS * BLOCK];
    row_tile tiles[TILES_MAX];
} flat_scratch;
_Static_assert(sizeof(flat_scratch) <= ATTEND_AMX_SCRATCH_BYTES, "what attend.h says");

typedef struct pipeline {
    row_tiles rows;
    flat_scratch *scratch;
    uint32_t key_steps, value_tiles;
    unit now, after;
    uint32_t block; /* of now: it is weighed */
    page_fetch fetch;
    /* Where the next step of scores reads, and where they go. */
    const char *queries, *keys;
    float *scores;
    /* Where the next step of values reads, and where they go; out is NULL before the first. */
    const char *values;
    float *out;
} pipeline;

/* ---- Products ---- */

static void begin_scores(pipeline *p, const unit *u, uint32_t block, float *scores) {
    const kernel_attend *call = p->rows.call;
    uint32_t panel = block * BLOCK / KERNEL_PANEL, column = block * BLOCK % KERNEL_PANEL;
    p->queries = (const char *)call->queries + u->tile->first * call->query_stride * sizeof(uint16_t);
    p->keys = keys_of(&p->rows, u->span) +
              ((size_t)panel * p->key_steps * TILE_K * KERNEL_PANEL + column * 2) * sizeof(uint16_t);
    p->scores = scores;
    _tile_zero(SCORES_LOW);
    _tile_zero(SCORES_HIGH);
}

/* With few rows the next page is asked for between tiles: it is all that takes time. */
INLINE void score_step(pipeline *p, const bool is_few) {
    const size_t row_bytes = KERNEL_PANEL * 2 * sizeof(uint16_t);
    _tile_loadd(A, p->queries, p->rows.call->query_stride * sizeof(uint16_t));
    _tile_loadd(B, p->keys, row_bytes);
    _tile_dpbf16ps(SCORES_LOW, A, B);
    if (is_few) page_fetch_step(&p->fetch);
    _tile_loadd(B, p->keys + TILE_COLUMNS * 2 * sizeof(uint16_t), row_bytes);
    _tile_dpbf16ps(SCORES_HIGH, A, B);
    if (is_few) page_fetch_step(&p->fetch);
    p->queries += TILE_K * sizeof(uint16_t);
    p->keys += TILE_K / 2 * row_bytes;
}

/* As late as can be: what waits for a product to end had better not wait at all. */
static void end_scores(const pipeline *p) {
    _tile_stored(SCORES_LOW, p->scores, BLOCK * sizeof(float));
    _tile_stored(SCORES_HIGH, p->scores + TILE_COLUMNS, BLOCK * sizeof(float));
}

static void begin_values(pipeline *p, const unit *u) {
    const kernel_attend *call = p->rows.call;
    size_t out_bytes = call->partial.out_stride * sizeof(float);
    p->values = values_of(&p->rows, u->span);
    p->out = call->partial.out + u->tile->first * call->partial.out_stride;
    if (u->tile->has_output) {
        _tile_loadd(0, p->out, out_bytes);
        if (p->value_tiles > 1) _tile_loadd(1, p->out + TILE_COLUMNS, out_bytes);
        if (p->value_tiles > 2) _tile_loadd(2, p->out + 2 * TILE_COLUMNS, out_bytes);
        if (p->value_tiles > 3) _tile_loadd(3, p->out + 3 * TILE_COLUMNS, out_bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    u->tile->has_output = true;
}

static void end_values(const pipeline *p) {
    size_t out_bytes = p->rows.call->partial.out_stride * sizeof(float);
    _tile_stored(0, p->out, out_bytes);
    if (p->value_tiles > 1) _tile_stored(1, p->out + TILE_COLUMNS, out_bytes);
    if (p->value_tiles > 2) _tile_stored(2, p->out + 2 * TILE_COLUMNS, out_bytes);
    if (p->value_tiles > 3) _tile_stored(3, p->out + 3 * TILE_COLUMNS, out_bytes);
}

/* 32 positions of all columns. */
INLINE void value_step(pipeline *p, const uint16_t *weights, const uint32_t tiles, const bool is_few) {
    const size_t tile_bytes = TILE_COLUMNS * 2 * sizeof(uint16_t), row_bytes = tiles * tile_bytes;
    _tile_loadd(A, weights, BLOCK * sizeof(uint16_t));
    _tile_loadd(B, p->values, row_bytes);
    _tile_dpbf16ps(0, A, B);
    if (is_few) page_fetch_step(&p->fetch);
    if (tiles > 1) {
        _tile_loadd(B, p->values + tile_bytes, row_bytes);
        _tile_dpbf16ps(1, A, B);
        if (is_few) page_fetch_step(&p->fetch);
    }
    if (tiles > 2) {
        _tile_loadd(B, p->values + 2 * tile_bytes, row_bytes);
        _tile_dpbf16ps(2, A, B);
        if (is_few) page_fetch_step(&p->fetch);
    }
    if (tiles > 3) {
        _tile_loadd(B, p->values + 3 * tile_bytes, row_bytes);
        _tile_dpbf16ps(3, A, B);
        if (is_few) page_fetch_step(&p->fetch);
    }
    p->values += TILE_K / 2 * row_bytes;
}

/* ---- A block ---- */

/* Weighs the scores of a block with steps of products in between: those of the next block's scores, then the values of
 * the one before. */
INLINE void weigh_beside(pipeline *p, const exponential *constants, const uint32_t rows, const uint32_t score_steps,
                         const uint32_t value_steps, const uint32_t value_tiles) {
    const exponential e = *constants; /* in registers, whatever the barriers say about memory */
    const float *scores = p->scratch->scores[p->block % 2];
    uint16_t *weights = p->scratch->weights[p->block % 2];
    const uint16_t *weights_before = p->scratch->weights[(p->block + 1) % 2];
    const uint32_t steps = score_steps + value_steps;
    const bool is_few = rows < TILE_ROWS;
    row_tile *tile = p->now.tile;
    uint32_t row = 0, done = 0;
#pragma GCC unroll 4
    for (; row + ROWS_TOGETHER <= rows; row += ROWS_TOGETHER) {
        weigh_rows(&e, tile, row, ROWS_TOGETHER, scores, weights, BLOCK);
        if (!is_few) page_fetch_step(&p->fetch);
        MEMORY_BARRIER();
#pragma GCC unroll 4
        for (; done * rows < steps * (row + ROWS_TOGETHER); done++) {
            if (done < score_steps) score_step(p, is_few);
            else value_step(p, weights_before, value_tiles, is_few);
        }
        MEMORY_BARRIER();
    }
    for (; row < rows; row++) weigh_rows(&e, tile, row, 1, scores, weights, BLOCK);
    MEMORY_BARRIER();
    for (; done < score_steps; done++) score_step(p, is_few);
    for (; done < steps; done++) value_step(p, weights_before, value_tiles, is_few);
}

/* Heads of 64 have code of their own, without a branch between products. */
static void weigh_block(pipeline *p, const exponential *e) {
    const kernel_attend *call = p->rows.call;
    row_tile *tile = p->now.tile;
    float *scores = p->scratch->scores[p->block % 2];
    bool is_last = p->block + 1 == PAGE_BLOCKS, scores_more = !is_last || p->after.span != NULL;
    if (!p->now.is_plain) complete_scores(call, &p->now, p->block, scores);
    if (tile->has_reference != tile->all) set_references(tile, scores, p->rows.scale);
    if (scores_more)
        begin_scores(p, is_last ? &p->after : &p->now, is_last ? 0 : p->block + 1,
                     p->scratch->scores[(p->block + 1) % 2]);
    uint32_t score_steps = scores_more ? p->key_steps : 0, value_steps = p->out != NULL ? 1 : 0;
    if (tile->rows == TILE_ROWS && score_steps == 2 && value_steps == 1 && p->value_tiles == 4)
        weigh_beside(p, e, TILE_ROWS, 2, 1, 4);
    else weigh_beside(p, e, tile->rows, score_steps, value_steps, p->value_tiles);
    if (scores_more) end_scores(p);
    if (p->block == 0) { /* the values of the unit before have come to their end */
        if (p->out != NULL) end_values(p);
        begin_values(p, &p->now);
    }
    MEMORY_BARRIER();
}

/* ---- All pages, all rows ---- */

static void run(pipeline *p) {
    exponential e = exponential_make(p->rows.scale);
    p->now = unit_first(&p->rows);
    if (p->now.span == NULL) return;
    begin_scores(p, &p->now, 0, p->scratch->scores[0]);
    for (uint32_t step = 0; step < p->key_steps; step++) score_step(p, false);
    end_scores(p);
    MEMORY_BARRIER();
    for (; p->now.span != NULL; p->now = p->after) {
        p->after = unit_after(&p->rows, &p->now);
        bool is_few = p->now.tile->rows < TILE_ROWS;
        uint32_t turns = is_few ? 2 * p->key_steps + p->value_tiles : TILE_ROWS / ROWS_TOGETHER;
        p->fetch = unit_fetch(&p->rows, &p->now, PAGE_BLOCKS * turns);
        for (p->block = 0; p->block < PAGE_BLOCKS; p->block++) weigh_block(p, &e);
    }
    value_step(p, p->scratch->weights[(PAGE_BLOCKS + 1) % 2], p->value_tiles, false);
    end_values(p);
    MEMORY_BARRIER();
}

void attend_amx_flat(const kernel_attend *call, uint32_t first, uint32_t rows, bool *is_whole) {
    const uint32_t tile_rows = rows < TILE_ROWS ? rows : TILE_ROWS;
    pipeline p = {
        .rows = {.call = call, .scale = row_tiles_scale(call)},
        .scratch = call->scratch,
        .key_steps = HD_ALIGN_UP(call->shape.key_dim, KERNEL_K_ALIGN) / TILE_K,
        .value_tiles = call->shape.value_dim / TILE_COLUMNS,
    };
    row_tile *tiles = p.rows.tiles = p.scratch->tiles;
    for (uint32_t done = 0; done < rows; done += tile_rows)
        row_tile_begin(call, &tiles[p.rows.count++], first + done, tile_rows);
    tile_configure_flat(tile_rows);
    run(&p);
    for (uint32_t row = 0; row < rows; row++)
        is_whole[row] = row_tile_finish(call, &tiles[row / TILE_ROWS], row % TILE_ROWS);
}
