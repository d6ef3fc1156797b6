/* roles.h - the processes of a cluster, opened and closed as the binary's subcommands do, over the simulated services.
 *
 *   started --its first task runs--> UP --role_stop (as SIGTERM)--> drains --> ENDED;   role_kill (as kill -9): at once
 *
 * Threads: events and the runner call these; the tasks are the roles' own. */
#ifndef TESTS_SIMULATION_ROLES_H
#define TESTS_SIMULATION_ROLES_H

#include "attention-node/attention_service.h"
#include "attention-node/node_set.h"
#include "coordinator/router.h"
#include "proto/node_service.h"
#include "tests/simulation/machine.h"
#include "worker/worker_service.h"

typedef struct cluster_shape {
    uint32_t coordinators, workers, nodes;
    uint32_t lanes, replicas, micro_batches, batch_tokens, running_max, requests_max;
    uint64_t node_bytes, stage_bytes, range_tokens; /* stage: for prompts, in a worker; or 0 */
    uint64_t orphan_ms, answer_ms, late_ms;
} cluster_shape;

typedef enum { ROLE_COORDINATOR, ROLE_WORKER, ROLE_NODE } role_kind;

typedef struct role {
    role_kind kind;
    const cluster_shape *shape;
    process *process;
    char address[32];
    bool is_up, is_stopping, has_ended, is_draining, is_told_to_drain;

    rpc_loop *loop;
    membership *membership;
    membership_node node;
    rpc_server *server;
    node_service control;
    hd_pool *pool;
    transport *transport, *pages; /* pages: an attention node's */
    attention_service *service;   /* an attention node's */
    node_set *set;                /* a worker's */
    struct worker *worker;
    worker_service *sessions;
    router *router; /* a coordinator's */
    model_set models;
} role;

/* The number makes the name and, if it comes again, the same address. */
void role_start(role *r, role_kind kind, unsigned number, const cluster_shape *shape);
void role_stop(role *r);
void role_kill(role *r);
void role_drain(role *r, bool is_draining); /* the operator's order, at the node itself */

/* A worker with its own engine and nobody else: what tokens are compared with. On a task. */
worker_rpc *single_open(const cluster_shape *shape);
void single_close(worker_rpc *rpc);

#endif
