/* block_copy_test.c - whatever is lost, withdrawn or late, every unit of every block comes once before its block
 * counts; and the window that a copy keeps to. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "attention-node/block_copy.h"
#include "attention-node/copy_window.h"

#define BLOCKS 24u
#define UNITS 7u
#define WIRE 64u

static uint64_t draw(uint64_t *seed, uint64_t below) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (*seed >> 33) % below;
}

/* The model: which unit of which block has come since the block was last begun. Obviously right: a block is whole when
 * all of its units have. */
typedef struct {
    bool has[BLOCKS][UNITS];
    uint64_t whole;
} model;

static void model_take(model *m, const block_piece *piece) {
    for (uint32_t i = 0; i < piece->unit_count; i++) {
        assert_true(piece->first_unit + i < UNITS);
        assert_false(m->has[piece->block][piece->first_unit + i]);
        m->has[piece->block][piece->first_unit + i] = true;
    }
    while (m->whole < BLOCKS) {
        for (uint32_t unit = 0; unit < UNITS; unit++) {
            if (!m->has[m->whole][unit]) return;
        }
        m->whole++;
    }
}

static void model_forget(model *m, uint64_t from) {
    for (uint64_t block = from; block < BLOCKS; block++) memset(m->has[block], 0, sizeof(m->has[block]));
    if (m->whole > from) m->whole = from;
}

static void random_losses_lose_nothing_and_repeat_nothing(uint64_t seed) {
    block_copy copy;
    model m = {.whole = 0};
    block_piece wire[WIRE]; /* what is on its way, in order */
    uint32_t first = 0, last = 0;
    uint64_t start = draw(&seed, 3);
    block_copy_init(&copy, UNITS, 1 + (uint32_t)draw(&seed, UNITS + 2), start);
    for (uint64_t block = 0; block < start; block++) memset(m.has[block], 1, UNITS);
    m.whole = start;
    for (uint32_t turn = 0; m.whole < BLOCKS; turn++) {
        assert_true(turn < 100000);
        block_piece piece;
        switch (draw(&seed, 8)) {
        case 0:
            if (copy.end < BLOCKS) copy.end += draw(&seed, BLOCKS - copy.end + 1);
            break;
        case 1:
            if (copy.granted < BLOCKS) copy.granted++;
            break;
        case 2: /* the link is lost, or the last block was not full and is wanted again */
            if (draw(&seed, 4) != 0) break;
            uint64_t from = block_copy_whole(&copy);
            if (from > start && draw(&seed, 2) == 0) from--;
            if (draw(&seed, 2) == 0) first = last;
            block_copy_restart(&copy, from);
            model_forget(&m, from);
            break;
        case 3:
        case 4:
        case 5:
            if (last - first == WIRE || !block_copy_ask(&copy, &piece)) break;
            assert_true(piece.block < copy.end && piece.block < copy.granted && piece.block >= m.whole);
            wire[last++ % WIRE] = piece;
            break;
        default:
            if (first == last) break;
            piece = wire[first++ % WIRE];
            block_piece wrong = piece;
            wrong.first_unit++;
            if (piece.round == copy.round) {
                assert_int_equal(block_copy_come(&copy, &wrong), HD_CORRUPT);
                assert_int_equal(block_copy_come(&copy, &piece), HD_OK);
                model_take(&m, &piece);
                assert_int_equal(block_copy_come(&copy, &piece), HD_CORRUPT);
            } else {
                assert_int_equal(block_copy_come(&copy, &piece), HD_STALE);
            }
        }
        assert_int_equal(block_copy_whole(&copy), m.whole);
    }
}

static void random_schedules_copy_every_unit_once(void **state) {
    const char *given = getenv("HADAL_SEED");
    for (uint64_t seed = 1; seed <= 300; seed++) {
        uint64_t used = given != NULL ? strtoull(given, NULL, 10) : seed;
        if (given != NULL || seed % 100 == 0) print_message("HADAL_SEED=%llu\n", (unsigned long long)used);
        random_losses_lose_nothing_and_repeat_nothing(used);
    }
}

static void nothing_is_asked_for_that_has_no_memory_or_is_not_there(void **state) {
    block_copy copy;
    block_piece piece;
    block_copy_init(&copy, 4, 3, 2);
    assert_false(block_copy_ask(&copy, &piece));
    copy.end = 4;
    assert_false(block_copy_ask(&copy, &piece));
    copy.granted = 3;
    assert_true(block_copy_ask(&copy, &piece) && piece.block == 2 && piece.unit_count == 3);
    assert_true(block_copy_ask(&copy, &piece) && piece.first_unit == 3 && piece.unit_count == 1);
    assert_false(block_copy_ask(&copy, &piece));
}

/* A copy over a link with a round trip of 100 us, so many bytes a microsecond, and a queue for all that is asked for too
 * early. Every 50 ms whoever reads comes late. */
static uint64_t settle(copy_window *w, uint64_t bytes_per_us, uint64_t late_ns) {
    enum { PIECE = 1000, RING = 1 << 17 };
    static uint64_t asked_ns[RING];
    uint64_t first = 0, last = 0, now = 0, free_ns = 0, late_at = 50000000;
    for (uint32_t i = 0; i < 200000; i++) {
        while (last - first < RING && copy_window_has_room(w, PIECE)) {
            copy_window_asked(w, PIECE);
            asked_ns[last++ % RING] = now;
        }
        uint64_t asked = asked_ns[first++ % RING], there = asked + 100000;
        if (there < free_ns + PIECE * 1000 / bytes_per_us) there = free_ns + PIECE * 1000 / bytes_per_us;
        free_ns = there;
        if (there > now) now = there;
        if (now >= late_at) {
            now += late_ns;
            late_at = now + 50000000;
        }
        copy_window_came(w, PIECE, now - asked, now);
    }
    return w->bytes;
}

static void a_window_keeps_the_queue_short_and_the_link_full(void **state) {
    copy_window w;
    copy_window_init(&w, 1000, 100000000, 2000000);
    assert_in_range(settle(&w, 100, 0), 150000, 450000); /* 100 MB/s: 2 ms of queue are 200 KB */
    copy_window_init(&w, 1000, 100000000, 2000000);
    assert_in_range(settle(&w, 100, 10000000), 150000, 450000);
    copy_window_init(&w, 1000, 5000, 2000000);
    assert_in_range(settle(&w, 100, 0), 1000, 5000);
    w.bytes_out = 1;
    assert_false(copy_window_has_room(&w, 1000000));
    w.bytes_out = 0;
    assert_true(copy_window_has_room(&w, 1000000)); /* one piece always may */
    copy_window_asked(&w, 4500);
    assert_false(copy_window_has_room(&w, 1000000));
    copy_window_gave_up(&w, 4500);
    assert_int_equal(w.bytes_out, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_schedules_copy_every_unit_once),
        cmocka_unit_test(nothing_is_asked_for_that_has_no_memory_or_is_not_there),
        cmocka_unit_test(a_window_keeps_the_queue_short_and_the_link_full),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
