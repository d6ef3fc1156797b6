/* membership_test.c - records of nodes, who fits to whom, and the view of a cluster through etcd and in process. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/log.h"
#include "proto/membership.h"
#include "tests/proto/etcd_server.h"

#define PATIENCE_NS 20000000000ull

static membership_node node_of(const char *id, const char *address) {
    membership_node n = {.role = "worker",
                         .model = "llama",
                         .fingerprint = "0123456789abcdef",
                         .kernels = "avx512",
                         .weights_dtype = "bf16",
                         .kv_dtype = "bf16",
                         .kv_capacity = 1u << 30,
                         .version_min = 2,
                         .version_max = 3};
    snprintf(n.id, sizeof(n.id), "%s", id);
    snprintf(n.address, sizeof(n.address), "%s", address);
    return n;
}

static void a_record_comes_back_as_it_was(void **state) {
    membership_node n = node_of("worker-1", "10.0.0.7:7000"), back;
    n.state = NODE_DRAINING;
    char *text = membership_node_encode(&n);
    hd_error error;
    assert_int_equal(membership_node_decode(text, strlen(text), &back, &error), HD_OK);
    assert_string_equal(back.id, n.id);
    assert_string_equal(back.address, n.address);
    assert_string_equal(back.fingerprint, n.fingerprint);
    assert_int_equal(back.kv_capacity, n.kv_capacity);
    assert_int_equal(back.version_max, 3);
    assert_int_equal(back.state, NODE_DRAINING);
    free(text);
}

static void records_that_are_none_are_refused_by_field(void **state) {
    const struct {
        const char *text, *says;
    } cases[] = {
        {"", "not JSON"},
        {"[]", "not JSON"},
        {"{\"id\":7}", "'id'"},
        {"{\"id\":\"a\",\"role\":\"worker\",\"address\":\"h:1\",\"model\":\"\",\"fingerprint\":\"\",\"kernels\":\"\","
         "\"weights_dtype\":\"\",\"kv_dtype\":\"\",\"kv_capacity\":-1}",
         "'kv_capacity'"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        membership_node n;
        hd_error error = {{0}};
        assert_int_equal(membership_node_decode(cases[i].text, strlen(cases[i].text), &n, &error), HD_CORRUPT);
        if (strstr(error.text, cases[i].says) == NULL) fail_msg("'%s' does not say %s", error.text, cases[i].says);
    }
}

static void the_highest_common_version_is_used(void **state) {
    membership_node a = node_of("a", "h:1"), b = node_of("b", "h:2");
    b.version_min = 3;
    b.version_max = 4;
    assert_int_equal(membership_version(&a, &b), 3);
    b.version_min = 4;
    hd_error error;
    assert_int_equal(membership_version(&a, &b), 0);
    assert_int_equal(membership_fits(&a, &b, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "node b"));
}

static void another_model_under_the_same_name_does_not_fit(void **state) {
    membership_node a = node_of("a", "h:1"), b = node_of("b", "h:2");
    snprintf(b.fingerprint, sizeof(b.fingerprint), "fedcba");
    hd_error error;
    assert_int_equal(membership_fits(&a, &b, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "'llama'"));
    snprintf(b.model, sizeof(b.model), "other");
    assert_int_equal(membership_fits(&a, &b, &error), HD_OK);
}

typedef struct view {
    unsigned nodes, gone, connections;
    membership_node last;
    char last_gone[MEMBERSHIP_NAME_BYTES];
} view;

static void on_node(void *context, const membership_node *node) {
    view *v = context;
    v->nodes++;
    v->last = *node;
}

static void on_gone(void *context, const char *id) {
    view *v = context;
    v->gone++;
    snprintf(v->last_gone, sizeof(v->last_gone), "%s", id);
}

static void on_connection(void *context, bool is_connected) {
    ((view *)context)->connections += is_connected;
}

static const membership_handlers handlers = {on_node, on_gone, on_connection};

static void members_of_one_process_see_each_other(void **state) {
    membership_hub *hub;
    membership *a, *b;
    assert_int_equal(membership_hub_open(&hub), HD_OK);
    membership_node fixed = node_of("fixed", "h:9");
    membership_hub_put(hub, &fixed); /* a static list */
    assert_int_equal(membership_inproc_open(hub, &a), HD_OK);
    assert_int_equal(membership_inproc_open(hub, &b), HD_OK);
    view v = {0};
    a->ops->follow(a, &handlers, &v);
    assert_int_equal(v.nodes, 1);
    membership_node n = node_of("b", "h:2");
    b->ops->announce(b, &n);
    assert_int_equal(v.nodes, 2);
    b->ops->close(b);
    assert_string_equal(v.last_gone, "b");
    a->ops->close(a);
    membership_hub_close(hub);
}

#define POLL_UNTIL(queue, condition)                                                                                   \
    do {                                                                                                               \
        uint64_t until = hd_now_ns() + PATIENCE_NS;                                                                    \
        while (!(condition) && hd_now_ns() < until) rpc_queue_poll(queue, 50000000);                                   \
        assert_true(condition);                                                                                        \
    } while (0)

static void nodes_come_change_stay_without_etcd_and_go(void **state) {
    etcd_server server;
    etcd_server_start(&server);
    rpc_queue *queue;
    membership *a, *b;
    hd_error error;
    assert_int_equal(rpc_queue_open(&queue), HD_OK);
    membership_etcd_config config = {.etcd.endpoints = server.url, .cluster = "test"};
    if (membership_etcd_open(&config, queue, &a, &error) != HD_OK) fail_msg("%s", error.text);
    if (membership_etcd_open(&config, queue, &b, &error) != HD_OK) fail_msg("%s", error.text);
    view v = {0};
    assert_int_equal(a->ops->follow(a, &handlers, &v), HD_OK);
    membership_node n = node_of("w1", "10.0.0.1:7000");
    assert_int_equal(b->ops->announce(b, &n), HD_OK);
    POLL_UNTIL(queue, v.nodes == 1 && v.connections == 1);
    assert_string_equal(v.last.address, "10.0.0.1:7000");
    n.state = NODE_DRAINING;
    assert_int_equal(b->ops->announce(b, &n), HD_OK);
    POLL_UNTIL(queue, v.nodes == 2);
    assert_int_equal(v.last.state, NODE_DRAINING);

    membership_node same_id = node_of("w1", "10.0.0.2:7000"), other = node_of("w2", "10.0.0.2:7000");
    assert_int_equal(membership_check_join(&config, &same_id, 5000, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "--node-id w1"));
    assert_int_equal(membership_check_join(&config, &other, 5000, &error), HD_OK);
    snprintf(other.fingerprint, sizeof(other.fingerprint), "feed");
    assert_int_equal(membership_check_join(&config, &other, 5000, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "w1"));

    etcd_server_kill(&server);
    uint64_t later = hd_now_ns() + 1000000000;
    while (hd_now_ns() < later) rpc_queue_poll(queue, 50000000);
    assert_int_equal(v.gone, 0);
    etcd_server_restart(&server);
    POLL_UNTIL(queue, v.connections >= 2);
    assert_int_equal(v.gone, 0);
    b->ops->close(b);
    POLL_UNTIL(queue, v.gone == 1);
    assert_string_equal(v.last_gone, "w1");
    a->ops->close(a);
    rpc_queue_close(queue);
    etcd_server_stop(&server);
}

static void a_list_names_nodes_by_role_and_address(void **state) {
    membership_node nodes[4];
    uint32_t count;
    hd_error error = {{0}};
    assert_int_equal(
        membership_static_read("w1=worker@10.0.0.7:7000,attention-node@[fd00::8]:7001", nodes, 4, &count, &error),
        HD_OK);
    assert_int_equal(count, 2);
    assert_string_equal(nodes[0].id, "w1");
    assert_string_equal(nodes[0].role, "worker");
    assert_string_equal(nodes[0].address, "10.0.0.7:7000");
    assert_int_equal(nodes[0].state, NODE_READY);
    assert_int_equal(membership_version(&nodes[0], &nodes[0]), MEMBERSHIP_VERSION_MAX);
    assert_string_equal(nodes[1].id, "[fd00::8]:7001");
    assert_string_equal(nodes[1].role, "attention-node");
}

static void a_list_with_something_wrong_says_what(void **state) {
    static const struct {
        const char *list, *says;
    } cases[] = {{"", "'' is not"},
                 {"worker@h:1,", "'' is not"},
                 {"worker", "'worker' is not"},
                 {"walker@h:1", "'walker@h:1' is not"},
                 {"worker@h", "'worker@h' is not"},
                 {"worker@:1", "'worker@:1' is not"},
                 {"=worker@h:1", "'=worker@h:1' is not"},
                 {"a b=worker@h:1", "'a b=worker@h:1' is not"},
                 {"a=worker@h:1,a=worker@h:2", "two nodes are named 'a'"},
                 {"worker@h:1,worker@h:2,worker@h:3", "more than 2 nodes"}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        membership_node nodes[2];
        uint32_t count = 77;
        hd_error error = {{0}};
        assert_int_equal(membership_static_read(cases[i].list, nodes, 2, &count, &error), HD_INVALID);
        assert_int_equal(count, 77);
        if (strstr(error.text, cases[i].says) == NULL) fail_msg("'%s' instead of '%s'", error.text, cases[i].says);
    }
}

int main(void) {
    hd_log_set_level(HD_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_record_comes_back_as_it_was),
        cmocka_unit_test(records_that_are_none_are_refused_by_field),
        cmocka_unit_test(the_highest_common_version_is_used),
        cmocka_unit_test(another_model_under_the_same_name_does_not_fit),
        cmocka_unit_test(members_of_one_process_see_each_other),
        cmocka_unit_test(a_list_names_nodes_by_role_and_address),
        cmocka_unit_test(a_list_with_something_wrong_says_what),
        cmocka_unit_test(nodes_come_change_stay_without_etcd_and_go),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
