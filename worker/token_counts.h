/* token_counts.h - how often each token occurs in a sequence; what the penalties need to know.
 *
 * An open-addressing table sized when the sequence is admitted: it holds every distinct token that prompt and answer
 * can have, so adding never fails and never allocates. A walk over the entries costs as many steps as there are
 * distinct tokens, not the vocabulary.
 * Threads: one at a time. */
#ifndef WORKER_TOKEN_COUNTS_H
#define WORKER_TOKEN_COUNTS_H

#include <stdint.h>

#include "base/status.h"

typedef struct token_count {
    uint32_t token_id;
    uint32_t answer_count; /* occurrences in the answer; 0: in the prompt alone */
} token_count;

typedef struct token_counts {
    token_count *entries; /* [entry_count] in order of first occurrence */
    uint32_t *slots;      /* [slot_mask + 1]: index + 1 of an entry, 0 where free */
    uint32_t slot_mask, entry_count, entries_max;
} token_counts;

/* distinct_max: the least of the vocabulary and prompt + max_tokens. */
hd_status token_counts_init(token_counts *counts, uint64_t distinct_max);
void token_counts_fini(token_counts *counts); /* accepts a zeroed one */

void token_counts_add_prompt(token_counts *counts, const uint32_t *token_ids, uint64_t count);
void token_counts_add_answer(token_counts *counts, uint32_t token_id);

#endif
