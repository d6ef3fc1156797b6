/* router_state.h - the inside of a router, shared by router.c (requests), router_workers.c (connections),
 * router_choice.c (who gets what), router_view.c (the operator's view) and router_metrics.c (what nodes have
 * counted). All of it is the loop thread's, but what says otherwise. */
#ifndef COORDINATOR_ROUTER_STATE_H
#define COORDINATOR_ROUTER_STATE_H

#include <pthread.h>

#include "base/clock.h"
#include "coordinator/router.h"
#include "proto/worker_remote.h"

#define ROUTER_REQUESTS_MAX 16384u
#define ROUTER_HINTS 65536u /* a power of two */
#define ROUTER_HINT_TOKENS 128u
#define ROUTER_SELECTION_BYTES 256u

typedef struct prefix_hint {
    uint64_t hash; /* of the tenant's salt and the tokens so far */
    uint64_t link; /* its name */
} prefix_hint;

typedef struct route_model {
    worker_rpc rpc; /* first: what submits go to */
    router *router;
    struct route_model *next;
    Hadal__Description *description;
    served_model served;
    text_model *text;
    bool is_ready; /* served */
    prefix_hint hints[ROUTER_HINTS];
    pthread_mutex_t lock; /* guards load, which any thread may ask for */
    worker_load load;
    pthread_t opener; /* the thread that reads the tokenizer */
    bool has_opener;
    rpc_tag opened;
    hd_error problem;
} route_model;

typedef struct worker_link {
    router *router;
    struct worker_link *next;
    uint64_t name;
    membership_node node;
    bool is_known;          /* announced; else gone */
    bool has_drained;       /* it was not ready when its announcement vanished: it left, and was not forgotten */
    bool has_said_draining; /* itself, besides what is announced */
    worker_remote *remote;
    bool is_connected, is_full; /* is_full: refused a request since the last load report */
    route_model *model;
    worker_load load;
    uint32_t running; /* requests of ours */
    unsigned failures;
    rpc_timer retry;
} worker_link;

typedef struct routed {
    worker_request request; /* first: what the worker sees */
    worker_request *client;
    router *router;
    route_model *model;
    struct routed *next, *previous;
    rpc_tag start;
    worker_link *link;      /* NULL: waiting */
    uint64_t avoid;         /* a link that has just failed or refused it; 0: none */
    worker_answer *answers; /* [choices]; token_ids is ours to write */
    /* What its first worker made of its selection: whoever goes on with it makes the same of it. */
    char selection[ROUTER_SELECTION_BYTES];
    uint64_t cancelled[WORKER_CHOICES_MAX / 64];
    uint64_t begun_ns, waiting_since_ns, prompt_done;
    uint32_t ended, failures;
    bool has_started, is_moving, is_cancelled;
} routed;

typedef struct watched_node { /* of any role but worker: what the operator sees */
    struct watched_node *next;
    router *router;
    membership_node node;
    bool is_known;
    rpc_channel *channel;
    rpc_unary *asking;
    uint64_t kv_bytes, kv_capacity, sequences, appended_tokens;
    uint32_t safety; /* as the node said, in numbers of node.proto */
} watched_node;

struct router {
    router_config config;
    hd_clock clock;
    rpc_queue *queue;
    route_model *models;
    worker_link *links;
    watched_node *nodes;
    routed *requests;
    uint64_t sequence_base, next_sequence, next_link;
    rpc_timer tick;
    _Atomic uint32_t open; /* requests; any thread */
    hd_counter *takeovers;
};

static inline uint64_t router_now_ns(const router *r) {
    return r->clock.monotonic_ns(r->clock.context);
}
static inline bool routed_is_cancelled(const routed *q, uint32_t choice) {
    return q->is_cancelled || (q->cancelled[choice / 64] >> choice % 64 & 1);
}

/* router.c */
extern const worker_rpc_ops router_rpc_ops;
void router_run_waiting(router *r);                  /* gives waiting requests to workers, as far as there are any */
void router_move_from(router *r, worker_link *link); /* a drained worker's requests, to others, where there are any */

/* router_workers.c */
void router_on_node(void *context, const membership_node *node);
void router_on_gone(void *context, const char *id);
bool router_link_takes(const worker_link *link); /* new work */
void router_close_links(router *r);

/* router_choice.c */
worker_link *router_choose(router *r, const routed *q); /* NULL: nobody now */
void router_remember(router *r, const routed *q, const worker_link *link);

/* router_view.c */
void router_watch_node(router *r, const membership_node *node);
void router_unwatch_node(router *r, const char *id);
void router_ask_nodes(router *r);
void router_close_nodes(router *r);

#endif
