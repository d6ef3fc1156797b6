/* engine_blocks.h - blocks of an engine's sequences, taken out for another node and put in from one.
 *
 * Out: a sequence is looked at, its full blocks are held (nobody writes or frees them), and their pages are read where
 * they lie. The block that is not full is copied, since the next step writes into it.
 * In: a sequence is opened with the tokens that it will have; what the prefix cache has of them is there at once. Then
 * it is extended by blocks of known tokens, whose pages come in any order, and which are committed in theirs. Until it
 * is ended, an import takes no rows, nobody finds it, and its blocks count as its own.
 *   1. A page counts when its checksum is the one that the other node recorded as the page was written.
 *   2. Blocks that others have here already are shared, not kept twice, as with every sequence.
 * Threads: as the engine, but for engine_block_page, engine_block_checksum and engine_import_page, which any thread may
 * call for blocks that are held, or extended and not committed. */
#ifndef ATTENTION_NODE_ENGINE_BLOCKS_H
#define ATTENTION_NODE_ENGINE_BLOCKS_H

#include "attention-node/attention.h"
#include "attention-node/block_pool.h"

/* Pages of a unit page: keys and values, or one of them. */
#define ENGINE_UNIT_PAGES_MAX 2u

typedef struct engine_look {
    uint64_t epoch;
    uint64_t length;                       /* tokens from the range's first on */
    uint64_t first_position, end_position; /* 0 and 0: not a range */
    uint64_t prompt_count;
    bool is_private;
    identity_scope scope;
} engine_look;

/* HD_NOT_FOUND; HD_UNSUPPORTED, and the error says why, for what cannot be taken out: indexes that are learnt. */
hd_status engine_block_look(attention *engine, uint64_t sequence, engine_look *look, hd_error *error);
/* Holds the full blocks [first, first + count) of a sequence that has as many; tokens: count x 128. */
void engine_block_hold(attention *engine, uint64_t sequence, uint32_t first, uint32_t count, block_name *blocks,
                       uint32_t *tokens);
/* Whether that is the sequence's block of that number. */
bool engine_block_is_at(const attention *engine, uint64_t sequence, uint32_t index, block_name block);
void engine_block_release(attention *engine, block_name block);
/* The sequence's tokens behind its full blocks, length % 128 of them, and all unit pages of the block that they lie in,
 * one after the other. HD_FULL and disk errors as block_store_load. */
hd_status engine_block_copy_tail(attention *engine, uint64_t sequence, uint32_t *tokens, unsigned char *pages);

uint32_t engine_unit_count(const attention *engine); /* of a block */
uint64_t engine_unit_bytes(const attention *engine, uint32_t unit);
uint64_t engine_units_bytes(const attention *engine); /* of all of them */
uint32_t engine_unit_pages(const attention *engine, uint32_t unit);
bool engine_has_cold(const attention *engine); /* pages are copied out, never lent */
/* A unit page of a held block: where it lies, or, where there is a cold tier, copied into room. HD_IO, HD_CORRUPT. */
hd_status engine_block_page(const attention *engine, block_name block, uint32_t unit, void *room, const void **page);
/* Of the pages of a unit page, whatever it is in: as many as the return value says. */
uint32_t engine_page_checksums(const attention *engine, uint32_t unit, const void *page,
                               uint64_t checksums[ENGINE_UNIT_PAGES_MAX]);
/* What was recorded when the held block's pages were written; computed where nothing was. */
uint32_t engine_block_checksums(const attention *engine, block_name block, uint32_t unit, const void *page,
                                uint64_t checksums[ENGINE_UNIT_PAGES_MAX]);

/* As sequence_open, with what is known of the sequence's tokens as token_ids; *blocks: whole ones that are here. */
hd_status engine_import_open(attention *engine, const attention_sequence_params *params, uint64_t *blocks,
                             hd_error *error);
/* Memory for the next `count` tokens, a block or, for the last, less; *block for engine_import_page. HD_FULL and disk
 * errors as block_store_make_room. */
hd_status engine_import_extend(attention *engine, uint64_t sequence, const uint32_t *tokens, uint32_t count,
                               uint32_t *block);
/* What has been extended and not committed goes. */
void engine_import_rollback(attention *engine, uint64_t sequence);
/* Writes a unit page; HD_CORRUPT when its pages do not have these checksums. */
hd_status engine_import_page(const attention *engine, uint32_t block, uint32_t unit, const void *page,
                             const uint64_t *checksums);
/* The next extended blocks, or at last the tail, have all their pages. */
void engine_import_commit(attention *engine, uint64_t sequence, uint32_t blocks);
/* It is a sequence like any other from now on. */
void engine_import_end(attention *engine, uint64_t sequence);

#endif
