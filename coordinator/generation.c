/* generation.c - a generation's life: made, run by reply threads, answered, freed. */
#include "coordinator/generation.h"

#include <assert.h>
#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "coordinator/answer.h"
#include "coordinator/sse.h"

#define RECORDS_PER_BATCH 32u
#define BATCHES_PER_RUN 16u             /* then the others' turn */
#define RING_BYTES_MAX (2u << 20)       /* touched as far as tokens wait: of a request that is kept up with, a page */
#define STREAM_PENDING_MAX (256u << 10) /* bytes that wait for a slow client before its tokens wait in the ring */
#define PROMPT_LOGPROBS_BYTES_MAX (256u << 20)

/* -- made -- */

static void generation_free(generation *g) {
    if (g == NULL) return;
    for (uint32_t i = 0; g->choices != NULL && i < g->choice_count; i++) choice_fini(&g->choices[i]);
    for (uint32_t i = 0; g->parts != NULL && i < g->request.prompt_count; i++) free(g->parts[i].prompt_logprobs);
    prompts_free(g->prompts, g->request.prompt_count);
    stop_set_fini(&g->stops);
    event_ring_close(&g->ring);
    text_buffer_fini(&g->head);
    text_buffer_fini(&g->out);
    request_fini(&g->request);
    pthread_mutex_destroy(&g->lock);
    free(g->choices);
    free(g->parts);
    free(g->scratch);
    free(g);
}

/* max_tokens of each choice: what was asked for, or the default as far as the context allows. */
static hd_status choose_max_tokens(generation *g, api_error *error) {
    uint64_t longest = 0, context_max = served_model_context_max(g->model);
    uint32_t longest_part = 0;
    for (uint32_t i = 0; i < g->request.prompt_count; i++) {
        g->prompt_tokens += g->prompts[i].id_count;
        if (g->prompts[i].id_count <= longest) continue;
        longest = g->prompts[i].id_count;
        longest_part = i;
    }
    char name[32];
    prompt_name(&g->request, longest_part, name, sizeof(name));
    uint64_t wanted = g->request.has_max_tokens ? g->request.max_tokens : 1;
    if (wanted == 0) wanted = 1; /* see wants_tokens in generation_events.c */
    if (longest + wanted > context_max) {
        if (g->request.has_max_tokens) {
            return api_error_invalid(error, name, "context_length_exceeded",
                                     "'%s' has %" PRIu64 " tokens and 'max_tokens' is %" PRIu64 ", together %" PRIu64
                                     "; this server holds at most %" PRIu64 " tokens of a request",
                                     name, longest, wanted, longest + wanted, context_max);
        }
        return api_error_invalid(error, name, "context_length_exceeded",
                                 "'%s' has %" PRIu64 " tokens; this server holds at most %" PRIu64
                                 " tokens of a request, the answer included",
                                 name, longest, context_max);
    }
    g->max_tokens = wanted;
    if (!g->request.has_max_tokens) {
        uint64_t rest = context_max - longest;
        g->max_tokens = g->api->default_max_tokens < rest ? g->api->default_max_tokens : rest;
        if (g->max_tokens < g->request.sampling.min_tokens) {
            return api_error_invalid(error, "min_tokens", "out_of_range",
                                     "'min_tokens' is %u, and at most %" PRIu64 " tokens are generated here",
                                     g->request.sampling.min_tokens, g->max_tokens);
        }
    }
    return HD_OK;
}

static hd_status make_choices(generation *g) {
    g->choice_count = g->choices_open = g->request.prompt_count * g->request.choices;
    g->choices = calloc(g->choice_count, sizeof(*g->choices));
    hd_status status =
        g->choices != NULL ? stop_set_init(&g->stops, g->request.stops, g->request.stop_count) : HD_NO_MEMORY;
    for (uint32_t i = 0; status == HD_OK && i < g->choice_count; i++) {
        status = choice_init(&g->choices[i], i, g->model->text, &g->request, &g->stops, g->logprob_width);
    }
    return status;
}

static hd_status make_part(generation *g, uint32_t index, uint64_t first_id,
                           const unsigned char salt[TENANT_SALT_BYTES], api_error *error) {
    generation_part *part = &g->parts[index];
    const prompt *p = &g->prompts[index];
    *part = (generation_part){
        .owner = g,
        .index = index,
        .request = {.id = first_id + index,
                    .prompt_ids = p->ids,
                    .prompt_count = p->id_count,
                    .max_tokens = g->max_tokens,
                    .choices = g->request.choices,
                    .sampling = g->request.sampling,
                    .selection = g->request.selection,
                    .no_cache = g->request.no_cache,
                    .on_event = generation_on_event},
    };
    part->request.context = part;
    memcpy(part->request.salt, salt, TENANT_SALT_BYTES);
    memcpy(part->request.trace_id, g->call->trace_id, sizeof(part->request.trace_id));
    if (g->prompt_logprob_width == 0) return HD_OK;
    if (p->id_count > PROMPT_LOGPROBS_BYTES_MAX / sizeof(worker_logprob) / g->prompt_logprob_width) {
        return api_error_invalid(
            error, g->request.prompt_logprobs >= 0 ? "prompt_logprobs" : "logprobs", "out_of_range",
            "log-probabilities of %zu prompt tokens, %u each, are more than the %u that one prompt may have",
            p->id_count, g->prompt_logprob_width, (unsigned)(PROMPT_LOGPROBS_BYTES_MAX / sizeof(worker_logprob)));
    }
    part->prompt_logprobs = calloc(p->id_count * g->prompt_logprob_width, sizeof(*part->prompt_logprobs));
    return part->prompt_logprobs != NULL ? HD_OK : api_error_no_memory(error);
}

static hd_status make_parts(generation *g, api_error *error) {
    g->parts = calloc(g->request.prompt_count, sizeof(*g->parts));
    if (g->parts == NULL) return api_error_no_memory(error);
    unsigned char salt[TENANT_SALT_BYTES];
    memcpy(salt, g->call->tenant.salt, sizeof(salt));
    if (g->request.cache_salt != NULL) api_tenant_mix(salt, g->request.cache_salt);
    uint64_t first_id = atomic_fetch_add(&g->api->next_id, g->request.prompt_count);
    hd_status status = HD_OK;
    for (uint32_t i = 0; status == HD_OK && i < g->request.prompt_count; i++)
        status = make_part(g, i, first_id, salt, error);
    return status;
}

static hd_status make_ring(generation *g) {
    uint64_t stride = sizeof(event_record) + g->logprob_width * sizeof(worker_logprob);
    uint64_t tokens = g->choice_count * g->max_tokens;
    if (tokens > RING_BYTES_MAX / stride) tokens = RING_BYTES_MAX / stride;
    uint32_t reserved = g->choice_count + 2 * g->request.prompt_count;
    if (g->logprob_width > 0) {
        g->scratch = malloc((size_t)RECORDS_PER_BATCH * g->logprob_width * sizeof(*g->scratch));
        if (g->scratch == NULL) return HD_NO_MEMORY;
    }
    return event_ring_open(&g->ring, (uint32_t)tokens, reserved, g->logprob_width);
}

static hd_status make(generation *g, api_error *error) {
    if (!g->request.has_seed) randombytes_buf(&g->request.sampling.seed, sizeof(g->request.sampling.seed));
    g->logprob_width = g->request.sampling.logprobs >= 0 ? (uint32_t)g->request.sampling.logprobs + 1 : 0;
    g->prompt_logprob_width =
        g->request.sampling.prompt_logprobs >= 0 ? (uint32_t)g->request.sampling.prompt_logprobs + 1 : 0;
    g->created_s = api_wall_s(g->api);
    hd_status status = choose_max_tokens(g, error);
    if (status != HD_OK) return status;
    status = make_parts(g, error);
    if (status != HD_OK) return status;
    if (make_choices(g) != HD_OK || make_ring(g) != HD_OK) return api_error_no_memory(error);
    answer_begin(g, g->call->request_id);
    return g->head.is_failed ? api_error_no_memory(error) : HD_OK;
}

/* -- answered -- */

static void observe_end(const generation *g, uint64_t now_ns) {
    const serving_metrics *metrics = &g->api->metrics;
    uint64_t tokens = 0;
    for (uint32_t i = 0; i < g->choice_count; i++) tokens += g->choices[i].token_count;
    hd_histogram_observe(metrics->request_generation_tokens, (double)tokens);
    hd_histogram_observe(metrics->e2e_request_latency, (double)(now_ns - g->arrived_ns) * 1e-9);
    if (g->started_ns > 0)
        hd_histogram_observe(metrics->request_inference_time, (double)(now_ns - g->started_ns) * 1e-9);
    if (g->first_token_ns > 0)
        hd_histogram_observe(metrics->request_decode_time, (double)(now_ns - g->first_token_ns) * 1e-9);
}

static void log_end(const generation *g, const char *how, uint64_t now_ns) {
    uint64_t tokens = 0;
    for (uint32_t i = 0; i < g->choice_count; i++) tokens += g->choices[i].token_count;
    uint64_t first_ms = g->first_token_ns > 0 ? (g->first_token_ns - g->arrived_ns) / 1000000u : 0;
    hd_log(HD_LOG_INFO, "request_ended",
           "request_id=%s end=%s prompt_tokens=%" PRIu64 " cached_tokens=%" PRIu64 " generated_tokens=%" PRIu64
           " first_token_ms=%" PRIu64 " total_ms=%" PRIu64 " trace_id=%s",
           g->call->request_id, how, g->prompt_tokens, g->cached_tokens, tokens, first_ms,
           (now_ns - g->arrived_ns) / 1000000u, g->call->trace_id);
}

/* The exchange has its answer: lets go of it, and of what the worker still does. */
static void finish_answer(generation *g, const char *how) {
    uint64_t now_ns = api_now_ns(g->api);
    log_end(g, how, now_ns);
    observe_end(g, now_ns);
    api_count_end(g->api);
    worker_rpc *worker = g->model->worker;
    for (uint32_t i = 0; i < g->next_part; i++) {
        if (!g->parts[i].is_closed) worker->ops->cancel(worker, g->parts[i].request.id, UINT32_MAX);
    }
    http_exchange *exchange = g->call->exchange;
    g->call = NULL;
    g->is_answered = true;
    pthread_mutex_lock(&g->lock);
    g->has_waiting_parts = false;
    pthread_mutex_unlock(&g->lock);
    http_exchange_release(exchange);
}

static void begin_stream(generation *g) {
    if (g->is_stream_begun) return;
    g->is_stream_begun = true;
    http_exchange_set_header(g->call->exchange, "X-Request-Id", g->call->request_id);
    sse_begin(g->call->exchange);
}

/* Hands what is in out to the connection. */
static hd_status flush_stream(generation *g) {
    if (g->out.count == 0 && !g->out.is_failed) return HD_OK;
    begin_stream(g);
    hd_status status =
        g->out.is_failed ? HD_NO_MEMORY : http_exchange_stream_write(g->call->exchange, g->out.bytes, g->out.count);
    g->out.is_failed = false;
    text_buffer_clear(&g->out);
    atomic_store_explicit(&g->last_write_ns, api_now_ns(g->api), memory_order_relaxed);
    return status;
}

static void fail(generation *g, const api_error *error) {
    http_exchange *exchange = g->call->exchange;
    http_exchange_unwatch(exchange);
    hd_counter_add(g->api->metrics.request_success[REQUEST_END_ERROR], g->choices_open);
    if (g->is_stream_begun) {
        answer_write_error(g, error);
        /* A client that cannot be told must notice all the same; one that has gone need not. */
        if (flush_stream(g) == HD_NO_MEMORY) http_exchange_cut(exchange);
        http_exchange_stream_end(exchange);
    } else {
        api_call_fail(g->call, error);
    }
    finish_answer(g, "error");
}

static void fail_no_memory(generation *g) {
    api_error error;
    api_error_no_memory(&error);
    fail(g, &error);
}

/* The client does not read: nothing that is written would reach it. */
static void cut_off(generation *g) {
    http_exchange *exchange = g->call->exchange;
    http_exchange_unwatch(exchange);
    hd_counter_add(g->api->metrics.request_success[REQUEST_END_ERROR], g->choices_open);
    http_exchange_cut(exchange);
    http_exchange_stream_end(exchange);
    finish_answer(g, "client_too_slow");
}

/* The client has gone: nobody reads what is written, but the exchange is answered all the same. */
static void abandon(generation *g) {
    http_exchange *exchange = g->call->exchange;
    hd_counter_add(g->api->metrics.request_success[REQUEST_END_ABORT], g->choices_open);
    if (g->is_stream_begun) http_exchange_stream_end(exchange);
    else http_exchange_respond(exchange, 499, "", NULL, 0);
    finish_answer(g, "client_gone");
}

static void complete(generation *g) {
    http_exchange *exchange = g->call->exchange;
    http_exchange_unwatch(exchange);
    if (g->request.is_stream) {
        if (g->request.include_usage) answer_write_usage_chunk(g);
        sse_done(&g->out);
        if (flush_stream(g) == HD_NO_MEMORY) http_exchange_cut(exchange);
        http_exchange_stream_end(exchange);
    } else {
        answer_write_whole(g);
        api_call_json(g->call, 200, &g->out);
    }
    finish_answer(g, "done");
}

/* -- run -- */

/* Puts as many parts to the worker as it takes. HD_FULL with the first one refuses the request; a later one waits for
 * the earlier. */
static hd_status submit_parts(generation *g, api_error *error) {
    worker_rpc *worker = g->model->worker;
    while (g->next_part < g->request.prompt_count) {
        generation_part *part = &g->parts[g->next_part];
        hd_error cause = {.text = ""};
        /* Events may come before submit returns. */
        g->parts_open++;
        part->is_submitted = true;
        hd_status status = worker->ops->submit(worker, &part->request, &cause);
        if (status == HD_OK) {
            g->next_part++;
            continue;
        }
        g->parts_open--;
        part->is_submitted = false;
        if (status == HD_FULL && g->next_part > 0) break;
        if (status == HD_FULL) return api_error_full(g->api, error, "the queue is full");
        if (status == HD_NO_MEMORY) return api_error_no_memory(error);
        if (status == HD_INVALID || status == HD_UNSUPPORTED) {
            char name[32];
            prompt_name(&g->request, g->next_part, name, sizeof(name));
            return api_error_invalid(error, name, NULL, "%s", cause.text);
        }
        api_error_set(error, 503, "service_unavailable", NULL, "the model's worker takes no requests: %s",
                      hd_status_text(status));
        error->retry_after_s = 5;
        return status;
    }
    pthread_mutex_lock(&g->lock);
    g->has_waiting_parts = g->next_part < g->request.prompt_count;
    pthread_mutex_unlock(&g->lock);
    return HD_OK;
}

static void write_progress(generation *g, uint64_t progress_ns) {
    uint64_t done = 0;
    pthread_mutex_lock(&g->lock);
    for (uint32_t i = 0; i < g->request.prompt_count; i++) done += g->parts[i].prompt_done;
    pthread_mutex_unlock(&g->lock);
    prefill_estimate_add(&g->estimate, done, progress_ns);
    if (g->request.return_progress) answer_write_progress(g, done, progress_ns);
}

/* True when the notes ended the answer. */
static bool heed_notes(generation *g, const generation_notes *notes) {
    api_error error;
    if (notes->is_gone) {
        abandon(g);
        return true;
    }
    if (notes->is_ending) {
        api_error_ending(g->api, &error);
        fail(g, &error);
        return true;
    }
    if (notes->is_cancelled) {
        generation_refuse_cancelled(&error);
        fail(g, &error);
        return true;
    }
    if (notes->timeout == TIMEOUT_REQUEST) {
        api_error_set(&error, 504, "timeout_error", "request_timeout", "the request was not done within %g s",
                      (double)g->api->request_timeout_ms / 1000);
        fail(g, &error);
        return true;
    }
    if (notes->timeout == TIMEOUT_QUEUE) {
        api_error_set(&error, 503, "timeout_error", "queue_timeout", "the request could not be started within %g s",
                      (double)g->api->queue_timeout_ms / 1000);
        error.retry_after_s = api_retry_after_s(g->api);
        fail(g, &error);
        return true;
    }
    if (notes->overflow == OVERFLOW_CLIENT) {
        cut_off(g);
        return true;
    }
    if (notes->overflow == OVERFLOW_SERVER) {
        api_error_set(&error, 503, "service_unavailable", "overloaded",
                      "the server cannot keep up with the tokens of its model; try again");
        error.retry_after_s = api_retry_after_s(g->api);
        fail(g, &error);
        return true;
    }
    if (notes->has_progress && g->request.is_stream) write_progress(g, notes->progress_ns);
    if (notes->is_keep_alive_due) sse_comment(&g->out, "keep-alive");
    return false;
}

static void write_ready_chunks(generation *g) {
    for (uint32_t i = 0; i < g->choice_count; i++) {
        choice *c = &g->choices[i];
        if (!c->is_started || c->is_closed) continue;
        bool is_ready = choice_ready_bytes(c) > 0 || c->finish != CHOICE_OPEN;
        if (is_ready) answer_write_chunk(g, c);
    }
}

/* Applies a batch and writes what came of it. */
static void advance(generation *g, const event_record *records, uint32_t count, const generation_notes *notes) {
    api_error error;
    bool is_over = g->is_answered || heed_notes(g, notes);
    bool has_room = notes->is_submit_due;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t open = g->parts_open;
        const worker_logprob *logprobs = records[i].has_logprobs ? g->scratch + (size_t)i * g->logprob_width : NULL;
        if (generation_apply(g, &records[i], logprobs, &error) != HD_OK && !is_over) {
            fail(g, &error);
            is_over = true;
        }
        has_room = has_room || g->parts_open < open;
    }
    if (is_over) return;
    if (has_room && g->next_part < g->request.prompt_count && submit_parts(g, &error) != HD_OK) {
        fail(g, &error);
        return;
    }
    if (g->request.is_stream) write_ready_chunks(g);
    if (g->choices_open == 0) {
        complete(g);
        return;
    }
    hd_status status = g->request.is_stream ? flush_stream(g) : HD_OK;
    if (status == HD_NO_MEMORY) fail_no_memory(g);
}

/* What there is to do, taken under the lock. False: nothing, and the generation is no longer scheduled. */
static bool take_work(generation *g, bool is_paused, event_record *records, uint32_t *count, generation_notes *notes) {
    pthread_mutex_lock(&g->lock);
    /* The connection may have drained since is_paused was found. */
    g->is_paused = is_paused && !g->notes.is_drained;
    *notes = g->notes;
    g->notes = (generation_notes){0};
    *count = !g->is_paused ? event_ring_pop(&g->ring, records, g->scratch, RECORDS_PER_BATCH) : 0;
    bool has_work = *count > 0 || generation_has_note(notes);
    bool is_dead = g->is_answered && g->parts_open == 0 && *count == 0;
    if (!has_work && !is_dead) g->is_scheduled = false;
    pthread_mutex_unlock(&g->lock);
    return has_work;
}

static void run(work_item *item) {
    generation *g = (generation *)item;
    event_record records[RECORDS_PER_BATCH];
    generation_notes notes;
    uint32_t count;
    for (unsigned batch = 0; batch < BATCHES_PER_RUN; batch++) {
        bool is_paused =
            !g->is_answered && g->is_stream_begun && http_exchange_pending(g->call->exchange) >= STREAM_PENDING_MAX;
        if (take_work(g, is_paused, records, &count, &notes)) {
            notes.is_keep_alive_due = notes.is_keep_alive_due && !is_paused; /* what waits to be sent keeps it alive */
            advance(g, records, count, &notes);
            continue;
        }
        if (!g->is_answered || g->parts_open > 0) return;
        /* Answered, and nothing of it is left at the worker: it is still marked as scheduled, so nobody else will run
         * it. */
        sequence_table *sequences = g->api->sequences;
        uint32_t slot = g->slot;
        sequence_table_remove(sequences, slot);
        generation_free(g);
        return;
    }
    hd_status status = work_pool_submit(g->api->reply_pool, 0, &g->work);
    assert(status == HD_OK);
    (void)status;
}

/* -- told by others -- */

static void on_gone(void *context) {
    generation *g = context;
    pthread_mutex_lock(&g->lock);
    g->notes.is_gone = true;
    generation_schedule(g);
    pthread_mutex_unlock(&g->lock);
}

static void on_drained(void *context) {
    generation *g = context;
    pthread_mutex_lock(&g->lock);
    g->notes.is_drained = true;
    g->is_paused = false;
    generation_schedule(g);
    pthread_mutex_unlock(&g->lock);
}

/* -- start -- */

void generation_start(api_call *call, request *given, prompt *prompts) {
    api_error error;
    generation *g = calloc(1, sizeof(*g));
    if (g == NULL) {
        prompts_free(prompts, given->prompt_count);
        request_fini(given);
        api_error_no_memory(&error);
        api_call_fail(call, &error);
        return;
    }
    pthread_mutex_init(&g->lock, NULL);
    g->api = call->api;
    g->call = call;
    g->model = call->model;
    g->request = *given;
    *given = (request){0};
    g->prompts = prompts;
    g->work.run = run;
    g->arrived_ns = call->arrived_ns;
    g->format = g->request.kind == REQUEST_CHAT ? &answer_chat : &answer_completion;
    atomic_init(&g->last_write_ns, api_now_ns(g->api));
    /* Until the end of this function nobody may run it: events only fill the ring. */
    g->is_scheduled = true;

    hd_status status = make(g, &error);
    if (status == HD_OK && sequence_table_add(g->api->sequences, g, &g->slot) != HD_OK) {
        status = api_error_full(g->api, &error, "too many requests are being answered");
    }
    if (status != HD_OK) {
        api_call_fail(call, &error);
        generation_free(g);
        return;
    }
    const serving_metrics *metrics = &g->api->metrics;
    hd_histogram_observe(metrics->request_prompt_tokens, (double)g->prompt_tokens);
    hd_histogram_observe(metrics->request_params_n, g->request.choices);
    hd_histogram_observe(metrics->request_params_max_tokens, (double)g->max_tokens);
    http_exchange_retain(call->exchange);
    if (http_exchange_watch(call->exchange, STREAM_PENDING_MAX / 2, on_gone, on_drained, g) != HD_OK) abandon(g);
    else if (atomic_load(&g->api->is_ending)) {
        api_error_ending(g->api, &error);
        fail(g, &error);
    } else if (submit_parts(g, &error) != HD_OK) {
        fail(g, &error);
    }
    status = work_pool_submit(g->api->reply_pool, 0, &g->work);
    assert(status == HD_OK);
}
