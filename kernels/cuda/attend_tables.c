/* attend_tables.c - pieces by group, tiles, cuts. */
#include "kernels/cuda/attend_tables.h"

#include <assert.h>
#include <string.h>

#include "base/memory.h"

#define ITEMS_PER_MULTIPROCESSOR 4u /* of the block kernel, where tiles are cut */
#define ALIGNMENT 128u
#define LEVEL_MAX 32u

/* ---- Memory ---- */

static size_t take(size_t *used, size_t bytes) {
    size_t at = *used;
    *used = HD_ALIGN_UP(at + bytes, (size_t)ALIGNMENT);
    return at;
}

static void place(attend_tables *t, const attend_tables_limits *limits) {
    size_t used = 0;
    t->limits = *limits;
    t->tiles_max = limits->rows_max + limits->spans_max;
    t->group_entries_max = limits->groups_max + limits->spans_max;
    t->counts_at = take(&used, ATTEND_PATHS * sizeof(attend_counts));
    t->positions_at = take(&used, limits->rows_max * sizeof(uint64_t));
    for (int path = 0; path < ATTEND_PATHS; path++) t->tiles_at[path] = take(&used, t->tiles_max * sizeof(attend_tile));
    t->group_pieces_at = take(&used, t->group_entries_max * sizeof(uint32_t));
    t->pieces_at = take(&used, limits->pieces_max * sizeof(attend_piece)); /* last: only what is used is copied */
    t->bytes = used;
}

size_t attend_tables_bytes(const attend_tables_limits *limits) {
    attend_tables t;
    place(&t, limits);
    return t.bytes;
}

void attend_tables_init(attend_tables *t, const attend_tables_limits *limits, void *region) {
    memset(t, 0, sizeof(*t));
    place(t, limits);
    t->region = region;
    memset(region, 0, t->bytes);
}

attend_counts *attend_tables_counts(const attend_tables *t) {
    return (attend_counts *)(t->region + t->counts_at);
}

attend_tile *attend_tables_tiles(const attend_tables *t, attend_path path) {
    return (attend_tile *)(t->region + t->tiles_at[path]);
}

static attend_piece *pieces_of(const attend_tables *t) {
    return (attend_piece *)(t->region + t->pieces_at);
}

static uint32_t *group_pieces_of(const attend_tables *t) {
    return (uint32_t *)(t->region + t->group_pieces_at);
}

uint32_t attend_tables_stack_levels(const attend_tables_limits *limits) {
    uint64_t groups = limits->context_max / ATTEND_GROUP_TOKENS + 1;
    uint32_t levels = 1;
    while (groups >> levels > 0) levels++;
    return levels;
}

/* ---- Pieces ---- */

static uint64_t group_of(const attend_piece *piece) {
    return piece->position / ATTEND_GROUP_TOKENS;
}

/* A span's pieces, and for each group from 0 to that of its last row, and one more, the first piece. */
typedef struct span_tables {
    uint32_t group_table, piece_first, piece_end;
    uint64_t group_count;
} span_tables;

static hd_status add_pieces(attend_tables *t, const attend_span *span, span_tables *out) {
    uint64_t groups = (span->first_position + span->row_count - 1) / ATTEND_GROUP_TOKENS + 1;
    if (groups > t->limits.context_max / ATTEND_GROUP_TOKENS + 1) return HD_FULL;
    if (span->piece_count > t->limits.pieces_max - t->piece_count) return HD_FULL;
    if (groups + 1 > t->group_entries_max - t->group_entry_count) return HD_FULL;
    uint32_t *entries = group_pieces_of(t) + t->group_entry_count, piece = 0;
    memcpy(pieces_of(t) + t->piece_count, span->pieces, span->piece_count * sizeof(attend_piece));
    for (uint64_t group = 0; group < groups; group++) {
        entries[group] = t->piece_count + piece;
        while (piece < span->piece_count && group_of(&span->pieces[piece]) == group) {
            const attend_piece *p = &span->pieces[piece++];
            assert(p->count > 0 && p->count <= ATTEND_PIECE_TOKENS);
            assert(p->is_list || (p->position + p->count - 1) / ATTEND_GROUP_TOKENS == group);
        }
    }
    entries[groups] = t->piece_count + piece;
    *out = (span_tables){.group_table = t->group_entry_count,
                         .piece_first = t->piece_count,
                         .piece_end = t->piece_count + piece,
                         .group_count = groups};
    t->piece_count += span->piece_count;
    t->group_entry_count += (uint32_t)groups + 1;
    return HD_OK;
}

/* ---- Tiles ---- */

/* Pieces that a row of the tile sees, and their groups. */
static void see(const attend_tables *t, const span_tables *s, uint64_t first, uint64_t last, uint64_t window,
                attend_tile *tile) {
    const attend_piece *pieces = pieces_of(t);
    uint64_t visible = window != 0 && first + 1 > window ? first + 1 - window : 0;
    uint32_t begin = s->piece_first, end = s->piece_end;
    while (begin < end && !pieces[begin].is_list && pieces[begin].position + pieces[begin].count <= visible) begin++;
    while (end > begin && !pieces[end - 1].is_list && pieces[end - 1].position > last) end--;
    tile->piece_first = begin;
    tile->piece_end = end;
    /* A tile that sees nothing has one empty leaf, so that it has a result. */
    tile->group_first = begin < end ? group_of(&pieces[begin]) : 0;
    tile->group_end = begin < end ? group_of(&pieces[end - 1]) + 1 : 1;
    tile->group_table = s->group_table + (uint32_t)tile->group_first;
}

static void set_level(attend_tile *tile, uint32_t level) {
    tile->level = level;
    tile->node_first = tile->group_first >> level;
    tile->node_count = (uint32_t)(((tile->group_end - 1) >> level) - tile->node_first) + 1;
}

static uint64_t partial_rows_of(const attend_tile *tile) {
    return (uint64_t)tile->head_count * tile->node_count * tile->row_count;
}

static attend_tile *add_tile(attend_tables *t, attend_path path) {
    attend_counts *counts = &attend_tables_counts(t)[path];
    return counts->tile_count < t->tiles_max ? &attend_tables_tiles(t, path)[counts->tile_count++] : NULL;
}

static hd_status add_tiles(attend_tables *t, const attend_span *span, const span_tables *s,
                           const attend_tables_shape *shape) {
    uint32_t kernel_rows = span->row_count * shape->group_size;
    attend_path path = kernel_rows <= ATTEND_SPLIT_ROWS ? ATTEND_SPLIT : ATTEND_BLOCK;
    uint32_t rows_each = (path == ATTEND_SPLIT ? ATTEND_SPLIT_ROWS : ATTEND_BLOCK_ROWS) / shape->group_size;
    for (uint32_t done = 0; done < span->row_count; done += rows_each) {
        uint32_t count = span->row_count - done < rows_each ? span->row_count - done : rows_each;
        attend_tile *tile = add_tile(t, path);
        if (tile == NULL) return HD_FULL;
        *tile = (attend_tile){.first_row = (span->first_row + done) * shape->group_size,
                              .row_count = count * shape->group_size,
                              .head_first = span->head_first,
                              .head_count = span->head_count};
        see(t, s, span->first_position + done, span->first_position + done + count - 1, shape->window, tile);
        if (path == ATTEND_SPLIT && tile->row_count > t->split_rows) t->split_rows = tile->row_count;
    }
    return HD_OK;
}

/* ---- Cuts ---- */

/* The level at which the block kernel's tiles give every multiprocessor something to do. */
static uint32_t block_level(const attend_tables *t) {
    const attend_tile *tiles = attend_tables_tiles(t, ATTEND_BLOCK);
    uint64_t groups = 0;
    for (uint32_t i = 0; i < attend_tables_counts(t)[ATTEND_BLOCK].tile_count; i++)
        groups += (tiles[i].group_end - tiles[i].group_first) * tiles[i].head_count;
    uint64_t each = groups / ((uint64_t)t->limits.multiprocessors * ITEMS_PER_MULTIPROCESSOR);
    uint32_t level = 0;
    while (each >> (level + 1) > 0) level++;
    return level;
}

static uint64_t set_levels(attend_tables *t, attend_path path, uint32_t level) {
    attend_tile *tiles = attend_tables_tiles(t, path);
    uint64_t rows = 0;
    for (uint32_t i = 0; i < attend_tables_counts(t)[path].tile_count; i++) {
        set_level(&tiles[i], level);
        rows += partial_rows_of(&tiles[i]);
    }
    return rows;
}

/* The split kernel takes leaves alone, so what has no room there goes to the block kernel, uncut. */
static hd_status move_split_tiles(attend_tables *t) {
    attend_counts *counts = attend_tables_counts(t);
    const attend_tile *from = attend_tables_tiles(t, ATTEND_SPLIT);
    for (uint32_t i = 0; i < counts[ATTEND_SPLIT].tile_count; i++) {
        attend_tile *tile = add_tile(t, ATTEND_BLOCK);
        if (tile == NULL) return HD_FULL;
        *tile = from[i];
    }
    counts[ATTEND_SPLIT].tile_count = 0;
    t->split_rows = 0;
    return HD_OK;
}

/* The lowest level, from the one that keeps everybody busy on, whose partial results have room beside other_rows. */
static hd_status cut_blocks(attend_tables *t, uint64_t other_rows) {
    for (uint32_t level = block_level(t); level <= LEVEL_MAX; level++) {
        t->partial_rows = other_rows + set_levels(t, ATTEND_BLOCK, level);
        if (t->partial_rows <= t->limits.partial_rows_max) return HD_OK;
    }
    return HD_FULL;
}

static hd_status cut(attend_tables *t) {
    if (cut_blocks(t, set_levels(t, ATTEND_SPLIT, 0)) == HD_OK) return HD_OK;
    hd_status status = move_split_tiles(t);
    return status == HD_OK ? cut_blocks(t, 0) : status;
}

static void number(attend_tables *t) {
    uint64_t partial_row = 0;
    for (int path = 0; path < ATTEND_PATHS; path++) {
        attend_counts *counts = &attend_tables_counts(t)[path];
        attend_tile *tiles = attend_tables_tiles(t, (attend_path)path);
        for (uint32_t i = 0; i < counts->tile_count; i++) {
            tiles[i].item_first = counts->item_count;
            tiles[i].result_first = counts->result_count;
            tiles[i].partial_row = (uint32_t)partial_row;
            counts->item_count += tiles[i].head_count * tiles[i].node_count;
            counts->result_count += tiles[i].head_count * tiles[i].row_count;
            partial_row += partial_rows_of(&tiles[i]);
        }
    }
}

hd_status attend_tables_build(attend_tables *t, const attend_span *spans, uint32_t span_count,
                              const attend_tables_shape *shape) {
    assert(shape->group_size > 0 && shape->group_size <= ATTEND_SPLIT_ROWS);
    memset(attend_tables_counts(t), 0, ATTEND_PATHS * sizeof(attend_counts));
    t->piece_count = t->group_entry_count = t->split_rows = 0;
    if (span_count > t->limits.spans_max) return HD_FULL;
    uint64_t *positions = (uint64_t *)(t->region + t->positions_at);
    for (uint32_t i = 0; i < span_count; i++) {
        const attend_span *span = &spans[i];
        assert(span->row_count > 0 && span->head_count > 0);
        if ((uint64_t)span->first_row + span->row_count > t->limits.rows_max) return HD_FULL;
        for (uint32_t row = 0; row < span->row_count; row++)
            positions[span->first_row + row] = span->first_position + row;
        span_tables s;
        hd_status status = add_pieces(t, span, &s);
        if (status != HD_OK) return status;
        status = add_tiles(t, span, &s, shape);
        if (status != HD_OK) return status;
    }
    hd_status status = cut(t);
    if (status != HD_OK) return status;
    number(t);
    t->used_bytes = t->pieces_at + t->piece_count * sizeof(attend_piece);
    return HD_OK;
}
