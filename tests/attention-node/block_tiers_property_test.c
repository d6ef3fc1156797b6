/* block_tiers_property_test.c - a million random operations over memory and disk against a model that is obviously
 * right.
 *
 * The model knows the texts of every sequence, and what a page must hold is a function of the texts up to it, of the
 * tenant and of the unit. Whoever is given another sequence's page, an older one, or another unit's sees other bytes.
 * Now and then two pages on disk are exchanged behind the store's back: that has to be found. With verification
 * switched off the same run finds wrong bytes, which shows that it would. HADAL_SEED replays one seed. */
#include "attention-node/block_store.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fault.h"

enum { CHAINS = 10, BLOCKS_MAX = 24, FRAMES = 40, SLOTS = 96, PAGES = 48, BATCH = 16, UNITS = 2, TENANTS = 2 };

/* Two units of 4 KiB a block. */
static const attention_stream streams[] = {{0, 1, 64, HD_INT4, 1, 0}, {1, 1, 64, HD_INT4, 1, 0}};
static const attention_layer layers[] = {
    {.key_stream = 0, .value_stream = 0, .value_is_key_prefix = true, .value_dim = 64, .query_heads = 1, .scale = 1},
    {.key_stream = 1, .value_stream = 1, .value_is_key_prefix = true, .value_dim = 64, .query_heads = 1, .scale = 1}};
static const attention_layer_table table = {streams, 2, layers, 2};
static const unsigned char fingerprint[16] = {4};

typedef struct {
    bool is_open;
    uint32_t count;
    identity_scope scope;
    uint64_t hashes[BLOCKS_MAX]; /* the model's: of the tenant and all texts up to a block */
    identity ids[BLOCKS_MAX];
    block_name blocks[BLOCKS_MAX];
    block_claim claim, cold_claim;
} chain;

typedef struct {
    char directory[64];
    hd_arena arena;
    block_store store;
    chain chains[CHAINS];
    uint64_t seed, round;
    uint64_t operations, from_disk, shared, planted, found, wrong;
} world;

static uint64_t mix(uint64_t a, uint64_t b) {
    uint64_t z = a ^ (b + 0x9e3779b97f4a7c15u) * 0xd6e8feb86659fd93u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint32_t below(world *w, uint32_t bound) {
    w->seed = mix(w->seed, 77);
    return (uint32_t)(w->seed >> 8) % bound;
}

static void fill(void *page, uint64_t hash, uint32_t unit) {
    uint64_t *words = page, state = mix(hash, unit);
    for (int i = 0; i < 512; i++) words[i] = state += 0x9e3779b97f4a7c15u;
}

static bool is_right(const void *page, uint64_t hash, uint32_t unit) {
    const uint64_t *words = page;
    uint64_t state = mix(hash, unit);
    for (int i = 0; i < 512; i++)
        if (words[i] != (state += 0x9e3779b97f4a7c15u)) return false;
    return true;
}

static void open_store(world *w) {
    block_tiers tiers = {.frame_count = FRAMES, .slot_count = SLOTS, .page_count = PAGES};
    tiers.cold = (cold_config){.directory = w->directory, .fingerprint = fingerprint, .kv_dtype = HD_INT4};
    uint64_t block_bytes = attention_layer_table_block_bytes(&table);
    tiers.cold.size_bytes = 4096 + SLOTS * (block_bytes + cold_record_bytes(block_bytes));
    hd_error error = {.text = ""};
    assert_int_equal(hd_arena_init(&w->arena, block_store_table_bytes(&table, &tiers)), HD_OK);
    hd_status status = block_store_init(&w->store, &table, &tiers, &w->arena, &error);
    if (status != HD_OK) print_error("%s\n", error.text);
    assert_int_equal(status, HD_OK);
    w->round = 0;
}

static void close_store(world *w) {
    block_store_fini(&w->store);
    hd_arena_fini(&w->arena);
}

/* ---- Sequences ---- */

/* What a further block with that text is called, by the model and by the store. */
static void name_next(const world *w, const chain *c, uint32_t text, uint64_t *hash, identity *id, uint32_t *tokens) {
    for (int i = 0; i < 128; i++) tokens[i] = text;
    identity root;
    const unsigned char *key = w->store.cold.directory.key;
    identity_of_root(key, fingerprint, HD_INT4, &c->scope, &root);
    identity_of_block(key, c->count > 0 ? &c->ids[c->count - 1] : &root, tokens, id);
    *hash = mix(c->count > 0 ? c->hashes[c->count - 1] : c->scope.salt[0], text);
}

static void push(chain *c, block_name block, uint64_t hash, const identity *id) {
    c->blocks[c->count] = block;
    c->hashes[c->count] = hash;
    c->ids[c->count++] = *id;
}

static block_name last_of(const chain *c) {
    return c->count > 0 ? c->blocks[c->count - 1] : BLOCK_NONE;
}

/* Starts with as much as the cache has of a text with few variations. */
static void open_chain(world *w, chain *c) {
    *c = (chain){.is_open = true};
    c->scope.salt[0] = (unsigned char)(1 + below(w, TENANTS));
    for (uint32_t length = below(w, BLOCKS_MAX); c->count < length;) {
        uint64_t hash;
        identity id;
        uint32_t tokens[HD_BLOCK_TOKENS];
        name_next(w, c, below(w, 8) == 0 ? 2 : 1, &hash, &id, tokens);
        block_name block = prefix_cache_find(&w->store.cache, &id, &c->scope, last_of(c), tokens);
        if (block.index == BLOCK_NONE.index || block_store_share(&w->store, block) != HD_OK) return;
        push(c, block, hash, &id);
        w->shared++;
    }
}

static void seal(world *w, chain *c, block_name block, uint32_t text) {
    uint64_t hash;
    identity id;
    block_pool *pool = &w->store.pool;
    name_next(w, c, text, &hash, &id, block_pool_get(pool, block)->token_ids);
    for (uint32_t unit = 0; unit < UNITS; unit++) {
        fill(block_pool_unit(pool, pool->frame_of[block.index], unit), hash, unit);
        block_pool_record_checksum(pool, block.index, unit, 0);
    }
    if (below(w, 5) == 0) block_store_seal_privately(&w->store, block, &id, &c->scope, last_of(c));
    else block = block_store_seal(&w->store, block, &id, &c->scope, last_of(c));
    block_store_spill(&w->store, block, &c->cold_claim, BLOCKS_MAX - c->count);
    push(c, block, hash, &id);
}

static void append(world *w, chain *c) {
    if (c->count == BLOCKS_MAX || block_store_reserve(&w->store, 1) != HD_OK) return;
    if (block_store_make_room(&w->store, 1) != HD_OK) {
        block_store_unreserve(&w->store, 1);
        return;
    }
    seal(w, c, block_store_take(&w->store, &c->claim, BLOCKS_MAX - c->count), 1 + below(w, 3));
}

/* Its last block is written again, with another text. */
static void rewrite(world *w, chain *c) {
    block_name block = last_of(c);
    if (c->count == 0 || block_pool_get(&w->store.pool, block)->references > 1) return;
    if (block_store_load(&w->store, block) != HD_OK) return;
    block = block_store_reopen(&w->store, block);
    c->count--;
    seal(w, c, block, 4 + below(w, 3));
}

static void close_chain(world *w, chain *c) {
    block_retention retention = (block_retention)below(w, 3);
    while (c->count > 0) block_store_release(&w->store, c->blocks[--c->count], retention);
    block_pool_claim_drop(&w->store.pool, &c->claim);
    extent_table_drop(&w->store.cold.slots, &c->cold_claim);
    c->is_open = false;
}

/* ---- Looking ---- */

typedef struct {
    block_name block;
    uint64_t hash;
    uint32_t unit;
} look;

static void count_look(world *w, hd_status status, const void *page, const look *l) {
    if (status != HD_OK) w->found++;
    else if (!is_right(page, l->hash, l->unit)) w->wrong++;
}

static void look_on_disk(world *w, const look *looks, uint32_t count) {
    page_cache *pages = &w->store.pages;
    uint64_t round = ++w->round;
    bool is_scan = below(w, 2) == 0;
    uint32_t pinned = 0;
    for (; pinned < count; pinned++) {
        const look *l = &looks[pinned];
        uint32_t slot = block_store_cold_slot(&w->store, l->block.index);
        if (!page_cache_pin(pages, l->block.index, l->unit, slot, round, is_scan)) break;
    }
    page_cache_submit(pages);
    for (uint32_t i = 0; i < pinned; i++) {
        const unsigned char *page = NULL;
        hd_status status = page_cache_use(pages, looks[i].block.index, looks[i].unit, UINT64_MAX, &page);
        count_look(w, status, page, &looks[i]);
    }
    page_cache_release(pages, round);
    w->from_disk += pinned;
    assert_true(pinned == count); /* nothing else is pinned */
}

static void look_at_some(world *w) {
    look cold[BATCH];
    uint32_t count = 0;
    for (uint32_t i = 0; i < BATCH; i++) {
        const chain *c = &w->chains[below(w, CHAINS)];
        if (!c->is_open || c->count == 0) continue;
        uint32_t k = below(w, c->count);
        look l = {c->blocks[k], c->hashes[k], below(w, UNITS)};
        w->operations++;
        if (!block_pool_is_resident(&w->store.pool, l.block.index)) cold[count++] = l;
        else count_look(w, HD_OK, block_pool_unit(&w->store.pool, w->store.pool.frame_of[l.block.index], l.unit), &l);
    }
    look_on_disk(w, cold, count);
}

/* A page of a sequence that is on disk alone and not cached. */
static bool find_cold(world *w, look *l) {
    for (int tries = 0; tries < 40; tries++) {
        const chain *c = &w->chains[below(w, CHAINS)];
        if (!c->is_open || c->count == 0) continue;
        uint32_t k = below(w, c->count);
        *l = (look){c->blocks[k], c->hashes[k], below(w, UNITS)};
        if (block_pool_is_resident(&w->store.pool, l->block.index)) continue;
        page_cache_forget(&w->store.pages, l->block.index);
        return true;
    }
    return false;
}

static void exchange(world *w, const look *a, const look *b) {
    const block_layout *layout = &w->store.pool.layout;
    off_t at_a = (off_t)cold_page_offset(layout, block_store_cold_slot(&w->store, a->block.index), a->unit),
          at_b = (off_t)cold_page_offset(layout, block_store_cold_slot(&w->store, b->block.index), b->unit);
    _Alignas(4096) static unsigned char page_a[4096], page_b[4096];
    int file = w->store.cold.directory.pages;
    assert_int_equal(pread(file, page_a, sizeof(page_a), at_a), sizeof(page_a));
    assert_int_equal(pread(file, page_b, sizeof(page_b), at_b), sizeof(page_b));
    assert_int_equal(pwrite(file, page_b, sizeof(page_b), at_a), sizeof(page_b));
    assert_int_equal(pwrite(file, page_a, sizeof(page_a), at_b), sizeof(page_a));
}

static void plant_exchange(world *w) {
    look looks[2];
    if (!find_cold(w, &looks[0]) || !find_cold(w, &looks[1])) return;
    if (looks[0].hash == looks[1].hash && looks[0].unit == looks[1].unit) return;
    exchange(w, &looks[0], &looks[1]);
    w->planted += 2;
    look_on_disk(w, looks, 2);
    exchange(w, &looks[0], &looks[1]);
    for (int i = 0; i < 2; i++) page_cache_forget(&w->store.pages, looks[i].block.index);
}

/* ---- The run ---- */

static void restart(world *w) {
    for (int i = 0; i < CHAINS; i++) {
        if (w->chains[i].is_open) close_chain(w, &w->chains[i]);
    }
    close_store(w);
    open_store(w);
}

static world run(uint64_t seed, uint64_t operations) {
    world w = {.seed = seed};
    /* In memory where there is such a directory: what is tested is not the disk. */
    snprintf(w.directory, sizeof(w.directory), "%s/hadal-tiers-XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    assert_non_null(mkdtemp(w.directory));
    assert_true(sodium_init() >= 0);
    open_store(&w);
    uint64_t next_restart = operations / 4, next_plant = 1000;
    while (w.operations < operations) {
        chain *c = &w.chains[below(&w, CHAINS)];
        uint32_t what = below(&w, 100);
        w.operations++;
        block_store_poll(&w.store);
        if (!c->is_open) open_chain(&w, c);
        else if (what < 50) append(&w, c);
        else if (what < 56) close_chain(&w, c);
        else if (what < 60) rewrite(&w, c);
        else if (what < 61 && below(&w, 50) == 0) block_store_reset_cache(&w.store);
        else look_at_some(&w);
        assert_true(w.store.held + w.store.reserved <= FRAMES + SLOTS);
        if (w.operations >= next_plant) {
            plant_exchange(&w);
            next_plant = w.operations + 1000;
        }
        if (w.operations >= next_restart) {
            restart(&w);
            next_restart += operations / 4;
        }
    }
    close_store(&w);
    static const char *const names[] = {"key", "index", "pages"};
    for (int i = 0; i < 3; i++) {
        char path[128];
        snprintf(path, sizeof(path), "%s/%s", w.directory, names[i]);
        unlink(path);
    }
    rmdir(w.directory);
    return w;
}

static void pages_are_never_exchanged(void **state) {
    const char *only = getenv("HADAL_SEED");
    world w = run(only != NULL ? strtoull(only, NULL, 10) : 1, 1000000);
    assert_int_equal(w.wrong, 0);
    assert_int_equal(w.found, w.planted); /* each of them, and nothing else */
    assert_true(w.planted > 500 && w.from_disk > 100000 && w.shared > 1000);
}

static void without_verification_the_exchange_is_seen(void **state) {
    fault_hold(FAULT_VERIFY);
    world w = run(2, 50000);
    fault_disarm();
    assert_true(w.planted > 20);
    assert_int_equal(w.found, 0);
    assert_int_equal(w.wrong, w.planted);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_are_never_exchanged),
        cmocka_unit_test(without_verification_the_exchange_is_seen),
    };
    return cmocka_run_group_tests_name("block_tiers_property", tests, NULL, NULL);
}
