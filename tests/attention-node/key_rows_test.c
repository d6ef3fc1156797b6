/* key_rows_test.c - rows of keys: added in order, cut, shared. */
#include "attention-node/key_rows.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { DIM = 16, STRIDE = 24, CHUNK = KEY_ROWS_CHUNK, TOKENS = 3 * CHUNK - 72 };

static uint16_t *all_keys(void) {
    static uint16_t keys[TOKENS * STRIDE];
    for (uint32_t i = 0; i < TOKENS * STRIDE; i++) keys[i] = (uint16_t)(i * 2654435761u >> 13);
    return keys;
}

static void add(key_rows *rows, uint64_t first, uint32_t count) {
    assert_int_equal(key_rows_add(rows, first, all_keys() + first * STRIDE, count, STRIDE), HD_OK);
}

static void check_there(const key_rows *rows, uint64_t first, uint64_t end) {
    const uint16_t *keys = all_keys();
    for (uint64_t token = first; token < end; token++) {
        const uint16_t *row = key_rows_at(rows, token, 1);
        assert_non_null(row);
        assert_memory_equal(row, keys + token * STRIDE, DIM * sizeof(uint16_t));
    }
}

static void check_absent(const key_rows *rows, uint64_t first, uint64_t end) {
    for (uint64_t token = first; token < end; token++) assert_null(key_rows_at(rows, token, 1));
}

static void rows_are_there_once_added(void **state) {
    key_rows rows;
    assert_int_equal(key_rows_init(&rows, TOKENS, DIM), HD_OK);
    check_absent(&rows, 0, TOKENS);
    add(&rows, 0, 700);
    add(&rows, 700, 2 * CHUNK - 648);
    add(&rows, 500, 300); /* a replay */
    check_there(&rows, 0, 2 * CHUNK + 52);
    check_absent(&rows, 2 * CHUNK + 52, TOKENS);
    assert_non_null(key_rows_at(&rows, CHUNK, CHUNK));
    assert_null(key_rows_at(&rows, CHUNK + 1, CHUNK)); /* over the end of a chunk */
    assert_null(key_rows_at(&rows, TOKENS * 100, 1));
    key_rows_fini(&rows);
}

static void a_hole_is_left_to_the_page_until_its_chunk_ends(void **state) {
    key_rows rows;
    assert_int_equal(key_rows_init(&rows, TOKENS, DIM), HD_OK);
    add(&rows, 300, CHUNK);
    check_absent(&rows, 0, CHUNK);
    check_there(&rows, CHUNK, CHUNK + 300);
    add(&rows, CHUNK + 400, 100);
    check_absent(&rows, CHUNK + 300, CHUNK + 500);
    key_rows_fini(&rows);
}

static void what_is_cut_is_forgotten(void **state) {
    key_rows rows;
    assert_int_equal(key_rows_init(&rows, TOKENS, DIM), HD_OK);
    add(&rows, 0, TOKENS);
    key_rows_truncate(&rows, CHUNK + 500);
    check_there(&rows, 0, CHUNK + 500);
    check_absent(&rows, CHUNK + 500, TOKENS);
    add(&rows, CHUNK + 500, 600);
    check_there(&rows, 0, CHUNK + 1100);
    key_rows_truncate(&rows, 0);
    check_absent(&rows, 0, TOKENS);
    key_rows_fini(&rows);
}

static void a_fork_has_its_own_end(void **state) {
    key_rows rows, fork;
    assert_int_equal(key_rows_init(&rows, TOKENS, DIM), HD_OK);
    assert_int_equal(key_rows_init(&fork, TOKENS, DIM), HD_OK);
    add(&rows, 0, 2 * CHUNK + 500);
    assert_int_equal(key_rows_share(&rows, 2 * CHUNK + 200, &fork), HD_OK);
    check_there(&fork, 0, 2 * CHUNK + 200);
    check_absent(&fork, 2 * CHUNK + 200, TOKENS);
    assert_ptr_equal(key_rows_at(&rows, 5, 1), key_rows_at(&fork, 5, 1)); /* full chunks are shared */
    assert_ptr_not_equal(key_rows_at(&rows, 2 * CHUNK + 100, 1), key_rows_at(&fork, 2 * CHUNK + 100, 1));
    key_rows_truncate(&fork, 600); /* into what both have: it gets a copy */
    check_there(&rows, 0, 2 * CHUNK + 500);
    check_there(&fork, 0, 600);
    check_absent(&fork, 600, TOKENS);
    add(&fork, 600, 100);
    check_there(&fork, 0, 700);
    check_there(&rows, 0, 2 * CHUNK + 500);
    key_rows_fini(&rows);
    key_rows_fini(&fork);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_there_once_added),
        cmocka_unit_test(a_hole_is_left_to_the_page_until_its_chunk_ends),
        cmocka_unit_test(what_is_cut_is_forgotten),
        cmocka_unit_test(a_fork_has_its_own_end),
    };
    return cmocka_run_group_tests_name("key_rows", tests, NULL, NULL);
}
