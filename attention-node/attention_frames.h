/* attention_frames.h - what a worker and an attention node say to each other, as frames (proto/frame.h).
 *
 * Every frame from the worker is a call; the node works on a link's calls one after the other and answers each with the
 * same tag, in order. A link begins with HELLO, which says the model's layer table and agrees on a version.
 *
 *   call      sequence, epoch   value       parts
 *   HELLO                                   wire_hello | wire_stream ... | wire_layer ... | sinks, f32 | model's name
 *   OPEN      yes               tokens_max  wire_open | token ids | selection's text | trace id or nothing
 *   FORK      the new one       tokens_max  wire_fork
 *   TRUNCATE  yes               length
 *   CLOSE     yes               1: keep, 2: early
 *   LENGTH    yes
 *   FIND      yes
 *   PREFIX    as OPEN
 *   BEGIN                                   wire_row ... | token ids of all rows
 *   LAYER     (layer)                       queries [H, R, G, pad] or nothing | keys, values [kept rows, H, dim]
 *   END                                     a status of every span, u32, or nothing: rows that other nodes lost
 *   RESET     (the prefix cache)
 *   PULL      yes               length      wire_open | address of the node that has it | selection's text; layer: ms
 *   to
 *                                           wait for all of that length. From version 2 on
 *
 * An answer has the call's kind with ATTENTION_ANSWER set, the status in flags, a number in value (OPEN, PREFIX: cached
 * tokens; LENGTH: length; PULL: tokens that are here; HELLO: the version; LAYER: the ns that it was worked on), and the
 * parts wire_stats | a sentence for a person | ..., then of HELLO
 * the kernels' name, of FIND wire_found ..., of LAYER
 *   output [whole rows, H, G, value_dim] | partial out [H, range rows, G, value_dim] | max | sum [H, range rows, G]
 *   | a status of every span, u32, or nothing: rows that are lost so far (attention.h, rule 7)
 * without replica rows. Rows keep the order of BEGIN. wire_stats grows at its end: what a shorter one has not is 0, and
 * what a longer one has besides is ignored. Little endian, as the machines are; statuses and types are the
 * numbers of hd_status and hd_dtype, which only ever grow at their ends.
 * Threads: values. */
#ifndef ATTENTION_NODE_ATTENTION_FRAMES_H
#define ATTENTION_NODE_ATTENTION_FRAMES_H

#include "attention-node/attention.h"
#include "proto/frame.h"

#define ATTENTION_WIRE_VERSION 2u
#define ATTENTION_WIRE_VERSION_MIN 1u
#define ATTENTION_WIRE_VERSION_PULL 2u
#define ATTENTION_ANSWER 0x8000u
#define ATTENTION_CLOSE_KEEP 1u
#define ATTENTION_CLOSE_EARLY 2u

typedef enum {
    ATTENTION_HELLO = 1,
    ATTENTION_OPEN,
    ATTENTION_FORK,
    ATTENTION_TRUNCATE,
    ATTENTION_CLOSE,
    ATTENTION_LENGTH,
    ATTENTION_FIND,
    ATTENTION_PREFIX,
    ATTENTION_BEGIN,
    ATTENTION_LAYER,
    ATTENTION_END,
    ATTENTION_RESET,
    ATTENTION_PULL,
} attention_call_kind;

typedef struct wire_hello {
    uint32_t version_min, version_max;
    uint32_t kv_dtype, stream_count, layer_count, sink_count;
    uint32_t rows_max, sequences_max; /* of a step that this worker may ask for */
    uint32_t head_first, head_count;  /* which of the model's KV heads the table is about */
    unsigned char fingerprint[16];
} wire_hello;
_Static_assert(sizeof(wire_hello) == 56, "wire layout");

typedef struct wire_stream {
    uint32_t owner_layer, heads, dim, codec, tokens_per_record, zero;
    uint64_t window;
} wire_stream;
_Static_assert(sizeof(wire_stream) == 32, "wire layout");

typedef struct wire_layer {
    uint32_t key_stream, value_stream, value_is_key_prefix, value_dim, query_heads, has_sinks;
    float scale, soft_cap;
    uint64_t window;
} wire_layer;
_Static_assert(sizeof(wire_layer) == 40, "wire layout");

typedef struct wire_open {
    uint64_t prompt_count, reuse_max, variant, first_position, end_position;
    unsigned char salt[ATTENTION_SALT_BYTES];
    unsigned char prefix[ATTENTION_PREFIX_BYTES];
    uint32_t has_prefix, has_selection;
} wire_open;
_Static_assert(sizeof(wire_open) == 96, "wire layout");

typedef struct wire_fork {
    uint64_t source, length;
} wire_fork;
_Static_assert(sizeof(wire_fork) == 16, "wire layout");

typedef struct wire_row {
    uint64_t sequence, epoch, first_position, end_position;
    uint32_t count, is_replica;
} wire_row;
_Static_assert(sizeof(wire_row) == 40, "wire layout");

typedef struct wire_stats {
    uint64_t budget_bytes, block_bytes, blocks_total, blocks_sequences, blocks_reserved, blocks_cached, sequences;
    uint64_t prefix_queries_tokens, prefix_hits_tokens, appended_tokens, evicted_blocks;
    uint64_t index_bytes, index_budget_bytes, hot_used_bytes, warm_used_bytes, cold_used_bytes, warm_bytes, cold_bytes;
    uint64_t compute_threads;
} wire_stats;
_Static_assert(sizeof(wire_stats) == 152, "wire layout");

typedef struct wire_found {
    uint64_t name, epoch, first_position, end_position, length;
} wire_found;
_Static_assert(sizeof(wire_found) == sizeof(attention_found), "wire layout");

/* Which of a step's rows concern which part of a LAYER: the same on both sides. */
typedef struct wire_step {
    uint32_t span_count, row_count;
    uint32_t kept_count, whole_count, range_count; /* rows */
    bool has_queries;
} wire_step;

/* Rows of a span that lie in its range. */
static inline uint32_t wire_row_kept(const attention_rows *rows) {
    if (rows->end_position == 0 || rows->first_position + rows->count <= rows->end_position) return rows->count;
    return rows->end_position > rows->first_position ? (uint32_t)(rows->end_position - rows->first_position) : 0;
}
wire_step wire_step_of(const attention_rows *rows, uint32_t span_count);

/* Elements of a layer's tensors, per row. */
typedef struct wire_shape {
    uint32_t heads, group_size, key_dim, key_pad, value_dim;
    uint32_t element_bytes;
} wire_shape;
wire_shape wire_shape_of(const attention_layer_table *table, uint32_t layer, hd_dtype kv_dtype);

/* The table of a HELLO. Encoding: streams, layers and sinks have room for the table's; sinks may be NULL. Decoding
 * refuses what does not
 * fit together; the arrays of *out are the caller's, as large as the hello says. */
void wire_table_encode(const attention_layer_table *table, wire_stream *streams, wire_layer *layers, float *sinks,
                       uint32_t *sink_count);
hd_status wire_table_decode(const wire_hello *hello, const frame *f, attention_stream *streams, attention_layer *layers,
                            float *sinks, attention_layer_table *out, hd_error *error);

/* A part as an array of items; false when its length is no multiple, or not of so many. */
bool wire_part(const frame *f, uint32_t part, size_t item_bytes, uint64_t item_count);
/* A part as text, cut to the buffer. */
void wire_text(const frame *f, uint32_t part, char *text, size_t text_bytes);

#endif
