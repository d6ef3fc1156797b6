/* roles_test.c - workers and attention nodes as processes of their own, with a real etcd: the tokens of one process,
 * and what they lose when one of them is killed. usage: roles_test HADAL MODEL_DIR (the needle model) */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/worker_remote.h"
#include "tests/proto/etcd_server.h"
#include "tests/worker/client.h"
#include "tests/worker/rig.h"

enum { NODES_MAX = 4, WORKERS_MAX = 2, PROMPT = 2600, ANSWER = 48 };

static const char *hadal, *model_directory;
static etcd_server etcd;
static uint32_t prompt[PROMPT];
static client_choice expected; /* what one process says, greedily */

/* ---- Processes ---- */

typedef struct {
    pid_t pid;
    char log[64], address[64];
} process;

static void start(process *p, const char *const *arguments) {
    snprintf(p->log, sizeof(p->log), "/tmp/hadal-roles-XXXXXX");
    int log = mkstemp(p->log);
    assert_true(log >= 0);
    p->pid = fork();
    assert_true(p->pid >= 0);
    if (p->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(log, STDERR_FILENO);
        execv(hadal, (char *const *)arguments);
        _exit(127);
    }
    close(log);
}

/* The address that the process says when it has joined. */
static void await_joined(process *p) {
    for (int i = 0; i < 600; i++) {
        char *text = rig_read_file("", p->log, NULL), *line = strstr(text, "event=joined");
        char *address = line != NULL ? strstr(line, "address=") : NULL;
        bool is_there = address != NULL && sscanf(address, "address=%63s", p->address) == 1;
        int status;
        if (!is_there && waitpid(p->pid, &status, WNOHANG) == p->pid) fail_msg("it has ended: %s", text);
        free(text);
        if (is_there) return;
        nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    }
    fail_msg("%s: nobody joined within 30 s", p->log);
}

static void kill_process(process *p) {
    if (p->pid == 0) return;
    kill(p->pid, SIGKILL);
    waitpid(p->pid, NULL, 0);
    unlink(p->log);
    p->pid = 0;
}

/* ---- A cluster ---- */

typedef struct {
    process nodes[NODES_MAX], workers[WORKERS_MAX];
    uint32_t node_count, worker_count;
    rpc_loop *loop;
    worker_remote *remotes[WORKERS_MAX];
    worker_rpc rpcs[WORKERS_MAX];
    client clients[WORKERS_MAX];
    _Atomic uint32_t ready;
} cluster;

/* worker_remote wants its own thread for every call. */
typedef struct {
    worker_rpc *rpc;
    worker_request *request;
    hd_error *error;
    hd_status status;
} submission;

static cluster *running; /* the one that rpcs belong to */

static void submit_on_loop(void *context) {
    submission *s = context;
    s->status = s->rpc->ops->submit(s->rpc, s->request, s->error);
}

static hd_status submit(worker_rpc *self, worker_request *request, hd_error *error) {
    submission s = {
        .rpc = worker_remote_rpc(running->remotes[self - running->rpcs]), .request = request, .error = error};
    rpc_loop_call(running->loop, submit_on_loop, &s);
    return s.status;
}

static const worker_rpc_ops rpc_ops = {.name = "on the loop", .submit = submit};

static void on_ready(void *context, const Hadal__Description *description) {
    atomic_fetch_add(&((cluster *)context)->ready, 1);
}

static void on_lost(void *context, hd_status status, const char *reason) {}

static void open_remotes(void *context) {
    static const worker_remote_handlers handlers = {.on_ready = on_ready, .on_lost = on_lost};
    cluster *c = context;
    hd_error error = {.text = ""};
    for (uint32_t i = 0; i < c->worker_count; i++) {
        if (worker_remote_open(rpc_loop_queue(c->loop), c->workers[i].address, NULL, &handlers, c, &c->remotes[i],
                               &error) != HD_OK)
            fail_msg("%s", error.text);
    }
}

static void close_remotes(void *context) {
    cluster *c = context;
    for (uint32_t i = 0; i < c->worker_count; i++) worker_remote_close(c->remotes[i]);
}

static void cluster_open(cluster *c, uint32_t lanes, uint32_t nodes, uint32_t replicas, uint32_t workers) {
    static int number;
    char name[32], lane_text[16], replica_text[16];
    snprintf(name, sizeof(name), "test-%d", ++number);
    snprintf(lane_text, sizeof(lane_text), "%u", lanes);
    snprintf(replica_text, sizeof(replica_text), "%u", replicas);
    *c = (cluster){.node_count = nodes, .worker_count = workers};
    const char *node_line[] = {hadal,         "attention-node", "--etcd", etcd.url,    "--cluster", name, "--listen",
                               "127.0.0.1:0", "--hot-memory",   "96M",    "--threads", "1",         NULL};
    const char *worker_line[] = {hadal,
                                 "worker",
                                 "--etcd",
                                 etcd.url,
                                 "--cluster",
                                 name,
                                 "--listen",
                                 "127.0.0.1:0",
                                 "--model",
                                 model_directory,
                                 "--kv-lanes",
                                 lane_text,
                                 "--kv-replicas",
                                 replica_text,
                                 "--kv-range",
                                 "1024",
                                 "--max-batch-tokens",
                                 "256",
                                 "--max-requests",
                                 "8",
                                 "--threads",
                                 "1",
                                 NULL};
    for (uint32_t i = 0; i < nodes; i++) start(&c->nodes[i], node_line);
    for (uint32_t i = 0; i < nodes; i++) await_joined(&c->nodes[i]);
    for (uint32_t i = 0; i < workers; i++) start(&c->workers[i], worker_line);
    for (uint32_t i = 0; i < workers; i++) await_joined(&c->workers[i]);
    running = c;
    assert_int_equal(rpc_loop_open("test", &c->loop), HD_OK);
    rpc_loop_call(c->loop, open_remotes, c);
    for (int i = 0; i < 200 && c->ready < workers; i++) nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    assert_int_equal(c->ready, workers);
    for (uint32_t i = 0; i < workers; i++) {
        c->rpcs[i].ops = &rpc_ops;
        client_init(&c->clients[i], &c->rpcs[i]);
    }
}

static void cluster_close(cluster *c) {
    rpc_loop_call(c->loop, close_remotes, c);
    rpc_loop_close(c->loop);
    for (uint32_t i = 0; i < c->worker_count; i++) {
        client_fini(&c->clients[i]);
        kill_process(&c->workers[i]);
    }
    for (uint32_t i = 0; i < c->node_count; i++) kill_process(&c->nodes[i]);
}

static client_request *request_of(cluster *c, uint32_t which, uint64_t id, uint64_t epoch) {
    client_request *r = client_request_new(&c->clients[which], id, prompt, PROMPT, ANSWER);
    r->request.sequence = id << 32;
    r->request.epoch = epoch;
    return r;
}

static void check_tokens(const uint32_t *tokens, uint64_t first, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        if (tokens[i] != expected.token_ids[first + i])
            fail_msg("token %llu is %u, not %u", (unsigned long long)(first + i), tokens[i],
                     expected.token_ids[first + i]);
    }
}

static void check_answered(const client_request *r, uint64_t first) {
    if (r->has_failed) fail_msg("%s: %s", hd_status_name(r->status), r->message);
    assert_string_equal(r->selection, "full");
    assert_int_equal(first + r->choices[0].token_count, ANSWER);
    check_tokens(r->choices[0].token_ids, first, r->choices[0].token_count);
}

/* ---- Tests ---- */

static void every_split_says_what_one_process_says(void **state) {
    static const uint32_t splits[][2] = {{1, 1}, {2, 2}, {1, 2}, {2, 4}};
    for (size_t i = 0; i < sizeof(splits) / sizeof(splits[0]); i++) {
        cluster c;
        cluster_open(&c, splits[i][0], splits[i][1], 1, 1);
        client_request *r = request_of(&c, 0, 1, 1);
        client_submit(r);
        client_wait(r);
        check_answered(r, 0);
        client_request_free(r);
        /* What it has left is found again. */
        r = request_of(&c, 0, 2, 1);
        client_submit(r);
        client_wait(r);
        check_answered(r, 0);
        assert_int_equal(r->cached_tokens, PROMPT / 128 * 128);
        client_request_free(r);
        cluster_close(&c);
        print_message("%u lanes, %u attention nodes: the same tokens\n", splits[i][0], splits[i][1]);
    }
}

/* The process dies when so many tokens have been said. */
typedef struct {
    process *victim;
    uint64_t after;
} ambush;

static void watch(client_request *r, const worker_event *event) {
    const ambush *a = r->watch_context;
    if (event->kind == WORKER_TOKEN && r->choices[0].token_count + 1 == a->after) kill(a->victim->pid, SIGKILL);
}

/* What a coordinator does: the same request, a newer epoch, with what was said so far. Returns what was found. */
static uint64_t go_on(cluster *c, uint32_t which, const client_request *broken, uint64_t epoch) {
    uint64_t said = broken->choices[0].token_count;
    assert_true(broken->has_failed);
    if (broken->status != HD_PEER_LOST && broken->status != HD_STALE)
        fail_msg("%s: %s", hd_status_name(broken->status), broken->message);
    check_tokens(broken->choices[0].token_ids, 0, said);
    worker_answer answer = {.token_ids = broken->choices[0].token_ids, .token_count = said};
    client_request *r = request_of(c, which, broken->request.id, epoch);
    r->request.answers = &answer;
    client_submit(r);
    client_wait(r);
    check_answered(r, said);
    uint64_t cached = r->cached_tokens;
    client_request_free(r);
    return cached;
}

static void a_killed_worker_is_followed_by_another_that_computes_nothing_again(void **state) {
    cluster c;
    cluster_open(&c, 1, 2, 1, 2);
    client_request *r = request_of(&c, 0, 5, 1);
    ambush a = {.victim = &c.workers[0], .after = 17};
    r->watch = watch;
    r->watch_context = &a;
    client_submit(r);
    client_wait(r);
    uint64_t said = r->choices[0].token_count, cached = go_on(&c, 1, r, 2);
    assert_true(said >= 17);
    /* All that was said before is there, and perhaps the step that nobody heard of. */
    assert_in_range(cached, PROMPT + said - 2, PROMPT + said);
    client_request_free(r);
    cluster_close(&c);
}

static void a_killed_attention_node_without_replica_costs_a_prefill(void **state) {
    cluster c;
    cluster_open(&c, 1, 3, 1, 1);
    client_request *r = request_of(&c, 0, 6, 1);
    /* Three ranges lie on three nodes, whichever that is. */
    ambush a = {.victim = &c.nodes[1], .after = 9};
    r->watch = watch;
    r->watch_context = &a;
    client_submit(r);
    client_wait(r);
    uint64_t cached = go_on(&c, 0, r, 2);
    assert_in_range(cached, 0, 2048);
    client_request_free(r);
    cluster_close(&c);
}

static void a_killed_attention_node_with_a_replica_is_not_noticed(void **state) {
    cluster c;
    cluster_open(&c, 1, 2, 2, 1);
    client_request *r = request_of(&c, 0, 7, 1);
    ambush a = {.victim = &c.nodes[0], .after = 9};
    r->watch = watch;
    r->watch_context = &a;
    client_submit(r);
    client_wait(r);
    check_answered(r, 0);
    client_request_free(r);
    /* And the one that is left takes new requests. */
    r = request_of(&c, 0, 8, 1);
    client_submit(r);
    client_wait(r);
    check_answered(r, 0);
    client_request_free(r);
    cluster_close(&c);
}

/* ---- What one process says ---- */

static int open_all(void **state) {
    etcd_server_start(&etcd);
    uint64_t random = 11;
    for (uint32_t i = 0; i < PROMPT; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        prompt[i] = 6 + (uint32_t)((random >> 33) % 4000);
    }
    rig r;
    rig_open(
        &r, model_directory,
        &(rig_options){.dtype = HD_BF16, .threads = 2, .hot_bytes = 128 << 20, .rows_max = 512, .sequences_max = 4});
    worker_config config = {.model_name = "alone",
                            .model = r.model,
                            .weights = r.weights,
                            .kernels = r.kernels,
                            .pool = r.pool,
                            .attention = r.attention,
                            .batch_tokens_max = 512,
                            .requests_max = 4,
                            .running_max = 4};
    worker *alone = NULL;
    hd_error error = {.text = ""};
    if (worker_open(&config, &alone, &error) != HD_OK) fail_msg("%s", error.text);
    client c;
    client_init(&c, worker_rpc_of(alone));
    client_request *request = client_request_new(&c, 1, prompt, PROMPT, ANSWER);
    client_submit(request);
    client_wait(request);
    assert_int_equal(request->choices[0].token_count, ANSWER);
    expected.token_ids = calloc(ANSWER, sizeof(uint32_t));
    memcpy(expected.token_ids, request->choices[0].token_ids, ANSWER * sizeof(uint32_t));
    client_request_free(request);
    worker_close(alone, 0);
    client_fini(&c);
    rig_close(&r);
    return 0;
}

static int close_all(void **state) {
    etcd_server_stop(&etcd);
    free(expected.token_ids);
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    hadal = argv[1];
    model_directory = argv[2];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_split_says_what_one_process_says),
        cmocka_unit_test(a_killed_worker_is_followed_by_another_that_computes_nothing_again),
        cmocka_unit_test(a_killed_attention_node_without_replica_costs_a_prefill),
        cmocka_unit_test(a_killed_attention_node_with_a_replica_is_not_noticed),
    };
    return cmocka_run_group_tests_name("roles", tests, open_all, close_all);
}
