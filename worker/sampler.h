/* sampler.h - one row of logits to one token.
 *
 * With l the model's logits, the steps in this order (names as in worker_sampling):
 *   logprobs            log softmax(l): of the model's own logits, before anything below touches them
 *   logit_bias          l[i] += bias
 *   repetition_penalty  r, over tokens of prompt and answer: l[i] = l[i] > 0 ? l[i] / r : l[i] * r    (Hugging Face)
 *   frequency, presence over tokens of the answer: l[i] -= frequency * count[i] + presence            (OpenAI)
 *   min_tokens          tokens that would end the choice: l[i] = -inf while it is too early
 *   temperature         t below 1e-6: the largest l, the lowest id of equals. Else p = softmax(l / t), then
 *   top_k               the k likeliest stay (equals in order of id), and p is normalised again;
 *   top_p               the fewest likeliest tokens whose p sums to at least top_p stay, at least one;
 *   min_p               tokens with p >= min_p * p of the likeliest stay;
 *   draw                one uniform number, a function of (seed + choice, position) alone, picks from what stays.
 * So choice i with seed s draws what choice 0 with seed s + i does, and nothing else of the batch has a part in it.
 *
 * Threads: sampler_draw and sampler_logprobs from any thread of the pool, each with its own thread number; rows are
 * disjoint. */
#ifndef WORKER_SAMPLER_H
#define WORKER_SAMPLER_H

#include <stdbool.h>

#include "kernels/ops.h"
#include "proto/worker_rpc.h"
#include "worker/token_counts.h"

typedef struct sampler sampler;

typedef struct sampler_row {
    const worker_sampling *sampling;
    float *logits;              /* [vocabulary_size]; changed in place */
    const token_counts *counts; /* NULL where no penalty is on */
    uint32_t choice;
    uint64_t position;       /* of the token to draw, in the sequence */
    bool may_end;            /* false: neither end_ids nor the request's stop ids can be drawn */
    const uint32_t *end_ids; /* the eos ids that count for this request */
    uint32_t end_id_count;
    uint32_t token_id;        /* out */
    worker_logprob *logprobs; /* out: [1 + sampling->logprobs], where those are asked for */
} sampler_row;

/* Scratch for thread_count threads is taken here; nothing allocates later. */
hd_status sampler_open(uint32_t vocabulary_size, unsigned thread_count, const kernel_ops *kernels, sampler **out);
void sampler_close(sampler *sampler); /* accepts NULL */

/* Whether the model's logits are numbers, all of them. */
bool sampler_is_finite(const float *logits, uint32_t count);

/* Of logits that are not finite, a token of the vocabulary that means nothing. */
void sampler_draw(sampler *sampler, unsigned thread, sampler_row *row);

/* logprobs[0] is token_id's, logprobs[1..count] the likeliest in descending order; of log softmax(logits). */
void sampler_logprobs(sampler *sampler, const float *logits, uint32_t token_id, uint32_t count,
                      worker_logprob *logprobs);

/* Whether the request needs token_counts. */
bool sampler_has_penalties(const worker_sampling *sampling);

/* The uniform number in [0, 1) behind a draw. */
double sampler_uniform(uint64_t seed, uint32_t choice, uint64_t position);

#endif
