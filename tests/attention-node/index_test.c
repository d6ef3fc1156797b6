/* index_test.c - what every kind of index promises: extents, building in pieces, sharing, bytes. */
#include "attention-node/index.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "tests/attention-node/index_data.h"

enum { DIM = 32, KEYS = 20 * INDEX_GRAIN };

static index_params params_of(const index_kind *kind) {
    const kernel_ops *kernels = NULL;
    assert_int_equal(kernel_ops_choose(NULL, &kernels, NULL), HD_OK);
    return (index_params){
        .kind = kind, .kernels = kernels, .key_dim = DIM, .value_dim = DIM, .keys_max = KEYS, .seed = 7};
}

static void for_each_kind(void (*check)(const index_params *params, const index_data *data)) {
    const index_kind *const *kinds;
    size_t count = index_kinds(&kinds);
    index_data data = index_data_make(INDEX_DATA_SHIFTED, DIM, KEYS, 4, 1);
    for (size_t i = 0; i < count; i++) {
        index_params params = params_of(kinds[i]);
        check(&params, &data);
    }
    index_data_free(&data);
}

/* ---- plans ---- */

static void a_plan_covers_its_extent_with_aligned_segments(void **state) {
    index_range plan[64];
    for (uint64_t covered = 0; covered <= 300 * INDEX_GRAIN; covered += INDEX_GRAIN) {
        for (uint64_t settled = 0; settled <= covered; settled += INDEX_GRAIN) {
            index_extent extent = {covered, settled};
            uint64_t at = 0;
            uint32_t count = index_plan(&extent, plan, index_plan_max(covered));
            assert_true(count <= index_plan_max(covered));
            for (uint32_t i = 0; i < count; i++) {
                assert_int_equal(plan[i].first, at);
                assert_int_equal(at % plan[i].count, 0);
                at += plan[i].count;
            }
            assert_int_equal(at, covered);
        }
    }
}

static void a_larger_segment_waits_past_the_prompt_and_not_within_it(void **state) {
    index_range plan[64];
    const uint64_t middle = 16 * INDEX_GRAIN;
    assert_int_equal(index_plan(&(index_extent){middle, middle}, plan, 64), 1);
    assert_int_equal(index_plan(&(index_extent){middle, 0}, plan, 64), 3 + 4); /* of 4,096, the last of them in parts */
    assert_int_equal(index_plan(&(index_extent){middle + INDEX_GRAIN, 0}, plan, 64), 4 + 1);
    assert_int_equal(index_plan(&(index_extent){middle + 2 * INDEX_GRAIN, 0}, plan, 64), 3);
}

static void an_unknown_kind_is_refused_by_name(void **state) {
    const index_kind *kind = NULL;
    hd_error error = {{0}};
    assert_int_equal(index_kind_find("exact", &kind, &error), HD_OK);
    assert_string_equal(index_kind_name(kind), "exact");
    assert_int_equal(index_kind_find("perfect", &kind, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "'perfect'"));
    assert_non_null(strstr(error.text, "exact"));
}

/* ---- finding ---- */

static void exact_finds_what_brute_force_finds(void **state) {
    const index_kind *kind;
    assert_int_equal(index_kind_find("exact", &kind, NULL), HD_OK);
    index_params params = params_of(kind);
    index_data data = index_data_make(INDEX_DATA_SHIFTED, DIM, KEYS, 4, 2);
    const index_extent extent = {17 * INDEX_GRAIN, 17 * INDEX_GRAIN};
    kv_index *index = index_data_build(&data, &params, extent.covered, extent.covered);
    for (uint32_t test = 0; test < 4; test++) {
        index_search search = index_data_search(index, &params, &data, &extent, test, 100);
        assert_int_equal(search.token_count, 100);
        assert_true(index_data_recall(&data, test, extent.covered, 100, &search) == 1.0f);
        assert_int_equal(search.bytes_scanned, extent.covered * DIM * 2);
        free(search.tokens);
    }
    index_close(index);
    index_data_free(&data);
}

static void check_asking_for_all(const index_params *params, const index_data *data) {
    const index_extent extent = {2 * INDEX_GRAIN, 0};
    kv_index *index = index_data_build(data, params, extent.covered, extent.covered);
    index_search search = index_data_search(index, params, data, &extent, 0, (uint32_t)extent.covered);
    assert_int_equal(search.token_count, extent.covered);
    free(search.tokens);
    index_close(index);
}

static void asking_for_everything_finds_everything(void **state) {
    for_each_kind(check_asking_for_all);
}

static void check_sinks(const index_params *params, const index_data *data) {
    static const uint32_t counts[] = {128, INDEX_GRAIN - 16};
    const index_extent extent = {2 * INDEX_GRAIN, 0};
    for (size_t i = 0; i < 2; i++) {
        index_params with = *params;
        with.sinks = counts[i];
        kv_index *index = index_data_build(data, &with, extent.covered, extent.covered);
        index_search search = index_data_search(index, &with, data, &extent, 0, (uint32_t)extent.covered);
        assert_int_equal(search.token_count, extent.covered - counts[i]);
        assert_int_equal(search.tokens[0], counts[i]);
        free(search.tokens);
        index_close(index);
    }
}

static void sinks_are_not_found_and_all_else_is(void **state) {
    for_each_kind(check_sinks);
}

static void check_groups(const index_params *params, const index_data *data) {
    const index_extent extent = {7 * INDEX_GRAIN, 7 * INDEX_GRAIN};
    kv_index *index = index_data_build(data, params, extent.covered, extent.covered);
    enum { EACH = 20, QUERIES = 4 };
    uint32_t tokens[EACH * QUERIES];
    index_search group = {.queries = data->tests,
                          .query_stride = DIM,
                          .query_count = QUERIES,
                          .scale = data->scale,
                          .extent = extent,
                          .tokens_each = EACH,
                          .tokens = tokens};
    group.scratch = hd_alloc(index_search_bytes(params, QUERIES, EACH), 64);
    index_search_run(index, &group);
    for (uint32_t test = 0; test < QUERIES; test++) { /* no query of a group finds less than it finds alone */
        index_search alone = index_data_search(index, params, data, &extent, test, EACH);
        for (uint32_t i = 0, j = 0; i < alone.token_count; i++) {
            while (j < group.token_count && tokens[j] < alone.tokens[i]) j++;
            assert_true(j < group.token_count && tokens[j] == alone.tokens[i]);
        }
        free(alone.tokens);
    }
    hd_free(group.scratch);
    index_close(index);
}

static void a_group_finds_what_each_of_its_queries_finds(void **state) {
    for_each_kind(check_groups);
}

/* ---- building ---- */

static void assert_same_answers(const kv_index *a, const kv_index *b, const index_params *params,
                                const index_data *data, const index_extent *extent) {
    for (uint32_t test = 0; test < data->query_count; test++) {
        index_search first = index_data_search(a, params, data, extent, test, 50);
        index_search second = index_data_search(b, params, data, extent, test, 50);
        assert_int_equal(first.token_count, second.token_count);
        assert_memory_equal(first.tokens, second.tokens, first.token_count * sizeof(uint32_t));
        assert_int_equal(first.bytes_scanned, second.bytes_scanned);
        free(first.tokens);
        free(second.tokens);
    }
}

static void check_chunks(const index_params *params, const index_data *data) {
    const index_extent extent = {19 * INDEX_GRAIN, 19 * INDEX_GRAIN};
    kv_index *whole = index_data_build(data, params, extent.covered, extent.covered);
    kv_index *pieces = index_data_build(data, params, extent.covered, 1700);
    assert_same_answers(whole, pieces, params, data, &extent);
    index_close(whole);
    index_close(pieces);
}

static void the_same_data_in_other_chunks_give_the_same_index(void **state) {
    for_each_kind(check_chunks);
}

/* The builder works a piece at a time; between the pieces the earlier extent answers as it always did. */
static void check_search_while_building(const index_params *params, const index_data *data) {
    const index_extent early = {3 * INDEX_GRAIN, 0}, late = {18 * INDEX_GRAIN, 18 * INDEX_GRAIN};
    kv_index *index = index_data_build(data, params, early.covered, early.covered);
    kv_index *still = index_data_build(data, params, early.covered, early.covered);
    for (uint64_t at = early.covered; at < late.covered; at += INDEX_QUERY_POSITIONS)
        index_add_query(index, at, data->queries + at / INDEX_QUERY_POSITIONS * DIM, 1, 0);
    index_builder *builder;
    assert_int_equal(index_builder_open(params, &builder), HD_OK);
    index_target(index, &late);
    assert_false(index_is_ready(index, &late));
    for (uint32_t piece = 0; index_build(index, builder) == HD_PENDING; piece++)
        if (piece % 8 == 0) assert_same_answers(index, still, params, data, &early);
    assert_true(index_is_ready(index, &late));
    index_builder_close(builder);
    index_close(index);
    index_close(still);
}

static void an_earlier_extent_is_searched_while_the_next_is_built(void **state) {
    for_each_kind(check_search_while_building);
}

/* Decoding: a grain is there when it has been built, as good as any other. */
static void check_appending(const index_params *params, const index_data *data) {
    kv_index *index = index_data_build(data, params, 2 * INDEX_GRAIN, 2 * INDEX_GRAIN);
    const index_extent extent = {3 * INDEX_GRAIN, 2 * INDEX_GRAIN};
    index_data_finish(index, params, &extent);
    index_data twin = *data; /* a query that only a key of the last grain answers */
    uint16_t key[DIM];
    memcpy(key, data->keys + (2 * INDEX_GRAIN + 500) * DIM, sizeof(key));
    for (uint32_t i = 0; i < DIM; i++) key[i] = hd_f32_to_bf16(hd_bf16_to_f32(key[i]) - hd_bf16_to_f32(data->keys[i]));
    twin.tests = key;
    index_search search = index_data_search(index, params, &twin, &extent, 0, 200);
    assert_true(index_data_recall(&twin, 0, extent.covered, 10, &search) >= 0.6f);
    free(search.tokens);
    index_close(index);
}

static void appended_tokens_are_found(void **state) {
    for_each_kind(check_appending);
}

static void check_truncation(const index_params *params, const index_data *data) {
    const index_extent extent = {18 * INDEX_GRAIN, 18 * INDEX_GRAIN};
    kv_index *index = index_data_build(data, params, extent.covered, extent.covered);
    kv_index *straight = index_data_build(data, params, extent.covered, extent.covered);
    index_truncate(index, 5 * INDEX_GRAIN + 100);
    assert_false(index_is_ready(index, &extent));
    for (uint64_t at = 5 * INDEX_GRAIN; at < extent.covered; at += INDEX_QUERY_POSITIONS)
        index_add_query(index, at, data->queries + at / INDEX_QUERY_POSITIONS * DIM, 1, 0);
    index_data_finish(index, params, &extent);
    assert_same_answers(index, straight, params, data, &extent);
    index_close(index);
    index_close(straight);
}

static void what_was_truncated_is_built_again_alike(void **state) {
    for_each_kind(check_truncation);
}

static void check_fork(const index_params *params, const index_data *data) {
    const index_extent extent = {17 * INDEX_GRAIN, 17 * INDEX_GRAIN};
    kv_index *index = index_data_build(data, params, extent.covered, extent.covered), *fork;
    kv_index *straight = index_data_build(data, params, extent.covered, extent.covered);
    index_source source = index_data_source(data);
    assert_int_equal(index_fork(index, extent.covered + 5, KEYS, &source, &fork), HD_OK);
    index_close(index);
    assert_true(index_is_ready(fork, &extent));
    assert_same_answers(fork, straight, params, data, &extent);
    index_close(fork);
    index_close(straight);
}

static void a_fork_keeps_the_segments_after_its_source_is_closed(void **state) {
    for_each_kind(check_fork);
}

/* ---- bytes ---- */

static void check_bytes(const index_params *params, const index_data *data) {
    kv_index *index;
    index_source source = index_data_source(data);
    assert_int_equal(index_open(params, &source, &index), HD_OK);
    uint64_t most = index_bytes_max(params);
    for (uint64_t covered = INDEX_GRAIN; covered <= KEYS; covered += INDEX_GRAIN) {
        for (uint64_t at = covered - INDEX_GRAIN; at < covered; at += INDEX_QUERY_POSITIONS)
            index_add_query(index, at, data->queries + at / INDEX_QUERY_POSITIONS * DIM, 1, 0);
        const index_extent before = {covered - INDEX_GRAIN, 0}, after = {covered, 0};
        index_drop(index, &before); /* which is in use while the next is made */
        index_data_finish(index, params, &after);
        assert_true(index_is_ready(index, &before));
        assert_true(index_is_ready(index, &after));
        assert_true(index_bytes(index) <= most);
    }
    const index_extent last = {KEYS, 0};
    index_data_finish(index, params, &last);
    index_drop(index, &last);
    assert_true(index_bytes(index) <= most);
    index_range plan[64];
    assert_int_equal(index_plan(&last, plan, 64), 5); /* and what the large one replaced is gone */
    assert_false(index_is_ready(index, &(index_extent){INDEX_GRAIN, 0}));
    index_close(index);
}

static void an_index_stays_within_its_bytes(void **state) {
    for_each_kind(check_bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_plan_covers_its_extent_with_aligned_segments),
        cmocka_unit_test(a_larger_segment_waits_past_the_prompt_and_not_within_it),
        cmocka_unit_test(an_unknown_kind_is_refused_by_name),
        cmocka_unit_test(exact_finds_what_brute_force_finds),
        cmocka_unit_test(asking_for_everything_finds_everything),
        cmocka_unit_test(sinks_are_not_found_and_all_else_is),
        cmocka_unit_test(a_group_finds_what_each_of_its_queries_finds),
        cmocka_unit_test(the_same_data_in_other_chunks_give_the_same_index),
        cmocka_unit_test(an_earlier_extent_is_searched_while_the_next_is_built),
        cmocka_unit_test(appended_tokens_are_found),
        cmocka_unit_test(what_was_truncated_is_built_again_alike),
        cmocka_unit_test(a_fork_keeps_the_segments_after_its_source_is_closed),
        cmocka_unit_test(an_index_stays_within_its_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
