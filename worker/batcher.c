/* batcher.c - the step thread, and what reaches it from others. */
#include "worker/batcher_state.h"

#include <inttypes.h>
#include <signal.h>
#include <time.h>

#include "base/clock.h"
#include "base/memory.h"

#define IDLE_MS 250u           /* between looks for attention nodes that have come or gone */
#define OWN_NAMES (1ull << 63) /* where names begin that no cluster gives */

/* The loop */

static void end_cancelled(batcher *b) {
    for (job *j = b->waiting.first, *next; j != NULL; j = next) {
        next = j->next;
        uint32_t choice = batcher_take_choice(b, j); /* ends the job where every choice is cancelled */
        if (choice != NO_CHOICE) j->next_choice = choice;
    }
    for (uint32_t i = 0; i < b->config.running_max; i++) {
        sequence *s = &b->sequences[i];
        while (s->job != NULL && job_is_cancelled(s->job, s->choice))
            batcher_finish_choice(b, s, WORKER_FINISH_CANCELLED, 0);
    }
}

static void update_metrics(batcher *b) {
    attention_stats stats;
    b->config.attention->ops->stats(b->config.attention, &stats);
    worker_metrics_update(&b->metrics, &stats, atomic_load(&b->running_count), atomic_load(&b->waiting_count));
}

/* Takes over what arrived; sleeps while there is nothing to do. False: closed, and all is done. */
static bool wait_for_work(batcher *b, bool *is_reset_asked) {
    pthread_mutex_lock(&b->lock);
    if (b->running.first == NULL) {
        bool is_stuck = b->waiting.first != NULL; /* attention is full, and not of what runs here */
        bool looks_around = b->config.attention->ops->idle != NULL;
        bool has_news = b->arrivals.first != NULL || b->is_closing || b->is_reset_asked;
        while (!is_stuck && !looks_around && b->arrivals.first == NULL && !b->is_closing && !b->is_reset_asked)
            pthread_cond_wait(&b->news, &b->lock);
        if (is_stuck || (looks_around && !has_news)) {
            struct timespec until;
            clock_gettime(CLOCK_MONOTONIC, &until);
            until.tv_nsec += (is_stuck ? FULL_RETRY_MS : IDLE_MS) * (long)NS_PER_MS;
            until.tv_sec += until.tv_nsec / 1000000000;
            until.tv_nsec %= 1000000000;
            pthread_cond_timedwait(&b->news, &b->lock, &until);
        }
    }
    for (job *j; (j = b->arrivals.first) != NULL;) {
        job_list_remove(j);
        job_list_append(&b->waiting, j);
    }
    *is_reset_asked = b->is_reset_asked;
    b->is_reset_asked = false;
    if (b->is_closing && hd_now_ns() >= b->deadline_ns) {
        for (uint32_t i = 0; i < b->config.requests_max; i++) job_cancel(&b->jobs[i], UINT32_MAX);
        atomic_store(&b->has_cancelled, true);
    }
    bool has_work = b->waiting.first != NULL || b->running.first != NULL || !b->is_closing;
    pthread_mutex_unlock(&b->lock);
    return has_work;
}

static void *step_main(void *context) {
    batcher *b = context;
    attention *a = b->config.attention;
    for (bool is_reset_asked; wait_for_work(b, &is_reset_asked);) {
        if (is_reset_asked) a->ops->cache_reset(a);
        if (b->running.first == NULL && a->ops->idle != NULL) a->ops->idle(a);
        if (atomic_exchange(&b->has_cancelled, false)) end_cancelled(b);
        batcher_admit(b);
        batcher_run_step(b);
        update_metrics(b);
    }
    return NULL;
}

/* From other threads */

/* What attention has held so far: it grows as nodes join. When one is lost it stays, for what was begun with it is not
 * wrong because of that. */
static uint64_t context_max(batcher *b) {
    attention_stats stats;
    b->config.attention->ops->stats(b->config.attention, &stats);
    uint64_t holds = stats.blocks_total * HD_BLOCK_TOKENS, most = atomic_load(&b->most_held);
    while (holds > most && !atomic_compare_exchange_weak(&b->most_held, &most, holds)) {}
    if (most > holds) holds = most;
    return holds < b->limits.context_max ? holds : b->limits.context_max;
}

hd_status batcher_submit(batcher *b, worker_request *request, hd_error *error) {
    request_limits limits = b->limits;
    limits.context_max = context_max(b);
    hd_status status = request_check(request, &limits, error);
    if (status != HD_OK) return status;
    pthread_mutex_lock(&b->lock);
    job *j = b->free_jobs.first;
    if (b->is_closing) {
        status = hd_error_set(error, HD_CANCELLED, "this worker is ending and takes no new requests");
    } else if (j == NULL) {
        status =
            hd_error_set(error, HD_FULL, "this worker's queue of %" PRIu32 " requests is full", b->config.requests_max);
    } else {
        job_list_remove(j);
        j->request = request;
        j->id = request->id;
        j->is_used = true;
        j->arrival = b->next_arrival++;
        for (uint32_t i = 0; i < JOB_CANCEL_WORDS; i++)
            atomic_store_explicit(&j->cancelled[i], 0, memory_order_relaxed);
        j->next_choice = j->ended_choices = 0;
        for (uint32_t i = 0; request->answers != NULL && i < request->choices; i++)
            j->ended_choices += request->answers[i].has_ended;
        j->is_prefilled = false;
        j->prompt_done = 0;
        j->variant = rope_table_variant(&b->config.model->rope, request->prompt_count + request->max_tokens);
        job_list_append(&b->arrivals, j);
        atomic_fetch_add_explicit(&b->waiting_count, 1, memory_order_relaxed);
        pthread_cond_signal(&b->news);
    }
    pthread_mutex_unlock(&b->lock);
    return status;
}

void batcher_cancel(batcher *b, uint64_t id, uint32_t choice) {
    if (choice != UINT32_MAX && choice >= WORKER_CHOICES_MAX) return;
    pthread_mutex_lock(&b->lock);
    for (uint32_t i = 0; i < b->config.requests_max; i++) {
        if (!b->jobs[i].is_used || b->jobs[i].id != id) continue;
        job_cancel(&b->jobs[i], choice);
        atomic_store(&b->has_cancelled, true);
        pthread_cond_signal(&b->news);
    }
    pthread_mutex_unlock(&b->lock);
}

void batcher_cache_reset(batcher *b) {
    pthread_mutex_lock(&b->lock);
    b->is_reset_asked = true;
    pthread_cond_signal(&b->news);
    pthread_mutex_unlock(&b->lock);
}

void batcher_load(batcher *b, worker_load *load) {
    attention_stats stats;
    b->config.attention->ops->stats(b->config.attention, &stats);
    *load = (worker_load){
        .running = atomic_load(&b->running_count),
        .waiting = atomic_load(&b->waiting_count),
        .blocks_total = stats.blocks_total,
        .blocks_sequences = stats.blocks_sequences,
        .blocks_reserved = stats.blocks_reserved,
        .blocks_cached = stats.blocks_cached,
        .prefix_query_tokens = stats.prefix_queries_tokens,
        .prefix_hit_tokens = stats.prefix_hits_tokens,
        .context_max = context_max(b),
        .steps = atomic_load(&b->spent.steps),
        .step_rows = atomic_load(&b->spent.rows),
        .dense_us = atomic_load(&b->spent.dense_ns) / 1000,
        .wire_us = atomic_load(&b->spent.wire_ns) / 1000,
        .attention_us = atomic_load(&b->spent.attention_ns) / 1000,
    };
}

/* Open and close */

static hd_status init_lock(batcher *b) {
    pthread_condattr_t attributes;
    if (pthread_condattr_init(&attributes) != 0) return HD_NO_MEMORY;
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    bool has_condition = pthread_cond_init(&b->news, &attributes) == 0;
    pthread_condattr_destroy(&attributes);
    if (!has_condition) return HD_NO_MEMORY;
    if (pthread_mutex_init(&b->lock, NULL) != 0) {
        pthread_cond_destroy(&b->news);
        return HD_NO_MEMORY;
    }
    b->has_lock = true;
    return HD_OK;
}

static hd_status take_memory(batcher *b) {
    uint32_t running_max = b->config.running_max;
    b->rope_bytes = HD_ALIGN_UP(rope_table_bytes(&b->config.model->rope), HD_CACHE_LINE);
    b->jobs = hd_alloc_zeroed(b->config.requests_max * sizeof(job), HD_CACHE_LINE);
    b->sequences = hd_alloc_zeroed(running_max * sizeof(sequence), HD_CACHE_LINE);
    b->ropes = hd_alloc(running_max * b->rope_bytes, HD_CACHE_LINE);
    b->members = hd_alloc(running_max * sizeof(b->members[0]), HD_CACHE_LINE);
    b->prompts = hd_alloc(running_max * sizeof(b->prompts[0]), HD_CACHE_LINE);
    if (b->jobs == NULL || b->sequences == NULL || b->ropes == NULL || b->members == NULL || b->prompts == NULL)
        return HD_NO_MEMORY;
    for (uint32_t i = 0; i < b->config.requests_max; i++) job_list_append(&b->free_jobs, &b->jobs[i]);
    for (uint32_t i = 0; i < running_max; i++) b->sequences[i].rope = (rope_table *)(b->ropes + i * b->rope_bytes);
    return HD_OK;
}

static hd_status start_thread(batcher *b) {
    sigset_t all, before; /* signals are for the threads that expect them */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    b->has_thread = pthread_create(&b->thread, NULL, step_main, b) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!b->has_thread) return HD_NO_MEMORY;
    pthread_setname_np(b->thread, "step");
    return HD_OK;
}

hd_status batcher_open(const worker_config *config, uint64_t context_max, batcher **out, hd_error *error) {
    hd_error reason = {.text = ""};
    batcher *b = hd_alloc_zeroed(sizeof(*b), HD_CACHE_LINE);
    hd_status status = b != NULL ? HD_OK : HD_NO_MEMORY;
    if (b != NULL) {
        b->config = *config;
        b->limits = (request_limits){.vocabulary_size = config->model->vocabulary_size, .context_max = context_max};
        b->next_name = OWN_NAMES;
        schedule_init(&b->schedule, config->model, hd_pool_thread_count(config->pool));
        status = init_lock(b);
    }
    if (status == HD_OK) status = take_memory(b);
    if (status == HD_OK) status = worker_metrics_init(&b->metrics, config->metrics);
    if (status == HD_OK) status = step_open(&b->config, &b->step, &reason);
    if (status == HD_OK) status = start_thread(b);
    if (status == HD_OK) {
        *out = b;
        return HD_OK;
    }
    batcher_close(b, 0);
    if (reason.text[0] != '\0') return hd_error_set(error, status, "%s", reason.text);
    return hd_error_set(error, status,
                        "no memory for the buffers of a step of %" PRIu32
                        " rows; a smaller --max-batch-tokens needs less",
                        config->batch_tokens_max);
}

void batcher_close(batcher *b, uint64_t drain_ms) {
    if (b == NULL) return;
    if (b->has_thread) {
        uint64_t now_ns = hd_now_ns();
        pthread_mutex_lock(&b->lock);
        b->is_closing = true;
        b->deadline_ns = drain_ms < (UINT64_MAX - now_ns) / NS_PER_MS ? now_ns + drain_ms * NS_PER_MS : UINT64_MAX;
        pthread_cond_signal(&b->news);
        pthread_mutex_unlock(&b->lock);
        pthread_join(b->thread, NULL);
    }
    step_close(b->step);
    hd_free(b->jobs);
    hd_free(b->sequences);
    hd_free(b->ropes);
    hd_free(b->members);
    hd_free(b->prompts);
    if (b->has_lock) {
        pthread_cond_destroy(&b->news);
        pthread_mutex_destroy(&b->lock);
    }
    hd_free(b);
}
