/* toy.h - a toy model that drives an attention, and what attention must answer, computed the obvious way.
 *
 * Every key and value is a function of the salt, of all tokens up to its position, of layer and head; so is every
 * query. Whoever attends to another user's tokens, to stale ones or to a wrong position gets another output. */
#ifndef TESTS_ATTENTION_NODE_TOY_H
#define TESTS_ATTENTION_NODE_TOY_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "attention-node/engine.h"

#define TOY_LAYERS_MAX 4u
#define TOY_SINKS 128u

typedef struct toy_shape {
    uint32_t layer_count, kv_heads, group_size, key_dim, value_dim;
    hd_dtype dtype;
    uint64_t windows[TOY_LAYERS_MAX];
    float soft_cap;
    bool has_sinks;
} toy_shape;

typedef struct toy_sequence { /* what a caller knows of a sequence */
    uint64_t name, epoch, tokens_max;
    unsigned char salt;
    uint64_t length, hash_count;
    uint32_t *tokens;      /* room for tokens_max */
    uint64_t *hashes;      /* of the tokens up to each position */
    const char *selection; /* NULL: full; else rows from prompt_count on see `sinks` first and `recent` newest tokens */
    uint64_t prompt_count, sinks, recent;
} toy_sequence;

typedef struct toy {
    toy_shape shape;
    attention_stream streams[2 * TOY_LAYERS_MAX];
    attention_layer layers[TOY_LAYERS_MAX];
    float *sinks;
    float sink_pull; /* added to the first coordinate of every query, and of the first TOY_SINKS keys; 0 at first */
    engine_config config; /* of the engine that toy_open opens; may be changed before */
    hd_pool *pool;
    attention *attention;
} toy;

/* Fills in the shape's layer table and a config: portable kernels, a budget of 8 MiB, 64 sequences, 1,024 rows. */
void toy_init(toy *t, const toy_shape *shape);
void toy_open(toy *t, unsigned threads); /* the pool and the engine */
void toy_open_blocks(toy *t, unsigned threads,
                     uint32_t blocks); /* with the smallest budget that holds so many blocks */
void toy_close(toy *t);
void toy_fini(toy *t);

void toy_sequence_init(toy_sequence *s, uint64_t name, unsigned char salt, uint64_t tokens_max);
void toy_sequence_fini(toy_sequence *s);
void toy_sequence_push(toy_sequence *s, uint32_t token);                     /* what the caller will append */
void toy_sequence_push_text(toy_sequence *s, uint64_t seed, uint64_t count); /* the same for the same seed */
/* Opens it with the tokens pushed so far as prompt. */
hd_status toy_sequence_open(toy *t, toy_sequence *s, uint64_t reuse_max, uint64_t *cached, hd_error *error);

typedef struct toy_rows { /* rows of one sequence in a step */
    toy_sequence *sequence;
    uint64_t first, count;
} toy_rows;

/* Runs a step. outputs: [layer][row][query_heads * value_dim] as float, or NULL. */
hd_status toy_step(toy *t, const toy_rows *rows, uint32_t rows_count, float *outputs, hd_error *error);
/* Rows first .. first + count - 1 in steps of at most chunk rows; outputs as above, for all rows. */
void toy_run(toy *t, toy_sequence *s, uint64_t first, uint64_t count, uint64_t chunk, float *outputs);

/* One row's output of a layer, by definition and in double precision. */
void toy_expect(const toy *t, const toy_sequence *s, uint32_t layer, uint64_t position, float *output);
size_t toy_row_floats(const toy *t); /* query_heads * value_dim */
/* Runs the row at position (which may be there already) alone and compares all layers with toy_expect. */
void toy_check_row(toy *t, toy_sequence *s, uint64_t position);

uint64_t toy_random(uint64_t *state);
uint32_t toy_below(uint64_t *state, uint32_t bound);

#endif
