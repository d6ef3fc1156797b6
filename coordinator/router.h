/* router.h - which worker answers a request, and which one takes over when that one dies or is drained.
 *
 *   a request:  submit --> WAITING --a worker is chosen--> RUNNING --its last event--> gone
 *                             '<-- the worker is lost, or is drained: what has been said stays --'
 *
 *   1. Everything that another worker needs to go on is here: prompt, sampling, and every token of every choice. A
 *      token is handed to the client once, in order; a takeover continues at the position behind the last
 *      (worker_rpc.h, answers).
 *   2. A worker is chosen by what it would still have to compute (the prompt without the longest prefix that it has
 *      probably cached, and what already waits there), among those that have the KV memory; the prefixes are hints
 *      from earlier requests, and the worker decides.
 *   3. A request that was begun is never refused because workers are full or gone: it waits, at most patience_ms with
 *      no worker at all.
 *   4. This process alone mints names and epochs of its requests' sequences; an epoch grows with every takeover.
 *   5. What a request's selection has come to at its first worker goes with it: what its queries see does not depend on
 *      who computes them.
 * Membership only says who may get new work: a node whose announcement has vanished keeps what it runs. New work goes
 * there only where all workers of the model have vanished, so that an etcd that forgets everybody stops nobody.
 * Threads: router_open and router_close, and the operator's calls, from any thread but the loop's; the worker_rpc of a
 * model from any; the rest runs on the loop. */
#ifndef COORDINATOR_ROUTER_H
#define COORDINATOR_ROUTER_H

#include "base/clock.h"
#include "base/metrics.h"
#include "coordinator/served_model.h"
#include "coordinator/text_buffer.h"
#include "proto/membership.h"

typedef struct router router;

typedef struct router_config {
    rpc_loop *loop;
    membership *membership; /* the router follows it */
    const rpc_tls *tls;     /* towards workers; NULL: plain */
    model_set *models;      /* to which the workers' models are added */
    uint64_t patience_ms;   /* 0: 30,000 */
    const hd_clock *clock;  /* NULL: the system's */
    hd_metrics *metrics;    /* or NULL */
} router_config;

hd_status router_open(const router_config *config, router **out, hd_error *error);
/* The coordinator in front of it has been closed: no request is open. Accepts NULL. */
void router_close(router *router);

/* -- the operator's -- */

/* JSON arrays, appended: of nodes as `hadal nodes --json` prints them, and of sequences. */
void router_write_nodes(router *router, text_buffer *out);
void router_write_sequences(router *router, text_buffer *out);
/* What workers' steps have come to so far, an array of JSON; and what all nodes have counted, as Prometheus has it. */
void router_write_steps(router *router, text_buffer *out);
void router_write_metrics(router *router, text_buffer *out);
/* Asks the node itself, and waits for its answer. HD_NOT_FOUND: no such node. */
hd_status router_drain(router *router, const char *node_id, bool is_draining, hd_error *error);
hd_status router_cancel(router *router, const char *sequence, hd_error *error);

#endif
