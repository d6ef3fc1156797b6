/* layer_table_test.c - tables of every kind of model: what they weigh, and what is refused. */
#include "attention-node/layer_table.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#define TABLE(streams, layers)                                                                                         \
    ((attention_layer_table){streams, sizeof(streams) / sizeof((streams)[0]), layers,                                  \
                             sizeof(layers) / sizeof((layers)[0])})

static void assert_valid(const attention_layer_table *table) {
    hd_error error = {.text = ""};
    hd_status status = attention_layer_table_check(table, &error);
    if (status != HD_OK) print_error("%s\n", error.text);
    assert_int_equal(status, HD_OK);
}

static void assert_refused(const attention_layer_table *table, const char *words) {
    hd_error error = {.text = ""};
    assert_int_equal(attention_layer_table_check(table, &error), HD_INVALID);
    if (strstr(error.text, words) == NULL) print_error("'%s' does not say '%s'\n", error.text, words);
    assert_non_null(strstr(error.text, words));
}

static void plain_grouped_attention_is_counted_in_whole_blocks(void **state) {
    /* Llama-3.2-1B's layers, two of them: 8 heads of 64. */
    const attention_stream streams[] = {
        {0, 8, 64, HD_BF16, 1, 0}, {0, 8, 64, HD_BF16, 1, 0}, {1, 8, 64, HD_BF16, 1, 0}, {1, 8, 64, HD_BF16, 1, 0}};
    const attention_layer layers[] = {
        {.key_stream = 0, .value_stream = 1, .value_dim = 64, .query_heads = 32, .scale = 0.125f},
        {.key_stream = 2, .value_stream = 3, .value_dim = 64, .query_heads = 32, .scale = 0.125f}};
    attention_layer_table table = TABLE(streams, layers);
    assert_valid(&table);
    assert_int_equal(attention_stream_page_bytes(&streams[0]), 128 * 64 * 2);
    uint64_t block = 2 * 2 * 8 * 128 * 64 * 2;
    assert_int_equal(attention_layer_table_block_bytes(&table), block);
    assert_int_equal(attention_layer_table_bytes(&table, 0), 0);
    assert_int_equal(attention_layer_table_bytes(&table, 1), block);
    assert_int_equal(attention_layer_table_bytes(&table, 128), block);
    assert_int_equal(attention_layer_table_bytes(&table, 129), 2 * block);
    assert_int_equal(attention_layer_table_bytes(&table, 1000000), 7813 * block);
    assert_int_equal(attention_layer_table_state_bytes(&table), 0);
}

static void a_latent_is_stored_once_for_key_and_value(void **state) {
    /* Multi-head latent attention: one record of 512 + 64, the value is its first 512 elements. */
    const attention_stream streams[] = {{0, 1, 576, HD_BF16, 1, 0}};
    attention_layer layers[] = {{.key_stream = 0,
                                 .value_stream = 0,
                                 .value_is_key_prefix = true,
                                 .value_dim = 512,
                                 .query_heads = 128,
                                 .scale = 0.07f}};
    attention_layer_table table = TABLE(streams, layers);
    assert_valid(&table);
    assert_int_equal(attention_layer_table_bytes(&table, 128), 128 * 576 * 2);
    layers[0].value_dim = 577;
    assert_refused(&table, "layer 0: 'value_dim' is 577");
    layers[0].value_dim = 512;
    layers[0].value_is_key_prefix = false;
    assert_refused(&table, "prefix of the key");
}

static void a_window_keeps_the_blocks_that_it_touches(void **state) {
    const attention_stream streams[] = {{0, 2, 32, HD_BF16, 1, 512}, {0, 2, 32, HD_BF16, 1, 512}};
    attention_layer layers[] = {
        {.key_stream = 0, .value_stream = 1, .value_dim = 32, .query_heads = 2, .scale = 1, .window = 512}};
    attention_layer_table table = TABLE(streams, layers);
    assert_valid(&table);
    uint64_t block = 2 * 2 * 128 * 32 * 2;
    assert_int_equal(attention_layer_table_bytes(&table, 512), 4 * block);
    assert_int_equal(attention_layer_table_bytes(&table, 513), 5 * block); /* positions 1 .. 512 */
    assert_int_equal(attention_layer_table_bytes(&table, 640), 4 * block); /* positions 128 .. 639 */
    assert_int_equal(attention_layer_table_bytes(&table, 1 << 20), 4 * block);
    layers[0].window = 513;
    assert_refused(&table, "stream 0 keeps only 512");
}

static void layers_may_share_an_earlier_layers_streams(void **state) {
    const attention_stream streams[] = {{0, 1, 64, HD_BF16, 1, 0}, {0, 1, 64, HD_BF16, 1, 0}};
    attention_layer layers[3];
    for (int i = 0; i < 3; i++) {
        layers[i] =
            (attention_layer){.key_stream = 0, .value_stream = 1, .value_dim = 64, .query_heads = 4, .scale = 1};
    }
    attention_layer_table table = TABLE(streams, layers);
    assert_valid(&table);
    assert_int_equal(attention_layer_table_bytes(&table, 128), 2 * 128 * 64 * 2);
    const attention_stream later[] = {{1, 1, 64, HD_BF16, 1, 0}, {1, 1, 64, HD_BF16, 1, 0}};
    table.streams = later;
    assert_refused(&table, "layer 0: 'key_stream' is stream 0, which layer 1 writes only later");
}

static void compressed_records_and_states_are_counted_by_their_own_rule(void **state) {
    /* One record for four tokens, one for 128, an index key a token in int8 with its exponents, and two states of a
     * sequence. */
    const attention_stream streams[] = {{0, 1, 512, HD_BF16, 4, 0}, {0, 1, 512, HD_BF16, 128, 0},
                                        {0, 1, 128, HD_INT8, 1, 0}, {0, 16, 16384, HD_F32, 0, 0},
                                        {7, 1, 3, HD_BF16, 0, 0},   {0, 1, 512, HD_BF16, 4, 0}};
    const attention_layer layers[] = {
        {.key_stream = 0, .value_stream = 5, .value_dim = 512, .query_heads = 8, .scale = 1}};
    attention_layer_table table = TABLE(streams, layers);
    assert_valid(&table);
    uint64_t block = 2 * 32 * 512 * 2 + 512 * 2 + 128 * (128 + 8), states = 16 * 16384 * 4 + 64;
    assert_int_equal(attention_layer_table_block_bytes(&table), block);
    assert_int_equal(attention_layer_table_state_bytes(&table), states);
    assert_int_equal(attention_layer_table_bytes(&table, 0), states);
    assert_int_equal(attention_layer_table_bytes(&table, 300), states + 3 * block);
    assert_int_equal(attention_stream_page_bytes(&streams[3]), 0);
    assert_int_equal(attention_stream_state_bytes(&streams[0]), 0);
}

static void what_cannot_be_is_refused_by_name(void **state) {
    const attention_stream good[] = {{0, 4, 64, HD_BF16, 1, 0}, {0, 4, 64, HD_BF16, 1, 0}, {0, 4, 64, HD_F32, 0, 0}};
    const attention_layer good_layers[] = {
        {.key_stream = 0, .value_stream = 1, .value_dim = 64, .query_heads = 8, .scale = 1}};
    attention_stream streams[3];
    attention_layer layers[1];
    attention_layer_table table = TABLE(streams, layers);
#define REFUSED(change, words)                                                                                         \
    do {                                                                                                               \
        memcpy(streams, good, sizeof(good));                                                                           \
        layers[0] = good_layers[0];                                                                                    \
        assert_valid(&table);                                                                                          \
        change;                                                                                                        \
        assert_refused(&table, words);                                                                                 \
    } while (0)
    REFUSED(streams[1].heads = 0, "stream 1: 'heads'");
    REFUSED(streams[1].dim = 0, "stream 1: 'dim'");
    REFUSED(streams[0].codec = HD_DTYPE_COUNT, "stream 0: 5 is no number format");
    REFUSED(streams[0].tokens_per_record = 3, "stream 0: 3 tokens per record");
    REFUSED(streams[0].owner_layer = 1, "stream 0: its owner is layer 1 of 1");
    REFUSED(streams[2].window = 5, "stream 2: a state");
    REFUSED(layers[0].key_stream = 3, "layer 0: 'key_stream' is 3, but there are 3 streams");
    REFUSED(layers[0].value_stream = 2, "layer 0: 'value_stream' is stream 2, a state");
    REFUSED(streams[0].heads = 1u << 31, "stream 0: 'heads' must be at least 1 and at most 65536");
    REFUSED(streams[0].dim = UINT32_MAX, "stream 0: 'dim' must be at least 1 and at most 1048576");
    REFUSED(layers[0].query_heads = 1u << 31,
            "layer 0: 2147483648 query heads are no multiple of 4 KV heads, or over 65536");
    REFUSED(layers[0].query_heads = 6, "layer 0: 6 query heads are no multiple of 4 KV heads");
    REFUSED(layers[0].query_heads = 0, "layer 0: 0 query heads");
    REFUSED(layers[0].value_dim = 32, "layer 0: 'value_dim' is 32");
    REFUSED(streams[1].heads = 2, "layer 0: streams 0 and 1 differ");
    REFUSED(layers[0].scale = 1.0f / 0.0f, "layer 0: 'scale'");
    REFUSED(layers[0].soft_cap = -1, "layer 0: 'scale' or 'soft_cap'");
    REFUSED(layers[0].value_stream = 0, "layer 0: a value that is a prefix of the key");
    table.layer_count = 0;
    assert_refused(&table, "without layers");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_grouped_attention_is_counted_in_whole_blocks),
        cmocka_unit_test(a_latent_is_stored_once_for_key_and_value),
        cmocka_unit_test(a_window_keeps_the_blocks_that_it_touches),
        cmocka_unit_test(layers_may_share_an_earlier_layers_streams),
        cmocka_unit_test(compressed_records_and_states_are_counted_by_their_own_rule),
        cmocka_unit_test(what_cannot_be_is_refused_by_name),
    };
    return cmocka_run_group_tests_name("layer_table", tests, NULL, NULL);
}
