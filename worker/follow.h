/* follow.h - requests that wait while a running one computes a prefix that they share.
 *
 * A prompt that arrives while an equal one is being prefilled would find nothing of it in the cache, and compute it all
 * again. Instead it waits, block by block: as soon as the leader has the last block of what they share, or has ended,
 * the follower is admitted and opens its sequence on the leader's blocks.
 *
 *     WAITING --follow_wait: a leader is found--> follows --leader passed it, or ended--> WAITING, the next in line
 *
 *   1. A leader runs, so it never waits for anybody, and every follower's turn comes.
 *   2. Its leader's prompt counts as no longer than the shortest of its followers' (schedule.h), so that nobody is
 *      slower for following than for computing the prefix itself.
 *   3. A follower holds neither memory nor a place, and is passed by in the queue. Answers do not depend on any of it.
 * Threads: the step thread. */
#ifndef WORKER_FOLLOW_H
#define WORKER_FOLLOW_H

#include "worker/job.h"

/* Whether a waiting job has to go on waiting for a leader. */
bool follow_wait(job *j, const job_list *running);
/* The job ends, in whatever role: nobody follows it any more, and it follows nobody. */
void follow_end(job *j, const job_list *waiting);

/* The next follower of a leader in the list, after `previous` (NULL: the first); NULL when there is none. */
job *follow_next(const job *leader, const job_list *waiting, const job *previous);
/* Of a follower: how much of its prompt is there. */
uint64_t follow_prompt_done(const job *follower);
/* The shortest prompt among a leader's followers; 0 when it has none. */
uint64_t follow_shortest(const job *leader, const job_list *waiting);

#endif
