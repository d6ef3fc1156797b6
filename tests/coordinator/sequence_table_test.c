#include "coordinator/sequence_table.h"

#include "tests/coordinator/cmocka_all.h"

#include <stdlib.h>

/* The table never looks at what it holds. */
static struct generation *named(uintptr_t name) {
    return (struct generation *)(name * 64);
}

static void count_named(struct generation *generation, void *context) {
    unsigned *seen = context;
    seen[(uintptr_t)generation / 64]++;
}

static void a_full_table_refuses(void **state) {
    sequence_table *table;
    uint32_t slot;
    assert_int_equal(sequence_table_open(2, &table), HD_OK);
    assert_int_equal(sequence_table_add(table, named(1), &slot), HD_OK);
    assert_int_equal(sequence_table_add(table, named(2), &slot), HD_OK);
    assert_int_equal(sequence_table_add(table, named(3), &slot), HD_FULL);
    sequence_table_remove(table, slot);
    assert_int_equal(sequence_table_add(table, named(3), &slot), HD_OK);
    sequence_table_remove(table, slot);
    sequence_table_remove(table, 0);
    sequence_table_wait_empty(table);
    sequence_table_close(table);
}

static void a_visit_sees_exactly_what_is_in_it(void **state) {
    enum { NAMES = 40 };
    sequence_table *table;
    assert_int_equal(sequence_table_open(16, &table), HD_OK);
    bool is_in[NAMES] = {false};
    uint32_t slots[NAMES], count = 0;
    unsigned seed = 7;
    for (int round = 0; round < 5000; round++) {
        unsigned name = 1 + (unsigned)rand_r(&seed) % (NAMES - 1);
        if (is_in[name]) {
            sequence_table_remove(table, slots[name]);
            count--;
            is_in[name] = false;
        } else {
            hd_status status = sequence_table_add(table, named(name), &slots[name]);
            assert_int_equal(status, count < 16 ? HD_OK : HD_FULL);
            is_in[name] = status == HD_OK;
            count += is_in[name];
        }
        unsigned seen[NAMES] = {0};
        sequence_table_visit(table, count_named, seen);
        for (unsigned i = 0; i < NAMES; i++) assert_int_equal(seen[i], is_in[i]);
        assert_int_equal(sequence_table_count(table), count);
    }
    for (unsigned i = 0; i < NAMES; i++) {
        if (is_in[i]) sequence_table_remove(table, slots[i]);
    }
    sequence_table_close(table);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_full_table_refuses),
        cmocka_unit_test(a_visit_sees_exactly_what_is_in_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
