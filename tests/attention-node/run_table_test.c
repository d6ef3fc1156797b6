/* run_table_test.c - lists of runs within their share of memory, and finding a position in one. */
#include "attention-node/run_table.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "attention-node/sequence.h"
#include "base/fault.h"

static void lists_of_all_slots_are_full_length_where_blocks_are_large(void **state) {
    run_table table;
    assert_int_equal(run_table_init(&table, 4, 1000, 4 << 20), HD_OK);
    kv_run *runs[4];
    for (uint32_t slot = 0; slot < 4; slot++) {
        assert_int_equal(run_table_open(&table, slot, 1000, &runs[slot]), HD_OK);
        for (uint32_t i = 0; i < 1000; i++) runs[slot][i].position = slot * 10000 + i;
    }
    for (uint32_t slot = 0; slot < 4; slot++) {
        for (uint32_t i = 0; i < 1000; i++) assert_int_equal(runs[slot][i].position, slot * 10000 + i);
        run_table_close(&table, slot, 1000);
    }
    assert_int_equal(table.bytes_promised, 0);
    run_table_fini(&table);
}

static void small_blocks_bound_the_lists(void **state) {
    run_table table;
    assert_int_equal(run_table_init(&table, 64, 10000, 4096), HD_OK);
    kv_run *runs;
    uint32_t opened = 0;
    while (opened < 64 && run_table_open(&table, opened, 10000, &runs) == HD_OK) opened++;
    assert_in_range(opened, 1, 63);
    assert_true(table.bytes_promised <= run_table_bytes(64, 10000, 4096));
    assert_int_equal(run_table_open(&table, opened, 10000, &runs), HD_FULL);
    assert_int_equal(run_table_resize(&table, 10000, 1), HD_OK);
    assert_int_equal(run_table_open(&table, opened, 9000, &runs), HD_OK);
    assert_int_equal(run_table_resize(&table, 1, 10000), HD_FULL);
    run_table_fini(&table);
}

static void init_survives_a_failed_mapping(void **state) {
    run_table table;
    fault_arm(FAULT_ALLOCATION, 0);
    assert_int_equal(run_table_init(&table, 4, 10, 4096), HD_NO_MEMORY);
    fault_disarm();
    run_table_fini(&table);
}

static void a_position_is_found_with_and_without_gaps(void **state) {
    kv_run runs[6];
    for (uint64_t i = 0; i < 6; i++) runs[i] = (kv_run){.count = 128, .position = i * 128};
    runs[5].count = 3;
    assert_int_equal(sequence_run_at(runs, 6, 0), 0);
    assert_int_equal(sequence_run_at(runs, 6, 127), 0);
    assert_int_equal(sequence_run_at(runs, 6, 128), 1);
    assert_int_equal(sequence_run_at(runs, 6, 642), 5);
    assert_int_equal(sequence_run_at(runs, 6, 643), 6);
    assert_int_equal(sequence_run_at(runs, 0, 0), 0);
    /* Blocks 1 and 2 dropped, and the head of block 3. */
    kv_run gaps[3] = {runs[0], {.first = 100, .count = 28, .position = 484}, runs[4]};
    assert_int_equal(sequence_run_at(gaps, 3, 127), 0);
    assert_int_equal(sequence_run_at(gaps, 3, 128), 1);
    assert_int_equal(sequence_run_at(gaps, 3, 484), 1);
    assert_int_equal(sequence_run_at(gaps, 3, 511), 1);
    assert_int_equal(sequence_run_at(gaps, 3, 512), 2);
    assert_int_equal(sequence_run_at(gaps, 3, 640), 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lists_of_all_slots_are_full_length_where_blocks_are_large),
        cmocka_unit_test(small_blocks_bound_the_lists),
        cmocka_unit_test(init_survives_a_failed_mapping),
        cmocka_unit_test(a_position_is_found_with_and_without_gaps),
    };
    return cmocka_run_group_tests_name("run_table", tests, NULL, NULL);
}
