/* service_state.h - what an attention service consists of; for attention_service.c and service_engine.c only. */
#ifndef ATTENTION_NODE_SERVICE_STATE_H
#define ATTENTION_NODE_SERVICE_STATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "attention-node/attention_frames.h"
#include "attention-node/attention_service.h"
#include "attention-node/page_mover.h"

#define SERVICE_ANSWERS 4u
#define SERVICE_FOUND_MAX 64u
#define SERVICE_SELECTION_BYTES 256u

typedef struct service_answer {
    transport_send send; /* in use while it is out */
    wire_stats stats;
    char sentence[512];
    attention_found found[SERVICE_FOUND_MAX];
    void *output;
    attention_partial partial;
    uint32_t *lost; /* [sequences_max] */
} service_answer;

typedef struct service_owned {
    uint64_t name, epoch;
} service_owned;

/* A PULL, whose answer may wait. */
typedef struct service_pull {
    bool is_waiting;
    frame call;
    service_answer *answer;
    uint64_t deadline_ns;
    attention_pull pull;
    char address[RPC_ADDRESS_BYTES], selection[SERVICE_SELECTION_BYTES];
} service_pull;

typedef struct service_link {
    struct attention_service *service;
    struct service_link *next;
    transport_link *link;
    uint64_t number;
    attention *view; /* from HELLO on */
    uint32_t rows_max, sequences_max;
    bool is_ended, has_step;
    uint64_t ended_ns;
    service_owned *owned; /* sequences that it opened; after its end, those that nobody has taken */
    uint32_t owned_count, owned_max;

    void *memory; /* of everything below */
    attention_rows *rows;
    uint32_t *token_ids;
    wire_step step;
    void *keys, *values; /* all rows, where only some were sent */
    service_answer answers[SERVICE_ANSWERS];
    service_pull pull;
} service_link;

struct attention_service {
    attention_service_config config;
    transport *transport;
    pthread_t thread;
    bool has_thread;
    _Atomic bool is_closing, is_draining;
    _Atomic uint32_t drain_orders; /* told so far: what was published before the last one says nothing of it */
    _Atomic uint64_t busy_ns;
    page_mover *mover; /* NULL: pages do not move */
    service_link *links;
    uint64_t next_link, published_ns;

    /* The engine, and what it was opened for. */
    attention *engine;
    attention_stream *streams;
    attention_layer *layers;
    float *sinks;
    attention_layer_table table;
    hd_dtype kv_dtype;
    wire_hello hello;
    char model[128];

    pthread_mutex_t lock; /* of published */
    attention_service_state published;
    uint32_t published_orders;
};

void service_link_end(service_link *link); /* its step is rolled back, its sequences wait */

/* service_engine.c */
hd_status service_hello(service_link *link, const frame *f, hd_error *error);
void service_engine_close(attention_service *service);
void service_own(service_link *link, uint64_t name, uint64_t epoch);          /* and nobody else does */
service_link *service_owner(const attention_service *service, uint64_t name); /* NULL: nobody */
void service_disown(service_link *link, uint64_t name);
void service_close_owned(service_link *link); /* what no newer epoch has taken */
void service_publish(attention_service *service);

#endif
