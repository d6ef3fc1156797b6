/* prefix_hash.h - what stands for all tokens before a position, where the tokens themselves are not kept.
 *
 * A range of positions is found by the tokens in it and this hash of those before it (attention.h). BLAKE2b-256 of the
 * token ids, without a key, so that every worker and node says the same; nobody can make two texts of one hash.
 * Threads: a value. */
#ifndef ATTENTION_NODE_PREFIX_HASH_H
#define ATTENTION_NODE_PREFIX_HASH_H

#include <sodium.h>

#include "attention-node/attention.h"

typedef struct prefix_hash {
    crypto_generichash_state state;
    uint64_t token_count;
} prefix_hash;

void prefix_hash_init(prefix_hash *hash);
void prefix_hash_add(prefix_hash *hash, const uint32_t *token_ids, uint64_t count);
/* Of the tokens so far; more may follow. */
void prefix_hash_read(const prefix_hash *hash, unsigned char out[ATTENTION_PREFIX_BYTES]);

#endif
