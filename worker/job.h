/* job.h - a request from submit to its last event, and the lists it passes through: free, arrived, waiting, running.
 *
 * Threads: the list says whose it is: free and arrived jobs belong to the batcher's lock, the others to the step
 * thread. The cancel bits may be set from any thread, under the lock. */
#ifndef WORKER_JOB_H
#define WORKER_JOB_H

#include <stdatomic.h>
#include <stdbool.h>

#include "proto/worker_rpc.h"

#define JOB_CANCEL_WORDS (WORKER_CHOICES_MAX / 64)

typedef struct job_list {
    struct job *first, *last;
} job_list;

typedef struct job {
    worker_request *request;
    uint64_t id;  /* the request's */
    bool is_used; /* id may be looked up */
    job_list *list;
    struct job *previous, *next;
    uint64_t arrival;
    _Atomic uint64_t cancelled[JOB_CANCEL_WORDS]; /* a bit a choice */
    uint32_t next_choice;                         /* the first that has not started */
    uint32_t ended_choices;
    bool is_prefilled;
    uint64_t variant;     /* of its rope: keys are shared among equal ones (rope_table_variant) */
    uint64_t prompt_done; /* tokens of the prompt that are there, as was told last */
    struct job *leader;   /* follow.h; NULL: it follows nobody */
    uint64_t shared;      /* with a leader: tokens to wait for, whole blocks */
    uint32_t follower_count;
} job;

/* Whether what others computed may stand for a part of its prompt. */
static inline bool job_may_reuse(const job *j) {
    return !j->request->no_cache && j->request->sampling.prompt_logprobs < 0;
}

static inline void job_list_append(job_list *list, job *j) {
    j->list = list;
    j->previous = list->last;
    j->next = NULL;
    *(list->last != NULL ? &list->last->next : &list->first) = j;
    list->last = j;
}

static inline void job_list_remove(job *j) {
    *(j->previous != NULL ? &j->previous->next : &j->list->first) = j->next;
    *(j->next != NULL ? &j->next->previous : &j->list->last) = j->previous;
    j->list = NULL;
}

static inline void job_cancel(job *j, uint32_t choice) { /* UINT32_MAX: all */
    for (uint32_t i = 0; i < JOB_CANCEL_WORDS; i++) {
        uint64_t bits = choice == UINT32_MAX ? UINT64_MAX : choice / 64 == i ? 1ull << choice % 64 : 0;
        atomic_fetch_or_explicit(&j->cancelled[i], bits, memory_order_relaxed);
    }
}

static inline bool job_is_cancelled(const job *j, uint32_t choice) {
    return atomic_load_explicit(&j->cancelled[choice / 64], memory_order_relaxed) >> choice % 64 & 1;
}

#endif
