/* refusals_test.c - every way in which a request is turned away, as a client sees it: status, headers and message. */
#include "tests/coordinator/served.h"

#include "tests/coordinator/cmocka_all.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void assert_error(raw_answer *answer, unsigned status, const char *code, const char *param,
                         const char *message) {
    json_error_t failure;
    json_t *body = json_loads(answer->body, 0, &failure);
    json_t *error = json_object_get(body, "error");
    if (answer->status != status || error == NULL) print_error("%s%s\n", answer->headers, answer->body);
    assert_int_equal(answer->status, status);
    assert_non_null(error);
    assert_string_equal(json_string_value(json_object_get(error, "message")), message);
    assert_non_null(json_string_value(json_object_get(error, "type")));
    json_t *found_code = json_object_get(error, "code"), *found_param = json_object_get(error, "param");
    assert_true(code == NULL ? json_is_null(found_code)
                             : json_is_string(found_code) && strcmp(json_string_value(found_code), code) == 0);
    assert_true(param == NULL ? json_is_null(found_param)
                              : json_is_string(found_param) && strcmp(json_string_value(found_param), param) == 0);
    json_decref(body);
}

static void assert_refused(const served *s, const char *path, const char *body, unsigned status, const char *code,
                           const char *param, const char *message) {
    raw_answer answer = served_post(s, path, body);
    assert_error(&answer, status, code, param, message);
    raw_answer_fini(&answer);
}

static int open_plain(void **state) {
    served *s = calloc(1, sizeof(*s));
    served_init(s, "abc");
    s->script.context_max = 100;
    s->config.body_bytes_max = 64 << 10;
    served_open(s);
    *state = s;
    return 0;
}

static int close_plain(void **state) {
    served_close(*state);
    free(*state);
    return 0;
}

static void a_path_that_is_not_there_is_not_found(void **state) {
    raw_answer answer = served_get(*state, "/v1/engines");
    assert_error(&answer, 404, "unknown_url", NULL, "there is nothing at /v1/engines");
    raw_answer_fini(&answer);
    assert_refused(*state, "/v1/chat", "{}", 404, "unknown_url", NULL, "there is nothing at /v1/chat");
    answer = served_get(*state, "/v1/models/");
    assert_int_equal(answer.status, 404);
    raw_answer_fini(&answer);
}

static void a_wrong_method_is_told_the_right_one(void **state) {
    char allow[64];
    raw_answer answer = served_get(*state, "/v1/chat/completions");
    assert_string_equal(raw_header(&answer, "Allow", allow, sizeof(allow)), "POST");
    assert_error(&answer, 405, "method_not_allowed", NULL, "/v1/chat/completions takes POST, not GET");
    raw_answer_fini(&answer);
    answer = served_post(*state, "/v1/models", "{}");
    assert_string_equal(raw_header(&answer, "Allow", allow, sizeof(allow)), "GET, HEAD");
    assert_error(&answer, 405, "method_not_allowed", NULL, "/v1/models takes GET, not POST");
    raw_answer_fini(&answer);
}

static void a_body_must_be_sent_as_json(void **state) {
    const served *s = *state;
    int fd = raw_connect(s->address);
    raw_send_text(fd, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: "
                      "15\r\n\r\n{\"prompt\": \"x\"}");
    raw_answer answer = raw_receive(fd);
    assert_error(&answer, 415, "unsupported_media_type", "Content-Type",
                 "the header 'Content-Type' must be application/json");
    raw_answer_fini(&answer);
    /* The refused body was read: the connection goes on. */
    raw_send_text(fd, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json; "
                      "charset=utf-8\r\nContent-Length: 15\r\n\r\n"
                      "{\"prompt\": \"x\"}");
    answer = raw_receive(fd);
    assert_int_equal(answer.status, 200);
    raw_answer_fini(&answer);
    raw_hang_up(fd);
}

static void a_body_that_is_no_json_is_refused_with_its_place(void **state) {
    assert_refused(*state, "/v1/completions", "", 400, "missing_body", NULL,
                   "the request has no body: send a JSON object");
    assert_refused(*state, "/v1/completions", "{\"prompt\": x}", 400, "invalid_json", NULL,
                   "the body is not JSON: line 1, column 12 (byte 12)");
    assert_refused(*state, "/v1/chat/completions", "{\"messages\": []}", 400, "missing_field", "messages",
                   "'messages' must have at least one message");
    assert_refused(*state, "/tokenize", "{}", 400, "missing_field", "prompt", "'prompt' or 'messages' is required");
    assert_refused(*state, "/detokenize", "{\"tokens\": [999]}", 400, "out_of_range", "tokens[0]",
                   "'tokens[0]' must be a token id from 0 to 260, not 999");
    assert_refused(*state, "/v1/completions", "{\"prompt\": \"x\", \"model\": \"other\"}", 404, "model_not_found",
                   "model", "there is no model 'other' here; this server serves 'script'");
}

static void what_does_not_fit_the_context_is_refused_with_the_numbers(void **state) {
    char body[512];
    assert_refused(*state, "/v1/completions", "{\"prompt\": \"abc\", \"max_tokens\": 97}", 400,
                   "context_length_exceeded", "prompt",
                   "'prompt' has 4 tokens and 'max_tokens' is 97, together 101; this server holds at most 100 tokens "
                   "of a request");
    snprintf(body, sizeof(body), "{\"prompt\": [\"abc\", \"%0100d\"]}", 0);
    assert_refused(
        *state, "/v1/completions", body, 400, "context_length_exceeded", "prompt[1]",
        "'prompt[1]' has 101 tokens; this server holds at most 100 tokens of a request, the answer included");
    snprintf(body, sizeof(body), "{\"messages\": [{\"role\": \"user\", \"content\": \"%0100d\"}], \"stream\": true}",
             0);
    assert_refused(*state, "/v1/chat/completions", body, 400, "context_length_exceeded", "messages",
                   "'messages' has 104 tokens; this server holds at most 100 tokens of a request, the answer included");
    assert_refused(*state, "/v1/completions", "{\"prompt\": \"abc\", \"min_tokens\": 97}", 400, "out_of_range",
                   "min_tokens", "'min_tokens' is 97, and at most 96 tokens are generated here");
}

static char *large_body(size_t bytes) {
    char *body = malloc(bytes + 1);
    memset(body, ' ', bytes);
    memcpy(body, "{\"prompt\": \"x\"}", 15);
    body[bytes] = '\0';
    return body;
}

static const char too_large[] = "the body is larger than 65536 bytes, the most this server takes";

static void a_body_at_the_limit_is_taken_and_one_beyond_is_not(void **state) {
    char *body = large_body(65536);
    raw_answer answer = served_post(*state, "/v1/completions", body);
    assert_int_equal(answer.status, 200);
    raw_answer_fini(&answer);
    free(body);
    body = large_body(65537);
    assert_refused(*state, "/v1/completions", body, 413, "body_too_large", NULL, too_large);
    free(body);
}

static void a_body_without_a_length_is_bounded_as_well(void **state) {
    const served *s = *state;
    int fd = raw_connect(s->address);
    raw_send_text(fd, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: "
                      "application/json\r\nTransfer-Encoding: chunked\r\n\r\n");
    char *body = large_body(50000);
    for (int i = 0; i < 2; i++) {
        raw_send_text(fd, "c350\r\n");
        raw_send(fd, body, 50000);
        raw_send_text(fd, "\r\n");
    }
    free(body);
    raw_send_text(fd, "0\r\n\r\n");
    raw_answer answer = raw_receive(fd);
    assert_error(&answer, 413, "body_too_large", NULL, too_large);
    raw_answer_fini(&answer);
    raw_hang_up(fd);
    /* One that never ends is cut off. */
    fd = raw_connect(s->address);
    raw_send_text(fd, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: "
                      "application/json\r\nTransfer-Encoding: chunked\r\n\r\n");
    body = large_body(50000);
    for (int i = 0; i < 60; i++) {
        raw_send_text(fd, "c350\r\n");
        raw_send(fd, body, 50000);
        raw_send_text(fd, "\r\n");
    }
    free(body);
    answer = raw_receive(fd);
    assert_true(answer.is_cut);
    raw_answer_fini(&answer);
    raw_hang_up(fd);
}

static void a_client_that_asks_first_need_not_send_a_body_in_vain(void **state) {
    const served *s = *state;
    int fd = raw_connect(s->address);
    raw_send_text(
        fd, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n"
            "Expect: 100-continue\r\n\r\n");
    raw_answer answer = raw_receive(fd);
    assert_error(&answer, 413, "body_too_large", NULL, too_large);
    raw_answer_fini(&answer);
    raw_hang_up(fd);
    /* And a body that nobody would read to its end is not awaited either. */
    fd = raw_connect(s->address);
    raw_send_text(fd, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
                      "99999999999\r\n\r\n");
    answer = raw_receive(fd);
    assert_error(&answer, 413, "body_too_large", NULL, too_large);
    raw_answer_fini(&answer);
    raw_hang_up(fd);
}

static void bodies_share_a_bounded_memory(void **state) {
    served s;
    served_init(&s, "abc");
    s.config.body_bytes_max = 64 << 10;
    s.config.bodies_bytes_max = 100 << 10;
    served_open(&s);
    /* One body that is sent halfway holds its memory. */
    int held = raw_connect(s.address);
    raw_send_text(
        held,
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 65536\r\n\r\n");
    char *body = large_body(65535);
    raw_send(held, body, 65535);
    raw_answer answer;
    for (int i = 0; i < 200; i++) {
        answer = served_post(&s, "/v1/completions", body);
        if (answer.status == 429) break;
        raw_answer_fini(&answer); /* the halfway one had not arrived yet */
        usleep(10000);
    }
    char retry[16];
    assert_string_equal(raw_header(&answer, "Retry-After", retry, sizeof(retry)), "1");
    assert_error(&answer, 429, "queue_full", NULL,
                 "the bodies of other requests fill the memory that is set aside for them; try again later");
    raw_answer_fini(&answer);
    raw_send_text(held, " ");
    answer = raw_receive(held);
    assert_int_equal(answer.status, 200);
    raw_answer_fini(&answer);
    raw_hang_up(held);
    answer = served_post(&s, "/v1/completions", body);
    assert_int_equal(answer.status, 200);
    raw_answer_fini(&answer);
    free(body);
    served_close(&s);
}

static void a_full_queue_refuses_and_says_when_to_come_back(void **state) {
    served s;
    served_init(&s, "abc");
    s.script.requests_max = 1;
    served_open(&s);
    fake_worker_hold(s.worker, true);
    int waiting = raw_connect(s.address);
    raw_post(waiting, "/v1/completions", "", "{\"prompt\": \"x\"}");
    served_wait_running(&s, 1);
    const char *bodies[] = {"{\"prompt\": \"x\"}", "{\"prompt\": \"x\", \"stream\": true}",
                            "{\"prompt\": [\"x\", \"y\"]}"};
    for (int i = 0; i < 3; i++) {
        raw_answer answer = served_post(&s, "/v1/completions", bodies[i]);
        char retry[16];
        assert_true(atoi(raw_header(&answer, "Retry-After", retry, sizeof(retry))) >= 1);
        assert_error(&answer, 429, "queue_full", NULL, "the queue is full; try again later");
        raw_answer_fini(&answer);
    }
    fake_worker_hold(s.worker, false);
    raw_answer answer = raw_receive(waiting);
    assert_int_equal(answer.status, 200);
    raw_answer_fini(&answer);
    raw_hang_up(waiting);
    served_close(&s);
}

static void a_worker_that_fails_is_told_of(void **state) {
    served s;
    served_init(&s, "abc");
    s.script.failure = HD_IO;
    s.script.token_delay_us = 5000;
    served_open(&s);
    assert_refused(&s, "/v1/completions", "{\"prompt\": \"x\"}", 500, NULL, NULL,
                   "the model's worker failed: a broken cable");
    /* A stream has begun with 200: the error is its last event, and clients raise it. */
    raw_answer answer = served_post(&s, "/v1/completions", "{\"prompt\": \"x\", \"stream\": true}");
    assert_int_equal(answer.status, 200);
    assert_non_null(strstr(answer.body, "data: {\"error\":{\"message\":\"the model's worker failed: a broken cable\""));
    assert_non_null(strstr(answer.body, "data: [DONE]\n\n"));
    raw_answer_fini(&answer);
    served_close(&s);
}

static void what_a_worker_refuses_about_a_field_names_the_field(void **state) {
    served s;
    served_init(&s, "abc");
    s.script.failure = HD_INVALID;
    s.script.failure_message = "'hadal.selection' is refused: there is none like it";
    served_open(&s);
    assert_refused(&s, "/v1/completions", "{\"prompt\": \"x\"}", 400, "invalid_value", "hadal.selection",
                   "'hadal.selection' is refused: there is none like it");
    served_close(&s);
}

static void what_a_worker_refuses_about_no_field_is_told_as_it_is(void **state) {
    served s;
    served_init(&s, "abc");
    s.script.failure = HD_INVALID;
    s.script.failure_message = "the prompt does not fit 'here'";
    served_open(&s);
    assert_refused(&s, "/v1/completions", "{\"prompt\": \"x\"}", 400, NULL, NULL, "the prompt does not fit 'here'");
    served_close(&s);
}

static char keys_path[] = "/tmp/hadal-served-keys-XXXXXX";

static void with_keys_every_endpoint_but_the_probes_wants_one(void **state) {
    int file = mkstemp(keys_path);
    const char text[] = "tenant-one-key\ntenant-two-key\noperator-key admin\n";
    assert_int_equal(write(file, text, sizeof(text) - 1), sizeof(text) - 1);
    close(file);
    served s;
    served_init(&s, "abc");
    s.config.api_keys_file = keys_path;
    s.config.listen_address = "127.0.0.1:0";
    served_open(&s);
    unlink(keys_path);

    const char *open_paths[] = {"/health", "/ready", "/version"}, *closed_paths[] = {"/v1/models", "/metrics"};
    for (int i = 0; i < 3; i++) {
        raw_answer answer = served_get(&s, open_paths[i]);
        assert_int_equal(answer.status, 200);
        raw_answer_fini(&answer);
    }
    char challenge[32];
    for (int i = 0; i < 2; i++) {
        raw_answer answer = served_get(&s, closed_paths[i]);
        assert_string_equal(raw_header(&answer, "WWW-Authenticate", challenge, sizeof(challenge)), "Bearer");
        assert_error(&answer, 401, "invalid_api_key", NULL,
                     "no API key was given: send the header 'Authorization: Bearer KEY'");
        raw_answer_fini(&answer);
    }
    raw_answer answer =
        served_post_with(&s, "/v1/completions", "Authorization: Bearer tenant-one-kez\r\n", "{\"prompt\": \"x\"}");
    assert_error(&answer, 401, "invalid_api_key", NULL, "the API key in the header 'Authorization' is not known here");
    raw_answer_fini(&answer);

    unsigned char salts[2][16];
    const char *tenants[] = {"Authorization: Bearer tenant-one-key\r\n", "Authorization: Bearer tenant-two-key\r\n"};
    for (int i = 0; i < 2; i++) {
        answer = served_post_with(&s, "/v1/completions", tenants[i], "{\"prompt\": \"x\"}");
        assert_int_equal(answer.status, 200);
        raw_answer_fini(&answer);
        fake_seen seen;
        fake_worker_seen(s.worker, &seen);
        memcpy(salts[i], seen.salt, 16);
    }
    assert_memory_not_equal(salts[0], salts[1], 16);

    answer = served_post_with(&s, "/reset_prefix_cache", tenants[0], "");
    assert_error(&answer, 403, "not_admin", NULL,
                 "this concerns all tenants and needs a key marked 'admin' in the keys file");
    raw_answer_fini(&answer);
    answer = served_post_with(&s, "/reset_prefix_cache", "Authorization: Bearer operator-key\r\n", "");
    assert_int_equal(answer.status, 200);
    raw_answer_fini(&answer);
    served_close(&s);
}

static void without_keys_other_machines_are_not_listened_to(void **state) {
    served s;
    served_init(&s, "abc");
    served_open(&s);
    coordinator_config config = s.config;
    config.listen_address = "0.0.0.0:0";
    config.metrics = NULL;
    coordinator *second = NULL;
    hd_error error;
    assert_int_equal(coordinator_open(&config, &second, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "give --api-keys FILE"));
    served_close(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_path_that_is_not_there_is_not_found, open_plain, close_plain),
        cmocka_unit_test_setup_teardown(a_wrong_method_is_told_the_right_one, open_plain, close_plain),
        cmocka_unit_test_setup_teardown(a_body_must_be_sent_as_json, open_plain, close_plain),
        cmocka_unit_test_setup_teardown(a_body_that_is_no_json_is_refused_with_its_place, open_plain, close_plain),
        cmocka_unit_test_setup_teardown(what_does_not_fit_the_context_is_refused_with_the_numbers, open_plain,
                                        close_plain),
        cmocka_unit_test_setup_teardown(a_body_at_the_limit_is_taken_and_one_beyond_is_not, open_plain, close_plain),
        cmocka_unit_test_setup_teardown(a_body_without_a_length_is_bounded_as_well, open_plain, close_plain),
        cmocka_unit_test_setup_teardown(a_client_that_asks_first_need_not_send_a_body_in_vain, open_plain, close_plain),
        cmocka_unit_test(bodies_share_a_bounded_memory),
        cmocka_unit_test(a_full_queue_refuses_and_says_when_to_come_back),
        cmocka_unit_test(a_worker_that_fails_is_told_of),
        cmocka_unit_test(what_a_worker_refuses_about_a_field_names_the_field),
        cmocka_unit_test(what_a_worker_refuses_about_no_field_is_told_as_it_is),
        cmocka_unit_test(with_keys_every_endpoint_but_the_probes_wants_one),
        cmocka_unit_test(without_keys_other_machines_are_not_listened_to),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
