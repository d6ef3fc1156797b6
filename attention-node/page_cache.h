/* page_cache.h - the warm tier: unit pages of blocks whose bytes are on the cold tier, kept by reuse.
 *
 *     FREE --pin of a page that is not here--> READING --the read ends--> READ --first use: CHECKING--> GOOD
 *                                                                     \-> LOST (HD_IO)              \-> CORRUPT
 *
 * A pin names a round, a number that grows; a page stays where it is until its last round is released. So many pages
 * are pinned and let go without a list, and control work does not grow with them. Reads of pages that lie side by side
 * on disk are joined.
 *   1. All memory is taken at init. When every page is pinned, pin answers false; nothing grows.
 *   2. A page is used only after its checksums, which its block's identity seeds, have been found right.
 *   3. Two ways of giving way: pages that retrieval asked for by second chance (CLOCK), pages of a scan last in, first
 *      out. A scan of more than the cache holds thus finds the part that it left here, where the least recently used
 *      one would find nothing.
 * Threads: the step thread; use: any thread while the step thread waits for it, with the page pinned. */
#ifndef ATTENTION_NODE_PAGE_CACHE_H
#define ATTENTION_NODE_PAGE_CACHE_H

#include "attention-node/cold_store.h"
#include "attention-node/read_queue.h"

typedef enum { PAGE_FREE, PAGE_READING, PAGE_READ, PAGE_CHECKING, PAGE_GOOD, PAGE_CORRUPT, PAGE_LOST } page_state;

typedef struct page_slot {
    _Atomic uint32_t state;
    uint32_t block, unit; /* block FRAME_NONE: nobody's any more */
    uint32_t cold_slot;
    uint32_t read;  /* with READING: the request */
    uint64_t round; /* the last that pinned it */
    bool was_used;  /* since the clock's hand passed */
    bool is_scanned;
} page_slot;

typedef struct page_read page_read;

typedef struct page_cache {
    const block_pool *pool;
    cold_store *cold;
    read_queue *queue;
    unsigned char *memory;
    uint64_t slot_bytes;
    uint32_t slot_count, fresh_count; /* fresh: never used so far */
    uint32_t hand;
    page_slot *slots;
    uint32_t *places;          /* [block_count][unit_count]: slot + 1, or 0 */
    uint32_t *scanned, *spent; /* ring of slots that rounds to come release; stack of those that may be taken */
    uint32_t scanned_first, scanned_count, spent_count;
    page_read *reads;
    uint32_t next_read;
    read_request **batch; /* to be submitted; the last of them may still grow */
    uint32_t batch_count;
    uint64_t released;     /* round */
    uint32_t pinned_count; /* pages that pins have added to their round; the caller sets it back */
    _Atomic uint64_t hits, misses, read_bytes, reads_done, read_errors;
} page_cache;

uint64_t page_cache_table_bytes(uint32_t block_count, uint32_t unit_count, uint32_t slot_count);
uint64_t page_cache_slot_bytes(const block_layout *layout); /* the largest unit page */

/* reads_beside: that others may have out in the cache's queue. */
hd_status page_cache_init(page_cache *cache, const block_pool *pool, cold_store *cold, uint32_t slot_count,
                          uint32_t reads_beside, hd_arena *arena);
void page_cache_fini(page_cache *cache); /* accepts a zeroed one */

/* Keeps a page of a sealed block that has a cold slot until `round` is released, and asks for its bytes where they are
 * not here. False, and nothing done: every page is pinned, or every read is out. */
bool page_cache_pin(page_cache *cache, uint32_t block, uint32_t unit, uint32_t cold_slot, uint64_t round, bool is_scan);
bool page_cache_has(const page_cache *cache, uint32_t block, uint32_t unit); /* or has asked for it */
void page_cache_submit(page_cache *cache);                  /* what pins have asked for since the last one */
void page_cache_release(page_cache *cache, uint64_t round); /* and all before it */

/* The bytes of a pinned page, waited for and verified. HD_IO: the read failed. HD_CORRUPT. HD_TIMED_OUT: the disk has
 * had the read for longer than patience_ns; it goes on. */
hd_status page_cache_use(page_cache *cache, uint32_t block, uint32_t unit, uint64_t patience_ns,
                         const unsigned char **bytes);

/* Forgets a block: its number will mean another one. Not while pinned. */
void page_cache_forget(page_cache *cache, uint32_t block);
/* The next block with a corrupt page, from number `from` on; FRAME_NONE: none. For when one was met, slow. */
uint32_t page_cache_next_corrupt(const page_cache *cache, uint32_t *from);

#endif
