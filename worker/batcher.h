/* batcher.h - the loop of a worker: requests in, steps, events out.
 *
 *   request: WAITING --admitted--> RUNNING --last choice ended--> gone
 *   choice:  not started --sequence_open, fork or recycled sequence--> PREFILL --prompt done--> DECODE --> FINISHED
 *
 *   1. Admission is first come, first served: while the oldest does not fit (HD_FULL), nobody overtakes it. Passed by
 *      is only who waits for a running request to compute a prefix that both have (follow.h).
 *   2. A request's prompt is prefilled once. Its other choices fork the sequence before the prompt's last token, as
 *      far as memory and places go; where they do not, a choice that ends hands its sequence to one that has not
 *      started. So n choices always finish.
 *   3. A step has every decode row, then prefill as schedule.h shares it out.
 *   4. What was admitted is never preempted: its memory was reserved when it came in.
 *   5. A step that fails ends the requests that were in it, and nobody else.
 * Threads: submit, cancel, load and cache_reset from any; everything else, and every event, on the step thread. */
#ifndef WORKER_BATCHER_H
#define WORKER_BATCHER_H

#include "worker/worker.h"

typedef struct batcher batcher;

/* Starts the step thread. context_max: the model's and the configuration's; what attention has held so far bounds it
 * as well. */
hd_status batcher_open(const worker_config *config, uint64_t context_max, batcher **out, hd_error *error);
/* Refuses what comes from now on, waits for what is there (at most drain_ms), cancels the rest, and ends the thread.
 * Accepts NULL. */
void batcher_close(batcher *batcher, uint64_t drain_ms);

hd_status batcher_submit(batcher *batcher, worker_request *request, hd_error *error);
void batcher_cancel(batcher *batcher, uint64_t id, uint32_t choice);
void batcher_cache_reset(batcher *batcher); /* takes place between two steps */
void batcher_load(batcher *batcher, worker_load *load);

#endif
