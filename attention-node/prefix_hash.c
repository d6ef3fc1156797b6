/* prefix_hash.c - BLAKE2b over token ids as they lie in memory. */
#include "attention-node/prefix_hash.h"

#include <assert.h>

void prefix_hash_init(prefix_hash *hash) {
    hash->token_count = 0;
    int result = crypto_generichash_init(&hash->state, NULL, 0, ATTENTION_PREFIX_BYTES);
    assert(result == 0);
    (void)result;
}

void prefix_hash_add(prefix_hash *hash, const uint32_t *token_ids, uint64_t count) {
    crypto_generichash_update(&hash->state, (const unsigned char *)token_ids, count * sizeof(*token_ids));
    hash->token_count += count;
}

void prefix_hash_read(const prefix_hash *hash, unsigned char out[ATTENTION_PREFIX_BYTES]) {
    crypto_generichash_state copy = hash->state; /* finishing uses it up */
    crypto_generichash_final(&copy, out, ATTENTION_PREFIX_BYTES);
}
