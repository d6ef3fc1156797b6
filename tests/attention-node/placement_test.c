/* placement_test.c - rows that cover every head and position, on nodes that have the room. */
#include "attention-node/placement.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "attention-node/merge_tree.h"

static placement_node node_of(uint32_t first, uint32_t count, uint64_t free_tokens) {
    return (placement_node){{first, count}, true, free_tokens, free_tokens};
}

static placement_request request_of(const placement_node *nodes, uint32_t node_count, uint64_t tokens_max,
                                    uint64_t range_min, uint32_t replicas) {
    return (placement_request){.nodes = nodes,
                               .node_count = node_count,
                               .kv_heads = 4,
                               .tokens_max = tokens_max,
                               .range_min = range_min,
                               .replicas = replicas};
}

static void check_row(const placement_row *row, const placement_request *request) {
    assert_in_range(row->node_count, 1, request->replicas);
    for (uint32_t i = 0; i < row->node_count; i++) {
        const placement_node *node = &request->nodes[row->nodes[i]];
        assert_memory_equal(&node->heads, &row->heads, sizeof(row->heads));
        for (uint32_t k = 0; k < i; k++) assert_int_not_equal(row->nodes[k], row->nodes[i]);
    }
    if (placement_row_is_whole(row)) return;
    uint64_t size = row->end_position - row->first_position;
    assert_int_equal(size & (size - 1), 0);
    assert_true(size >= HD_GROUP_TOKENS && row->first_position % size == 0);
}

/* Every rule of placement.h, and no node has more than it has room for. */
static void check_map(const placement *map, const placement_request *request) {
    uint64_t taken[PLACEMENT_NODES_MAX] = {0};
    uint32_t shares[PLACEMENT_NODES_MAX] = {0}, next_head = 0;
    for (uint32_t i = 0; i < map->row_count;) {
        placement_heads lane = map->rows[i].heads;
        assert_int_equal(lane.first, next_head);
        uint64_t end = 0;
        for (uint32_t ordinal = 0; i < map->row_count && map->rows[i].heads.first == lane.first; i++, ordinal++) {
            const placement_row *row = &map->rows[i];
            check_row(row, request);
            assert_int_equal(row->first_position, end);
            assert_int_equal(row->ordinal, ordinal);
            end = placement_row_is_whole(row) ? UINT64_MAX : row->end_position;
            uint64_t held = (end < request->tokens_max ? end : request->tokens_max) - row->first_position;
            for (uint32_t k = 0; k < row->node_count; k++) {
                taken[row->nodes[k]] += held;
                assert_true(++shares[row->nodes[k]] <= PLACEMENT_SHARE_MAX);
            }
        }
        assert_true(end >= request->tokens_max);
        next_head += lane.count;
    }
    assert_int_equal(next_head, request->kv_heads);
    for (uint32_t i = 0; i < request->node_count; i++) assert_true(taken[i] <= request->nodes[i].free_tokens);
}

static void a_short_sequence_lies_whole_where_most_is_free(void **state) {
    placement_node nodes[3] = {node_of(0, 4, 9000), node_of(0, 4, 50000), node_of(0, 4, 40000)};
    placement_request request = request_of(nodes, 3, 5000, 8192, 1);
    placement map = {.version = 0};
    assert_int_equal(placement_place(&map, &request, NULL), HD_OK);
    check_map(&map, &request);
    assert_int_equal(map.row_count, 1);
    assert_true(placement_row_is_whole(&map.rows[0]));
    assert_int_equal(map.rows[0].nodes[0], 1);
    assert_int_equal(map.version, 1);
}

static void a_context_larger_than_any_node_is_spread(void **state) {
    placement_node nodes[4] = {node_of(0, 4, 40000), node_of(0, 4, 40000), node_of(0, 4, 40000), node_of(0, 4, 40000)};
    placement_request request = request_of(nodes, 4, 120000, 1024, 1);
    placement map = {.version = 0};
    assert_int_equal(placement_place(&map, &request, NULL), HD_OK);
    check_map(&map, &request);
    assert_true(map.row_count > 3);
    request.tokens_max = 200000;
    hd_error error;
    placement none = {.version = 0};
    assert_int_equal(placement_place(&none, &request, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "200000 tokens never fit"));
    assert_int_equal(none.row_count, 0);
    request.tokens_max = 120000;
    nodes[2].free_tokens = 100;
    assert_int_equal(placement_place(&none, &request, &error), HD_FULL);
    assert_non_null(strstr(error.text, "no room now"));
}

static void lanes_have_every_head_once(void **state) {
    placement_node nodes[4] = {node_of(2, 2, 9000), node_of(0, 2, 9000), node_of(2, 2, 8000), node_of(0, 2, 8000)};
    placement_request request = request_of(nodes, 4, 6000, 1024, 1);
    placement map = {.version = 0};
    assert_int_equal(placement_place(&map, &request, NULL), HD_OK);
    check_map(&map, &request);
    hd_error error;
    nodes[1].is_usable = nodes[3].is_usable = false; /* which may be ready again: it is waited for */
    assert_int_equal(placement_place(&(placement){.version = 0}, &request, &error), HD_FULL);
    assert_non_null(strstr(error.text, "KV head 0 of 4"));
    nodes[1] = node_of(0, 1, 9000);
    nodes[3] = node_of(0, 2, 9000);
    assert_int_equal(placement_place(&(placement){.version = 0}, &request, &error), HD_INVALID);
}

static void a_prefix_keeps_its_rows_and_the_rest_is_placed(void **state) {
    placement_node nodes[3] = {node_of(0, 4, 99000), node_of(0, 4, 50000), node_of(0, 4, 60000)};
    placement_request request = request_of(nodes, 3, 30000, 4096, 1);
    placement map = {.version = 0};
    /* 20,000 tokens of the prefix are on node 1: more than a range of this sequence would be. */
    assert_true(placement_inherit(&map, &request, (placement_heads){0, 4}, (uint32_t[]){1}, 1, 20000));
    assert_int_equal(map.rows[0].end_position, 0);
    assert_int_equal(placement_place(&map, &request, NULL), HD_OK);
    check_map(&map, &request);
    request.tokens_max = 80000;
    map = (placement){.version = 0};
    assert_true(placement_inherit(&map, &request, (placement_heads){0, 4}, (uint32_t[]){1}, 1, 20000));
    assert_int_equal(map.rows[0].end_position, 32768);
    assert_true(placement_inherit(&map, &request, (placement_heads){0, 4}, (uint32_t[]){2}, 1, 300));
    assert_int_equal(map.rows[1].first_position, 32768);
    assert_int_equal(placement_place(&map, &request, NULL), HD_OK);
    check_map(&map, &request);
    assert_int_equal(map.rows[0].nodes[0], 1);
    nodes[1].free_tokens = 100;
    map = (placement){.version = 0};
    assert_false(placement_inherit(&map, &request, (placement_heads){0, 4}, (uint32_t[]){1}, 1, 20000));
    for (uint32_t i = 0; i < request.node_count; i++) nodes[i].is_usable = false;
    assert_false(placement_inherit(&map, &request, (placement_heads){0, 4}, (uint32_t[]){1}, 1, 20000));
}

static void what_cannot_be_split_lies_whole_or_not_at_all(void **state) {
    placement_node nodes[3] = {node_of(0, 4, 30000), node_of(0, 4, 50000), node_of(0, 4, 60000)};
    placement_request request = request_of(nodes, 3, 55000, 1024, 1);
    request.is_whole_only = true;
    placement map = {.version = 0};
    assert_int_equal(placement_place(&map, &request, NULL), HD_OK);
    assert_true(placement_row_is_whole(&map.rows[0]));
    assert_int_equal(map.rows[0].nodes[0], 2);
    request.tokens_max = 61000;
    assert_int_equal(placement_place(&(placement){.version = 0}, &request, NULL), HD_INVALID);
}

static void found_rows_make_the_map_again(void **state) {
    placement_node nodes[3] = {node_of(0, 4, 40000), node_of(0, 4, 40000), node_of(0, 4, 40000)};
    placement_request request = request_of(nodes, 3, 100000, 1024, 1);
    placement map = {.version = 0}, again = {.version = 0};
    assert_int_equal(placement_place(&map, &request, NULL), HD_OK);
    for (uint32_t i = map.row_count; i-- > 0;) assert_true(placement_put(&again, &map.rows[i]));
    assert_int_equal(placement_whole_rows(&again, (placement_heads){0, 4}), map.row_count);
    check_map(&again, &request);
    assert_memory_equal(again.rows, map.rows, map.row_count * sizeof(map.rows[0]));
    /* Without its third row, the first two still follow each other. */
    again = (placement){.version = 0};
    for (uint32_t i = 0; i < map.row_count; i++) {
        if (i != 2) assert_true(placement_put(&again, &map.rows[i]));
    }
    assert_int_equal(placement_whole_rows(&again, (placement_heads){0, 4}), 2);
}

static void replicas_are_on_different_nodes_and_replace_each_other(void **state) {
    placement_node nodes[3] = {node_of(0, 4, 30000), node_of(0, 4, 30000), node_of(0, 4, 30000)};
    placement_request request = request_of(nodes, 3, 12000, 1024, 2);
    placement map = {.version = 0};
    assert_int_equal(placement_place(&map, &request, NULL), HD_OK);
    check_map(&map, &request);
    uint64_t version = map.version;
    assert_true(placement_drop(&map, 1));
    assert_true(map.version > version);
    for (uint32_t i = 0; i < map.row_count; i++) assert_false(placement_row_has(&map.rows[i], 1));
    assert_false(placement_drop(&map, 0) && placement_drop(&map, 2));
    nodes[1].is_usable = nodes[2].is_usable = false;
    map = (placement){.version = 0};
    assert_int_equal(placement_place(&map, &request, NULL), HD_OK); /* one node keeps what there is one node for */
    check_map(&map, &request);
    nodes[2] = node_of(0, 4, 1000);
    map = (placement){.version = 0};
    assert_int_equal(placement_place(&map, &request, NULL), HD_INVALID); /* two would have to */
}

static void more_tokens_than_a_range_can_end_at_never_fit(void **state) {
    placement_node nodes[2] = {node_of(0, 4, UINT64_MAX), node_of(0, 4, UINT64_MAX)};
    static const uint64_t tokens[] = {PLACEMENT_TOKENS_MAX + 1, UINT64_MAX / 2 + 2, UINT64_MAX};
    for (uint32_t count = 1; count <= 2; count++) {
        for (size_t i = 0; i < sizeof(tokens) / sizeof(tokens[0]); i++) {
            placement_request request = request_of(nodes, count, tokens[i], 1024, 1);
            placement map = {.version = 0};
            hd_error error;
            assert_int_equal(placement_place(&map, &request, &error), HD_INVALID);
            assert_int_equal(map.row_count, 0);
        }
        placement_request request = request_of(nodes, count, PLACEMENT_TOKENS_MAX, 1024, 1);
        placement map = {.version = 0};
        hd_error error;
        assert_int_equal(placement_place(&map, &request, &error), HD_OK);
        check_map(&map, &request);
    }
}

static void random_requests_are_covered(void **state) {
    srand(5);
    uint32_t placed = 0;
    for (int round = 0; round < 3000; round++) {
        placement_node nodes[12];
        uint32_t lanes = 1u << rand() % 3, count = lanes * (1 + (uint32_t)rand() % 4 % (12 / lanes)), heads = 4 / lanes;
        for (uint32_t i = 0; i < count; i++) {
            nodes[i] = node_of(i % lanes * heads, heads, (uint64_t)rand() % 100000);
            nodes[i].total_tokens += (uint64_t)rand() % 50000;
        }
        placement_request request =
            request_of(nodes, count, 1 + (uint64_t)rand() % 150000, 1024u << rand() % 6, 1 + (uint32_t)rand() % 2);
        placement map = {.version = 0};
        if (rand() % 2) placement_inherit(&map, &request, nodes[0].heads, (uint32_t[]){0}, 1, (uint64_t)rand() % 5000);
        if (placement_place(&map, &request, NULL) != HD_OK) continue;
        check_map(&map, &request);
        placed++;
        uint64_t cut = (uint64_t)rand() % request.tokens_max, grown = request.tokens_max;
        placement_cut(&map, cut);
        request.tokens_max = cut > 0 ? cut : 1;
        check_map(&map, &request);
        request.tokens_max = grown;
        if (placement_place(&map, &request, NULL) == HD_OK) check_map(&map, &request);
    }
    assert_true(placed > 500);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_short_sequence_lies_whole_where_most_is_free),
        cmocka_unit_test(a_context_larger_than_any_node_is_spread),
        cmocka_unit_test(lanes_have_every_head_once),
        cmocka_unit_test(a_prefix_keeps_its_rows_and_the_rest_is_placed),
        cmocka_unit_test(what_cannot_be_split_lies_whole_or_not_at_all),
        cmocka_unit_test(found_rows_make_the_map_again),
        cmocka_unit_test(replicas_are_on_different_nodes_and_replace_each_other),
        cmocka_unit_test(more_tokens_than_a_range_can_end_at_never_fit),
        cmocka_unit_test(random_requests_are_covered),
    };
    return cmocka_run_group_tests_name("placement", tests, NULL, NULL);
}
