/* fake_worker.h - a worker made of a script: what it will say is known, and when it says it is the test's to decide.
 *
 * Its vocabulary is that of tests/coordinator/model: a token for each byte, so a script is text. Choice c of a request
 * answers with the script and, where choices > 1, a digit c after it. Each token has log-probability -id/100, and the
 * likeliest are ids 0, 1, ... It answers on one thread of its own, as a real worker does, one token of each running
 * request after the other. Threads: set the script before requests come; the others from any thread. */
#ifndef TESTS_COORDINATOR_FAKE_WORKER_H
#define TESTS_COORDINATOR_FAKE_WORKER_H

#include "proto/worker_rpc.h"

#define FAKE_EOS 257u

typedef struct fake_worker fake_worker;

typedef struct fake_script {
    const char *text;      /* what it says; then end of text */
    bool is_endless;       /* says it again and again, until max_tokens */
    uint32_t requests_max; /* further ones get HD_FULL; 0: no bound */
    uint64_t context_max;  /* 0: 4096 */
    unsigned token_delay_us;
    uint64_t hold_after;     /* holds itself once when a request has so many tokens; 0: never */
    uint32_t progress_chunk; /* prompt tokens of a chunk; 0: no progress events */
    unsigned chunk_delay_us;
    hd_status failure;           /* not HD_OK: FAILED after the first token */
    const char *failure_message; /* of it; NULL: "a broken cable" */
    uint32_t cached_tokens;
} fake_script;

fake_worker *fake_worker_open(const fake_script *script);
void fake_worker_close(fake_worker *worker); /* asserts that nothing runs */
worker_rpc *fake_worker_rpc(fake_worker *worker);

/* While held, requests are accepted and not started. */
void fake_worker_hold(fake_worker *worker, bool is_held);
uint32_t fake_worker_running(fake_worker *worker);
uint32_t fake_worker_cancelled(fake_worker *worker); /* requests that ended because they were cancelled as a whole */
uint32_t fake_worker_cache_resets(fake_worker *worker);
/* The last request that was submitted: its prompt (as far as it fits), sampling and salt. */
typedef struct fake_seen {
    uint64_t max_tokens, prompt_count;
    uint32_t choices, prompt[512];
    worker_sampling sampling;
    worker_logit_bias bias;
    unsigned char salt[16];
    char selection[64];
    bool no_cache;
} fake_seen;
void fake_worker_seen(fake_worker *worker, fake_seen *seen);

#endif
