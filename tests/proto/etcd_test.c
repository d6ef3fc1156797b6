/* etcd_test.c - the client against a real etcd, which the test starts, stops, stalls and compacts. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/log.h"
#include "proto/etcd.h"
#include "tests/proto/etcd_server.h"

#define PATIENCE_NS 20000000000ull

typedef struct world {
    etcd_server server;
    rpc_queue *queue;
    etcd *etcd;
} world;

static void world_open(world *w) {
    etcd_server_start(&w->server);
    assert_int_equal(rpc_queue_open(&w->queue), HD_OK);
    hd_error error;
    /* The first address is nobody's. */
    char endpoints[256];
    snprintf(endpoints, sizeof(endpoints), "http://127.0.0.1:1,%s", w->server.url);
    if (etcd_open(&(etcd_config){.endpoints = endpoints}, w->queue, &w->etcd, &error) != HD_OK)
        fail_msg("%s", error.text);
}

static void world_close(world *w) {
    etcd_close(w->etcd);
    rpc_queue_close(w->queue);
    etcd_server_stop(&w->server);
}

#define POLL_UNTIL(w, condition)                                                                                       \
    do {                                                                                                               \
        uint64_t until = hd_now_ns() + PATIENCE_NS;                                                                    \
        while (!(condition) && hd_now_ns() < until) rpc_queue_poll((w)->queue, 50000000);                              \
        assert_true(condition);                                                                                        \
    } while (0)

typedef struct answered {
    bool is_done, succeeded;
    hd_status status;
    size_t count;
    int64_t revision;
    char value[64], message[200];
} answered;

static void on_answer(void *context, const ProtobufCMessage *message, const rpc_end *end) {
    answered *a = context;
    a->is_done = true;
    a->status = end->status;
    snprintf(a->message, sizeof(a->message), "%s", end->message);
    if (message == NULL) return;
    if (message->descriptor == &etcdserverpb__range_response__descriptor) {
        const Etcdserverpb__RangeResponse *range = (const Etcdserverpb__RangeResponse *)message;
        a->count = range->n_kvs;
        if (range->n_kvs > 0)
            snprintf(a->value, sizeof(a->value), "%.*s", (int)range->kvs[0]->value.len, range->kvs[0]->value.data);
    } else if (message->descriptor == &etcdserverpb__txn_response__descriptor) {
        a->succeeded = ((const Etcdserverpb__TxnResponse *)message)->succeeded;
    } else if (message->descriptor == &etcdserverpb__put_response__descriptor) {
        a->revision = ((const Etcdserverpb__PutResponse *)message)->header->revision;
    }
}

static answered call(world *w, const ProtobufCMessage *request, uint64_t deadline_ms) {
    answered a = {.is_done = false};
    assert_int_equal(etcd_call(w->etcd, request, deadline_ms, on_answer, &a), HD_OK);
    POLL_UNTIL(w, a.is_done);
    return a;
}

static answered put(world *w, const char *key, const char *value, int64_t lease) {
    Etcdserverpb__PutRequest request = ETCDSERVERPB__PUT_REQUEST__INIT;
    request.key = etcd_bytes(key);
    request.value = etcd_bytes(value);
    request.lease = lease;
    return call(w, &request.base, 10000);
}

static answered range(world *w, const char *prefix) {
    char end[64];
    Etcdserverpb__RangeRequest request = ETCDSERVERPB__RANGE_REQUEST__INIT;
    request.key = etcd_bytes(prefix);
    request.range_end = etcd_prefix_end(prefix, end);
    return call(w, &request.base, 10000);
}

static answered create(world *w, const char *key, const char *value) {
    Etcdserverpb__Compare compare = ETCDSERVERPB__COMPARE__INIT;
    compare.result = ETCDSERVERPB__COMPARE__COMPARE_RESULT__EQUAL;
    compare.target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__CREATE;
    compare.key = etcd_bytes(key);
    compare.target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_CREATE_REVISION;
    Etcdserverpb__PutRequest put_request = ETCDSERVERPB__PUT_REQUEST__INIT;
    put_request.key = etcd_bytes(key);
    put_request.value = etcd_bytes(value);
    Etcdserverpb__RequestOp operation = ETCDSERVERPB__REQUEST_OP__INIT;
    operation.request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
    operation.request_put = &put_request;
    Etcdserverpb__Compare *compares[] = {&compare};
    Etcdserverpb__RequestOp *operations[] = {&operation};
    Etcdserverpb__TxnRequest request = ETCDSERVERPB__TXN_REQUEST__INIT;
    request.n_compare = request.n_success = 1;
    request.compare = compares;
    request.success = operations;
    return call(w, &request.base, 10000);
}

static void keys_are_put_read_and_created_once(void **state) {
    world w;
    world_open(&w);
    assert_int_equal(put(&w, "/t/a", "1", 0).status, HD_OK);
    assert_int_equal(put(&w, "/t/b", "2", 0).status, HD_OK);
    assert_int_equal(put(&w, "/u", "3", 0).status, HD_OK);
    answered read = range(&w, "/t/");
    assert_int_equal(read.status, HD_OK);
    assert_int_equal(read.count, 2);
    assert_string_equal(read.value, "1");
    assert_true(create(&w, "/t/c", "x").succeeded);
    assert_false(create(&w, "/t/c", "y").succeeded);
    Etcdserverpb__DeleteRangeRequest delete = ETCDSERVERPB__DELETE_RANGE_REQUEST__INIT;
    delete.key = etcd_bytes("/t/a");
    assert_int_equal(call(&w, &delete.base, 10000).status, HD_OK);
    assert_int_equal(range(&w, "/t/").count, 2);
    world_close(&w);
}

static void without_an_etcd_a_call_ends_at_its_deadline(void **state) {
    world w;
    world_open(&w);
    etcd_server_kill(&w.server);
    uint64_t start = hd_now_ns();
    Etcdserverpb__RangeRequest request = ETCDSERVERPB__RANGE_REQUEST__INIT;
    request.key = etcd_bytes("/t/");
    answered read = call(&w, &request.base, 600);
    assert_int_not_equal(read.status, HD_OK);
    assert_true(hd_now_ns() - start >= 500000000u);
    world_close(&w);
}

typedef struct lease_seen {
    unsigned granted, lost;
    int64_t id;
} lease_seen;

static void on_granted(void *context, int64_t lease_id) {
    lease_seen *seen = context;
    seen->granted++;
    seen->id = lease_id;
}

static void on_lost(void *context) {
    ((lease_seen *)context)->lost++;
}

static const etcd_lease_handlers lease_handlers = {on_granted, on_lost};

typedef struct watch_seen {
    unsigned snapshots, puts, deletes, connections, disconnections;
    size_t snapshot_count;
    char last[64];
} watch_seen;

static void on_snapshot(void *context, const Etcdserverpb__KeyValue *const *pairs, size_t count) {
    watch_seen *seen = context;
    seen->snapshots++;
    seen->snapshot_count = count;
}

static void on_event(void *context, bool is_deleted, const Etcdserverpb__KeyValue *pair) {
    watch_seen *seen = context;
    if (is_deleted) seen->deletes++;
    else seen->puts++;
    snprintf(seen->last, sizeof(seen->last), "%.*s", (int)pair->key.len, pair->key.data);
}

static void on_connection(void *context, bool is_connected) {
    watch_seen *seen = context;
    if (is_connected) seen->connections++;
    else seen->disconnections++;
}

static const etcd_watch_handlers watch_handlers = {on_snapshot, on_event, on_connection};

static void a_lease_is_kept_and_its_keys_go_when_it_is_closed(void **state) {
    world w;
    world_open(&w);
    lease_seen seen = {0};
    watch_seen watched = {0};
    etcd_lease *lease;
    etcd_watch *watch;
    assert_int_equal(etcd_watch_open(w.etcd, "/l/", &watch_handlers, &watched, &watch), HD_OK);
    assert_int_equal(etcd_lease_open(w.etcd, 1, &lease_handlers, &seen, &lease), HD_OK);
    POLL_UNTIL(&w, seen.granted == 1 && watched.connections == 1);
    assert_int_equal(put(&w, "/l/a", "x", seen.id).status, HD_OK);
    /* Longer than it would live without being kept: etcd gives at least its own minimum of about two seconds. */
    uint64_t later = hd_now_ns() + 2600000000ull;
    while (hd_now_ns() < later) rpc_queue_poll(w.queue, 50000000);
    assert_int_equal(seen.granted, 1);
    assert_int_equal(watched.deletes, 0);
    etcd_lease_close(lease);
    POLL_UNTIL(&w, watched.deletes == 1);
    etcd_watch_close(watch);
    world_close(&w);
}

static void a_watch_goes_on_where_it_was_when_etcd_comes_back(void **state) {
    world w;
    world_open(&w);
    assert_int_equal(put(&w, "/w/a", "1", 0).status, HD_OK);
    watch_seen seen = {0};
    etcd_watch *watch;
    assert_int_equal(etcd_watch_open(w.etcd, "/w/", &watch_handlers, &seen, &watch), HD_OK);
    POLL_UNTIL(&w, seen.connections == 1);
    assert_int_equal(seen.snapshot_count, 1);
    assert_int_equal(put(&w, "/w/b", "2", 0).status, HD_OK);
    POLL_UNTIL(&w, seen.puts == 1);
    etcd_server_kill(&w.server);
    POLL_UNTIL(&w, seen.disconnections >= 1);
    etcd_server_restart(&w.server);
    assert_int_equal(put(&w, "/w/c", "3", 0).status, HD_OK);
    POLL_UNTIL(&w, seen.puts == 2);
    assert_string_equal(seen.last, "/w/c");
    assert_int_equal(seen.snapshots, 1);
    etcd_watch_close(watch);
    world_close(&w);
}

static void a_watch_that_missed_a_compaction_reads_again(void **state) {
    world w;
    world_open(&w);
    watch_seen seen = {0};
    etcd_watch *watch;
    assert_int_equal(put(&w, "/w/a", "1", 0).status, HD_OK);
    assert_int_equal(etcd_watch_open(w.etcd, "/w/", &watch_handlers, &seen, &watch), HD_OK);
    POLL_UNTIL(&w, seen.connections == 1);
    etcd_server_kill(&w.server);
    POLL_UNTIL(&w, seen.disconnections >= 1);
    /* While nobody polls the watch, others write and compact. */
    etcd_server_restart(&w.server);
    hd_error error;
    etcd_config config = {.endpoints = w.server.url};
    ProtobufCMessage *answer;
    int64_t revision = 0;
    for (int i = 0; i < 5; i++) {
        Etcdserverpb__PutRequest request = ETCDSERVERPB__PUT_REQUEST__INIT;
        request.key = etcd_bytes(i % 2 == 0 ? "/w/b" : "/w/c");
        request.value = etcd_bytes("v");
        if (etcd_call_wait(&config, &request.base, 10000, &answer, &error) != HD_OK) fail_msg("%s", error.text);
        revision = ((Etcdserverpb__PutResponse *)answer)->header->revision;
        protobuf_c_message_free_unpacked(answer, NULL);
    }
    Etcdserverpb__CompactionRequest compact = ETCDSERVERPB__COMPACTION_REQUEST__INIT;
    compact.revision = revision;
    if (etcd_call_wait(&config, &compact.base, 10000, &answer, &error) != HD_OK) fail_msg("%s", error.text);
    protobuf_c_message_free_unpacked(answer, NULL);
    POLL_UNTIL(&w, seen.snapshots == 2);
    assert_int_equal(seen.snapshot_count, 3);
    etcd_watch_close(watch);
    world_close(&w);
}

static void a_lease_that_expired_meanwhile_is_granted_anew(void **state) {
    world w;
    world_open(&w);
    lease_seen seen = {0};
    etcd_lease *lease;
    assert_int_equal(etcd_lease_open(w.etcd, 1, &lease_handlers, &seen, &lease), HD_OK);
    POLL_UNTIL(&w, seen.granted == 1);
    int64_t first = seen.id;
    Etcdserverpb__LeaseRevokeRequest revoke = ETCDSERVERPB__LEASE_REVOKE_REQUEST__INIT;
    revoke.id = first;
    assert_int_equal(call(&w, &revoke.base, 10000).status, HD_OK);
    POLL_UNTIL(&w, seen.granted == 2);
    assert_int_equal(seen.lost, 1);
    assert_int_not_equal(seen.id, first);
    etcd_lease_close(lease);
    world_close(&w);
}

static void a_user_and_a_password_are_asked_for(void **state) {
    world w;
    world_open(&w);
    char command[512];
    snprintf(command, sizeof(command),
             "(export ETCDCTL_API=3; etcdctl --endpoints %s user add root:secret --interactive=false && "
             "etcdctl --endpoints %s user grant-role root root && etcdctl --endpoints %s auth enable) >/dev/null 2>&1",
             w.server.url, w.server.url, w.server.url);
    assert_int_equal(system(command), 0);
    Etcdserverpb__PutRequest request = ETCDSERVERPB__PUT_REQUEST__INIT;
    request.key = etcd_bytes("/a");
    request.value = etcd_bytes("b");
    ProtobufCMessage *answer;
    hd_error error;
    etcd_config config = {.endpoints = w.server.url, .user = "root", .password = "secret"};
    hd_status status = etcd_call_wait(&config, &request.base, 10000, &answer, &error);
    if (status != HD_OK) fail_msg("%s", error.text);
    protobuf_c_message_free_unpacked(answer, NULL);
    config.password = "wrong";
    assert_int_equal(etcd_call_wait(&config, &request.base, 1500, &answer, &error), HD_INVALID);
    config.user = NULL;
    assert_int_equal(etcd_call_wait(&config, &request.base, 1500, &answer, &error), HD_INVALID);
    world_close(&w);
}

static void addresses_that_are_none_are_refused(void **state) {
    rpc_queue *queue;
    etcd *e;
    hd_error error;
    assert_int_equal(rpc_queue_open(&queue), HD_OK);
    const char *bad[] = {"", "http://", "localhost", "http://a:1,http://b"};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(etcd_open(&(etcd_config){.endpoints = bad[i]}, queue, &e, &error), HD_INVALID);
        assert_non_null(strstr(error.text, "--etcd"));
    }
    rpc_queue_close(queue);
}

int main(void) {
    hd_log_set_level(HD_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_are_put_read_and_created_once),
        cmocka_unit_test(without_an_etcd_a_call_ends_at_its_deadline),
        cmocka_unit_test(a_lease_is_kept_and_its_keys_go_when_it_is_closed),
        cmocka_unit_test(a_watch_goes_on_where_it_was_when_etcd_comes_back),
        cmocka_unit_test(a_watch_that_missed_a_compaction_reads_again),
        cmocka_unit_test(a_lease_that_expired_meanwhile_is_granted_anew),
        cmocka_unit_test(a_user_and_a_password_are_asked_for),
        cmocka_unit_test(addresses_that_are_none_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
