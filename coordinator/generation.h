/* generation.h - one request being answered: from its tokens to the last byte of its answer.
 *
 *   generation_start (request thread) --worker_rpc.submit--> events (worker's thread)
 *       --event_ring--> run (a reply thread): choices, answer
 *
 *   1. The worker's thread only puts a record into the ring and, if the generation is not scheduled yet, into the reply
 *      pool.
 *   2. One reply thread at a time runs a generation (is_scheduled), so everything but the ring and the flags needs no
 *      lock.
 *   3. It is freed when it has been answered and the worker has sent the last event of each part, not before.
 *   4. A stream whose client reads slowly is not written to until the connection has drained; meanwhile tokens wait in
 *      the ring. When that is full, whose fault it is decides: a client that was waited for is cut off; a process that
 *      falls behind its worker refuses the request with 503.
 * Threads: start on a request thread; the others from any, while the sequence table holds it. */
#ifndef COORDINATOR_GENERATION_H
#define COORDINATOR_GENERATION_H

#include "coordinator/api.h"
#include "coordinator/operator_rows.h"
#include "coordinator/prompt.h"

typedef struct generation generation;

/* Answers the call in every case, now or later. Takes what request and prompts own, also when it fails. */
void generation_start(api_call *call, request *r, prompt *prompts);

/* Looks at the wall clock for it: keep-alive comments, time-outs, parts that found no room. */
void generation_tick(generation *g, uint64_t now_ns);
/* The server ends: what is not done is answered with that. */
void generation_end(generation *g);
/* An operator wants it to end: it is answered with that. */
void generation_cancel(generation *g);
/* What an operator is shown of it, but for the worker: named by the id of its first part's request at the worker. The
 * texts are borrowed from the model. */
void generation_describe(generation *g, uint64_t now_ns, operator_sequence *row);

#endif
