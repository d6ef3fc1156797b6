/* attend_amx.c - attention over bf16 pages in tile registers: two tiles of rows by two tiles of columns, of scores and
 * of out.
 *
 * A unit is a page and up to 32 rows; all rows of the call take a page before the next one, so that it comes from the
 * second-level cache once. The pipeline goes by blocks of 32 positions: while one is weighed, the scores of the next
 * and the values of the unit before are multiplied, a step between every few rows. */
#include "kernels/cpu/attend_amx.h"

enum {
    TILES_MAX = ATTEND_AMX_ROWS / ROWS_MAX, /* that take a page one after the other */
    VALUE_STEPS = HD_BLOCK_TOKENS / TILE_K,
};

typedef struct amx_scratch {
    _Alignas(64) float scores[2][ROWS_MAX * BLOCK];
    uint16_t weights[2][ROWS_MAX * HD_BLOCK_TOKENS]; /* of units, in turns */
    row_tile tiles[TILES_MAX];
} amx_scratch;
_Static_assert(sizeof(amx_scratch) <= ATTEND_AMX_SCRATCH_BYTES, "what attend.h says");

/* Rows by tiles of columns, 16 by 16 each, at most two by two: a block of scores, or some columns of out. */
typedef struct product {
    const char *a, *b[2];                  /* b[1] is NULL where there is one tile of columns */
    size_t a_bytes, b_bytes, b_step_bytes; /* from row to row; from step to step */
    float *c[2];
    size_t c_bytes;
    uint32_t rows, steps_left; /* 0: nothing to do */
    bool is_first, adds;
} product;

typedef struct pipeline {
    row_tiles rows;
    amx_scratch *scratch;
    uint32_t key_steps, value_tiles, value_products;
    unit before, now, after;
    uint32_t weighed;      /* blocks of now that are */
    uint32_t scored;       /* blocks of now whose scores are on their way; more than 4: of after */
    uint32_t values_begun; /* products of before */
    product at;            /* the product at hand */
    bool is_scoring;       /* it makes scores */
    page_fetch fetch;
} pipeline;

/* ---- Products ---- */

/* B is read once by each unit, and by the next one not before all of the page was: hinted so that it does not drive out
 * what the pipeline reads again and again. */
INLINE void product_step(product *p) {
    const bool has_second_rows = p->rows > TILE_ROWS, has_second_columns = p->b[1] != NULL,
               has_both = has_second_rows && has_second_columns;
    const size_t a_bytes = p->a_bytes;
    const char *a = p->a, *a_second = a + TILE_ROWS * a_bytes;
    float *c = p->c[0], *c_second = p->c[1];
    const size_t c_bytes = p->c_bytes;
    if (p->is_first) {
        p->is_first = false;
        if (p->adds) {
            _tile_loadd(0, c, c_bytes);
            if (has_second_columns) _tile_loadd(1, c_second, c_bytes);
            if (has_second_rows) _tile_loadd(2, (char *)c + TILE_ROWS * c_bytes, c_bytes);
            if (has_both) _tile_loadd(3, (char *)c_second + TILE_ROWS * c_bytes, c_bytes);
        } else {
            _tile_zero(0);
            if (has_second_columns) _tile_zero(1);
            if (has_second_rows) _tile_zero(2);
            if (has_both) _tile_zero(3);
        }
    }
    _tile_loadd(4, a, a_bytes);
    _tile_stream_loadd(6, p->b[0], p->b_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if (has_second_columns) {
        _tile_stream_loadd(7, p->b[1], p->b_bytes);
        _tile_dpbf16ps(1, 4, 7);
        p->b[1] += p->b_step_bytes;
    }
    if (has_second_rows) {
        _tile_loadd(5, a_second, a_bytes);
        _tile_dpbf16ps(2, 5, 6);
        if (has_second_columns) _tile_dpbf16ps(3, 5, 7);
    }
    p->a += TILE_K * sizeof(uint16_t);
    p->b[0] += p->b_step_bytes;
    if (--p->steps_left > 0) return;
    _tile_stored(0, c, c_bytes);
    if (has_second_columns) _tile_stored(1, c_second, c_bytes);
    if (has_second_rows) _tile_stored(2, (char *)c + TILE_ROWS * c_bytes, c_bytes);
    if (has_both) _tile_stored(3, (char *)c_second + TILE_ROWS * c_bytes, c_bytes);
}

/* Positions 32 block ... of a unit's page. */
static void begin_scores(pipeline *p, const unit *u, uint32_t block, float *scores) {
    const kernel_attend *call = p->rows.call;
    uint32_t panel = block * BLOCK / KERNEL_PANEL, column = block * BLOCK % KERNEL_PANEL;
    const size_t row_bytes = KERNEL_PANEL * 2 * sizeof(uint16_t);
    const char *keys = keys_of(&p->rows, u->span) +
                       ((size_t)panel * p->key_steps * TILE_K * KERNEL_PANEL + column * 2) * sizeof(uint16_t);
    p->at = (product){
        .a = (const char *)call->queries + u->tile->first * call->query_stride * sizeof(uint16_t),
        .a_bytes = call->query_stride * sizeof(uint16_t),
        .b = {keys, keys + TILE_COLUMNS * 2 * sizeof(uint16_t)},
        .b_bytes = row_bytes,
        .b_step_bytes = TILE_K / 2 * row_bytes,
        .c = {scores, scores + TILE_COLUMNS},
        .c_bytes = BLOCK * sizeof(float),
        .rows = u->tile->rows,
        .steps_left = p->key_steps,
        .is_first = true,
    };
}

static uint16_t *weights_of_unit(const pipeline *p, const unit *u) {
    return p->scratch->weights[u->number % 2];
}

/* Two tiles of columns, or the last one. */
static void begin_values(pipeline *p, uint32_t number) {
    const unit *u = &p->before;
    const kernel_attend *call = p->rows.call;
    uint32_t tile = 2 * number, column = tile * TILE_COLUMNS, panel = column / KERNEL_PANEL * KERNEL_PANEL,
             left = call->shape.value_dim - panel, width = left < KERNEL_PANEL ? left : KERNEL_PANEL;
    size_t row_bytes = width * 2 * sizeof(uint16_t);
    const char *values =
        values_of(&p->rows, u->span) + ((size_t)panel * HD_BLOCK_TOKENS + (column - panel) * 2) * sizeof(uint16_t);
    float *out = call->partial.out + u->tile->first * call->partial.out_stride + column;
    p->at = (product){
        .a = (const char *)weights_of_unit(p, u),
        .a_bytes = HD_BLOCK_TOKENS * sizeof(uint16_t),
        .b = {values, tile + 1 < p->value_tiles ? values + TILE_COLUMNS * 2 * sizeof(uint16_t) : NULL},
        .b_bytes = row_bytes,
        .b_step_bytes = TILE_K / 2 * row_bytes,
        .c = {out, out + TILE_COLUMNS},
        .c_bytes = call->partial.out_stride * sizeof(float),
        .rows = u->tile->rows,
        .steps_left = VALUE_STEPS,
        .is_first = true,
        .adds = u->tile->has_output,
    };
}

/* ---- The tile unit's side of the pipeline ---- */

/* Scores go first: they are waited for. A block's place is free when the block two before it has been weighed. */
static bool begin_product(pipeline *p) {
    const unit *u = p->scored < PAGE_BLOCKS ? &p->now : &p->after;
    if (u->span != NULL && p->scored <= p->weighed + 1) {
        begin_scores(p, u, p->scored % PAGE_BLOCKS, p->scratch->scores[p->scored % 2]);
        p->scored++;
        p->is_scoring = true;
    } else if (p->before.span != NULL && p->values_begun < p->value_products) {
        begin_values(p, p->values_begun++);
        p->is_scoring = false;
    } else {
        return false;
    }
    tile_configure(p->at.rows);
    return true;
}

static bool step(pipeline *p) {
    if (p->at.steps_left == 0 && !begin_product(p)) return false;
    product_step(&p->at);
    page_fetch_step(&p->fetch);
    return true;
}

/* Until the scores of the block that is weighed next are there. */
static void finish_scores(pipeline *p) {
    while (p->scored <= p->weighed || (p->is_scoring && p->at.steps_left > 0)) step(p);
}

static void finish_values(pipeline *p) {
    while (p->before.span != NULL && (p->values_begun < p->value_products || p->at.steps_left > 0)) step(p);
    if (p->before.span != NULL) p->before.tile->has_output = true;
}

/* ---- The vector units' side ---- */

/* Weighs the block whose turn it is, with steps of products in between. */
static void weigh_block(pipeline *p, const exponential *e, uint32_t steps_each, uint32_t *credit) {
    row_tile *tile = p->now.tile;
    float *scores = p->scratch->scores[p->weighed % 2];
    uint16_t *weights = weights_of_unit(p, &p->now) + p->weighed * BLOCK;
    MEMORY_BARRIER();
    if (!p->now.is_plain) complete_scores(p->rows.call, &p->now, p->weighed, scores);
    if (tile->has_reference != tile->all) set_references(tile, scores, p->rows.scale);
    uint32_t row = 0;
    for (; row + ROWS_TOGETHER <= tile->rows; row += ROWS_TOGETHER) {
        weigh_rows(e, tile, row, ROWS_TOGETHER, scores, weights, HD_BLOCK_TOKENS);
        for (*credit += steps_each * ROWS_TOGETHER; *credit >= PAGE_BLOCKS * tile->rows;
             *credit -= PAGE_BLOCKS * tile->rows)
            step(p);
    }
    for (; row < tile->rows; row++) weigh_rows(e, tile, row, 1, scores, weights, HD_BLOCK_TOKENS);
    MEMORY_BARRIER();
}

/* ---- All pages, all rows ---- */

static void run(pipeline *p) {
    exponential e = exponential_make(p->rows.scale);
    p->before.span = NULL;
    p->at.steps_left = p->scored = 0;
    p->now = unit_first(&p->rows);
    while (p->now.span != NULL) {
        p->after = unit_after(&p->rows, &p->now);
        p->weighed = p->values_begun = 0;
        uint32_t steps = PAGE_BLOCKS * p->key_steps + (p->before.span != NULL ? p->value_products * VALUE_STEPS : 0);
        uint32_t credit = 0;
        p->fetch = unit_fetch(&p->rows, &p->now, steps);
        for (; p->weighed < PAGE_BLOCKS; p->weighed++) {
            finish_scores(p);
            weigh_block(p, &e, steps, &credit);
        }
        finish_values(p);
        p->before = p->now;
        p->now = p->after;
        p->scored -= PAGE_BLOCKS;
    }
    p->values_begun = 0;
    finish_values(p);
}

/* The largest score of the only row. */
static float largest_score(pipeline *p) {
    float largest = -INFINITY;
    p->before.span = NULL;
    p->now = unit_first(&p->rows);
    for (; p->now.span != NULL; p->now = unit_after(&p->rows, &p->now)) {
        for (p->weighed = 0; p->weighed < PAGE_BLOCKS; p->weighed++) {
            float *scores = p->scratch->scores[0];
            begin_scores(p, &p->now, p->weighed, scores);
            tile_configure(p->at.rows);
            MEMORY_BARRIER();
            while (p->at.steps_left > 0) product_step(&p->at);
            MEMORY_BARRIER();
            if (!p->now.is_plain) complete_scores(p->rows.call, &p->now, p->weighed, scores);
            largest = fmaxf(largest, largest_of(scores));
        }
    }
    return largest;
}

static void attend_row_again(pipeline *p, uint32_t row) {
    row_tile *tile = &p->rows.tiles[0];
    row_tile_begin(p->rows.call, tile, row, 1);
    p->rows.count = 1;
    p->rows.widened_keys = p->rows.widened_values = NULL;
    set_reference(tile, 0, largest_score(p) * p->rows.scale);
    run(p);
    row_tile_finish(p->rows.call, tile, 0);
}

static void attend_rows(pipeline *p, uint32_t first, uint32_t rows, bool *is_whole) {
    const kernel_attend *call = p->rows.call;
    row_tile *tiles = p->rows.tiles;
    p->rows.count = 0;
    p->rows.widened_keys = p->rows.widened_values = NULL;
    for (uint32_t done = 0; done < rows; done += ROWS_MAX) {
        uint32_t left = rows - done;
        row_tile_begin(call, &tiles[p->rows.count++], first + done, left < ROWS_MAX ? left : ROWS_MAX);
    }
    run(p);
    MEMORY_BARRIER();
    for (uint32_t row = 0; row < rows; row++)
        is_whole[row] = row_tile_finish(call, &tiles[row / ROWS_MAX], row % ROWS_MAX);
}

void attend_amx(const kernel_attend *call) {
    pipeline p = {
        .rows = {.call = call, .scale = row_tiles_scale(call)},
        .scratch = call->scratch,
        .key_steps = HD_ALIGN_UP(call->shape.key_dim, KERNEL_K_ALIGN) / TILE_K,
        .value_tiles = call->shape.value_dim / TILE_COLUMNS,
    };
    p.rows.tiles = p.scratch->tiles;
    p.value_products = (p.value_tiles + 1) / 2;
    bool is_flat = call->shape.value_dim <= ATTEND_FLAT_VALUES_MAX, is_whole[ATTEND_AMX_ROWS];
    for (uint32_t first = 0, rows; first < call->row_count; first += rows) {
        rows = call->row_count - first < ATTEND_AMX_ROWS ? call->row_count - first : ATTEND_AMX_ROWS;
        if (is_flat && rows > TILE_ROWS) rows -= rows % TILE_ROWS; /* rows that fill no tile go by themselves */
        if (is_flat) attend_amx_flat(call, first, rows, is_whole);
        else attend_rows(&p, first, rows, is_whole);
        for (uint32_t row = 0; row < rows; row++) {
            if (!is_whole[row]) attend_row_again(&p, first + row); /* in the scratch of rows that are done */
        }
    }
    tile_end();
}
