/* schedule.h - how much of whose prompt goes into the next step.
 *
 * A step has a budget of rows and a budget of time. Time, because a row's cost grows with its depth: 16 rows at a
 * million positions cost more than 1,000 rows of a fresh prompt, and whoever decodes beside them waits for both. The
 * rules:
 *   1. Prompts with the least left to do go first, so that a short request waits for chunks and not for a long
 *      prompt. What a shorter one waits for counts as that one's.
 *   2. The oldest prompt has a quarter of rows and time to itself, saved up until it is a chunk, so that none starves.
 *   3. A chunk has at least SCHEDULE_ROWS_LEAST rows or what is left of the prompt. Where not even that fits the
 *      time, the time is saved up: steps without prefill pass until there is enough, and then one chunk runs. With
 *      nothing else to do, it runs at once.
 * Chunks have no influence on anybody's answer, so the estimates behind this may be as rough as they are.
 * Threads: one. */
#ifndef WORKER_SCHEDULE_H
#define WORKER_SCHEDULE_H

#include <stdbool.h>
#include <stdint.h>

#include "model/config.h"

#define SCHEDULE_ROWS_LEAST 16u

typedef struct schedule_prompt {
    uint64_t done, total;    /* positions */
    uint64_t followed_total; /* of the shortest prompt that waits for what this one computes (follow.h); 0: none does */
    uint64_t arrival;        /* lower is older */
    uint32_t rows;           /* out: of the next step */
} schedule_prompt;

typedef struct schedule {
    double row_work, depth_work; /* operations of a row, and of a row for each position that it sees */
    double ns_per_work;          /* learnt */
    bool is_guess;               /* it is not yet */
    double decode_ns;            /* learnt: a step with decode rows alone */
    double saved_ns;
    double oldest_share; /* of a step, saved up by the oldest prompt */
    uint64_t oldest_arrival;
} schedule;

void schedule_init(schedule *schedule, const model_config *model, unsigned thread_count);

/* Fills in rows of every prompt (none is done yet), in total at most rows_max. is_decoding: the step has decode rows
 * too. */
void schedule_step(schedule *schedule, schedule_prompt *prompts, uint32_t prompt_count, uint32_t rows_max,
                   bool is_decoding);

/* What the step took; prompts as schedule_step left them. */
void schedule_learn(schedule *schedule, const schedule_prompt *prompts, uint32_t prompt_count, bool is_decoding,
                    double step_ns);

#endif
