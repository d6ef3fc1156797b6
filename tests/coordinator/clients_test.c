/* clients_test.c - clients that go away, read slowly or wait long, and a server that ends under them. */
#include "tests/coordinator/served.h"

#include "tests/coordinator/cmocka_all.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* The worker is told at once: well below the ticker's and any keep-alive's period. */
static void assert_stops_soon(const served *s, uint32_t cancelled) {
    double start = now_s();
    served_wait_running(s, 0);
    assert_true(now_s() - start < 2.0);
    assert_int_equal(fake_worker_cancelled(s->worker), cancelled);
}

static void a_client_that_hangs_up_stops_its_work(void **state) {
    served s;
    served_init(&s, "abc");
    s.script.is_endless = true;
    s.script.context_max = 1u << 30;
    s.script.token_delay_us = 1000;
    served_open(&s);
    const char *bodies[] = {"{\"prompt\": \"x\", \"max_tokens\": 1000000, \"stream\": true}",
                            "{\"prompt\": \"x\", \"max_tokens\": 1000000}",
                            "{\"prompt\": [\"x\", \"y\"], \"n\": 2, \"max_tokens\": 1000000}"};
    uint32_t requests[] = {1, 1, 2}, cancelled = 0;
    for (int i = 0; i < 3; i++) {
        int fd = raw_connect(s.address);
        raw_post(fd, "/v1/completions", "", bodies[i]);
        char buffer[8192];
        if (i == 0) assert_true(raw_receive_until(fd, "data: ", buffer, sizeof(buffer)));
        served_wait_running(&s, requests[i]);
        cancelled += requests[i];
        raw_hang_up(fd);
        assert_stops_soon(&s, cancelled);
    }
    assert_true(served_metric(&s, "hadal:request_success_total{finished_reason=\"abort\"}") == 6);
    served_close(&s);
}

static void a_client_that_hangs_up_in_the_queue_stops_its_work(void **state) {
    served s;
    served_init(&s, "abc");
    served_open(&s);
    fake_worker_hold(s.worker, true);
    const char *bodies[] = {"{\"prompt\": \"x\", \"stream\": true}", "{\"prompt\": \"x\"}"};
    for (uint32_t i = 0; i < 2; i++) {
        int fd = raw_connect(s.address);
        raw_post(fd, "/v1/completions", "", bodies[i]);
        served_wait_running(&s, 1);
        raw_hang_up(fd);
        assert_stops_soon(&s, i + 1);
    }
    fake_worker_hold(s.worker, false);
    served_close(&s);
}

static void a_client_that_resets_its_connection_stops_its_work(void **state) {
    served s;
    served_init(&s, "abc");
    served_open(&s);
    fake_worker_hold(s.worker, true);
    int fd = raw_connect(s.address);
    raw_post(fd, "/v1/completions", "", "{\"prompt\": \"x\"}");
    served_wait_running(&s, 1);
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    raw_hang_up(fd);
    assert_stops_soon(&s, 1);
    fake_worker_hold(s.worker, false);
    served_close(&s);
}

static void a_client_that_sends_half_a_request_holds_up_nobody(void **state) {
    served s;
    served_init(&s, "abc");
    served_open(&s);
    int half = raw_connect(s.address);
    raw_send_text(half, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
                        "500\r\n\r\n{\"prompt\"");
    raw_answer answer = served_post(&s, "/v1/completions", "{\"prompt\": \"x\"}");
    assert_int_equal(answer.status, 200);
    raw_answer_fini(&answer);
    raw_hang_up(half);
    served_close(&s);
}

/* The texts of all chunks, however the tokens were parted among them. */
static size_t streamed_text(const char *stream, const char *key, char *text, size_t text_bytes) {
    size_t length = 0;
    text[0] = '\0';
    for (const char *at = stream; (at = strstr(at, key)) != NULL;) {
        at += strlen(key);
        size_t count = strcspn(at, "\"");
        assert_true(length + count < text_bytes);
        memcpy(text + length, at, count);
        length += count;
        text[length] = '\0';
    }
    return length;
}

static void a_silent_stream_is_kept_alive_by_the_clock(void **state) {
    served s;
    served_init(&s, "abc");
    s.config.keep_alive_ms = 100;
    served_open(&s);
    fake_worker_hold(s.worker, true);
    int fd = raw_connect(s.address);
    double start = now_s(); /* before the post: this thread may be held up behind it */
    raw_post(fd, "/v1/chat/completions", "",
             "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"stream\": true}");
    char buffer[8192];
    assert_true(raw_receive_until(fd, ": keep-alive\n\n", buffer, sizeof(buffer)));
    assert_memory_equal(buffer, "HTTP/1.1 200", 12);
    assert_true(raw_receive_until(fd, ": keep-alive\n\n", buffer, sizeof(buffer)));
    assert_true(now_s() - start > 0.15);
    fake_worker_hold(s.worker, false);
    assert_true(raw_receive_until(fd, "[DONE]", buffer, sizeof(buffer)));
    char said[16];
    streamed_text(buffer, "\"content\":\"", said, sizeof(said));
    assert_string_equal(said, "abc");
    raw_hang_up(fd);
    served_close(&s);
}

static void a_long_prefill_tells_its_progress(void **state) {
    served s;
    served_init(&s, "abc");
    s.script.progress_chunk = 10;
    s.script.chunk_delay_us = 20000;
    s.script.cached_tokens = 5;
    served_open(&s);
    char body[256];
    snprintf(body, sizeof(body), "{\"prompt\": \"%080d\", \"stream\": true, \"return_progress\": true}", 0);
    raw_answer answer = served_post(&s, "/v1/completions", body);
    assert_non_null(
        strstr(answer.body, "\"choices\":[],\"prompt_progress\":{\"total\":81,\"cache\":5,\"processed\":10,"));
    assert_non_null(strstr(answer.body, "\"processed\":81,"));
    const char *estimate = strstr(strstr(answer.body, "\"processed\":40,"), "\"estimated_remaining_ms\":");
    assert_non_null(estimate);
    double remaining_ms = atof(estimate + strlen("\"estimated_remaining_ms\":"));
    assert_true(remaining_ms > 20 && remaining_ms < 5000);
    raw_answer_fini(&answer);
    /* Nobody who has not asked gets them. */
    snprintf(body, sizeof(body), "{\"prompt\": \"%080d\", \"stream\": true}", 0);
    answer = served_post(&s, "/v1/completions", body);
    assert_null(strstr(answer.body, "prompt_progress"));
    raw_answer_fini(&answer);
    served_close(&s);
}

static void a_request_that_takes_too_long_ends(void **state) {
    served s;
    served_init(&s, "abc");
    s.script.is_endless = true;
    s.script.context_max = 1u << 30;
    s.script.token_delay_us = 1000;
    s.config.request_timeout_ms = 1000;
    served_open(&s);
    raw_answer answer = served_post(&s, "/v1/completions", "{\"prompt\": \"x\", \"max_tokens\": 1000000}");
    assert_int_equal(answer.status, 504);
    assert_non_null(strstr(answer.body, "\"message\":\"the request was not done within 1 s\""));
    raw_answer_fini(&answer);
    answer = served_post(&s, "/v1/completions", "{\"prompt\": \"x\", \"max_tokens\": 1000000, \"stream\": true}");
    assert_int_equal(answer.status, 200);
    assert_non_null(strstr(answer.body, "\"code\":\"request_timeout\""));
    raw_answer_fini(&answer);
    assert_stops_soon(&s, 2);
    served_close(&s);
}

static void a_request_that_waits_too_long_ends(void **state) {
    served s;
    served_init(&s, "abc");
    s.config.queue_timeout_ms = 200;
    s.script.token_delay_us = 100000;
    served_open(&s);
    fake_worker_hold(s.worker, true);
    raw_answer answer = served_post(&s, "/v1/completions", "{\"prompt\": \"x\", \"stream\": true}");
    char retry[16];
    assert_int_equal(answer.status, 503);
    assert_non_null(raw_header(&answer, "Retry-After", retry, sizeof(retry)));
    assert_non_null(strstr(answer.body, "\"code\":\"queue_timeout\""));
    assert_non_null(strstr(answer.body, "\"message\":\"the request could not be started within 0.2 s\""));
    raw_answer_fini(&answer);
    assert_stops_soon(&s, 1);
    fake_worker_hold(s.worker, false);
    /* One that has started may take longer than that. */
    answer = served_post(&s, "/v1/completions", "{\"prompt\": \"x\"}");
    assert_int_equal(answer.status, 200);
    raw_answer_fini(&answer);
    served_close(&s);
}

static void a_client_that_reads_slowly_gets_all_of_it(void **state) {
    served s;
    served_init(&s, "abcdefghijklmnopqrstuvwxyz");
    s.script.is_endless = true;
    s.script.context_max = 1u << 30;
    s.script.token_delay_us = 20;
    served_open(&s);
    int fd = raw_connect(s.address);
    raw_post(fd, "/v1/completions", "", "{\"prompt\": \"x\", \"max_tokens\": 8000, \"stream\": true, \"logprobs\": 3}");
    served_wait_running(&s, 1);
    usleep(300000);
    raw_answer answer = raw_receive(fd);
    assert_int_equal(answer.status, 200);
    assert_false(answer.is_cut);
    assert_non_null(strstr(answer.body, "data: [DONE]"));
    char text[8192];
    assert_int_equal(streamed_text(answer.body, "\"text\":\"", text, sizeof(text)), 8000);
    raw_answer_fini(&answer);
    raw_hang_up(fd);
    served_close(&s);
}

static double tokens_seen(const served *s) {
    return served_metric(s, "hadal:inter_token_latency_seconds_count");
}

/* Waits until nobody takes tokens out of the ring any more, and says how many were. */
static double wait_until_paused(const served *s) {
    double seen = -1;
    for (int still_ms = 0; still_ms < 500; still_ms += 10) {
        usleep(10000);
        if (tokens_seen(s) == seen && seen > 0) continue;
        seen = tokens_seen(s);
        still_ms = 0;
    }
    return seen;
}

/* It never reads a byte: the socket's buffers fill, then the stream's; then the worker goes on, and the ring fills. */
static void a_client_that_does_not_read_is_cut_off(void **state) {
    served s;
    served_init(&s, "abcdefghijklmnopqrstuvwxyz");
    s.script.is_endless = true;
    s.script.context_max = 1u << 30;
    s.script.hold_after = 8000;
    served_open(&s);
    int fd = raw_connect_with(s.address, 4096);
    raw_post(fd, "/v1/completions", "",
             "{\"prompt\": \"x\", \"max_tokens\": 100000000, \"stream\": true, \"logprobs\": 20}");
    served_wait_running(&s, 1);
    assert_true(wait_until_paused(&s) < 7999);
    fake_worker_hold(s.worker, false);
    served_wait_running(&s, 0);
    assert_true(raw_wait_reset(fd, 10000));
    raw_hang_up(fd);
    assert_true(served_metric(&s, "hadal:request_success_total{finished_reason=\"error\"}") == 1);
    /* The others never noticed. */
    raw_answer answer = served_get(&s, "/health");
    assert_int_equal(answer.status, 200);
    raw_answer_fini(&answer);
    served_close(&s);
}

/* Few tokens, so the ring will not tell: time has to. */
static void a_client_that_takes_nothing_for_too_long_is_cut_off(void **state) {
    served s;
    served_init(&s, "abcdefghijklmnopqrstuvwxyz");
    s.script.is_endless = true;
    s.script.context_max = 1u << 30;
    s.script.token_delay_us = 20;
    s.config.stall_timeout_ms = 1000;
    served_open(&s);
    int fd = raw_connect_with(s.address, 4096);
    raw_post(fd, "/v1/completions", "",
             "{\"prompt\": \"x\", \"max_tokens\": 10000, \"stream\": true, \"logprobs\": 20}");
    served_wait_running(&s, 1);
    served_wait_running(&s, 0); /* all was said; what the client did not read is kept for it */
    assert_true(raw_wait_reset(fd, 60000));
    raw_hang_up(fd);
    served_close(&s);
}

/* A worker faster than any model: whether the tokens are kept up with is chance, who is blamed is not. */
static void a_client_is_not_blamed_for_a_server_that_falls_behind(void **state) {
    served s;
    served_init(&s, "abcdefghijklmnopqrstuvwxyz");
    s.script.is_endless = true;
    s.script.context_max = 1u << 30;
    served_open(&s);
    raw_answer answer =
        served_post(&s, "/v1/completions", "{\"prompt\": \"x\", \"max_tokens\": 1000, \"logprobs\": 20, \"n\": 12}");
    if (answer.status != 200) {
        char value[16];
        assert_int_equal(answer.status, 503);
        assert_non_null(strstr(answer.body, "the server cannot keep up with the tokens of its model; try again"));
        assert_non_null(raw_header(&answer, "Retry-After", value, sizeof(value)));
    }
    assert_false(answer.is_cut);
    raw_answer_fini(&answer);
    served_wait_running(&s, 0);
    served_close(&s);
}

static void *close_coordinator(void *context) {
    coordinator_close(context, 5000);
    return NULL;
}

static void ending_finishes_what_runs_and_refuses_what_comes(void **state) {
    served s;
    served_init(&s, "abc");
    served_open(&s);
    fake_worker_hold(s.worker, true);
    int running = raw_connect(s.address);
    raw_post(running, "/v1/completions", "", "{\"prompt\": \"x\"}");
    served_wait_running(&s, 1);
    pthread_t closer;
    pthread_create(&closer, NULL, close_coordinator, s.coordinator);
    raw_answer answer;
    for (int i = 0; i < 500; i++) {
        answer = served_get(&s, "/ready");
        if (answer.status == 503) break;
        raw_answer_fini(&answer);
        usleep(10000);
    }
    assert_int_equal(answer.status, 503);
    raw_answer_fini(&answer);
    answer = served_get(&s, "/health");
    assert_int_equal(answer.status, 200);
    raw_answer_fini(&answer);
    char value[16];
    answer = served_post(&s, "/v1/completions", "{\"prompt\": \"x\"}");
    assert_int_equal(answer.status, 503);
    assert_string_equal(raw_header(&answer, "Retry-After", value, sizeof(value)), "5");
    assert_non_null(strstr(answer.body, "the server is ending and takes no more requests"));
    raw_answer_fini(&answer);
    fake_worker_hold(s.worker, false);
    answer = raw_receive(running);
    assert_int_equal(answer.status, 200);
    assert_non_null(strstr(answer.body, "\"text\":\"abc\""));
    raw_answer_fini(&answer);
    raw_hang_up(running);
    pthread_join(closer, NULL);
    s.coordinator = NULL;
    served_close(&s);
}

static void what_is_not_done_in_time_is_ended(void **state) {
    served s;
    served_init(&s, "abc");
    s.script.is_endless = true;
    s.script.context_max = 1u << 30;
    s.script.token_delay_us = 1000;
    served_open(&s);
    int whole = raw_connect(s.address), stream = raw_connect(s.address), half = raw_connect(s.address);
    raw_post(whole, "/v1/completions", "", "{\"prompt\": \"x\", \"max_tokens\": 1000000}");
    raw_post(stream, "/v1/completions", "", "{\"prompt\": \"x\", \"max_tokens\": 1000000, \"stream\": true}");
    raw_send_text(half, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
                        "500\r\n\r\n{\"prompt\"");
    served_wait_running(&s, 2);
    char buffer[8192];
    assert_true(raw_receive_until(stream, "data: ", buffer, sizeof(buffer)));
    coordinator_close(s.coordinator, 100);
    s.coordinator = NULL;
    raw_answer answer = raw_receive(whole);
    assert_int_equal(answer.status, 503);
    raw_answer_fini(&answer);
    char *rest = calloc(1, 1 << 20);
    assert_true(raw_receive_until(stream, "data: [DONE]", rest, 1 << 20));
    assert_non_null(strstr(rest, "\"code\":\"ending\""));
    free(rest);
    raw_hang_up(whole);
    raw_hang_up(stream);
    raw_hang_up(half);
    served_close(&s);
}

typedef struct caller {
    const served *s;
    unsigned seed;
    unsigned answered;
} caller;

/* Requests of every kind, a third of which hangs up at random. */
static void *call_at_random(void *context) {
    caller *self = context;
    for (int i = 0; i < 60; i++) {
        static const char *const bodies[] = {"{\"prompt\": \"x\", \"stream\": true}", "{\"prompt\": \"x\", \"n\": 2}",
                                             "{\"prompt\": \"x\", \"stream\": true, \"stop\": \"fg\"}",
                                             "{\"prompt\": 5}"};
        int fd = raw_connect(self->s->address);
        raw_post(fd, "/v1/completions", "", bodies[rand_r(&self->seed) % 4]);
        if (rand_r(&self->seed) % 3 == 0) {
            usleep((unsigned)rand_r(&self->seed) % 3000);
        } else {
            raw_answer answer = raw_receive(fd);
            self->answered += (answer.status == 200 || answer.status == 400) && !answer.is_cut;
            raw_answer_fini(&answer);
        }
        raw_hang_up(fd);
    }
    return NULL;
}

static void many_clients_at_once_leave_nothing_behind(void **state) {
    enum { CALLERS = 16 };
    served s;
    served_init(&s, "abcdefghijklmnop");
    s.script.token_delay_us = 5;
    served_open(&s);
    caller callers[CALLERS];
    pthread_t threads[CALLERS];
    for (unsigned i = 0; i < CALLERS; i++) {
        callers[i] = (caller){.s = &s, .seed = i};
        pthread_create(&threads[i], NULL, call_at_random, &callers[i]);
    }
    unsigned answered = 0;
    for (unsigned i = 0; i < CALLERS; i++) {
        pthread_join(threads[i], NULL);
        answered += callers[i].answered;
    }
    assert_true(answered > CALLERS * 60 / 2);
    served_wait_running(&s, 0);
    served_close(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_client_that_hangs_up_stops_its_work),
        cmocka_unit_test(a_client_that_hangs_up_in_the_queue_stops_its_work),
        cmocka_unit_test(a_client_that_resets_its_connection_stops_its_work),
        cmocka_unit_test(a_client_that_sends_half_a_request_holds_up_nobody),
        cmocka_unit_test(a_silent_stream_is_kept_alive_by_the_clock),
        cmocka_unit_test(a_long_prefill_tells_its_progress),
        cmocka_unit_test(a_request_that_takes_too_long_ends),
        cmocka_unit_test(a_request_that_waits_too_long_ends),
        cmocka_unit_test(a_client_that_reads_slowly_gets_all_of_it),
        cmocka_unit_test(a_client_that_does_not_read_is_cut_off),
        cmocka_unit_test(a_client_that_takes_nothing_for_too_long_is_cut_off),
        cmocka_unit_test(a_client_is_not_blamed_for_a_server_that_falls_behind),
        cmocka_unit_test(ending_finishes_what_runs_and_refuses_what_comes),
        cmocka_unit_test(what_is_not_done_in_time_is_ended),
        cmocka_unit_test(many_clients_at_once_leave_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
