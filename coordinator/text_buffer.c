/* text_buffer.c - growth by doubling, and JSON's escapes. */
#include "coordinator/text_buffer.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"

void text_buffer_init(text_buffer *buffer) {
    *buffer = (text_buffer){0};
}

void text_buffer_fini(text_buffer *buffer) {
    free(buffer->bytes);
    *buffer = (text_buffer){0};
}

void text_buffer_clear(text_buffer *buffer) {
    buffer->count = 0;
    if (buffer->capacity > 0) buffer->bytes[0] = '\0';
}

void text_buffer_drop(text_buffer *buffer, size_t count) {
    if (count == 0) return;
    buffer->count -= count;
    memmove(buffer->bytes, buffer->bytes + count, buffer->count + 1);
}

static bool reserve(text_buffer *buffer, size_t more) {
    if (buffer->is_failed) return false;
    if (buffer->capacity > buffer->count && more < buffer->capacity - buffer->count) return true;
    size_t needed = buffer->count + more + 1;
    size_t capacity = buffer->capacity < 256 ? 256 : buffer->capacity;
    while (capacity < needed) capacity *= 2;
    char *bytes = fault_strikes(FAULT_ALLOCATION) ? NULL : realloc(buffer->bytes, capacity);
    if (bytes == NULL) {
        buffer->is_failed = true;
        return false;
    }
    buffer->bytes = bytes;
    buffer->capacity = capacity;
    return true;
}

char *text_buffer_take(text_buffer *buffer, size_t *byte_count) {
    if (!reserve(buffer, 0)) return NULL;
    char *bytes = buffer->bytes;
    bytes[buffer->count] = '\0';
    *byte_count = buffer->count;
    *buffer = (text_buffer){0};
    return bytes;
}

void text_buffer_append(text_buffer *buffer, const char *bytes, size_t count) {
    if (!reserve(buffer, count)) return;
    if (count > 0) memcpy(buffer->bytes + buffer->count, bytes, count);
    buffer->count += count;
    buffer->bytes[buffer->count] = '\0';
}

void text_buffer_text(text_buffer *buffer, const char *text) {
    text_buffer_append(buffer, text, strlen(text));
}

void text_buffer_format(text_buffer *buffer, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    va_list again;
    va_copy(again, arguments);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length >= 0 && reserve(buffer, (size_t)length)) {
        vsnprintf(buffer->bytes + buffer->count, (size_t)length + 1, format, again);
        buffer->count += (size_t)length;
    }
    va_end(again);
}

size_t utf8_character_bytes(const char *bytes, size_t count) {
    const unsigned char *b = (const unsigned char *)bytes;
    if (count == 0) return 0;
    if (b[0] < 0x80) return 1;
    size_t length = b[0] >= 0xc2 && b[0] < 0xe0 ? 2 : (b[0] & 0xf0) == 0xe0 ? 3 : b[0] >= 0xf0 && b[0] < 0xf5 ? 4 : 0;
    if (length == 0 || length > count) return 0;
    for (size_t i = 1; i < length; i++) {
        if ((b[i] & 0xc0) != 0x80) return 0;
    }
    /* Overlong forms, surrogates and what lies past U+10FFFF are told by the second byte. */
    if ((b[0] == 0xe0 && b[1] < 0xa0) || (b[0] == 0xed && b[1] > 0x9f)) return 0;
    if ((b[0] == 0xf0 && b[1] < 0x90) || (b[0] == 0xf4 && b[1] > 0x8f)) return 0;
    return length;
}

size_t utf8_count(const char *bytes, size_t count) {
    size_t characters = 0;
    for (size_t i = 0; i < count; i++) characters += ((unsigned char)bytes[i] & 0xc0) != 0x80;
    return characters;
}

size_t utf8_fit(const char *bytes, size_t count, size_t bytes_max) {
    if (count <= bytes_max) return count;
    size_t fit = bytes_max;
    while (fit > 0 && ((unsigned char)bytes[fit] & 0xc0) == 0x80) fit--;
    return fit;
}

static void append_escaped(text_buffer *buffer, unsigned char byte) {
    switch (byte) {
    case '"': text_buffer_append(buffer, "\\\"", 2); break;
    case '\\': text_buffer_append(buffer, "\\\\", 2); break;
    case '\n': text_buffer_append(buffer, "\\n", 2); break;
    case '\r': text_buffer_append(buffer, "\\r", 2); break;
    case '\t': text_buffer_append(buffer, "\\t", 2); break;
    default: text_buffer_format(buffer, "\\u%04x", byte); break;
    }
}

void text_buffer_json(text_buffer *buffer, const char *bytes, size_t count) {
    if (count == 0) {
        text_buffer_append(buffer, "\"\"", 2);
        return;
    }
    text_buffer_append(buffer, "\"", 1);
    size_t plain = 0; /* where the run of bytes begins that is copied as it is */
    for (size_t i = 0; i < count;) {
        unsigned char byte = (unsigned char)bytes[i];
        size_t length = byte < 0x80 ? 1 : utf8_character_bytes(bytes + i, count - i);
        if (length > 0 && byte >= 0x20 && byte != '"' && byte != '\\' && byte != 0x7f) {
            i += length;
            continue;
        }
        text_buffer_append(buffer, bytes + plain, i - plain);
        if (length == 0) text_buffer_append(buffer, "\xef\xbf\xbd", 3);
        else append_escaped(buffer, byte);
        i++;
        plain = i;
    }
    text_buffer_append(buffer, bytes + plain, count - plain);
    text_buffer_append(buffer, "\"", 1);
}

void text_buffer_json_text(text_buffer *buffer, const char *text) {
    if (text == NULL) text_buffer_append(buffer, "null", 4);
    else text_buffer_json(buffer, text, strlen(text));
}

void text_buffer_json_logprob(text_buffer *buffer, float logprob) {
    /* NaN compares false and becomes the floor as well. Nine digits bring a float back exactly. */
    if (!(logprob > -9999.0f)) text_buffer_text(buffer, "-9999.0");
    else text_buffer_format(buffer, "%.9g", (double)(isinf(logprob) ? 0.0f : logprob));
}
