/* cold_directory.h - the files of a cold tier: what is in which slot, and the bytes.
 *
 *     key      32 random bytes, mode 0600: the key of all identities in here, and of the seals below
 *     index    a header, then one record per slot: whose block it is, its tokens, a checksum per KiB
 *     pages    the slots, 16 to an extent, laid out as in memory (block_layout.h): a unit and head of 16 blocks is
 *              one run of bytes, so that what is scanned together is read in large pieces; of plain keys and values
 *              a page is its tokens' rows, so that what is found alone is read in small ones
 *
 *   1. A record is written after its slot's bytes, and cleared before they change. So whatever moment the process is
 *      killed at, a record that is there speaks of bytes that are there.
 *   2. Records and header carry a keyed seal: what is torn, or was not written with the key, is not there.
 *   3. One process at a time: index is locked while the directory is open.
 * Threads: one for each of: records, pages. */
#ifndef ATTENTION_NODE_COLD_DIRECTORY_H
#define ATTENTION_NODE_COLD_DIRECTORY_H

#include "attention-node/block_layout.h"
#include "attention-node/identity.h"

#define COLD_CHUNK_BYTES 1024u /* what has a checksum of its own; what O_DIRECT counts in is at most this */
#define COLD_SEAL_BYTES 16

typedef struct cold_record {
    uint64_t magic;
    uint32_t slot;
    uint32_t depth; /* blocks before it in its sequence */
    identity id;
    identity parent; /* of the block before it; undefined where depth is 0 */
    identity_scope scope;
    uint32_t token_ids[HD_BLOCK_TOKENS];
    unsigned char seal[COLD_SEAL_BYTES]; /* over the whole record, zeros here */
    uint64_t sums[];                     /* [chunks of a block] */
} cold_record;

typedef struct cold_config {
    const char *directory; /* made where it is missing */
    uint64_t size_bytes;   /* all files together */
    const unsigned char *fingerprint;
    hd_dtype kv_dtype;
} cold_config;

typedef struct cold_directory {
    char path[512];
    int directory, index, pages; /* files; -1: not open */
    uint32_t slot_count;
    uint64_t block_bytes, record_bytes;
    uint32_t grain_bytes; /* what `pages` is read in: whole chunks, as few as the disk takes */
    unsigned char key[IDENTITY_KEY_BYTES];
} cold_directory;

uint64_t cold_record_bytes(uint64_t block_bytes);
/* How many slots a size holds: whole extents. */
uint32_t cold_slot_count(uint64_t size_bytes, uint64_t block_bytes);

/* HD_INVALID: another model, KV type or format; HD_FULL: the disk has less room than size_bytes; HD_IO. The error names
 * the directory and what to do. */
hd_status cold_directory_open(cold_directory *d, const cold_config *config, const attention_layer_table *table,
                              const block_layout *layout, hd_error *error);
void cold_directory_close(cold_directory *d); /* accepts what a failed open left */

/* Sets magic, slot and seal, and writes it. HD_IO */
hd_status cold_directory_put_record(cold_directory *d, uint32_t slot, cold_record *record);
hd_status cold_directory_clear_record(cold_directory *d, uint32_t slot);
/* HD_NOT_FOUND: none that is whole. */
hd_status cold_directory_get_record(const cold_directory *d, uint32_t slot, cold_record *record);

/* Where a unit page lies in `pages`. */
static inline uint64_t cold_page_offset(const block_layout *layout, uint32_t slot, uint32_t unit) {
    return slot / EXTENT_BLOCKS * (layout->block_bytes * EXTENT_BLOCKS) +
           block_layout_unit(&layout->units[unit], slot % EXTENT_BLOCKS, EXTENT_BLOCKS);
}

#endif
