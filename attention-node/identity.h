/* identity.h - the name of what is in a block: a keyed hash over everything that its keys and values depend on.
 *
 *     root  = H(weights, KV type, scope)
 *     block = H(identity of the block before it, or the root; its 128 token ids)
 *
 * H is BLAKE2b-128 under the engine's secret key, so nobody outside can construct two prompts of one identity. Whoever
 * finds a block by its identity still compares scope, parent and tokens (prefix_cache.h): even a collision mixes
 * nobody's context.
 * Threads: pure functions. */
#ifndef ATTENTION_NODE_IDENTITY_H
#define ATTENTION_NODE_IDENTITY_H

#include "attention-node/attention.h"
#include "kernels/ops.h"

#define IDENTITY_BYTES 16
#define IDENTITY_KEY_BYTES 32

typedef struct identity {
    unsigned char bytes[IDENTITY_BYTES];
} identity;

/* What of a request changes its keys and values, besides the tokens. */
typedef struct identity_scope {
    unsigned char salt[ATTENTION_SALT_BYTES];
    uint64_t variant;
    uint64_t first_position;                      /* where the chain begins, and a hash of the tokens before it */
    unsigned char prefix[ATTENTION_PREFIX_BYTES]; /* zeros at the start of a sequence */
} identity_scope;

void identity_of_root(const unsigned char key[IDENTITY_KEY_BYTES], const unsigned char fingerprint[16],
                      hd_dtype kv_dtype, const identity_scope *scope, identity *root);
void identity_of_block(const unsigned char key[IDENTITY_KEY_BYTES], const identity *parent,
                       const uint32_t token_ids[HD_BLOCK_TOKENS], identity *block);

static inline bool identity_is_equal(const identity *a, const identity *b) {
    return memcmp(a, b, sizeof(*a)) == 0;
}

static inline bool identity_scope_is_equal(const identity_scope *a, const identity_scope *b) {
    return memcmp(a->salt, b->salt, sizeof(a->salt)) == 0 && a->variant == b->variant &&
           a->first_position == b->first_position && memcmp(a->prefix, b->prefix, sizeof(a->prefix)) == 0;
}

#endif
