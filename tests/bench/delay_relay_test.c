/* delay_relay_test.c - what goes through a relay comes out whole, in order and no earlier than its delay. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "bench/delay_relay.h"

#define DELAY_NS 3000000u

typedef struct {
    int listener;
    pthread_t thread;
    char address[64];
} echo_server;

/* Says everything again until the client has ended, connection after connection; ends with the listener. */
static void *echo_main(void *context) {
    echo_server *s = context;
    for (int peer; (peer = accept(s->listener, NULL, NULL)) >= 0; close(peer)) {
        char buffer[8192];
        for (ssize_t count; (count = recv(peer, buffer, sizeof(buffer), 0)) > 0;) {
            for (ssize_t sent = 0, n; sent < count; sent += n) {
                if ((n = send(peer, buffer + sent, (size_t)(count - sent), MSG_NOSIGNAL)) < 0) break;
            }
        }
    }
    return NULL;
}

static void echo_open(echo_server *s) {
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof(any);
    s->listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(s->listener, (struct sockaddr *)&any, sizeof(any)), 0);
    assert_int_equal(listen(s->listener, 4), 0);
    assert_int_equal(getsockname(s->listener, (struct sockaddr *)&any, &length), 0);
    snprintf(s->address, sizeof(s->address), "127.0.0.1:%u", ntohs(any.sin_port));
    assert_int_equal(pthread_create(&s->thread, NULL, echo_main, s), 0);
}

static void echo_close(echo_server *s) {
    shutdown(s->listener, SHUT_RDWR);
    pthread_join(s->thread, NULL);
    close(s->listener);
}

static int connect_to(const char *address) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    to.sin_port = htons((uint16_t)atoi(strrchr(address, ':') + 1));
    int near = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(near, (struct sockaddr *)&to, sizeof(to)), 0);
    return near;
}

static void receive_all(int near, unsigned char *bytes, size_t count) {
    for (size_t got = 0; got < count;) {
        ssize_t n = recv(near, bytes + got, count - got, 0);
        assert_true(n > 0);
        got += (size_t)n;
    }
}

static void a_byte_comes_back_no_earlier_than_twice_the_delay(void **state) {
    echo_server server;
    delay_relay *relay = NULL;
    hd_error error;
    echo_open(&server);
    assert_int_equal(delay_relay_open(server.address, DELAY_NS, &relay, &error), HD_OK);
    int near = connect_to(delay_relay_address(relay));
    for (unsigned i = 0; i < 20; i++) {
        unsigned char sent = (unsigned char)i, got = 255;
        uint64_t start = hd_now_ns();
        assert_int_equal(send(near, &sent, 1, 0), 1);
        receive_all(near, &got, 1);
        assert_true(hd_now_ns() - start >= 2 * DELAY_NS);
        assert_int_equal(got, sent);
    }
    close(near);
    delay_relay_close(relay);
    echo_close(&server);
}

static void *send_all(void *context) {
    const unsigned char *bytes = context;
    int near = *(const int *)(const void *)bytes;
    size_t count = 3u * DELAY_RELAY_BYTES;
    for (size_t sent = sizeof(int); sent < count;) {
        ssize_t n = send(near, bytes + sent, count - sent, MSG_NOSIGNAL);
        if (n <= 0) return NULL;
        sent += (size_t)n;
    }
    return NULL;
}

/* Three times what a direction holds, sent while what comes back is read. */
static void more_than_it_holds_comes_out_whole_and_in_order(void **state) {
    echo_server server;
    delay_relay *relay = NULL;
    hd_error error;
    echo_open(&server);
    assert_int_equal(delay_relay_open(server.address, DELAY_NS, &relay, &error), HD_OK);
    size_t count = 3u * DELAY_RELAY_BYTES;
    unsigned char *bytes = malloc(count), *back = malloc(count);
    assert_non_null(bytes);
    assert_non_null(back);
    for (size_t i = 0; i < count; i++) bytes[i] = (unsigned char)((i * 2654435761u) >> 13);
    int near = connect_to(delay_relay_address(relay));
    memcpy(bytes, &near, sizeof(near));
    pthread_t sender;
    assert_int_equal(pthread_create(&sender, NULL, send_all, bytes), 0);
    receive_all(near, back, count - sizeof(int));
    pthread_join(sender, NULL);
    assert_memory_equal(back, bytes + sizeof(int), count - sizeof(int));
    free(bytes);
    free(back);
    close(near);
    delay_relay_close(relay);
    echo_close(&server);
}

static void a_relay_that_closes_ends_its_connections(void **state) {
    echo_server server;
    delay_relay *relay = NULL;
    hd_error error;
    unsigned char byte = 1;
    echo_open(&server);
    assert_int_equal(delay_relay_open(server.address, 0, &relay, &error), HD_OK);
    int near = connect_to(delay_relay_address(relay));
    assert_int_equal(send(near, &byte, 1, 0), 1);
    receive_all(near, &byte, 1);
    delay_relay_close(relay);
    assert_true(recv(near, &byte, 1, 0) <= 0);
    close(near);
    echo_close(&server);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_byte_comes_back_no_earlier_than_twice_the_delay),
        cmocka_unit_test(more_than_it_holds_comes_out_whole_and_in_order),
        cmocka_unit_test(a_relay_that_closes_ends_its_connections),
    };
    return cmocka_run_group_tests_name("delay_relay", tests, NULL, NULL);
}
