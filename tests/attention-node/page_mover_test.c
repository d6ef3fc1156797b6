/* page_mover_test.c - blocks move between attention nodes while sequences go on: the same bits, nothing computed again,
 * nothing left behind; whatever is cut, forked, undrained, killed or taken over meanwhile. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/attention-node/cluster.h"

#define MIB ((uint64_t)1 << 20)

static const toy_shape shape_plain = {2, 4, 2, 32, 16, HD_BF16, {0, 1500}, 0, true};

static void rest(void) {
    nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
}

static uint64_t held_by(cluster *c, uint32_t node) {
    attention_stats stats;
    uint64_t length;
    (void)c->nodes[node]->ops->sequence_length(c->nodes[node], 1, &length); /* its answer brings the node's figures */
    c->nodes[node]->ops->stats(c->nodes[node], &stats);
    return stats.sequences + stats.blocks_sequences + stats.blocks_reserved;
}

/* Pages that were fetched are held until the link that did it has ended. */
static void wait_until_empty(cluster *c, uint32_t node) {
    for (uint32_t turn = 0; turn < 2000 && held_by(c, node) > 0; turn++) rest();
    assert_int_equal(held_by(c, node), 0);
}

/* What the nodes have computed: appended tokens, all of them together. */
static uint64_t appended(cluster *c) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < c->node_count; i++) {
        attention_stats stats;
        if (c->nodes[i] == NULL || c->servers[i].service == NULL) continue;
        c->nodes[i]->ops->stats(c->nodes[i], &stats);
        sum += stats.appended_tokens;
    }
    return sum;
}

static bool is_on(cluster *c, uint64_t name, uint32_t node) {
    const placement *map = sharded_placement(c->many.attention, name);
    for (uint32_t i = 0; i < map->row_count; i++) {
        if (placement_row_has(&map->rows[i], node)) return true;
    }
    return false;
}

static uint32_t first_node(cluster *c, uint64_t name) {
    return sharded_placement(c->many.attention, name)->rows[0].nodes[0];
}

/* Token after token, until the sequence is where it is to be. */
static uint64_t decode_until(cluster *c, toy_sequence *s, uint64_t from, bool (*is_done)(cluster *c, uint64_t name),
                             uint64_t most) {
    for (uint64_t i = 0; i < most; i++) {
        if (is_done(c, s->name)) return from + i;
        cluster_step(c, &(toy_rows){s, from + i, 1}, 1);
        rest();
    }
    fail_msg("it has not moved within %llu tokens", (unsigned long long)most);
    return 0;
}

static uint32_t watched;
static bool has_left(cluster *c, uint64_t name) {
    return !is_on(c, name, watched);
}

static bool has_two(cluster *c, uint64_t name) {
    const placement *map = sharded_placement(c->many.attention, name);
    for (uint32_t i = 0; i < map->row_count; i++) {
        if (map->rows[i].node_count < 2) return false;
    }
    return true;
}

static void drain_one(const cluster_shape *shape, const char *selection) {
    cluster c;
    cluster_open(&c, &shape_plain, shape);
    toy_sequence s;
    toy_sequence_init(&s, 7, 1, 6000);
    toy_sequence_push_text(&s, 3, 6000);
    s.length = 3000;
    s.selection = selection;
    if (selection != NULL) {
        s.prompt_count = 3000;
        s.sinks = 128;
        s.recent = 512;
    }
    assert_int_equal(cluster_sequence_open(&c, &s, 0), 0);
    s.length = 6000;
    cluster_run(&c, &s, 0, 3001, 1000);
    watched = first_node(&c, 7);
    uint64_t version = sharded_placement(c.many.attention, 7)->version;
    cluster_set_draining(&c, watched, true);
    uint64_t at = decode_until(&c, &s, 3001, has_left, 2000);
    assert_true(sharded_placement(c.many.attention, 7)->version > version);
    wait_until_empty(&c, watched);
    cluster_kill_server(&c, watched); /* at that moment */
    cluster_run(&c, &s, at, 300, 7);
    cluster_run(&c, &s, 100, 50, 50); /* and what was copied is what was there */
    sharded_moves moves;
    sharded_moves_read(c.many.attention, &moves);
    assert_true(moves.moved > 0 && moves.failed == 0);
    toy_sequence_fini(&s);
    cluster_close(&c);
}

static void a_drained_node_hands_its_rows_over_while_decoding_goes_on(void **state) {
    drain_one(&(cluster_shape){1, 2, 1, 32 * MIB, 8192, CLUSTER_INPROC, 0}, NULL);
    drain_one(&(cluster_shape){1, 3, 1, 32 * MIB, 1024, CLUSTER_GRPC, 0}, NULL);
    drain_one(&(cluster_shape){2, 4, 1, 32 * MIB, 8192, CLUSTER_GRPC, 0}, NULL);
    drain_one(&(cluster_shape){1, 2, 1, 32 * MIB, 8192, CLUSTER_INPROC, 0}, "window,sinks=128,recent=512");
}

/* Most of the sequence is on the source's disk, and will be on the receiver's. */
static void what_is_on_a_disk_moves_as_well(void **state) {
    enum { LARGE = 7037 };
    static const toy_shape shape = {2, 2, 1, 64, 64, HD_F32, {0}, 0, false};
    cluster c;
    cluster_open_with(&c, &shape, &(cluster_shape){1, 2, 1, 11 * MIB, 32768, CLUSTER_GRPC, 0},
                      &(cluster_tiers){9 * MIB, 64 * MIB, 0, .rows_max = 64, .sequences_max = 4});
    toy_sequence s;
    toy_sequence_init(&s, 7, 1, LARGE + 900);
    toy_sequence_push_text(&s, 3, LARGE + 900);
    s.length = LARGE;
    assert_int_equal(cluster_sequence_open(&c, &s, 0), 0);
    s.length = LARGE + 900;
    cluster_run(&c, &s, 0, LARGE, 64);
    watched = first_node(&c, 7);
    attention_stats there;
    uint64_t length;
    assert_int_equal(c.nodes[watched]->ops->sequence_length(c.nodes[watched], sharded_name(7, 0), &length), HD_OK);
    c.nodes[watched]->ops->stats(c.nodes[watched], &there);
    assert_true(there.cold_used_bytes > 5 * MIB);
    cluster_set_draining(&c, watched, true);
    uint64_t at = decode_until(&c, &s, LARGE, has_left, 800);
    wait_until_empty(&c, watched);
    cluster_kill_server(&c, watched);
    cluster_run(&c, &s, at, 60, 7);
    cluster_run(&c, &s, 2000, 60, 60);
    toy_sequence_fini(&s);
    cluster_close(&c);
}

static void nothing_is_computed_again(void **state) {
    cluster c;
    cluster_open(&c, &shape_plain, &(cluster_shape){1, 2, 1, 32 * MIB, 8192, CLUSTER_GRPC, 0});
    toy_sequence s;
    toy_sequence_init(&s, 7, 1, 6000);
    toy_sequence_push_text(&s, 3, 5000);
    assert_int_equal(cluster_sequence_open(&c, &s, 0), 0);
    cluster_run(&c, &s, 0, 3000, 1000);
    watched = first_node(&c, 7);
    cluster_set_draining(&c, watched, true);
    uint64_t at = decode_until(&c, &s, 3000, has_left, 2000);
    cluster_run(&c, &s, at, 10, 1);
    assert_int_equal(appended(&c), at + 10);
    toy_sequence_fini(&s);
    cluster_close(&c);
}

static void a_prefix_that_several_have_crosses_once(void **state) {
    cluster c;
    cluster_open(&c, &shape_plain, &(cluster_shape){1, 2, 1, 32 * MIB, 8192, CLUSTER_GRPC, 0});
    toy_sequence s[4];
    for (uint32_t i = 0; i < 4; i++) {
        toy_sequence_init(&s[i], i + 1, 1, 4000);
        toy_sequence_push_text(&s[i], 3, 2560);
        toy_sequence_push_text(&s[i], 50 + i, 1000);
    }
    watched = 0;
    cluster_set_draining(&c, 1, true); /* all of them begin on node 0 */
    for (uint32_t i = 0; i < 4; i++) {
        uint64_t cached = cluster_sequence_open(&c, &s[i], UINT64_MAX);
        cluster_run(&c, &s[i], cached, 2700 - cached, 900);
    }
    cluster_set_draining(&c, 1, false);
    cluster_set_draining(&c, 0, true);
    uint64_t at[4] = {2700, 2700, 2700, 2700};
    for (uint32_t turn = 0; held_by(&c, 0) > 0; turn++) {
        assert_true(turn < 800);
        toy_rows rows[4];
        for (uint32_t i = 0; i < 4; i++) rows[i] = (toy_rows){&s[i], at[i]++, 1};
        cluster_step(&c, rows, 4);
        rest();
    }
    attention_service_state there;
    uint64_t blocks = 0;
    for (uint32_t turn = 0; turn < 500 && blocks < 20 + 4; turn++) { /* what is published is a little older */
        rest();
        attention_service_state_read(c.servers[1].service, &there);
        blocks = there.pages_in / there.stats.block_bytes;
    }
    assert_in_range(blocks, 20 + 4, 2 * 20 + 4 * 8 + 4); /* two at once may both fetch it */
    for (uint32_t i = 0; i < 4; i++) toy_sequence_fini(&s[i]);
    cluster_close(&c);
}

static void a_drain_that_is_taken_back_leaves_everything_where_it_was(void **state) {
    cluster c;
    cluster_open(&c, &shape_plain, &(cluster_shape){1, 2, 1, 32 * MIB, 8192, CLUSTER_GRPC, 0});
    toy_sequence s;
    toy_sequence_init(&s, 7, 1, 6000);
    toy_sequence_push_text(&s, 3, 5000);
    assert_int_equal(cluster_sequence_open(&c, &s, 0), 0);
    cluster_run(&c, &s, 0, 3000, 1000);
    uint32_t from = first_node(&c, 7), to = 1 - from;
    cluster_set_draining(&c, from, true);
    cluster_step(&c, &(toy_rows){&s, 3000, 1}, 1);
    cluster_set_draining(&c, from, false);
    cluster_run(&c, &s, 3001, 100, 1);
    assert_int_equal(first_node(&c, 7), from);
    wait_until_empty(&c, to);
    toy_sequence_fini(&s);
    cluster_close(&c);
}

static void a_lost_replica_is_made_again_and_the_other_may_go(void **state) {
    cluster c;
    cluster_open(&c, &shape_plain, &(cluster_shape){1, 3, 2, 32 * MIB, 8192, CLUSTER_GRPC, 0});
    toy_sequence s;
    toy_sequence_init(&s, 7, 1, 6000);
    toy_sequence_push_text(&s, 3, 5000);
    assert_int_equal(cluster_sequence_open(&c, &s, 0), 0);
    cluster_run(&c, &s, 0, 3000, 1000);
    const placement_row row = sharded_placement(c.many.attention, 7)->rows[0];
    cluster_kill_server(&c, row.nodes[0]);
    hd_status status = toy_step(&c.many, &(toy_rows){&s, 3000, 1}, 1, NULL, NULL);
    assert_int_equal(status, HD_PEER_LOST);
    uint64_t at = decode_until(&c, &s, 3000, has_two, 2000);
    cluster_run(&c, &s, at, 10, 1);
    cluster_kill_server(&c, row.nodes[1]);
    status = toy_step(&c.many, &(toy_rows){&s, at + 10, 1}, 1, NULL, NULL);
    assert_int_equal(status, HD_PEER_LOST);
    cluster_run(&c, &s, at + 10, 100, 9);
    cluster_run(&c, &s, 2000, 100, 100);
    toy_sequence_fini(&s);
    cluster_close(&c);
}

static void a_receiver_that_is_killed_costs_nothing_and_another_one_is_found(void **state) {
    cluster c;
    cluster_open(&c, &shape_plain, &(cluster_shape){1, 3, 1, 32 * MIB, 8192, CLUSTER_GRPC, 0});
    toy_sequence s;
    toy_sequence_init(&s, 7, 1, 12000);
    toy_sequence_push_text(&s, 3, 11000);
    assert_int_equal(cluster_sequence_open(&c, &s, 0), 0);
    cluster_run(&c, &s, 0, 8000, 1000);
    watched = first_node(&c, 7);
    cluster_set_draining(&c, watched, true);
    cluster_step(&c, &(toy_rows){&s, 8000, 1}, 1);
    uint32_t receiver = UINT32_MAX;
    for (uint32_t i = 0; i < 3; i++) {
        attention_service_state there;
        attention_service_state_read(c.servers[i].service, &there);
        uint64_t length = 0;
        if (i != watched && c.nodes[i]->ops->sequence_length(c.nodes[i], sharded_name(7, 0), &length) == HD_OK)
            receiver = i;
    }
    if (receiver == UINT32_MAX) receiver = (watched + 1) % 3; /* it had not begun */
    cluster_kill_server(&c, receiver);
    uint64_t at = decode_until(&c, &s, 8001, has_left, 2500);
    cluster_run(&c, &s, at, 100, 9);
    cluster_run(&c, &s, 5000, 100, 100);
    toy_sequence_fini(&s);
    cluster_close(&c);
}

static void an_index_that_is_learnt_stays_until_its_sequence_ends(void **state) {
    cluster c;
    cluster_tiers tiers = {.index_bytes = 32 * MIB, .rows_max = 256, .sequences_max = 4};
    cluster_open_with(&c, &shape_plain, &(cluster_shape){1, 2, 1, 48 * MIB, 8192, CLUSTER_GRPC, 0}, &tiers);
    toy_sequence s;
    toy_sequence_init(&s, 7, 1, 5000);
    toy_sequence_push_text(&s, 3, 4800);
    s.length = 4000;
    s.selection = "retrieval";
    s.prompt_count = 4000;
    uint64_t cached = 0;
    hd_error error = {.text = ""};
    if (toy_sequence_open(&c.many, &s, 0, &cached, &error) != HD_OK) fail_msg("%s", error.text);
    s.length = 4800;
    toy_run(&c.many, &s, 0, 4000, 250, NULL);
    watched = first_node(&c, 7);
    cluster_set_draining(&c, watched, true);
    for (uint64_t i = 0; i < 30; i++) {
        assert_int_equal(toy_step(&c.many, &(toy_rows){&s, 4000 + i, 1}, 1, NULL, NULL), HD_OK);
        rest();
    }
    assert_int_equal(first_node(&c, 7), watched);
    assert_int_equal(c.many.attention->ops->sequence_close(c.many.attention, 7, 1, true, false), HD_OK);
    assert_int_equal(held_by(&c, watched), 0);
    toy_sequence_fini(&s);
    cluster_close(&c);
}

/* Random work over nodes that drain and come back, against one engine; every output has its bits. */
static void random_work(uint64_t seed, cluster_wire wire, uint64_t range_min, uint32_t replicas) {
    enum { SEQUENCES = 3 };
    print_message("HADAL_SEED=%llu\n", (unsigned long long)seed);
    cluster c;
    cluster_open(&c, &shape_plain, &(cluster_shape){1, 3, replicas, 32 * MIB, range_min, wire, 0});
    toy_sequence s[SEQUENCES];
    uint64_t at[SEQUENCES];
    uint64_t next = 1;
    uint32_t draining = UINT32_MAX;
    for (uint32_t i = 0; i < SEQUENCES; i++) s[i].tokens = NULL;
    for (uint32_t turn = 0; turn < 220; turn++) {
        uint32_t i = toy_below(&seed, SEQUENCES), what = toy_below(&seed, 20);
        if (s[i].tokens == NULL) {
            toy_sequence_init(&s[i], next++, 1, 4000);
            toy_sequence_push_text(&s[i], 3 + toy_below(&seed, 2), 1 + toy_below(&seed, 2500));
            toy_sequence_push_text(&s[i], next, 1200);
            s[i].length -= 1200;
            at[i] = cluster_sequence_open(&c, &s[i], UINT64_MAX);
            s[i].length += 1200;
        } else if (what == 0 || at[i] + 600 > s[i].length) {
            cluster_sequence_close(&c, &s[i], toy_below(&seed, 2) == 0);
            toy_sequence_fini(&s[i]);
            s[i].tokens = NULL;
        } else if (what == 1) {
            uint64_t cut = at[i] / 2;
            attention *both[2] = {c.one.attention, c.many.attention};
            for (uint32_t k = 0; k < 2; k++)
                assert_int_equal(both[k]->ops->truncate(both[k], s[i].name, s[i].epoch, cut), HD_OK);
            at[i] = cut;
        } else if (what == 2) {
            if (draining != UINT32_MAX) cluster_set_draining(&c, draining, false);
            draining = toy_below(&seed, 4);
            if (draining == 3) draining = UINT32_MAX;
            else cluster_set_draining(&c, draining, true);
        } else if (what < 6) {
            uint64_t count = 1 + toy_below(&seed, 500);
            cluster_step(&c, &(toy_rows){&s[i], at[i], count}, 1);
            at[i] += count;
        } else {
            toy_rows rows[SEQUENCES];
            uint32_t count = 0;
            for (uint32_t k = 0; k < SEQUENCES; k++) {
                if (s[k].tokens != NULL && at[k] + 1 < s[k].length) rows[count++] = (toy_rows){&s[k], at[k]++, 1};
            }
            if (count > 0) cluster_step(&c, rows, count);
            if (toy_below(&seed, 2) == 0) rest();
        }
    }
    sharded_moves moves;
    sharded_moves_read(c.many.attention, &moves);
    print_message("moved %llu, repaired %llu, ended %llu\n", (unsigned long long)moves.moved,
                  (unsigned long long)moves.repaired, (unsigned long long)moves.failed);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        if (s[i].tokens == NULL) continue;
        cluster_sequence_close(&c, &s[i], false);
        toy_sequence_fini(&s[i]);
    }
    for (uint32_t i = 0; i < 3; i++) wait_until_empty(&c, i);
    cluster_close(&c);
}

static void random_drains_change_no_bit(void **state) {
    const char *given = getenv("HADAL_SEED");
    if (given != NULL) {
        random_work(strtoull(given, NULL, 10), CLUSTER_GRPC, 8192, 1);
        return;
    }
    random_work(1, CLUSTER_GRPC, 8192, 1);
    random_work(2, CLUSTER_INPROC, 1024, 1);
    random_work(3, CLUSTER_GRPC, 1024, 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_drained_node_hands_its_rows_over_while_decoding_goes_on),
        cmocka_unit_test(what_is_on_a_disk_moves_as_well),
        cmocka_unit_test(nothing_is_computed_again),
        cmocka_unit_test(a_prefix_that_several_have_crosses_once),
        cmocka_unit_test(a_drain_that_is_taken_back_leaves_everything_where_it_was),
        cmocka_unit_test(a_lost_replica_is_made_again_and_the_other_may_go),
        cmocka_unit_test(a_receiver_that_is_killed_costs_nothing_and_another_one_is_found),
        cmocka_unit_test(an_index_that_is_learnt_stays_until_its_sequence_ends),
        cmocka_unit_test(random_drains_change_no_bit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
