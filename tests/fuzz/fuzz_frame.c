/* fuzz_frame.c - a tensor frame as it comes off the wire. The first byte says which:
 *
 *   r  the bytes as they are
 *   s  the bytes with the checksum that fits, so that what lies behind it is reached */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>

#include "base/memory.h"
#include "proto/frame.h"

#define CHECKSUM_AT 56u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool is_kept) {
    if (!is_kept) abort();
}

static void check_again(const frame *f, const uint8_t *bytes, size_t size) {
    unsigned char head[FRAME_HEAD_BYTES];
    frame_part pieces[FRAME_PIECES_MAX];
    require(frame_bytes(f) == size);
    unsigned count = frame_encode(f, head, pieces);
    size_t at = 0;
    for (unsigned i = 0; i < count; i++) {
        require(at + pieces[i].count <= size && memcmp(bytes + at, pieces[i].bytes, pieces[i].count) == 0);
        at += pieces[i].count;
    }
    require(at == size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0 || (data[0] != 'r' && data[0] != 's')) return 0;
    size_t count = size - 1;
    uint8_t *bytes = hd_alloc(count + 1, FRAME_ALIGN);
    if (bytes == NULL) return 0;
    memcpy(bytes, data + 1, count);
    if (data[0] == 's' && count >= FRAME_HEAD_BYTES) {
        memset(bytes + CHECKSUM_AT, 0, 8);
        uint64_t checksum = XXH3_64bits(bytes, count);
        memcpy(bytes + CHECKSUM_AT, &checksum, 8);
    }
    frame f;
    hd_error error = {{0}};
    hd_status status = frame_decode(bytes, count, &f, &error);
    require((status == HD_OK) == (error.text[0] == '\0'));
    if (status == HD_OK) check_again(&f, bytes, count);
    hd_free(bytes);
    return 0;
}
