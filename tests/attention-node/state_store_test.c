/* state_store_test.c - snapshots of states at exact positions. */
#include "attention-node/state_store.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

/* Stream 0 has pages; streams 1 and 2 are states of 64 and 256 bytes. */
static const attention_stream streams[] = {
    {0, 1, 32, HD_BF16, 1, 0}, {0, 1, 16, HD_F32, 0, 0}, {3, 2, 32, HD_F32, 0, 0}};
static const attention_layer layers[] = {
    {.key_stream = 0, .value_stream = 0, .value_is_key_prefix = true, .value_dim = 32, .query_heads = 1}};
static const attention_layer_table table = {streams, 3, layers, 1};

typedef struct {
    hd_arena arena;
    state_store store;
} bench;

static void bench_init(bench *b, uint32_t snapshots) {
    assert_int_equal(hd_arena_init(&b->arena, state_store_table_bytes(&table, snapshots)), HD_OK);
    state_store_init(&b->store, &table, snapshots, &b->arena);
}

static void save(bench *b, uint32_t owner, uint64_t position) {
    for (uint32_t stream = 1; stream <= 2; stream++) {
        unsigned char bytes[256];
        memset(bytes, (int)(owner * 50 + position * 2 + stream), sizeof(bytes));
        assert_int_equal(state_store_save(&b->store, owner, position, stream, bytes), HD_OK);
    }
}

static void assert_saved(bench *b, uint32_t owner, uint64_t position, uint32_t first_owner) {
    for (uint32_t stream = 1; stream <= 2; stream++) {
        unsigned char bytes[256], expected[256];
        memset(expected, (int)(first_owner * 50 + position * 2 + stream), sizeof(expected));
        assert_int_equal(state_store_load(&b->store, owner, position, stream, bytes), HD_OK);
        assert_memory_equal(bytes, expected, stream == 1 ? 64 : 256);
    }
}

static void a_sequence_resumes_at_its_largest_snapshot_not_beyond_length(void **state) {
    bench b;
    bench_init(&b, 8);
    assert_int_equal(state_store_resumable(&b.store, 0, 1000), 0);
    save(&b, 0, 10);
    save(&b, 0, 30);
    save(&b, 1, 20);
    assert_int_equal(state_store_resumable(&b.store, 0, 1000), 30);
    assert_int_equal(state_store_resumable(&b.store, 0, 30), 30);
    assert_int_equal(state_store_resumable(&b.store, 0, 29), 10);
    assert_int_equal(state_store_resumable(&b.store, 0, 9), 0);
    assert_int_equal(state_store_resumable(&b.store, 1, 1000), 20);
    assert_saved(&b, 0, 30, 0);
    assert_saved(&b, 1, 20, 1);
    state_store_truncate(&b.store, 0, 29);
    assert_int_equal(state_store_resumable(&b.store, 0, 1000), 10);
    state_store_drop(&b.store, 0);
    assert_int_equal(state_store_resumable(&b.store, 0, 1000), 0);
    assert_saved(&b, 1, 20, 1);
    hd_arena_fini(&b.arena);
}

static void half_a_snapshot_is_none(void **state) {
    bench b;
    bench_init(&b, 4);
    unsigned char bytes[256] = {0};
    assert_int_equal(state_store_save(&b.store, 0, 5, 2, bytes), HD_OK);
    assert_int_equal(state_store_save(&b.store, 0, 5, 2, bytes), HD_OK);
    assert_int_equal(state_store_resumable(&b.store, 0, 9), 0);
    assert_int_equal(state_store_load(&b.store, 0, 5, 2, bytes), HD_NOT_FOUND);
    assert_int_equal(state_store_save(&b.store, 0, 5, 1, bytes), HD_OK);
    assert_int_equal(state_store_resumable(&b.store, 0, 9), 5);
    assert_int_equal(state_store_save(&b.store, 0, 5, 0, bytes), HD_INVALID); /* pages */
    assert_int_equal(state_store_load(&b.store, 0, 5, 0, bytes), HD_INVALID);
    hd_arena_fini(&b.arena);
}

static void without_room_a_saver_replaces_its_own_oldest(void **state) {
    bench b;
    bench_init(&b, 3);
    save(&b, 1, 7);
    save(&b, 0, 10);
    save(&b, 0, 20);
    save(&b, 0, 30);
    assert_int_equal(state_store_load(&b.store, 0, 10, 1, (unsigned char[256]){0}), HD_NOT_FOUND);
    assert_saved(&b, 0, 20, 0);
    assert_saved(&b, 0, 30, 0);
    assert_saved(&b, 1, 7, 1);
    hd_arena_fini(&b.arena);
}

static void every_sequence_gets_one(void **state) {
    bench b;
    bench_init(&b, 3);
    save(&b, 0, 10);
    save(&b, 0, 20);
    save(&b, 0, 30);
    save(&b, 1, 5);
    save(&b, 2, 6);
    assert_saved(&b, 0, 30, 0);
    assert_saved(&b, 1, 5, 1);
    assert_saved(&b, 2, 6, 2);
    hd_arena_fini(&b.arena);
}

static void a_copy_is_the_forks_own(void **state) {
    bench b;
    bench_init(&b, 2);
    save(&b, 0, 10);
    save(&b, 0, 20);
    state_store_copy(&b.store, 0, 10, 1); /* takes the place of 20, not of what it copies */
    assert_saved(&b, 1, 10, 0);
    assert_saved(&b, 0, 10, 0);
    state_store_drop(&b.store, 0);
    assert_saved(&b, 1, 10, 0);
    state_store_copy(&b.store, 1, 11, 0);
    assert_int_equal(state_store_resumable(&b.store, 0, 1000), 0);
    hd_arena_fini(&b.arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_sequence_resumes_at_its_largest_snapshot_not_beyond_length),
        cmocka_unit_test(half_a_snapshot_is_none),
        cmocka_unit_test(without_room_a_saver_replaces_its_own_oldest),
        cmocka_unit_test(every_sequence_gets_one),
        cmocka_unit_test(a_copy_is_the_forks_own),
    };
    return cmocka_run_group_tests_name("state_store", tests, NULL, NULL);
}
