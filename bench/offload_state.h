/* offload_state.h - what the benchmark of offloading consists of; for offload*.c only. */
#ifndef BENCH_OFFLOAD_STATE_H
#define BENCH_OFFLOAD_STATE_H

#include "attention-node/attention_service.h"
#include "attention-node/remote.h"
#include "bench/delay_relay.h"
#include "bench/offload.h"
#include "bench/random.h"
#include "bench/statistics.h"
#include "bench/timed_attention.h"
#include "worker/forward.h"

#define BENCH_EPOCH 1u

typedef struct side { /* decoding over one attention */
    timed_attention attention;
    forward *forward;
    uint32_t *tokens; /* [batch]: the next ones */
    sample step_ms, layer_us;
} side;

typedef struct echo {     /* frames of a layer's sizes, there and back */
    transport_link *link; /* the near end */
    transport_send send, answer;
    void *bytes;
    uint64_t out_bytes, in_bytes;
    bool is_back, is_lost;
    sample *round_us; /* where its times go */
} echo;

/* Two micro-batches over one attention node. */
typedef struct offload_pair {
    attention *attentions[2]; /* the second is a view of the first */
    forward *forwards[2];
    sample round_ms, waited_ms; /* in turns; how much of that both have waited for the node */
} offload_pair;

typedef struct offload_turns {
    delay_relay *relay;
    attention *delayed;        /* the node behind the relay */
    offload_pair near, far;    /* straight, and behind the relay */
    forward *whole;            /* both micro-batches as one step */
    sample whole_ms, after_ms; /* that step; one micro-batch after the other behind the relay */
    uint32_t *tokens;          /* [2 * batch]: the next ones */
    uint64_t *bits;            /* [2 * batch]: a hash of the logits of the round in hand */
    forward_span *spans;
} offload_turns;

typedef struct bench {
    const bench_offload_config *config;
    attention_layer_table layers;
    hd_pool *node_pool;
    attention_service *service;
    transport *far, *near; /* the node's, and the step thread's */
    rpc_server *server;
    attention *remote;
    echo echo;
    side here, there;
    rope_table *rope;
    forward_span *spans;
    bench_random random;
    sample between_us, alone_us; /* echoes between the layers of a step, and with nothing beside them */
    offload_turns turns;
} bench;

/* offload.c: links to the node at an address; a sequence with `depth` tokens, whose keys and values are `rows` over and
 * over. */
hd_status bench_offload_link(bench *b, const char *address, attention **out, hd_error *error);
hd_status bench_offload_sequence(bench *b, attention *a, uint64_t name, const void *rows, hd_error *error);

/* offload_turns.c: two micro-batches in turns, straight and behind a delay. After the steps of `there`, whose sequences
 * are the first micro-batch's. */
hd_status offload_turns_run(bench *b, const void *rows, hd_error *error);
void offload_turns_close(bench *b);

#endif
