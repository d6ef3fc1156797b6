/* index_memory_test.c - places of segments: zeros, apart from each other, and gone when nobody needs them. */
#include "attention-node/index_memory.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

static uint32_t next_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

static void assert_all(const unsigned char *place, size_t bytes, unsigned char value) {
    for (size_t i = 0; i < bytes; i++) assert_int_equal(place[i], value);
}

/* Random takes and gives of several sizes: a place begins as zeros and keeps what is written to it. */
static void places_are_zeros_and_nobody_elses(void **state) {
    enum { PLACES = 40, OPERATIONS = 400 };
    const size_t sizes[] = {1, 1000, 70000, 700000, INDEX_MEMORY_CHUNK / 2 + 1};
    unsigned char *places[PLACES] = {0};
    size_t bytes[PLACES];
    uint64_t seed = 1;
    for (uint32_t operation = 0; operation < OPERATIONS; operation++) {
        uint32_t at = next_random(&seed) % PLACES;
        if (places[at] != NULL) {
            assert_all(places[at], bytes[at], (unsigned char)(at + 1));
            index_memory_give(places[at], bytes[at]);
            places[at] = NULL;
            continue;
        }
        bytes[at] = sizes[next_random(&seed) % (operation % 8 == 0 ? 5 : 4)];
        places[at] = index_memory_take(bytes[at]);
        assert_non_null(places[at]);
        assert_int_equal((uintptr_t)places[at] % 64, 0);
        assert_all(places[at], bytes[at], 0);
        memset(places[at], (int)at + 1, bytes[at]);
    }
    for (uint32_t at = 0; at < PLACES; at++) {
        if (places[at] != NULL) assert_all(places[at], bytes[at], (unsigned char)(at + 1));
        index_memory_give(places[at], bytes[at]);
    }
    assert_int_equal(index_memory_held(), 0);
}

static void places_of_a_size_fill_chunks_before_another_is_taken(void **state) {
    enum { EACH = 16, PLACES = 2 * EACH + 1 };
    const size_t bytes = INDEX_MEMORY_CHUNK / EACH;
    void *places[PLACES];
    for (uint32_t i = 0; i < PLACES; i++) assert_non_null(places[i] = index_memory_take(bytes));
    assert_int_equal(index_memory_held(), 3 * INDEX_MEMORY_CHUNK);
    index_memory_give(places[3], bytes);
    index_memory_give(places[PLACES - 1], bytes);
    assert_int_equal(index_memory_held(), 2 * INDEX_MEMORY_CHUNK);
    places[3] = index_memory_take(bytes);
    assert_int_equal(index_memory_held(), 2 * INDEX_MEMORY_CHUNK);
    for (uint32_t i = 0; i < PLACES - 1; i++) index_memory_give(places[i], bytes);
    assert_int_equal(index_memory_held(), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(places_are_zeros_and_nobody_elses),
        cmocka_unit_test(places_of_a_size_fill_chunks_before_another_is_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
