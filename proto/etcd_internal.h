/* etcd_internal.h - what calls, leases and watches share. */
#ifndef PROTO_ETCD_INTERNAL_H
#define PROTO_ETCD_INTERNAL_H

#include "proto/etcd.h"

#define ETCD_RETRY_MS 300u

struct etcd {
    rpc_queue *queue;
    rpc_channel *channels[ETCD_ENDPOINTS_MAX];
    char addresses[ETCD_ENDPOINTS_MAX][RPC_ADDRESS_BYTES];
    unsigned endpoint_count, current;
    char *user, *password;
    char *token; /* NULL: none yet */
    uint64_t try_ms;
    struct etcd_pending *pending;
    struct etcd_token_fetch *fetches;
    bool is_closing;
};

/* The connection to use now, and moving on after a failure of that one. */
rpc_channel *etcd_channel(etcd *e);
void etcd_next_endpoint(etcd *e, unsigned failed);
/* Fills the token in; how many pairs. */
unsigned etcd_metadata(const etcd *e, rpc_metadata *metadata);
/* Whether a stream's or call's end is a matter of the endpoint and worth another try; drops a token that is no good. */
bool etcd_should_retry(etcd *e, const rpc_end *end);
/* With a user and no token: fetches one first, then done(context). */
bool etcd_needs_token(const etcd *e);
void etcd_fetch_token(etcd *e, rpc_unary_done *done, void *context);

#endif
