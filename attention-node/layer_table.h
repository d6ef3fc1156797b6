/* layer_table.h - what a model keeps per token, as streams, and which layers read them.
 *
 * A stream is a kind of record that grows (or does not) with a sequence; a layer refers to the streams it reads, so
 * several layers may share one. Plain grouped-query attention is the first case: per layer one key stream and one value
 * stream, of the same owner. Latent attention (value = prefix of the key), shared KV, windows, compressed records,
 * trained indexers and recurrent states are others; a table of any of them can be opened, counted and moved, and is
 * computed on where the back end has the kernel.
 * Threads: a table is a value, immutable once handed to attention_open, which copies it. */
#ifndef ATTENTION_NODE_LAYER_TABLE_H
#define ATTENTION_NODE_LAYER_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/dtype.h"

#define ATTENTION_STATE_PER_SEQUENCE                                                                                   \
    0u /* tokens_per_record of a recurrent state: snapshots at exact positions, no pages */

typedef struct attention_stream {
    uint32_t owner_layer;       /* the layer that writes it */
    uint32_t heads;             /* KV heads; 1 for latent and index streams */
    uint32_t dim;               /* elements of a record, per head */
    hd_dtype codec;             /* how a record is stored */
    uint32_t tokens_per_record; /* 1; N where N tokens are compressed to one; or ATTENTION_STATE_PER_SEQUENCE */
    uint64_t window;            /* 0: all earlier positions stay visible; else only the last `window` */
} attention_stream;

typedef struct attention_layer {
    uint32_t key_stream;
    uint32_t value_stream;    /* same as key_stream with value_is_key_prefix */
    bool value_is_key_prefix; /* latent attention: the value is the first value_dim elements of the key */
    uint32_t value_dim;
    uint32_t query_heads;     /* a multiple of the key stream's heads */
    float scale;              /* of q.k */
    float soft_cap;           /* 0 for none */
    uint64_t window;          /* 0 for all */
    const float *sink_logits; /* [query_heads], joined to the softmax sum only; NULL for none. Copied at open */
} attention_layer;

typedef struct attention_layer_table {
    const attention_stream *streams;
    uint32_t stream_count;
    const attention_layer *layers; /* only the layers that attend, in the order of the forward pass */
    uint32_t layer_count;
} attention_layer_table;

/* Refuses what cannot be: a stream index out of range, heads that do not divide, a zero dim, a stream that is read
 * before it is written. The error names layer or stream. */
hd_status attention_layer_table_check(const attention_layer_table *table, hd_error *error);

/* The KV heads that every stream has; 0 where they differ, and such a table cannot be split by heads. */
uint32_t attention_layer_table_kv_heads(const attention_layer_table *table);
/* What a node keeps that has only the KV heads [first, first + count): every stream and layer with those alone. streams
 * and layers are the caller's, with room for as many as the table has; the sinks stay the table's. */
void attention_layer_table_cut(const attention_layer_table *table, uint32_t first, uint32_t count,
                               attention_stream *streams, attention_layer *layers, attention_layer_table *out);

/* Bytes of one head's page of a stream, records padded to a multiple of 32 elements, those of int8 with their
 * exponents; 0 for a state. */
uint64_t attention_stream_page_bytes(const attention_stream *stream);
/* Bytes of a snapshot of a state, all heads; 0 for pages. */
uint64_t attention_stream_state_bytes(const attention_stream *stream);

/* Bytes that a sequence of `tokens` tokens holds in all streams, pages counted whole (blocks of 128 positions), states
 * once. */
uint64_t attention_layer_table_bytes(const attention_layer_table *table, uint64_t tokens);
/* Bytes of one block of all page streams, and of one snapshot of all states. */
uint64_t attention_layer_table_block_bytes(const attention_layer_table *table);
uint64_t attention_layer_table_state_bytes(const attention_layer_table *table);

#endif
