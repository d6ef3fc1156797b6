/* attend_amx.c - attention over bf16 pages with a tile unit, which multiplies while the vector units weigh.
 *
 * What bounds this is not the tile unit alone: while it works, one of the two vector ports does no floating point (so
 * on Sapphire Rapids), and the softmax has half of what it would have otherwise. Hence:
 *
 *   - Weights are 2^(score - reference), where the reference is the largest of the first scores that a row sees, not
 *     of all so far: no pass over the scores for a maximum, and no rescaling. Floats carry what lies above. In the
 *     rare case that a sum leaves their range, its row is computed again with the largest of all as reference.
 *   - 2^x takes five operations of floating point: sixteenths by a table in a register, which is a permutation and
 *     runs on the other port, and a straight line between them. So does the rounding to bf16.
 *   - Sums of weights come from the tile unit, as a column of ones beside the values.
 *
 * A unit is a page and up to 32 rows; all rows of the call take a page before the next one, so that it comes from the
 * second-level cache once. The pipeline goes by blocks of 32 positions: while one is weighed, the scores of the next
 * and the values of the unit before are multiplied, a step between every few rows. A row's bits depend neither on its
 * neighbours nor on pages that it does not see, whose weights are exact zeros. */
#include <assert.h>
#include <immintrin.h>
#include <math.h>

#include "kernels/cpu/attend.h"
#include "kernels/cpu/page.h"
#include "kernels/cpu/tile.h"

#define INLINE static inline __attribute__((always_inline))
#define MEMORY_BARRIER() __asm__ volatile("" ::: "memory")

enum {
    TILE_ROWS = 16,
    TILE_COLUMNS = 16,
    ROWS_MAX = 2 * TILE_ROWS,               /* of a row tile */
    TILES_MAX = ATTEND_AMX_ROWS / ROWS_MAX, /* that take a page one after the other */
    BLOCK = 32,                             /* positions that are weighed at a time */
    PAGE_BLOCKS = HD_BLOCK_TOKENS / BLOCK,
    VALUE_STEPS = HD_BLOCK_TOKENS / TILE_K,
    ROWS_TOGETHER = 4, /* weighed side by side, so that latencies overlap */
};
#define SUM_MAX 0x1p100f /* above it, a sum of weights may have left the range of floats somewhere */
#define EXPONENT_MAX 10  /* of a sum, at the end: 1,024 weights of 1 */

/* Rows that go through the pipeline together, and what is known of them so far. */
typedef struct row_tile {
    float sums[ROWS_MAX][TILE_COLUMNS]; /* of weights, the same in every column */
    float references[ROWS_MAX];         /* in base 2; 0 before there is one */
    uint64_t lowest, highest;           /* positions */
    uint32_t first, rows;
    uint32_t all, has_reference; /* bits of rows */
    bool has_output;             /* out and sums hold the products of pages before */
} row_tile;

typedef struct amx_scratch {
    _Alignas(64) float scores[2][ROWS_MAX * BLOCK];
    uint16_t weights[2][ROWS_MAX * HD_BLOCK_TOKENS];
    uint16_t ones[TILE_ROWS][TILE_COLUMNS * 2];
    row_tile tiles[TILES_MAX];
} amx_scratch;
_Static_assert(sizeof(amx_scratch) <= ATTEND_AMX_SCRATCH_BYTES, "what attend.h says");

/* Rows by tiles of columns, 16 by 16 each, at most two by two: a block of scores, or some columns of out. */
typedef struct product {
    const char *a, *b[2];                        /* b[1] is NULL where there is one tile of columns */
    size_t a_bytes, b_bytes[2], b_step_bytes[2]; /* from row to row; from step to step */
    float *c[2];
    size_t c_bytes[2];
    uint32_t rows, steps_left; /* 0: nothing to do */
    bool is_first, adds;
} product;

/* A page and a row tile. */
typedef struct unit {
    const kernel_span *span; /* NULL: none */
    row_tile *tile;
    uint32_t span_index, tile_index;
    uint16_t *weights; /* [rows][128] */
    bool is_plain;     /* every row sees every slot, and scores are not capped */
} unit;

typedef struct pipeline {
    const kernel_attend *call;
    amx_scratch *scratch;
    row_tile *tiles;
    uint32_t tile_count;
    float scale; /* from a score, as it is when it is weighed, to base 2 */
    uint32_t key_steps, value_tiles, value_products;
    unit before, now, after;
    uint32_t weighed;      /* blocks of now that are */
    uint32_t scored;       /* blocks of now whose scores are on their way; more than 4: of after */
    uint32_t values_begun; /* products of before */
    product at;            /* the product at hand */
    bool is_scoring;       /* it makes scores */
    tile_fetch fetch;
} pipeline;

/* ---- Products ---- */

INLINE void product_step(product *p) {
    const bool has_second_rows = p->rows > TILE_ROWS, has_second_columns = p->b[1] != NULL,
               has_both = has_second_rows && has_second_columns;
    const size_t a_bytes = p->a_bytes;
    const char *a = p->a, *a_second = a + TILE_ROWS * a_bytes;
    float *c = p->c[0], *c_second = p->c[1];
    const size_t c_bytes = p->c_bytes[0], c_second_bytes = p->c_bytes[1];
    if (p->is_first) {
        p->is_first = false;
        if (p->adds) {
            _tile_loadd(0, c, c_bytes);
            if (has_second_columns) _tile_loadd(1, c_second, c_second_bytes);
            if (has_second_rows) _tile_loadd(2, (char *)c + TILE_ROWS * c_bytes, c_bytes);
            if (has_both) _tile_loadd(3, (char *)c_second + TILE_ROWS * c_second_bytes, c_second_bytes);
        } else {
            _tile_zero(0);
            if (has_second_columns) _tile_zero(1);
            if (has_second_rows) _tile_zero(2);
            if (has_both) _tile_zero(3);
        }
    }
    _tile_loadd(4, a, a_bytes);
    _tile_loadd(6, p->b[0], p->b_bytes[0]);
    _tile_dpbf16ps(0, 4, 6);
    if (has_second_columns) {
        _tile_loadd(7, p->b[1], p->b_bytes[1]);
        _tile_dpbf16ps(1, 4, 7);
        p->b[1] += p->b_step_bytes[1];
    }
    if (has_second_rows) {
        _tile_loadd(5, a_second, a_bytes);
        _tile_dpbf16ps(2, 5, 6);
        if (has_second_columns) _tile_dpbf16ps(3, 5, 7);
    }
    p->a += TILE_K * sizeof(uint16_t);
    p->b[0] += p->b_step_bytes[0];
    if (--p->steps_left > 0) return;
    _tile_stored(0, c, c_bytes);
    if (has_second_columns) _tile_stored(1, c_second, c_second_bytes);
    if (has_second_rows) _tile_stored(2, (char *)c + TILE_ROWS * c_bytes, c_bytes);
    if (has_both) _tile_stored(3, (char *)c_second + TILE_ROWS * c_second_bytes, c_second_bytes);
}

/* Positions 32 block ... of a unit's page. */
static void begin_scores(pipeline *p, const unit *u, uint32_t block, float *scores) {
    const kernel_attend *call = p->call;
    uint32_t panel = block * BLOCK / KERNEL_PANEL, column = block * BLOCK % KERNEL_PANEL;
    const size_t row_bytes = KERNEL_PANEL * 2 * sizeof(uint16_t), step_bytes = TILE_K / 2 * row_bytes;
    const char *keys =
        (const char *)u->span->keys + (panel * p->key_steps * TILE_K * KERNEL_PANEL + column * 2) * sizeof(uint16_t);
    p->at = (product){
        .a = (const char *)call->queries + u->tile->first * call->query_stride * sizeof(uint16_t),
        .a_bytes = call->query_stride * sizeof(uint16_t),
        .b = {keys, keys + TILE_COLUMNS * 2 * sizeof(uint16_t)},
        .b_bytes = {row_bytes, row_bytes},
        .b_step_bytes = {step_bytes, step_bytes},
        .c = {scores, scores + TILE_COLUMNS},
        .c_bytes = {BLOCK * sizeof(float), BLOCK * sizeof(float)},
        .rows = u->tile->rows,
        .steps_left = p->key_steps,
        .is_first = true,
    };
}

/* One tile of columns of the values' product; the one behind the last is the sums'. */
static void set_value_columns(const pipeline *p, const unit *u, uint32_t tile, int which, product *at) {
    const kernel_attend *call = p->call;
    if (tile > p->value_tiles) return;
    if (tile == p->value_tiles) {
        at->b[which] = (const char *)p->scratch->ones;
        at->b_bytes[which] = sizeof(p->scratch->ones[0]);
        at->c[which] = u->tile->sums[0];
        at->c_bytes[which] = sizeof(u->tile->sums[0]);
        return;
    }
    uint32_t column = tile * TILE_COLUMNS, panel = column / KERNEL_PANEL * KERNEL_PANEL,
             left = call->shape.value_dim - panel, width = left < KERNEL_PANEL ? left : KERNEL_PANEL;
    size_t row_bytes = width * 2 * sizeof(uint16_t);
    at->b[which] =
        (const char *)u->span->values + ((size_t)panel * HD_BLOCK_TOKENS + (column - panel) * 2) * sizeof(uint16_t);
    at->b_bytes[which] = row_bytes;
    at->b_step_bytes[which] = TILE_K / 2 * row_bytes;
    at->c[which] = call->partial.out + u->tile->first * call->partial.out_stride + column;
    at->c_bytes[which] = call->partial.out_stride * sizeof(float);
}

static void begin_values(pipeline *p, uint32_t number) {
    const unit *u = &p->before;
    p->at = (product){
        .a = (const char *)u->weights,
        .a_bytes = HD_BLOCK_TOKENS * sizeof(uint16_t),
        .rows = u->tile->rows,
        .steps_left = VALUE_STEPS,
        .is_first = true,
        .adds = u->tile->has_output,
    };
    set_value_columns(p, u, 2 * number, 0, &p->at);
    set_value_columns(p, u, 2 * number + 1, 1, &p->at);
}

/* ---- Units ---- */

static page_slots visible_to(const pipeline *p, const row_tile *tile, uint32_t row, const kernel_span *span) {
    return page_slots_visible(span, p->call->positions[tile->first + row], p->call->window);
}

static bool all_see_all(const pipeline *p, const row_tile *tile, const kernel_span *span) {
    uint64_t window = p->call->window;
    return span->count == HD_BLOCK_TOKENS && tile->lowest >= span->position + HD_BLOCK_TOKENS - 1 &&
           (window == 0 || span->position + window > tile->highest);
}

static bool any_sees_any(const pipeline *p, const row_tile *tile, const kernel_span *span) {
    for (uint32_t row = 0; row < tile->rows; row++) {
        page_slots visible = visible_to(p, tile, row, span);
        if (visible.first != visible.end) return true;
    }
    return false;
}

/* The next unit that has anything to see. */
static unit unit_after(const pipeline *p, const unit *u) {
    unit next = *u;
    for (;;) {
        if (++next.tile_index >= p->tile_count) { /* UINT32_MAX - 1 and UINT32_MAX: before the first */
            next.tile_index = 0;
            if (++next.span_index >= p->call->span_count) return (unit){.span = NULL};
        }
        next.span = &p->call->spans[next.span_index];
        next.tile = &p->tiles[next.tile_index];
        bool sees_all = all_see_all(p, next.tile, next.span);
        next.is_plain = sees_all && p->call->soft_cap == 0.0f;
        if (sees_all || any_sees_any(p, next.tile, next.span)) break;
    }
    next.weights = u->weights == p->scratch->weights[0] ? p->scratch->weights[1] : p->scratch->weights[0];
    return next;
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

/* 2^x as table[x in sixteenths] + slopes[the same] * rest, times 2^floor(x): within 1.2e-4, which is a sixteenth of
 * what rounding to bf16 costs. */
typedef struct exponential {
    vec table, slopes, magic, scale;
    __m512i half, high_halves;
} exponential;

static exponential exponential_make(float scale) {
    static const float sixteenths[16] = {0x1.fff0ap-1f, 0x1.0b4d8p+0f, 0x1.17232p+0f, 0x1.237eep+0f,
                                         0x1.3066bp+0f, 0x1.3de0dp+0f, 0x1.4bf3bp+0f, 0x1.5aa61p+0f,
                                         0x1.69ff0p+0f, 0x1.7a05ep+0f, 0x1.8ac27p+0f, 0x1.9c3cbp+0f,
                                         0x1.ae7d0p+0f, 0x1.c18c3p+0f, 0x1.d5737p+0f, 0x1.ea3c4p+0f};
    static const uint16_t odd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                     33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    vec table = vec_load(sixteenths);
    return (exponential){
        .table = table,
        .slopes = vec_mul(table, vec_set(0x1.6ab0dap-1f)),
        .magic = vec_set(0x1.8p19f),
        .scale = vec_set(scale),
        .half = _mm512_set1_epi32(0x8000),
        .high_halves = _mm512_loadu_si512(odd),
    };
}

INLINE __m512i weight_of(const exponential *e, vec score, vec reference) {
    vec x = _mm512_fmsub_ps(score, e->scale, reference);
    enum { DOWN = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC, SIXTEENTHS = 4 << 4 };
    __m512i sixteenth = _mm512_castps_si512(_mm512_add_round_ps(x, e->magic, DOWN));
    vec rest = _mm512_reduce_ps(x, SIXTEENTHS | DOWN);
    vec power = vec_fma(_mm512_permutexvar_ps(sixteenth, e->slopes), rest, _mm512_permutexvar_ps(sixteenth, e->table));
    return _mm512_add_epi32(_mm512_castps_si512(_mm512_scalef_ps(power, x)), e->half);
}

INLINE void weigh_rows(const exponential *e, const row_tile *tile, uint32_t first, const int rows, const float *scores,
                       uint16_t *weights) {
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++) {
        uint32_t row = first + (uint32_t)i;
        vec reference = vec_set(tile->references[row]);
        __m512i low = weight_of(e, vec_load(scores + row * BLOCK), reference),
                high = weight_of(e, vec_load(scores + row * BLOCK + VEC_LANES), reference);
        _mm512_storeu_si512(weights + row * HD_BLOCK_TOKENS, _mm512_permutex2var_epi16(low, e->high_halves, high));
    }
}

/* The largest score of a block that the row sees; minus infinity when it sees none. */
static float largest_of(const float *scores) {
    return vec_largest(vec_max(vec_load(scores), vec_load(scores + VEC_LANES)));
}

/* Makes the scores of a block final where they are not yet: capped, and hidden where a row must not look. */
static void complete_scores(pipeline *p, float *scores) {
    const unit *u = &p->now;
    uint32_t first_slot = p->weighed * BLOCK;
    for (uint32_t row = 0; row < u->tile->rows; row++) {
        page_slots visible = visible_to(p, u->tile, row, u->span);
        if (p->call->soft_cap > 0.0f) attend_cap_scores(scores + row * BLOCK, BLOCK, p->call->scale, p->call->soft_cap);
        attend_hide_scores(scores + row * BLOCK, BLOCK, (int)visible.first - (int)first_slot,
                           (int)visible.end - (int)first_slot);
    }
}

/* For rows that see something for the first time. */
static void set_references(row_tile *tile, const float *scores, float scale) {
    for (uint32_t row = 0; row < tile->rows; row++) {
        if ((tile->has_reference >> row & 1) != 0) continue;
        float largest = largest_of(scores + row * BLOCK);
        if (largest == -INFINITY) continue;
        tile->references[row] = largest * scale;
        tile->has_reference |= 1u << row;
    }
}

/* Weighs the block whose turn it is, with steps of products in between. */
static void weigh_block(pipeline *p, const exponential *e, uint32_t steps_each, uint32_t *credit) {
    row_tile *tile = p->now.tile;
    float *scores = p->scratch->scores[p->weighed % 2];
    uint16_t *weights = p->now.weights + p->weighed * BLOCK;
    MEMORY_BARRIER();
    if (!p->now.is_plain) complete_scores(p, scores);
    if (tile->has_reference != tile->all) set_references(tile, scores, p->scale);
    uint32_t row = 0;
    for (; row + ROWS_TOGETHER <= tile->rows; row += ROWS_TOGETHER) {
        weigh_rows(e, tile, row, ROWS_TOGETHER, scores, weights);
        tile_fetch_step(&p->fetch);
        for (*credit += steps_each * ROWS_TOGETHER; *credit >= PAGE_BLOCKS * tile->rows;
             *credit -= PAGE_BLOCKS * tile->rows)
            step(p);
    }
    for (; row < tile->rows; row++) weigh_rows(e, tile, row, 1, scores, weights);
    MEMORY_BARRIER();
}

/* ---- All pages, all rows ---- */

/* Half of the blocks of a unit bring its share of the next page's keys near, the others that of the values. */
static void start_fetch(pipeline *p) {
    const kernel_span *next = p->now.span_index + 1 < p->call->span_count ? p->now.span + 1 : p->call->ahead;
    bool is_keys = p->weighed < PAGE_BLOCKS / 2;
    if (p->weighed % (PAGE_BLOCKS / 2) != 0) return;
    p->fetch = (tile_fetch){0};
    if (next == NULL) return;
    size_t bytes = is_keys ? kernel_page_key_bytes(&p->call->shape) : kernel_page_value_bytes(&p->call->shape);
    size_t share = (bytes / p->tile_count + 63) / 64 * 64, first = share * p->now.tile_index;
    if (first >= bytes) return;
    const char *page = is_keys ? next->keys : next->values;
    uint32_t turns = PAGE_BLOCKS / 2 * ((p->now.tile->rows + ROWS_TOGETHER - 1) / ROWS_TOGETHER);
    p->fetch = tile_fetch_start(page + first, share < bytes - first ? share : bytes - first, turns);
}

static void run(pipeline *p) {
    exponential e = exponential_make(p->scale);
    p->before.span = NULL;
    p->at.steps_left = p->scored = 0;
    p->now = unit_after(p, &(unit){.tile_index = UINT32_MAX - 1, .span_index = UINT32_MAX});
    while (p->now.span != NULL) {
        p->after = unit_after(p, &p->now);
        p->weighed = p->values_begun = 0;
        uint32_t steps = PAGE_BLOCKS * p->key_steps + (p->before.span != NULL ? p->value_products * VALUE_STEPS : 0);
        uint32_t credit = 0;
        for (; p->weighed < PAGE_BLOCKS; p->weighed++) {
            finish_scores(p);
            start_fetch(p);
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

static void begin_tile(const kernel_attend *call, row_tile *tile, uint32_t first, uint32_t rows) {
    tile->first = first;
    tile->rows = rows;
    tile->all = rows < 32 ? (1u << rows) - 1 : UINT32_MAX;
    tile->has_reference = 0;
    tile->has_output = false;
    tile->lowest = UINT64_MAX;
    tile->highest = 0;
    for (uint32_t row = 0; row < rows; row++) {
        uint64_t position = call->positions[first + row];
        if (position < tile->lowest) tile->lowest = position;
        if (position > tile->highest) tile->highest = position;
        tile->references[row] = 0.0f;
    }
}

/* To a sum of at most 2^EXPONENT_MAX, through a power of two, which rounds nothing. False when floats did not carry
 * the row's weights. */
static bool finish_row(const kernel_attend *call, const row_tile *tile, uint32_t row) {
    const kernel_partial *partial = &call->partial;
    uint32_t place = tile->first + row;
    float *out = partial->out + place * partial->out_stride;
    if (!tile->has_output) memset(out, 0, call->shape.value_dim * sizeof(float));
    if ((tile->has_reference >> row & 1) == 0) {
        partial->max[place] = -INFINITY;
        partial->sum[place] = 0.0f;
        return true;
    }
    float sum = tile->sums[row][0], reference = tile->references[row];
    int exponent = 0;
    if (sum > (float)(1 << EXPONENT_MAX)) {
        frexpf(sum, &exponent);
        for (uint32_t n = 0; n < call->shape.value_dim; n += VEC_LANES)
            vec_store(out + n, _mm512_scalef_ps(vec_load(out + n), vec_set((float)-exponent)));
    }
    partial->sum[place] = ldexpf(sum, -exponent);
    partial->max[place] = (reference + (float)exponent) * LN_2;
    return sum <= SUM_MAX;
}

/* The largest score of the only row. */
static float largest_score(pipeline *p) {
    float largest = -INFINITY;
    p->before.span = NULL;
    p->now = unit_after(p, &(unit){.tile_index = UINT32_MAX - 1, .span_index = UINT32_MAX});
    for (; p->now.span != NULL; p->now = unit_after(p, &p->now)) {
        for (p->weighed = 0; p->weighed < PAGE_BLOCKS; p->weighed++) {
            float *scores = p->scratch->scores[0];
            begin_scores(p, &p->now, p->weighed, scores);
            tile_configure(p->at.rows);
            MEMORY_BARRIER();
            while (p->at.steps_left > 0) product_step(&p->at);
            MEMORY_BARRIER();
            if (!p->now.is_plain) complete_scores(p, scores);
            largest = fmaxf(largest, largest_of(scores));
        }
    }
    return largest;
}

static void attend_row_again(pipeline *p, uint32_t row) {
    row_tile *tile = &p->tiles[0];
    begin_tile(p->call, tile, row, 1);
    p->tile_count = 1;
    tile->references[0] = largest_score(p) * p->scale;
    tile->has_reference = 1;
    run(p);
    finish_row(p->call, tile, 0);
}

static void attend_rows(pipeline *p, uint32_t first, uint32_t rows) {
    const kernel_attend *call = p->call;
    p->tile_count = 0;
    for (uint32_t done = 0; done < rows; done += ROWS_MAX)
        begin_tile(call, &p->tiles[p->tile_count++], first + done, rows - done < ROWS_MAX ? rows - done : ROWS_MAX);
    run(p);
    MEMORY_BARRIER();
    bool is_whole[ATTEND_AMX_ROWS];
    for (uint32_t row = 0; row < rows; row++)
        is_whole[row] = finish_row(call, &p->tiles[row / ROWS_MAX], row % ROWS_MAX);
    for (uint32_t row = 0; row < rows; row++) {
        if (!is_whole[row]) attend_row_again(p, first + row); /* in the memory of a tile that is done */
    }
}

void attend_amx(const kernel_attend *call) {
    pipeline p = {
        .call = call,
        .scratch = call->scratch,
        .scale = call->soft_cap > 0.0f ? 1.0f : call->scale * LOG2_E,
        .key_steps = HD_ALIGN_UP(call->shape.key_dim, KERNEL_K_ALIGN) / TILE_K,
        .value_tiles = call->shape.value_dim / TILE_COLUMNS,
    };
    p.tiles = p.scratch->tiles;
    p.value_products = p.value_tiles / 2 + 1;
    for (int i = 0; i < TILE_ROWS; i++) {
        for (int k = 0; k < TILE_COLUMNS * 2; k++) p.scratch->ones[i][k] = 0x3f80;
    }
    for (uint32_t first = 0; first < call->row_count; first += ATTEND_AMX_ROWS) {
        uint32_t left = call->row_count - first;
        attend_rows(&p, first, left < ATTEND_AMX_ROWS ? left : ATTEND_AMX_ROWS);
    }
    tile_end();
}
