#include "base/log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What hd_log writes while it is captured goes into a pipe instead of standard error. */
static int capture_begin(int *saved) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    *saved = dup(STDERR_FILENO);
    dup2(ends[1], STDERR_FILENO);
    close(ends[1]);
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    return ends[0];
}

static size_t capture_end(int saved, int reader, char *text, size_t text_bytes) {
    dup2(saved, STDERR_FILENO);
    close(saved);
    ssize_t bytes = read(reader, text, text_bytes - 1);
    close(reader);
    if (bytes < 0) bytes = 0;
    text[bytes] = '\0';
    return (size_t)bytes;
}

static void a_line_is_logfmt_with_time_level_and_event(void **state) {
    char text[1024];
    int saved, reader = capture_begin(&saved);
    hd_log(HD_LOG_WARN, "listening", "address=%s threads=%d", "127.0.0.1:8000", 4);
    capture_end(saved, reader, text, sizeof(text));
    int year, month, day, hour, minute, second, millisecond, used = 0;
    assert_int_equal(sscanf(text, "time=%4d-%2d-%2dT%2d:%2d:%2d.%3dZ %n", &year, &month, &day, &hour, &minute, &second,
                            &millisecond, &used),
                     7);
    assert_string_equal(text + used, "level=warn event=listening address=127.0.0.1:8000 threads=4\n");
}

static void a_line_without_pairs_ends_after_the_event(void **state) {
    char text[1024];
    int saved, reader = capture_begin(&saved);
    hd_log(HD_LOG_ERROR, "stopped", "%s", "");
    capture_end(saved, reader, text, sizeof(text));
    assert_non_null(strstr(text, " level=error event=stopped\n"));
}

static void lines_below_the_level_are_dropped(void **state) {
    char text[1024];
    int saved, reader = capture_begin(&saved);
    hd_log(HD_LOG_DEBUG, "hidden", "a=1");
    hd_log_set_level(HD_LOG_ERROR);
    hd_log(HD_LOG_WARN, "hidden", "a=2");
    hd_log_set_level(HD_LOG_DEBUG);
    hd_log(HD_LOG_DEBUG, "shown", "a=3");
    hd_log_set_level(HD_LOG_INFO);
    capture_end(saved, reader, text, sizeof(text));
    assert_null(strstr(text, "hidden"));
    assert_non_null(strstr(text, "level=debug event=shown a=3\n"));
}

static void a_value_cannot_begin_a_line_of_its_own(void **state) {
    char text[1024];
    int saved, reader = capture_begin(&saved);
    hd_log(HD_LOG_INFO, "request", "path=%s", "/x\ntime=now level=error event=forged\r\x1b[2J");
    size_t bytes = capture_end(saved, reader, text, sizeof(text));
    assert_ptr_equal(strchr(text, '\n'), text + bytes - 1);
    assert_null(strpbrk(text, "\r\x1b"));
}

static void a_line_too_long_is_cut_and_still_ends(void **state) {
    char *value = malloc(20001), text[8192];
    assert_non_null(value);
    for (int i = 0; i < 10000; i++) memcpy(value + 2 * i, "\xc3\xa4", 2);
    value[20000] = '\0';
    int saved, reader = capture_begin(&saved);
    hd_log(HD_LOG_INFO, "long", "value=%s", value);
    size_t bytes = capture_end(saved, reader, text, sizeof(text));
    free(value);
    assert_true(bytes <= 4096 && bytes > 4000);
    assert_int_equal(text[bytes - 1], '\n');
    assert_int_equal((unsigned char)text[bytes - 2], 0xa4); /* no half character */
}

static void quoting_leaves_plain_words_alone(void **state) {
    char buffer[64];
    assert_string_equal(hd_log_quote("bf16", buffer, sizeof(buffer)), "bf16");
    assert_string_equal(hd_log_quote("", buffer, sizeof(buffer)), "\"\"");
    assert_string_equal(hd_log_quote(NULL, buffer, sizeof(buffer)), "\"\"");
    assert_string_equal(hd_log_quote("two words", buffer, sizeof(buffer)), "\"two words\"");
    assert_string_equal(hd_log_quote("a=\"b\"\\\n\x01", buffer, sizeof(buffer)), "\"a=\\\"b\\\"\\\\\\n\\x01\"");
}

/* Undoes hd_log_quote. */
static size_t unquote(const char *quoted, char *text) {
    size_t bytes = strlen(quoted), used = 0;
    if (quoted[0] != '"') return strlen(strcpy(text, quoted));
    assert_true(bytes >= 2 && quoted[bytes - 1] == '"');
    for (size_t i = 1; i < bytes - 1; i++) {
        char c = quoted[i];
        assert_true(c != '"');
        if (c == '\\') {
            c = quoted[++i];
            assert_true(i < bytes - 1);
            if (c == 'n') c = '\n';
            else if (c == 't') c = '\t';
            else if (c == 'r') c = '\r';
            else if (c == 'x') {
                char digits[3] = {quoted[i + 1], quoted[i + 2], '\0'};
                c = (char)strtol(digits, NULL, 16);
                i += 2;
            }
        }
        text[used++] = c;
    }
    text[used] = '\0';
    return used;
}

static void quoting_is_reversible_and_cuts_whole_characters(void **state) {
    static const char *const pieces[] = {
        "a", " ", "=", "\"", "\\", "\n", "\x7f", "\xc3\xa4", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\t", "\x02"};
    unsigned seed = 20240601;
    for (int round = 0; round < 20000; round++) {
        char text[128] = "", buffer[600], back[600];
        int count = (int)(rand_r(&seed) % 20);
        for (int i = 0; i < count; i++)
            strcat(text, pieces[(unsigned)rand_r(&seed) % (sizeof(pieces) / sizeof(pieces[0]))]);
        hd_log_quote(text, buffer, sizeof(buffer));
        unquote(buffer, back);
        assert_string_equal(back, text);

        size_t room = 3 + (size_t)rand_r(&seed) % 40;
        memset(buffer, '#', sizeof(buffer));
        hd_log_quote(text, buffer, room);
        assert_true(strlen(buffer) < room);
        assert_int_equal(buffer[room], '#');
        size_t kept = unquote(buffer, back);
        assert_memory_equal(back, text, kept);                   /* a beginning of it, */
        assert_true(((unsigned char)text[kept] & 0xC0) != 0x80); /* cut between characters */
    }
}

static void a_node_names_itself_in_every_line(void **state) {
    char text[1024];
    hd_log_set_origin("a node");
    int saved, reader = capture_begin(&saved);
    hd_log(HD_LOG_WARN, "listening", "threads=%d", 4);
    capture_end(saved, reader, text, sizeof(text));
    assert_non_null(strstr(text, " level=warn origin=\"a node\" event=listening threads=4\n"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_line_is_logfmt_with_time_level_and_event),
        cmocka_unit_test(a_line_without_pairs_ends_after_the_event),
        cmocka_unit_test(lines_below_the_level_are_dropped),
        cmocka_unit_test(a_value_cannot_begin_a_line_of_its_own),
        cmocka_unit_test(a_line_too_long_is_cut_and_still_ends),
        cmocka_unit_test(quoting_leaves_plain_words_alone),
        cmocka_unit_test(quoting_is_reversible_and_cuts_whole_characters),
        cmocka_unit_test(a_node_names_itself_in_every_line), /* last: for good */
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
