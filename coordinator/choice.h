/* choice.h - one answer of a request: tokens in, text out, until something stops it.
 *
 *   OPEN --push (text grows) --> OPEN --a stop string, choice_finish--> FINISHED
 *
 *   1. text holds what was not yet taken; the last choice_held bytes of it may belong to a stop string and must not be
 *      shown.
 *   2. After a stop string nothing changes any more: tokens that were under way are ignored.
 * Threads: one at a time (whichever reply thread has the generation). */
#ifndef COORDINATOR_CHOICE_H
#define COORDINATOR_CHOICE_H

#include "coordinator/request.h"
#include "coordinator/stop_matcher.h"
#include "coordinator/text_buffer.h"
#include "coordinator/token_log.h"
#include "model/text/text.h"

typedef enum { CHOICE_OPEN, CHOICE_STOP, CHOICE_LENGTH } choice_finish_reason;

typedef struct choice {
    uint32_t index; /* in the answer */
    text_stream *stream;
    stop_matcher matcher;
    const request *request; /* borrowed */
    text_buffer text;
    uint64_t text_base;   /* bytes of the choice's text before text.bytes[0] */
    uint64_t text_points; /* characters of the whole text so far */
    token_log log;
    bool keeps_log;       /* the answer shows log-probabilities or ids */
    uint64_t token_count; /* generated ones, for usage */
    choice_finish_reason finish;
    int32_t stop_string;              /* which one ended it; -1: none */
    int64_t stop_id;                  /* which stop_token_id ended it; -1: none (or the model's own end) */
    bool is_started;                  /* what stands before its text (echo) is there */
    bool is_first_written, is_closed; /* of a stream: its first and its last chunk have been written */
    uint64_t last_token_ns;
} choice;

/* stops is borrowed. logprob_width as token_log's. */
hd_status choice_init(choice *c, uint32_t index, const text_model *model, const request *r, const stop_set *stops,
                      uint32_t logprob_width);
void choice_fini(choice *c);

/* Text that stands before the answer (echo): it is not searched for stop strings. */
void choice_prepend(choice *c, const char *bytes, size_t count);
/* The tokens of a prompt that is about to be prepended, for the log; logprobs has width entries for each token but the
 * first. */
hd_status choice_log_prompt(choice *c, const text_model *model, const uint32_t *ids, size_t id_count,
                            const worker_logprob *logprobs, size_t width);

/* The next token. Returns whether a stop string has ended the choice with it. */
bool choice_push(choice *c, uint32_t id, const worker_logprob *logprobs);
/* The worker has ended the choice: LENGTH, or STOP by stop_id. Accepts a choice that a stop string has ended. */
void choice_finish(choice *c, choice_finish_reason reason, uint32_t stop_id);

size_t choice_held(const choice *c);
/* Text and log entries that may be shown now, and taking them away once they have been written. */
size_t choice_ready_bytes(const choice *c);
size_t choice_ready_entries(const choice *c);
void choice_take(choice *c, size_t bytes, size_t entries);
bool choice_is_failed(const choice *c); /* out of memory */

#endif
