/* attend_plan_test.c - every row sees each of its groups once, cuts are nodes of the tree, and shared groups are read
 * once. */
#include "attention-node/attend_plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

typedef struct {
    hd_arena arena;
    attend_plan plan;
} bench;

static void bench_init(bench *b, plan_limits limits) {
    assert_int_equal(hd_arena_init(&b->arena, attend_plan_table_bytes(&limits)), HD_OK);
    attend_plan_init(&b->plan, &limits, &b->arena);
}

static void bench_fini(bench *b) {
    hd_arena_fini(&b->arena);
}

/* A sequence of whole blocks; blocks [0, shared) are the same for equal `family`. */
static kv_run *make_runs(uint32_t family, uint32_t own, uint64_t shared, uint64_t tokens, uint32_t *run_count) {
    uint64_t blocks = (tokens + 127) / 128;
    kv_run *runs = calloc(blocks, sizeof(*runs));
    for (uint64_t i = 0; i < blocks; i++) {
        uint32_t index = i < shared ? family * 100000 + (uint32_t)i : 50000000 + own * 100000 + (uint32_t)i;
        uint32_t count = tokens - i * 128 < 128 ? (uint32_t)(tokens - i * 128) : 128;
        runs[i] = (kv_run){.block = {index, 1}, .count = count, .position = i * 128};
    }
    *run_count = (uint32_t)blocks;
    return runs;
}

/* Follows the plan and checks that each row is attended to over exactly its visible groups, each once. */
static void check_covers(const attend_plan *plan, const plan_span *spans, uint32_t span_count) {
    for (uint32_t t = 0; t < plan->tile_count; t++) {
        const plan_tile *tile = &plan->tiles[t];
        uint64_t next = UINT64_MAX;
        uint32_t items = tile->shared_count + tile->own_count;
        assert_true(items > 0);
        for (uint32_t i = 0; i < items; i++) {
            const plan_item *item = &plan->items[i < tile->shared_count ? tile->shared_first + i
                                                                        : tile->own_first + i - tile->shared_count];
            assert_true(t >= item->first_tile && t < item->first_tile + item->tile_count);
            assert_int_equal(item->is_whole, items == 1 && tile->shared_count == 0);
            if (next != UINT64_MAX) assert_int_equal(item->group_first, next); /* no gap, no overlap */
            else assert_true(item->group_first <= tile->group_first);
            next = item->group_end;
            /* Inside its node, and reaching its edges wherever another item is beyond them. */
            uint64_t begin = item->index << item->level, end = (item->index + 1) << item->level;
            assert_true(item->group_first >= begin && item->group_end <= end && item->group_first < item->group_end);
            if (i > 0) assert_int_equal(item->group_first, begin);
            if (i + 1 < items) assert_int_equal(item->group_end, end);
            assert_true(item->first_row <= tile->first_row &&
                        tile->first_row + tile->row_count <= item->first_row + item->row_count);
        }
        assert_int_equal(next, tile->group_end);
    }
    uint64_t rows = 0;
    for (uint32_t i = 0; i < span_count; i++) rows += spans[i].row_count;
    for (uint32_t t = 0; t < plan->tile_count; t++) rows -= plan->tiles[t].row_count;
    assert_int_equal(rows, 0);

    /* Items that are not whole have memory of their own. */
    uint64_t partial_rows = 0;
    for (uint32_t i = 0; i < plan->item_count; i++) {
        const plan_item *item = &plan->items[i];
        if (item->is_whole) continue;
        assert_int_equal(item->partial_row, partial_rows);
        partial_rows += (uint64_t)item->row_count * plan->shape.group_size * plan->shape.kv_heads;
    }
    assert_true(partial_rows <= attend_plan_partial_rows_max(&plan->limits));
}

static void check_tickets(const attend_plan *plan) {
    size_t count = attend_plan_ticket_count(plan);
    unsigned char *is_seen = calloc(count, 1);
    for (size_t ticket = 0; ticket < count; ticket++) {
        uint32_t head;
        size_t item = (size_t)(attend_plan_item(plan, ticket, &head) - plan->items);
        assert_true(head < plan->shape.kv_heads && item < plan->item_count);
        assert_false(is_seen[item * plan->shape.kv_heads + head]);
        is_seen[item * plan->shape.kv_heads + head] = 1;
    }
    free(is_seen);
}

static void random_steps_are_covered_exactly(void **state) {
    srand(3);
    for (int round = 0; round < 600; round++) {
        plan_limits limits = {.rows_max = 640,
                              .spans_max = 1u + (uint32_t)rand() % 40,
                              .kv_heads_max = 8,
                              .group_size_max = 8,
                              .tile_rows = 8u << rand() % 4,
                              .thread_count = 1u + (uint32_t)rand() % 8};
        bench b;
        bench_init(&b, limits);
        plan_span spans[40] = {{.runs = NULL}};
        uint32_t span_count = 1 + (uint32_t)rand() % 40, row = 0;
        for (uint32_t i = 0; i < span_count; i++) {
            uint32_t rows = rand() % 4 == 0 ? 1u + (uint32_t)rand() % 100 : 1u + (uint32_t)rand() % 3;
            if (row + rows > 600) rows = 1;
            uint64_t tokens = rows + (uint64_t)rand() % (rand() % 5 == 0 ? 200000 : 9000);
            kv_run *runs = make_runs((uint32_t)rand() % 2, i, (uint64_t)rand() % 60, tokens, &spans[i].run_count);
            spans[i].runs = runs;
            spans[i].first_row = row;
            spans[i].row_count = rows;
            spans[i].first_position = tokens - rows;
            row += rows;
        }
        plan_shape shape = {.kv_heads = 1u + (uint32_t)rand() % 8,
                            .group_size = 1u + (uint32_t)rand() % 8,
                            .window = rand() % 3 == 0 ? 1u + (uint32_t)rand() % 6000 : 0};
        attend_plan_build(&b.plan, spans, span_count, &shape);
        check_covers(&b.plan, spans, span_count);
        check_tickets(&b.plan);
        for (uint32_t i = 0; i < span_count; i++) free((void *)spans[i].runs);
        bench_fini(&b);
    }
}

static plan_span decode_span(uint32_t family, uint32_t own, uint64_t shared_blocks, uint64_t tokens, uint32_t row) {
    plan_span span = {.first_row = row, .row_count = 1, .first_position = tokens - 1};
    span.runs = make_runs(family, own, shared_blocks, tokens, &span.run_count);
    return span;
}

static uint64_t groups_read(const attend_plan *plan) {
    uint64_t groups = 0;
    for (uint32_t i = 0; i < plan->item_count; i++) groups += plan->items[i].group_end - plan->items[i].group_first;
    return groups;
}

static void a_long_sequence_alone_keeps_every_thread_busy(void **state) {
    for (uint32_t threads = 1; threads <= 64; threads *= 4) {
        bench b;
        bench_init(
            &b, (plan_limits){
                    .rows_max = 4, .kv_heads_max = 8, .group_size_max = 4, .tile_rows = 32, .thread_count = threads});
        plan_span span = decode_span(0, 0, 0, 131072, 0);
        attend_plan_build(&b.plan, &span, 1, &(plan_shape){8, 4, 0, 0});
        check_covers(&b.plan, &span, 1);
        size_t tickets = attend_plan_ticket_count(&b.plan);
        if (threads == 1) assert_int_equal(tickets, 8);
        else assert_true(tickets >= 8 * threads && tickets <= 40 * threads);
        free((void *)span.runs);
        bench_fini(&b);
    }
}

static void sequences_that_share_a_prefix_read_it_once(void **state) {
    bench b;
    bench_init(&b, (plan_limits){.rows_max = 64,
                                 .spans_max = 10,
                                 .kv_heads_max = 8,
                                 .group_size_max = 32,
                                 .tile_rows = 64,
                                 .thread_count = 2});
    plan_span spans[10];
    for (uint32_t i = 0; i < 10; i++)
        spans[i] = decode_span(0, i, 256, 32768 + 100 + i, i); /* 32 groups shared, one own each */
    attend_plan_build(&b.plan, spans, 10, &(plan_shape){8, 4, 0, 0});
    check_covers(&b.plan, spans, 10);
    assert_int_equal(groups_read(&b.plan), 32 + 10);

    /* A stranger between them ends the row of neighbours. */
    free((void *)spans[5].runs);
    spans[5] = decode_span(1, 99, 256, 32768, 5);
    attend_plan_build(&b.plan, spans, 10, &(plan_shape){8, 4, 0, 0});
    check_covers(&b.plan, spans, 10);
    assert_int_equal(groups_read(&b.plan), 32 + 5 + 32 + 32 + 4);

    /* Rows of more sequences than a call takes are attended to in several calls. */
    attend_plan_build(&b.plan, spans, 5, &(plan_shape){8, 32, 0, 0});
    check_covers(&b.plan, spans, 5);
    assert_int_equal(groups_read(&b.plan), 2 * (32 + 2) + 33);
    for (uint32_t i = 0; i < 10; i++) free((void *)spans[i].runs);
    bench_fini(&b);
}

static void groups_outside_the_window_are_not_read(void **state) {
    bench b;
    bench_init(
        &b, (plan_limits){.rows_max = 64, .kv_heads_max = 1, .group_size_max = 1, .tile_rows = 32, .thread_count = 2});
    plan_span span = decode_span(0, 0, 0, 100 * 1024, 0);
    attend_plan_build(&b.plan, &span, 1, &(plan_shape){1, 1, 4096, 0});
    check_covers(&b.plan, &span, 1);
    assert_int_equal(groups_read(&b.plan), 4);
    free((void *)span.runs);
    bench_fini(&b);
}

static void costly_items_come_first(void **state) {
    bench b;
    bench_init(
        &b, (plan_limits){.rows_max = 512, .kv_heads_max = 2, .group_size_max = 1, .tile_rows = 32, .thread_count = 1});
    plan_span span = {.first_row = 0, .row_count = 512, .first_position = 4096};
    span.runs = make_runs(0, 0, 0, 4608, &span.run_count);
    attend_plan_build(&b.plan, &span, 1, &(plan_shape){2, 1, 0, 0});
    uint64_t previous = UINT64_MAX;
    for (uint32_t i = 0; i < b.plan.item_count; i++) {
        uint64_t cost = b.plan.items[b.plan.order[i]].cost;
        assert_true(cost <= previous + previous / 4);
        previous = cost;
    }
    free((void *)span.runs);
    bench_fini(&b);
}

static void a_tile_is_done_when_its_last_item_is(void **state) {
    bench b;
    bench_init(
        &b, (plan_limits){.rows_max = 4, .kv_heads_max = 2, .group_size_max = 1, .tile_rows = 32, .thread_count = 4});
    plan_span span = decode_span(0, 0, 0, 65536, 0);
    attend_plan_build(&b.plan, &span, 1, &(plan_shape){2, 1, 0, 0});
    uint32_t items = b.plan.tiles[0].own_count;
    assert_true(items > 1);
    for (int layer = 0; layer < 3; layer++) { /* the counters are ready for the next layer at once */
        for (uint32_t head = 0; head < 2; head++) {
            for (uint32_t i = 0; i < items; i++)
                assert_int_equal(attend_plan_tile_done(&b.plan, b.plan.tiles, head), i + 1 == items);
        }
    }
    free((void *)span.runs);
    bench_fini(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_steps_are_covered_exactly),
        cmocka_unit_test(a_long_sequence_alone_keeps_every_thread_busy),
        cmocka_unit_test(sequences_that_share_a_prefix_read_it_once),
        cmocka_unit_test(groups_outside_the_window_are_not_read),
        cmocka_unit_test(costly_items_come_first),
        cmocka_unit_test(a_tile_is_done_when_its_last_item_is),
    };
    return cmocka_run_group_tests_name("attend_plan", tests, NULL, NULL);
}
