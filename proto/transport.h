/* transport.h - frames between two endpoints, driven by the thread that works on them.
 *
 * A transport is one thread's end of its links: what arrives waits until that thread polls, so a step frame goes from
 * the step thread to the wire and from the wire to the thread that computes, and passes no control loop.
 * Implementations: grpc (over rpc.h), inproc (rings between threads of one process).
 *
 *   LINKED --on_lost--> LOST --disconnect--> gone
 *
 *   1. Frames of a link arrive in the order in which they were sent, whole, checked (frame.h), or the link is lost.
 *   2. on_lost comes once and last, unless the owner has disconnected before. Nothing connects again by itself.
 *   3. send never waits: HD_FULL past the link's bound; on_room tells when to go on.
 *   4. A frame's parts are lent until done, which runs once where send said HD_OK, and never otherwise.
 * Threads: every call and every callback on the transport's own thread, except done, which runs on any thread and only
 * hands over, and wake. */
#ifndef PROTO_TRANSPORT_H
#define PROTO_TRANSPORT_H

#include <stdbool.h>

#include "proto/frame.h"
#include "proto/rpc.h"

typedef struct transport transport;
typedef struct transport_link transport_link;

typedef struct transport_handlers {
    void (*on_frame)(void *context, transport_link *link, const frame *frame); /* borrowed during the call */
    void (*on_lost)(void *context, transport_link *link, hd_status status, const char *reason);
    void (*on_room)(void *context, transport_link *link); /* may be NULL */
} transport_handlers;

/* A link that was made towards a listener: sets handlers and *context, or refuses with a status. */
typedef hd_status transport_accept(void *listener, transport_link *link, transport_handlers *handlers, void **context);

/* The caller's memory, alive until done. */
typedef struct transport_send {
    void (*done)(struct transport_send *send); /* may be NULL: then is_out tells */
    rpc_loan loan;                             /* the transport's from here on */
    _Atomic bool is_out;                       /* between send and done */
    unsigned char head[FRAME_HEAD_BYTES];
} transport_send;

typedef struct transport_ops {
    const char *name;
    void (*close)(transport *self); /* its links have been disconnected */
    /* The link may be sent on at once; a peer that is not there is on_lost. `channel` names the purpose of the link to
     * the listener: "step", "pages". Links of different channels share no connection. */
    hd_status (*connect)(transport *self, const char *address, const char *channel, const transport_handlers *handlers,
                         void *context, transport_link **link, hd_error *error);
    hd_status (*send)(transport_link *link, const frame *frame, transport_send *send);
    void (*disconnect)(transport_link *link);
    /* Runs one thing that has arrived, waiting at most so long for it, or less where it is woken; false: none came. */
    bool (*poll)(transport *self, uint64_t timeout_ns);
    void (*wake)(transport *self); /* any thread: a poll that waits returns */
} transport_ops;

struct transport {
    const transport_ops *ops; /* first member of every implementation */
};
struct transport_link {
    transport *owner; /* first member of every implementation's link */
};

/* grpc: over a queue that nobody else polls. tls (borrowed) may be NULL. */
hd_status transport_grpc_open(const rpc_tls *tls, transport **out);
/* What a server has to list to take links of a channel: on the transport's own queue, `path` being
 * transport_grpc_path(channel). The listener is told of links while the transport is polled. */
const char *transport_grpc_path(const char *channel); /* NULL: not a channel. "step" is "/hadal.Attention/Step" */
hd_status transport_grpc_listen(transport *self, const char *channel, transport_accept *accept, void *listener,
                                rpc_method *method);

/* inproc: transports of one process find each other by name in a hub. */
typedef struct inproc_hub inproc_hub;
hd_status inproc_hub_open(inproc_hub **out);
void inproc_hub_close(inproc_hub *hub); /* its transports are closed; accepts NULL */
/* ring_bytes: of each direction of a link; a frame is at most half of it. */
hd_status transport_inproc_open(inproc_hub *hub, size_t ring_bytes, transport **out);
hd_status transport_inproc_listen(transport *self, const char *address, const char *channel, transport_accept *accept,
                                  void *listener);

#endif
