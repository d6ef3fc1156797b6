/* remote_test.c - attention nodes behind wires: the same bits, epochs, and what a lost link does. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/fault.h"
#include "tests/attention-node/cluster.h"

#define MIB ((uint64_t)1 << 20)

static const toy_shape shape_plain = {2, 4, 2, 32, 16, HD_BF16, {0, 1500}, 0, true};

static void run_mixed(cluster *c) {
    toy_sequence a, b;
    toy_sequence_init(&a, 1, 1, 5000);
    toy_sequence_push_text(&a, 3, 3700);
    toy_sequence_init(&b, 2, 2, 900);
    toy_sequence_push_text(&b, 4, 800);
    assert_int_equal(cluster_sequence_open(c, &a, 0), 0);
    assert_int_equal(cluster_sequence_open(c, &b, 0), 0);
    cluster_run(c, &a, 0, 3671, 1000);
    cluster_run(c, &b, 0, 700, 511);
    for (uint64_t i = 0; i < 12; i++) {
        toy_rows rows[2] = {{&a, 3671 + i, 1}, {&b, 700 + 3 * i, 3}};
        cluster_step(c, rows, 2);
    }
    attention *one = c->one.attention, *many = c->many.attention;
    assert_int_equal(one->ops->fork(one, 1, 3000, 3, 1, 3300, NULL), HD_OK);
    assert_int_equal(many->ops->fork(many, 1, 3000, 3, 1, 3300, NULL), HD_OK);
    toy_sequence fork;
    toy_sequence_init(&fork, 3, 1, 3300);
    for (uint64_t p = 0; p < 3000; p++) toy_sequence_push(&fork, a.tokens[p]);
    toy_sequence_push_text(&fork, 11, 200);
    cluster_run(c, &fork, 3000, 200, 64);
    assert_int_equal(one->ops->truncate(one, 1, 1, 2000), HD_OK);
    assert_int_equal(many->ops->truncate(many, 1, 1, 2000), HD_OK);
    a.length = 2000;
    toy_sequence_push_text(&a, 12, 100);
    cluster_run(c, &a, 2000, 100, 100);
    cluster_sequence_close(c, &a, true);
    cluster_sequence_close(c, &b, false);
    cluster_sequence_close(c, &fork, false);
    attention_stats stats;
    many->ops->stats(many, &stats);
    assert_int_equal(stats.blocks_sequences + stats.blocks_reserved, 0);
    toy_sequence_fini(&a);
    toy_sequence_fini(&b);
    toy_sequence_fini(&fork);
}

static void every_wire_gives_the_bits_of_one_engine(void **state) {
    static const cluster_shape shapes[] = {
        {2, 4, 1, 32 * MIB, 1024, CLUSTER_INPROC, 0},
        {1, 2, 1, 32 * MIB, 8192, CLUSTER_GRPC, 0},
        {1, 3, 2, 32 * MIB, 1024, CLUSTER_GRPC, 0},
        {4, 4, 1, 32 * MIB, 8192, CLUSTER_GRPC, 0},
    };
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        cluster c;
        cluster_open(&c, &shape_plain, &shapes[i]);
        run_mixed(&c);
        remote_traffic traffic;
        remote_traffic_read(c.nodes[0], &traffic);
        assert_true(traffic.frames_out == traffic.frames_in && traffic.bytes_in > 10000);
        cluster_close(&c);
    }
}

static void int8_pages_give_the_bits_of_one_engine(void **state) {
    const toy_shape shape = {2, 4, 2, 32, 16, HD_INT8, {0, 1500}, 0, true};
    cluster c;
    cluster_open(&c, &shape, &(cluster_shape){2, 4, 1, 32 * MIB, 1024, CLUSTER_GRPC, 0});
    run_mixed(&c);
    cluster_close(&c);
}

static void another_worker_takes_over_and_the_old_one_is_refused(void **state) {
    cluster c;
    cluster_open(&c, &shape_plain, &(cluster_shape){2, 4, 1, 32 * MIB, 1024, CLUSTER_GRPC, 0});
    toy_sequence s;
    toy_sequence_init(&s, 7, 1, 4500);
    toy_sequence_push_text(&s, 3, 4400);
    assert_int_equal(cluster_sequence_open(&c, &s, 0), 0);
    cluster_run(&c, &s, 0, 4000, 1000);
    cluster other = c;
    cluster_attach_second(&c, &other);
    s.epoch = 2;
    s.length = 4001;
    uint64_t cached = 0;
    hd_error error = {.text = ""};
    if (toy_sequence_open(&other.many, &s, UINT64_MAX, &cached, &error) != HD_OK) fail_msg("%s", error.text);
    assert_int_equal(cached, 4000); /* nothing is appended again but what was in flight */
    s.length = 4400;
    cluster_run(&other, &s, 4000, 300, 90);
    s.epoch = 1;
    assert_int_equal(toy_step(&c.many, &(toy_rows){&s, 4000, 1}, 1, NULL, NULL), HD_STALE);
    s.epoch = 2;
    cluster_run(&other, &s, 4300, 100, 90);
    cluster_detach_second(&other);
    toy_sequence_fini(&s);
    cluster_close(&c);
}

static void a_killed_node_with_a_replica_is_noticed_and_not_missed(void **state) {
    cluster c;
    cluster_open(&c, &shape_plain, &(cluster_shape){1, 3, 2, 32 * MIB, 1024, CLUSTER_GRPC, 0});
    toy_sequence s;
    toy_sequence_init(&s, 1, 1, 4096);
    toy_sequence_push_text(&s, 3, 4000);
    assert_int_equal(cluster_sequence_open(&c, &s, 0), 0);
    cluster_run(&c, &s, 0, 3500, 1000);
    cluster_kill_server(&c, sharded_placement(c.many.attention, 1)->rows[0].nodes[0]);
    assert_int_equal(toy_step(&c.many, &(toy_rows){&s, 3500, 10}, 1, NULL, NULL), HD_PEER_LOST);
    cluster_run(&c, &s, 3500, 500, 100);
    toy_sequence_fini(&s);
    cluster_close(&c);
}

static void a_killed_node_without_a_replica_is_filled_again(void **state) {
    cluster c;
    cluster_open(&c, &shape_plain, &(cluster_shape){1, 4, 1, 32 * MIB, 1024, CLUSTER_INPROC, 0});
    toy_sequence s;
    toy_sequence_init(&s, 1, 1, 4096);
    toy_sequence_push_text(&s, 3, 4000);
    assert_int_equal(cluster_sequence_open(&c, &s, 0), 0);
    cluster_run(&c, &s, 0, 3500, 1000);
    cluster_kill_server(&c, sharded_placement(c.many.attention, 1)->rows[2].nodes[0]);
    assert_int_equal(toy_step(&c.many, &(toy_rows){&s, 3500, 1}, 1, NULL, NULL), HD_PEER_LOST);
    s.epoch = 2;
    uint64_t cached = 0;
    hd_error error = {.text = ""};
    if (toy_sequence_open(&c.many, &s, UINT64_MAX, &cached, &error) != HD_OK) fail_msg("%s", error.text);
    assert_int_equal(cached, 2048);
    cluster_run(&c, &s, cached, 4000 - cached, 1000);
    toy_sequence_fini(&s);
    cluster_close(&c);
}

static uint64_t sequences_of(cluster *c, uint32_t node) {
    attention_service_state state;
    attention_service_state_read(c->servers[node].service, &state);
    return state.stats.sequences;
}

static void a_lost_workers_sequences_are_closed_after_a_while(void **state) {
    cluster c;
    cluster_open(&c, &shape_plain, &(cluster_shape){1, 1, 1, 32 * MIB, 1024, CLUSTER_GRPC, 300});
    cluster other = c;
    cluster_attach_second(&c, &other);
    toy_sequence s;
    toy_sequence_init(&s, 7, 1, 2000);
    toy_sequence_push_text(&s, 3, 1500);
    uint64_t cached;
    assert_int_equal(toy_sequence_open(&other.many, &s, 0, &cached, NULL), HD_OK);
    toy_run(&other.many, &s, 0, 1500, 500, NULL);
    struct timespec pause = {.tv_nsec = 120 * 1000000};
    nanosleep(&pause, NULL);
    assert_int_equal(sequences_of(&c, 0), 1);
    cluster_detach_second(&other); /* the sharded attention's close leaves it open, as a killed worker does */
    for (int i = 0; i < 100 && sequences_of(&c, 0) > 0; i++) nanosleep(&pause, NULL);
    assert_int_equal(sequences_of(&c, 0), 0);
    /* Its blocks are prefix cache now. */
    s.name = 8;
    assert_int_equal(toy_sequence_open(&c.many, &s, UINT64_MAX, &cached, NULL), HD_OK);
    assert_int_equal(cached, 1408);
    toy_sequence_fini(&s);
    cluster_close(&c);
}

static uint64_t prefix_on(attention *node, const toy_sequence *s) {
    attention_sequence_params params = {.sequence = 99,
                                        .epoch = 1,
                                        .token_ids = s->tokens,
                                        .token_count = s->length,
                                        .tokens_max = s->tokens_max,
                                        .reuse_max = UINT64_MAX};
    params.salt[0] = s->salt;
    uint64_t tokens = UINT64_MAX;
    assert_int_equal(node->ops->prefix_find(node, &params, &tokens), HD_OK);
    return tokens;
}

/* Both nodes have spilt most of the large one. */
static void rows_that_one_node_loses_are_kept_by_none(void **state) {
    enum { LARGE = 7037, SMALL = 100 };
    static const toy_shape shape = {2, 4, 1, 64, 64, HD_F32, {0}, 0, false};
    cluster c;
    cluster_open_with(&c, &shape, &(cluster_shape){2, 2, 1, 11 * MIB, 32768, CLUSTER_INPROC, 0},
                      &(cluster_tiers){9 * MIB, 64 * MIB, 0, .rows_max = 64, .sequences_max = 4});
    toy_sequence large, small;
    toy_sequence_init(&large, 1, 1, LARGE + 10);
    toy_sequence_push_text(&large, 3, LARGE + 3);
    toy_sequence_init(&small, 2, 2, SMALL + 10);
    toy_sequence_push_text(&small, 4, SMALL + 3);
    large.length = LARGE;
    assert_int_equal(cluster_sequence_open(&c, &large, 0), 0);
    large.length = LARGE + 3;
    assert_int_equal(cluster_sequence_open(&c, &small, 0), 0);
    cluster_run(&c, &large, 0, LARGE, 64);
    cluster_run(&c, &small, 0, SMALL, 64);

    attention *many = c.many.attention;
    uint64_t length = 0;
    toy_rows rows[2] = {{&large, LARGE, 1}, {&small, SMALL, 1}};
    fault_hold(FAULT_READ);
    hd_status status = toy_step(&c.many, rows, 2, NULL, NULL);
    fault_disarm();
    assert_int_equal(status, HD_IO);
    assert_int_equal(many->ops->sequence_length(many, 1, &length), HD_IO);
    assert_int_equal(many->ops->sequence_length(many, 2, &length), HD_OK);
    assert_int_equal(length, SMALL + 1);
    cluster_step(&c, rows, 2); /* the disk answers again, and the bits are those of memory alone */
    cluster_step(&c, (toy_rows[]){{&large, LARGE + 1, 1}}, 1);
    assert_int_equal(many->ops->sequence_length(many, 1, &length), HD_OK);
    assert_int_equal(length, LARGE + 2);

    /* The next row completes a block. One node cannot attend for it; the other one could, and must not keep it. */
    cluster_flip_cold(&c, 0);
    rows[0].first = LARGE + 2;
    rows[1].first = SMALL + 1;
    assert_int_equal(toy_step(&c.many, rows, 2, NULL, NULL), HD_CORRUPT);
    assert_int_equal(many->ops->sequence_length(many, 1, &length), HD_CORRUPT);
    assert_int_equal(many->ops->sequence_length(many, 2, &length), HD_OK);
    assert_int_equal(length, SMALL + 2);
    assert_int_equal(prefix_on(c.nodes[1], &large), (LARGE + 2) / 128 * 128);
    toy_sequence_fini(&large);
    toy_sequence_fini(&small);
    cluster_close(&c);
}

static hd_status open_selected(attention *a, toy_sequence *s, const char *selection, hd_error *error) {
    uint64_t cached = 0;
    attention_sequence_params params = {.sequence = s->name,
                                        .epoch = s->epoch,
                                        .token_ids = s->tokens,
                                        .token_count = s->prompt_count,
                                        .prompt_count = s->prompt_count,
                                        .tokens_max = s->tokens_max,
                                        .salt = {s->salt},
                                        .selection = selection};
    return a->ops->sequence_open(a, &params, &cached, error);
}

/* By heads: each node searches the indexes of its own, which are those that one engine would build. */
static void selections_by_heads_have_the_bits_of_one_engine(void **state) {
    static const char *const selections[] = {"window,recent=256,full_layers=1", "retrieval,tokens=64,full_layers=1"};
    static const toy_shape shape = {2, 4, 2, 32, 32, HD_BF16, {0}, 0, false};
    enum { PROMPT = 6000, ALL = 6300 };
    for (int i = 0; i < 2; i++) {
        cluster c;
        cluster_open_with(&c, &shape, &(cluster_shape){4, 4, 1, 96 * MIB, 1024, CLUSTER_INPROC, 0},
                          &(cluster_tiers){.index_bytes = 32 * MIB, .rows_max = 512, .sequences_max = 4});
        toy_sequence s;
        toy_sequence_init(&s, 1, 1, ALL);
        toy_sequence_push_text(&s, 3, ALL);
        s.prompt_count = PROMPT;
        assert_int_equal(open_selected(c.one.attention, &s, selections[i], NULL), HD_OK);
        assert_int_equal(open_selected(c.many.attention, &s, selections[i], NULL), HD_OK);
        cluster_run(&c, &s, 0, PROMPT, 500);
        cluster_run(&c, &s, PROMPT, ALL - PROMPT, 50);
        attention_stats stats;
        c.one.attention->ops->stats(c.one.attention, &stats);
        assert_true(i == 0 || stats.searches > 0);
        toy_sequence_fini(&s);
        cluster_close(&c);
    }
}

/* By positions: whole on one node where it fits, and refused before anything is promised where it never does. */
static void selections_are_not_split_by_positions(void **state) {
    cluster c;
    cluster_open_with(&c, &shape_plain, &(cluster_shape){1, 2, 1, 48 * MIB, 1024, CLUSTER_INPROC, 0},
                      &(cluster_tiers){.rows_max = 512, .sequences_max = 4});
    attention *many = c.many.attention;
    attention_stats stats;
    many->ops->stats(many, &stats);
    uint64_t holds = stats.blocks_whole * HD_BLOCK_TOKENS;
    assert_true(holds * 2 == stats.blocks_total * HD_BLOCK_TOKENS);
    toy_sequence s;
    toy_sequence_init(&s, 1, 1, holds + 1);
    toy_sequence_push_text(&s, 3, 4000);
    s.prompt_count = 3900;
    hd_error error = {.text = ""};
    assert_int_equal(open_selected(many, &s, "window,recent=256", &error), HD_INVALID);
    assert_non_null(strstr(error.text, "selection 'window,recent=256' keeps a request's keys and values"));
    assert_non_null(strstr(error.text, "--kv-lanes"));
    s.tokens_max = holds / 2;
    assert_int_equal(open_selected(many, &s, "window,recent=256", &error), HD_OK);
    assert_int_equal(open_selected(c.one.attention, &s, "window,recent=256", &error), HD_OK);
    cluster_run(&c, &s, 0, 4000, 400);
    assert_int_equal(sharded_placement(many, 1)->row_count, 1);
    many->ops->sequence_close(many, 1, 1, false, false);
    s.tokens_max = holds + 1;
    assert_int_equal(open_selected(many, &s, "full", &error), HD_OK);
    assert_true(sharded_placement(many, 1)->row_count > 1);
    toy_sequence_fini(&s);
    cluster_close(&c);
}

static void what_does_not_fit_is_refused_by_name(void **state) {
    cluster c;
    cluster_open(&c, &shape_plain, &(cluster_shape){2, 2, 1, 32 * MIB, 1024, CLUSTER_GRPC, 0});
    remote_config config = {.transport = c.wire,
                            .address = c.servers[0].address,
                            .model_name = "another",
                            .layers = c.many.config.layers,
                            .heads = {0, 4},
                            .kv_dtype = HD_BF16,
                            .step_rows_max = 128,
                            .sequences_max = 4,
                            .answer_ms = 5000,
                            .kernels = "avx2"};
    attention *out = NULL;
    hd_error error = {.text = ""};
    assert_int_equal(remote_open(&config, &out, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "keeps KV heads 0 to 2 of 'toy', not 0 to 4"));
    config.fingerprint[0] = 1;
    assert_int_equal(remote_open(&config, &out, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "keeps 'toy', not 'another'"));
    config.address = "127.0.0.1:1";
    assert_int_equal(remote_open(&config, &out, &error), HD_PEER_LOST);
    assert_non_null(strstr(error.text, "127.0.0.1:1"));
    attention_service_set_draining(c.servers[0].service, true);
    toy_sequence s;
    toy_sequence_init(&s, 9, 1, 100);
    toy_sequence_push_text(&s, 3, 50);
    uint64_t cached;
    assert_int_equal(toy_sequence_open(&c.many, &s, 0, &cached, &error), HD_FULL);
    assert_non_null(strstr(error.text, "draining"));
    toy_sequence_fini(&s);
    cluster_close(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_wire_gives_the_bits_of_one_engine),
        cmocka_unit_test(int8_pages_give_the_bits_of_one_engine),
        cmocka_unit_test(another_worker_takes_over_and_the_old_one_is_refused),
        cmocka_unit_test(a_killed_node_with_a_replica_is_noticed_and_not_missed),
        cmocka_unit_test(a_killed_node_without_a_replica_is_filled_again),
        cmocka_unit_test(a_lost_workers_sequences_are_closed_after_a_while),
        cmocka_unit_test(rows_that_one_node_loses_are_kept_by_none),
        cmocka_unit_test(selections_by_heads_have_the_bits_of_one_engine),
        cmocka_unit_test(selections_are_not_split_by_positions),
        cmocka_unit_test(what_does_not_fit_is_refused_by_name),
    };
    return cmocka_run_group_tests_name("remote", tests, NULL, NULL);
}
