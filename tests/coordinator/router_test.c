/* router_test.c - who gets a request, and who goes on with it: the router alone, between a client made of a callback
 * and workers made of scripts behind real gRPC services. */
#include "tests/coordinator/cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "coordinator/router.h"
#include "tests/coordinator/scripted_worker.h"

enum { WORKERS_MAX = 3, PROMPT = 512, PATIENCE_MS = 400 };
#define DEADLINE_NS 20000000000ull

#define AWAIT(condition)                                                                                               \
    do {                                                                                                               \
        uint64_t until = hd_now_ns() + DEADLINE_NS;                                                                    \
        while (!(condition)) {                                                                                         \
            if (hd_now_ns() > until) fail_msg("not within 20 s: %s", #condition);                                      \
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);                                                   \
        }                                                                                                              \
    } while (0)

/* -- a cluster -- */

typedef struct rig {
    rpc_loop *loop, *workers_loop;
    membership_hub *hub;
    membership *membership;
    model_set models;
    router *router;
    scripted_worker workers[WORKERS_MAX];
    uint32_t worker_count;
} rig;

static void open_membership(void *context) {
    rig *r = context;
    assert_int_equal(membership_inproc_open(r->hub, &r->membership), HD_OK);
}
static void close_membership(void *context) {
    rig *r = context;
    r->membership->ops->close(r->membership);
}

typedef struct announcement {
    rig *rig;
    membership_node node;
} announcement;
static void put_on_loop(void *context) {
    announcement *a = context;
    membership_hub_put(a->rig->hub, &a->node);
}
static void announce(rig *r, const scripted_worker *worker, membership_state state) {
    announcement a = {r, scripted_node(worker, state)};
    rpc_loop_call(r->loop, put_on_loop, &a);
}

static void remove_on_loop(void *context) {
    announcement *a = context;
    membership_hub_remove(a->rig->hub, a->node.id);
}
static void vanish(rig *r, const scripted_worker *worker) {
    announcement a = {r, scripted_node(worker, NODE_READY)};
    rpc_loop_call(r->loop, remove_on_loop, &a);
}

static void await_connected(rig *r, uint32_t blocks_total);

/* Workers that are named worker-1, ... with these loads, all connected. The router asks the last one first. */
static void rig_open(rig *r, uint32_t worker_count, const worker_load *loads) {
    static const char *const names[WORKERS_MAX] = {"worker-1", "worker-2", "worker-3"};
    memset(r, 0, sizeof(*r));
    assert_int_equal(rpc_loop_open("router", &r->loop), HD_OK);
    assert_int_equal(rpc_loop_open("workers", &r->workers_loop), HD_OK);
    assert_int_equal(membership_hub_open(&r->hub), HD_OK);
    rpc_loop_call(r->loop, open_membership, r);
    router_config config = {
        .loop = r->loop, .membership = r->membership, .models = &r->models, .patience_ms = PATIENCE_MS};
    hd_error error;
    assert_int_equal(router_open(&config, &r->router, &error), HD_OK);
    uint32_t blocks = 0;
    for (uint32_t i = 0; i < worker_count; i++) {
        scripted_open(&r->workers[i], names[i], r->workers_loop, &loads[i]);
        announce(r, &r->workers[i], NODE_READY);
        blocks += (uint32_t)loads[i].blocks_total;
        await_connected(r, blocks);
    }
    r->worker_count = worker_count;
}

static void rig_close(rig *r) {
    router_close(r->router);
    for (uint32_t i = 0; i < r->worker_count; i++) scripted_kill(&r->workers[i]);
    rpc_loop_close(r->workers_loop);
    for (uint32_t i = 0; i < r->worker_count; i++) scripted_close(&r->workers[i]);
    rpc_loop_call(r->loop, close_membership, r);
    membership_hub_close(r->hub);
    rpc_loop_close(r->loop);
}

static worker_rpc *routes(rig *r) {
    return r->models.models[0]->worker;
}

/* What a worker says of its load is the last that is heard when it connects. */
static void await_connected(rig *r, uint32_t blocks_total) {
    AWAIT(atomic_load(&r->models.count) == 1);
    worker_load load = {0};
    AWAIT((routes(r)->ops->load(routes(r), &load), load.blocks_total == blocks_total));
}

static const worker_load EMPTY = {.blocks_total = 1000};

/* -- a client -- */

typedef struct client {
    worker_request request; /* first */
    uint32_t prompt[2 * PROMPT];
    pthread_mutex_t lock; /* guards the rest */
    uint32_t tokens[SCRIPTED_TOKENS], token_count, starts;
    bool has_ended;
    hd_status status; /* of its end */
    worker_finish finish;
} client;

static void on_event(worker_request *asked, const worker_event *event) {
    client *c = (client *)asked;
    pthread_mutex_lock(&c->lock);
    assert_false(c->has_ended);
    if (event->kind == WORKER_STARTED) c->starts++;
    if (event->kind == WORKER_TOKEN) {
        assert_int_equal(event->position, c->request.prompt_count + c->token_count);
        c->tokens[c->token_count++] = event->token_id;
    }
    if (event->kind == WORKER_FAILED) c->status = event->status;
    if (event->kind == WORKER_FINISHED) c->finish = event->finish;
    c->has_ended = event->last;
    pthread_mutex_unlock(&c->lock);
}

/* Its prompt is count tokens, the first `common` of which every prompt of the family has. */
static void client_init(client *c, uint64_t id, uint32_t family, uint32_t common, uint32_t count) {
    memset(c, 0, sizeof(*c));
    pthread_mutex_init(&c->lock, NULL);
    for (uint32_t i = 0; i < count; i++)
        c->prompt[i] = i < common ? (family * 31 + i) % 250 : (uint32_t)(id * 17 + i) % 250;
    c->request = (worker_request){.id = id,
                                  .prompt_ids = c->prompt,
                                  .prompt_count = count,
                                  .max_tokens = 32,
                                  .choices = 1,
                                  .sampling = {.prompt_logprobs = -1, .logprobs = -1},
                                  .on_event = on_event};
}

static void client_submit(rig *r, client *c) {
    hd_error error;
    assert_int_equal(routes(r)->ops->submit(routes(r), &c->request, &error), HD_OK);
}

static uint32_t client_tokens(client *c) {
    pthread_mutex_lock(&c->lock);
    uint32_t count = c->token_count;
    pthread_mutex_unlock(&c->lock);
    return count;
}
static bool client_has_ended(client *c) {
    pthread_mutex_lock(&c->lock);
    bool has_ended = c->has_ended;
    pthread_mutex_unlock(&c->lock);
    return has_ended;
}

static uint32_t submitted(rig *r) {
    uint32_t sum = 0;
    for (uint32_t i = 0; i < r->worker_count; i++) sum += scripted_submitted(&r->workers[i]);
    return sum;
}

/* Which worker got it: one more is running there. */
static uint32_t submit_and_see(rig *r, client *c) {
    uint32_t before[WORKERS_MAX], sum = submitted(r);
    for (uint32_t i = 0; i < r->worker_count; i++) before[i] = scripted_submitted(&r->workers[i]);
    client_submit(r, c);
    AWAIT(submitted(r) == sum + 1);
    for (uint32_t i = 0; i < r->worker_count; i++)
        if (scripted_submitted(&r->workers[i]) > before[i]) return i;
    fail();
    return 0;
}

static void finish(rig *r, uint32_t worker, client *c) {
    scripted_finish(&r->workers[worker]);
    AWAIT(client_has_ended(c));
    assert_int_equal(c->status, HD_OK);
}

static void say(rig *r, uint32_t worker, client *c, uint32_t token_id) {
    uint32_t before = client_tokens(c);
    scripted_say(&r->workers[worker], token_id);
    AWAIT(client_tokens(c) == before + 1);
}

/* -- who gets it -- */

static void the_longest_prefix_decides_between_equals(void **state) {
    rig r;
    rig_open(&r, 2, (worker_load[]){EMPTY, EMPTY});
    client a, b, same, half, other, salted;
    client_init(&a, 1, 1, PROMPT, PROMPT);
    client_init(&b, 2, 2, PROMPT, PROMPT);
    /* The first keeps its worker busy, so that the second goes to the other one. */
    uint32_t first = submit_and_see(&r, &a), second = submit_and_see(&r, &b);
    assert_int_not_equal(first, second);
    finish(&r, first, &a);
    finish(&r, second, &b);
    client_init(&same, 3, 2, PROMPT, 2 * PROMPT);
    assert_int_equal(submit_and_see(&r, &same), second);
    finish(&r, second, &same);
    client_init(&half, 4, 2, PROMPT / 2, PROMPT);
    assert_int_equal(submit_and_see(&r, &half), second);
    finish(&r, second, &half);
    client_init(&other, 5, 1, PROMPT, PROMPT);
    assert_int_equal(submit_and_see(&r, &other), first);
    finish(&r, first, &other);
    /* What another tenant has cached is of no use. */
    client_init(&salted, 6, 2, PROMPT, PROMPT);
    salted.request.salt[0] = 1;
    assert_int_equal(submit_and_see(&r, &salted), first);
    finish(&r, first, &salted);
    rig_close(&r);
}

static void memory_comes_before_prefixes(void **state) {
    rig r;
    rig_open(&r, 2, (worker_load[]){{.blocks_total = 100}, {.blocks_total = 100, .blocks_sequences = 97}});
    client small, large;
    /* Its block and its answer fit; to the one that is asked first. */
    client_init(&small, 1, 1, 128, 128);
    assert_int_equal(submit_and_see(&r, &small), 1);
    finish(&r, 1, &small);
    client_init(&large, 2, 1, 128, 2 * PROMPT);
    assert_int_equal(submit_and_see(&r, &large), 0);
    finish(&r, 0, &large);
    rig_close(&r);
}

static void reserved_memory_is_taken(void **state) {
    rig r;
    rig_open(&r, 2, (worker_load[]){{.blocks_total = 100}, {.blocks_total = 100, .blocks_reserved = 99}});
    client c;
    client_init(&c, 1, 1, PROMPT, PROMPT);
    assert_int_equal(submit_and_see(&r, &c), 0);
    finish(&r, 0, &c);
    rig_close(&r);
}

static void a_queue_is_avoided(void **state) {
    rig r;
    rig_open(&r, 2, (worker_load[]){{.blocks_total = 100}, {.blocks_total = 100, .waiting = 1}});
    client c;
    client_init(&c, 1, 1, PROMPT, PROMPT);
    assert_int_equal(submit_and_see(&r, &c), 0);
    finish(&r, 0, &c);
    rig_close(&r);
}

static void work_that_is_there_counts(void **state) {
    rig r;
    rig_open(&r, 3, (worker_load[]){EMPTY, EMPTY, EMPTY});
    client clients[6];
    uint32_t got[WORKERS_MAX] = {0};
    for (uint32_t i = 0; i < 6; i++) {
        client_init(&clients[i], i + 1, i + 1, PROMPT, PROMPT);
        got[submit_and_see(&r, &clients[i])]++;
    }
    for (uint32_t i = 0; i < WORKERS_MAX; i++) {
        assert_int_equal(got[i], 2);
        while (scripted_running(&r.workers[i]) > 0) scripted_finish(&r.workers[i]);
    }
    for (uint32_t i = 0; i < 6; i++) AWAIT(client_has_ended(&clients[i]));
    rig_close(&r);
}

static void a_worker_that_refuses_is_passed_over(void **state) {
    rig r;
    rig_open(&r, 2, (worker_load[]){EMPTY, EMPTY});
    scripted_set_answer(&r.workers[1], HD_FULL);
    client c;
    client_init(&c, 1, 1, PROMPT, PROMPT);
    client_submit(&r, &c);
    AWAIT(scripted_running(&r.workers[0]) == 1);
    assert_int_equal(scripted_submitted(&r.workers[1]), 1);
    assert_int_equal(scripted_last(&r.workers[0]).epoch, 2); /* the refused one's is used up */
    finish(&r, 0, &c);
    rig_close(&r);
}

static void a_new_request_is_told_that_all_are_full(void **state) {
    rig r;
    rig_open(&r, 2, (worker_load[]){EMPTY, EMPTY});
    scripted_set_answer(&r.workers[0], HD_FULL);
    scripted_set_answer(&r.workers[1], HD_FULL);
    client c;
    client_init(&c, 1, 1, PROMPT, PROMPT);
    client_submit(&r, &c);
    AWAIT(client_has_ended(&c));
    assert_int_equal(c.status, HD_FULL);
    assert_true(scripted_submitted(&r.workers[0]) > 0 && scripted_submitted(&r.workers[1]) > 0);
    rig_close(&r);
}

static void what_is_wrong_with_a_request_is_said_once(void **state) {
    rig r;
    rig_open(&r, 2, (worker_load[]){EMPTY, EMPTY});
    scripted_set_answer(&r.workers[0], HD_INVALID);
    scripted_set_answer(&r.workers[1], HD_INVALID);
    client c;
    client_init(&c, 1, 1, PROMPT, PROMPT);
    client_submit(&r, &c);
    AWAIT(client_has_ended(&c));
    assert_int_equal(c.status, HD_INVALID);
    assert_int_equal(submitted(&r), 1);
    rig_close(&r);
}

/* -- who goes on with it -- */

static void a_lost_workers_request_goes_on_with_its_next_token(void **state) {
    rig r;
    rig_open(&r, 3, (worker_load[]){EMPTY, EMPTY, EMPTY});
    client c;
    client_init(&c, 1, 1, PROMPT, PROMPT);
    uint32_t at = submit_and_see(&r, &c);
    scripted_seen begun = scripted_last(&r.workers[at]);
    assert_int_equal(begun.epoch, 1);
    assert_false(begun.has_answers);
    assert_true(begun.sequence != 0 && begun.sequence >> 63 == 0);
    uint32_t said = 0;
    bool is_dead[WORKERS_MAX] = {false};
    for (uint64_t epoch = 2; epoch <= 3; epoch++) {
        for (int i = 0; i < 3; i++, said++) say(&r, at, &c, 100 + said);
        uint32_t sum = submitted(&r);
        is_dead[at] = true;
        scripted_kill(&r.workers[at]);
        AWAIT(submitted(&r) == sum + 1);
        for (uint32_t i = 0; i < r.worker_count; i++)
            if (!is_dead[i] && scripted_running(&r.workers[i]) == 1) at = i;
        assert_false(is_dead[at]);
        scripted_seen seen = scripted_last(&r.workers[at]);
        /* The same sequence under a higher epoch, with everything that its client has. */
        assert_int_equal(seen.epoch, epoch);
        assert_true(seen.sequence == begun.sequence);
        assert_int_equal(seen.answered, said);
        for (uint32_t i = 0; i < said; i++) assert_int_equal(seen.first_choice[i], 100 + i);
    }
    say(&r, at, &c, 100 + said++);
    finish(&r, at, &c);
    assert_int_equal(c.token_count, said);
    for (uint32_t i = 0; i < said; i++) assert_int_equal(c.tokens[i], 100 + i);
    rig_close(&r);
}

static void a_selection_goes_with_its_request(void **state) {
    rig r;
    rig_open(&r, 2, (worker_load[]){EMPTY, EMPTY});
    client c;
    client_init(&c, 1, 1, PROMPT, PROMPT);
    uint32_t at = submit_and_see(&r, &c), other = 1 - at;
    assert_string_equal(scripted_last(&r.workers[at]).selection, "");
    scripted_start(&r.workers[at], "window,recent=1024");
    say(&r, at, &c, 9);
    scripted_kill(&r.workers[at]);
    AWAIT(scripted_running(&r.workers[other]) == 1);
    assert_string_equal(scripted_last(&r.workers[other]).selection, "window,recent=1024");
    /* Whatever it says that it has made of it. */
    scripted_start(&r.workers[other], "full");
    finish(&r, other, &c);
    assert_int_equal(c.starts, 1);
    rig_close(&r);
}

static void a_worker_that_vanished_gets_work_only_when_all_have(void **state) {
    rig r;
    rig_open(&r, 2, (worker_load[]){EMPTY, EMPTY});
    client first, second, third;
    client_init(&first, 1, 1, PROMPT, PROMPT);
    client_init(&second, 2, 1, PROMPT, PROMPT);
    client_init(&third, 3, 3, PROMPT, PROMPT);
    uint32_t at = submit_and_see(&r, &first), other = 1 - at;
    say(&r, at, &first, 9);
    vanish(&r, &r.workers[at]);
    /* It has the prefix, and the other one is announced. */
    assert_int_equal(submit_and_see(&r, &second), other);
    vanish(&r, &r.workers[other]);
    assert_int_equal(submit_and_see(&r, &third), at);
    finish(&r, at, &third);
    /* What ran where it vanished has gone on. */
    say(&r, at, &first, 10);
    finish(&r, at, &first);
    finish(&r, other, &second);
    rig_close(&r);
}

static void a_worker_that_left_gets_no_work_even_when_all_have_gone(void **state) {
    rig r;
    rig_open(&r, 1, (worker_load[]){EMPTY});
    announce(&r, &r.workers[0], NODE_DRAINING);
    vanish(&r, &r.workers[0]);
    client c;
    client_init(&c, 1, 1, PROMPT, PROMPT);
    client_submit(&r, &c);
    AWAIT(client_has_ended(&c));
    assert_int_equal(c.status, HD_PEER_LOST);
    assert_int_equal(scripted_submitted(&r.workers[0]), 0);
    rig_close(&r);
}

static void a_drained_worker_gets_nothing_and_hands_over(void **state) {
    rig r;
    rig_open(&r, 2, (worker_load[]){EMPTY, EMPTY});
    client running, later;
    client_init(&running, 1, 1, PROMPT, PROMPT);
    uint32_t drained = submit_and_see(&r, &running), other = 1 - drained;
    say(&r, drained, &running, 7);
    announce(&r, &r.workers[drained], NODE_DRAINING);
    AWAIT(scripted_running(&r.workers[other]) == 1);
    assert_int_equal(scripted_running(&r.workers[drained]), 0);
    scripted_seen seen = scripted_last(&r.workers[other]);
    assert_int_equal(seen.epoch, 2);
    assert_int_equal(seen.answered, 1);
    assert_false(client_has_ended(&running));
    /* The prefix is the drained one's, and it gets nothing all the same. */
    client_init(&later, 2, 1, PROMPT, PROMPT);
    assert_int_equal(submit_and_see(&r, &later), other);
    finish(&r, other, &later);
    say(&r, other, &running, 8);
    finish(&r, other, &running);
    assert_int_equal(running.token_count, 2);
    /* Undrained, it takes work again: the other one is busy. */
    announce(&r, &r.workers[drained], NODE_READY);
    client busy, next;
    client_init(&busy, 3, 3, PROMPT, PROMPT);
    client_init(&next, 4, 4, PROMPT, PROMPT);
    uint32_t busy_at = submit_and_see(&r, &busy), next_at = submit_and_see(&r, &next);
    assert_int_not_equal(busy_at, next_at);
    finish(&r, busy_at, &busy);
    finish(&r, next_at, &next);
    rig_close(&r);
}

static void a_drained_worker_keeps_what_has_nowhere_to_go(void **state) {
    rig r;
    rig_open(&r, 1, (worker_load[]){EMPTY});
    client c;
    client_init(&c, 1, 1, PROMPT, PROMPT);
    submit_and_see(&r, &c);
    announce(&r, &r.workers[0], NODE_DRAINING);
    say(&r, 0, &c, 5);
    finish(&r, 0, &c);
    assert_int_equal(scripted_submitted(&r.workers[0]), 1);
    rig_close(&r);
}

static void a_token_out_of_step_is_never_handed_on(void **state) {
    rig r;
    rig_open(&r, 2, (worker_load[]){EMPTY, EMPTY});
    client c;
    client_init(&c, 1, 1, PROMPT, PROMPT);
    uint32_t at = submit_and_see(&r, &c);
    say(&r, at, &c, 1);
    scripted_say_ahead(&r.workers[at], 99, 1);
    AWAIT(submitted(&r) == 2);
    for (uint32_t i = 0; i < 2; i++)
        if (scripted_running(&r.workers[i]) == 1) at = i;
    say(&r, at, &c, 2);
    finish(&r, at, &c);
    assert_int_equal(c.token_count, 2);
    assert_int_equal(c.tokens[1], 2);
    rig_close(&r);
}

static void a_request_that_breaks_steps_is_given_up(void **state) {
    rig r;
    rig_open(&r, 3, (worker_load[]){EMPTY, EMPTY, EMPTY});
    client c;
    client_init(&c, 1, 1, PROMPT, PROMPT);
    client_submit(&r, &c);
    for (uint32_t tries = 1; tries <= 3; tries++) {
        AWAIT(submitted(&r) == tries);
        for (uint32_t i = 0; i < r.worker_count; i++) {
            if (scripted_running(&r.workers[i]) == 0) continue;
            scripted_fail(&r.workers[i], HD_CORRUPT);
            break;
        }
    }
    AWAIT(client_has_ended(&c));
    assert_int_equal(c.status, HD_CORRUPT);
    rig_close(&r);
}

static void without_workers_a_request_waits_and_then_fails(void **state) {
    rig r;
    rig_open(&r, 1, (worker_load[]){EMPTY});
    client c;
    client_init(&c, 1, 1, PROMPT, PROMPT);
    submit_and_see(&r, &c);
    say(&r, 0, &c, 3);
    uint64_t begin = hd_now_ns();
    scripted_kill(&r.workers[0]);
    AWAIT(client_has_ended(&c));
    assert_int_equal(c.status, HD_PEER_LOST);
    assert_true(hd_now_ns() - begin >= PATIENCE_MS * 1000000ull);
    rig_close(&r);
}

static void a_cancelled_request_ends_where_it_runs(void **state) {
    rig r;
    rig_open(&r, 2, (worker_load[]){EMPTY, EMPTY});
    client c;
    client_init(&c, 1, 1, PROMPT, PROMPT);
    uint32_t at = submit_and_see(&r, &c);
    say(&r, at, &c, 3);
    routes(&r)->ops->cancel(routes(&r), c.request.id, UINT32_MAX);
    AWAIT(client_has_ended(&c));
    assert_int_equal(c.finish, WORKER_FINISH_CANCELLED);
    assert_int_equal(submitted(&r), 1);
    assert_int_equal(scripted_running(&r.workers[at]), 0);
    rig_close(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_longest_prefix_decides_between_equals),
        cmocka_unit_test(memory_comes_before_prefixes),
        cmocka_unit_test(reserved_memory_is_taken),
        cmocka_unit_test(a_queue_is_avoided),
        cmocka_unit_test(work_that_is_there_counts),
        cmocka_unit_test(a_worker_that_refuses_is_passed_over),
        cmocka_unit_test(a_new_request_is_told_that_all_are_full),
        cmocka_unit_test(what_is_wrong_with_a_request_is_said_once),
        cmocka_unit_test(a_lost_workers_request_goes_on_with_its_next_token),
        cmocka_unit_test(a_selection_goes_with_its_request),
        cmocka_unit_test(a_worker_that_vanished_gets_work_only_when_all_have),
        cmocka_unit_test(a_worker_that_left_gets_no_work_even_when_all_have_gone),
        cmocka_unit_test(a_drained_worker_gets_nothing_and_hands_over),
        cmocka_unit_test(a_drained_worker_keeps_what_has_nowhere_to_go),
        cmocka_unit_test(a_token_out_of_step_is_never_handed_on),
        cmocka_unit_test(a_request_that_breaks_steps_is_given_up),
        cmocka_unit_test(without_workers_a_request_waits_and_then_fails),
        cmocka_unit_test(a_cancelled_request_ends_where_it_runs),
    };
    hd_log_set_level(HD_LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
