/* cold_store.h - blocks on disk: slots, the thread that writes behind, checksums, and what an earlier process left.
 *
 *     slot: FREE --write--> being written --poll: HD_OK--> WRITTEN --free--> FREE
 *                                         --poll: error--> (the caller frees it)
 *
 *   1. Writes and frees are done in the order in which they were asked for, by one thread, so a slot may be taken again
 *      as soon as it was freed.
 *   2. A block that is being written stays as it is, resident and sealed, until poll has named it.
 *   3. Every KiB has a checksum seeded by the block's identity, the unit and the place in it. Bytes that lie where
 *      other bytes belong, of another block, head or layer, fail it like flipped bits do.
 *   4. After a failed write the tier takes nothing for a second. What it has stays readable.
 *   5. Unit pages of plain keys and values lie on disk as token rows (kernels/ops.h), so that one token is read with
 *      the chunk or two that it lies in; accept makes the page of them. Checksums are of what lies on disk.
 * Threads: the step thread, but for verify (any) and the writer's own. */
#ifndef ATTENTION_NODE_COLD_STORE_H
#define ATTENTION_NODE_COLD_STORE_H

#include <pthread.h>
#include <stdatomic.h>

#include "attention-node/block_pool.h"
#include "attention-node/cold_directory.h"
#include "base/threads.h"

#define COLD_SLOT_NONE EXTENT_SLOT_NONE
#define COLD_UNIT_BYTES_MAX (512u << 10) /* of a stack: a unit page */

typedef struct cold_job {
    uint32_t slot;
    uint32_t block; /* FRAME_NONE: the slot is freed */
    uint32_t depth;
    bool is_kept;     /* with a record, to be found by the next process */
    hd_status status; /* set by the writer */
    identity parent;
} cold_job;

typedef struct cold_store {
    cold_directory directory;
    const block_pool *pool;
    extent_table slots;
    uint64_t *sums; /* [slot_count][chunk_count] */
    uint32_t chunk_count;
    bool *has_record; /* [slot_count]: the writer's */
    cold_job *jobs;   /* ring [job_mask + 1] */
    uint32_t job_mask;
    _Atomic uint64_t asked, done; /* jobs; asked: by the step thread; done: by the writer */
    uint64_t polled;
    cold_record *record; /* the writer's, [record_bytes] */
    unsigned char *rows; /* the writer's, [EXTENT_BLOCKS] of the largest unit page: what one write is made of */
    _Atomic uint64_t written_bytes, write_errors, verify_failures;
    uint64_t failing_until_ns;
    hd_turn turn; /* advances as jobs end */
    int event;
    _Atomic bool is_closing;
    pthread_t writer;
    bool has_writer;
} cold_store;

uint64_t cold_store_table_bytes(const attention_layer_table *table, uint32_t slot_count, uint32_t frame_count);
/* pool is borrowed, and its layout set. What an earlier process left is taken (slots), and shown by recover. */
hd_status cold_store_open(cold_store *c, const cold_config *config, const attention_layer_table *table,
                          const block_pool *pool, hd_arena *arena, hd_error *error);
void cold_store_close(cold_store *c); /* after everything asked for is written; accepts what a failed open left */

/* Blocks of an earlier process, those with fewer before them first. False: not wanted, and the slot is free. */
typedef bool cold_store_visit(void *context, uint32_t slot, const cold_record *record);
hd_status cold_store_recover(cold_store *c, cold_store_visit *visit, void *context);
hd_status cold_store_start(cold_store *c); /* the writer; behind recover. HD_NO_MEMORY */

/* A slot for a block, or COLD_SLOT_NONE when all are taken or the tier fails; wanted as in extent_table.h. */
uint32_t cold_store_take(cold_store *c, block_claim *claim, uint32_t wanted);
/* parent: of the block before it, or NULL. is_kept: the next process may find it. */
void cold_store_write(cold_store *c, uint32_t slot, uint32_t block, uint32_t depth, const identity *parent,
                      bool is_kept);
void cold_store_free(cold_store *c, uint32_t slot);

/* The next job that has ended since the last poll; false: none. Its block is FRAME_NONE where a slot was freed. */
bool cold_store_poll(cold_store *c, cold_job *job);
void cold_store_wait(cold_store *c, uint64_t timeout_ns); /* until there is something to poll */
uint64_t cold_store_pending(const cold_store *c);         /* jobs not polled yet; any thread */
bool cold_store_is_failing(const cold_store *c);

/* HD_CORRUPT: these are not the bytes of that unit page, or of `count` of its chunks. Counted. */
hd_status cold_store_verify(cold_store *c, uint32_t slot, uint32_t unit, const identity *id, uint32_t first_chunk,
                            uint32_t count, const void *bytes);
/* A whole unit page as it was read becomes, where it lies, the page that memory has. HD_CORRUPT as verify. */
hd_status cold_store_accept(cold_store *c, uint32_t slot, uint32_t unit, const identity *id, void *page);
/* A part of a unit page as it lies on disk, whole grains (cold_directory.h), read and verified by the caller's thread;
 * bytes is aligned as O_DIRECT wants it. Any thread, for a slot that is not freed meanwhile. HD_IO, HD_CORRUPT. */
hd_status cold_store_read(cold_store *c, uint32_t slot, uint32_t unit, const identity *id, uint64_t offset,
                          uint64_t count, void *bytes);
/* A unit page as memory has it, the same way. */
hd_status cold_store_read_page(cold_store *c, uint32_t slot, uint32_t unit, const identity *id, void *page);
/* All unit pages of a slot into a frame, verified; blocks the caller. HD_IO, HD_CORRUPT. */
hd_status cold_store_load(cold_store *c, uint32_t slot, const identity *id, uint32_t frame);

#endif
