/* engine_cold_test.c - sequences that are larger than memory: the same bits, within the budget, from any tier. */
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "tests/attention-node/cold_rig.h"

enum { FIRST = 9000, COMMON = 5000, SECOND = 5600, DECODED = 24, FRAMES = 14 };

typedef struct {
    float *values;
    size_t count;
} outputs;

static float *room_for(outputs *all, const toy *t, uint64_t rows) {
    size_t count = t->shape.layer_count * rows * toy_row_floats(t);
    all->values = realloc(all->values, (all->count + count) * sizeof(float));
    float *room = all->values + all->count;
    all->count += count;
    return room;
}

/* Two sequences with a common beginning are prefilled one after the other and then decoded side by side. */
static outputs run_two(toy *t, const char *selection) {
    outputs all = {0};
    toy_sequence first, second;
    uint64_t cached;
    toy_sequence_init(&first, 1, 1, FIRST + DECODED);
    toy_sequence_push_text(&first, 3, FIRST);
    toy_sequence_init(&second, 2, 1, SECOND + DECODED);
    for (uint64_t i = 0; i < COMMON; i++) toy_sequence_push(&second, first.tokens[i]);
    toy_sequence_push_text(&second, 4, SECOND - COMMON);
    first.selection = second.selection = selection;
    assert_int_equal(toy_sequence_open(t, &first, 0, &cached, NULL), HD_OK);
    toy_run(t, &first, 0, FIRST, 250, room_for(&all, t, FIRST));
    assert_int_equal(toy_sequence_open(t, &second, UINT64_MAX, &cached, NULL), HD_OK);
    assert_int_equal(cached, COMMON / 128 * 128);
    toy_run(t, &second, cached, SECOND - cached, 250, room_for(&all, t, SECOND - cached));
    for (uint32_t i = 0; i < DECODED; i++) {
        toy_sequence_push(&first, 7 * i);
        toy_sequence_push(&second, 5 * i);
        toy_rows rows[2] = {{&first, FIRST + i, 1}, {&second, SECOND + i, 1}};
        assert_int_equal(toy_step(t, rows, 2, room_for(&all, t, 2), NULL), HD_OK);
    }
    toy_sequence_fini(&first);
    toy_sequence_fini(&second);
    return all;
}

/* warm_bytes: 0 is the rig's, too few for single tokens. */
static void check_tiers(const toy_shape *shape, const char *selection, unsigned threads, uint64_t warm_bytes) {
    toy hot;
    cold_rig rig;
    cold_rig_init_shape(&rig, shape, FRAMES, 160);
    if (warm_bytes > 0) rig.toy.config.warm_bytes = warm_bytes;
    toy_init(&hot, &rig.toy.shape);
    hot.config.kernels = rig.toy.config.kernels;
    hot.config.hot_bytes = 64u << 20;
    hot.config.index_bytes = rig.toy.config.index_bytes = 16u << 20;
    hot.config.index_builders = rig.toy.config.index_builders = 1;
    toy_open(&hot, 1);
    outputs expected = run_two(&hot, selection);
    toy_fini(&hot);

    cold_rig_open(&rig, threads);
    outputs got = run_two(&rig.toy, selection);
    attention_stats stats = cold_rig_stats(&rig);
    assert_int_equal(got.count, expected.count);
    assert_memory_equal(got.values, expected.values, got.count * sizeof(float));
    assert_true(stats.cold_read_bytes > (4u << 20) && stats.page_misses > 100);
    assert_true(stats.hot_used_bytes + stats.warm_used_bytes < stats.budget_bytes);
    assert_true(stats.blocks_sequences > 5 * FRAMES);
    assert_int_equal(stats.cold_verify_failures + stats.cold_read_errors + stats.cold_write_errors, 0);
    if (warm_bytes > 0) assert_true(stats.row_misses > 1000 && stats.row_hits > 1000);
    else assert_int_equal(stats.row_misses + stats.row_hits, 0);
    free(got.values);
    free(expected.values);
    cold_rig_fini(&rig);
}

static void check_shape(const toy_shape *shape, const char *selection, unsigned threads) {
    check_tiers(shape, selection, threads, 0);
}

static void check_same_bits(uint64_t window, const char *selection, unsigned threads) {
    check_shape(&(toy_shape){2, 2, 1, 16, 16, HD_F32, {0, window}, 0, false}, selection, threads);
}

static void full_over_any_split_of_tiers_gives_the_bits_of_all_hot(void **state) {
    check_same_bits(0, NULL, 2);
    check_same_bits(700, NULL, 3);
}

static void a_window_over_cold_pages_gives_the_same_bits(void **state) {
    check_same_bits(0, "window,sinks=200,recent=3000", 2);
}

/* What a search finds is on disk for the most part, and so is what its index is built from. */
static void retrieval_from_cold_pages_gives_the_same_bits(void **state) {
    check_same_bits(0, "retrieval,index=exact,tokens=300", 2);
}

/* Whose pages are no whole number of 4 KiB. */
static void int8_from_cold_pages_gives_the_same_bits(void **state) {
    static const toy_shape shape = {2, 2, 1, 128, 128, HD_INT8, {0, 0}, 0, false};
    check_shape(&shape, NULL, 2);
    check_shape(&shape, "retrieval,index=exact,tokens=300", 2);
}

/* Rows of which eight fill a chunk, and rows of which some lie in two. */
static void tokens_found_on_disk_and_read_alone_give_the_same_bits(void **state) {
    static const toy_shape whole = {4, 4, 1, 32, 32, HD_BF16, {0}, 0, false},
                           parted = {4, 4, 1, 64, 64, HD_INT8, {0}, 0, false};
    check_tiers(&whole, "retrieval,index=exact,tokens=300", 2, 14u << 20);
    check_tiers(&parted, "retrieval,index=exact,tokens=300", 2, 15u << 20);
}

static void without_io_uring_the_bits_are_the_same(void **state) {
    fault_hold(FAULT_URING);
    check_same_bits(0, NULL, 2);
    fault_disarm();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(full_over_any_split_of_tiers_gives_the_bits_of_all_hot),
        cmocka_unit_test(a_window_over_cold_pages_gives_the_same_bits),
        cmocka_unit_test(retrieval_from_cold_pages_gives_the_same_bits),
        cmocka_unit_test(int8_from_cold_pages_gives_the_same_bits),
        cmocka_unit_test(tokens_found_on_disk_and_read_alone_give_the_same_bits),
        cmocka_unit_test(without_io_uring_the_bits_are_the_same),
    };
    return cmocka_run_group_tests_name("engine_cold", tests, NULL, NULL);
}
