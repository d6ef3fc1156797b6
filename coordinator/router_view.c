/* router_view.c - what an operator sees of the cluster, and what he can ask of it. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "coordinator/operator_rows.h"
#include "coordinator/router_state.h"
#include "proto/node.pb-c.h"
#include "proto/node_service.h"

#define ASK_DEADLINE_MS 1000u
#define DRAIN_DEADLINE_MS 5000u

/* -- nodes that are not workers -- */

static watched_node *find_node(router *r, const char *id) {
    watched_node *n = r->nodes;
    while (n != NULL && strcmp(n->node.id, id) != 0) n = n->next;
    return n;
}

static void hang_up(watched_node *n) {
    if (n->asking != NULL) rpc_unary_drop(n->asking);
    rpc_channel_close(n->channel);
    n->asking = NULL;
    n->channel = NULL;
}

void router_watch_node(router *r, const membership_node *node) {
    watched_node *n = find_node(r, node->id);
    if (n == NULL) {
        n = calloc(1, sizeof(*n));
        if (n == NULL) return;
        n->router = r;
        n->next = r->nodes;
        r->nodes = n;
    }
    if (strcmp(n->node.address, node->address) != 0) hang_up(n); /* another process under its name */
    n->node = *node;
    n->is_known = true;
    n->kv_capacity = node->kv_capacity;
    bool has_service = strcmp(node->role, "attention-node") == 0;
    hd_error error;
    if (has_service && n->channel == NULL)
        rpc_channel_open(&(rpc_channel_config){.address = node->address, .tls = r->config.tls}, &n->channel, &error);
}

static void free_node(router *r, watched_node *n) {
    watched_node **at = &r->nodes;
    while (*at != n) at = &(*at)->next;
    *at = n->next;
    hang_up(n);
    free(n);
}

/* Who still answers is shown, as gone, until it answers no more. */
void router_unwatch_node(router *r, const char *id) {
    watched_node *n = find_node(r, id);
    if (n == NULL) return;
    n->is_known = false;
    n->node.state = NODE_GONE;
    if (n->channel == NULL) free_node(r, n);
}

void router_close_nodes(router *r) {
    while (r->nodes != NULL) free_node(r, r->nodes);
}

static void on_status(void *context, const ProtobufCMessage *message, const rpc_end *end) {
    watched_node *n = context;
    const Hadal__NodeStatus *status = (const Hadal__NodeStatus *)message;
    n->asking = NULL;
    if (end->status != HD_OK && !n->is_known) free_node(n->router, n);
    if (end->status != HD_OK) return;
    n->kv_bytes = status->kv_bytes;
    n->kv_capacity = status->kv_capacity;
    n->sequences = status->sequences;
    n->appended_tokens = status->appended_tokens;
    n->safety = status->safe_to_delete;
}

void router_ask_nodes(router *r) {
    rpc_unary_config config = {
        .method = NODE_STATUS_METHOD, .answer_type = &hadal__node_status__descriptor, .deadline_ms = ASK_DEADLINE_MS};
    Hadal__NodeStatusRequest message = HADAL__NODE_STATUS_REQUEST__INIT;
    for (watched_node *n = r->nodes; n != NULL; n = n->next) {
        if (n->channel != NULL && n->asking == NULL)
            rpc_unary_start(n->channel, r->queue, &config, &message.base, on_status, n, &n->asking);
    }
}

/* -- JSON -- */

typedef struct writing {
    router *router;
    text_buffer *out;
} writing;

static operator_node row_of(const membership_node *node) {
    return (operator_node){.id = node->id,
                           .role = node->role,
                           .state = membership_state_name(node->state),
                           .address = node->address,
                           .model = node->model};
}

static void write_nodes(void *context) {
    writing *w = context;
    bool is_first = true;
    text_buffer_text(w->out, "[");
    for (const worker_link *link = w->router->links; link != NULL; link = link->next) {
        const worker_load *load = &link->load;
        uint64_t taken = load->blocks_sequences + load->blocks_reserved;
        uint64_t bytes = load->blocks_total > 0 ? link->node.kv_capacity / load->blocks_total * taken : 0;
        uint64_t sequences = (uint64_t)load->running + load->waiting;
        /* A worker keeps nothing that anybody would miss once it runs nothing; what is ours is known. */
        bool is_idle = link->running == 0 && (!link->is_connected || sequences == 0);
        bool is_leaving = link->node.state != NODE_READY && !router_link_takes(link);
        operator_node row = row_of(&link->node);
        row.kv_bytes = bytes;
        row.kv_capacity = link->node.kv_capacity;
        row.sequences = sequences > link->running ? sequences : link->running;
        row.is_safe = is_leaving && is_idle;
        operator_rows_node(w->out, is_first, &row);
        is_first = false;
    }
    for (const watched_node *n = w->router->nodes; n != NULL; n = n->next) {
        /* What the node says itself is of one moment; what is counted here may be older than its draining. */
        bool is_empty = n->safety != 0 ? n->safety == 2 : n->sequences == 0 && n->kv_bytes == 0;
        operator_node row = row_of(&n->node);
        row.kv_bytes = n->kv_bytes;
        row.kv_capacity = n->kv_capacity;
        row.sequences = n->sequences;
        row.is_safe = n->node.state != NODE_READY && is_empty;
        operator_rows_node(w->out, is_first, &row);
        is_first = false;
    }
    text_buffer_text(w->out, "]");
}

void router_write_nodes(router *r, text_buffer *out) {
    writing w = {r, out};
    rpc_loop_call(r->config.loop, write_nodes, &w);
}

static void write_sequences(void *context) {
    writing *w = context;
    bool is_first = true;
    uint64_t now = router_now_ns(w->router);
    text_buffer_text(w->out, "[");
    for (const routed *q = w->router->requests; q != NULL; q = q->next) {
        uint64_t said = 0;
        for (uint32_t i = 0; i < q->request.choices; i++) said += q->answers[i].token_count;
        const char *state = q->link == NULL ? "waiting" : q->is_moving ? "moving" : said > 0 ? "decoding" : "prefill";
        operator_sequence row = {
            .id = q->request.sequence,
            .model = q->model->description->model_name,
            .worker = q->link != NULL ? q->link->node.id : NULL,
            .state = state,
            .prompt_tokens = q->request.prompt_count,
            .prompt_done = q->prompt_done,
            .generated_tokens = said,
            .choices = q->request.choices,
            .epoch = q->request.epoch,
            .age_s = (now - q->begun_ns) / 1000000000u,
        };
        operator_rows_sequence(w->out, is_first, &row);
        is_first = false;
    }
    text_buffer_text(w->out, "]");
}

void router_write_sequences(router *r, text_buffer *out) {
    writing w = {r, out};
    rpc_loop_call(r->config.loop, write_sequences, &w);
}

/* -- orders -- */

typedef struct node_search {
    router *router;
    const char *id;
    char address[RPC_ADDRESS_BYTES];
    bool is_found;
} node_search;

static void search_node(void *context) {
    node_search *s = context;
    const membership_node *node = NULL;
    for (const worker_link *link = s->router->links; link != NULL; link = link->next) {
        if (strcmp(link->node.id, s->id) == 0) node = &link->node;
    }
    const watched_node *n = find_node(s->router, s->id);
    if (n != NULL) node = &n->node;
    s->is_found = node != NULL;
    if (node != NULL) snprintf(s->address, sizeof(s->address), "%s", node->address);
}

typedef struct node_answer {
    router *router;
    const char *id;
    uint32_t safety;
} node_answer;

/* What was heard before the order says nothing of what is so behind it. */
static void take_answer(void *context) {
    const node_answer *a = context;
    watched_node *n = find_node(a->router, a->id);
    if (n == NULL) return;
    if (n->asking != NULL) rpc_unary_drop(n->asking);
    n->asking = NULL;
    n->safety = a->safety;
}

hd_status router_drain(router *r, const char *node_id, bool is_draining, hd_error *error) {
    node_search search = {.router = r, .id = node_id};
    rpc_loop_call(r->config.loop, search_node, &search);
    if (!search.is_found)
        return hd_error_set(error, HD_NOT_FOUND, "there is no node '%.100s'; `hadal nodes` lists those that are there",
                            node_id);
    rpc_channel *channel;
    hd_status status =
        rpc_channel_open(&(rpc_channel_config){.address = search.address, .tls = r->config.tls}, &channel, error);
    if (status != HD_OK) return status;
    rpc_unary_config config = {
        .method = NODE_DRAIN_METHOD, .answer_type = &hadal__node_status__descriptor, .deadline_ms = DRAIN_DEADLINE_MS};
    Hadal__DrainRequest message = HADAL__DRAIN_REQUEST__INIT;
    message.is_draining = is_draining;
    ProtobufCMessage *answer = NULL;
    hd_error problem;
    status = rpc_unary_wait(channel, &config, &message.base, &answer, &problem);
    if (status == HD_OK) {
        node_answer taken = {r, node_id, ((const Hadal__NodeStatus *)answer)->safe_to_delete};
        rpc_loop_call(r->config.loop, take_answer, &taken);
        protobuf_c_message_free_unpacked(answer, NULL);
    } else {
        hd_error_write(error, "node %s at %s does not take it: %s", node_id, search.address, problem.text);
    }
    rpc_channel_close(channel);
    if (status == HD_OK) hd_log(HD_LOG_INFO, is_draining ? "drain_asked" : "undrain_asked", "node=%s", node_id);
    return status;
}

typedef struct sequence_search {
    router *router;
    uint64_t sequence;
    worker_rpc *rpc;
    uint64_t id;
} sequence_search;

static void search_sequence(void *context) {
    sequence_search *s = context;
    for (routed *q = s->router->requests; q != NULL; q = q->next) {
        if (q->request.sequence != s->sequence) continue;
        s->rpc = &q->model->rpc;
        s->id = q->client->id;
    }
}

hd_status router_cancel(router *r, const char *sequence, hd_error *error) {
    char *end = NULL;
    sequence_search search = {.router = r, .sequence = strtoull(sequence, &end, 16)};
    if (end != sequence && *end == '\0') rpc_loop_call(r->config.loop, search_sequence, &search);
    if (search.rpc == NULL) {
        return hd_error_set(error, HD_NOT_FOUND,
                            "there is no sequence '%.40s' here; `hadal sequences` lists those that are there",
                            sequence);
    }
    search.rpc->ops->cancel(search.rpc, search.id, UINT32_MAX);
    return HD_OK;
}
