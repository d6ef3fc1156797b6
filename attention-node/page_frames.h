/* page_frames.h - what attention nodes say to each other about blocks, as frames (proto/frame.h) of the channel
 * "pages".
 *
 * The node that fetches calls, the node that has the blocks answers; nothing is pushed, so the one that fetches decides
 * how much is on its way. A link is about one sequence, and begins with HELLO.
 *
 *   call    sequence, epoch   value            layer         flags   parts
 *   HELLO                                                            wire_pages_hello
 *   LOOK    yes               wanted tokens    first block           (tokens from that block on are asked for)
 *   READ    yes               block            first unit    units
 *
 * An answer has the call's kind with PAGES_ANSWER set, its tag, the status in flags, and the parts
 *   HELLO   sentence
 *   LOOK    sentence | wire_look | tokens of full blocks from the first one asked for on | tokens of the tail
 *   READ    sentence | wire_piece | checksums of the units' pages, u64, in the order of streams | a unit page ...
 * READ answers come in the order of their calls. LOOK makes the other node hold the full blocks that the sequence has,
 * so that they stay; where its length is the wanted one, also a copy of the block that is not full (the tail), which
 * READ then has under the number behind the last full one. Nothing is held any more when the link ends.
 *
 * Nodes have different secrets for identities, so what goes by the wire is a chain of hashes under a key that is none
 * (page_chain_*): over weights, type, scope and all tokens up to a block. The fetching node makes it itself from the
 * tokens that it was told, and takes no page of a block with another one.
 * Threads: values. */
#ifndef ATTENTION_NODE_PAGE_FRAMES_H
#define ATTENTION_NODE_PAGE_FRAMES_H

#include "attention-node/identity.h"
#include "proto/frame.h"

#define PAGES_WIRE_VERSION 1u
#define PAGES_WIRE_VERSION_MIN 1u
#define PAGES_ANSWER 0x8000u
#define PAGES_UNITS_MAX (FRAME_PARTS_MAX - 3u) /* in one READ */

typedef enum { PAGES_HELLO = 1, PAGES_LOOK, PAGES_READ } page_call_kind;

typedef struct wire_pages_hello {
    uint32_t version_min, version_max;
    uint32_t kv_dtype, head_first, head_count, unit_count;
    uint64_t block_bytes;
    unsigned char fingerprint[16];
    char kernels[32]; /* pages are in the order that a table of kernels wants */
} wire_pages_hello;
_Static_assert(sizeof(wire_pages_hello) == 80, "wire layout");

typedef struct wire_look {
    uint64_t length; /* tokens from first_position on */
    uint64_t first_position, end_position, prompt_count, variant;
    uint64_t sealed; /* full blocks */
    uint32_t has_tail, tail_count, is_private, zero;
    unsigned char salt[ATTENTION_SALT_BYTES];
    unsigned char prefix[ATTENTION_PREFIX_BYTES];
    identity before; /* the chain up to the first block asked for */
} wire_look;
_Static_assert(sizeof(wire_look) == 128, "wire layout");

typedef struct wire_piece {
    identity chain; /* up to and with the block */
} wire_piece;
_Static_assert(sizeof(wire_piece) == 16, "wire layout");

void page_chain_root(const unsigned char fingerprint[16], hd_dtype kv_dtype, const identity_scope *scope,
                     identity *root);
/* count: of the block's tokens; less than 128 for the tail. */
void page_chain_block(const identity *before, const uint32_t *token_ids, uint32_t count, identity *chain);

#endif
