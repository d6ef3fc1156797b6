/* text_model.h - what text.c and text_stream.c share: the opened crate and the table of its pieces. */
#ifndef MODEL_TEXT_MODEL_H
#define MODEL_TEXT_MODEL_H

#include "model/text/text_native.h"

/* Bytes as text: malloc'ed, zero terminated, U+FFFD where they are no character. NULL without memory. */
char *text_stream_lossy(const uint8_t *bytes, size_t byte_count);

struct text_model {
    text_native *native;
    text_native_facts facts; /* borrowed from native */
};

#endif
