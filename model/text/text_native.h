/* text_native.h - the C face of the Rust crate in this folder (src/abi.rs); text.c and text_stream.c alone include it.
 *
 * Every call catches panics; what foreign bytes cost is bounded (src/limits.rs). Buffers that come back are malloc'ed.
 * Threads: as text.h. */
#ifndef MODEL_TEXT_NATIVE_H
#define MODEL_TEXT_NATIVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* src/abi.rs holds the same list. */
typedef enum {
    TEXT_NATIVE_OK,
    TEXT_NATIVE_INVALID,
    TEXT_NATIVE_UNSUPPORTED,
    TEXT_NATIVE_CORRUPT,
    TEXT_NATIVE_NOT_FOUND,
    TEXT_NATIVE_IO,
    TEXT_NATIVE_NO_MEMORY,
    TEXT_NATIVE_FULL,
} text_native_status;

typedef struct text_native text_native;

typedef struct {
    const char *data;
    size_t bytes;
} text_native_slice;

typedef struct {
    void *data; /* malloc'ed, zero terminated */
    size_t count;
} text_native_buffer;

#define TEXT_PIECE_PRESENT 1u /* the id has a token */
#define TEXT_PIECE_SPECIAL 2u

/* The bytes of every id: bytes[offsets[id]] up to bytes[offsets[id + 1]]. Borrowed from the model. */
typedef struct {
    uint32_t id_count; /* ids are below it */
    const uint8_t *flags;
    const uint32_t *offsets;
    const uint8_t *bytes;
    const uint32_t *first_offsets; /* the same for a token that comes first, where that differs; else NULL */
    const uint8_t *first_bytes;
    bool is_joined;       /* tokens are joined by a blank */
    uint8_t strip[4];     /* this character is dropped at the start of a text, */
    uint32_t strip_bytes; /* which has so many bytes, */
    uint32_t strip_count; /* at most so many times */
    uint32_t vocabulary_size;
    bool has_bos, has_eos;
    uint32_t bos_id, eos_id;
    bool has_template;
} text_native_facts;

/* error_text takes one sentence, zero terminated, in error_bytes bytes. */
text_native_status text_native_open(text_native_slice directory, text_native **model, char *error_text,
                                    size_t error_bytes);
void text_native_close(text_native *model);
void text_native_describe(const text_native *model, text_native_facts *facts);
/* What is wrong with a template that does not compile; false when all do. */
bool text_native_template_problem(const text_native *model, char *text, size_t text_bytes);
/* ids->data: uint32_t[ids->count] */
text_native_status text_native_encode(const text_native *model, text_native_slice text, bool add_special_tokens,
                                      text_native_buffer *ids, char *error_text, size_t error_bytes);
/* template_override.data may be NULL */
text_native_status text_native_render(const text_native *model, text_native_slice template_override,
                                      text_native_slice context, text_native_buffer *text, char *error_text,
                                      size_t error_bytes);

#endif
