/* process_view_test.c - a server that is one process, seen by its operator. */
#include <stdio.h>
#include <string.h>

#include "tests/coordinator/cmocka_all.h"
#include "tests/coordinator/served.h"

static void cancel(const served *s, const char *sequence, unsigned status, const char *part) {
    char body[64];
    snprintf(body, sizeof(body), "{\"sequence\": \"%s\"}", sequence);
    raw_answer answer = served_post(s, "/operator/cancel", body);
    assert_int_equal(answer.status, status);
    assert_non_null(strstr(answer.body, part));
    raw_answer_fini(&answer);
}

static void what_is_being_answered_is_listed_and_can_be_cancelled(void **state) {
    served s;
    served_init(&s, "abc");
    served_open(&s);
    raw_answer answer = served_get(&s, "/operator/sequences");
    assert_int_equal(answer.status, 200);
    assert_string_equal(answer.body, "[]");
    raw_answer_fini(&answer);

    fake_worker_hold(s.worker, true);
    int asked = raw_connect(s.address);
    raw_post(asked, "/v1/completions", "", "{\"prompt\": \"four\", \"n\": 2}"); /* and a token that begins it */
    served_wait_running(&s, 1);
    answer = served_get(&s, "/operator/sequences");
    const char *id = strstr(answer.body, "[{\"id\":\"");
    assert_non_null(id);
    char sequence[17];
    snprintf(sequence, sizeof(sequence), "%s", id + strlen("[{\"id\":\""));
    assert_non_null(strstr(answer.body,
                           "\"worker\":\"serve\",\"state\":\"waiting\",\"prompt_tokens\":5,\"prompt_done\":0,"
                           "\"generated_tokens\":0,\"choices\":2,"));
    raw_answer_fini(&answer);

    cancel(&s, "ffffffff", 404, "there is no sequence 'ffffffff' here");
    cancel(&s, sequence, 200, "\"ok\"");
    answer = raw_receive(asked);
    assert_int_equal(answer.status, 503);
    assert_non_null(strstr(answer.body, "the request was cancelled by the server"));
    raw_answer_fini(&answer);
    fake_worker_hold(s.worker, false);
    served_wait_running(&s, 0);
    assert_int_equal(fake_worker_cancelled(s.worker), 1);
    cancel(&s, "no-number", 404, "there is no sequence 'no-number' here");
    served_close(&s);
}

static void one_process_is_its_only_node_and_cannot_be_drained(void **state) {
    served s;
    served_init(&s, "abc");
    served_open(&s);
    raw_answer answer = served_get(&s, "/operator/nodes");
    assert_int_equal(answer.status, 200);
    assert_non_null(strstr(answer.body, "[{\"id\":\"serve\",\"role\":\"serve\",\"state\":\"ready\",\"address\":null,"));
    assert_non_null(strstr(answer.body, "\"sequences\":0,\"safe_to_delete\":false}]"));
    raw_answer_fini(&answer);
    answer = served_get(&s, "/operator/steps");
    assert_int_equal(answer.status, 200);
    assert_non_null(strstr(answer.body, "[{\"node\":\"serve\",\"steps\":"));
    raw_answer_fini(&answer);
    answer = served_post(&s, "/operator/drain", "{\"node\": \"serve\"}");
    assert_int_equal(answer.status, 404);
    assert_non_null(strstr(answer.body, "no_cluster"));
    raw_answer_fini(&answer);
    served_close(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_being_answered_is_listed_and_can_be_cancelled),
        cmocka_unit_test(one_process_is_its_only_node_and_cannot_be_drained),
    };
    return cmocka_run_group_tests_name("process_view", tests, NULL, NULL);
}
