/* roles.c - see roles.h. */
#include "tests/simulation/roles.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attention-node/engine.h"
#include "tests/simulation/hash_kernels.h"
#include "tests/simulation/membership.h"
#include "tests/simulation/network.h"
#include "tests/simulation/tiny_model.h"
#include "worker/worker.h"

#define LOOK_NS (20 * MACHINE_MS)
#define DRAIN_NS (20 * MACHINE_S)
#define DRAIN_LEAST_NS (300 * MACHINE_MS)
#define WAIT_MS 2000u /* for attention nodes, each time */
#define LINK_MS 1000u

static const char *const kind_names[] = {"coordinator", "worker", "attention-node"};

static void must(hd_status status, const hd_error *error) {
    if (status == HD_OK) return;
    machine_fail("a role does not start: %s (%s)", error->text, hd_status_name(status));
    machine_wait(error, MACHINE_NEVER); /* the machine stops here */
}

/* ---- What all of them do ---- */

static void open_membership(void *context) {
    role *r = context;
    r->membership = membership_simulated_open(rpc_loop_queue(r->loop));
}

static void close_membership(void *context) {
    role *r = context;
    r->membership->ops->close(r->membership);
}

static void announce(void *context) {
    role *r = context;
    r->membership->ops->announce(r->membership, &r->node);
}

static void join(role *r) {
    rpc_loop_call(r->loop, announce, r);
    r->is_up = true;
    machine_tell("up");
}

static void set_state(role *r, bool is_draining) {
    r->is_draining = is_draining;
    r->node.state = is_draining ? NODE_DRAINING : NODE_READY;
    rpc_loop_call(r->loop, announce, r);
}

static void open_cluster(role *r) {
    hd_error error = {.text = ""};
    must(rpc_loop_open("control", &r->loop), &error);
    rpc_loop_call(r->loop, open_membership, r);
    r->node = (membership_node){.version_min = MEMBERSHIP_VERSION_MIN, .version_max = MEMBERSHIP_VERSION_MAX};
    snprintf(r->node.id, sizeof(r->node.id), "%s", r->process->name);
    snprintf(r->node.role, sizeof(r->node.role), "%s", kind_names[r->kind]);
    snprintf(r->node.address, sizeof(r->node.address), "%s", r->address);
}

static void sleep_ns(uint64_t time_ns) {
    machine_wait(&time_ns, the_machine.now_ns + time_ns);
}

static void await_stop(role *r) {
    while (!r->is_stopping) machine_wait(r, MACHINE_NEVER);
    machine_tell("SIGTERM");
}

static void serve(role *r, rpc_method *methods, unsigned method_count, void (*usage)(void *, node_usage *),
                  void (*on_drain)(void *, bool)) {
    hd_error error = {.text = ""};
    r->control.node = &r->node;
    r->control.usage = usage;
    r->control.on_drain = on_drain;
    r->control.context = r;
    node_service_methods(&r->control, rpc_loop_queue(r->loop), methods + method_count);
    rpc_server_config server = {
        .listen_address = r->address, .methods = methods, .method_count = method_count + NODE_SERVICE_METHODS};
    must(rpc_server_open(&server, &r->server, &error), &error);
}

/* ---- An attention node ---- */

static void node_usage_now(void *context, node_usage *usage) {
    role *r = context;
    attention_service_state state;
    attention_service_state_read(r->service, &state);
    *usage =
        (node_usage){.kv_bytes = (state.stats.blocks_sequences + state.stats.blocks_reserved) * state.stats.block_bytes,
                     .kv_capacity = r->node.kv_capacity,
                     .sequences = state.stats.sequences,
                     .knows_safety = true,
                     .is_safe = state.is_drained};
}

static void drain_node(void *context, bool is_draining) {
    role *r = context;
    attention_service_set_draining(r->service, is_draining);
    set_state(r, is_draining);
}

static void *node_main(void *context) {
    role *r = context;
    hd_error error = {.text = ""};
    open_cluster(r);
    attention_service_config config = {.hot_bytes = r->shape->node_bytes,
                                       .links_max = 16,
                                       .orphan_ms = r->shape->orphan_ms,
                                       .kernels = hash_kernels()};
    must(hd_pool_open(1, &r->pool), &error);
    config.pool = r->pool;
    must(transport_grpc_open(NULL, &r->transport), &error);
    must(transport_grpc_open(NULL, &r->pages), &error);
    config.pages = r->pages;
    must(attention_service_open(&config, &r->service), &error);
    r->node.kv_capacity = config.hot_bytes;
    rpc_method methods[2 + NODE_SERVICE_METHODS];
    must(transport_grpc_listen(r->transport, "step", attention_service_accept, r->service, &methods[0]), &error);
    must(transport_grpc_listen(r->pages, "pages", attention_service_accept_pages, r->service, &methods[1]), &error);
    serve(r, methods, 2, node_usage_now, drain_node);
    must(attention_service_start(r->service, r->transport), &error);
    join(r);
    await_stop(r);

    drain_node(r, true);
    uint64_t until = the_machine.now_ns + DRAIN_NS;
    for (attention_service_state state; the_machine.now_ns < until; sleep_ns(5 * LOOK_NS)) {
        attention_service_state_read(r->service, &state);
        if (state.is_drained) break;
    }
    rpc_loop_call(r->loop, close_membership, r);
    attention_service_close(r->service);
    r->service = NULL;
    rpc_server_close(r->server);
    r->transport->ops->close(r->transport);
    r->pages->ops->close(r->pages);
    rpc_loop_close(r->loop);
    hd_pool_close(r->pool);
    r->has_ended = true;
    machine_tell("ended");
    return NULL;
}

/* ---- A worker ---- */

static void on_node(void *context, const membership_node *told) {
    role *r = context;
    if (strcmp(told->role, "attention-node") != 0) return;
    (void)node_set_put(r->set, told->id, told->address, told->state != NODE_READY);
}

static void on_gone(void *context, const char *id) {
    node_set_remove(((role *)context)->set, id);
}

static void follow(void *context) {
    static const membership_handlers handlers = {.on_node = on_node, .on_gone = on_gone};
    role *r = context;
    (void)r->membership->ops->follow(r->membership, &handlers, r);
}

static void open_nodes(role *r) {
    hd_error error = {.text = ""};
    const cluster_shape *shape = r->shape;
    attention_layer_table layers;
    must(transport_grpc_open(NULL, &r->transport), &error);
    must(worker_layer_table(tiny_config(), HD_F32, &layers), &error);
    node_set_config config = {.sharded = {.layers = layers,
                                          .kv_dtype = HD_F32,
                                          .step_rows_max = shape->batch_tokens,
                                          .sequences_max = shape->running_max,
                                          .range_min = shape->range_tokens,
                                          .replicas = shape->replicas,
                                          .late_ms = shape->late_ms,
                                          .kernels = hash_kernels(),
                                          .pool = r->pool},
                              .lanes = shape->lanes,
                              .stage_bytes = shape->stage_bytes,
                              .transport = r->transport,
                              .model_name = TINY_NAME,
                              .answer_ms = shape->answer_ms,
                              .link_ms = LINK_MS};
    memcpy(config.fingerprint, tiny_weights()->fingerprint, sizeof(config.fingerprint));
    must(node_set_open(&config, &r->set, &error), &error);
    free((void *)layers.streams);
    free((void *)layers.layers);
    rpc_loop_call(r->loop, follow, r);
    while (node_set_wait(r->set, WAIT_MS, &error) != HD_OK && !r->is_stopping) {}
}

static worker_config worker_config_of(const cluster_shape *shape, hd_pool *pool, attention *keeper) {
    return (worker_config){.model_name = TINY_NAME,
                           .model = tiny_config(),
                           .weights = tiny_weights(),
                           .kernels = hash_kernels(),
                           .pool = pool,
                           .attention = keeper,
                           .batch_tokens_max = shape->batch_tokens,
                           .requests_max = shape->requests_max,
                           .running_max = shape->running_max,
                           .micro_batches = shape->micro_batches};
}

static void worker_usage_now(void *context, node_usage *usage) {
    role *r = context;
    *usage = (node_usage){.kv_capacity = r->node.kv_capacity, .sequences = worker_service_requests(r->sessions)};
}

static void drain_worker(void *context, bool is_draining) {
    role *r = context;
    worker_service_set_draining(r->sessions, is_draining);
    set_state(r, is_draining);
}

static void *worker_main(void *context) {
    role *r = context;
    hd_error error = {.text = ""};
    open_cluster(r);
    must(hd_pool_open(1, &r->pool), &error);
    open_nodes(r);
    worker_config config = worker_config_of(r->shape, r->pool, node_set_attention(r->set));
    must(worker_open(&config, &r->worker, &error), &error);
    worker_service_config sessions = {.worker = worker_rpc_of(r->worker),
                                      .loop = r->loop,
                                      .node_id = r->node.id,
                                      .model_directory = "/nonexistent",
                                      .fingerprint = tiny_weights()->fingerprint};
    must(worker_service_open(&sessions, &r->sessions, &error), &error);
    rpc_method methods[WORKER_SERVICE_METHODS + NODE_SERVICE_METHODS];
    worker_service_methods(r->sessions, methods);
    serve(r, methods, WORKER_SERVICE_METHODS, worker_usage_now, drain_worker);
    snprintf(r->node.model, sizeof(r->node.model), "%s", TINY_NAME);
    snprintf(r->node.fingerprint, sizeof(r->node.fingerprint), "5a");
    join(r);
    await_stop(r);

    drain_worker(r, true);
    uint64_t begin = the_machine.now_ns, until = begin + DRAIN_NS;
    while (the_machine.now_ns < until &&
           (worker_service_requests(r->sessions) > 0 || the_machine.now_ns - begin < DRAIN_LEAST_NS))
        sleep_ns(LOOK_NS);
    rpc_loop_call(r->loop, close_membership, r);
    rpc_server_close(r->server);
    worker_close(r->worker, 0);
    node_set_close(r->set);
    r->transport->ops->close(r->transport);
    rpc_loop_close(r->loop);
    worker_service_close(r->sessions);
    hd_pool_close(r->pool);
    r->has_ended = true;
    machine_tell("ended");
    return NULL;
}

/* ---- A coordinator ---- */

static void *coordinator_main(void *context) {
    role *r = context;
    hd_error error = {.text = ""};
    open_cluster(r);
    router_config config = {.loop = r->loop, .membership = r->membership, .models = &r->models};
    must(router_open(&config, &r->router, &error), &error);
    join(r);
    await_stop(r);
    router_close(r->router);
    rpc_loop_call(r->loop, close_membership, r);
    rpc_loop_close(r->loop);
    r->has_ended = true;
    machine_tell("ended");
    return NULL;
}

/* ---- Processes ---- */

void role_start(role *r, role_kind kind, unsigned number, const cluster_shape *shape) {
    static void *(*const mains[])(void *) = {coordinator_main, worker_main, node_main};
    static const char *const prefixes[] = {"coordinator", "worker", "node"};
    char name[24];
    *r = (role){.kind = kind, .shape = shape};
    snprintf(name, sizeof(name), "%s-%u", prefixes[kind], number);
    snprintf(r->address, sizeof(r->address), "%s:1", name);
    r->process = machine_process(name);
    machine_spawn(r->process, mains[kind], r);
}

void role_stop(role *r) {
    r->is_stopping = true;
    machine_wake(r, true);
}

void role_kill(role *r) {
    machine_tell("kill -9 %s", r->process->name);
    r->is_up = false;
    machine_kill(r->process);
    rpc_simulated_killed(r->process);
}

/* The last order counts, whenever the process comes to it. */
static void *drain_main(void *context) {
    role *r = context;
    if (!r->is_stopping && r->is_draining != r->is_told_to_drain) r->control.on_drain(r, r->is_told_to_drain);
    return NULL;
}

void role_drain(role *r, bool is_draining) {
    r->is_told_to_drain = is_draining;
    if (!r->is_up || r->is_stopping) return;
    machine_tell("%s %s", is_draining ? "drain" : "undrain", r->process->name);
    machine_spawn(r->process, drain_main, r);
}

/* ---- Alone ---- */

typedef struct single {
    hd_pool *pool;
    attention *engine;
    worker *worker;
} single;
static single alone;

worker_rpc *single_open(const cluster_shape *shape) {
    hd_error error = {.text = ""};
    must(hd_pool_open(1, &alone.pool), &error);
    engine_config engine = {.kv_dtype = HD_F32,
                            .hot_bytes = 4 * shape->node_bytes,
                            .step_rows_max = shape->batch_tokens,
                            .sequences_max = shape->running_max,
                            .kernels = hash_kernels(),
                            .pool = alone.pool};
    must(worker_layer_table(tiny_config(), HD_F32, &engine.layers), &error);
    must(engine_open(&engine, &alone.engine, &error), &error);
    worker_config config = worker_config_of(shape, alone.pool, alone.engine);
    must(worker_open(&config, &alone.worker, &error), &error);
    return worker_rpc_of(alone.worker);
}

void single_close(worker_rpc *rpc) {
    worker_close(alone.worker, 0);
    alone.engine->ops->close(alone.engine);
    hd_pool_close(alone.pool);
}
