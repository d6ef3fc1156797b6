/* text_stream.c - ids to text, one at a time: the bytes of each id from the model's table, put together into whole
 * characters.
 *
 * At most three bytes of an unfinished character wait between calls. What can no longer become a character is one
 * U+FFFD for each longest part that could have (Unicode's recommended practice), wherever the bytes came from: Hugging
 * Face does the same for byte-level vocabularies; for <0xNN> tokens it gives up a whole run of bytes, good characters
 * before the bad byte included, which no stream could follow. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "model/text/text.h"
#include "model/text/text_model.h"

#define REPLACEMENT "\xef\xbf\xbd"
#define REPLACEMENT_BYTES 3u

/* An unfinished character. */
typedef struct {
    uint8_t bytes[4];
    uint32_t count, expected;
} utf8_pending;

struct text_stream {
    const text_native_facts *facts;
    bool skips_special, has_begun; /* begun: a token was put out, so the next is not the first */
    uint32_t strip_left;
    utf8_pending pending;
    char *piece; /* what the last call gave out */
    size_t piece_capacity;
};

/* Bytes of the character that starts with this one; 0: none does. */
static uint32_t utf8_length(uint8_t first) {
    if (first < 0x80) return 1;
    if (first >= 0xc2 && first <= 0xdf) return 2;
    if (first >= 0xe0 && first <= 0xef) return 3;
    if (first >= 0xf0 && first <= 0xf4) return 4;
    return 0;
}

/* Whether the byte may come next: the second byte's range rules out overlong forms, surrogates and what is past
 * U+10FFFF. */
static bool utf8_continues(const utf8_pending *pending, uint8_t byte) {
    uint8_t low = 0x80, high = 0xbf;
    if (pending->count == 1) {
        switch (pending->bytes[0]) {
        case 0xe0: low = 0xa0; break;
        case 0xed: high = 0x9f; break;
        case 0xf0: low = 0x90; break;
        case 0xf4: high = 0x8f; break;
        default: break;
        }
    }
    return byte >= low && byte <= high;
}

/* Takes one byte; writes what it completes to out and returns its size, at most two replacements' or one's and a byte.
 * */
static size_t utf8_push(utf8_pending *pending, uint8_t byte, char *out) {
    size_t size = 0;
    if (pending->count > 0 && !utf8_continues(pending, byte)) {
        memcpy(out, REPLACEMENT, REPLACEMENT_BYTES);
        size = REPLACEMENT_BYTES;
        pending->count = 0;
    }
    if (pending->count == 0) {
        pending->expected = utf8_length(byte);
        if (pending->expected == 0) {
            memcpy(out + size, REPLACEMENT, REPLACEMENT_BYTES);
            return size + REPLACEMENT_BYTES;
        }
    }
    pending->bytes[pending->count++] = byte;
    if (pending->count == pending->expected) {
        memcpy(out + size, pending->bytes, pending->count);
        size += pending->count;
        pending->count = 0;
    }
    return size;
}

/* What is left unfinished at the end is one replacement. */
static size_t utf8_finish(utf8_pending *pending, char *out) {
    if (pending->count == 0) return 0;
    memcpy(out, REPLACEMENT, REPLACEMENT_BYTES);
    pending->count = 0;
    return REPLACEMENT_BYTES;
}

/* Every byte gives at most two replacements, the end one. */
static size_t utf8_bound(size_t bytes) {
    return (2 * bytes + 1) * REPLACEMENT_BYTES;
}

char *text_stream_lossy(const uint8_t *bytes, size_t byte_count) {
    char *text = malloc(utf8_bound(byte_count) + 1);
    if (text == NULL) return NULL;
    utf8_pending pending = {{0}, 0, 0};
    size_t size = 0;
    for (size_t i = 0; i < byte_count; i++) size += utf8_push(&pending, bytes[i], text + size);
    size += utf8_finish(&pending, text + size);
    text[size] = '\0';
    return text;
}

hd_status text_stream_open(const text_model *model, bool skip_special_tokens, text_stream **stream) {
    text_stream *s = calloc(1, sizeof(*s));
    if (s == NULL) return HD_NO_MEMORY;
    s->facts = &model->facts;
    s->skips_special = skip_special_tokens;
    s->strip_left = model->facts.strip_count;
    *stream = s;
    return HD_OK;
}

void text_stream_close(text_stream *stream) {
    if (stream == NULL) return;
    free(stream->piece);
    free(stream);
}

static bool reserve(text_stream *stream, size_t bytes) {
    if (bytes <= stream->piece_capacity) return true;
    char *grown = realloc(stream->piece, bytes);
    if (grown == NULL) return false;
    stream->piece = grown;
    stream->piece_capacity = bytes;
    return true;
}

/* Drops what a decoder drops at the start of a text. Returns how many bytes of the piece go. */
static size_t strip_start(text_stream *stream, size_t piece_bytes) {
    const text_native_facts *facts = stream->facts;
    size_t dropped = 0;
    while (stream->strip_left > 0 && dropped < piece_bytes) {
        bool matches = piece_bytes - dropped >= facts->strip_bytes &&
                       memcmp(stream->piece + dropped, facts->strip, facts->strip_bytes) == 0;
        stream->strip_left = matches ? stream->strip_left - 1 : 0;
        if (matches) dropped += facts->strip_bytes;
    }
    return dropped;
}

static void give(text_stream *stream, size_t size, const char **piece, size_t *piece_bytes) {
    size_t dropped = strip_start(stream, size);
    *piece = stream->piece + dropped;
    *piece_bytes = size - dropped;
}

hd_status text_stream_push(text_stream *stream, uint32_t id, const char **piece, size_t *piece_bytes) {
    const text_native_facts *facts = stream->facts;
    uint8_t flags = id < facts->id_count ? facts->flags[id] : 0;
    bool is_shown = (flags & TEXT_PIECE_PRESENT) != 0 && !(stream->skips_special && (flags & TEXT_PIECE_SPECIAL) != 0);
    bool is_first = is_shown && !stream->has_begun && facts->first_offsets != NULL;
    const uint32_t *offsets = is_first ? facts->first_offsets : facts->offsets;
    const uint8_t *bytes = is_shown ? (is_first ? facts->first_bytes : facts->bytes) + offsets[id] : NULL;
    size_t byte_count = is_shown ? offsets[id + 1] - offsets[id] : 0;
    if (!reserve(stream, utf8_bound(byte_count + 1))) return HD_NO_MEMORY;

    size_t size = 0;
    if (is_shown && stream->has_begun && facts->is_joined) size += utf8_push(&stream->pending, ' ', stream->piece);
    for (size_t i = 0; i < byte_count; i++) size += utf8_push(&stream->pending, bytes[i], stream->piece + size);
    stream->has_begun = stream->has_begun || is_shown;
    assert(size <= stream->piece_capacity);
    give(stream, size, piece, piece_bytes);
    return HD_OK;
}

hd_status text_stream_finish(text_stream *stream, const char **piece, size_t *piece_bytes) {
    if (!reserve(stream, utf8_bound(0))) return HD_NO_MEMORY;
    give(stream, utf8_finish(&stream->pending, stream->piece), piece, piece_bytes);
    return HD_OK;
}
