/* frame.h - tensors on a wire: a header of fixed layout, the lengths of the parts, the parts.
 *
 *   header (64 bytes) | part lengths (8 x 8 bytes) | part 0, padded to 64 | part 1, padded | ...
 *
 * Everything is little endian. Every part begins on 64 bytes of the frame, so a receiver whose buffer is aligned
 * computes on the parts in place. The checksum (XXH3, 64 bits) covers header, lengths, parts and padding. What a kind
 * means, and what its parts are, is said where the kinds are listed: by the service that speaks them.
 *   1. frame_decode reads nothing outside [bytes, bytes + count) and believes nothing before it was checked. What does
 *      not fit is HD_CORRUPT, or HD_UNSUPPORTED for another version, with a sentence that names the field.
 *   2. A frame that was decoded and encoded again gives the same bytes.
 * Threads: pure functions. */
#ifndef PROTO_FRAME_H
#define PROTO_FRAME_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define FRAME_MAGIC 0x4c444148u /* "HADL" */
#define FRAME_VERSION 1u
#define FRAME_PARTS_MAX 8u
#define FRAME_ALIGN 64u
#define FRAME_HEAD_BYTES 128u
#define FRAME_PIECES_MAX (1u + 2u * FRAME_PARTS_MAX) /* the head, and every part with its padding */

typedef struct frame_part {
    const void *bytes;
    uint64_t count;
} frame_part;

typedef struct frame {
    uint16_t kind;
    uint16_t flags;    /* the kind's */
    uint32_t layer;    /* of a step; 0 where there is none */
    uint64_t tag;      /* the sender's name for the call; an answer repeats it */
    uint64_t sequence; /* 0 where there is none */
    uint64_t epoch;
    uint64_t value; /* the kind's */
    uint32_t part_count;
    frame_part parts[FRAME_PARTS_MAX];
} frame;

/* Writes the head and lists the pieces of the whole message in order: the head, parts and paddings (which lie in static
 * memory). pieces has room for FRAME_PIECES_MAX; returns how many. The pieces point into head and the frame's parts. */
unsigned frame_encode(const frame *f, unsigned char head[FRAME_HEAD_BYTES], frame_part *pieces);
/* Of the whole message. */
uint64_t frame_bytes(const frame *f);

/* The parts point into bytes, which is aligned to FRAME_ALIGN where the receiver computes in place. */
hd_status frame_decode(const void *bytes, size_t count, frame *out, hd_error *error);

#endif
