/* engine_view_test.c - several callers of one engine: their steps interleave, and a sequence has one owner. */
#include <stdlib.h>
#include <string.h>

#include "tests/attention-node/toy.h"

typedef struct {
    toy a, b;            /* b is a view of a's engine */
    toy_sequence *other; /* whose rows b runs while a waits for a layer */
    attention base;      /* a's engine, with a `wait` of its own */
    attention *engine;
} pair;

static void pair_open(pair *p) {
    const toy_shape shape = {2, 2, 2, 16, 16, HD_F32, {0, 700}, 0, false};
    toy_init(&p->a, &shape);
    p->a.config.views_max = 1;
    toy_open(&p->a, 2);
    p->b = p->a;
    p->engine = p->a.attention;
    assert_int_equal(engine_attach(p->engine, &p->b.attention), HD_OK);
}

static void pair_close(pair *p) {
    p->b.attention->ops->close(p->b.attention);
    p->a.attention = p->engine;
    toy_fini(&p->a);
}

static pair interleaved;
static attention_ops interleaved_ops;
static hd_status (*engine_wait)(attention *self, uint32_t layer);

/* The other caller runs a whole step between submit and wait. */
static hd_status wait_while_the_other_runs(attention *self, uint32_t layer) {
    if (self != interleaved.engine) return engine_wait(self, layer);
    toy_sequence *s = interleaved.other;
    uint64_t length;
    assert_int_equal(interleaved.b.attention->ops->sequence_length(interleaved.b.attention, s->name, &length), HD_OK);
    if (length < s->length) toy_run(&interleaved.b, s, length, 1, 1, NULL);
    return engine_wait(self, layer);
}

static void steps_of_two_callers_interleave(void **state) {
    pair *p = &interleaved;
    pair_open(p);
    engine_wait = p->engine->ops->wait;
    interleaved_ops = *p->engine->ops;
    interleaved_ops.wait = wait_while_the_other_runs;
    p->engine->ops = &interleaved_ops;
    toy_sequence s, other;
    toy_sequence_init(&s, 1, 1, 1200);
    toy_sequence_push_text(&s, 3, 1100);
    toy_sequence_init(&other, 2, 1, 300);
    toy_sequence_push_text(&other, 4, 300);
    uint64_t cached;
    assert_int_equal(toy_sequence_open(&p->a, &s, 0, &cached, NULL), HD_OK);
    assert_int_equal(toy_sequence_open(&p->b, &other, 0, &cached, NULL), HD_OK);
    p->other = &other;
    toy_run(&p->a, &s, 0, 1090, 128, NULL);
    for (uint64_t i = 1090; i < 1100; i++) toy_check_row(&p->a, &s, i);
    uint64_t length = 0;
    assert_int_equal(p->b.attention->ops->sequence_length(p->b.attention, 2, &length), HD_OK);
    assert_in_range(length, 30, 300);
    toy_run(&p->b, &other, length, 300 - length, 64, NULL);
    for (uint64_t i = 0; i < 300; i += 23) toy_check_row(&p->b, &other, i);
    toy_sequence_fini(&s);
    toy_sequence_fini(&other);
    pair_close(p);
}

static void a_takeover_ends_the_old_owners_step(void **state) {
    pair p;
    pair_open(&p);
    toy_sequence s, bystander;
    toy_sequence_init(&s, 1, 1, 400);
    toy_sequence_push_text(&s, 3, 300);
    toy_sequence_init(&bystander, 2, 1, 400);
    toy_sequence_push_text(&bystander, 5, 200);
    uint64_t cached, length;
    assert_int_equal(toy_sequence_open(&p.a, &s, 0, &cached, NULL), HD_OK);
    assert_int_equal(toy_sequence_open(&p.a, &bystander, 0, &cached, NULL), HD_OK);
    toy_run(&p.a, &s, 0, 200, 200, NULL);
    attention *old = p.a.attention, *new = p.b.attention;
    attention_rows rows[] = {{1, 1, 200, 50, s.tokens + 200, false, 0}, {2, 1, 0, 100, bystander.tokens, false, 0}};
    assert_int_equal(old->ops->step_begin(old, rows, 2, NULL), HD_OK);

    s.epoch = 2;
    s.length = 201;
    assert_int_equal(new->ops->step_begin(new, rows, 1, NULL), HD_STALE); /* not without opening it */
    assert_int_equal(toy_sequence_open(&p.b, &s, UINT64_MAX, &cached, NULL), HD_OK);
    assert_int_equal(cached, 200);
    toy_run(&p.b, &s, 200, 1, 1, NULL);
    assert_int_equal(old->ops->submit(old, &(attention_layer_call){.layer = 0}), HD_STALE);
    assert_int_equal(old->ops->step_end(old), HD_STALE);
    assert_int_equal(old->ops->step_begin(old, rows, 1, NULL), HD_STALE);
    assert_int_equal(old->ops->sequence_length(old, 2, &length), HD_OK);
    assert_int_equal(length, 0);
    toy_run(&p.a, &bystander, 0, 200, 64, NULL);
    toy_check_row(&p.a, &bystander, 150);
    toy_check_row(&p.b, &s, 200);

    attention_found found[4];
    uint32_t count = 0;
    assert_int_equal(old->ops->sequence_find(old, 1, found, 4, &count), HD_OK);
    assert_int_equal(count, 1);
    assert_int_equal(found[0].epoch, 2);
    assert_int_equal(found[0].length, 201);
    toy_sequence_fini(&s);
    toy_sequence_fini(&bystander);
    pair_close(&p);
}

static void a_view_that_goes_leaves_its_sequences(void **state) {
    pair p;
    pair_open(&p);
    attention *third = NULL;
    assert_int_equal(engine_attach(p.engine, &third), HD_FULL);
    toy_sequence s;
    toy_sequence_init(&s, 1, 1, 400);
    toy_sequence_push_text(&s, 3, 300);
    uint64_t cached;
    assert_int_equal(toy_sequence_open(&p.b, &s, 0, &cached, NULL), HD_OK);
    toy_run(&p.b, &s, 0, 200, 200, NULL);
    attention_rows rows = {1, 1, 200, 50, s.tokens + 200, false, 0};
    assert_int_equal(p.b.attention->ops->step_begin(p.b.attention, &rows, 1, NULL), HD_OK);
    p.b.attention->ops->close(p.b.attention);
    assert_int_equal(engine_attach(p.engine, &p.b.attention), HD_OK);
    s.epoch = 2;
    assert_int_equal(toy_sequence_open(&p.b, &s, UINT64_MAX, &cached, NULL), HD_OK);
    assert_int_equal(cached, 200);
    toy_run(&p.b, &s, 200, 100, 100, NULL);
    toy_check_row(&p.b, &s, 299);
    toy_sequence_fini(&s);
    pair_close(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_of_two_callers_interleave),
        cmocka_unit_test(a_takeover_ends_the_old_owners_step),
        cmocka_unit_test(a_view_that_goes_leaves_its_sequences),
    };
    return cmocka_run_group_tests_name("engine_view", tests, NULL, NULL);
}
