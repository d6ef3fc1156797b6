/* block_store.h - who holds which block, what is promised, in which tier its bytes are, and what is given up when
 * memory is needed.
 *
 *     total = free + retired (only the prefix cache has it) + held (by open sequences) + dying (its write is not over)
 *     held + reserved <= total, always
 *
 * Admission reserves; taking a block uses up one unit of the reservation. Without a cold tier it never fails: by the
 * invariant there is a free block, or a retired one to evict. A shared block is held once, whoever holds it.
 *
 * With a cold tier there are as many blocks as frames and cold slots together. A sealed block is written behind
 * (spilled) as soon as it is full, so that its frame can be dropped the moment somebody needs one:
 *     RESIDENT --spill--> RESIDENT, being written --poll--> RESIDENT and COLD --make_room--> COLD --load--> both
 * Attention reads what is cold through the page cache (page_cache.h), single tokens through the row cache
 * (row_cache.h). When the disk takes no more, what is resident
 * stays so, sequences grow as far as frames go, and nothing new is promised.
 * Threads: one, but for visit. */
#ifndef ATTENTION_NODE_BLOCK_STORE_H
#define ATTENTION_NODE_BLOCK_STORE_H

#include "attention-node/block_pool.h"
#include "attention-node/page_cache.h"
#include "attention-node/prefix_cache.h"
#include "attention-node/row_cache.h"

typedef enum { COLD_NOT, COLD_WRITING, COLD_WRITTEN } cold_state;

typedef struct block_place { /* of a block on the cold tier */
    uint32_t slot;           /* unless COLD_NOT */
    uint8_t state;
    bool is_dying; /* nobody has it any more, but its frame is still being written */
} block_place;

typedef struct block_tiers {
    uint32_t frame_count; /* blocks in memory */
    uint32_t slot_count;  /* on the cold tier; 0: there is none */
    uint32_t page_count;  /* unit pages of cold blocks in memory */
    uint32_t grain_count; /* pieces of them, for single tokens; 0: whole pages are read for those too */
    block_memory memory;  /* of frames; of a device without a cold tier only */
    cold_config cold;
} block_tiers;

typedef struct block_store {
    block_pool pool;
    prefix_cache cache;
    bool has_cold;
    cold_store cold;
    page_cache pages;
    row_cache rows;
    block_place *places;          /* [block_count], with a cold tier */
    uint32_t hand;                /* the frame that the next search begins at */
    pthread_rwlock_t frames_lock; /* with a cold tier: held to read a frame off the step thread, and to drop one */
    uint32_t held, reserved;
    uint64_t evicted; /* since init */
    uint32_t dropped_frames;
} block_store;

uint64_t block_store_table_bytes(const attention_layer_table *table, const block_tiers *tiers);
hd_status block_store_init(block_store *store, const attention_layer_table *table, const block_tiers *tiers,
                           hd_arena *arena, hd_error *error);
void block_store_fini(block_store *store); /* accepts a zeroed store */

/* What could be held and promised in all now; and how many more blocks could be promised. */
uint32_t block_store_capacity(const block_store *store);
uint32_t block_store_available(const block_store *store);
hd_status block_store_reserve(block_store *store, uint32_t count); /* HD_FULL, and nothing reserved */
void block_store_unreserve(block_store *store, uint32_t count);

/* Frames for `count` blocks to be taken next. HD_FULL: what is in memory cannot leave it; with a cold tier only, and
 * only where that fails or is too slow. */
hd_status block_store_make_room(block_store *store, uint32_t count);
/* An open block with one reference, out of the caller's reservation. wanted: as block_pool_take. With a cold tier,
 * behind make_room. */
block_name block_store_take(block_store *store, block_claim *claim, uint32_t wanted);
/* One more reference to a sealed block. HD_FULL when nobody held it and everything else is promised. */
hd_status block_store_share(block_store *store, block_name block);
/* One reference less. With the last one, the block is freed, or retired if it is cached and somebody asked for its
 * retention. */
void block_store_release(block_store *store, block_name block, block_retention retention);

/* Seals a full block that the caller alone holds, and makes it findable. Where the cache has the same block already,
 * that one is returned with the caller's reference, and the caller's own is freed: equal tokens have equal bits. */
block_name block_store_seal(block_store *store, block_name block, const identity *id, const identity_scope *scope,
                            block_name parent);
/* Seals without making it findable. */
void block_store_seal_privately(block_store *store, block_name block, const identity *id, const identity_scope *scope,
                                block_name parent);
/* Makes a resident sealed block that the caller alone holds writable again, under a new name. */
block_name block_store_reopen(block_store *store, block_name block);

/* Writes a sealed block behind, if there is a cold tier with room for it and it is not there yet. */
void block_store_spill(block_store *store, block_name block, block_claim *claim, uint32_t wanted);
void block_store_poll(block_store *store); /* what has been written since the last time */
/* Makes a held block resident, and waits until it is not being written. HD_FULL as make_room; HD_IO, HD_CORRUPT. */
hd_status block_store_load(block_store *store, block_name block);
/* A held block whose bytes on disk are bad: nobody finds it any more. */
void block_store_condemn(block_store *store, block_name block);

/* Shows a page of a held block to `visit`, wherever it is; any thread, also beside the owner's calls. What is on disk
 * is read for this once. HD_IO, HD_CORRUPT; HD_STALE: the block was given up. */
typedef void block_store_visitor(void *context, const void *page);
hd_status block_store_visit(block_store *store, uint32_t block_index, uint32_t stream, uint32_t head,
                            block_store_visitor *visit, void *context);

/* The same for keys or values of a few tokens, as rows of bf16: of those that are on disk no more is read. */
hd_status block_store_read_rows(block_store *store, uint32_t block_index, uint32_t stream, uint32_t head,
                                const kernel_page_shape *shape, bool is_keys, uint32_t first, uint32_t count,
                                uint16_t *rows);

/* Where a block's bytes are on the cold tier; they are there for a block without a frame. */
static inline uint32_t block_store_cold_slot(const block_store *store, uint32_t block_index) {
    return store->places[block_index].slot;
}

/* Gives up everything that nobody holds. */
void block_store_reset_cache(block_store *store);

#endif
