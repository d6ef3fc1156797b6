/* generation_events.c - the worker's events: put into the ring by the worker's thread, applied to the choices by a
 * reply thread. */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "coordinator/generation_state.h"

void generation_schedule(generation *g) {
    if (g->is_scheduled) return;
    g->is_scheduled = true;
    /* The pool has room for every generation of the table once. */
    hd_status status = work_pool_submit(g->api->reply_pool, 0, &g->work);
    assert(status == HD_OK);
    (void)status;
}

static void keep_prompt_logprobs(generation_part *part, const worker_event *event) {
    uint32_t width = part->owner->prompt_logprob_width;
    uint64_t prompt_count = part->request.prompt_count;
    if (part->prompt_logprobs == NULL || event->position >= prompt_count || event->logprob_count != width) return;
    uint64_t room = prompt_count - event->position;
    uint64_t entries = event->entry_count < room ? event->entry_count : room;
    memcpy(part->prompt_logprobs + event->position * width, event->logprobs,
           (size_t)entries * width * sizeof(worker_logprob));
}

static void push(generation *g, const event_record *record, const worker_logprob *logprobs) {
    if (event_ring_push(&g->ring, record, logprobs) == HD_OK || g->notes.overflow != OVERFLOW_NONE) return;
    g->notes.overflow = g->is_paused ? OVERFLOW_CLIENT : OVERFLOW_SERVER;
}

void generation_on_event(worker_request *r, const worker_event *event) {
    generation_part *part = r->context;
    generation *g = part->owner;
    event_record record = {
        .time_ns = api_now_ns(g->api),
        .choice = part->index * g->request.choices + event->choice,
        .kind = (uint8_t)event->kind,
        .finish = (uint8_t)event->finish,
        .status = (uint8_t)event->status,
        .is_last = event->last,
    };
    pthread_mutex_lock(&g->lock);
    switch (event->kind) {
    case WORKER_STARTED:
        g->is_admitted = true;
        part->prompt_done = event->cached_tokens;
        if (event->selection != NULL) snprintf(g->selection, sizeof(g->selection), "%s", event->selection);
        record.cached_tokens = event->cached_tokens;
        record.choice = part->index * g->request.choices;
        push(g, &record, NULL);
        break;
    case WORKER_PROGRESS:
        g->is_admitted = true;
        part->prompt_done = event->prompt_done;
        g->notes.has_progress = true;
        g->notes.progress_ns = record.time_ns;
        break;
    case WORKER_PROMPT_LOGPROBS: keep_prompt_logprobs(part, event); break;
    case WORKER_TOKEN:
        record.token_id = event->token_id;
        g->said_tokens++;
        push(g, &record, event->logprob_count == g->logprob_width ? event->logprobs : NULL);
        break;
    case WORKER_FINISHED:
        record.token_id = event->stop_id;
        push(g, &record, NULL);
        break;
    case WORKER_FAILED:
        record.choice = part->index * g->request.choices;
        snprintf(g->failure, sizeof(g->failure), "%s",
                 event->message != NULL ? event->message : hd_status_text(event->status));
        push(g, &record, NULL);
        break;
    }
    generation_schedule(g);
    pthread_mutex_unlock(&g->lock);
}

/* What stands before a choice's own text, once all of its prompt's log-probabilities are there. */
static hd_status start_choice(generation *g, choice *c, generation_part *part, api_error *error) {
    const prompt *p = &g->prompts[part->index];
    if (g->request.echo) {
        if (g->logprob_width > 0 && g->request.kind == REQUEST_COMPLETION) {
            hd_status status = choice_log_prompt(c, g->model->text, p->ids, p->id_count, part->prompt_logprobs,
                                                 g->prompt_logprob_width);
            if (status != HD_OK) return api_error_no_memory(error);
        }
        if (p->text != NULL) choice_prepend(c, p->text, p->text_bytes);
    }
    c->is_started = true;
    return HD_OK;
}

static void observe_token(generation *g, choice *c, uint64_t time_ns) {
    const serving_metrics *metrics = &g->api->metrics;
    if (g->first_token_ns == 0) {
        g->first_token_ns = time_ns;
        hd_histogram_observe(metrics->time_to_first_token, (double)(time_ns - g->arrived_ns) * 1e-9);
        if (g->started_ns > 0)
            hd_histogram_observe(metrics->request_prefill_time, (double)(time_ns - g->started_ns) * 1e-9);
    }
    if (c->last_token_ns > 0)
        hd_histogram_observe(metrics->inter_token_latency, (double)(time_ns - c->last_token_ns) * 1e-9);
    c->last_token_ns = time_ns;
}

static void count_finished(generation *g, const choice *c) {
    g->choices_open--;
    hd_counter_add(g->api->metrics.request_success[c->finish == CHOICE_STOP ? REQUEST_END_STOP : REQUEST_END_LENGTH],
                   1);
}

/* A request for no tokens is put to the worker as one for one token, which is not shown: then only the prompt's echo is
 * wanted. */
static bool wants_tokens(const generation *g) {
    return !g->request.has_max_tokens || g->request.max_tokens > 0;
}

static hd_status apply_token(generation *g, choice *c, const event_record *record, const worker_logprob *logprobs) {
    observe_token(g, c, record->time_ns);
    if (!wants_tokens(g) || c->finish != CHOICE_OPEN) return HD_OK;
    if (choice_push(c, record->token_id, logprobs)) {
        count_finished(g, c);
        generation_part *part = &g->parts[c->index / g->request.choices];
        worker_rpc *worker = g->model->worker;
        worker->ops->cancel(worker, part->request.id, c->index % g->request.choices);
    }
    return HD_OK;
}

hd_status generation_refuse_cancelled(api_error *error) {
    api_error_set(error, 503, "service_unavailable", "cancelled", "the request was cancelled by the server");
    error->retry_after_s = 5;
    return HD_INVALID;
}

static hd_status apply_finished(generation *g, choice *c, const event_record *record, api_error *error) {
    if (c->finish != CHOICE_OPEN) return HD_OK;
    if (record->finish == WORKER_FINISH_CANCELLED) {
        if (g->is_answered) return HD_OK;
        return generation_refuse_cancelled(error);
    }
    bool is_stop = record->finish == WORKER_FINISH_STOP && wants_tokens(g);
    choice_finish(c, is_stop ? CHOICE_STOP : CHOICE_LENGTH, record->token_id);
    count_finished(g, c);
    return HD_OK;
}

/* Under the name of the client's field, where the worker names one (worker_rpc.h). */
static hd_status refuse_invalid(const char *message, api_error *error) {
    const char *end = message[0] == '\'' ? strchr(message + 1, '\'') : NULL;
    char field[sizeof(error->param)];
    if (end == NULL) return api_error_invalid(error, NULL, NULL, "%s", message);
    snprintf(field, sizeof(field), "%.*s", (int)(end - message - 1), message + 1);
    return api_error_invalid(error, field, "invalid_value", "%s", message);
}

static hd_status refuse_failed(generation *g, hd_status cause, api_error *error) {
    char message[sizeof(g->failure)];
    pthread_mutex_lock(&g->lock);
    memcpy(message, g->failure, sizeof(message));
    pthread_mutex_unlock(&g->lock);
    if (cause == HD_INVALID || cause == HD_UNSUPPORTED) return refuse_invalid(message, error);
    if (cause == HD_FULL) return api_error_full(g->api, error, message);
    api_error_set(error, cause == HD_CANCELLED || cause == HD_PEER_LOST ? 503 : 500, "server_error", NULL,
                  "the model's worker failed: %s", message);
    return HD_INVALID;
}

hd_status generation_apply(generation *g, const event_record *record, const worker_logprob *logprobs,
                           api_error *error) {
    generation_part *part = &g->parts[record->choice / g->request.choices];
    choice *c = &g->choices[record->choice];
    switch (record->kind) {
    case WORKER_STARTED:
        g->cached_tokens += record->cached_tokens;
        if (g->started_ns == 0) {
            g->started_ns = record->time_ns;
            hd_histogram_observe(g->api->metrics.request_queue_time, (double)(record->time_ns - g->arrived_ns) * 1e-9);
            prefill_estimate_add(&g->estimate, record->cached_tokens, record->time_ns);
        }
        return HD_OK;
    case WORKER_FAILED:
        part->is_closed = true;
        g->parts_open--;
        return g->is_answered ? HD_OK : refuse_failed(g, (hd_status)record->status, error);
    default: break;
    }
    if (record->kind == WORKER_TOKEN && g->is_answered) return HD_OK; /* it was on its way when the answer ended */
    hd_status status = HD_OK;
    if (!c->is_started && !g->is_answered) status = start_choice(g, c, part, error);
    if (status == HD_OK && record->kind == WORKER_TOKEN) status = apply_token(g, c, record, logprobs);
    if (status == HD_OK && record->kind == WORKER_FINISHED) status = apply_finished(g, c, record, error);
    if (status == HD_OK && choice_is_failed(c)) status = api_error_no_memory(error);
    if (record->kind == WORKER_FINISHED && record->is_last) {
        part->is_closed = true;
        g->parts_open--;
    }
    return status;
}
