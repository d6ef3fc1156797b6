/* sharded_test.c - several engines give the bits of one, hold what none of them could, and lose nothing that another
 * has. */
#include <stdlib.h>
#include <string.h>

#include "tests/attention-node/cluster.h"

#define MIB ((uint64_t)1 << 20)

static const toy_shape shape_plain = {2, 4, 2, 32, 16, HD_BF16, {0, 1500}, 0, true};

static attention_stats stats_of(attention *a) {
    attention_stats stats;
    a->ops->stats(a, &stats);
    return stats;
}

static void check_empty(cluster *c) {
    for (uint32_t i = 0; i < CLUSTER_NODES_MAX; i++) {
        if (c->nodes[i] == NULL) continue;
        attention_stats stats = stats_of(c->nodes[i]);
        assert_int_equal(stats.sequences + stats.blocks_sequences + stats.blocks_reserved, 0);
    }
}

/* Prefill in odd chunks, decode beside another sequence, and rows that are there already. */
static void run_two_sequences(cluster *c) {
    toy_sequence a, b;
    toy_sequence_init(&a, 1, 1, 5000);
    toy_sequence_push_text(&a, 3, 4700);
    toy_sequence_init(&b, 2, 2, 3000);
    toy_sequence_push_text(&b, 4, 2100);
    assert_int_equal(cluster_sequence_open(c, &a, 0), 0);
    assert_int_equal(cluster_sequence_open(c, &b, 0), 0);
    cluster_run(c, &a, 0, 1000, 1000);
    cluster_run(c, &a, 1000, 3671, 701);
    cluster_run(c, &b, 0, 2000, 511);
    for (uint64_t i = 0; i < 25; i++) {
        toy_rows rows[2] = {{&a, 4671 + i, 1}, {&b, 2000 + 3 * i, 3}};
        cluster_step(c, rows, 2);
    }
    cluster_run(c, &a, 900, 300, 300);
    uint64_t length = 0;
    assert_int_equal(c->many.attention->ops->sequence_length(c->many.attention, 1, &length), HD_OK);
    assert_int_equal(length, 4696);
    cluster_sequence_close(c, &a, false);
    cluster_sequence_close(c, &b, false);
    check_empty(c);
    toy_sequence_fini(&a);
    toy_sequence_fini(&b);
}

static void every_split_gives_the_bits_of_one_engine(void **state) {
    static const cluster_shape shapes[] = {
        {1, 1, 1, 32 * MIB, 1024, CLUSTER_ENGINES, 0}, {2, 2, 1, 32 * MIB, 8192, CLUSTER_ENGINES, 0},
        {4, 4, 1, 32 * MIB, 8192, CLUSTER_ENGINES, 0}, {1, 2, 1, 32 * MIB, 1024, CLUSTER_ENGINES, 0},
        {1, 4, 1, 32 * MIB, 1024, CLUSTER_ENGINES, 0}, {2, 4, 1, 32 * MIB, 1024, CLUSTER_ENGINES, 0},
        {1, 3, 2, 32 * MIB, 1024, CLUSTER_ENGINES, 0}, {2, 6, 1, 32 * MIB, 2048, CLUSTER_ENGINES, 0},
    };
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        cluster c;
        cluster_open(&c, &shape_plain, &shapes[i]);
        run_two_sequences(&c);
        cluster_close(&c);
    }
}

static const cluster_tiers staged_here = {.stage_bytes = 32 * MIB};

static void prompts_staged_here_have_the_bits_of_one_engine(void **state) {
    static const cluster_shape shapes[] = {
        {1, 1, 1, 32 * MIB, 8192, CLUSTER_ENGINES, 0}, {1, 2, 1, 32 * MIB, 1024, CLUSTER_ENGINES, 0},
        {2, 2, 1, 32 * MIB, 8192, CLUSTER_ENGINES, 0}, {2, 4, 1, 32 * MIB, 1024, CLUSTER_ENGINES, 0},
        {1, 4, 2, 32 * MIB, 1024, CLUSTER_ENGINES, 0}, {2, 4, 1, 32 * MIB, 1024, CLUSTER_INPROC, 0},
    };
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        cluster c;
        cluster_open_with(&c, &shape_plain, &shapes[i], &staged_here);
        run_two_sequences(&c);
        for (uint32_t lane = 0; lane < shapes[i].lanes; lane++) {
            attention_stats staged = stats_of(c.stages[lane]);
            assert_true(staged.appended_tokens >= 4000);
            assert_int_equal(staged.sequences + staged.blocks_sequences + staged.blocks_reserved, 0);
        }
        cluster_close(&c);
    }
}

/* The prompt is let go of when it is there, and found on its node by the next one, which is answered there. */
static void a_staged_prompt_is_on_its_nodes_when_it_is_there(void **state) {
    cluster c;
    cluster_open_with(&c, &shape_plain, &(cluster_shape){1, 1, 1, 32 * MIB, 8192, CLUSTER_ENGINES, 0}, &staged_here);
    toy_sequence a;
    toy_sequence_init(&a, 1, 1, 3000);
    toy_sequence_push_text(&a, 3, 2100);
    assert_int_equal(cluster_sequence_open(&c, &a, 0), 0);
    assert_int_equal(sharded_placement(c.many.attention, 1)->rows[0].node_count, 2);
    cluster_run(&c, &a, 0, 2000, 700);
    assert_int_equal(stats_of(c.stages[0]).sequences, 1);
    cluster_run(&c, &a, 2000, 100, 100);
    assert_int_equal(sharded_placement(c.many.attention, 1)->rows[0].node_count, 1);
    assert_int_equal(stats_of(c.stages[0]).sequences + stats_of(c.stages[0]).blocks_sequences, 0);
    toy_sequence_push_text(&a, 9, 50);
    for (uint64_t i = 0; i < 50; i++) cluster_step(&c, &(toy_rows){&a, 2100 + i, 1}, 1);
    cluster_sequence_close(&c, &a, true);
    toy_sequence b;
    toy_sequence_init(&b, 2, 1, 3000);
    toy_sequence_push_text(&b, 3, 2100);
    assert_int_equal(cluster_sequence_open(&c, &b, UINT64_MAX), 2048);
    assert_int_equal(sharded_placement(c.many.attention, 2)->rows[0].node_count, 1);
    cluster_run(&c, &b, 2048, 52, 52);
    cluster_sequence_close(&c, &b, false);
    toy_sequence_fini(&a);
    toy_sequence_fini(&b);
    cluster_close(&c);
}

/* The stage alone has nothing that outlives the prompt. */
static void a_staged_prompt_whose_node_is_lost_is_broken(void **state) {
    cluster c;
    cluster_open_with(&c, &shape_plain, &(cluster_shape){1, 2, 1, 32 * MIB, 8192, CLUSTER_INPROC, 0}, &staged_here);
    toy_sequence a;
    uint64_t cached = 0;
    toy_sequence_init(&a, 1, 1, 3000);
    toy_sequence_push_text(&a, 3, 2100);
    assert_int_equal(toy_sequence_open(&c.many, &a, 0, &cached, NULL), HD_OK);
    toy_run(&c.many, &a, 0, 1000, 500, NULL);
    const placement_row *row = &sharded_placement(c.many.attention, 1)->rows[0];
    assert_int_equal(row->node_count, 2);
    cluster_kill_server(&c, row->nodes[1]);
    assert_int_equal(toy_step(&c.many, &(toy_rows){&a, 1000, 100}, 1, NULL, NULL), HD_PEER_LOST);
    assert_int_equal(toy_step(&c.many, &(toy_rows){&a, 1000, 100}, 1, NULL, NULL), HD_PEER_LOST);
    a.epoch++;
    assert_int_equal(toy_sequence_open(&c.many, &a, 0, &cached, NULL), HD_OK);
    toy_run(&c.many, &a, 0, 2100, 700, NULL);
    assert_int_equal(c.many.attention->ops->sequence_close(c.many.attention, 1, a.epoch, false, false), HD_OK);
    assert_int_equal(stats_of(c.stages[0]).sequences, 0);
    toy_sequence_fini(&a);
    cluster_close(&c);
}

static void a_context_several_times_any_nodes_memory_works(void **state) {
    cluster c;
    const toy_shape shape = {1, 1, 2, 16, 16, HD_F32, {0}, 0, false};
    cluster_open(&c, &shape, &(cluster_shape){1, 4, 1, 5 * MIB, 1024, CLUSTER_ENGINES, 0});
    c.many.config.step_rows_max = 1024;
    attention_stats node = stats_of(c.nodes[0]);
    uint64_t tokens = 3 * node.blocks_total * HD_BLOCK_TOKENS;
    print_message("%llu tokens over nodes of %llu\n", (unsigned long long)tokens,
                  (unsigned long long)(node.blocks_total * HD_BLOCK_TOKENS));
    toy_sequence s;
    toy_sequence_init(&s, 1, 1, tokens);
    toy_sequence_push_text(&s, 3, tokens);
    assert_int_equal(cluster_sequence_open(&c, &s, 0), 0);
    cluster_run(&c, &s, 0, tokens, 1000);
    assert_int_equal(sharded_placement(c.many.attention, 1)->version, 1);
    /* And again, all of it from the nodes' caches. */
    cluster_sequence_close(&c, &s, true);
    s.name = 2;
    uint64_t cached = 0;
    assert_int_equal(toy_sequence_open(&c.many, &s, UINT64_MAX, &cached, NULL), HD_OK);
    assert_int_equal(cached, tokens - 1);
    toy_sequence_fini(&s);
    cluster_close(&c);
}

static void a_node_that_refuses_leaves_nothing_reserved(void **state) {
    cluster c;
    cluster_open(&c, &shape_plain, &(cluster_shape){1, 2, 1, 32 * MIB, 1024, CLUSTER_ENGINES, 0});
    attention *many = c.many.attention;
    toy_sequence s;
    toy_sequence_init(&s, 1, 1, 4096);
    toy_sequence_push_text(&s, 3, 3000);
    uint64_t cached;
    assert_int_equal(toy_sequence_open(&c.many, &s, 0, &cached, NULL), HD_OK);
    toy_run(&c.many, &s, 0, 1000, 500, NULL);
    attention_stats before[2] = {stats_of(c.nodes[0]), stats_of(c.nodes[1])}, after[2];
    /* The second node's share is open there under a newer epoch: it refuses. */
    const placement *map = sharded_placement(many, 1);
    assert_int_equal(map->row_count, 2);
    uint32_t second = map->rows[1].nodes[0];
    uint64_t name = sharded_name(1, 1);
    assert_int_equal(c.nodes[second]->ops->truncate(c.nodes[second], name, 9, 2048), HD_OK);
    assert_int_equal(toy_step(&c.many, &(toy_rows){&s, 1000, 1024}, 1, NULL, NULL), HD_OK);
    assert_int_equal(toy_step(&c.many, &(toy_rows){&s, 2024, 100}, 1, NULL, NULL), HD_STALE);
    uint64_t length = 0;
    assert_int_equal(many->ops->sequence_length(many, 1, &length), HD_OK);
    assert_int_equal(length, 2024);
    after[0] = stats_of(c.nodes[0]);
    assert_int_equal(after[0].blocks_sequences + after[0].blocks_reserved,
                     before[0].blocks_sequences + before[0].blocks_reserved);
    after[1] = stats_of(c.nodes[1]);
    assert_int_equal(after[1].blocks_sequences + after[1].blocks_reserved,
                     before[1].blocks_sequences + before[1].blocks_reserved);

    /* Nor does opening, when the second node has no room for its part. */
    toy_sequence large;
    toy_sequence_init(&large, 2, 1, 200000);
    toy_sequence_push_text(&large, 5, 10);
    hd_error error;
    assert_int_equal(toy_sequence_open(&c.many, &large, 0, &cached, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "200000 tokens never fit"));
    after[0] = stats_of(c.nodes[0]);
    assert_int_equal(after[0].sequences, before[0].sequences);
    toy_sequence_fini(&large);
    toy_sequence_fini(&s);
    cluster_close(&c);
}

static void another_owner_finds_the_ranges_and_goes_on(void **state) {
    cluster c;
    cluster_open(&c, &shape_plain, &(cluster_shape){2, 4, 1, 32 * MIB, 1024, CLUSTER_ENGINES, 0});
    toy_sequence s;
    toy_sequence_init(&s, 7, 1, 4500);
    toy_sequence_push_text(&s, 3, 4400);
    assert_int_equal(cluster_sequence_open(&c, &s, 0), 0);
    cluster_run(&c, &s, 0, 4000, 800);
    /* A second sharded attention over the same engines, as another worker has. */
    cluster other = c;
    cluster_attach_second(&c, &other);
    s.epoch = 2;
    s.length = 4001;
    uint64_t cached = 0;
    hd_error error = {.text = ""};
    if (toy_sequence_open(&other.many, &s, UINT64_MAX, &cached, &error) != HD_OK) fail_msg("%s", error.text);
    assert_int_equal(cached, 4000);
    s.length = 4400;
    cluster_run(&other, &s, 4000, 400, 90);
    /* The old owner is refused, and changes nothing. */
    s.epoch = 1;
    assert_int_equal(toy_step(&c.many, &(toy_rows){&s, 4000, 1}, 1, NULL, NULL), HD_STALE);
    assert_int_equal(c.many.attention->ops->sequence_close(c.many.attention, 7, 1, false, false), HD_STALE);
    uint64_t length = 0;
    assert_int_equal(other.many.attention->ops->sequence_length(other.many.attention, 7, &length), HD_OK);
    assert_int_equal(length, 4400);
    cluster_detach_second(&other);
    toy_sequence_fini(&s);
    cluster_close(&c);
}

static void a_sequence_that_outgrows_its_nodes_gets_a_further_one(void **state) {
    cluster c;
    cluster_open(&c, &shape_plain, &(cluster_shape){1, 2, 1, 8 * MIB, 1024, CLUSTER_ENGINES, 0});
    toy_sequence s;
    uint64_t node = stats_of(c.nodes[0]).blocks_total * HD_BLOCK_TOKENS, first = 2 * node / 1024 * 1024 - 1024;
    toy_sequence_init(&s, 7, 1, 3 * node);
    toy_sequence_push_text(&s, 3, first + 1500);
    s.length = first - 200;
    s.tokens_max = first;
    assert_int_equal(cluster_sequence_open(&c, &s, 0), 0);
    cluster_run(&c, &s, 0, first - 200, 900);
    uint32_t rows = sharded_placement(c.many.attention, 7)->row_count;
    uint64_t version = sharded_placement(c.many.attention, 7)->version;
    /* More than both have; with a third node, what is there stays where it is. */
    s.epoch = 2;
    s.tokens_max = first + 1500;
    s.length = first - 199;
    uint64_t cached = 0;
    hd_error error;
    assert_int_not_equal(toy_sequence_open(&c.many, &s, UINT64_MAX, &cached, &error), HD_OK);
    cluster_add_node(&c, 0, 8 * MIB);
    s.epoch = 3;
    assert_int_equal(cluster_sequence_open(&c, &s, UINT64_MAX), first - 200);
    const placement *map = sharded_placement(c.many.attention, 7);
    assert_true(map->row_count > rows && map->version > version);
    assert_true(placement_row_has(&map->rows[map->row_count - 1], 2));
    s.length = first + 1500;
    cluster_run(&c, &s, first - 200, 1700, 300);
    toy_sequence_fini(&s);
    cluster_close(&c);
}

static void a_lost_node_with_a_replica_costs_nothing(void **state) {
    cluster c;
    cluster_open(&c, &shape_plain, &(cluster_shape){1, 3, 2, 32 * MIB, 1024, CLUSTER_ENGINES, 0});
    toy_sequence s;
    toy_sequence_init(&s, 1, 1, 4096);
    toy_sequence_push_text(&s, 3, 4000);
    assert_int_equal(cluster_sequence_open(&c, &s, 0), 0);
    cluster_run(&c, &s, 0, 3500, 600);
    sharded_remove(c.many.attention, sharded_placement(c.many.attention, 1)->rows[0].nodes[0]);
    cluster_run(&c, &s, 3500, 500, 100);
    cluster_run(&c, &s, 10, 20, 20);
    toy_sequence_fini(&s);
    cluster_close(&c);
}

static void a_lost_node_without_a_replica_is_filled_again(void **state) {
    cluster c;
    cluster_open(&c, &shape_plain, &(cluster_shape){1, 4, 1, 32 * MIB, 1024, CLUSTER_ENGINES, 0});
    toy_sequence s;
    toy_sequence_init(&s, 1, 1, 4096);
    toy_sequence_push_text(&s, 3, 4000);
    assert_int_equal(cluster_sequence_open(&c, &s, 0), 0);
    cluster_run(&c, &s, 0, 3500, 600);
    sharded_remove(c.many.attention, sharded_placement(c.many.attention, 1)->rows[1].nodes[0]);
    assert_int_equal(toy_step(&c.many, &(toy_rows){&s, 3500, 1}, 1, NULL, NULL), HD_PEER_LOST);
    s.epoch = 2;
    uint64_t cached = 0;
    hd_error error = {.text = ""};
    if (toy_sequence_open(&c.many, &s, UINT64_MAX, &cached, &error) != HD_OK) fail_msg("%s", error.text);
    assert_int_equal(cached, 1024); /* what lay before the lost range */
    cluster_run(&c, &s, cached, 4000 - cached, 1000);
    toy_sequence_fini(&s);
    cluster_close(&c);
}

static void a_prefix_is_found_on_the_nodes_that_have_it(void **state) {
    cluster c;
    cluster_open(&c, &shape_plain, &(cluster_shape){2, 6, 1, 32 * MIB, 1024, CLUSTER_ENGINES, 0});
    toy_sequence a, b;
    toy_sequence_init(&a, 1, 1, 5000);
    toy_sequence_push_text(&a, 3, 4800);
    assert_int_equal(cluster_sequence_open(&c, &a, 0), 0);
    cluster_run(&c, &a, 0, 4800, 1000);
    /* Another length would be cut otherwise; it begins with the rows that a has. */
    toy_sequence_init(&b, 2, 1, 9000);
    toy_sequence_push_text(&b, 3, 4500);
    toy_sequence_push_text(&b, 9, 500);
    assert_int_equal(cluster_sequence_open(&c, &b, UINT64_MAX), 4480);
    const placement *of_a = sharded_placement(c.many.attention, 1), *of_b = sharded_placement(c.many.attention, 2);
    assert_int_equal(of_b->rows[0].nodes[0], of_a->rows[0].nodes[0]);
    cluster_run(&c, &b, 4480, 520, 130);
    cluster_run(&c, &a, 4790, 10, 1);
    toy_sequence_fini(&a);
    toy_sequence_fini(&b);
    cluster_close(&c);
}

static void random_work_gives_the_same_bits(void **state) {
    enum { OPEN_MAX = 5, TOKENS_MAX = 5000 };
    const char *only = getenv("HADAL_SEED");
    uint64_t first = only != NULL ? strtoull(only, NULL, 10) : 1;
    for (uint64_t seed = first; seed <= (only != NULL ? first : 4); seed++) {
        print_message("seed %llu\n", (unsigned long long)seed);
        uint64_t random = seed, next_name = 1;
        static const cluster_shape shapes[] = {{1, 3, 1, 24 * MIB, 1024, CLUSTER_ENGINES, 0},
                                               {2, 4, 1, 24 * MIB, 1024, CLUSTER_ENGINES, 0},
                                               {1, 4, 2, 24 * MIB, 2048, CLUSTER_ENGINES, 0},
                                               {2, 6, 2, 24 * MIB, 1024, CLUSTER_ENGINES, 0}};
        cluster c;
        const toy_shape shape = {1, 2, 2, 16, 16, seed % 2 ? HD_BF16 : HD_F32, {seed % 3 == 0 ? 1300 : 0}, 0, false};
        cluster_open(&c, &shape, &shapes[seed % 4]);
        toy_sequence open[OPEN_MAX];
        uint64_t appended[OPEN_MAX];
        uint32_t count = 0;
        for (int i = 0; i < 120; i++) {
            uint32_t what = toy_below(&random, 100), which = count > 0 ? toy_below(&random, count) : 0;
            toy_sequence *s = &open[which];
            if ((what < 15 && count < OPEN_MAX) || count == 0) {
                s = &open[count];
                uint64_t length = 1 + toy_below(&random, 3500);
                toy_sequence_init(s, next_name++, 1, length + toy_below(&random, (uint32_t)(TOKENS_MAX - length)));
                toy_sequence_push_text(s, toy_below(&random, 3), length);
                appended[count++] = cluster_sequence_open(&c, s, UINT64_MAX);
            } else if (what < 75) {
                if (appended[which] == s->length && s->length < s->tokens_max)
                    toy_sequence_push(s, toy_below(&random, 900));
                uint64_t back = appended[which] > 30 && what < 25 ? toy_below(&random, 30) : 0;
                uint64_t begin = appended[which] - back, rows = 1 + toy_below(&random, what < 50 ? 900 : 4);
                if (rows > s->length - begin) rows = s->length - begin;
                if (rows == 0) continue;
                cluster_run(&c, s, begin, rows, 1024);
                if (begin + rows > appended[which]) appended[which] = begin + rows;
            } else if (what < 82) {
                cluster_sequence_close(&c, s, toy_below(&random, 3) != 0);
                toy_sequence_fini(s);
                *s = open[--count];
                appended[which] = appended[count];
            } else if (what < 90) {
                uint64_t length = toy_below(&random, (uint32_t)appended[which] + 1);
                attention *one = c.one.attention, *many = c.many.attention;
                assert_int_equal(one->ops->truncate(one, s->name, s->epoch, length), HD_OK);
                assert_int_equal(many->ops->truncate(many, s->name, s->epoch, length), HD_OK);
                s->length = appended[which] = length;
                toy_sequence_push_text(s, 100 + seed + (uint64_t)i, (s->tokens_max - length) / 2);
            } else if (count < OPEN_MAX) {
                uint64_t length = toy_below(&random, (uint32_t)appended[which] + 1);
                toy_sequence *fork = &open[count];
                uint64_t more = 1 + toy_below(&random, 900);
                toy_sequence_init(fork, next_name++, 1, length + more);
                for (uint64_t p = 0; p < length; p++) toy_sequence_push(fork, s->tokens[p]);
                attention *one = c.one.attention, *many = c.many.attention;
                assert_int_equal(one->ops->fork(one, s->name, length, fork->name, 1, length + more, NULL), HD_OK);
                hd_error error = {.text = ""};
                hd_status status = many->ops->fork(many, s->name, length, fork->name, 1, length + more, &error);
                if (status != HD_OK) fail_msg("%s", error.text);
                toy_sequence_push_text(fork, 7000 + seed + (uint64_t)i, more);
                appended[count++] = length;
            }
        }
        while (count > 0) {
            cluster_sequence_close(&c, &open[--count], false);
            toy_sequence_fini(&open[count]);
        }
        check_empty(&c);
        cluster_close(&c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_split_gives_the_bits_of_one_engine),
        cmocka_unit_test(prompts_staged_here_have_the_bits_of_one_engine),
        cmocka_unit_test(a_staged_prompt_is_on_its_nodes_when_it_is_there),
        cmocka_unit_test(a_staged_prompt_whose_node_is_lost_is_broken),
        cmocka_unit_test(a_context_several_times_any_nodes_memory_works),
        cmocka_unit_test(a_node_that_refuses_leaves_nothing_reserved),
        cmocka_unit_test(another_owner_finds_the_ranges_and_goes_on),
        cmocka_unit_test(a_sequence_that_outgrows_its_nodes_gets_a_further_one),
        cmocka_unit_test(a_lost_node_with_a_replica_costs_nothing),
        cmocka_unit_test(a_lost_node_without_a_replica_is_filled_again),
        cmocka_unit_test(a_prefix_is_found_on_the_nodes_that_have_it),
        cmocka_unit_test(random_work_gives_the_same_bits),
    };
    return cmocka_run_group_tests_name("sharded", tests, NULL, NULL);
}
