/* node_set.h - the attention nodes of a cluster as one attention: links are made and given up as membership says.
 *
 * The set is a sharded attention whose nodes are remotes. Whoever follows the membership tells the set what it hears,
 * on any thread; the links are made and ended by the step thread, between two steps.
 *
 *   unknown --node_set_put--> WANTED --linked--> LINKED --draining or gone--> nothing new goes there --lost--> WANTED
 *
 *   1. With `lanes` head ranges, a node takes the one that it had before, else the one that fewest nodes have; one that
 *      keeps another already keeps it.
 *      When all are linked and a head range has no node, the last by name of a range that has several is let go for it.
 *   2. That membership has lost a node ends nothing: what runs there goes on until the link itself is lost. Nothing new
 *      goes there, unless every node of its heads has vanished: a membership that forgets all of them stops nobody.
 *   3. A node that cannot be linked is tried again, after pauses that double from a second to a minute; the step thread
 *      waits for it at most link_ms each time.
 *      So are those that were given up for being late (sharded.h, late_ms), each time after a longer one.
 *   4. Links are looked at without requests, too: a worker that has none holds no node back that others miss.
 * Threads: put and remove from any; open, wait and everything else as attention.h. */
#ifndef ATTENTION_NODE_NODE_SET_H
#define ATTENTION_NODE_NODE_SET_H

#include "attention-node/remote.h"
#include "attention-node/sharded.h"

typedef struct node_set node_set;

typedef struct node_set_config {
    sharded_config sharded; /* its `tend` is the set's */
    uint64_t stage_bytes;   /* of this process, for prompts while they are prefilled (sharded_stage.c); 0: none */
    uint32_t lanes;         /* a divisor of the model's KV heads; 1: every node has all heads */
    transport *transport;   /* the step thread's; lent */
    const char *model_name;
    unsigned char fingerprint[16];
    uint64_t answer_ms, link_ms;
} node_set_config;

hd_status node_set_open(const node_set_config *config, node_set **out, hd_error *error);
void node_set_close(node_set *set); /* with its attention; accepts NULL */
attention *node_set_attention(node_set *set);

/* A node was announced, or has changed; and its announcement has vanished. HD_FULL: more than PLACEMENT_NODES_MAX. */
hd_status node_set_put(node_set *set, const char *id, const char *address, bool is_draining);
void node_set_remove(node_set *set, const char *id);

bool node_set_is_empty(node_set *set); /* no node is announced; any thread */

/* Until every head has a node. On the step thread, or before there is one. HD_TIMED_OUT: the error says what is
 * missing. */
hd_status node_set_wait(node_set *set, uint64_t deadline_ms, hd_error *error);

#endif
