/* generation_state.h - the inside of a generation, shared by generation.c (its life), generation_events.c (the worker's
 * events), generation_notes.c (what others tell it) and answer*.c (what is written of it). */
#ifndef COORDINATOR_GENERATION_STATE_H
#define COORDINATOR_GENERATION_STATE_H

#include <pthread.h>

#include "coordinator/choice.h"
#include "coordinator/event_ring.h"
#include "coordinator/generation.h"
#include "coordinator/prefill_estimate.h"

struct answer_format;

/* One prompt, as the worker sees it. */
typedef struct generation_part {
    worker_request request;
    generation *owner;
    uint32_t index;
    worker_logprob *prompt_logprobs; /* [prompt tokens][width]; written by events, read after the first token */
    bool is_submitted, is_closed;
    uint64_t prompt_done; /* guarded by the generation's lock */
} generation_part;

typedef enum { TIMEOUT_NONE, TIMEOUT_REQUEST, TIMEOUT_QUEUE } generation_timeout;

/* Why a token found no room in the ring: the client was waited for, or nobody came to take tokens out. */
typedef enum { OVERFLOW_NONE, OVERFLOW_CLIENT, OVERFLOW_SERVER } generation_overflow;

/* What others have to tell the thread that runs the generation. */
typedef struct generation_notes {
    bool is_gone, is_ending, is_cancelled, is_keep_alive_due, is_drained, is_submit_due, has_progress;
    generation_timeout timeout;
    generation_overflow overflow;
    uint64_t progress_ns;
} generation_notes;

struct generation {
    work_item work;
    api *api;
    api_call *call; /* NULL once answered */
    const served_model *model;
    const struct answer_format *format;
    uint32_t slot; /* in the sequence table */
    uint64_t arrived_ns;

    request request;
    prompt *prompts;        /* [request.prompt_count] */
    generation_part *parts; /* the same */
    choice *choices;        /* [choice_count]; those of a prompt stand together */
    uint32_t choice_count, choices_open;
    stop_set stops;
    uint32_t logprob_width, prompt_logprob_width;

    uint64_t max_tokens; /* of each choice, as the worker was asked */
    uint64_t prompt_tokens, cached_tokens;
    uint64_t created_s, started_ns, first_token_ns;
    uint32_t next_part, parts_open;
    bool is_stream_begun, is_answered;
    prefill_estimate estimate;
    text_buffer head;        /* the members that every chunk begins with */
    text_buffer out;         /* what is being written */
    worker_logprob *scratch; /* of one batch of records */

    _Atomic uint64_t last_write_ns;

    pthread_mutex_t lock; /* guards what follows, and prompt_done of each part */
    event_ring ring;
    generation_notes notes;
    bool is_scheduled, is_admitted, has_waiting_parts;
    bool is_paused;       /* what was written waits for the client, and tokens wait in the ring for that */
    uint64_t said_tokens; /* that the worker has told */
    char failure[256];    /* the worker's message with FAILED */
    char selection[256];  /* that the worker has started with */
};

/* The worker's callback. */
void generation_on_event(worker_request *r, const worker_event *event);
/* With the lock held: has a reply thread run it, unless one will. */
void generation_schedule(generation *g);
/* Whether there is anything to be heeded. */
bool generation_has_note(const generation_notes *notes);
/* What is answered to who was cancelled. Returns HD_INVALID. */
hd_status generation_refuse_cancelled(api_error *error);
/* Applies one record. A failure of the worker comes back in error, with HD_INVALID. */
hd_status generation_apply(generation *g, const event_record *record, const worker_logprob *logprobs, api_error *error);

#endif
