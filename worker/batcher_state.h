/* batcher_state.h - the inside of a batcher, shared by batcher.c (the thread, and what callers reach),
 * batcher_admission.c (which requests start), batcher_choices.c (choices from their start to their end) and
 * batcher_step.c (a step).
 *
 * Callers reach it through one small lock: a list of what arrived, cancel bits, and flags. Everything else belongs
 * to the step thread, which looks at those between two steps.
 * Threads: every function here is the step thread's. */
#ifndef WORKER_BATCHER_STATE_H
#define WORKER_BATCHER_STATE_H

#include <pthread.h>

#include "worker/batcher.h"
#include "worker/job.h"
#include "worker/request_check.h"
#include "worker/schedule.h"
#include "worker/sequence.h"
#include "worker/step.h"
#include "worker/worker_metrics.h"

#define NS_PER_MS 1000000ull
#define FULL_RETRY_MS 100u /* attention may be shared with others, whose releases nobody announces */
#define NO_CHOICE UINT32_MAX

struct batcher {
    worker_config config;
    request_limits limits;
    step *step;
    schedule schedule;
    worker_metrics metrics;
    pthread_t thread;
    bool has_thread, has_lock;

    pthread_mutex_t lock; /* of the fields up to deadline_ns; news: one of them has changed */
    pthread_cond_t news;
    job_list free_jobs, arrivals;
    uint64_t next_arrival;
    bool is_closing, is_reset_asked;
    uint64_t deadline_ns; /* with is_closing */

    _Atomic bool has_cancelled;
    _Atomic uint32_t running_count, waiting_count; /* requests; arrivals are waiting */
    _Atomic uint64_t most_held;                    /* tokens that attention has had room for */
    struct {
        _Atomic uint64_t steps, rows, dense_ns, wire_ns, attention_ns;
    } spent; /* worker_rpc.h, worker_load */

    /* The step thread's. */
    job *jobs; /* [requests_max] */
    job_list waiting, running;
    sequence *sequences; /* [running_max] */
    char *ropes;         /* [running_max] tables of rope_bytes */
    size_t rope_bytes;
    sequence **members;       /* [running_max]: of the step */
    schedule_prompt *prompts; /* [running_max] */
    uint64_t next_name;
    uint32_t losses;        /* that the step in hand has been run again for */
    uint64_t full_until_ns; /* attention was full: no use to ask again before, unless something is released */
};

static inline void batcher_emit(worker_request *request, const worker_event *event) {
    request->on_event(request, event);
}

/* batcher_admission.c: starts more choices of what runs, then waiting requests in their order, as far as memory and
 * places go. */
void batcher_admit(batcher *b);

/* batcher_step.c: one step of what can take part in one; naps where everything has to rest. */
void batcher_run_step(batcher *b);

/* batcher_choices.c. What ends the last choice of a job ends the job; its memory and the request's are others' then. */

/* The next choice to start; choices cancelled before their turn end here. With NO_CHOICE the job may be gone. */
uint32_t batcher_take_choice(batcher *b, job *j);
/* What the choice's tokens are from the start: the prompt, and behind it what another worker has said for it. */
hd_status batcher_learn_tokens(sequence *s, const worker_request *request, uint32_t choice);
void batcher_forget_tokens(sequence *s);
/* Makes the sequence, which has learnt its tokens, ready for a choice that is in attention up to `length`. */
hd_status batcher_start_choice(batcher *b, sequence *s, job *j, uint32_t choice, uint64_t length);
/* Its sequence goes on as the next choice that has not started, or is closed. */
void batcher_finish_choice(batcher *b, sequence *s, worker_finish finish, uint32_t stop_id);
/* max_tokens 0: the prompt was all there was to do, for every choice. */
void batcher_finish_without_tokens(batcher *b, sequence *s);
/* Ends the request with an error, and all of its sequences. */
void batcher_fail_job(batcher *b, job *j, hd_status status, const char *message);

#endif
