/* block_store_test.c - promises are kept, equal prefixes meet, users do not, and the right block is given up first. */
#include "attention-node/block_store.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static const attention_stream streams[] = {{0, 1, 32, HD_F32, 1, 0}, {0, 1, 32, HD_F32, 1, 0}};
static const attention_layer layers[] = {
    {.key_stream = 0, .value_stream = 1, .value_dim = 32, .query_heads = 1, .scale = 1}};
static const attention_layer_table table = {streams, 2, layers, 1};
static const unsigned char key[IDENTITY_KEY_BYTES] = {1, 2, 3};
static const identity_scope scope = {.salt = {9}, .variant = 1};

typedef struct {
    hd_arena arena;
    block_store store;
} bench;

static void bench_init(bench *b, uint32_t block_count) {
    block_tiers tiers = {.frame_count = block_count};
    assert_int_equal(hd_arena_init(&b->arena, block_store_table_bytes(&table, &tiers)), HD_OK);
    assert_int_equal(block_store_init(&b->store, &table, &tiers, &b->arena, NULL), HD_OK);
}

static void bench_fini(bench *b) {
    block_store_fini(&b->store);
    hd_arena_fini(&b->arena);
}

static identity root_of(const identity_scope *of) {
    identity root;
    identity_of_root(key, key, HD_F32, of, &root);
    return root;
}

/* A full block after parent whose 128 tokens are all `token`, reserved, taken and sealed. */
static block_name add(bench *b, const identity_scope *of, block_name parent, uint32_t token) {
    assert_int_equal(block_store_reserve(&b->store, 1), HD_OK);
    block_claim claim = {0};
    block_name block = block_store_take(&b->store, &claim, 1);
    block_record *record = block_pool_get(&b->store.pool, block);
    for (int i = 0; i < 128; i++) record->token_ids[i] = token;
    identity root = root_of(of), id;
    const identity *before = parent.index == BLOCK_NONE.index ? &root : &block_pool_get(&b->store.pool, parent)->id;
    identity_of_block(key, before, record->token_ids, &id);
    return block_store_seal(&b->store, block, &id, of, parent);
}

static block_name find(bench *b, const identity_scope *of, block_name parent, uint32_t token) {
    uint32_t tokens[128];
    for (int i = 0; i < 128; i++) tokens[i] = token;
    identity root = root_of(of), id;
    const identity *before = parent.index == BLOCK_NONE.index ? &root : &block_pool_get(&b->store.pool, parent)->id;
    identity_of_block(key, before, tokens, &id);
    return prefix_cache_find(&b->store.cache, &id, of, parent, tokens);
}

static bool is_none(block_name block) {
    return block.index == BLOCK_NONE.index;
}

static void no_more_is_promised_than_there_is(void **state) {
    bench b;
    bench_init(&b, 5);
    assert_int_equal(block_store_reserve(&b.store, 3), HD_OK);
    assert_int_equal(block_store_reserve(&b.store, 3), HD_FULL);
    assert_int_equal(block_store_available(&b.store), 2);
    block_claim claim = {0};
    block_name block = block_store_take(&b.store, &claim, 3);
    assert_int_equal(block_store_available(&b.store), 2); /* a promise was kept, nothing new was given */
    block_store_release(&b.store, block, RETAIN_KEPT);    /* not sealed: nothing to keep */
    assert_int_equal(block_store_available(&b.store), 3);
    assert_int_equal(b.store.pool.free_count, 5);
    bench_fini(&b);
}

static void what_is_retired_is_found_and_makes_room(void **state) {
    bench b;
    bench_init(&b, 3);
    block_name first = add(&b, &scope, BLOCK_NONE, 1), second = add(&b, &scope, first, 2);
    block_store_release(&b.store, second, RETAIN_KEPT);
    block_store_release(&b.store, first, RETAIN_KEPT);
    assert_int_equal(block_store_available(&b.store), 3);
    assert_true(block_name_is_equal(find(&b, &scope, BLOCK_NONE, 1), first));
    assert_true(block_name_is_equal(find(&b, &scope, first, 2), second));
    assert_true(is_none(find(&b, &scope, BLOCK_NONE, 2)));

    /* Room for two new ones: the one free block, and the oldest, which is the tail. */
    add(&b, &scope, BLOCK_NONE, 7);
    add(&b, &scope, BLOCK_NONE, 8);
    assert_int_equal(b.store.evicted, 1);
    assert_true(block_name_is_equal(find(&b, &scope, BLOCK_NONE, 1), first));
    assert_true(is_none(find(&b, &scope, first, 2)));

    /* What is shared again is not evicted. */
    assert_int_equal(block_store_share(&b.store, first), HD_OK);
    assert_int_equal(block_store_available(&b.store), 0);
    assert_int_equal(block_store_reserve(&b.store, 1), HD_FULL);
    bench_fini(&b);
}

static void a_retired_block_is_not_taken_up_when_all_is_promised(void **state) {
    bench b;
    bench_init(&b, 2);
    block_name first = add(&b, &scope, BLOCK_NONE, 1);
    block_store_release(&b.store, first, RETAIN_KEPT);
    assert_int_equal(block_store_reserve(&b.store, 2), HD_OK);
    assert_int_equal(block_store_share(&b.store, first), HD_FULL);
    block_store_unreserve(&b.store, 1);
    assert_int_equal(block_store_share(&b.store, first), HD_OK);
    bench_fini(&b);
}

static void equal_blocks_become_one(void **state) {
    bench b;
    bench_init(&b, 4);
    block_name mine = add(&b, &scope, BLOCK_NONE, 1), theirs = add(&b, &scope, BLOCK_NONE, 1);
    assert_true(block_name_is_equal(mine, theirs));
    assert_int_equal(block_pool_get(&b.store.pool, mine)->references, 2);
    assert_int_equal(b.store.held, 1);
    assert_int_equal(b.store.pool.free_count, 3);
    block_store_release(&b.store, mine, RETAIN_NOT);
    assert_true(block_name_is_equal(find(&b, &scope, BLOCK_NONE, 1), mine)); /* the other one holds it */
    block_store_release(&b.store, theirs, RETAIN_NOT);
    assert_true(is_none(find(&b, &scope, BLOCK_NONE, 1)));
    assert_int_equal(b.store.pool.free_count, 4);
    bench_fini(&b);
}

static void another_salt_or_variant_is_another_prefix(void **state) {
    bench b;
    bench_init(&b, 4);
    const identity_scope other_salt = {.salt = {8}, .variant = 1}, other_variant = {.salt = {9}, .variant = 2};
    block_name block = add(&b, &scope, BLOCK_NONE, 1);
    assert_true(is_none(find(&b, &other_salt, BLOCK_NONE, 1)));
    assert_true(is_none(find(&b, &other_variant, BLOCK_NONE, 1)));
    assert_false(block_name_is_equal(add(&b, &other_salt, BLOCK_NONE, 1), block));
    assert_false(block_name_is_equal(add(&b, &other_variant, BLOCK_NONE, 1), block));
    bench_fini(&b);
}

/* As if the hash had collided: the same identity over other tokens, another user, another prefix. */
static void equal_identities_of_different_content_do_not_meet(void **state) {
    bench b;
    bench_init(&b, 8);
    block_name block = add(&b, &scope, BLOCK_NONE, 1);
    const identity id = block_pool_get(&b.store.pool, block)->id;
    uint32_t tokens[128];
    for (int i = 0; i < 128; i++) tokens[i] = 1;
    assert_true(block_name_is_equal(prefix_cache_find(&b.store.cache, &id, &scope, BLOCK_NONE, tokens), block));
    tokens[127] = 2;
    assert_true(is_none(prefix_cache_find(&b.store.cache, &id, &scope, BLOCK_NONE, tokens)));
    tokens[127] = 1;
    const identity_scope other = {.salt = {8}, .variant = 1};
    assert_true(is_none(prefix_cache_find(&b.store.cache, &id, &other, BLOCK_NONE, tokens)));
    assert_true(is_none(prefix_cache_find(&b.store.cache, &id, &scope, block, tokens)));

    /* The later one stays with its sequence and is found by nobody. */
    assert_int_equal(block_store_reserve(&b.store, 1), HD_OK);
    block_claim claim = {0};
    block_name later = block_store_take(&b.store, &claim, 1);
    for (int i = 0; i < 128; i++) block_pool_get(&b.store.pool, later)->token_ids[i] = 5;
    assert_true(block_name_is_equal(block_store_seal(&b.store, later, &id, &other, BLOCK_NONE), later));
    assert_false(block_pool_get(&b.store.pool, later)->is_cached);
    block_store_release(&b.store, later, RETAIN_KEPT);
    assert_int_equal(b.store.pool.free_count, 7);
    bench_fini(&b);
}

static void early_ended_work_is_evicted_first(void **state) {
    bench b;
    bench_init(&b, 4);
    block_name kept = add(&b, &scope, BLOCK_NONE, 1), early = add(&b, &scope, BLOCK_NONE, 2),
               both = add(&b, &scope, BLOCK_NONE, 3);
    add(&b, &scope, BLOCK_NONE, 3);
    block_store_release(&b.store, both, RETAIN_KEPT);
    block_store_release(&b.store, kept, RETAIN_KEPT);
    block_store_release(&b.store, both, RETAIN_EARLY); /* somebody wanted it for good */
    block_store_release(&b.store, early, RETAIN_EARLY);
    add(&b, &scope, BLOCK_NONE, 10);
    add(&b, &scope, BLOCK_NONE, 11);
    assert_true(is_none(find(&b, &scope, BLOCK_NONE, 2)));
    assert_false(is_none(find(&b, &scope, BLOCK_NONE, 1)));
    add(&b, &scope, BLOCK_NONE, 12); /* then the oldest of the others */
    assert_true(is_none(find(&b, &scope, BLOCK_NONE, 1)));
    assert_false(is_none(find(&b, &scope, BLOCK_NONE, 3)));
    bench_fini(&b);
}

static void a_reopened_block_is_found_no_more(void **state) {
    bench b;
    bench_init(&b, 4);
    block_name first = add(&b, &scope, BLOCK_NONE, 1), second = add(&b, &scope, first, 2);
    block_store_release(&b.store, second, RETAIN_KEPT);
    block_name reopened = block_store_reopen(&b.store, first);
    assert_true(is_none(find(&b, &scope, BLOCK_NONE, 1)));
    assert_true(is_none(find(&b, &scope, reopened, 2)));
    block_store_release(&b.store, reopened, RETAIN_KEPT);
    block_store_reset_cache(&b.store);
    assert_int_equal(b.store.pool.free_count, 4);
    assert_int_equal(b.store.evicted, 0);
    bench_fini(&b);
}

static void reset_keeps_what_is_held(void **state) {
    bench b;
    bench_init(&b, 4);
    block_name first = add(&b, &scope, BLOCK_NONE, 1), second = add(&b, &scope, BLOCK_NONE, 2);
    block_store_release(&b.store, second, RETAIN_KEPT);
    block_store_reset_cache(&b.store);
    assert_true(is_none(find(&b, &scope, BLOCK_NONE, 2)));
    assert_true(block_name_is_equal(find(&b, &scope, BLOCK_NONE, 1), first));
    assert_int_equal(b.store.pool.free_count, 3);
    bench_fini(&b);
}

/* A sequence retires from its end; what is evicted for a successor that needs as much comes back in reading order. */
static void evicted_blocks_are_handed_out_in_order(void **state) {
    bench b;
    bench_init(&b, 64);
    block_name blocks[64], parent = BLOCK_NONE;
    assert_int_equal(block_store_reserve(&b.store, 64), HD_OK);
    block_claim claim = {0};
    for (uint32_t i = 0; i < 64; i++) {
        blocks[i] = block_store_take(&b.store, &claim, 64 - i);
        uint32_t *tokens = block_pool_get(&b.store.pool, blocks[i])->token_ids;
        for (int k = 0; k < 128; k++) tokens[k] = i;
        identity id = {{(unsigned char)i, 77}};
        blocks[i] = block_store_seal(&b.store, blocks[i], &id, &scope, parent);
        parent = blocks[i];
    }
    for (uint32_t i = 64; i-- > 0;) block_store_release(&b.store, blocks[i], RETAIN_KEPT);
    assert_int_equal(block_store_reserve(&b.store, 32), HD_OK);
    uint32_t in_order = 0, last = UINT32_MAX - 1;
    for (uint32_t i = 0; i < 32; i++) {
        uint32_t index = block_store_take(&b.store, &claim, 32 - i).index;
        in_order += index == last + 1;
        last = index;
    }
    assert_int_equal(in_order, 30); /* two extents */
    assert_int_equal(b.store.evicted, 32);
    bench_fini(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_more_is_promised_than_there_is),
        cmocka_unit_test(what_is_retired_is_found_and_makes_room),
        cmocka_unit_test(a_retired_block_is_not_taken_up_when_all_is_promised),
        cmocka_unit_test(equal_blocks_become_one),
        cmocka_unit_test(another_salt_or_variant_is_another_prefix),
        cmocka_unit_test(equal_identities_of_different_content_do_not_meet),
        cmocka_unit_test(early_ended_work_is_evicted_first),
        cmocka_unit_test(a_reopened_block_is_found_no_more),
        cmocka_unit_test(reset_keeps_what_is_held),
        cmocka_unit_test(evicted_blocks_are_handed_out_in_order),
    };
    return cmocka_run_group_tests_name("block_store", tests, NULL, NULL);
}
