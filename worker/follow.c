/* follow.c - who waits for whom. Prompts are compared when a request comes to the head of the queue, and not again
 * until its leader has passed: comparing a million equal tokens takes as long as a step. */
#include "worker/follow.h"

#include <string.h>

#include "kernels/ops.h"

/* Tokens that two prompts share, in whole blocks. */
static uint64_t shared_prefix(const worker_request *a, const worker_request *b) {
    uint64_t most = a->prompt_count < b->prompt_count ? a->prompt_count : b->prompt_count, shared = 0;
    while (most - shared >= HD_BLOCK_TOKENS &&
           memcmp(a->prompt_ids + shared, b->prompt_ids + shared, HD_BLOCK_TOKENS * sizeof(*a->prompt_ids)) == 0) {
        shared += HD_BLOCK_TOKENS;
    }
    return shared;
}

static bool is_passed(const job *leader, uint64_t shared) {
    return leader->is_prefilled || leader->prompt_done / HD_BLOCK_TOKENS * HD_BLOCK_TOKENS >= shared;
}

static bool may_lead(const job *leader, const job *j) {
    return !leader->is_prefilled && !leader->request->no_cache && leader->variant == j->variant &&
           memcmp(leader->request->salt, j->request->salt, sizeof(j->request->salt)) == 0;
}

static void stop(job *j) {
    if (j->leader == NULL) return;
    j->leader->follower_count--;
    j->leader = NULL;
}

bool follow_wait(job *j, const job_list *running) {
    if (j->leader != NULL && !is_passed(j->leader, j->shared)) return true;
    stop(j);
    if (!job_may_reuse(j)) return false;
    job *best = NULL;
    uint64_t most = 0;
    for (job *leader = running->first; leader != NULL; leader = leader->next) {
        if (!may_lead(leader, j)) continue;
        uint64_t shared = shared_prefix(leader->request, j->request);
        if (is_passed(leader, shared) || shared <= most) continue;
        best = leader;
        most = shared;
    }
    if (best == NULL) return false;
    best->follower_count++;
    j->leader = best;
    j->shared = most;
    return true;
}

void follow_end(job *j, const job_list *waiting) {
    stop(j);
    for (job *f; (f = follow_next(j, waiting, NULL)) != NULL;) stop(f);
}

job *follow_next(const job *leader, const job_list *waiting, const job *previous) {
    if (leader->follower_count == 0) return NULL;
    job *j = previous == NULL ? waiting->first : previous->next;
    while (j != NULL && j->leader != leader) j = j->next;
    return j;
}

uint64_t follow_prompt_done(const job *follower) {
    uint64_t done = follower->leader->prompt_done;
    return done < follower->shared ? done : follower->shared;
}

uint64_t follow_shortest(const job *leader, const job_list *waiting) {
    uint64_t shortest = 0;
    for (job *j = NULL; (j = follow_next(leader, waiting, j)) != NULL;) {
        if (shortest == 0 || j->request->prompt_count < shortest) shortest = j->request->prompt_count;
    }
    return shortest;
}
