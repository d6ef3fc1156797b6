/* attention_service.h - an engine that workers reach over links: what an attention node does.
 *
 *   EMPTY --first HELLO--> SERVING (the engine is open, for that model and those heads) --close--> gone
 *
 *   1. The node knows no model. The first worker's HELLO says what is kept; another model, type or head range is
 *      refused by name as long as anybody is linked or has a sequence here.
 *   2. Each link has a view of the engine (engine.h): its steps interleave with those of other workers. Calls of all
 *      links are worked on by one thread, which polls the transport itself.
 *   3. When a link is lost, its step is rolled back. Its sequences stay for whoever takes them over with a newer epoch;
 *      what nobody has taken after orphan_ms is closed, and its blocks stay as prefix cache.
 *   4. Draining: no new sequence is opened, what is open goes on, and goes to other nodes as their owners ask these to
 *      fetch it (page_mover.h).
 * Threads: open, start and close from one thread; stats, is_empty and set_draining from any. */
#ifndef ATTENTION_NODE_ATTENTION_SERVICE_H
#define ATTENTION_NODE_ATTENTION_SERVICE_H

#include "attention-node/attention.h"
#include "base/threads.h"
#include "kernels/ops.h"
#include "proto/transport.h"

typedef struct attention_service attention_service;

typedef struct attention_service_config {
    /* As engine_config's. hot_bytes, warm_bytes and index_bytes add up. */
    uint64_t hot_bytes, warm_bytes, index_bytes;
    bool
        index_is_optional; /* where index_bytes are too few for any search they are hot_bytes, and nothing is indexed */
    const char *cold_directory;
    uint64_t cold_bytes;
    uint32_t cold_patience_ms;
    bool has_kv_dtype; /* only workers of kv_dtype are taken; else the first one says it */
    hd_dtype kv_dtype;
    uint32_t links_max; /* workers at once */
    uint64_t orphan_ms;
    unsigned char key[32]; /* secret of the identity hash */
    const kernel_ops *kernels;
    hd_pool *pool;    /* the service's thread alone runs on it */
    transport *pages; /* for blocks between nodes, driven by a thread of its own; NULL: none are fetched */
} attention_service_config;

typedef struct attention_service_state {
    bool has_engine;
    attention_stats stats; /* zeros without an engine */
    uint32_t links;
    /* It was draining when the stats were taken, nothing was held for anybody, and nothing comes any more. */
    bool is_drained;
    uint32_t pulls;               /* sequences that are being fetched */
    uint64_t pages_in, pages_out; /* bytes */
    uint32_t head_first, head_count;
    uint64_t busy_ns; /* of the service's thread in layers, since the start or the last reset */
    char model[128];
} attention_service_state;

hd_status attention_service_open(const attention_service_config *config, attention_service **out);
/* A listener of the transport; `listener` is the service. */
hd_status attention_service_accept(void *listener, transport_link *link, transport_handlers *handlers, void **context);
/* The same for links of the channel "pages", of the transport of that name. */
hd_status attention_service_accept_pages(void *listener, transport_link *link, transport_handlers *handlers,
                                         void **context);
/* From now on the service's thread drives the transport, and another one that for pages. */
hd_status attention_service_start(attention_service *service, transport *driven);
/* Ends the thread and every link; the transports are the caller's again. Accepts NULL. */
void attention_service_close(attention_service *service);

void attention_service_set_draining(attention_service *service, bool is_draining);
void attention_service_reset_busy(attention_service *service);
void attention_service_state_read(attention_service *service, attention_service_state *state);

#endif
