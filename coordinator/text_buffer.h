/* text_buffer.h - bytes that grow: what an answer is written into.
 *
 * Running out of memory sticks: later appends do nothing and is_failed stays true, so a writer checks once, at its end.
 * Threads: one at a time. */
#ifndef COORDINATOR_TEXT_BUFFER_H
#define COORDINATOR_TEXT_BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct text_buffer {
    char *bytes; /* zero terminated where capacity is not 0 */
    size_t count, capacity;
    bool is_failed;
} text_buffer;

void text_buffer_init(text_buffer *buffer);
void text_buffer_fini(text_buffer *buffer);
void text_buffer_clear(text_buffer *buffer);                     /* keeps the memory */
void text_buffer_drop(text_buffer *buffer, size_t count);        /* the first count bytes */
char *text_buffer_take(text_buffer *buffer, size_t *byte_count); /* the caller frees it; NULL when is_failed */

void text_buffer_append(text_buffer *buffer, const char *bytes, size_t count);
void text_buffer_text(text_buffer *buffer, const char *text);
void text_buffer_format(text_buffer *buffer, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* A JSON string with its quotes. Bytes that are not UTF-8 become U+FFFD, so that the answer is always JSON. */
void text_buffer_json(text_buffer *buffer, const char *bytes, size_t count);
void text_buffer_json_text(text_buffer *buffer, const char *text); /* NULL is null */
/* Log-probabilities: JSON has no infinity, so what is below -9999 is written as -9999. */
void text_buffer_json_logprob(text_buffer *buffer, float logprob);

/* The bytes of the UTF-8 character that bytes starts with, 0 where it is none (or cut off). */
size_t utf8_character_bytes(const char *bytes, size_t count);
/* The characters of text that is UTF-8. */
size_t utf8_count(const char *bytes, size_t count);
/* The longest start of bytes, at most bytes_max long, that does not cut a character. */
size_t utf8_fit(const char *bytes, size_t count, size_t bytes_max);

#endif
