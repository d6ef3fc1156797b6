/* node_service.h - the service that every worker and attention node has: its state, and the order to drain.
 *
 * Threads: everything on the thread of the queue; set_state from any. */
#ifndef PROTO_NODE_SERVICE_H
#define PROTO_NODE_SERVICE_H

#include "proto/membership.h"
#include "proto/node.pb-c.h"
#include "proto/rpc_unary.h"

#define NODE_STATUS_METHOD "/hadal.Node/Status"
#define NODE_DRAIN_METHOD "/hadal.Node/Drain"
#define NODE_SERVICE_METHODS 2u

typedef struct node_usage {
    uint64_t kv_bytes, kv_capacity, sequences;
    uint64_t appended_tokens;   /* of an attention node, since its start */
    bool knows_safety, is_safe; /* to delete; who does not know leaves it to what is counted above */
} node_usage;

typedef struct node_service {
    const membership_node *node;                       /* id and role; borrowed */
    void (*usage)(void *context, node_usage *usage);   /* now */
    void (*on_drain)(void *context, bool is_draining); /* the order: changes the state and announces it */
    void *context;
    _Atomic int state; /* membership_state */
    rpc_unary_method status, drain;
    Hadal__NodeStatus answer;
} node_service;

/* node, usage, on_drain and context have been set. */
void node_service_methods(node_service *service, rpc_queue *queue, rpc_method methods[NODE_SERVICE_METHODS]);

#endif
