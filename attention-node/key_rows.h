/* key_rows.h - the keys of a sequence's KV head once more, row after row, beside the pages that have them packed.
 *
 * A page is packed for products with all of its tokens; one token's key lies in as many cache lines as it has pairs of
 * elements (32 for 64 elements), and attending to scattered tokens reads mostly what it does not need. As a row it lies
 * in two. Rows are bf16, exactly what the page has, so whether they are there changes no bit.
 * Rows lie in chunks of 16,384 tokens, in huge pages where they fill some, which forks share. A chunk is filled from
 * its first token on; what is not filled is not there, and its reader goes to the page.
 * Threads: one writes; others read what has been written before they were told of it. */
#ifndef ATTENTION_NODE_KEY_ROWS_H
#define ATTENTION_NODE_KEY_ROWS_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define KEY_ROWS_CHUNK 16384u

typedef struct key_rows_chunk key_rows_chunk;

typedef struct key_rows {
    key_rows_chunk **chunks; /* [chunk_max], NULL: not begun */
    uint64_t tokens_max;
    uint32_t chunk_max, dim;
} key_rows;

/* What so many tokens take at most. */
uint64_t key_rows_bytes(uint64_t tokens_max, uint32_t dim);
hd_status key_rows_init(key_rows *rows, uint64_t tokens_max, uint32_t dim);
void key_rows_fini(key_rows *rows); /* accepts a zeroed one */

/* Appends rows of the tokens at position ...; those that would leave a hole in their chunk, or that are there already,
 * are left out. HD_NO_MEMORY. */
hd_status key_rows_add(key_rows *rows, uint64_t position, const uint16_t *keys, uint32_t count, size_t stride);
void key_rows_truncate(key_rows *rows, uint64_t length);
/* An empty one gets the first `length` tokens of source. HD_NO_MEMORY. */
hd_status key_rows_share(const key_rows *source, uint64_t length, key_rows *rows);

/* The row of a token and of those that follow it in its chunk; NULL: not there. count: how many must be there. */
const uint16_t *key_rows_at(const key_rows *rows, uint64_t position, uint32_t count);

#endif
