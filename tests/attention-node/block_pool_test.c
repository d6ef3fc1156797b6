/* block_pool_test.c - places that follow each other, names that go stale, payload that is checked. */
#include "attention-node/block_pool.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

#include "base/fault.h"

static const attention_stream streams[] = {
    {0, 2, 32, HD_F32, 1, 0}, {0, 2, 16, HD_F32, 1, 0}, {0, 1, 32, HD_INT8, 4, 0}};
static const attention_layer layers[] = {
    {.key_stream = 0, .value_stream = 1, .value_dim = 16, .query_heads = 2, .scale = 1}};
static const attention_layer_table table = {streams, 3, layers, 1};

typedef struct {
    hd_arena arena;
    block_pool pool;
} bench;

static void bench_init(bench *b, uint32_t block_count) {
    assert_int_equal(hd_arena_init(&b->arena, block_pool_table_bytes(&table, block_count, block_count)), HD_OK);
    assert_int_equal(block_pool_init(&b->pool, &table, block_count, block_count, (block_memory){0}, &b->arena), HD_OK);
}

static void bench_fini(bench *b) {
    block_pool_fini(&b->pool);
    hd_arena_fini(&b->arena);
}

static block_name take(bench *b, block_claim *claim, uint32_t wanted) {
    block_name block = block_pool_take(&b->pool, claim, wanted);
    assert_int_not_equal(block.index, BLOCK_NONE.index);
    return block;
}

static void every_page_has_memory_of_its_own(void **state) {
    const uint32_t counts[] = {1, 15, 16, 17, 40};
    for (size_t c = 0; c < 5; c++) {
        bench b;
        bench_init(&b, counts[c]);
        block_claim claim = {0};
        for (uint32_t i = 0; i < counts[c]; i++) take(&b, &claim, counts[c] - i);
        uint64_t bytes = block_pool_payload_bytes(&table, counts[c]), covered = 0;
        unsigned char *is_used = calloc(bytes, 1);
        for (uint32_t block = 0; block < counts[c]; block++) {
            for (uint32_t stream = 0; stream < 3; stream++) {
                for (uint32_t head = 0; head < streams[stream].heads; head++) {
                    unsigned char *page = block_pool_page(&b.pool, block, stream, head);
                    assert_int_equal((uintptr_t)page % 64, 0);
                    for (uint64_t i = 0; i < attention_stream_page_bytes(&streams[stream]); i++, covered++) {
                        assert_true(page + i >= b.pool.payload && page + i < b.pool.payload + bytes);
                        assert_int_equal(is_used[page + i - b.pool.payload], 0);
                        assert_int_equal(page[i], 0); /* fresh payload is zero */
                        is_used[page + i - b.pool.payload] = 1;
                    }
                }
            }
        }
        assert_int_equal(covered, bytes);
        free(is_used);
        bench_fini(&b);
    }
}

static void a_layer_and_head_lie_in_order_within_an_extent(void **state) {
    bench b;
    bench_init(&b, 32);
    block_claim claim = {0};
    for (uint32_t i = 0; i < 32; i++) take(&b, &claim, 32 - i);
    uint64_t page = attention_stream_page_bytes(&streams[0]) + attention_stream_page_bytes(&streams[1]);
    for (uint32_t block = 1; block < 16; block++) {
        unsigned char *previous = block_pool_page(&b.pool, block - 1, 0, 1),
                      *keys = block_pool_page(&b.pool, block, 0, 1);
        assert_int_equal(keys - previous, page);
        assert_int_equal((unsigned char *)block_pool_page(&b.pool, block, 1, 1) - keys,
                         attention_stream_page_bytes(&streams[0]));
    }
    bench_fini(&b);
}

static void sequences_that_grow_side_by_side_each_stay_in_order(void **state) {
    bench b;
    bench_init(&b, 128);
    block_claim claims[4] = {{0}};
    uint32_t last[4];
    for (uint32_t i = 0; i < 32; i++) {
        for (int s = 0; s < 4; s++) {
            uint32_t index = take(&b, &claims[s], 32 - i).index;
            if (i % 16 != 0) assert_int_equal(index, last[s] + 1);
            else assert_int_equal(index % 16, 0);
            last[s] = index;
        }
    }
    block_claim claim = {0};
    assert_int_equal(block_pool_take(&b.pool, &claim, 1).index, BLOCK_NONE.index);
    bench_fini(&b);
}

static void short_sequences_fill_holes_and_leave_whole_extents(void **state) {
    bench b;
    bench_init(&b, 64);
    block_claim claim = {0};
    for (int i = 0; i < 5; i++) take(&b, &claim, 5 - (uint32_t)i); /* leaves 11 of the first extent */
    for (int s = 0; s < 3; s++) {
        block_claim mine = {0};
        for (uint32_t i = 0; i < 3; i++) assert_true(take(&b, &mine, 3 - i).index < 16);
    }
    block_claim longer = {0};
    for (uint32_t i = 0; i < 16; i++) assert_int_equal(take(&b, &longer, 16 - i).index, 16 + i);
    bench_fini(&b);
}

static void a_claim_is_a_wish(void **state) {
    bench b;
    bench_init(&b, 16);
    block_claim mine = {0}, others = {0};
    take(&b, &mine, 16); /* claims all */
    for (int i = 0; i < 15; i++) take(&b, &others, 1);
    assert_int_equal(block_pool_take(&b.pool, &mine, 15).index, BLOCK_NONE.index);
    block_pool_free(&b.pool, (block_name){7, 0});
    assert_int_equal(take(&b, &mine, 15).index, 7);
    block_pool_claim_drop(&b.pool, &mine);
    bench_fini(&b);
}

static void a_freed_or_reopened_block_has_another_name(void **state) {
    bench b;
    bench_init(&b, 4);
    block_claim claim = {0};
    block_name first = take(&b, &claim, 1);
    assert_non_null(block_pool_find(&b.pool, first));
    block_pool_free(&b.pool, first);
    assert_null(block_pool_find(&b.pool, first));
    assert_int_equal(block_pool_verify(&b.pool, first), HD_STALE);
    block_name again = take(&b, &claim, 1);
    while (again.index != first.index) again = take(&b, &claim, 1);
    assert_false(block_name_is_equal(first, again));
    assert_null(block_pool_find(&b.pool, first));

    identity id = {{1}};
    identity_scope scope = {.salt = {2}, .variant = 3};
    block_pool_seal(&b.pool, again, &id, &scope, BLOCK_NONE);
    block_name reopened = block_pool_reopen(&b.pool, again);
    assert_null(block_pool_find(&b.pool, again));
    assert_int_equal(block_pool_find(&b.pool, reopened)->state, BLOCK_OPEN);
    assert_null(block_pool_find(&b.pool, (block_name){4, 0}));
    bench_fini(&b);
}

static void a_flipped_bit_is_found_and_not_copied(void **state) {
    bench b;
    bench_init(&b, 4);
    block_claim claim = {0};
    block_name block = take(&b, &claim, 2), copy = take(&b, &claim, 1);
    for (uint32_t stream = 0; stream < 2; stream++) {
        for (uint32_t head = 0; head < 2; head++) {
            ((float *)block_pool_page(&b.pool, block.index, stream, head))[5] = (float)(stream * 2 + head + 1);
            block_pool_record_checksum(&b.pool, block.index, stream, head);
        }
    }
    block_pool_get(&b.pool, block)->token_ids[127] = 99;
    identity id = {{1}};
    identity_scope scope = {.salt = {2}, .variant = 3};
    block_pool_seal(&b.pool, block, &id, &scope, BLOCK_NONE);
    assert_int_equal(block_pool_verify(&b.pool, block), HD_OK);
    assert_int_equal(block_pool_copy(&b.pool, copy, block), HD_OK);
    assert_true(((float *)block_pool_page(&b.pool, copy.index, 1, 1))[5] == 4.0f);
    assert_int_equal(block_pool_get(&b.pool, copy)->token_ids[127], 99);

    unsigned char *last = block_pool_page(&b.pool, block.index, 1, 1);
    last[attention_stream_page_bytes(&streams[1]) - 1] ^= 0x80;
    assert_int_equal(block_pool_verify(&b.pool, block), HD_CORRUPT);
    assert_int_equal(block_pool_copy(&b.pool, copy, block), HD_CORRUPT);
    bench_fini(&b);
}

/* Against the obvious model: a set of taken indices. */
static void random_takes_and_frees_never_hand_out_a_block_twice(void **state) {
    srand(4);
    for (int round = 0; round < 20; round++) {
        enum { SEQUENCES = 6 };
        uint32_t count = 1 + (uint32_t)rand() % 90, taken_count = 0;
        bench b;
        bench_init(&b, count);
        block_name *taken = calloc(count, sizeof(*taken));
        bool *is_taken = calloc(count, sizeof(*is_taken));
        block_claim claims[SEQUENCES] = {{0}};
        for (int i = 0; i < 3000; i++) {
            int what = rand() % 20;
            if (what == 0) {
                block_pool_claim_drop(&b.pool, &claims[rand() % SEQUENCES]);
            } else if (what < 11) {
                block_name block = block_pool_take(&b.pool, &claims[rand() % SEQUENCES], 1 + (uint32_t)rand() % 40);
                assert_int_equal(block.index == BLOCK_NONE.index, taken_count == count);
                if (taken_count == count) continue;
                assert_false(is_taken[block.index]);
                is_taken[block.index] = true;
                taken[taken_count++] = block;
            } else if (taken_count > 0) {
                uint32_t victim = (uint32_t)rand() % taken_count;
                is_taken[taken[victim].index] = false;
                block_pool_free(&b.pool, taken[victim]);
                taken[victim] = taken[--taken_count];
            }
            assert_int_equal(b.pool.free_count, count - taken_count);
        }
        free(taken);
        free(is_taken);
        bench_fini(&b);
    }
}

static void init_survives_a_failed_mapping(void **state) {
    hd_arena arena;
    block_pool pool = {0};
    assert_int_equal(hd_arena_init(&arena, block_pool_table_bytes(&table, 8, 8)), HD_OK);
    fault_arm(FAULT_ALLOCATION, 0);
    assert_int_equal(block_pool_init(&pool, &table, 8, 8, (block_memory){0}, &arena), HD_NO_MEMORY);
    fault_disarm();
    block_pool_fini(&pool);
    hd_arena_fini(&arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_page_has_memory_of_its_own),
        cmocka_unit_test(a_layer_and_head_lie_in_order_within_an_extent),
        cmocka_unit_test(sequences_that_grow_side_by_side_each_stay_in_order),
        cmocka_unit_test(short_sequences_fill_holes_and_leave_whole_extents),
        cmocka_unit_test(a_claim_is_a_wish),
        cmocka_unit_test(a_freed_or_reopened_block_has_another_name),
        cmocka_unit_test(a_flipped_bit_is_found_and_not_copied),
        cmocka_unit_test(random_takes_and_frees_never_hand_out_a_block_twice),
        cmocka_unit_test(init_survives_a_failed_mapping),
    };
    return cmocka_run_group_tests_name("block_pool", tests, NULL, NULL);
}
