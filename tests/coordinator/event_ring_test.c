#include "coordinator/event_ring.h"

#include "tests/coordinator/cmocka_all.h"

static void records_come_out_in_the_order_they_went_in(void **state) {
    event_ring ring;
    assert_int_equal(event_ring_open(&ring, 5, 2, 2), HD_OK);
    event_record out[8];
    worker_logprob logprobs[16];
    uint32_t next = 0, expected = 0;
    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < 3; i++) {
            worker_logprob pair[2] = {{.token_id = next, .logprob = 1}, {.token_id = next + 1, .logprob = 2}};
            event_record record = {.kind = WORKER_TOKEN, .token_id = next};
            assert_int_equal(event_ring_push(&ring, &record, next % 2 == 0 ? pair : NULL), HD_OK);
            next++;
        }
        uint32_t popped = event_ring_pop(&ring, out, logprobs, round % 2 == 0 ? 2 : 8);
        for (uint32_t i = 0; i < popped; i++) {
            assert_int_equal(out[i].token_id, expected);
            assert_int_equal(out[i].has_logprobs, expected % 2 == 0);
            if (out[i].has_logprobs) assert_int_equal(logprobs[2 * i + 1].token_id, expected + 1);
            expected++;
        }
        assert_true(round % 2 == 0 ? popped == 2 : ring.count == 0);
    }
    event_ring_close(&ring);
}

static void tokens_are_refused_where_the_ends_still_fit(void **state) {
    event_ring ring;
    assert_int_equal(event_ring_open(&ring, 3, 2, 0), HD_OK);
    event_record token = {.kind = WORKER_TOKEN}, end = {.kind = WORKER_FINISHED};
    /* An end that comes first takes nothing of the tokens' room. */
    assert_int_equal(event_ring_push(&ring, &end, NULL), HD_OK);
    for (int i = 0; i < 3; i++) assert_int_equal(event_ring_push(&ring, &token, NULL), HD_OK);
    assert_int_equal(event_ring_push(&ring, &token, NULL), HD_FULL);
    assert_int_equal(event_ring_push(&ring, &end, NULL), HD_OK);
    assert_int_equal(event_ring_push(&ring, &end, NULL), HD_FULL);
    event_ring_close(&ring);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(records_come_out_in_the_order_they_went_in),
        cmocka_unit_test(tokens_are_refused_where_the_ends_still_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
