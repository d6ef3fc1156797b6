/* node_set_test.c - nodes that come, drain and go while a sequence is worked on. */
#include "attention-node/node_set.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/attention-node/cluster.h"

#define MIB ((uint64_t)1 << 20)

static const toy_shape shape_plain = {2, 4, 2, 32, 16, HD_BF16, {0}, 0, false};

typedef struct {
    cluster servers; /* only its attention nodes are used */
    cluster worker;  /* its `many` is the set's attention */
    node_set *set;
} rig;

static void worker_open(rig *r, uint32_t lanes) {
    r->worker = r->servers;
    assert_int_equal(transport_inproc_open(r->servers.hub, 64u << 20, &r->worker.wire), HD_OK);
    node_set_config config = {.sharded = {.layers = r->servers.many.config.layers,
                                          .kv_dtype = HD_BF16,
                                          .step_rows_max = 1024,
                                          .sequences_max = 8,
                                          .range_min = 1024,
                                          .replicas = 1,
                                          .kernels = r->servers.many.config.kernels,
                                          .pool = r->servers.many.pool},
                              .lanes = lanes,
                              .transport = r->worker.wire,
                              .model_name = "toy",
                              .answer_ms = 20000,
                              .link_ms = 2000};
    hd_error error = {.text = ""};
    if (node_set_open(&config, &r->set, &error) != HD_OK) fail_msg("%s", error.text);
    r->worker.many.attention = node_set_attention(r->set);
}

/* Servers of a cluster, and a worker that is told of them by name alone. */
static void rig_open(rig *r, uint32_t lanes, uint32_t nodes) {
    cluster_open(&r->servers, &shape_plain, &(cluster_shape){1, 0, 1, 32 * MIB, 1024, CLUSTER_INPROC, 0});
    for (uint32_t i = 0; i < nodes; i++) cluster_start_server(&r->servers, i, 32 * MIB);
    worker_open(r, lanes);
}

static void put(rig *r, uint32_t index, bool is_draining) {
    assert_int_equal(
        node_set_put(r->set, r->servers.servers[index].address, r->servers.servers[index].address, is_draining), HD_OK);
}

static void worker_close(rig *r) {
    node_set_close(r->set);
    r->worker.wire->ops->close(r->worker.wire);
}

static void rig_close(rig *r) {
    worker_close(r);
    cluster_close(&r->servers);
}

static void wait_linked(rig *r) {
    hd_error error = {.text = ""};
    if (node_set_wait(r->set, 5000, &error) != HD_OK) fail_msg("%s", error.text);
}

/* While one worker has nothing to do; whether the other gets every lane. */
static bool comes_together(rig *waits, rig *idles) {
    hd_error error = {.text = ""};
    for (int i = 0; i < 200; i++) {
        if (node_set_wait(waits->set, 50, &error) == HD_OK) return true;
        attention *a = idles->worker.many.attention;
        (void)a->ops->idle(a);
    }
    return false;
}

static void a_sequence_is_worked_on(rig *r, uint64_t name) {
    toy_sequence s;
    toy_sequence_init(&s, name, 1, 3000);
    toy_sequence_push_text(&s, (uint32_t)name, 1500);
    assert_int_equal(cluster_sequence_open(&r->worker, &s, 0), 0);
    cluster_run(&r->worker, &s, 0, 1500, 700);
    cluster_sequence_close(&r->worker, &s, false);
    toy_sequence_fini(&s);
}

static void heads_are_shared_out_and_work_begins_when_all_are_there(void **state) {
    rig r;
    rig_open(&r, 2, 4);
    hd_error error = {.text = ""};
    put(&r, 0, false);
    assert_int_equal(node_set_wait(r.set, 50, &error), HD_TIMED_OUT);
    assert_non_null(strstr(error.text, "KV heads 2 to 4"));
    for (uint32_t i = 1; i < 4; i++) put(&r, i, false);
    if (node_set_wait(r.set, 5000, &error) != HD_OK) fail_msg("%s", error.text);
    toy_sequence s;
    toy_sequence_init(&s, 1, 1, 3000);
    toy_sequence_push_text(&s, 3, 2500);
    assert_int_equal(cluster_sequence_open(&r.worker, &s, 0), 0);
    cluster_run(&r.worker, &s, 0, 2500, 700);
    assert_int_equal(sharded_placement(r.worker.many.attention, 1)->row_count, 2 * 3);
    toy_sequence_fini(&s);
    rig_close(&r);
}

static void a_node_that_goes_is_replaced_by_one_that_comes(void **state) {
    rig r;
    rig_open(&r, 1, 3);
    hd_error error = {.text = ""};
    put(&r, 0, false);
    put(&r, 1, false);
    if (node_set_wait(r.set, 5000, &error) != HD_OK) fail_msg("%s", error.text);
    toy_sequence s, t;
    toy_sequence_init(&s, 1, 1, 3000);
    toy_sequence_push_text(&s, 3, 2500);
    assert_int_equal(cluster_sequence_open(&r.worker, &s, 0), 0);
    cluster_run(&r.worker, &s, 0, 1500, 700);
    /* Gone from the membership: what runs goes on there, and nothing new comes. */
    node_set_remove(r.set, r.servers.servers[1].address);
    cluster_run(&r.worker, &s, 1500, 500, 700);
    put(&r, 2, false);
    toy_sequence_init(&t, 2, 2, 3000);
    toy_sequence_push_text(&t, 4, 2000);
    assert_int_equal(cluster_sequence_open(&r.worker, &t, 0), 0);
    cluster_run(&r.worker, &t, 0, 2000, 700);
    const placement *of_t = sharded_placement(r.worker.many.attention, 2);
    for (uint32_t i = 0; i < of_t->row_count; i++) assert_int_not_equal(of_t->rows[i].nodes[0], 1);
    /* Killed: what was there alone is filled again on the others, under a newer epoch. */
    cluster_kill_server(&r.servers, 1);
    assert_int_equal(toy_step(&r.worker.many, &(toy_rows){&s, 2000, 10}, 1, NULL, NULL), HD_PEER_LOST);
    s.epoch = 2;
    uint64_t cached = cluster_sequence_open(&r.worker, &s, UINT64_MAX);
    assert_in_range(cached, 0, 2047);
    cluster_run(&r.worker, &s, cached, 2500 - cached, 900);
    toy_sequence_fini(&s);
    toy_sequence_fini(&t);
    rig_close(&r);
}

/* A new sequence of so many tokens; which nodes have rows of it, as bits. */
static uint32_t nodes_of_a_new_sequence(rig *r, uint64_t name) {
    uint32_t nodes = 0;
    toy_sequence s;
    toy_sequence_init(&s, name, 1, 3000);
    toy_sequence_push_text(&s, (uint32_t)name, 2500);
    assert_int_equal(cluster_sequence_open(&r->worker, &s, 0), 0);
    cluster_run(&r->worker, &s, 0, 2500, 1000);
    const placement *map = sharded_placement(r->worker.many.attention, name);
    for (uint32_t i = 0; i < map->row_count; i++) nodes |= 1u << map->rows[i].nodes[0];
    cluster_sequence_close(&r->worker, &s, false);
    toy_sequence_fini(&s);
    return nodes;
}

static void nodes_that_vanished_take_new_things_only_when_all_have(void **state) {
    rig r;
    rig_open(&r, 1, 2);
    hd_error error = {.text = ""};
    put(&r, 0, false);
    put(&r, 1, false);
    if (node_set_wait(r.set, 5000, &error) != HD_OK) fail_msg("%s", error.text);
    assert_int_equal(nodes_of_a_new_sequence(&r, 1), 3);
    node_set_remove(r.set, r.servers.servers[1].address);
    assert_int_equal(nodes_of_a_new_sequence(&r, 2), 1);
    node_set_remove(r.set, r.servers.servers[0].address);
    assert_int_equal(nodes_of_a_new_sequence(&r, 3), 3);
    put(&r, 1, false);
    assert_int_equal(nodes_of_a_new_sequence(&r, 4), 2);
    rig_close(&r);
}

/* Each met another node first, and gave it the first lane. */
static void workers_that_gave_every_node_one_lane_agree_on_another(void **state) {
    rig a, b;
    rig_open(&a, 2, 2);
    b.servers = a.servers;
    worker_open(&b, 2);
    hd_error error = {.text = ""};
    put(&a, 0, false);
    put(&b, 1, false);
    assert_int_equal(node_set_wait(a.set, 50, &error), HD_TIMED_OUT);
    assert_int_equal(node_set_wait(b.set, 50, &error), HD_TIMED_OUT);
    put(&a, 1, false);
    put(&b, 0, false);
    assert_true(comes_together(&a, &b));
    assert_true(comes_together(&b, &a));
    a_sequence_is_worked_on(&a, 1);
    a_sequence_is_worked_on(&b, 2);
    worker_close(&b);
    rig_close(&a);
}

static void a_worker_without_requests_keeps_no_node_from_a_lane_that_has_nobody(void **state) {
    rig a, b;
    rig_open(&a, 2, 3);
    b.servers = a.servers;
    worker_open(&b, 2);
    for (uint32_t i = 0; i < 3; i++) put(&a, i, false);
    wait_linked(&a);
    for (uint32_t i = 0; i < 3; i++) put(&b, i, false);
    wait_linked(&b);
    char gone[64]; /* the second lane's only node */
    snprintf(gone, sizeof(gone), "%s", a.servers.servers[1].address);
    cluster_kill_server(&a.servers, 1);
    node_set_remove(a.set, gone);
    node_set_remove(b.set, gone);
    toy_sequence s;
    uint64_t cached;
    hd_error error = {.text = ""};
    toy_sequence_init(&s, 1, 1, 3000);
    toy_sequence_push_text(&s, 3, 1500);
    assert_int_not_equal(toy_sequence_open(&b.worker.many, &s, 0, &cached, &error), HD_OK);
    toy_sequence_fini(&s);
    assert_true(comes_together(&b, &a));
    a_sequence_is_worked_on(&b, 2);
    worker_close(&b);
    rig_close(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heads_are_shared_out_and_work_begins_when_all_are_there),
        cmocka_unit_test(a_node_that_goes_is_replaced_by_one_that_comes),
        cmocka_unit_test(nodes_that_vanished_take_new_things_only_when_all_have),
        cmocka_unit_test(workers_that_gave_every_node_one_lane_agree_on_another),
        cmocka_unit_test(a_worker_without_requests_keeps_no_node_from_a_lane_that_has_nobody),
    };
    return cmocka_run_group_tests_name("node_set", tests, NULL, NULL);
}
