/* fuzz_text_stream.c - bytes as one-byte tokens, pushed one by one: the pieces are whole characters, and together what
 * the bytes are as a whole. The first byte sets the switches. */
#include <stdlib.h>
#include <string.h>

#include "model/text/text.h"
#include "model/text/text_model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool is_kept) {
    if (!is_kept) abort();
}

static void require_whole(const char *piece, size_t bytes) {
    for (size_t at = 0; at < bytes;) {
        unsigned char first = (unsigned char)piece[at];
        size_t length = first < 0x80 ? 1 : first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
        require((first < 0x80 || first >= 0xc2) && at + length <= bytes);
        for (size_t i = 1; i < length; i++) require(((unsigned char)piece[at + i] & 0xc0) == 0x80);
        at += length;
    }
}

static void fill_tables(uint8_t *flags, uint32_t *offsets, uint8_t *bytes) {
    for (unsigned i = 0; i < 256; i++) {
        flags[i] = i == 0 ? TEXT_PIECE_PRESENT | TEXT_PIECE_SPECIAL : TEXT_PIECE_PRESENT;
        offsets[i] = i;
        bytes[i] = (uint8_t)i;
    }
    offsets[256] = 256;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t flags[256], bytes[256];
    uint32_t offsets[257];
    if (size == 0) return 0;
    fill_tables(flags, offsets, bytes);
    bool skips_special = data[0] & 1, strips = data[0] & 2;
    text_model model = {.facts = {.id_count = 256,
                                  .flags = flags,
                                  .offsets = offsets,
                                  .bytes = bytes,
                                  .strip = {' '},
                                  .strip_bytes = 1,
                                  .strip_count = strips ? 2 : 0}};
    uint8_t *shown = malloc(size);
    char *streamed = malloc(6 * size + 8);
    text_stream *stream = NULL;
    require(shown != NULL && streamed != NULL && text_stream_open(&model, skips_special, &stream) == HD_OK);
    size_t shown_bytes = 0, streamed_bytes = 0;
    for (size_t i = 1; i <= size; i++) {
        const char *piece;
        size_t piece_bytes;
        if (i < size && !(skips_special && data[i] == 0)) shown[shown_bytes++] = data[i];
        hd_status status = i < size ? text_stream_push(stream, data[i], &piece, &piece_bytes)
                                    : text_stream_finish(stream, &piece, &piece_bytes);
        require(status == HD_OK);
        require_whole(piece, piece_bytes);
        memcpy(streamed + streamed_bytes, piece, piece_bytes);
        streamed_bytes += piece_bytes;
    }
    size_t stripped = 0;
    while (strips && stripped < 2 && stripped < shown_bytes && shown[stripped] == ' ') stripped++;
    char *whole = text_stream_lossy(shown + stripped, shown_bytes - stripped);
    require(whole != NULL && memcmp(whole, streamed, streamed_bytes) == 0 && whole[streamed_bytes] == '\0');
    text_stream_close(stream);
    free(whole);
    free(streamed);
    free(shown);
    return 0;
}
