/* sharded_view_test.c - two steps at a time over one node, which one of them loses while the other is in the middle.
 *
 * The node is a real engine; the home's link to it breaks where a test puts another function into its table. */
#include <string.h>

#include "tests/attention-node/cluster.h"

#define MIB ((uint64_t)1 << 20)

static const toy_shape shape_plain = {2, 4, 2, 32, 16, HD_BF16, {0}, 0, false};

typedef struct {
    cluster c;
    attention *home, *view;
    toy_sequence of_home, of_view;
    uint64_t space[4][512]
        __attribute__((aligned(64))); /* a row's tensors: there are steps to be ended, and no output is read */
} rig;

static struct {
    attention_ops home, view; /* what the links do in a test */
    const attention_ops *engine;
    attention *link; /* the view's, to the node */
    uint32_t ends;
} faulty;

static hd_status attach_and_show(attention *self, uint32_t rows_max, attention **view, hd_error *error) {
    hd_status status = faulty.engine->attach(self, rows_max, view, error);
    if (status == HD_OK) faulty.link = *view;
    return status;
}

static hd_status wait_and_lose(attention *self, uint32_t layer) {
    (void)faulty.engine->wait(self, layer);
    return HD_PEER_LOST;
}

static hd_status end_and_count(attention *self) {
    faulty.ends++;
    return faulty.engine->step_end_post(self);
}

static void rig_open(rig *r) {
    cluster_open(&r->c, &shape_plain, &(cluster_shape){1, 1, 1, 32 * MIB, 1024, CLUSTER_ENGINES, 0});
    r->home = r->c.many.attention;
    attention *node = r->c.nodes[0];
    faulty.engine = node->ops;
    faulty.ends = 0;
    faulty.home = faulty.view = *node->ops;
    faulty.home.attach = attach_and_show;
    faulty.view.step_end_post = end_and_count;
    node->ops = &faulty.home;
    hd_error error = {.text = ""};
    if (r->home->ops->attach(r->home, 16, &r->view, &error) != HD_OK) fail_msg("%s", error.text);
    faulty.link->ops = &faulty.view;
    toy_sequence *sequences[2] = {&r->of_home, &r->of_view};
    for (uint32_t i = 0; i < 2; i++) {
        toy_sequence_init(sequences[i], i + 1, 1, 600);
        toy_sequence_push_text(sequences[i], i + 1, 500);
        assert_int_equal(cluster_sequence_open(&r->c, sequences[i], 0), 0);
        cluster_run(&r->c, sequences[i], 0, 400, 400);
    }
}

static void rig_close(rig *r) {
    r->view->ops->close(r->view);
    toy_sequence_fini(&r->of_home);
    toy_sequence_fini(&r->of_view);
    cluster_close(&r->c);
}

static hd_status begin(attention *a, const toy_sequence *s) {
    attention_rows rows = {s->name, s->epoch, 400, 1, s->tokens + 400, false, 0};
    return a->ops->step_begin(a, &rows, 1, NULL);
}

static hd_status submit(rig *r, attention *a) {
    attention_tensor tensor = {.dtype = HD_BF16};
    attention_layer_call call = {
        .queries = tensor, .keys = tensor, .values = tensor, .output = tensor, .output_stride = 512};
    attention_tensor *tensors[] = {&call.queries, &call.keys, &call.values, &call.output};
    for (uint32_t i = 0; i < 4; i++) tensors[i]->data = r->space[i];
    return a->ops->submit(a, &call);
}

/* Both steps are in their first layer; the home's finds that the node is lost. */
static void lose_in_the_middle(rig *r) {
    assert_int_equal(begin(r->home, &r->of_home), HD_OK);
    assert_int_equal(begin(r->view, &r->of_view), HD_OK);
    assert_int_equal(submit(r, r->view), HD_OK);
    assert_int_equal(submit(r, r->home), HD_OK);
    faulty.home.wait = wait_and_lose;
    assert_int_equal(r->home->ops->wait(r->home, 0), HD_PEER_LOST);
}

static void a_step_does_not_go_on_without_a_node_that_another_step_has_lost(void **state) {
    static rig r;
    rig_open(&r);
    lose_in_the_middle(&r);
    assert_int_equal(r.view->ops->wait(r.view, 0), HD_PEER_LOST);
    assert_int_equal(r.view->ops->step_end(r.view), HD_PEER_LOST);
    assert_int_equal(r.home->ops->step_end(r.home), HD_PEER_LOST);
    assert_int_equal(begin(r.view, &r.of_view), HD_PEER_LOST);
    rig_close(&r);
}

/* Its link may stand: an answer that is still on its way must find the tensors of this step, or nobody. */
static void a_step_ends_at_a_node_that_another_step_has_lost(void **state) {
    static rig r;
    rig_open(&r);
    lose_in_the_middle(&r);
    assert_int_equal(faulty.ends, 0);
    assert_int_equal(r.view->ops->step_end(r.view), HD_PEER_LOST);
    assert_int_equal(faulty.ends, 1);
    assert_int_equal(r.home->ops->step_end(r.home), HD_PEER_LOST);
    rig_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_step_does_not_go_on_without_a_node_that_another_step_has_lost),
        cmocka_unit_test(a_step_ends_at_a_node_that_another_step_has_lost),
    };
    return cmocka_run_group_tests_name("sharded_view", tests, NULL, NULL);
}
