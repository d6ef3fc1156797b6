/* handover_test.c - the owner's side of a handover against a receiver that obeys, fails or dawdles by seed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "attention-node/handover.h"

static const handover_limits limits = {
    .poll_ns = 10, .switch_ns = 100, .pause_ns = 50, .stall_ns = 1000, .lag_tokens = 256, .lag_ns = 20};

static uint64_t draw(uint64_t *seed, uint64_t below) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (*seed >> 33) % below;
}

/* A receiver is what it has; whoever adopts before that is everything has lost tokens. */
static void run_one(uint64_t seed) {
    handover h;
    uint64_t now = 5, length = draw(&seed, 3000), there = 0, speed = draw(&seed, 200), last_switch = 0;
    bool is_cancelled = false;
    handover_begin(&h, &limits, now);
    for (uint32_t turn = 0; h.state != HANDOVER_IDLE; turn++) {
        assert_true(turn < 20000);
        switch (handover_next(&h, length, now)) {
        case HANDOVER_WAIT: break;
        case HANDOVER_ASK:
            there += draw(&seed, speed + 1);
            if (there > length) there = length;
            if (draw(&seed, 200) == 0) handover_answered(&h, HD_PEER_LOST, 0, now);
            else handover_answered(&h, HD_PENDING, there - there % 128, now);
            break;
        case HANDOVER_SWITCH:
            assert_true(last_switch == 0 || now >= last_switch + limits.pause_ns);
            if (draw(&seed, 3) != 0) {
                there = length;
                handover_answered(&h, HD_OK, length, now);
            } else {
                now += limits.switch_ns;
                last_switch = now;
                handover_answered(&h, HD_PENDING, there - there % 128, now);
            }
            break;
        case HANDOVER_ADOPT:
            assert_int_equal(there, length);
            assert_false(is_cancelled);
            handover_adopted(&h);
            break;
        case HANDOVER_END:
            assert_int_not_equal(h.why, HD_OK);
            handover_ended(&h);
            break;
        }
        if (h.state == HANDOVER_COPYING && draw(&seed, 300) == 0) {
            handover_cancel(&h, HD_CANCELLED);
            is_cancelled = true;
        }
        now += 1 + draw(&seed, 15);
        if (h.state == HANDOVER_COPYING && draw(&seed, 4) == 0) length++;
    }
}

static void nothing_is_adopted_before_every_token_is_there(void **state) {
    for (uint64_t seed = 1; seed <= 2000; seed++) run_one(seed);
}

static void a_receiver_without_progress_is_given_up(void **state) {
    handover h;
    handover_begin(&h, &limits, 0);
    for (uint64_t now = 0; now <= 1020; now += 10) {
        if (handover_next(&h, 100000, now) == HANDOVER_ASK) handover_answered(&h, HD_PENDING, 128, now);
    }
    assert_int_equal(handover_next(&h, 100000, 1030), HANDOVER_END);
    assert_int_equal(h.why, HD_TIMED_OUT);
}

/* Of a prompt that is being prefilled, a chunk is always lacking; a copy that takes no time for it is near all the
 * same. */
static void a_quick_copy_catches_up_with_a_prefill(void **state) {
    handover quick, slow;
    handover_begin(&quick, &limits, 0);
    handover_begin(&slow, &limits, 0);
    bool has_switched = false;
    for (uint64_t now = 0; now < 500 && !has_switched; now += 10) {
        uint64_t length = 1000 * (now + 10);
        has_switched = handover_next(&quick, length, now) == HANDOVER_SWITCH;
        if (!has_switched) handover_answered(&quick, HD_PENDING, length - 5000, now);
        assert_int_equal(handover_next(&slow, length, now), HANDOVER_ASK);
        handover_answered(&slow, HD_PENDING, length / 8, now);
    }
    assert_true(has_switched);
}

static void what_is_adopted_cannot_be_cancelled_any_more(void **state) {
    handover h;
    handover_begin(&h, &limits, 0);
    assert_int_equal(handover_next(&h, 100, 0), HANDOVER_ASK);
    handover_answered(&h, HD_PENDING, 0, 0);
    assert_int_equal(handover_next(&h, 100, 5), HANDOVER_WAIT);
    assert_int_equal(handover_next(&h, 100, 10), HANDOVER_SWITCH);
    handover_answered(&h, HD_OK, 100, 12);
    handover_cancel(&h, HD_CANCELLED);
    assert_int_equal(handover_next(&h, 100, 13), HANDOVER_ADOPT);
    handover_adopted(&h);
    assert_int_equal(handover_next(&h, 100, 14), HANDOVER_WAIT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_adopted_before_every_token_is_there),
        cmocka_unit_test(a_receiver_without_progress_is_given_up),
        cmocka_unit_test(a_quick_copy_catches_up_with_a_prefill),
        cmocka_unit_test(what_is_adopted_cannot_be_cancelled_any_more),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
