/* identity_test.c - everything that changes keys and values changes the identity, and nothing else does. */
#include "attention-node/identity.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

typedef struct {
    unsigned char key[IDENTITY_KEY_BYTES], fingerprint[16];
    hd_dtype kv_dtype;
    identity_scope scope;
    uint32_t tokens[2][HD_BLOCK_TOKENS];
} chain;

static identity last_of(const chain *c) {
    identity id;
    identity_of_root(c->key, c->fingerprint, c->kv_dtype, &c->scope, &id);
    for (int i = 0; i < 2; i++) identity_of_block(c->key, &id, c->tokens[i], &id);
    return id;
}

static void the_same_chain_has_the_same_identity(void **state) {
    chain a = {.key = {1}, .kv_dtype = HD_BF16}, b = a;
    identity x = last_of(&a), y = last_of(&b);
    assert_true(identity_is_equal(&x, &y));
}

static void every_part_changes_it(void **state) {
    const chain base = {.key = {1}, .kv_dtype = HD_BF16};
    chain changed[8];
    for (int i = 0; i < 8; i++) changed[i] = base;
    changed[1].key[31] = 1;
    changed[2].fingerprint[15] = 1;
    changed[3].kv_dtype = HD_F32;
    changed[4].scope.salt[15] = 1;
    changed[5].scope.variant = 1;
    changed[6].tokens[0][0] = 1;
    changed[7].tokens[1][127] = 1;
    for (int i = 0; i < 8; i++) {
        for (int k = 0; k < i; k++) {
            identity x = last_of(&changed[i]), y = last_of(&changed[k]);
            assert_false(identity_is_equal(&x, &y));
        }
    }
}

static void the_order_of_blocks_matters(void **state) {
    chain a = {.key = {1}}, b = {.key = {1}};
    a.tokens[0][3] = 5;
    b.tokens[1][3] = 5;
    identity x = last_of(&a), y = last_of(&b);
    assert_false(identity_is_equal(&x, &y));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_chain_has_the_same_identity),
        cmocka_unit_test(every_part_changes_it),
        cmocka_unit_test(the_order_of_blocks_matters),
    };
    return cmocka_run_group_tests_name("identity", tests, NULL, NULL);
}
