/* identity.c - the hash chain. What is hashed has a fixed layout, a different one for roots and blocks. */
#include "attention-node/identity.h"

#include <assert.h>
#include <sodium.h>

typedef struct {
    char kind[8];
    unsigned char fingerprint[16];
    unsigned char salt[ATTENTION_SALT_BYTES];
    uint64_t variant;
    uint64_t kv_dtype;
    uint64_t first_position;
    unsigned char prefix[ATTENTION_PREFIX_BYTES];
} root_text;
_Static_assert(sizeof(root_text) == 96, "hashed as it lies in memory: no padding");

typedef struct {
    char kind[8];
    identity parent;
    uint32_t token_ids[HD_BLOCK_TOKENS];
} block_text;
_Static_assert(sizeof(block_text) == 24 + sizeof(uint32_t) * HD_BLOCK_TOKENS,
               "hashed as it lies in memory: no padding");

static void hash(const unsigned char key[IDENTITY_KEY_BYTES], const void *text, size_t text_bytes, identity *out) {
    int result = crypto_generichash(out->bytes, sizeof(out->bytes), text, text_bytes, key, IDENTITY_KEY_BYTES);
    assert(result == 0);
    (void)result;
}

void identity_of_root(const unsigned char key[IDENTITY_KEY_BYTES], const unsigned char fingerprint[16],
                      hd_dtype kv_dtype, const identity_scope *scope, identity *root) {
    root_text text = {.kind = "root 2",
                      .variant = scope->variant,
                      .kv_dtype = (uint64_t)kv_dtype,
                      .first_position = scope->first_position};
    memcpy(text.fingerprint, fingerprint, sizeof(text.fingerprint));
    memcpy(text.salt, scope->salt, sizeof(text.salt));
    memcpy(text.prefix, scope->prefix, sizeof(text.prefix));
    hash(key, &text, sizeof(text), root);
}

void identity_of_block(const unsigned char key[IDENTITY_KEY_BYTES], const identity *parent,
                       const uint32_t token_ids[HD_BLOCK_TOKENS], identity *block) {
    block_text text = {.kind = "block 1", .parent = *parent};
    memcpy(text.token_ids, token_ids, sizeof(text.token_ids));
    hash(key, &text, sizeof(text), block);
}
