/* http_answer_test.c - answers in every framing, cut at every byte, and answers that are none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "bench/http_answer.h"

static char lines[4096]; /* the lines that came, each with '|' behind it */

static void collect(void *context, const char *line, size_t bytes) {
    assert_int_equal(strlen(line), bytes);
    strcat(strcat(lines, line), "|");
}

/* Feeds text in pieces of `piece` bytes and expects the lines, whole at the end of the connection or before. */
static void expect(const char *text, size_t piece, int status_code, const char *expected) {
    http_answer answer;
    lines[0] = '\0';
    http_answer_init(&answer, collect, NULL);
    for (size_t i = 0; i < strlen(text); i += piece) {
        size_t bytes = strlen(text) - i < piece ? strlen(text) - i : piece;
        assert_int_equal(http_answer_take(&answer, text + i, bytes), HD_OK);
    }
    assert_int_equal(http_answer_end(&answer), HD_OK);
    assert_int_equal(answer.status, status_code);
    assert_string_equal(lines, expected);
    http_answer_fini(&answer);
}

static void expect_in_all_pieces(const char *text, int status_code, const char *expected) {
    for (size_t piece = 1; piece <= strlen(text); piece++) expect(text, piece, status_code, expected);
}

static void a_body_by_length_is_read_whatever_the_pieces(void **state) {
    expect_in_all_pieces("HTTP/1.1 200 OK\r\nContent-Length: 9\r\nX: y\r\n\r\nab\r\n\ncd\nzIGNORED", 200, "ab||cd|z|");
    expect_in_all_pieces("HTTP/1.1 404 Not Found\r\ncontent-length:  2 \r\n\r\nno", 404, "no|");
    expect_in_all_pieces("HTTP/1.0 200 OK\ncontent-length: 0\n\n", 200, "");
}

static void a_chunked_body_may_split_lines_anywhere(void **state) {
    expect_in_all_pieces("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                         "8\r\ndata: ab\r\n3;x=1\r\nc\n\n\r\n0D\r\n: alive\ndata:\r\n0\r\nTrailer: t\r\n\r\n",
                         200, "data: abc||: alive|data:|");
}

static void a_body_without_length_ends_with_the_connection(void **state) {
    expect_in_all_pieces("HTTP/1.1 200 OK\r\n\r\none\ntwo", 200, "one|two|");
}

static void an_interim_answer_is_passed_over(void **state) {
    expect_in_all_pieces("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 1\r\n\r\nx", 201, "x|");
}

static void a_connection_that_ends_early_is_a_lost_peer(void **state) {
    static const char *const cut[] = {"", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
                                      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
                                      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"};
    for (size_t i = 0; i < sizeof(cut) / sizeof(cut[0]); i++) {
        http_answer answer;
        lines[0] = '\0';
        http_answer_init(&answer, collect, NULL);
        assert_int_equal(http_answer_take(&answer, cut[i], strlen(cut[i])), HD_OK);
        assert_int_equal(http_answer_end(&answer), HD_PEER_LOST);
        http_answer_fini(&answer);
    }
}

static void what_is_no_answer_is_refused(void **state) {
    static const char *const bad[] = {"SSH-2.0-x\r\n",
                                      "HTTP/1.1 20x OK\r\n",
                                      "HTTP/1.1 2000 OK\r\n",
                                      "HTTP/1.1 200 OK\r\nno colon\r\n",
                                      "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n",
                                      "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n",
                                      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                                      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
                                      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        http_answer answer;
        lines[0] = '\0';
        http_answer_init(&answer, collect, NULL);
        assert_int_equal(http_answer_take(&answer, bad[i], strlen(bad[i])), HD_CORRUPT);
        http_answer_fini(&answer);
    }
}

static void a_line_without_end_is_refused_at_the_bound(void **state) {
    enum { PIECE = 1 << 20 };
    char *piece = malloc(PIECE);
    assert_non_null(piece);
    memset(piece, 'x', PIECE);
    http_answer answer;
    http_answer_init(&answer, collect, NULL);
    const char *head = "HTTP/1.1 200 OK\r\n\r\n";
    assert_int_equal(http_answer_take(&answer, head, strlen(head)), HD_OK);
    for (size_t i = 0; i < HTTP_ANSWER_LINE_MAX / PIECE; i++)
        assert_int_equal(http_answer_take(&answer, piece, PIECE), HD_OK);
    assert_int_equal(http_answer_take(&answer, piece, 1), HD_CORRUPT);
    http_answer_fini(&answer);
    free(piece);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_body_by_length_is_read_whatever_the_pieces),
        cmocka_unit_test(a_chunked_body_may_split_lines_anywhere),
        cmocka_unit_test(a_body_without_length_ends_with_the_connection),
        cmocka_unit_test(an_interim_answer_is_passed_over),
        cmocka_unit_test(a_connection_that_ends_early_is_a_lost_peer),
        cmocka_unit_test(what_is_no_answer_is_refused),
        cmocka_unit_test(a_line_without_end_is_refused_at_the_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
