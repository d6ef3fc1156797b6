/* remote.h - an attention in another process: every call is a frame to an attention node (attention_frames.h).
 *
 * The step thread that calls it also polls the transport, so a step's frames pass no other thread. Several remotes may
 * share a transport: while one waits, the answers of the others come in. Within a layer, submit sends and wait waits,
 * so nodes work at the same time.
 *   1. A node that does not answer within answer_ms or call_ms, or answers what does not fit, is lost: HD_PEER_LOST
 *      from then on.
 *   2. The caller's tensors are lent to the transport until wait has returned.
 * Threads: as attention.h; the transport's own thread is that thread. */
#ifndef ATTENTION_NODE_REMOTE_H
#define ATTENTION_NODE_REMOTE_H

#include "attention-node/attention.h"
#include "attention-node/placement.h"
#include "proto/transport.h"

typedef struct remote_config {
    transport *transport; /* lent */
    const char *address;
    const char *model_name;
    attention_layer_table layers; /* of the node's heads alone; copied */
    placement_heads heads;        /* which ones these are */
    hd_dtype kv_dtype;
    unsigned char fingerprint[16];
    uint32_t step_rows_max, sequences_max;
    /* For an answer of a step; for one about a sequence; for the link and its HELLO. 0: answer_ms. */
    uint64_t answer_ms, call_ms, link_ms;
    const char *kernels; /* the worker's table, static: another one at the node gives other bits, and is logged */
} remote_config;

/* Links and says HELLO. HD_PEER_LOST: nobody there. HD_INVALID, HD_UNSUPPORTED: it does not fit, the error says why. */
hd_status remote_open(const remote_config *config, attention **out, hd_error *error);

/* What has crossed the wire, in frames and bytes with their heads; the time that wait waited. */
typedef struct remote_traffic {
    uint64_t frames_out, frames_in, bytes_out, bytes_in, waited_ns;
} remote_traffic;
void remote_traffic_read(const attention *self, remote_traffic *traffic);

#endif
