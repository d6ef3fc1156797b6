/* sequence.h - what the worker remembers of one running choice, beside what attention keeps.
 *
 * Positions 0 .. length-1 are in attention. While length < known_count the next rows are known tokens (the prompt, and
 * what a choice that was taken over has said); then next_token, the last one that was drawn, is the row at position
 * length.
 * Threads: the step thread. */
#ifndef WORKER_SEQUENCE_H
#define WORKER_SEQUENCE_H

#include <stdbool.h>

#include "proto/worker_rpc.h"
#include "worker/rope_table.h"
#include "worker/token_counts.h"

#define SEQUENCE_EPOCH 1u /* of sequences that never move between workers */

typedef struct sequence {
    struct job *job; /* the request's; NULL: this place is free */
    const worker_request *request;
    uint64_t name, epoch; /* in attention */
    uint32_t choice;
    const uint32_t *known_ids; /* [known_count] */
    uint64_t known_count;
    uint32_t *owned_ids; /* known_ids, where they are more than the request's prompt */
    uint64_t length;
    uint64_t answer_count; /* tokens handed out */
    uint32_t next_token;
    bool reports_prompt; /* it is the one that prefills: progress and prompt logprobs come from it */
    token_counts counts; /* with penalties only */
    rope_table *rope;
    uint32_t rows;          /* of the step being made; 0: not in it */
    hd_status lost;         /* HD_OK, or why attention did not keep the rows of its last step */
    uint32_t lost_count;    /* steps in a row */
    uint64_t rest_until_ns; /* before it takes part in a step again */
} sequence;

static inline bool sequence_is_prefilling(const sequence *s) {
    return s->length < s->known_count;
}

#endif
