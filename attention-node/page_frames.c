/* page_frames.c - the chain of hashes that two nodes can both make. */
#include "attention-node/page_frames.h"

static const unsigned char no_secret[IDENTITY_KEY_BYTES] = "pages between attention nodes";

void page_chain_root(const unsigned char fingerprint[16], hd_dtype kv_dtype, const identity_scope *scope,
                     identity *root) {
    identity_of_root(no_secret, fingerprint, kv_dtype, scope, root);
}

/* No token has the number that fills a tail up. */
void page_chain_block(const identity *before, const uint32_t *token_ids, uint32_t count, identity *chain) {
    uint32_t tokens[HD_BLOCK_TOKENS];
    memset(tokens, 0xff, sizeof(tokens));
    memcpy(tokens, token_ids, count * sizeof(*tokens));
    identity_of_block(no_secret, before, tokens, chain);
}
