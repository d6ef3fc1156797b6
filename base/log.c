/* log.c - a line is built on the stack and leaves with one write, so no lock is needed and nothing is allocated. */
#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINE_BYTES 4096 /* PIPE_BUF: a write of this size into a pipe is still atomic */

static _Atomic int minimum_level = HD_LOG_INFO;

static const char *const level_names[] = {
    [HD_LOG_DEBUG] = "debug", [HD_LOG_INFO] = "info", [HD_LOG_WARN] = "warn", [HD_LOG_ERROR] = "error"};

static char origin[160]; /* "origin=NAME ", or nothing */
static _Atomic bool has_origin;

void hd_log_set_origin(const char *name) {
    char quoted[128];
    if (atomic_load(&has_origin)) return; /* it is being read */
    snprintf(origin, sizeof(origin), "origin=%s ", hd_log_quote(name, quoted, sizeof(quoted)));
    atomic_store_explicit(&has_origin, true, memory_order_release);
}

void hd_log_set_level(hd_log_level minimum) {
    atomic_store_explicit(&minimum_level, (int)minimum, memory_order_relaxed);
}

/* Bytes of text that fit into `room` without splitting a UTF-8 character. */
static size_t whole_characters(const char *text, size_t bytes, size_t room) {
    if (bytes <= room) return bytes;
    while (room > 0 && ((unsigned char)text[room] & 0xC0) == 0x80) room--;
    return room;
}

void hd_log(hd_log_level level, const char *event, const char *pairs_format, ...) {
    if ((int)level < atomic_load_explicit(&minimum_level, memory_order_relaxed)) return;

    char line[LINE_BYTES + 1];
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size_t used = strftime(line, sizeof(line), "time=%Y-%m-%dT%H:%M:%S", &utc);
    int head =
        snprintf(line + used, sizeof(line) - used, ".%03ldZ level=%s %sevent=%s ", now.tv_nsec / 1000000,
                 level_names[level], atomic_load_explicit(&has_origin, memory_order_acquire) ? origin : "", event);
    if (head < 0) return;
    used += (size_t)head < sizeof(line) - used ? (size_t)head : sizeof(line) - used - 1;

    va_list arguments;
    va_start(arguments, pairs_format);
    int pairs = vsnprintf(line + used, sizeof(line) - used, pairs_format, arguments);
    va_end(arguments);
    if (pairs < 0) pairs = 0;
    size_t end = used + whole_characters(line + used, (size_t)pairs, sizeof(line) - used - 2);
    if (pairs == 0 && end > 0) end--; /* no pairs: the space before them goes too */

    /* A value that was not quoted must not be able to start a line of its own. */
    for (size_t i = 0; i < end; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7F) line[i] = ' ';
    line[end++] = '\n';
    /* There is nowhere to report that standard error is gone, and serving goes on without it. */
    ssize_t written = write(STDERR_FILENO, line, end);
    (void)written;
}

static bool needs_quotes(const char *text) {
    if (*text == '\0') return true;
    for (const unsigned char *c = (const unsigned char *)text; *c != '\0'; c++)
        if (*c <= ' ' || *c == '"' || *c == '=' || *c == '\\' || *c == 0x7F) return true;
    return false;
}

const char *hd_log_quote(const char *text, char *buffer, unsigned long buffer_bytes) {
    if (buffer_bytes == 0) return "";
    if (text == NULL) text = "";
    if (buffer_bytes < 3) { /* no room for a pair of quotes */
        buffer[0] = '\0';
        return buffer;
    }
    if (!needs_quotes(text)) {
        size_t bytes = whole_characters(text, strlen(text), buffer_bytes - 1);
        memcpy(buffer, text, bytes);
        buffer[bytes] = '\0';
        return buffer;
    }

    size_t used = 0, character = 0; /* character: where the last one that is whole so far begins */
    size_t room = buffer_bytes - 2; /* for the closing quote and the terminator */
    buffer[used++] = '"';
    for (const unsigned char *c = (const unsigned char *)text; *c != '\0'; c++) {
        char piece[5] = {(char)*c};
        if (*c == '"' || *c == '\\') snprintf(piece, sizeof(piece), "\\%c", *c);
        else if (*c == '\n') strcpy(piece, "\\n");
        else if (*c == '\t') strcpy(piece, "\\t");
        else if (*c == '\r') strcpy(piece, "\\r");
        else if (*c < 0x20 || *c == 0x7F) snprintf(piece, sizeof(piece), "\\x%02x", *c);
        if ((*c & 0xC0) != 0x80) character = used;
        size_t bytes = strlen(piece);
        if (used + bytes > room) {
            if ((*c & 0xC0) == 0x80) used = character; /* the character's first bytes are in, its last do not fit */
            break;
        }
        memcpy(buffer + used, piece, bytes);
        used += bytes;
    }
    buffer[used++] = '"';
    buffer[used] = '\0';
    return buffer;
}
