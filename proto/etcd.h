/* etcd.h - a client of etcd v3 over rpc.h: calls, leases that are kept, prefixes that are followed.
 *
 * Several endpoints are tried in turn: a call that finds one lost or slow goes on to the next until its time is over.
 * With a user, a token is fetched first and again when it has become invalid.
 * Threads: everything, callbacks included, on the thread of the queue of etcd_open; etcd_call_wait on any other. */
#ifndef PROTO_ETCD_H
#define PROTO_ETCD_H

#include "proto/etcd.pb-c.h"
#include "proto/rpc_unary.h"

#define ETCD_ENDPOINTS_MAX 16u

typedef struct etcd etcd;
typedef struct etcd_config {
    const char *endpoints;       /* URL[,URL]: http://HOST:PORT, https://HOST:PORT or HOST:PORT */
    const rpc_tls *tls;          /* for https; NULL: the system's authorities */
    const char *user, *password; /* NULL: none */
    uint64_t try_ms;             /* that one endpoint gets; 0: 2,000 */
} etcd_config;

hd_status etcd_open(const etcd_config *config, rpc_queue *queue, etcd **out, hd_error *error);
/* Calls that are under way end with HD_CANCELLED; leases and watches have been closed. Accepts NULL. */
void etcd_close(etcd *etcd);
const char *etcd_endpoint(const etcd *etcd); /* the one that is asked now */

/* A call: the request's type says which (RangeRequest, PutRequest, DeleteRangeRequest, TxnRequest, LeaseGrantRequest,
 * LeaseRevokeRequest, CompactionRequest, AuthenticateRequest), and done gets the answer of the same name. */
hd_status etcd_call(etcd *etcd, const ProtobufCMessage *request, uint64_t deadline_ms, rpc_unary_done *done,
                    void *context);
/* The same for a thread that may wait, with connections of its own. */
hd_status etcd_call_wait(const etcd_config *config, const ProtobufCMessage *request, uint64_t deadline_ms,
                         ProtobufCMessage **answer, hd_error *error);
/* The end of the range of all keys that begin with prefix; buffer has room for strlen(prefix) + 1. */
ProtobufCBinaryData etcd_prefix_end(const char *prefix, char *buffer);
ProtobufCBinaryData etcd_bytes(const char *text);

/* -- a lease, kept alive -- */

typedef struct etcd_lease etcd_lease;
typedef struct etcd_lease_handlers {
    /* There is a lease, the first or a new one after the last expired: put the keys that hang on it. */
    void (*on_granted)(void *context, int64_t lease_id);
    void (*on_lost)(void *context); /* it has expired, as far as can be known; a new one is asked for */
} etcd_lease_handlers;

hd_status etcd_lease_open(etcd *etcd, uint64_t ttl_s, const etcd_lease_handlers *handlers, void *context,
                          etcd_lease **out);
/* Revokes it, without waiting for the answer. Accepts NULL. */
void etcd_lease_close(etcd_lease *lease);

/* -- a prefix, followed -- */

typedef struct etcd_watch etcd_watch;
typedef struct etcd_watch_handlers {
    /* Everything under the prefix as it is now: replaces what was known. Comes first, and again when events have been
     * missed (compaction). */
    void (*on_snapshot)(void *context, const Etcdserverpb__KeyValue *const *pairs, size_t count);
    void (*on_event)(void *context, bool is_deleted, const Etcdserverpb__KeyValue *pair);
    void (*on_connection)(void *context, bool is_connected); /* may be NULL; while it is not, what is known stands */
} etcd_watch_handlers;

hd_status etcd_watch_open(etcd *etcd, const char *prefix, const etcd_watch_handlers *handlers, void *context,
                          etcd_watch **out);
void etcd_watch_close(etcd_watch *watch); /* accepts NULL */

#endif
