/* step.h - one step: the chosen rows of some sequences through the model, and the answers drawn from their logits.
 *
 * step_run, then step_answers until it returns 0; answers come in the order of the sequences and positions, in
 * slices, because a row of logits is large.
 * Threads: the step thread; the pool works for it. */
#ifndef WORKER_STEP_H
#define WORKER_STEP_H

#include "worker/sequence.h"
#include "worker/worker.h"

#define STEP_SLICE_ROWS 64u /* of logits held at once: half a megabyte each with a vocabulary of 128 Ki */

typedef struct step step;

typedef struct step_answer {
    sequence *sequence;
    bool is_prompt;    /* logprobs of a prompt token; else a token was drawn */
    bool is_finite;    /* false: the logits are no numbers, and what follows but the position means nothing */
    uint64_t position; /* of the token */
    uint32_t token_id;
    uint32_t logprob_count; /* entries of logprobs: 0 where none were asked for */
    worker_logprob logprobs[1 + WORKER_LOGPROBS_MAX];
} step_answer;

hd_status step_open(const worker_config *config, step **out,
                    hd_error *error); /* error: where it says more than HD_NO_MEMORY */
void step_close(step *step);          /* accepts NULL */

/* Runs `rows` rows of each sequence and moves its length on, but for those that are `lost`, whose answers mean nothing.
 * Decode rows may run as several micro-batches. On failure lengths stay; *has_begun is false when nothing was changed,
 * or nothing but rows that may be run again. */
hd_status step_run(step *step, sequence *const *sequences, uint32_t count, bool *has_begun, hd_error *error);

/* The next slice of answers, valid until the next call; 0: there are no more. */
uint32_t step_answers(step *step, const step_answer **answers);

#endif
