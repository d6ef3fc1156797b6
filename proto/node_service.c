/* node_service.c - see node_service.h. */
#include "proto/node_service.h"

static void fill_answer(node_service *s, rpc_unary_answer *answer) {
    node_usage usage = {0};
    s->usage(s->context, &usage);
    hadal__node_status__init(&s->answer);
    s->answer.id = (char *)s->node->id;
    s->answer.role = (char *)s->node->role;
    s->answer.state = (char *)membership_state_name((membership_state)atomic_load(&s->state));
    s->answer.kv_bytes = usage.kv_bytes;
    s->answer.kv_capacity = usage.kv_capacity;
    s->answer.sequences = usage.sequences;
    s->answer.appended_tokens = usage.appended_tokens;
    s->answer.safe_to_delete = !usage.knows_safety ? 0 : usage.is_safe ? 2 : 1;
    answer->message = &s->answer.base;
}

static hd_status on_status(void *context, const ProtobufCMessage *request, rpc_unary_answer *answer, hd_error *error) {
    fill_answer(context, answer);
    return HD_OK;
}

static hd_status on_drain(void *context, const ProtobufCMessage *request, rpc_unary_answer *answer, hd_error *error) {
    node_service *s = context;
    bool is_draining = ((const Hadal__DrainRequest *)request)->is_draining;
    atomic_store(&s->state, is_draining ? NODE_DRAINING : NODE_READY);
    s->on_drain(s->context, is_draining);
    fill_answer(s, answer);
    return HD_OK;
}

void node_service_methods(node_service *s, rpc_queue *queue, rpc_method methods[NODE_SERVICE_METHODS]) {
    s->status = (rpc_unary_method){&hadal__node_status_request__descriptor, on_status, s};
    s->drain = (rpc_unary_method){&hadal__drain_request__descriptor, on_drain, s};
    methods[0] =
        (rpc_method){.path = NODE_STATUS_METHOD, .queue = queue, .on_open = rpc_unary_serve, .context = &s->status};
    methods[1] =
        (rpc_method){.path = NODE_DRAIN_METHOD, .queue = queue, .on_open = rpc_unary_serve, .context = &s->drain};
}
