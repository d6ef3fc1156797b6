/* index_home.h - what sets of indexes and their builders share; for index_set.c and index_home.c only. */
#ifndef ATTENTION_NODE_INDEX_HOME_H
#define ATTENTION_NODE_INDEX_HOME_H

#include <pthread.h>

#include "attention-node/index_set.h"
#include "attention-node/key_rows.h"

enum { INDEX_WANTED = 1, INDEX_BUILDING = 2 }; /* of an index: its target may not be reached; a builder is at it */

typedef struct index_layer {
    kernel_page_shape shape;
    uint32_t key_stream, value_stream, heads;
    uint32_t first_index; /* of its head 0, among a set's */
    bool is_indexable;    /* plain keys and values, all of them visible */
} index_layer;

typedef struct index_source_context {
    index_set *set;
    const index_layer *layer;
    uint32_t head;
    key_rows rows; /* where the set keeps them */
} index_source_context;

struct index_set {
    index_home *home;
    index_set *previous, *next; /* in the home's list, oldest first */
    const index_kind *kind;
    uint64_t keys_max, bytes; /* bytes: accounted */
    uint32_t full_layers;
    bool has_rest, has_rows, is_retained;
    bool is_held;           /* no builder begins */
    _Atomic bool is_failed; /* a builder found no memory */
    uint32_t building_count;
    kv_index **indexes; /* [index_count], NULL in layers that have none */
    index_source_context *contexts;
    uint8_t *states;               /* INDEX_WANTED, INDEX_BUILDING */
    const kv_run *runs;            /* the sequence's */
    _Atomic uint32_t sealed_count; /* grows while builders read */
    uint64_t exact_count;
    identity *ids; /* [id_max] of the leading blocks that others may have too */
    uint32_t id_count, id_max;
    index_extent target;
    uint64_t needed;   /* the extent whose segments alone were kept, beside the target's */
    uint64_t searched; /* the last extent that a query's was */
};

struct index_home {
    index_home_config config;
    index_layer *layers;
    uint32_t layer_count, index_count; /* index_count: of a set, all layers and heads */
    pthread_mutex_t lock;              /* of what follows, and of every set's states, flags and building_count */
    pthread_cond_t wanted, built;
    index_set *first, *last;
    uint64_t held_bytes, builder_bytes; /* builder_bytes: of one builder, in held_bytes for all of them */
    uint64_t waits, wait_ns;
    bool is_closing;
    pthread_t *threads;
    unsigned thread_count;
};

/* The largest extent that has segments of `extent` alone, and only tokens before `tokens`. */
index_extent index_extent_within(const index_extent *extent, uint64_t tokens);

#endif
