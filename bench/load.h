/* load.h - sends requests to an OpenAI-compatible server at a given rate and measures what comes back.
 *
 * Open loop: requests leave at the times of a Poisson process whatever the server does, so a server that falls behind
 * shows it as waiting time instead of slowing the load down. Every answer is streamed; an event is a piece of text of
 * an answer.
 *   ttft  from connect to the first event                    itl  between two events of one answer
 *   tpot  (end - first event) / (output tokens - 1)          e2el from connect to the end of the answer
 * Threads: load_run runs on the calling thread and calls on_progress there. */
#ifndef BENCH_LOAD_H
#define BENCH_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "bench/statistics.h"

typedef struct load_progress {
    uint64_t requests, sent, completed, failed; /* sent counts those that have ended too */
    uint64_t output_events;
    double elapsed_s;
} load_progress;

typedef struct load_config {
    const char *url;      /* http://HOST:PORT */
    const char *api_key;  /* NULL: none */
    const char *model;    /* NULL: the first that /v1/models names */
    bool is_chat;         /* /v1/chat/completions instead of /v1/completions */
    double rate;          /* requests a second; 0: all at once */
    uint64_t requests;    /* >= 1 */
    uint64_t concurrency; /* at most so many at once; 0: no bound. A bound closes the loop when it is reached */
    uint64_t prompt_tokens, output_tokens; /* >= 1 */
    double spread;                         /* lengths are uniform in [n * (1 - spread), n * (1 + spread)] */
    uint64_t prefix_tokens;                /* what all prompts begin with */
    double temperature;
    uint64_t seed;
    uint64_t timeout_ms;                                               /* of a request; 0: none */
    void (*on_progress)(void *context, const load_progress *progress); /* about ten times a second; may be NULL */
    void *context;
} load_config;

typedef struct load_request { /* times in seconds from the start of the load */
    double due_s, start_s, first_s, last_s, end_s;
    uint64_t prompt_tokens, cached_tokens, output_tokens; /* as the server counts them */
    uint64_t events;
    bool is_ok;
} load_request;

typedef struct load_result {
    char model[256];
    bool has_ids;           /* prompts were token ids, so their lengths are exact */
    load_request *requests; /* [request_count], in the order in which they were due */
    uint64_t request_count, completed, failed;
    double duration_s; /* from the first connect to the last end */
    sample itl_ms;
    char first_failure[256]; /* "" for none */
} load_result;

/* The error says what is wrong with the server or the URL; single requests that fail are counted, not returned. */
hd_status load_run(const load_config *config, load_result *result, hd_error *error);
void load_result_fini(load_result *result);

#endif
