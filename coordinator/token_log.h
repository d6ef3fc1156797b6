/* token_log.h - the tokens of a choice that its answer will list: ids, where their text begins, and log-probabilities.
 *
 * Entries leave in order: those whose text has been shown, and at the end the rest. A token whose text is held back,
 * because a stop string may begin in it, waits with its text; one that lies behind a stop string is cut with it.
 * Threads: one at a time. */
#ifndef COORDINATOR_TOKEN_LOG_H
#define COORDINATOR_TOKEN_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/worker_rpc.h"

typedef struct token_entry {
    uint32_t id;
    bool is_prompt;      /* echoed */
    bool has_logprob;    /* the first token of a prompt has none */
    uint64_t text_byte;  /* where its text begins, from the beginning of the choice's text */
    uint64_t text_point; /* the same in characters */
} token_entry;

typedef struct token_log {
    uint32_t width; /* log-probabilities of an entry: 0, or its own and the likeliest */
    token_entry *entries;
    worker_logprob *logprobs; /* width of each entry */
    size_t count, capacity;
    bool is_failed; /* out of memory: entries are missing */
} token_log;

void token_log_init(token_log *log, uint32_t width);
void token_log_fini(token_log *log);
/* logprobs: width of them, or NULL. */
void token_log_add(token_log *log, token_entry entry, const worker_logprob *logprobs);
const worker_logprob *token_log_logprobs(const token_log *log, size_t index); /* NULL where the entry has none */
/* How many of the first entries begin before text_byte. */
size_t token_log_before(const token_log *log, uint64_t text_byte);
void token_log_drop(token_log *log, size_t count);     /* the first */
void token_log_truncate(token_log *log, size_t count); /* keeps the first */

#endif
