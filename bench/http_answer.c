/* http_answer.c - the states of http_answer.h; the head's lines and the body's are collected in their own buffers. */
#include "bench/http_answer.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define UNTIL_END UINT64_MAX

void http_answer_init(http_answer *answer, http_answer_line *on_line, void *context) {
    *answer = (http_answer){.state = HTTP_STATUS, .on_line = on_line, .context = context};
}

void http_answer_fini(http_answer *answer) {
    free(answer->line);
    free(answer->head);
    answer->line = answer->head = NULL;
}

static hd_status append(char **buffer, size_t *bytes, size_t *capacity, const char *from, size_t count) {
    if (count > HTTP_ANSWER_LINE_MAX - *bytes) return HD_CORRUPT;
    if (*bytes + count + 1 > *capacity) {
        size_t wanted = 2 * (*bytes + count + 1);
        char *grown = realloc(*buffer, wanted);
        if (grown == NULL) return HD_NO_MEMORY;
        *buffer = grown;
        *capacity = wanted;
    }
    memcpy(*buffer + *bytes, from, count);
    *bytes += count;
    (*buffer)[*bytes] = '\0';
    return HD_OK;
}

static hd_status body_take(http_answer *a, const char *bytes, size_t count) {
    while (count > 0) {
        const char *end = memchr(bytes, '\n', count);
        size_t part = end != NULL ? (size_t)(end - bytes) : count;
        hd_status status = append(&a->line, &a->line_bytes, &a->line_capacity, bytes, part);
        if (status != HD_OK) return status;
        if (end == NULL) return HD_OK;
        if (a->line_bytes > 0 && a->line[a->line_bytes - 1] == '\r') a->line[--a->line_bytes] = '\0';
        a->on_line(a->context, a->line, a->line_bytes);
        a->line_bytes = 0;
        bytes = end + 1;
        count -= part + 1;
    }
    return HD_OK;
}

static void body_done(http_answer *a) {
    if (a->line_bytes > 0) a->on_line(a->context, a->line, a->line_bytes);
    a->line_bytes = 0;
    a->state = HTTP_DONE;
}

static bool is_digits(const char *text) {
    if (*text == '\0') return false;
    for (; *text != '\0'; text++)
        if (!isdigit((unsigned char)*text)) return false;
    return true;
}

static hd_status header_line(http_answer *a, char *line) {
    char *colon = strchr(line, ':');
    if (colon == NULL) return HD_CORRUPT;
    *colon = '\0';
    char *value = colon + 1 + strspn(colon + 1, " \t");
    for (size_t end = strlen(value); end > 0 && (value[end - 1] == ' ' || value[end - 1] == '\t'); end--)
        value[end - 1] = '\0';
    if (strcasecmp(line, "transfer-encoding") == 0) {
        if (strcasecmp(value, "chunked") != 0) return HD_CORRUPT;
        a->is_chunked = true;
    } else if (strcasecmp(line, "content-length") == 0) {
        if (!is_digits(value)) return HD_CORRUPT;
        a->remaining = strtoull(value, NULL, 10);
    }
    return HD_OK;
}

static hd_status head_done(http_answer *a) {
    if (a->status / 100 == 1) { /* an interim answer: the real one follows */
        a->state = HTTP_STATUS;
        return HD_OK;
    }
    if (a->is_chunked) a->state = HTTP_CHUNK_SIZE;
    else a->state = HTTP_BODY;
    if (a->status == 204 || a->status == 304 || (!a->is_chunked && a->remaining == 0)) body_done(a);
    return HD_OK;
}

static hd_status status_line(http_answer *a, const char *line) {
    if (strncmp(line, "HTTP/1.", 7) != 0 || !isdigit((unsigned char)line[7]) || line[8] != ' ') return HD_CORRUPT;
    const char *code = line + 9;
    for (int i = 0; i < 3; i++)
        if (!isdigit((unsigned char)code[i])) return HD_CORRUPT;
    if (code[3] != '\0' && code[3] != ' ') return HD_CORRUPT;
    a->status = (code[0] - '0') * 100 + (code[1] - '0') * 10 + (code[2] - '0');
    a->is_chunked = false;
    a->remaining = UNTIL_END;
    a->state = HTTP_HEADERS;
    return HD_OK;
}

static hd_status chunk_size_line(http_answer *a, const char *line) {
    char *end;
    if (!isxdigit((unsigned char)*line)) return HD_CORRUPT;
    a->remaining = strtoull(line, &end, 16);
    if ((*end != '\0' && *end != ';' && *end != ' ') || a->remaining > UINT64_MAX / 2) return HD_CORRUPT;
    a->state = a->remaining == 0 ? HTTP_TRAILERS : HTTP_CHUNK_BODY;
    return HD_OK;
}

static hd_status head_line(http_answer *a, char *line) {
    switch (a->state) {
    case HTTP_STATUS: return status_line(a, line);
    case HTTP_HEADERS: return *line == '\0' ? head_done(a) : header_line(a, line);
    case HTTP_CHUNK_SIZE: return chunk_size_line(a, line);
    case HTTP_CHUNK_END:
        if (*line != '\0') return HD_CORRUPT;
        a->state = HTTP_CHUNK_SIZE;
        return HD_OK;
    case HTTP_TRAILERS:
        if (*line == '\0') body_done(a);
        return HD_OK;
    default: return HD_CORRUPT;
    }
}

/* Takes bytes up to the end of one line of the head; *taken says how many. */
static hd_status head_take(http_answer *a, const char *bytes, size_t count, size_t *taken) {
    const char *end = memchr(bytes, '\n', count);
    *taken = end != NULL ? (size_t)(end - bytes) + 1 : count;
    hd_status status = append(&a->head, &a->head_bytes, &a->head_capacity, bytes, end != NULL ? *taken - 1 : *taken);
    if (status != HD_OK || end == NULL) return status;
    if (a->head_bytes > 0 && a->head[a->head_bytes - 1] == '\r') a->head[--a->head_bytes] = '\0';
    a->head_bytes = 0;
    return head_line(a, a->head);
}

hd_status http_answer_take(http_answer *a, const char *bytes, size_t count) {
    while (count > 0 && a->state != HTTP_DONE) {
        size_t taken;
        hd_status status;
        if (a->state == HTTP_BODY || a->state == HTTP_CHUNK_BODY) {
            taken = count < a->remaining ? count : (size_t)a->remaining;
            status = body_take(a, bytes, taken);
            if (a->remaining != UNTIL_END) a->remaining -= taken;
            if (status == HD_OK && a->remaining == 0) {
                if (a->state == HTTP_BODY) body_done(a);
                else a->state = HTTP_CHUNK_END;
            }
        } else {
            status = head_take(a, bytes, count, &taken);
        }
        if (status != HD_OK) return status;
        bytes += taken;
        count -= taken;
    }
    return HD_OK;
}

hd_status http_answer_end(http_answer *a) {
    if (a->state == HTTP_BODY && a->remaining == UNTIL_END) body_done(a);
    return a->state == HTTP_DONE ? HD_OK : HD_PEER_LOST;
}
