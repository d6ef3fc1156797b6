/* frame.c - the layout of frame.h, written and read. */
#include "proto/frame.h"

#include <assert.h>
#include <stdbool.h>
#include <string.h>

#define XXH_STATIC_LINKING_ONLY /* for a state on the stack */
#include "base/xxh3.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "frames are little endian, and so are the machines this runs on"
#endif

typedef struct frame_head {
    uint32_t magic;
    uint16_t version, kind;
    uint32_t part_count, layer;
    uint64_t tag, sequence, epoch, value;
    uint16_t flags, reserved[3]; /* reserved: zero */
    uint64_t checksum;           /* of everything else, with this field as zero */
    uint64_t part_bytes[FRAME_PARTS_MAX];
} frame_head;
_Static_assert(sizeof(frame_head) == FRAME_HEAD_BYTES, "wire layout");
_Static_assert(offsetof(frame_head, part_bytes) == 64, "wire layout");

static const unsigned char zeros[FRAME_ALIGN];

static uint64_t padding_of(uint64_t count) {
    return (FRAME_ALIGN - count % FRAME_ALIGN) % FRAME_ALIGN;
}

uint64_t frame_bytes(const frame *f) {
    uint64_t bytes = FRAME_HEAD_BYTES;
    for (uint32_t i = 0; i < f->part_count; i++) bytes += f->parts[i].count + padding_of(f->parts[i].count);
    return bytes;
}

static uint64_t checksum_of(const frame_part *pieces, unsigned count) {
    XXH3_state_t state;
    XXH3_64bits_reset(&state);
    for (unsigned i = 0; i < count; i++) XXH3_64bits_update(&state, pieces[i].bytes, pieces[i].count);
    return XXH3_64bits_digest(&state);
}

unsigned frame_encode(const frame *f, unsigned char head[FRAME_HEAD_BYTES], frame_part *pieces) {
    assert(f->part_count <= FRAME_PARTS_MAX);
    frame_head h = {.magic = FRAME_MAGIC,
                    .version = FRAME_VERSION,
                    .kind = f->kind,
                    .part_count = f->part_count,
                    .layer = f->layer,
                    .tag = f->tag,
                    .sequence = f->sequence,
                    .epoch = f->epoch,
                    .value = f->value,
                    .flags = f->flags};
    unsigned count = 0;
    pieces[count++] = (frame_part){head, FRAME_HEAD_BYTES};
    for (uint32_t i = 0; i < f->part_count; i++) {
        uint64_t bytes = f->parts[i].count;
        h.part_bytes[i] = bytes;
        if (bytes > 0) pieces[count++] = f->parts[i];
        if (padding_of(bytes) > 0) pieces[count++] = (frame_part){zeros, padding_of(bytes)};
    }
    memcpy(head, &h, sizeof(h));
    h.checksum = checksum_of(pieces, count);
    memcpy(head, &h, sizeof(h));
    return count;
}

static hd_status check_lengths(const frame_head *h, size_t count, hd_error *error) {
    uint64_t left = count - FRAME_HEAD_BYTES;
    for (uint32_t i = 0; i < FRAME_PARTS_MAX; i++) {
        uint64_t bytes = h->part_bytes[i];
        if (i >= h->part_count && bytes != 0)
            return hd_error_set(error, HD_CORRUPT, "frame: part %u has %llu bytes, and there are only %u parts", i,
                                (unsigned long long)bytes, h->part_count);
        if (bytes > left || bytes + padding_of(bytes) > left)
            return hd_error_set(error, HD_CORRUPT, "frame: part %u has %llu bytes, and %llu are left", i,
                                (unsigned long long)bytes, (unsigned long long)left);
        left -= bytes + padding_of(bytes);
    }
    if (left != 0)
        return hd_error_set(error, HD_CORRUPT, "frame: %llu bytes behind the last part", (unsigned long long)left);
    return HD_OK;
}

static hd_status check_head(const frame_head *h, size_t count, hd_error *error) {
    if (h->magic != FRAME_MAGIC)
        return hd_error_set(error, HD_CORRUPT, "frame: magic is %08x instead of %08x", h->magic, FRAME_MAGIC);
    if (h->version != FRAME_VERSION)
        return hd_error_set(error, HD_UNSUPPORTED, "frame: version is %u, and this node speaks %u", h->version,
                            FRAME_VERSION);
    if (h->part_count > FRAME_PARTS_MAX)
        return hd_error_set(error, HD_CORRUPT, "frame: %u parts, at most %u are possible", h->part_count,
                            FRAME_PARTS_MAX);
    if (h->reserved[0] != 0 || h->reserved[1] != 0 || h->reserved[2] != 0)
        return hd_error_set(error, HD_CORRUPT, "frame: the reserved bytes of the header are not zero");
    return check_lengths(h, count, error);
}

static bool is_zero(const unsigned char *bytes, uint64_t count) {
    return memcmp(bytes, zeros, count) == 0;
}

hd_status frame_decode(const void *bytes, size_t count, frame *out, hd_error *error) {
    frame_head h;
    if (count < sizeof(h))
        return hd_error_set(error, HD_CORRUPT, "frame: %zu bytes, a header alone has %zu", count, sizeof(h));
    memcpy(&h, bytes, sizeof(h));
    hd_status status = check_head(&h, count, error);
    if (status != HD_OK) return status;

    uint64_t stated = h.checksum;
    h.checksum = 0;
    const unsigned char *rest = (const unsigned char *)bytes + sizeof(h);
    frame_part pieces[2] = {{&h, sizeof(h)}, {rest, count - sizeof(h)}};
    if (checksum_of(pieces, 2) != stated) return hd_error_set(error, HD_CORRUPT, "frame: the checksum does not fit");

    frame f = {.kind = h.kind,
               .flags = h.flags,
               .layer = h.layer,
               .tag = h.tag,
               .sequence = h.sequence,
               .epoch = h.epoch,
               .value = h.value,
               .part_count = h.part_count};
    for (uint32_t i = 0; i < h.part_count; i++) {
        f.parts[i] = (frame_part){rest, h.part_bytes[i]};
        rest += h.part_bytes[i];
        if (!is_zero(rest, padding_of(h.part_bytes[i])))
            return hd_error_set(error, HD_CORRUPT, "frame: the padding behind part %u is not zero", i);
        rest += padding_of(h.part_bytes[i]);
    }
    *out = f;
    return HD_OK;
}
