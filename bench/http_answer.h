/* http_answer.h - reads an HTTP/1.1 answer from bytes as they come, and hands out its body line by line.
 *
 *   STATUS -> HEADERS -> BODY (by length, or to the end of the connection) -> DONE
 *                     -> CHUNK_SIZE -> CHUNK_BODY -> CHUNK_END -> CHUNK_SIZE ... -> TRAILERS -> DONE
 *
 * A body line ends at '\n' (a '\r' before it is dropped), which is what server-sent events are made of; what follows
 * the last '\n' is the last line. A line of more than HTTP_ANSWER_LINE_MAX bytes is refused, so a peer cannot make the
 * reader grow.
 * Threads: an answer belongs to one thread. */
#ifndef BENCH_HTTP_ANSWER_H
#define BENCH_HTTP_ANSWER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define HTTP_ANSWER_LINE_MAX ((size_t)16 << 20)

typedef enum {
    HTTP_STATUS,
    HTTP_HEADERS,
    HTTP_BODY,
    HTTP_CHUNK_SIZE,
    HTTP_CHUNK_BODY,
    HTTP_CHUNK_END,
    HTTP_TRAILERS,
    HTTP_DONE,
} http_answer_state;

/* line is zero terminated, without its end, and borrowed for the call. */
typedef void http_answer_line(void *context, const char *line, size_t bytes);

typedef struct http_answer {
    http_answer_state state;
    int status; /* 200; 0 until the status line is there */
    bool is_chunked;
    uint64_t remaining; /* of the body or of the chunk; UINT64_MAX: until the connection ends */
    char *line;         /* the line that is being collected: of the head, or of the body */
    size_t line_bytes, line_capacity;
    char *head; /* chunk sizes and trailers are collected apart, while a body line waits for its rest */
    size_t head_bytes, head_capacity;
    http_answer_line *on_line;
    void *context;
} http_answer;

void http_answer_init(http_answer *answer, http_answer_line *on_line, void *context);
void http_answer_fini(http_answer *answer);

/* Takes all bytes. HD_OK: go on, or state is HTTP_DONE. HD_CORRUPT: not an answer, or a line beyond the bound.
 * HD_NO_MEMORY. */
hd_status http_answer_take(http_answer *answer, const char *bytes, size_t count);
/* The connection has ended. HD_OK where the answer is whole; else HD_PEER_LOST. */
hd_status http_answer_end(http_answer *answer);

#endif
