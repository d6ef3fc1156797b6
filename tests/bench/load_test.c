/* load_test.c - the load generator against a small server in this process that answers as told. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench/load.h"

/* Answers one connection at a time: model list, /tokenize where it has it, and streams of three events. */
typedef struct fake_server {
    int fd;
    char url[64];
    pthread_t thread;
    bool has_tokenize, breaks_every_second;
    _Atomic unsigned streams;
    char last_body[1 << 16];
} fake_server;

static size_t read_request(int fd, char *buffer, size_t bytes) {
    size_t used = 0, wanted = SIZE_MAX;
    while (used < wanted && used + 1 < bytes) {
        ssize_t count = recv(fd, buffer + used, bytes - used - 1, 0);
        if (count <= 0) break;
        used += (size_t)count;
        buffer[used] = '\0';
        const char *end = strstr(buffer, "\r\n\r\n"), *length = strstr(buffer, "Content-Length: ");
        if (end != NULL && length != NULL) wanted = (size_t)(end + 4 - buffer) + strtoul(length + 16, NULL, 10);
    }
    return used;
}

static void answer(int fd, const char *text) {
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

static void answer_stream(int fd, bool is_whole) {
    answer(fd, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: keep-alive\n\n");
    for (int i = 0; i < 3; i++) answer(fd, "data: {\"choices\":[{\"index\":0,\"text\":\"a\"}]}\n\n");
    if (!is_whole) {
        answer(fd, "data: {\"error\":{\"message\":\"out of luck\"}}\n\n");
        return;
    }
    answer(fd, "data: {\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":\"length\"}]}\n\n");
    answer(fd, "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":3,"
               "\"prompt_tokens_details\":{\"cached_tokens\":5}}}\n\ndata: [DONE]\n\n");
}

static void *serve(void *context) {
    fake_server *server = context;
    char request[1 << 16];
    for (;;) {
        int fd = accept(server->fd, NULL, NULL);
        if (fd < 0) return NULL;
        read_request(fd, request, sizeof(request));
        if (strncmp(request, "GET /v1/models ", 15) == 0) {
            answer(fd, "HTTP/1.1 200 OK\r\n\r\n{\"data\":[{\"id\":\"a \\\"model\\\"\"}]}");
        } else if (strncmp(request, "POST /tokenize ", 15) == 0 && server->has_tokenize) {
            answer(fd, "HTTP/1.1 200 OK\r\n\r\n{\"tokens\":[");
            for (int i = 0; i < 200; i++) answer(fd, i == 0 ? "777" : ",777");
            answer(fd, "]}");
        } else if (strncmp(request, "POST /v1/", 9) == 0) {
            strcpy(server->last_body, strstr(request, "\r\n\r\n") + 4);
            unsigned number = atomic_fetch_add(&server->streams, 1);
            answer_stream(fd, !server->breaks_every_second || number % 2 == 0);
        } else {
            answer(fd, "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}");
        }
        shutdown(fd, SHUT_WR);
        close(fd);
    }
}

static void server_open(fake_server *server) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof(address);
    server->fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(server->fd, (struct sockaddr *)&address, bytes), 0);
    assert_int_equal(listen(server->fd, 128), 0);
    assert_int_equal(getsockname(server->fd, (struct sockaddr *)&address, &bytes), 0);
    snprintf(server->url, sizeof(server->url), "http://127.0.0.1:%u", ntohs(address.sin_port));
    assert_int_equal(pthread_create(&server->thread, NULL, serve, server), 0);
}

static void server_close(fake_server *server) {
    shutdown(server->fd, SHUT_RDWR);
    pthread_join(server->thread, NULL);
    close(server->fd);
}

static void every_request_is_sent_and_counted(void **state) {
    fake_server server = {.has_tokenize = true};
    server_open(&server);
    load_config config = {
        .url = server.url, .rate = 500, .requests = 20, .prompt_tokens = 12, .output_tokens = 3, .seed = 1};
    load_result result;
    hd_error error = {{0}};
    assert_int_equal(load_run(&config, &result, &error), HD_OK);
    assert_int_equal(result.completed, 20);
    assert_int_equal(result.failed, 0);
    assert_true(result.has_ids);
    assert_string_equal(result.model, "a \"model\"");
    assert_int_equal(result.itl_ms.count, 40); /* two gaps between three events; the empty last one is none */
    for (uint64_t i = 0; i < 20; i++) {
        const load_request *r = &result.requests[i];
        assert_true(r->is_ok);
        assert_int_equal(r->events, 3);
        assert_int_equal(r->prompt_tokens, 12);
        assert_int_equal(r->output_tokens, 3);
        assert_int_equal(r->cached_tokens, 5);
        assert_true(r->due_s <= r->start_s && r->start_s <= r->first_s && r->first_s <= r->last_s &&
                    r->last_s <= r->end_s);
        if (i > 0) assert_true(result.requests[i - 1].due_s <= r->due_s);
    }
    assert_non_null(strstr(server.last_body, "\"model\":\"a \\\"model\\\"\""));
    assert_non_null(strstr(server.last_body, "\"prompt\":[777,777,777,777,777,777,777,777,777,777,777,777]"));
    load_result_fini(&result);
    server_close(&server);
}

static void without_tokenize_prompts_are_words(void **state) {
    fake_server server = {.has_tokenize = false};
    server_open(&server);
    load_config config = {
        .url = server.url, .requests = 2, .prompt_tokens = 4, .output_tokens = 3, .is_chat = true, .model = "m"};
    load_result result;
    hd_error error = {{0}};
    assert_int_equal(load_run(&config, &result, &error), HD_OK);
    assert_false(result.has_ids);
    assert_int_equal(result.completed, 2);
    const char *content = strstr(server.last_body, "\"content\":\"");
    assert_non_null(content);
    unsigned spaces = 0;
    for (content += 11; *content != '"'; content++) spaces += *content == ' ';
    assert_int_equal(spaces, 3);
    load_result_fini(&result);
    server_close(&server);
}

static void a_stream_that_ends_with_an_error_counts_as_failed(void **state) {
    fake_server server = {.has_tokenize = true, .breaks_every_second = true};
    server_open(&server);
    load_config config = {.url = server.url, .requests = 10, .concurrency = 1, .prompt_tokens = 4, .output_tokens = 3};
    load_result result;
    hd_error error = {{0}};
    assert_int_equal(load_run(&config, &result, &error), HD_OK);
    assert_int_equal(result.completed, 5);
    assert_int_equal(result.failed, 5);
    assert_non_null(strstr(result.first_failure, "out of luck"));
    load_result_fini(&result);
    server_close(&server);
}

static void a_request_past_its_time_is_cancelled(void **state) {
    int fd = socket(AF_INET, SOCK_STREAM, 0); /* listens, and never answers */
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof(address);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, bytes), 0);
    assert_int_equal(listen(fd, 16), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &bytes), 0);
    char url[64];
    snprintf(url, sizeof(url), "http://127.0.0.1:%u", ntohs(address.sin_port));
    load_config config = {.url = url,
                          .model = "m",
                          .is_chat = true,
                          .requests = 3,
                          .prompt_tokens = 1,
                          .output_tokens = 1,
                          .timeout_ms = 50};
    load_result result;
    hd_error error = {{0}};
    assert_int_equal(load_run(&config, &result, &error), HD_OK);
    assert_int_equal(result.failed, 3);
    assert_string_equal(result.first_failure, "no end within --request-timeout");
    load_result_fini(&result);
    close(fd);
}

static void a_server_that_is_not_there_is_an_error(void **state) {
    load_config config = {.url = "http://127.0.0.1:1", .requests = 1, .prompt_tokens = 1, .output_tokens = 1};
    load_result result;
    hd_error error = {{0}};
    assert_int_equal(load_run(&config, &result, &error), HD_PEER_LOST);
    assert_string_equal(error.text, "http://127.0.0.1:1 does not answer (connection refused); is the server running?");
    config.url = "https://localhost";
    assert_int_equal(load_run(&config, &result, &error), HD_INVALID);
    assert_string_equal(error.text, "'https://localhost' is not an http:// URL; give one like http://127.0.0.1:8000");
    config.url = "http://[::1";
    assert_int_equal(load_run(&config, &result, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "has no host"));
}

static void the_same_seed_draws_the_same_load(void **state) {
    fake_server server = {.has_tokenize = true};
    server_open(&server);
    load_config config = {.url = server.url,
                          .model = "m",
                          .rate = 1000,
                          .requests = 8,
                          .prompt_tokens = 10,
                          .output_tokens = 3,
                          .spread = 0.5,
                          .seed = 9};
    load_result first, second;
    hd_error error = {{0}};
    assert_int_equal(load_run(&config, &first, &error), HD_OK);
    assert_int_equal(load_run(&config, &second, &error), HD_OK);
    for (int i = 0; i < 8; i++) assert_true(first.requests[i].due_s == second.requests[i].due_s);
    load_result_fini(&first);
    load_result_fini(&second);
    server_close(&server);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_request_is_sent_and_counted),
        cmocka_unit_test(without_tokenize_prompts_are_words),
        cmocka_unit_test(a_stream_that_ends_with_an_error_counts_as_failed),
        cmocka_unit_test(a_request_past_its_time_is_cancelled),
        cmocka_unit_test(a_server_that_is_not_there_is_an_error),
        cmocka_unit_test(the_same_seed_draws_the_same_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
