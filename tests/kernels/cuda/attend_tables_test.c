/* The tables of attention: who sees which pieces, that cuts cover everything once, and what happens when there is no
 * room. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cuda/attend_tables.h"

#define PIECES_MAX 4000u
static attend_piece pieces[PIECES_MAX];

static attend_tables_limits limits_of(uint64_t partial_rows_max) {
    return (attend_tables_limits){.rows_max = 256,
                                  .spans_max = 16,
                                  .pieces_max = PIECES_MAX,
                                  .groups_max = 800,
                                  .context_max = 400000,
                                  .partial_rows_max = partial_rows_max,
                                  .multiprocessors = 10};
}

/* Pieces of 128 tokens up to `count`. */
static attend_span span_of(uint64_t count, uint32_t first_row, uint32_t rows, uint32_t heads) {
    uint32_t piece_count = (uint32_t)((count + 127) / 128);
    assert_true(piece_count <= PIECES_MAX);
    for (uint32_t i = 0; i < piece_count; i++) {
        uint64_t left = count - i * 128u;
        pieces[i] = (attend_piece){.offset = i, .position = i * 128u, .count = left < 128 ? (uint32_t)left : 128};
    }
    return (attend_span){.pieces = pieces,
                         .piece_count = piece_count,
                         .first_row = first_row,
                         .row_count = rows,
                         .first_position = count - rows,
                         .head_count = heads};
}

typedef struct built {
    attend_tables tables;
    void *region;
} built;

static hd_status build(built *b, uint64_t partial_rows_max, const attend_span *spans, uint32_t count,
                       uint32_t group_size, uint64_t window) {
    attend_tables_limits limits = limits_of(partial_rows_max);
    b->region = calloc(1, attend_tables_bytes(&limits));
    attend_tables_init(&b->tables, &limits, b->region);
    attend_tables_shape shape = {.group_size = group_size, .window = window};
    return attend_tables_build(&b->tables, spans, count, &shape);
}

/* Items, results and partial rows follow each other without gaps, and nodes cover a tile's groups exactly. */
static void assert_consistent(const built *b) {
    uint64_t partial_row = 0;
    for (int path = 0; path < ATTEND_PATHS; path++) {
        attend_counts counts = attend_tables_counts(&b->tables)[path];
        const attend_tile *tiles = attend_tables_tiles(&b->tables, (attend_path)path);
        uint32_t items = 0, results = 0, rows_most = path == ATTEND_SPLIT ? ATTEND_SPLIT_ROWS : ATTEND_BLOCK_ROWS;
        for (uint32_t i = 0; i < counts.tile_count; i++) {
            const attend_tile *t = &tiles[i];
            assert_true(t->row_count > 0 && t->row_count <= rows_most);
            assert_int_equal(t->item_first, items);
            assert_int_equal(t->result_first, results);
            assert_int_equal(t->partial_row, partial_row);
            assert_true(t->node_first << t->level <= t->group_first);
            assert_true((t->node_first + 1) << t->level > t->group_first);
            uint64_t node_end = t->node_first + t->node_count;
            assert_true(node_end << t->level >= t->group_end);
            assert_true((node_end - 1) << t->level < t->group_end);
            if (path == ATTEND_SPLIT) assert_int_equal(t->level, 0);
            items += t->head_count * t->node_count;
            results += t->head_count * t->row_count;
            partial_row += (uint64_t)t->head_count * t->node_count * t->row_count;
        }
        assert_int_equal(counts.item_count, items);
        assert_int_equal(counts.result_count, results);
    }
    assert_int_equal(b->tables.partial_rows, partial_row);
    assert_true(partial_row <= b->tables.limits.partial_rows_max);
}

static void decode_is_cut_into_leaves(void **state) {
    attend_span span = span_of(131072, 0, 1, 8);
    built b;
    assert_int_equal(build(&b, 100000, &span, 1, 4, 0), HD_OK);
    assert_consistent(&b);
    attend_counts *counts = attend_tables_counts(&b.tables);
    assert_int_equal(counts[ATTEND_SPLIT].tile_count, 1);
    assert_int_equal(counts[ATTEND_SPLIT].item_count, 128 * 8);
    assert_int_equal(counts[ATTEND_BLOCK].item_count, 0);
    assert_int_equal(b.tables.split_rows, 4);
    free(b.region);
}

static void a_chunk_is_cut_into_tiles_that_end_where_their_rows_do(void **state) {
    attend_span span = span_of(5000, 0, 100, 2);
    built b;
    assert_int_equal(build(&b, 100000, &span, 1, 4, 0), HD_OK);
    assert_consistent(&b);
    const attend_tile *tiles = attend_tables_tiles(&b.tables, ATTEND_BLOCK);
    assert_int_equal(attend_tables_counts(&b.tables)[ATTEND_BLOCK].tile_count, 4); /* 32 rows of 4 heads each */
    for (uint32_t i = 0; i < 4; i++) {
        uint64_t last = 4900 + (i < 3 ? i * 32 + 31 : 99);
        assert_int_equal(tiles[i].first_row, i * 128);
        assert_int_equal(tiles[i].group_end, 5);
        assert_int_equal(tiles[i].piece_end, last / 128 + 1);
    }
    free(b.region);
}

static void windows_leave_out_what_no_row_sees(void **state) {
    attend_span span = span_of(10000, 0, 3, 1);
    built b;
    assert_int_equal(build(&b, 100000, &span, 1, 2, 1500), HD_OK);
    assert_consistent(&b);
    const attend_tile *tile = attend_tables_tiles(&b.tables, ATTEND_SPLIT);
    uint64_t visible = 9997 + 1 - 1500; /* by the first row */
    assert_int_equal(tile->piece_first, visible / 128);
    assert_int_equal(tile->group_first, visible / 1024);
    assert_int_equal(tile->group_end, 10);
    free(b.region);
}

static void groups_name_their_pieces(void **state) {
    attend_span spans[2] = {span_of(3000, 0, 1, 1), {0}};
    attend_piece sparse[] = {
        {.position = 0, .count = 4}, {.position = 5000, .count = 10, .is_list = 1}, {.position = 7100, .count = 50}};
    spans[1] = (attend_span){
        .pieces = sparse, .piece_count = 3, .first_row = 1, .row_count = 1, .first_position = 7149, .head_count = 1};
    built b;
    assert_int_equal(build(&b, 100000, spans, 2, 1, 0), HD_OK);
    assert_consistent(&b);
    const attend_tile *tiles = attend_tables_tiles(&b.tables, ATTEND_SPLIT);
    const uint32_t *group_pieces = (const uint32_t *)((unsigned char *)b.region + b.tables.group_pieces_at);
    static const uint32_t full[] = {0, 8, 16, 24}, few[] = {24, 25, 25, 25, 25, 26, 26, 27};
    for (int i = 0; i < 4; i++) assert_int_equal(group_pieces[tiles[0].group_table + i], full[i]);
    for (int i = 0; i < 8; i++) assert_int_equal(group_pieces[tiles[1].group_table + i], few[i]);
    free(b.region);
}

static void little_room_means_fewer_cuts_and_none_is_refused(void **state) {
    attend_span span = span_of(300000, 0, 1, 2);
    for (uint64_t rows = 2000; rows >= 8; rows /= 2) {
        built b;
        assert_int_equal(build(&b, rows, &span, 1, 4, 0), HD_OK);
        assert_consistent(&b);
        assert_int_equal(attend_tables_counts(&b.tables)[rows < 2344 ? ATTEND_BLOCK : ATTEND_SPLIT].tile_count, 1);
        free(b.region);
    }
    built b;
    assert_int_equal(build(&b, 7, &span, 1, 4, 0), HD_FULL);
    free(b.region);
}

static void what_exceeds_a_limit_is_full(void **state) {
    attend_span too_many_rows = span_of(1000, 200, 100, 1), too_long = span_of(1000, 0, 1, 1);
    too_long.first_position = 500000;
    attend_span many[17];
    for (uint32_t i = 0; i < 17; i++) many[i] = span_of(100, i, 1, 1);
    attend_span groups[3];
    for (uint32_t i = 0; i < 3; i++) groups[i] = span_of(300000, i, 1, 1);
    built b;
    assert_int_equal(build(&b, 1000, &too_many_rows, 1, 1, 0), HD_FULL);
    free(b.region);
    assert_int_equal(build(&b, 1000, &too_long, 1, 1, 0), HD_FULL);
    free(b.region);
    assert_int_equal(build(&b, 1000, many, 17, 1, 0), HD_FULL);
    free(b.region);
    assert_int_equal(build(&b, 100000, groups, 3, 1, 0), HD_FULL);
    free(b.region);
}

static void random_steps_are_consistent(void **state) {
    srand(1);
    for (int round = 0; round < 300; round++) {
        attend_span spans[8];
        uint32_t row = 0, group_size = 1u << rand() % 5;
        static attend_piece own[8][200];
        for (int i = 0; i < 8; i++) {
            uint32_t rows = rand() % 3 == 0 ? 1 + (uint32_t)rand() % 25 : 1;
            spans[i] = span_of(rows + (uint64_t)rand() % 20000, row, rows, 1 + (uint32_t)rand() % 4);
            memcpy(own[i], spans[i].pieces, spans[i].piece_count * sizeof(attend_piece));
            spans[i].pieces = own[i];
            row += rows;
        }
        built b;
        assert_int_equal(build(&b, 20000, spans, 8, group_size, rand() % 2 == 0 ? 0 : (uint64_t)(1 + rand() % 5000)),
                         HD_OK);
        assert_consistent(&b);
        free(b.region);
    }
}

static void stacks_hold_the_longest_context(void **state) {
    attend_tables_limits limits = limits_of(1);
    limits.context_max = 1023;
    assert_int_equal(attend_tables_stack_levels(&limits), 1);
    limits.context_max = (uint64_t)1 << 20;
    assert_int_equal(attend_tables_stack_levels(&limits), 11); /* 1,025 groups: levels 0 to 10 */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decode_is_cut_into_leaves),
        cmocka_unit_test(a_chunk_is_cut_into_tiles_that_end_where_their_rows_do),
        cmocka_unit_test(windows_leave_out_what_no_row_sees),
        cmocka_unit_test(groups_name_their_pieces),
        cmocka_unit_test(little_room_means_fewer_cuts_and_none_is_refused),
        cmocka_unit_test(what_exceeds_a_limit_is_full),
        cmocka_unit_test(random_steps_are_consistent),
        cmocka_unit_test(stacks_hold_the_longest_context),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
