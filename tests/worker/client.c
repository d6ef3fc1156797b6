#include "tests/worker/client.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#define PATIENCE_S 60

void client_init(client *c, worker_rpc *rpc) {
    *c = (client){.rpc = rpc};
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->news, NULL);
}

void client_fini(client *c) {
    pthread_mutex_destroy(&c->lock);
    pthread_cond_destroy(&c->news);
}

/* A wrong event ends the process: a failing assertion would unwind the worker's thread. */
static void expect(bool is_true, const char *what) {
    if (is_true) return;
    fprintf(stderr, "worker event: %s\n", what);
    abort();
}

static void keep_logprobs(worker_logprob *all, uint64_t first_entry, const worker_event *event) {
    memcpy(all + first_entry * event->logprob_count, event->logprobs,
           (size_t)event->entry_count * event->logprob_count * sizeof(*all));
}

static void keep_token(client_request *r, const worker_event *event) {
    client_choice *choice = &r->choices[event->choice];
    expect(!choice->has_ended && choice->token_count < r->request.max_tokens, "a token after the end");
    uint64_t before = r->request.answers != NULL ? r->request.answers[event->choice].token_count : 0;
    expect(event->position == r->request.prompt_count + before + choice->token_count,
           "a token at another position than the next");
    if (event->choice == 0 && event->entry_count > 0) {
        expect(event->logprob_count == (uint32_t)r->request.sampling.logprobs + 1, "another number of logprobs");
        keep_logprobs(r->logprobs, choice->token_count, event);
    }
    choice->token_ids[choice->token_count++] = event->token_id;
}

static void on_event(worker_request *request, const worker_event *event) {
    client_request *r = (client_request *)request;
    client *c = r->client;
    if (r->watch != NULL) r->watch(r, event);
    pthread_mutex_lock(&c->lock);
    uint64_t order = ++c->event_count;
    expect(r->last_order == 0, "something after the last event");
    switch (event->kind) {
    case WORKER_STARTED:
        expect(r->started_order == 0, "started twice");
        expect(event->selection != NULL, "started with no selection");
        snprintf(r->selection, sizeof(r->selection), "%s", event->selection);
        r->started_order = order;
        r->cached_tokens = r->prompt_done = event->cached_tokens;
        break;
    case WORKER_PROGRESS:
        expect(event->prompt_done > r->prompt_done || event->prompt_done == request->prompt_count,
               "progress that goes back");
        expect(event->prompt_count == request->prompt_count, "progress of another prompt");
        r->prompt_done = event->prompt_done;
        r->progress_events++;
        if (r->prompt_done == request->prompt_count) r->prompt_order = order;
        break;
    case WORKER_PROMPT_LOGPROBS:
        expect(event->position == r->prompt_logprob_entries + 1, "prompt logprobs out of order");
        keep_logprobs(r->prompt_logprobs, r->prompt_logprob_entries, event);
        r->prompt_logprob_entries += event->entry_count;
        break;
    case WORKER_TOKEN: keep_token(r, event); break;
    case WORKER_FINISHED:
        expect(!r->choices[event->choice].has_ended, "a choice that ends twice");
        r->choices[event->choice].has_ended = true;
        r->choices[event->choice].finish = event->finish;
        r->choices[event->choice].stop_id = event->stop_id;
        if (event->last) r->last_order = order;
        break;
    case WORKER_FAILED:
        r->has_failed = true;
        r->status = event->status;
        snprintf(r->message, sizeof(r->message), "%s", event->message);
        r->last_order = order;
        break;
    }
    for (uint32_t i = 0; r->last_order != 0 && !r->has_failed && i < request->choices; i++) {
        bool was_over = r->request.answers != NULL && r->request.answers[i].has_ended;
        expect(was_over || r->choices[i].has_ended, "the last event before the last choice");
    }
    pthread_cond_broadcast(&c->news);
    pthread_mutex_unlock(&c->lock);
}

client_request *client_request_new(client *c, uint64_t id, const uint32_t *prompt_ids, uint64_t prompt_count,
                                   uint64_t max_tokens) {
    client_request *r = calloc(1, sizeof(*r));
    assert_non_null(r);
    r->client = c;
    r->request = (worker_request){
        .id = id,
        .prompt_ids = prompt_ids,
        .prompt_count = prompt_count,
        .max_tokens = max_tokens,
        .choices = 1,
        .sampling = {.top_p = 1, .repetition_penalty = 1, .ignore_eos = true, .logprobs = -1, .prompt_logprobs = -1},
        .on_event = on_event,
    };
    for (uint32_t i = 0; i < CLIENT_CHOICES_MAX; i++)
        r->choices[i].token_ids = calloc(max_tokens + 1, sizeof(uint32_t));
    r->logprobs = calloc((max_tokens + 1) * (1 + WORKER_LOGPROBS_MAX), sizeof(*r->logprobs));
    r->prompt_logprobs = calloc((prompt_count + 1) * (1 + WORKER_LOGPROBS_MAX), sizeof(*r->prompt_logprobs));
    return r;
}

void client_request_free(client_request *r) {
    if (r == NULL) return;
    for (uint32_t i = 0; i < CLIENT_CHOICES_MAX; i++) free(r->choices[i].token_ids);
    free(r->logprobs);
    free(r->prompt_logprobs);
    free(r);
}

void client_submit(client_request *r) {
    hd_error error = {.text = ""};
    if (r->client->rpc->ops->submit(r->client->rpc, &r->request, &error) != HD_OK)
        fail_msg("not accepted: %s", error.text);
}

/* What a test waits for. */
typedef enum { UNTIL_LAST, UNTIL_STARTED, UNTIL_PROGRESS } until;

static bool has_come(const client_request *r, until what, uint64_t events) {
    switch (what) {
    case UNTIL_LAST: return r->last_order != 0;
    case UNTIL_STARTED: return r->started_order != 0;
    case UNTIL_PROGRESS: return r->progress_events >= events;
    }
    return false;
}

static void wait_for(client_request *r, until what, uint64_t events) {
    client *c = r->client;
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += PATIENCE_S;
    pthread_mutex_lock(&c->lock);
    int failed = 0;
    while (!has_come(r, what, events) && failed == 0) failed = pthread_cond_timedwait(&c->news, &c->lock, &deadline);
    bool is_there = has_come(r, what, events);
    pthread_mutex_unlock(&c->lock);
    if (!is_there) fail_msg("request %lu: nothing within %d s", (unsigned long)r->request.id, PATIENCE_S);
}

void client_wait(client_request *r) {
    wait_for(r, UNTIL_LAST, 0);
}

void client_wait_started(client_request *r) {
    wait_for(r, UNTIL_STARTED, 0);
}

void client_wait_progress(client_request *r, uint64_t events) {
    wait_for(r, UNTIL_PROGRESS, events);
}

bool client_has_ended(client_request *r) {
    pthread_mutex_lock(&r->client->lock);
    bool has_ended = r->last_order != 0;
    pthread_mutex_unlock(&r->client->lock);
    return has_ended;
}
