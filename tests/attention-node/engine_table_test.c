/* engine_table_test.c - layer tables of other kinds than plain keys and values: bytes, runs, cuts and snapshots. */
#include <string.h>

#include "attention-node/engine_state.h"
#include "tests/attention-node/toy.h"

/* Layer 1 reads the streams of layer 0: with the same queries it answers the same, and stores nothing. */
static void layers_that_share_streams_read_the_owners(void **state) {
    toy t;
    toy_init(&t, &(toy_shape){1, 1, 2, 16, 16, HD_F32, {0}, 0, false});
    t.layers[1] = t.layers[0];
    t.config.layers.layer_count = 2;
    toy_open(&t, 2);
    attention *a = t.attention;
    attention_stats stats;
    a->ops->stats(a, &stats);
    assert_int_equal(stats.block_bytes, 2 * 128 * 32 * 4);
    attention_sequence_params params = {.sequence = 1, .epoch = 1, .tokens_max = 300};
    uint64_t cached, seed = 1;
    assert_int_equal(a->ops->sequence_open(a, &params, &cached, NULL), HD_OK);
    float *queries = hd_alloc_zeroed(200 * 2 * 32 * 4, 64), *keys = hd_alloc(200 * 16 * 4, 64),
          *nothing = hd_alloc_zeroed(200 * 16 * 4, 64);
    float *first = hd_alloc_zeroed(200 * 32 * 4, 64), *second = hd_alloc_zeroed(200 * 32 * 4, 64);
    for (int i = 0; i < 400; i++) {
        for (int k = 0; k < 16; k++) queries[i * 32 + k] = (float)toy_below(&seed, 100) / 50.0f - 1.0f;
    }
    for (int i = 0; i < 200 * 16; i++) keys[i] = (float)toy_below(&seed, 100) / 50.0f - 1.0f;
    uint32_t tokens[200] = {0};
    attention_rows rows = {1, 1, 0, 200, tokens, false, 0};
    assert_int_equal(a->ops->step_begin(a, &rows, 1, NULL), HD_OK);
    attention_tensor q = {.data = queries, .dtype = HD_F32}, k = {.data = keys, .dtype = HD_F32},
                     n = {.data = nothing, .dtype = HD_F32};
    attention_layer_call calls[2] = {{0, q, k, k, {.data = first, .dtype = HD_F32}, 32, {.out = NULL}, 0},
                                     {1, q, n, n, {.data = second, .dtype = HD_F32}, 32, {.out = NULL}, 0}};
    for (uint32_t layer = 0; layer < 2; layer++) {
        assert_int_equal(a->ops->submit(a, &calls[layer]), HD_OK);
        assert_int_equal(a->ops->wait(a, layer), HD_OK);
    }
    assert_int_equal(a->ops->step_end(a), HD_OK);
    assert_memory_equal(first, second, 200 * 32 * 4);
    assert_true(first[0] != 0.0f);
    hd_free(queries);
    hd_free(keys);
    hd_free(nothing);
    hd_free(first);
    hd_free(second);
    toy_fini(&t);
}

typedef struct {
    hd_pool *pool;
    attention *attention;
} other_engine;

static void open_other(other_engine *o, const attention_layer_table *table, uint32_t snapshots) {
    engine_config config = {.layers = *table,
                            .kv_dtype = HD_BF16,
                            .hot_bytes = 8u << 20,
                            .step_rows_max = 512,
                            .sequences_max = 3,
                            .snapshots_max = snapshots,
                            .kernels = kernel_ops_portable()};
    assert_int_equal(hd_pool_open(1, &o->pool), HD_OK);
    config.pool = o->pool;
    hd_error error = {.text = ""};
    hd_status status = engine_open(&config, &o->attention, &error);
    if (status != HD_OK) print_error("%s\n", error.text);
    assert_int_equal(status, HD_OK);
}

static void close_other(other_engine *o) {
    o->attention->ops->close(o->attention);
    hd_pool_close(o->pool);
}

/* A step of a table that nothing computes on: the tokens and their blocks are kept all the same. */
static void append_other(other_engine *o, uint64_t name, uint64_t first, uint32_t count) {
    uint32_t tokens[512];
    for (uint32_t i = 0; i < count; i++) tokens[i] = (uint32_t)(first + i);
    attention_rows rows = {name, 1, first, count, tokens, false, 0};
    assert_int_equal(o->attention->ops->step_begin(o->attention, &rows, 1, NULL), HD_OK);
    assert_int_equal(o->attention->ops->step_end(o->attention), HD_OK);
}

static const sequence *inner_of(const other_engine *o, uint64_t name) {
    return sequence_table_find(&((engine *)o->attention)->sequences, name);
}

static void assert_runs(const other_engine *o, uint64_t name, uint64_t length) {
    const sequence *s = inner_of(o, name);
    assert_int_equal(s->length, length);
    assert_int_equal(s->run_count, (length + 127) / 128);
    for (uint32_t i = 0; i < s->run_count; i++) {
        uint64_t left = length - (uint64_t)i * 128;
        assert_int_equal(s->runs[i].position, (uint64_t)i * 128);
        assert_int_equal(s->runs[i].count, left < 128 ? left : 128);
        assert_non_null(block_pool_find(&((engine *)o->attention)->home.store.pool, s->runs[i].block));
    }
}

/* A latent (value = prefix of the key), records of 4 tokens, of 128, and an int8 index key. */
static void tables_of_latents_and_compressed_records_keep_runs(void **state) {
    const attention_stream streams[] = {{0, 1, 576, HD_BF16, 1, 0},
                                        {0, 1, 512, HD_BF16, 4, 0},
                                        {0, 1, 512, HD_BF16, 128, 0},
                                        {0, 1, 128, HD_INT8, 1, 0}};
    const attention_layer layers[] = {{.key_stream = 0,
                                       .value_stream = 0,
                                       .value_is_key_prefix = true,
                                       .value_dim = 512,
                                       .query_heads = 16,
                                       .scale = 1}};
    const attention_layer_table table = {streams, 4, layers, 1};
    other_engine o;
    open_other(&o, &table, 0);
    attention *a = o.attention;
    attention_stats stats;
    a->ops->stats(a, &stats);
    assert_int_equal(stats.block_bytes, 128 * 576 * 2 + 32 * 512 * 2 + 512 * 2 + 128 * (128 + 8));
    attention_sequence_params params = {.sequence = 1, .epoch = 1, .tokens_max = 1500};
    uint64_t cached;
    assert_int_equal(a->ops->sequence_open(a, &params, &cached, NULL), HD_OK);
    for (uint64_t first = 0; first < 1000; first += 250) append_other(&o, 1, first, 250);
    assert_runs(&o, 1, 1000);
    assert_int_equal(a->ops->truncate(a, 1, 1, 300), HD_OK);
    assert_runs(&o, 1, 300);
    append_other(&o, 1, 300, 100);
    assert_int_equal(a->ops->fork(a, 1, 200, 2, 1, 500, NULL), HD_OK);
    assert_runs(&o, 2, 200);
    assert_runs(&o, 1, 400);

    uint32_t tokens[1] = {7};
    attention_rows rows = {1, 1, 400, 1, tokens, false, 0};
    assert_int_equal(a->ops->step_begin(a, &rows, 1, NULL), HD_OK);
    attention_tensor nothing = {.data = tokens, .dtype = HD_BF16};
    attention_layer_call call = {0, nothing, nothing, nothing, nothing, 8192, {.out = NULL}, 0};
    assert_int_equal(a->ops->submit(a, &call), HD_UNSUPPORTED);
    assert_int_equal(a->ops->step_end(a), HD_OK);

    /* Sealed blocks are shared by identity here, too. */
    uint32_t prompt[400];
    for (uint32_t i = 0; i < 400; i++) prompt[i] = i;
    params = (attention_sequence_params){
        .sequence = 3, .epoch = 1, .token_ids = prompt, .token_count = 400, .tokens_max = 400, .reuse_max = 400};
    assert_int_equal(a->ops->sequence_open(a, &params, &cached, NULL), HD_OK);
    assert_int_equal(cached, 384);
    close_other(&o);
}

static void save_states(other_engine *o, uint64_t name, uint64_t position, unsigned char mark) {
    unsigned char bytes[8192];
    memset(bytes, mark, sizeof(bytes));
    for (uint32_t stream = 2; stream < 4; stream++) {
        assert_int_equal(o->attention->ops->state_save(o->attention, name, 1, position, stream, bytes), HD_OK);
    }
}

static void assert_states(other_engine *o, uint64_t name, uint64_t position, unsigned char mark) {
    unsigned char bytes[8192] = {0};
    for (uint32_t stream = 2; stream < 4; stream++) {
        assert_int_equal(o->attention->ops->state_load(o->attention, name, position, stream, bytes), HD_OK);
        assert_int_equal(bytes[0], mark);
        assert_int_equal(bytes[255], mark);
    }
}

/* Keys and values of one layer beside a matrix state and a convolution's, as in a hybrid model. */
static void tables_with_states_are_cut_at_snapshots(void **state) {
    const attention_stream streams[] = {
        {0, 1, 32, HD_BF16, 4, 0}, {0, 1, 32, HD_BF16, 4, 0}, {0, 4, 512, HD_F32, 0, 0}, {0, 1, 128, HD_BF16, 0, 0}};
    const attention_layer layers[] = {
        {.key_stream = 0, .value_stream = 1, .value_dim = 32, .query_heads = 4, .scale = 1}};
    const attention_layer_table table = {streams, 4, layers, 1};
    other_engine o;
    open_other(&o, &table, 5);
    attention *a = o.attention;
    attention_sequence_params params = {.sequence = 1, .epoch = 1, .tokens_max = 2000};
    uint64_t cached, length;
    assert_int_equal(a->ops->sequence_open(a, &params, &cached, NULL), HD_OK);
    for (uint64_t first = 0; first < 900; first += 300) {
        append_other(&o, 1, first, 300);
        save_states(&o, 1, first + 300, (unsigned char)(first / 300 + 1));
    }
    unsigned char bytes[8192] = {0};
    assert_int_equal(a->ops->state_save(a, 1, 1, 901, 2, bytes), HD_INVALID); /* beyond what is there */
    assert_int_equal(a->ops->state_save(a, 1, 1, 600, 0, bytes), HD_INVALID); /* pages are no state */
    assert_int_equal(a->ops->state_load(a, 1, 599, 2, bytes), HD_NOT_FOUND);

    assert_int_equal(a->ops->truncate(a, 1, 1, 700), HD_OK);
    assert_int_equal(a->ops->sequence_length(a, 1, &length), HD_OK);
    assert_int_equal(length, 600);
    assert_runs(&o, 1, 600);
    assert_states(&o, 1, 600, 2);
    assert_int_equal(a->ops->state_load(a, 1, 900, 2, bytes), HD_NOT_FOUND);

    assert_int_equal(a->ops->fork(a, 1, 599, 2, 1, 2000, NULL), HD_OK);
    assert_runs(&o, 2, 300);
    assert_states(&o, 2, 300, 1);
    assert_states(&o, 1, 300, 1);
    append_other(&o, 2, 300, 50);
    save_states(&o, 2, 350, 9);
    assert_states(&o, 1, 600, 2);
    assert_int_equal(a->ops->sequence_close(a, 1, 1, true, false), HD_OK);
    assert_states(&o, 2, 350, 9);

    /* Blocks without the state that belongs to them are no prefix. */
    uint32_t prompt[300];
    for (uint32_t i = 0; i < 300; i++) prompt[i] = i;
    params = (attention_sequence_params){
        .sequence = 3, .epoch = 1, .token_ids = prompt, .token_count = 300, .tokens_max = 300, .reuse_max = 300};
    assert_int_equal(a->ops->sequence_open(a, &params, &cached, NULL), HD_OK);
    assert_int_equal(cached, 0);
    assert_int_equal(a->ops->truncate(a, 2, 1, 299), HD_OK);
    assert_runs(&o, 2, 0);
    close_other(&o);

    assert_int_equal(hd_pool_open(1, &o.pool), HD_OK);
    engine_config config = {.layers = table,
                            .kv_dtype = HD_BF16,
                            .hot_bytes = 8u << 20,
                            .step_rows_max = 8,
                            .sequences_max = 3,
                            .snapshots_max = 2,
                            .kernels = kernel_ops_portable(),
                            .pool = o.pool};
    hd_error error;
    assert_int_equal(engine_open(&config, &o.attention, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "2 snapshots of states are too few for 3 sequences"));
    hd_pool_close(o.pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_that_share_streams_read_the_owners),
        cmocka_unit_test(tables_of_latents_and_compressed_records_keep_runs),
        cmocka_unit_test(tables_with_states_are_cut_at_snapshots),
    };
    return cmocka_run_group_tests_name("engine_table", tests, NULL, NULL);
}
