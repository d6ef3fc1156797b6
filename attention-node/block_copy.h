/* block_copy.h - what a node has asked for and got of the blocks of a sequence that another node has.
 *
 * The blocks of a sequence are copied in pieces: some unit pages (block_layout.h) of one block. Pieces are asked for in
 * order, many at a time, and come in that order; so all that has to be known is where asking and coming stand. The last
 * block may be one that is not full yet (the tail).
 *
 *     0 <= whole = come_block <= ask_block <= granted <= end
 *
 *   1. A block counts as whole when its last piece has come and was found right; what was asked for and has not come by
 *      a restart is asked for again from its first unit on, and what still comes of it is HD_STALE.
 *   2. Nothing is asked for that has no memory here (granted), or that the source is not known to have (end).
 * No thread, no clock, no memory of its own: a value. */
#ifndef ATTENTION_NODE_BLOCK_COPY_H
#define ATTENTION_NODE_BLOCK_COPY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef struct block_piece {
    uint64_t block;
    uint32_t first_unit, unit_count;
    uint32_t round; /* of the copy when it was asked for */
} block_piece;

typedef struct block_copy {
    uint32_t units, piece_units; /* of a block; of the next piece, at most: it may change */
    uint32_t round;
    uint64_t end;     /* blocks of the source, the tail included where it is wanted */
    uint64_t granted; /* blocks that have memory here */
    uint64_t ask_block, come_block;
    uint32_t ask_unit, come_unit;
} block_copy;

/* The first `whole` blocks are here already. */
void block_copy_init(block_copy *copy, uint32_t units, uint32_t piece_units, uint64_t whole);
/* The next piece to ask for; false: nothing now. */
bool block_copy_ask(block_copy *copy, block_piece *piece);
/* One has come and is right. HD_STALE: of an earlier round, forget it. HD_CORRUPT: not the one that was due. */
hd_status block_copy_come(block_copy *copy, const block_piece *piece);
/* The same before its bytes are looked at: HD_OK when it is the one that is due. */
hd_status block_copy_check(const block_copy *copy, const block_piece *piece);
/* What has not come will not come, or is no longer what is wanted: blocks from `whole` on are asked for again. */
void block_copy_restart(block_copy *copy, uint64_t whole);

static inline uint64_t block_copy_whole(const block_copy *copy) {
    return copy->come_block;
}

#endif
