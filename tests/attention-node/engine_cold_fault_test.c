/* engine_cold_fault_test.c - a disk that is full, slow, fails or lies: what is hit fails alone, and no output is wrong.
 * */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fault.h"
#include "tests/attention-node/cold_rig.h"

/* One sequence that is mostly on disk, and one that is in memory. */
typedef struct {
    cold_rig rig;
    toy_sequence large, small;
} pair;

enum { LARGE = 9000, SMALL = 100, MORE = 600 };

static void pair_init(pair *p) {
    cold_rig_init(&p->rig, 0, 14, 160);
    p->large.selection = NULL;
}

/* Its sequences search, and what the large one finds is mostly on disk, and read token by token. */
static void pair_init_searching(pair *p) {
    static const toy_shape shape = {4, 4, 1, 16, 16, HD_F32, {0}, 0, false};
    cold_rig_init_shape(&p->rig, &shape, 14, 160);
    p->rig.toy.config.warm_bytes = 22u << 20;
    p->rig.toy.config.index_bytes = 32u << 20;
    p->rig.toy.config.index_builders = 1;
    p->large.selection = "retrieval,index=clusters,tokens=300";
}

static void pair_start(pair *p, uint32_t patience_ms) {
    const char *selection = p->large.selection;
    uint64_t cached;
    if (patience_ms > 0) p->rig.toy.config.cold_patience_ms = patience_ms;
    cold_rig_open(&p->rig, 2);
    toy_sequence_init(&p->large, 1, 1, LARGE + MORE);
    toy_sequence_push_text(&p->large, 3, LARGE);
    p->large.selection = selection;
    toy_sequence_init(&p->small, 2, 2, SMALL + MORE);
    toy_sequence_push_text(&p->small, 4, SMALL);
    assert_int_equal(toy_sequence_open(&p->rig.toy, &p->large, 0, &cached, NULL), HD_OK);
    toy_run(&p->rig.toy, &p->large, 0, LARGE, 256, NULL);
    assert_int_equal(toy_sequence_open(&p->rig.toy, &p->small, 0, &cached, NULL), HD_OK);
    toy_run(&p->rig.toy, &p->small, 0, SMALL, 256, NULL);
    cold_rig_settle(&p->rig);
}

static void pair_open(pair *p, uint32_t patience_ms) {
    pair_init(p);
    pair_start(p, patience_ms);
}

static void pair_close(pair *p) {
    toy_sequence_fini(&p->large);
    toy_sequence_fini(&p->small);
    cold_rig_fini(&p->rig);
}

/* A step of both, with a token that either has not yet. */
static hd_status step_of_both(pair *p) {
    uint64_t length;
    toy_rows rows[2] = {{&p->large, p->large.length, 1}, {&p->small, p->small.length, 1}};
    const attention *a = p->rig.toy.attention;
    if (a->ops->sequence_length(a, 1, &length) == HD_OK && length == p->large.length)
        toy_sequence_push(&p->large, (uint32_t)p->large.length);
    else rows[0].first--;
    toy_sequence_push(&p->small, (uint32_t)p->small.length);
    return toy_step(&p->rig.toy, rows, 2, NULL, NULL);
}

static uint64_t length_of(const pair *p, uint64_t name, hd_status expected) {
    const attention *a = p->rig.toy.attention;
    uint64_t length = UINT64_MAX;
    assert_int_equal(a->ops->sequence_length(a, name, &length), expected);
    return length;
}

static void flipped_bits_end_their_sequence_and_no_other(void **state) {
    pair p;
    pair_open(&p, 0);
    cold_rig_flip(&p.rig, 4096);
    assert_int_equal(step_of_both(&p), HD_CORRUPT);
    length_of(&p, 1, HD_CORRUPT);
    assert_int_equal(length_of(&p, 2, HD_OK), SMALL + 1);
    assert_true(cold_rig_stats(&p.rig).cold_verify_failures > 0);
    toy_check_row(&p.rig.toy, &p.small, SMALL);

    /* What is bad is found by nobody, however much of it was kept. */
    attention *a = p.rig.toy.attention;
    assert_int_equal(a->ops->sequence_close(a, 1, 1, true, false), HD_OK);
    toy_sequence again;
    uint64_t cached;
    toy_sequence_init(&again, 3, 1, LARGE + 1);
    for (uint64_t i = 0; i < LARGE; i++) toy_sequence_push(&again, p.large.tokens[i]);
    hd_status status = HD_CORRUPT;
    for (int tries = 0; status != HD_OK; tries++) { /* each finds further bad pages of what is left, or none */
        assert_true(tries < 200);
        assert_int_equal(toy_sequence_open(&p.rig.toy, &again, UINT64_MAX, &cached, NULL), HD_OK);
        status = HD_OK;
        for (uint64_t rows; cached < LARGE && status == HD_OK; cached += rows) {
            rows = LARGE - cached < 256 ? LARGE - cached : 256;
            status = toy_step(&p.rig.toy, &(toy_rows){&again, cached, rows}, 1, NULL, NULL);
        }
        if (status == HD_OK) break;
        assert_int_equal(status, HD_CORRUPT);
        assert_int_equal(a->ops->sequence_close(a, 3, 1, true, false), HD_OK);
    }
    toy_check_row(&p.rig.toy, &again, LARGE - 1);
    toy_sequence_fini(&again);
    pair_close(&p);
}

static void a_read_that_fails_may_be_tried_again(void **state) {
    for (int is_uring = 0; is_uring < 2; is_uring++) {
        pair p;
        if (!is_uring) fault_hold(FAULT_URING);
        pair_open(&p, 0);
        fault_disarm();
        fault_arm(FAULT_READ, 5);
        hd_status status = step_of_both(&p);
        fault_disarm();
        assert_int_equal(status, HD_IO);
        length_of(&p, 1, HD_IO);
        assert_int_equal(length_of(&p, 2, HD_OK), SMALL + 1);
        assert_int_equal(step_of_both(&p), HD_OK);
        assert_int_equal(length_of(&p, 1, HD_OK), p.large.length);
        assert_int_equal(cold_rig_stats(&p.rig).cold_read_errors, 1);
        toy_check_row(&p.rig.toy, &p.large, LARGE);
        pair_close(&p);
    }
}

static void a_slow_read_holds_up_its_own_sequence(void **state) {
    pair p;
    pair_open(&p, 1000);
    fault_arm(FAULT_READ_SLOW, 5);
    uint64_t start = hd_now_ns();
    assert_int_equal(step_of_both(&p), HD_TIMED_OUT);
    fault_disarm();
    length_of(&p, 1, HD_TIMED_OUT);
    assert_int_equal(length_of(&p, 2, HD_OK), SMALL + 1);
    uint32_t steps = 0;
    for (; step_of_both(&p) == HD_TIMED_OUT; steps++) nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    /* The other one's tokens came while the read was out. */
    assert_true(hd_now_ns() - start >= UINT64_C(4900000000));
    assert_true(steps >= 3);
    assert_int_equal(length_of(&p, 2, HD_OK), p.small.length);
    assert_int_equal(length_of(&p, 1, HD_OK), p.large.length);
    toy_check_row(&p.rig.toy, &p.small, SMALL + 1);
    pair_close(&p);
}

/* Builders read the disk as well; what is asked here is what steps meet. */
static void await_builders(const pair *p) {
    while (cold_rig_stats(&p->rig).index_lag_tokens > 0) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* Of the tokens that a search found, which lie all over the file: a read that fails or is late is tried again, and
 * flipped bits end their sequence alone. */
static void tokens_read_alone_fail_as_pages_do(void **state) {
    pair p;
    pair_init_searching(&p);
    pair_start(&p, 3000);
    assert_int_equal(step_of_both(&p), HD_OK);
    assert_true(cold_rig_stats(&p.rig).row_misses > 100);
    await_builders(&p);
    fault_arm(FAULT_READ, 5);
    assert_int_equal(step_of_both(&p), HD_IO);
    fault_disarm();
    length_of(&p, 1, HD_IO);
    assert_int_equal(length_of(&p, 2, HD_OK), SMALL + 2);
    assert_int_equal(cold_rig_stats(&p.rig).cold_read_errors, 1);
    assert_int_equal(step_of_both(&p), HD_OK);
    length_of(&p, 1, HD_OK);

    await_builders(&p);
    fault_arm(FAULT_READ_SLOW, 5);
    assert_int_equal(step_of_both(&p), HD_TIMED_OUT);
    fault_disarm();
    length_of(&p, 1, HD_TIMED_OUT);
    while (step_of_both(&p) == HD_TIMED_OUT) nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    assert_int_equal(length_of(&p, 1, HD_OK), p.large.length);
    assert_int_equal(length_of(&p, 2, HD_OK), p.small.length);

    await_builders(&p);
    uint64_t small = p.small.length;
    cold_rig_flip(&p.rig, 512);
    assert_int_equal(step_of_both(&p), HD_CORRUPT);
    length_of(&p, 1, HD_CORRUPT);
    assert_int_equal(length_of(&p, 2, HD_OK), small + 1);
    assert_true(cold_rig_stats(&p.rig).cold_verify_failures > 0);
    pair_close(&p);
}

/* While every write fails, what fits in memory goes on, and nothing is promised that only the disk could hold. */
static void a_full_disk_loses_nothing_that_memory_holds(void **state) {
    cold_rig rig;
    uint64_t cached;
    hd_error error = {.text = ""};
    cold_rig_init(&rig, 0, 30, 160);
    cold_rig_open(&rig, 1);
    fault_hold(FAULT_WRITE);
    toy_sequence running, other, grown;
    toy_sequence_init(&running, 1, 1, 20 * 128);
    toy_sequence_push_text(&running, 3, 20 * 128);
    assert_int_equal(toy_sequence_open(&rig.toy, &running, 0, &cached, NULL), HD_OK);
    toy_run(&rig.toy, &running, 0, 20 * 128, 128, NULL);
    cold_rig_settle(&rig);
    assert_true(cold_rig_stats(&rig).cold_write_errors > 0);
    toy_check_row(&rig.toy, &running, 20 * 128 - 1);

    toy_sequence_init(&other, 2, 2, 60 * 128);
    toy_sequence_push_text(&other, 4, 10);
    assert_int_equal(toy_sequence_open(&rig.toy, &other, 0, &cached, &error), HD_FULL);
    assert_non_null(strstr(error.text, "the cold tier takes no writes"));

    /* It is tried again after a second, and then all is as it was. */
    fault_disarm();
    nanosleep(&(struct timespec){.tv_sec = 1, .tv_nsec = 100000000}, NULL);
    assert_int_equal(toy_sequence_open(&rig.toy, &other, 0, &cached, &error), HD_OK);
    toy_sequence_push_text(&other, 5, 60 * 128 - 10);
    toy_run(&rig.toy, &other, 0, 60 * 128, 256, NULL);
    toy_check_row(&rig.toy, &other, 60 * 128 - 1);
    toy_check_row(&rig.toy, &running, 20 * 128 - 1);

    /* Admitted while the disk was well, and then more than memory holds: refused by name, and the step did nothing. */
    toy_sequence_init(&grown, 3, 3, 40 * 128);
    toy_sequence_push_text(&grown, 6, 40 * 128);
    assert_int_equal(toy_sequence_open(&rig.toy, &grown, 0, &cached, &error), HD_OK);
    cold_rig_settle(&rig);
    fault_hold(FAULT_WRITE);
    uint64_t done = 0;
    hd_status status = HD_OK;
    for (; done < 40 * 128 && status == HD_OK; done += 256)
        status = toy_step(&rig.toy, &(toy_rows){&grown, done, 256}, 1, NULL, &error);
    fault_disarm();
    assert_int_equal(status, HD_FULL);
    assert_non_null(strstr(error.text, rig.directory));
    toy_check_row(&rig.toy, &running, 20 * 128 - 1);
    toy_sequence_fini(&running);
    toy_sequence_fini(&other);
    toy_sequence_fini(&grown);
    cold_rig_fini(&rig);
}

static void a_full_cold_tier_refuses_by_name(void **state) {
    cold_rig rig;
    uint64_t cached;
    hd_error error = {.text = ""};
    cold_rig_init(&rig, 0, 14, 32);
    cold_rig_open(&rig, 1);
    uint64_t total = cold_rig_stats(&rig).blocks_total;
    toy_sequence first, second, third;
    toy_sequence_init(&first, 1, 1, (total - 6) * 128);
    toy_sequence_push_text(&first, 3, (total - 6) * 128);
    assert_int_equal(toy_sequence_open(&rig.toy, &first, 0, &cached, NULL), HD_OK);
    toy_run(&rig.toy, &first, 0, first.length, 256, NULL);
    toy_sequence_init(&second, 2, 1, 7 * 128);
    toy_sequence_push_text(&second, 4, 7 * 128);
    assert_int_equal(toy_sequence_open(&rig.toy, &second, 0, &cached, &error), HD_FULL);
    assert_non_null(strstr(error.text, "768 of ")); /* the six blocks that are left */
    toy_sequence_init(&third, 3, 1, 6 * 128);
    toy_sequence_push_text(&third, 4, 6 * 128);
    assert_int_equal(toy_sequence_open(&rig.toy, &third, 0, &cached, NULL), HD_OK);
    toy_run(&rig.toy, &third, 0, third.length, 256, NULL);
    /* Every block there is, on disk or in memory, is in use. */
    assert_int_equal(cold_rig_stats(&rig).blocks_sequences, total);
    toy_check_row(&rig.toy, &first, first.length - 1);
    toy_check_row(&rig.toy, &third, third.length - 1);
    toy_sequence_fini(&first);
    toy_sequence_fini(&second);
    toy_sequence_fini(&third);
    cold_rig_fini(&rig);
}

static void a_directory_that_goes_away_ends_nothing(void **state) {
    pair p;
    pair_open(&p, 0);
    char command[128];
    snprintf(command, sizeof(command), "rm -r %s", p.rig.directory);
    assert_int_equal(system(command), 0);
    for (int i = 0; i < 300; i++) assert_int_equal(step_of_both(&p), HD_OK);
    toy_check_row(&p.rig.toy, &p.large, LARGE + 200);
    cold_rig_close(&p.rig);
    cold_rig_open(&p.rig, 1); /* made anew, with nothing in it */
    assert_int_equal(cold_rig_stats(&p.rig).blocks_cached, 0);
    pair_close(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flipped_bits_end_their_sequence_and_no_other),
        cmocka_unit_test(a_read_that_fails_may_be_tried_again),
        cmocka_unit_test(a_slow_read_holds_up_its_own_sequence),
        cmocka_unit_test(tokens_read_alone_fail_as_pages_do),
        cmocka_unit_test(a_full_disk_loses_nothing_that_memory_holds),
        cmocka_unit_test(a_full_cold_tier_refuses_by_name),
        cmocka_unit_test(a_directory_that_goes_away_ends_nothing),
    };
    return cmocka_run_group_tests_name("engine_cold_fault", tests, NULL, NULL);
}
