/* event_ring.h - the worker's events on their way to the thread that writes the answer: a bounded ring of records.
 *
 * All memory is taken at open, for the worker's thread must not wait for an allocation; being empty moves it back to
 * its beginning, so a ring that is drained in time touches little of it. At its bound a token is refused, and its
 * request ends. The ends of choices have room of their own and always fit. Threads: none of its own; the owner's lock
 * guards it. */
#ifndef COORDINATOR_EVENT_RING_H
#define COORDINATOR_EVENT_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "proto/worker_rpc.h"

typedef struct event_record {
    uint64_t time_ns;
    uint32_t choice;   /* of the whole request */
    uint32_t token_id; /* or stop_id */
    uint8_t kind;      /* worker_event_kind: STARTED, TOKEN, FINISHED or FAILED */
    uint8_t finish;    /* worker_finish */
    uint8_t status;    /* hd_status, with FAILED */
    bool is_last, has_logprobs;
    uint64_t cached_tokens;
} event_record;

typedef struct event_ring {
    event_record *records;
    worker_logprob *logprobs; /* width of each record */
    uint32_t width, capacity, tokens_max;
    uint32_t first, count, tokens; /* tokens: those of count that are tokens */
} event_ring;

/* tokens_max records for tokens and reserved more for what must not be lost; width as token_log's. */
hd_status event_ring_open(event_ring *ring, uint32_t tokens_max, uint32_t reserved, uint32_t width);
void event_ring_close(event_ring *ring);
/* HD_FULL: a token that finds no room. logprobs: width of them, or NULL. */
hd_status event_ring_push(event_ring *ring, const event_record *record, const worker_logprob *logprobs);
/* Moves up to records_max records out; logprobs has room for width of each. Returns how many. */
uint32_t event_ring_pop(event_ring *ring, event_record *records, worker_logprob *logprobs, uint32_t records_max);

#endif
