/* engine_property_test.c - random work against a model that is obviously right.
 *
 * The model knows the tokens of every sequence, and every text that was ever appended under a salt. A row's keys,
 * values and query are functions of the salt and of all tokens up to it (toy.h), so whatever else a sequence may be
 * given to see (another user's block, a stale one, one that was evicted and reused, a wrong position) changes its
 * output. HADAL_SEED replays one seed. */
#include <stdlib.h>
#include <string.h>

#include "tests/attention-node/toy.h"

enum { OPEN_MAX = 10, TEXTS_MAX = 400, TEXT_TOKENS = 900, SALTS = 2, FAMILIES = 3 };

typedef struct {
    unsigned char salt;
    uint64_t length;
    uint32_t tokens[TEXT_TOKENS];
} text;

typedef struct {
    toy toy;
    uint64_t seed;
    toy_sequence open[OPEN_MAX];
    uint64_t appended[OPEN_MAX]; /* how much of each the engine has */
    uint32_t open_count;
    uint64_t next_name;
    text *texts; /* all that some sequence ever had, to bound what may be found in the cache */
    uint32_t text_count;
    uint64_t cached_total, full_count;
} world;

static attention_stats stats_of(const world *w) {
    attention_stats stats;
    w->toy.attention->ops->stats(w->toy.attention, &stats);
    return stats;
}

static uint64_t blocks_of(uint64_t tokens) {
    return (tokens + 127) / 128;
}

static uint32_t below(world *w, uint32_t bound) {
    return toy_below(&w->seed, bound);
}

/* Texts of a family begin alike: 128 tokens, 256, or more, so that prefixes meet and part at and within blocks. */
static void push_random_text(world *w, toy_sequence *s, uint64_t count) {
    uint64_t family = below(w, FAMILIES), common = below(w, 3) == 0 ? below(w, 900) : 128 * below(w, 8),
             other = toy_random(&w->seed);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t state = i < common ? family * 1000 + i : other + i;
        toy_sequence_push(s, toy_below(&state, 5000));
    }
}

static void remember(world *w, const toy_sequence *s, uint64_t length) {
    if (length < 128 || w->text_count == TEXTS_MAX) return;
    text *t = &w->texts[w->text_count++];
    t->salt = s->salt;
    t->length = length;
    memcpy(t->tokens, s->tokens, length * sizeof(uint32_t));
}

/* The longest prefix of s that anybody with its salt has ever had. */
static uint64_t known_prefix(const world *w, const toy_sequence *s) {
    uint64_t best = 0;
    for (uint32_t i = 0; i < w->text_count; i++) {
        const text *t = &w->texts[i];
        uint64_t same = 0;
        while (t->salt == s->salt && same < t->length && same < s->length && t->tokens[same] == s->tokens[same]) same++;
        if (same > best) best = same;
    }
    for (uint32_t i = 0; i < w->open_count; i++) {
        const toy_sequence *o = &w->open[i];
        uint64_t same = 0;
        while (o->salt == s->salt && same < w->appended[i] && same < s->length && o->tokens[same] == s->tokens[same])
            same++;
        if (same > best) best = same;
    }
    return best;
}

static void check_accounts(const world *w) {
    attention_stats stats = stats_of(w);
    assert_int_equal(stats.sequences, w->open_count);
    assert_true(stats.blocks_sequences + stats.blocks_cached <= stats.blocks_total);
    assert_true(stats.blocks_sequences + stats.blocks_reserved <= stats.blocks_total);
    uint64_t needed = 0, tokens_held = 0;
    for (uint32_t i = 0; i < w->open_count; i++) {
        needed += blocks_of(w->open[i].tokens_max) - blocks_of(w->appended[i]);
        tokens_held += blocks_of(w->appended[i]);
    }
    assert_int_equal(stats.blocks_reserved, needed);
    assert_true(stats.blocks_sequences <= tokens_held); /* less where they share */
}

static void open_one(world *w) {
    if (w->open_count == OPEN_MAX) return;
    toy_sequence *s = &w->open[w->open_count];
    uint64_t length = 1 + below(w, 700), tokens_max = length + below(w, (uint32_t)(TEXT_TOKENS - length));
    toy_sequence_init(s, w->next_name++, (unsigned char)below(w, SALTS), tokens_max);
    push_random_text(w, s, length);
    uint64_t reuse = below(w, 4) == 0 ? below(w, 700) : UINT64_MAX, cached, known = known_prefix(w, s);
    attention_stats before = stats_of(w);
    hd_status status = toy_sequence_open(&w->toy, s, reuse, &cached, NULL);
    if (status != HD_OK) {
        assert_int_equal(status, HD_FULL);
        uint64_t available = before.blocks_total - before.blocks_sequences - before.blocks_reserved;
        assert_true(blocks_of(tokens_max) > available); /* even without sharing it would not have fitted */
        toy_sequence_fini(s);
        w->full_count++;
        return;
    }
    assert_true(cached <= known && cached <= length - 1 && cached <= reuse);
    uint64_t there = blocks_of(cached) * 128; /* the last block may be there beyond what may be reused */
    w->appended[w->open_count++] = there < length ? there : cached == length - 1 && length % 128 == 0 ? length : there;
    w->cached_total += cached;
}

/* Up to 8 sequences' next rows in one step, some of them with rows that are there already. */
static void step(world *w) {
    toy_rows rows[8];
    uint32_t count = 0, taken[8], budget = 256;
    for (uint32_t i = 0; i < w->open_count && count < 8; i++) {
        toy_sequence *s = &w->open[i];
        if (below(w, 3) == 0) continue;
        if (w->appended[i] == s->length) {
            if (s->length == s->tokens_max) continue;
            toy_sequence_push(s, below(w, 5000));
        }
        uint64_t replayed = below(w, 5) == 0 ? below(w, (uint32_t)(w->appended[i] < 40 ? w->appended[i] : 40) + 1) : 0;
        uint64_t first = w->appended[i] - replayed, rows_left = s->length - first;
        uint64_t n = below(w, 3) == 0 ? 1 + below(w, 16) : 1 + below(w, 200);
        if (n > rows_left) n = rows_left;
        if (n > budget) n = budget;
        if (n == 0) break;
        rows[count] = (toy_rows){s, first, n};
        taken[count++] = i;
        budget -= (uint32_t)n;
    }
    if (count == 0) return;
    assert_int_equal(toy_step(&w->toy, rows, count, NULL, NULL), HD_OK);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t end = rows[i].first + rows[i].count;
        if (end > w->appended[taken[i]]) w->appended[taken[i]] = end;
    }
}

static void close_one(world *w) {
    if (w->open_count == 0) return;
    uint32_t i = below(w, w->open_count);
    toy_sequence *s = &w->open[i];
    bool keep = below(w, 4) != 0;
    remember(w, s, w->appended[i]);
    assert_int_equal(w->toy.attention->ops->sequence_close(w->toy.attention, s->name, s->epoch, keep, below(w, 3) == 0),
                     HD_OK);
    toy_sequence_fini(s);
    w->open[i] = w->open[--w->open_count];
    w->appended[i] = w->appended[w->open_count];
}

static void truncate_one(world *w) {
    if (w->open_count == 0) return;
    uint32_t i = below(w, w->open_count);
    toy_sequence *s = &w->open[i];
    uint64_t length = below(w, (uint32_t)w->appended[i] + 1);
    if (below(w, 3) == 0) length = length / 128 * 128;
    remember(w, s, w->appended[i]);
    hd_status status = w->toy.attention->ops->truncate(w->toy.attention, s->name, s->epoch, length);
    if (status == HD_FULL) {
        w->full_count++;
        return;
    }
    assert_int_equal(status, HD_OK);
    s->length = w->appended[i] = length;
    if (length < s->tokens_max) push_random_text(w, s, 1 + below(w, (uint32_t)(s->tokens_max - length)));
}

static void fork_one(world *w) {
    if (w->open_count == 0 || w->open_count == OPEN_MAX) return;
    uint32_t i = below(w, w->open_count);
    const toy_sequence *source = &w->open[i];
    toy_sequence *s = &w->open[w->open_count];
    uint64_t length = below(w, (uint32_t)w->appended[i] + 1),
             tokens_max = length + 1 + below(w, (uint32_t)(TEXT_TOKENS - length));
    toy_sequence_init(s, w->next_name++, source->salt, tokens_max);
    for (uint64_t p = 0; p < length; p++) toy_sequence_push(s, source->tokens[p]);
    attention_stats before = stats_of(w);
    hd_status status =
        w->toy.attention->ops->fork(w->toy.attention, source->name, length, s->name, s->epoch, tokens_max, NULL);
    if (status != HD_OK) {
        assert_int_equal(status, HD_FULL);
        uint64_t needed = blocks_of(tokens_max) - length / 128;
        assert_true(needed > before.blocks_total - before.blocks_sequences - before.blocks_reserved);
        toy_sequence_fini(s);
        w->full_count++;
        return;
    }
    push_random_text(w, s, 1 + below(w, (uint32_t)(tokens_max - length)));
    w->appended[w->open_count++] = length;
}

/* Another token at a position that is there is refused, and nothing changes. */
static void contradict_one(world *w) {
    if (w->open_count == 0) return;
    uint32_t i = below(w, w->open_count);
    toy_sequence *s = &w->open[i];
    if (w->appended[i] == 0) return;
    uint64_t position = below(w, (uint32_t)w->appended[i]);
    uint32_t token = s->tokens[position] + 1;
    attention_rows rows = {s->name, s->epoch, position, 1, &token, false, 0};
    assert_int_equal(w->toy.attention->ops->step_begin(w->toy.attention, &rows, 1, NULL), HD_INVALID);
}

static void look_at_one(world *w) {
    if (w->open_count == 0) return;
    uint32_t i = below(w, w->open_count);
    if (w->appended[i] > 0) toy_check_row(&w->toy, &w->open[i], below(w, (uint32_t)w->appended[i]));
}

static void run_world(uint64_t seed, int operations, uint32_t blocks) {
    world w = {.seed = seed};
    w.texts = calloc(TEXTS_MAX, sizeof(*w.texts));
    toy_init(&w.toy, &(toy_shape){1, 1, 2, 16, 16, HD_F32, {seed % 3 == 0 ? 300 : 0}, 0, false});
    w.toy.config.step_rows_max = 256;
    w.toy.config.sequences_max = 16;
    assert_int_equal(kernel_ops_choose(NULL, &w.toy.config.kernels, NULL), HD_OK);
    toy_open_blocks(&w.toy, 1 + (unsigned)(seed % 3), blocks);
    for (int i = 0; i < operations; i++) {
        uint32_t what = below(&w, 100);
        if (what < 14) open_one(&w);
        else if (what < 50) step(&w);
        else if (what < 60) close_one(&w);
        else if (what < 66) truncate_one(&w);
        else if (what < 72) fork_one(&w);
        else if (what < 76) contradict_one(&w);
        else if (what < 77 && below(&w, 4) == 0) w.toy.attention->ops->cache_reset(w.toy.attention);
        else look_at_one(&w);
        check_accounts(&w);
    }
    uint64_t evicted = stats_of(&w).evicted_blocks;
    /* The run has been where it was meant to go. */
    assert_true(evicted > 20 && w.cached_total > 1000 && w.full_count > 5);
    while (w.open_count > 0) close_one(&w);
    attention_stats stats = stats_of(&w);
    assert_int_equal(stats.blocks_sequences + stats.blocks_reserved, 0);
    w.toy.attention->ops->cache_reset(w.toy.attention);
    assert_int_equal(stats_of(&w).blocks_cached, 0);
    free(w.texts);
    toy_fini(&w.toy);
}

static void random_work_sees_what_the_model_says(void **state) {
    const char *only = getenv("HADAL_SEED");
    for (uint64_t seed = only != NULL ? strtoull(only, NULL, 10) : 1, end = only != NULL ? seed : 8; seed <= end;
         seed++) {
        print_message("seed %llu\n", (unsigned long long)seed);
        run_world(seed, 3000, 14 + 8 * (uint32_t)(seed % 4));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_work_sees_what_the_model_says)};
    return cmocka_run_group_tests_name("engine_property", tests, NULL, NULL);
}
