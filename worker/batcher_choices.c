/* batcher_choices.c - choices of requests, from their first token to the last event. */
#include "worker/batcher_state.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "worker/follow.h"
#include "worker/sampler.h"

/* Ends of jobs */

/* The job's memory and the request's are others' after this. */
static void release_job(batcher *b, job *j) {
    _Atomic uint32_t *count = j->list == &b->waiting ? &b->waiting_count : &b->running_count;
    follow_end(j, &b->waiting);
    atomic_fetch_sub_explicit(count, 1, memory_order_relaxed);
    job_list_remove(j);
    pthread_mutex_lock(&b->lock);
    j->is_used = false;
    job_list_append(&b->free_jobs, j);
    pthread_mutex_unlock(&b->lock);
}

void batcher_forget_tokens(sequence *s) {
    token_counts_fini(&s->counts);
    free(s->owned_ids);
    s->owned_ids = NULL;
}

static void close_sequence(batcher *b, sequence *s, bool keep, bool early) {
    attention *a = b->config.attention;
    hd_status status = a->ops->sequence_close(a, s->name, s->epoch, keep, early);
    if (status != HD_OK && status != HD_STALE) { /* stale: it is another worker's by now */
        hd_log(HD_LOG_ERROR, "sequence_close_failed", "request=%" PRIu64 " status=%s", s->request->id,
               hd_status_name(status));
    }
    batcher_forget_tokens(s);
    s->job = NULL;
    b->full_until_ns = 0;
}

static void end_choice(batcher *b, job *j, uint32_t choice, worker_finish finish, uint32_t stop_id) {
    worker_request *request = j->request;
    worker_event event = {.kind = WORKER_FINISHED,
                          .choice = choice,
                          .finish = finish,
                          .stop_id = stop_id,
                          .last = ++j->ended_choices == request->choices};
    if (event.last) release_job(b, j);
    batcher_emit(request, &event);
}

void batcher_fail_job(batcher *b, job *j, hd_status status, const char *message) {
    worker_request *request = j->request;
    hd_log(HD_LOG_WARN, "request_failed", "request=%" PRIu64 " sequence=%016" PRIx64 " status=%s trace_id=%s",
           request->id, request->sequence, hd_status_name(status), request->trace_id);
    /* Who lost an attention node comes again, and finds what the others have. */
    bool keep = status == HD_PEER_LOST && !request->no_cache;
    for (uint32_t i = 0; i < b->config.running_max; i++) {
        if (b->sequences[i].job == j) close_sequence(b, &b->sequences[i], keep, true);
    }
    release_job(b, j);
    batcher_emit(request, &(worker_event){.kind = WORKER_FAILED, .last = true, .status = status, .message = message});
}

uint32_t batcher_take_choice(batcher *b, job *j) {
    uint32_t choices = j->request->choices;
    while (j->next_choice < choices) {
        uint32_t choice = j->next_choice++;
        if (j->request->answers != NULL && j->request->answers[choice].has_ended) continue;
        if (!job_is_cancelled(j, choice)) return choice;
        bool is_last = j->ended_choices + 1 == choices;
        end_choice(b, j, choice, WORKER_FINISH_CANCELLED, 0);
        if (is_last) break;
    }
    return NO_CHOICE;
}

/* Starts */

hd_status batcher_learn_tokens(sequence *s, const worker_request *request, uint32_t choice) {
    const worker_answer *answer = request->answers != NULL ? &request->answers[choice] : NULL;
    uint64_t prompt_count = request->prompt_count, answer_count = answer != NULL ? answer->token_count : 0;
    batcher_forget_tokens(s);
    s->known_ids = request->prompt_ids;
    s->known_count = prompt_count;
    s->answer_count = answer_count;
    if (answer_count == 0) return HD_OK;
    s->owned_ids = malloc((prompt_count + answer_count) * sizeof(*s->owned_ids));
    if (s->owned_ids == NULL) return HD_NO_MEMORY;
    memcpy(s->owned_ids, request->prompt_ids, prompt_count * sizeof(*s->owned_ids));
    memcpy(s->owned_ids + prompt_count, answer->token_ids, answer_count * sizeof(*s->owned_ids));
    s->known_ids = s->owned_ids;
    s->known_count = prompt_count + answer_count;
    return HD_OK;
}

hd_status batcher_start_choice(batcher *b, sequence *s, job *j, uint32_t choice, uint64_t length) {
    const worker_request *request = j->request;
    uint64_t tokens = request->prompt_count + request->max_tokens, vocabulary = b->config.model->vocabulary_size;
    s->job = j;
    s->request = request;
    s->choice = choice;
    s->length = length;
    s->lost = HD_OK;
    s->lost_count = 0;
    s->rest_until_ns = 0;
    s->reports_prompt = !j->is_prefilled;
    rope_table_init(s->rope, &b->config.model->rope, tokens);
    if (!sampler_has_penalties(&request->sampling)) return HD_OK;
    hd_status status = token_counts_init(&s->counts, tokens < vocabulary ? tokens : vocabulary);
    if (status != HD_OK) return status;
    token_counts_add_prompt(&s->counts, request->prompt_ids, request->prompt_count);
    for (uint64_t i = request->prompt_count; i < s->known_count; i++)
        token_counts_add_answer(&s->counts, s->known_ids[i]);
    return HD_OK;
}

/* Ends, and what becomes of the sequences */

void batcher_finish_choice(batcher *b, sequence *s, worker_finish finish, uint32_t stop_id) {
    job *j = s->job;
    attention *a = b->config.attention;
    const worker_request *request = j->request;
    uint32_t choice = s->choice;
    bool has_more_to_do = request->max_tokens > 0 || sequence_is_prefilling(s);
    uint32_t successor = has_more_to_do ? batcher_take_choice(b, j) : NO_CHOICE;
    if (successor == NO_CHOICE) {
        close_sequence(b, s, !request->no_cache, finish == WORKER_FINISH_CANCELLED);
    } else {
        hd_status status = HD_OK;
        uint64_t length = s->length;
        if (length >= request->prompt_count) {
            length = request->prompt_count - 1;
            status = a->ops->truncate(a, s->name, s->epoch, length);
        }
        if (status == HD_OK) status = batcher_learn_tokens(s, request, successor);
        if (status == HD_OK) status = batcher_start_choice(b, s, j, successor, length);
        if (status != HD_OK) {
            batcher_fail_job(b, j, status, hd_status_text(status));
            return;
        }
    }
    end_choice(b, j, choice, finish, stop_id);
}

void batcher_finish_without_tokens(batcher *b, sequence *s) {
    job *j = s->job;
    uint32_t left = j->request->choices - j->next_choice, choice;
    batcher_finish_choice(b, s, WORKER_FINISH_LENGTH, 0);
    while (left > 0 && (choice = batcher_take_choice(b, j)) != NO_CHOICE) {
        left = j->request->choices - j->next_choice;
        end_choice(b, j, choice, WORKER_FINISH_LENGTH, 0);
    }
}
