/* operator_rows.h - what operators are shown, of a cluster and of one process alike: rows of JSON arrays.
 * Threads: any; a row is a value. */
#ifndef COORDINATOR_OPERATOR_ROWS_H
#define COORDINATOR_OPERATOR_ROWS_H

#include <stdbool.h>
#include <stdint.h>

#include "coordinator/text_buffer.h"
#include "proto/worker_rpc.h"

typedef struct operator_node {
    const char *id, *role, *state, *address, *model; /* NULL is null */
    uint64_t kv_bytes, kv_capacity, sequences;
    bool is_safe; /* to delete */
} operator_node;

typedef struct operator_sequence {
    uint64_t id;
    const char *model, *worker, *state; /* worker may be NULL */
    uint64_t prompt_tokens, prompt_done, generated_tokens;
    uint32_t choices;
    uint64_t epoch, age_s;
} operator_sequence;

/* The rows but the first begin with a comma; the brackets are the caller's. */
void operator_rows_node(text_buffer *out, bool is_first, const operator_node *node);
void operator_rows_sequence(text_buffer *out, bool is_first, const operator_sequence *sequence);
void operator_rows_steps(text_buffer *out, bool is_first, const char *node, const worker_load *load);

#endif
