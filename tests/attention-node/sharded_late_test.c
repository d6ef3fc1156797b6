/* sharded_late_test.c - a node whose thread stands still while others have the same rows: what is waited for, and what
 * becomes of the sequence. */
#include <pthread.h>
#include <time.h>

#include "tests/attention-node/cluster.h"

#define MIB ((uint64_t)1 << 20)
#define LATE_MS 60u

static const toy_shape shape_plain = {2, 4, 2, 32, 16, HD_BF16, {0, 1500}, 0, true};

static void rest(uint64_t ms) {
    nanosleep(&(struct timespec){.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000}, NULL);
}

/* A node's thread stands in the acceptance of a link until it is let go. */
typedef struct standstill {
    transport *caller;
    transport_link *link;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stands, is_over;
} standstill;

static hd_status stand_still(void *listener, transport_link *link, transport_handlers *handlers, void **context) {
    standstill *s = listener;
    pthread_mutex_lock(&s->lock);
    s->stands = true;
    pthread_cond_broadcast(&s->changed);
    while (!s->is_over) pthread_cond_wait(&s->changed, &s->lock);
    pthread_mutex_unlock(&s->lock);
    return HD_UNSUPPORTED;
}

static void stop_node(standstill *s, cluster *c, uint32_t node) {
    static const transport_handlers handlers = {.on_frame = NULL};
    hd_error error = {.text = ""};
    *s = (standstill){.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    assert_int_equal(transport_inproc_open(c->hub, 1u << 16, &s->caller), HD_OK);
    assert_int_equal(transport_inproc_listen(c->servers[node].transport, "stop", "step", stand_still, s), HD_OK);
    assert_int_equal(s->caller->ops->connect(s->caller, "stop", "step", &handlers, NULL, &s->link, &error), HD_OK);
    pthread_mutex_lock(&s->lock);
    while (!s->stands) pthread_cond_wait(&s->changed, &s->lock);
    pthread_mutex_unlock(&s->lock);
}

static void let_go(standstill *s) {
    pthread_mutex_lock(&s->lock);
    s->is_over = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    s->caller->ops->disconnect(s->link);
    s->caller->ops->close(s->caller);
}

static void begin(cluster *c, toy_sequence *s, uint32_t nodes) {
    cluster_open_with(c, &shape_plain, &(cluster_shape){1, nodes, 2, 32 * MIB, 8192, CLUSTER_INPROC, 0},
                      &(cluster_tiers){.late_ms = LATE_MS});
    toy_sequence_init(s, 1, 1, 4096);
    toy_sequence_push_text(s, 3, 4000);
    assert_int_equal(cluster_sequence_open(c, s, 0), 0);
    cluster_run(c, s, 0, 3000, 1000);
}

static void end(cluster *c, toy_sequence *s) {
    toy_sequence_fini(s);
    cluster_close(c);
}

static const placement_row *row_of(cluster *c) {
    return &sharded_placement(c->many.attention, 1)->rows[0];
}

static void a_replica_that_is_late_is_done_without(void **state) {
    cluster c;
    toy_sequence s;
    standstill still;
    begin(&c, &s, 2);
    uint32_t late = row_of(&c)->nodes[1], other = row_of(&c)->nodes[0];
    stop_node(&still, &c, late);
    cluster_run(&c, &s, 3000, 100, 1); /* no step fails */
    assert_true(sharded_is_lost(c.many.attention, late) && sharded_is_late(c.many.attention, late));
    assert_false(sharded_is_lost(c.many.attention, other));
    assert_int_equal(row_of(&c)->node_count, 1);
    let_go(&still);
    cluster_run(&c, &s, 3100, 100, 7);
    end(&c, &s);
}

static void who_was_to_answer_and_is_late_gives_way_to_its_replica(void **state) {
    cluster c;
    toy_sequence s;
    standstill still;
    begin(&c, &s, 2);
    uint32_t late = row_of(&c)->nodes[0];
    stop_node(&still, &c, late);
    assert_int_equal(toy_step(&c.many, &(toy_rows){&s, 3000, 1}, 1, NULL, NULL), HD_PEER_LOST);
    assert_true(sharded_is_late(c.many.attention, late));
    cluster_run(&c, &s, 3000, 100, 1);
    let_go(&still);
    end(&c, &s);
}

static void a_lost_replica_is_made_again_where_there_is_another_node(void **state) {
    cluster c;
    toy_sequence s;
    standstill still;
    begin(&c, &s, 3);
    stop_node(&still, &c, row_of(&c)->nodes[1]);
    cluster_run(&c, &s, 3000, 1, 1);
    for (uint64_t at = 3001; at < 3990 && row_of(&c)->node_count < 2; at++) {
        cluster_run(&c, &s, at, 1, 1);
        rest(2);
    }
    assert_int_equal(row_of(&c)->node_count, 2);
    let_go(&still);
    end(&c, &s);
}

typedef struct {
    standstill *still;
    uint64_t after_ms;
} waker;

static void *wake_later(void *context) {
    waker *w = context;
    rest(w->after_ms);
    let_go(w->still);
    return NULL;
}

static void the_last_one_that_has_the_rows_is_waited_for(void **state) {
    cluster c;
    toy_sequence s;
    standstill still;
    pthread_t thread;
    begin(&c, &s, 1);
    stop_node(&still, &c, 0);
    waker w = {&still, 5 * LATE_MS};
    assert_int_equal(pthread_create(&thread, NULL, wake_later, &w), 0);
    cluster_run(&c, &s, 3000, 10, 1);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_false(sharded_is_lost(c.many.attention, 0));
    end(&c, &s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_replica_that_is_late_is_done_without),
        cmocka_unit_test(who_was_to_answer_and_is_late_gives_way_to_its_replica),
        cmocka_unit_test(a_lost_replica_is_made_again_where_there_is_another_node),
        cmocka_unit_test(the_last_one_that_has_the_rows_is_waited_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
