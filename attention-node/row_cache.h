/* row_cache.h - tokens of cold blocks in memory: the warm tier of what retrieval asks for, kept by reuse.
 *
 * A search finds single tokens all over a context, and a page has 128 of them. So what is found on disk is read by the
 * grain (cold_directory.h), a KiB where the disk takes that, and kept so: a token of 256 bytes costs at most four times
 * its own. Grains that follow each other on disk are read at once. States, rounds and what happens to a failed read are
 * those of page_cache.h; who gives way is found by second chance, among some at random.
 *   1. All memory is taken at init. When every grain is pinned, pin answers false; nothing grows.
 *   2. A row is used only after the checksums of its chunks, which its block's identity seeds, have been found right.
 *   3. Names have the block's generation: what is here of a block that was freed is found by nobody, and gives way.
 * Threads: the step thread; use: any thread while the step thread waits for it, with the row pinned. */
#ifndef ATTENTION_NODE_ROW_CACHE_H
#define ATTENTION_NODE_ROW_CACHE_H

#include "attention-node/cold_store.h"
#include "attention-node/read_queue.h"

#define ROW_CACHE_READS 1024u /* that may be out at once */

typedef struct row_grain row_grain;
typedef struct row_read row_read;

typedef struct row_name { /* a token on disk */
    uint32_t block, unit, cold_slot, token;
} row_name;

typedef struct row_cache {
    const block_pool *pool;
    cold_store *cold;
    read_queue *queue; /* lent */
    unsigned char *memory;
    uint32_t grain_bytes, grain_count, fresh_count; /* fresh: never used so far */
    uint32_t bucket_mask;
    uint64_t random;
    row_grain *grains;
    uint32_t *buckets; /* [bucket_mask + 1]: grain + 1, or 0 */
    row_read *reads;
    uint32_t next_read;
    read_request **batch; /* to be submitted; the last of them may still grow */
    uint32_t batch_count;
    uint64_t released;     /* round */
    uint32_t pinned_count; /* grains that pins have added to their round; the caller sets it back */
    uint64_t reads_asked;
    _Atomic uint64_t hits, misses, read_bytes, reads_done, read_errors; /* hits, misses: of rows */
    _Atomic uint64_t wait_ns;                                           /* of the step thread, for reads */
} row_cache;

/* How many grains so much memory holds, tables included. */
uint32_t row_cache_grains(uint64_t bytes);
uint64_t row_cache_table_bytes(uint32_t grain_count);
/* Bytes that a grain takes, of disks that take chunks; of others there are fewer and larger ones. */
uint64_t row_cache_memory_bytes(uint32_t grain_count);

hd_status row_cache_init(row_cache *cache, const block_pool *pool, cold_store *cold, read_queue *queue,
                         uint32_t grain_count, hd_arena *arena);
void row_cache_fini(row_cache *cache); /* behind the queue's close; accepts a zeroed one */

/* Whether the rows of a unit can be here. */
bool row_cache_has_unit(const row_cache *cache, uint32_t unit);

/* Keeps a row of a sealed block that has a cold slot until `round` is released, and asks for what of it is not here.
 * Waits for reads while all are out, at most patience_ns for one. False: every grain is pinned, or the disk does not
 * answer; what was pinned of the row stays so. */
bool row_cache_pin(row_cache *cache, const row_name *name, uint64_t round, uint64_t patience_ns);
/* What pins have asked for since the last one is read; waits for all reads, at most patience_ns for one. */
void row_cache_await(row_cache *cache, uint64_t patience_ns);
void row_cache_release(row_cache *cache, uint64_t round); /* and all before it */

/* The bytes of a pinned row, verified; where they do not lie in one piece, copied into `room`, which has row_bytes.
 * HD_IO, HD_CORRUPT, HD_TIMED_OUT as page_cache_use. */
hd_status row_cache_use(row_cache *cache, const row_name *name, unsigned char *room, const unsigned char **row);

/* The next block with a corrupt grain, from number `from` on; FRAME_NONE: none. For when one was met, slow. */
uint32_t row_cache_next_corrupt(const row_cache *cache, uint32_t *from);

#endif
