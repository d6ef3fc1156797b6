/* batcher.c - the step thread and the requests it serves.
 *
 * Callers reach it through one small lock: a list of what arrived, cancel bits, and flags. Everything else belongs
 * to the step thread, which looks at those between two steps. */
#include "worker/batcher.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <stdlib.h>
#include <time.h>

#include "attention-node/selection.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "worker/follow.h"
#include "worker/job.h"
#include "worker/request_check.h"
#include "worker/sampler.h"
#include "worker/schedule.h"
#include "worker/sequence.h"
#include "worker/step.h"
#include "worker/worker_metrics.h"

#define NS_PER_MS 1000000ull
#define FULL_RETRY_MS 100u /* attention may be shared with others, whose releases nobody announces */
#define IDLE_MS 250u /* between looks for attention nodes that have come or gone */
#define NO_CHOICE UINT32_MAX
#define LOSSES_MAX 4u /* attention nodes lost in one step, before those who were in it are given up */
#define REST_MS 250u         /* of a sequence whose pages the disk still has, while others go on */
#define INDEX_REST_MS 2u     /* of a sequence whose index is not ready */
#define NAP_MS 10u           /* when all of them rest */
#define TRIES_IO 3u          /* of a step whose read failed */
#define TRIES_TIMED_OUT 240u /* of one whose read does not end: two minutes and more */
#define OWN_NAMES (1ull << 63) /* where names begin that no cluster gives */

struct batcher {
    worker_config config;
    request_limits limits;
    step *step;
    schedule schedule;
    worker_metrics metrics;
    pthread_t thread;
    bool has_thread, has_lock;

    pthread_mutex_t lock; /* of the fields up to deadline_ns; news: one of them has changed */
    pthread_cond_t news;
    job_list free_jobs, arrivals;
    uint64_t next_arrival;
    bool is_closing, is_reset_asked;
    uint64_t deadline_ns; /* with is_closing */

    _Atomic bool has_cancelled;
    _Atomic uint32_t running_count, waiting_count; /* requests; arrivals are waiting */
    _Atomic uint64_t most_held; /* tokens that attention has had room for */
    struct {
        _Atomic uint64_t steps, rows, dense_ns, wire_ns, attention_ns;
    } spent; /* worker_rpc.h, worker_load */

    /* The step thread's. */
    job *jobs; /* [requests_max] */
    job_list waiting, running;
    sequence *sequences; /* [running_max] */
    char *ropes;         /* [running_max] tables of rope_bytes */
    size_t rope_bytes;
    sequence **members;       /* [running_max]: of the step */
    schedule_prompt *prompts; /* [running_max] */
    uint64_t next_name;
    uint32_t losses; /* that the step in hand has been run again for */
    uint64_t full_until_ns; /* attention was full: no use to ask again before, unless something is released */
};

/* Ends */

static void emit(worker_request *request, const worker_event *event) {
    request->on_event(request, event);
}

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

static void forget(sequence *s) {
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
    forget(s);
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
    emit(request, &event);
}

static void fail_job(batcher *b, job *j, hd_status status, const char *message) {
    worker_request *request = j->request;
    hd_log(HD_LOG_WARN, "request_failed", "request=%" PRIu64 " sequence=%016" PRIx64 " status=%s trace_id=%s", request->id,
           request->sequence, hd_status_name(status), request->trace_id);
    /* Who lost an attention node comes again, and finds what the others have. */
    bool keep = status == HD_PEER_LOST && !request->no_cache;
    for (uint32_t i = 0; i < b->config.running_max; i++) {
        if (b->sequences[i].job == j) close_sequence(b, &b->sequences[i], keep, true);
    }
    release_job(b, j);
    emit(request, &(worker_event){.kind = WORKER_FAILED, .last = true, .status = status, .message = message});
}

/* The next choice to start; choices cancelled before their turn end here. With NO_CHOICE the job may be gone. */
static uint32_t take_choice(batcher *b, job *j) {
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

/* What the choice's tokens are from the start: the prompt, and behind it what another worker has said for it. */
static hd_status learn_tokens(sequence *s, const worker_request *request, uint32_t choice) {
    const worker_answer *answer = request->answers != NULL ? &request->answers[choice] : NULL;
    uint64_t prompt_count = request->prompt_count, answer_count = answer != NULL ? answer->token_count : 0;
    forget(s);
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

/* The name in attention: of a cluster, or of this worker's own. */
static void name_sequence(batcher *b, sequence *s, const worker_request *request, uint32_t choice) {
    bool is_named = request->epoch != 0;
    s->name = is_named ? request->sequence + choice : b->next_name++;
    s->epoch = is_named ? request->epoch : SEQUENCE_EPOCH;
}

/* Makes the sequence, which has learnt its tokens, ready for a choice that is in attention up to `length`. */
static hd_status start_choice(batcher *b, sequence *s, job *j, uint32_t choice, uint64_t length) {
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
    for (uint64_t i = request->prompt_count; i < s->known_count; i++) token_counts_add_answer(&s->counts, s->known_ids[i]);
    return HD_OK;
}

static sequence *free_place(batcher *b) {
    for (uint32_t i = 0; i < b->config.running_max; i++) {
        if (b->sequences[i].job == NULL) return &b->sequences[i];
    }
    return NULL;
}

static sequence *sequence_of(batcher *b, const job *j) {
    for (uint32_t i = 0; i < b->config.running_max; i++) {
        if (b->sequences[i].job == j) return &b->sequences[i];
    }
    return NULL;
}

static void remember_full(batcher *b) {
    b->full_until_ns = hd_now_ns() + FULL_RETRY_MS * NS_PER_MS;
}

/* More choices of a running job, as far as places and memory go. False: attention is full. */
static bool fork_choices(batcher *b, job *j) {
    attention *a = b->config.attention;
    const worker_request *request = j->request;
    sequence *place;
    while (j->next_choice < request->choices && (place = free_place(b)) != NULL) {
        uint32_t choice = take_choice(b, j);
        if (choice == NO_CHOICE) return true;
        hd_error error = {.text = ""};
        uint64_t length = request->prompt_count - 1;
        name_sequence(b, place, request, choice);
        hd_status status = a->ops->fork(a, sequence_of(b, j)->name, length, place->name, place->epoch,
                                        request->prompt_count + request->max_tokens, &error);
        /* A choice that the budget can never hold beside the first one gets that one's sequence when it ends. */
        if (status == HD_FULL || status == HD_INVALID) {
            j->next_choice = choice;
            remember_full(b);
            return false;
        }
        if (status == HD_OK) status = learn_tokens(place, request, choice);
        if (status == HD_OK) status = start_choice(b, place, j, choice, length);
        if (status != HD_OK) {
            fail_job(b, j, status, error.text[0] != '\0' ? error.text : hd_status_text(status));
            return true;
        }
    }
    return true;
}

/* What a request's selection comes to, from its length and the configured budget alone. */
static hd_status choose_selection(const batcher *b, const worker_request *request, uint64_t tokens,
                                  char chosen[SELECTION_TEXT_BYTES], hd_error *error) {
    const char *text = request->selection != NULL ? request->selection : b->config.selection;
    attention_stats stats;
    b->config.attention->ops->stats(b->config.attention, &stats);
    /* Files hold more than hot memory does. */
    uint64_t hot = stats.cold_bytes > 0 ? (stats.budget_bytes - stats.warm_bytes) / stats.block_bytes : UINT64_MAX;
    uint64_t fits = (hot < stats.blocks_total ? hot : stats.blocks_total) * HD_BLOCK_TOKENS;
    uint64_t full_up_to = b->config.full_up_to < fits ? b->config.full_up_to : fits;
    /* There is nothing else that auto could be, for want of indexes or because only full is spread over nodes. */
    bool is_full_only = stats.index_budget_bytes == 0 || tokens > stats.blocks_whole * HD_BLOCK_TOKENS;
    if (is_full_only) full_up_to = UINT64_MAX;
    hd_error cause = {.text = ""};
    selection parsed;
    hd_status status = selection_resolve(text != NULL ? text : "full", tokens, full_up_to, chosen, &cause);
    if (status == HD_OK) status = selection_parse(chosen, &parsed, &cause);
    if (status == HD_OK) return HD_OK;
    return hd_error_set(error, status, "%s%s", request->selection != NULL ? "'hadal.selection' is refused: " : "",
                        cause.text);
}

static void log_selection(const batcher *b, const worker_request *request, uint64_t tokens, const char *chosen) {
    const char *text = request->selection != NULL ? request->selection : b->config.selection;
    bool is_auto = text != NULL && strncmp(text, SELECTION_AUTO, strlen(SELECTION_AUTO)) == 0;
    if (!is_auto || tokens <= b->config.full_up_to || strcmp(chosen, "full") != 0) return;
    hd_log(HD_LOG_INFO, "selection_auto_is_full",
           "tokens=%" PRIu64 " full_up_to=%" PRIu64 " reason=no_room_for_indexes", tokens, b->config.full_up_to);
}

/* False: it has to wait. */
static bool admit_job(batcher *b, job *j, sequence *place) {
    attention *a = b->config.attention;
    worker_request *request = j->request;
    uint32_t choice = take_choice(b, j);
    if (choice == NO_CHOICE) return true;
    uint64_t tokens = request->prompt_count + request->max_tokens, cached_tokens = 0;
    char chosen[SELECTION_TEXT_BYTES];
    hd_error error = {.text = ""};
    hd_status status = choose_selection(b, request, tokens, chosen, &error);
    if (status == HD_OK) status = learn_tokens(place, request, choice);
    name_sequence(b, place, request, choice);
    attention_sequence_params params = {
        .sequence = place->name,
        .epoch = place->epoch,
        .token_ids = place->known_ids,
        .token_count = place->known_count,
        .tokens_max = tokens,
        .reuse_max = job_may_reuse(j) ? place->known_count - 1 : 0,
        .variant = j->variant,
        .prompt_count = request->prompt_count,
        .selection = chosen,
        .trace_id = request->trace_id[0] != '\0' ? request->trace_id : NULL,
    };
    _Static_assert(sizeof(params.salt) == sizeof(request->salt), "one salt");
    __builtin_memcpy(params.salt, request->salt, sizeof(params.salt));
    if (status == HD_OK) status = a->ops->sequence_open(a, &params, &cached_tokens, &error);
    if (status == HD_FULL) {
        forget(place);
        j->next_choice = choice;
        remember_full(b);
        return false;
    }
    bool is_open = status == HD_OK;
    if (is_open) status = start_choice(b, place, j, choice, cached_tokens);
    if (status != HD_OK) {
        fail_job(b, j, status, error.text[0] != '\0' ? error.text : hd_status_text(status));
        return true;
    }
    log_selection(b, request, tokens, chosen);
    hd_log(HD_LOG_INFO, "request_started",
           "request=%" PRIu64 " sequence=%016" PRIx64 " epoch=%" PRIu64 " prompt_tokens=%" PRIu64 " cached_tokens=%" PRIu64
           " trace_id=%s",
           request->id, request->sequence, request->epoch, request->prompt_count, cached_tokens, request->trace_id);
    j->prompt_done = cached_tokens;
    job_list_remove(j);
    job_list_append(&b->running, j);
    atomic_fetch_sub_explicit(&b->waiting_count, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&b->running_count, 1, memory_order_relaxed);
    emit(request, &(worker_event){.kind = WORKER_STARTED,
                                  .cached_tokens = cached_tokens,
                                  .selection = chosen,
                                  .prompt_done = cached_tokens,
                                  .prompt_count = request->prompt_count});
    return true;
}

/* A follower's prompt is being computed too, only not by itself. */
static void report_following(job *j) {
    uint64_t done = follow_prompt_done(j);
    if (done <= j->prompt_done) return;
    j->prompt_done = done;
    emit(j->request, &(worker_event){.kind = WORKER_PROGRESS,
                                     .prompt_done = done,
                                     .prompt_count = j->request->prompt_count});
}

static void start_what_fits(batcher *b) {
    if (b->full_until_ns != 0 && hd_now_ns() < b->full_until_ns) return;
    b->full_until_ns = 0;
    for (job *j = b->running.first, *next; j != NULL; j = next) {
        next = j->next;
        if (j->is_prefilled && !fork_choices(b, j)) return;
    }
    sequence *place = free_place(b);
    for (job *j = b->waiting.first, *next; j != NULL && place != NULL; j = next) {
        next = j->next;
        if (follow_wait(j, &b->running)) {
            report_following(j);
        } else {
            if (!admit_job(b, j, place)) return;
            place = free_place(b);
        }
    }
}

/* Choices' ends, and what becomes of their sequences */

static void finish_choice(batcher *b, sequence *s, worker_finish finish, uint32_t stop_id) {
    job *j = s->job;
    attention *a = b->config.attention;
    const worker_request *request = j->request;
    uint32_t choice = s->choice;
    bool has_more_to_do = request->max_tokens > 0 || sequence_is_prefilling(s);
    uint32_t successor = has_more_to_do ? take_choice(b, j) : NO_CHOICE;
    if (successor == NO_CHOICE) {
        close_sequence(b, s, !request->no_cache, finish == WORKER_FINISH_CANCELLED);
    } else {
        hd_status status = HD_OK;
        uint64_t length = s->length;
        if (length >= request->prompt_count) {
            length = request->prompt_count - 1;
            status = a->ops->truncate(a, s->name, s->epoch, length);
        }
        if (status == HD_OK) status = learn_tokens(s, request, successor);
        if (status == HD_OK) status = start_choice(b, s, j, successor, length);
        if (status != HD_OK) {
            fail_job(b, j, status, hd_status_text(status));
            return;
        }
    }
    end_choice(b, j, choice, finish, stop_id);
}

/* max_tokens 0: the prompt was all there was to do, for every choice. */
static void finish_without_tokens(batcher *b, sequence *s) {
    job *j = s->job;
    uint32_t left = j->request->choices - j->next_choice, choice;
    finish_choice(b, s, WORKER_FINISH_LENGTH, 0);
    while (left > 0 && (choice = take_choice(b, j)) != NO_CHOICE) {
        left = j->request->choices - j->next_choice;
        end_choice(b, j, choice, WORKER_FINISH_LENGTH, 0);
    }
}

static bool ends_choice(const batcher *b, const worker_sampling *sampling, uint32_t token_id) {
    const model_config *model = b->config.model;
    for (uint32_t i = 0; !sampling->ignore_eos && i < model->eos_id_count; i++) {
        if (model->eos_ids[i] == token_id) return true;
    }
    for (uint32_t i = 0; i < sampling->stop_id_count; i++) {
        if (sampling->stop_ids[i] == token_id) return true;
    }
    return false;
}

static void deliver(batcher *b, const step_answer *answer) {
    sequence *s = answer->sequence;
    if (s->job == NULL || s->lost != HD_OK) return; /* failed with another choice of this step, or not there */
    worker_event event = {
        .kind = answer->is_prompt ? WORKER_PROMPT_LOGPROBS : WORKER_TOKEN,
        .choice = s->choice,
        .token_id = answer->token_id,
        .position = answer->position,
        .logprobs = answer->logprob_count > 0 ? answer->logprobs : NULL,
        .entry_count = answer->logprob_count > 0 ? 1 : 0,
        .logprob_count = answer->logprob_count,
    };
    worker_request *request = s->job->request;
    if (answer->is_prompt) {
        emit(request, &event);
        return;
    }
    if (request->max_tokens == 0) return; /* the last row's logits came along with those of the prompt */
    if (ends_choice(b, &request->sampling, answer->token_id)) {
        finish_choice(b, s, WORKER_FINISH_STOP, answer->token_id);
        return;
    }
    s->answer_count++;
    s->next_token = answer->token_id;
    if (s->counts.entries != NULL) token_counts_add_answer(&s->counts, answer->token_id);
    hd_counter_add(b->metrics.generation_tokens_total, 1);
    emit(request, &event);
    if (s->answer_count == request->max_tokens) finish_choice(b, s, WORKER_FINISH_LENGTH, 0);
}

/* The step */

static void report_prompts(batcher *b, sequence *const *members, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        sequence *s = members[i];
        if (!s->reports_prompt) continue;
        uint64_t prompt_count = s->request->prompt_count, done = s->length < prompt_count ? s->length : prompt_count;
        s->job->prompt_done = done;
        if (done == prompt_count) {
            s->reports_prompt = false;
            s->job->is_prefilled = true;
        }
        emit(s->job->request,
             &(worker_event){.kind = WORKER_PROGRESS, .prompt_done = done, .prompt_count = prompt_count});
    }
}

static const char *lost_message(hd_status lost) {
    return lost == HD_CORRUPT
               ? "keys and values of this request came back from disk other than they were written; ask again, and look "
                 "at the disk of --cold-dir"
               : "keys and values of this request cannot be read from disk; look at the disk of --cold-dir";
}

/* What was not there in time may be at the next try; bytes that are not what was written never are. */
static void mind_lost(batcher *b, sequence *s) {
    if (s->lost == HD_OK) {
        s->lost_count = 0;
        return;
    }
    uint32_t tries = s->lost == HD_TIMED_OUT ? TRIES_TIMED_OUT : s->lost == HD_IO ? TRIES_IO : 0;
    if (++s->lost_count > tries) fail_job(b, s->job, s->lost, lost_message(s->lost));
    else s->rest_until_ns = hd_now_ns() + REST_MS * NS_PER_MS;
}

static void run_members(batcher *b, sequence *const *members, uint32_t count);

/* An attention node was lost in the step, or one of its sequences is another worker's now. The others are as they were
 * before, and go on, each alone; so do those whose keys and values other nodes have as well. */
static void run_survivors(batcher *b, sequence *const *members, uint32_t count, hd_status status, const char *message) {
    attention *a = b->config.attention;
    b->losses++;
    for (uint32_t i = 0; i < count; i++) {
        sequence *s = members[i];
        uint64_t length = 0;
        if (s->job == NULL) continue;
        bool is_whole = b->losses <= LOSSES_MAX && a->ops->sequence_length(a, s->name, &length) == HD_OK &&
                        length >= s->length;
        if (is_whole) run_members(b, &members[i], 1);
        else fail_job(b, s->job, status, message);
    }
    b->losses--;
}

static void run_members(batcher *b, sequence *const *members, uint32_t count) {
    bool has_begun = false;
    hd_error error = {.text = ""};
    hd_status status = step_run(b->step, members, count, &has_begun, &error);
    if (status == HD_PEER_LOST || (status == HD_STALE && count > 1)) {
        run_survivors(b, members, count, status, error.text);
        return;
    }
    if (status != HD_OK && !has_begun && count > 1) {
        /* Refused as a whole because of some: each alone tells which. */
        for (uint32_t i = 0; i < count; i++) {
            if (members[i]->job != NULL) run_members(b, &members[i], 1);
        }
        return;
    }
    if (status != HD_OK) {
        for (uint32_t i = 0; i < count; i++) {
            if (members[i]->job != NULL) fail_job(b, members[i]->job, status, error.text);
        }
        return;
    }
    report_prompts(b, members, count);
    const step_answer *answers;
    for (uint32_t answer_count; (answer_count = step_answers(b->step, &answers)) > 0;) {
        for (uint32_t i = 0; i < answer_count; i++) deliver(b, &answers[i]);
    }
    for (uint32_t i = 0; i < count; i++) {
        sequence *s = members[i];
        if (s->job != NULL) mind_lost(b, s);
        if (s->job != NULL && s->request->max_tokens == 0 && !sequence_is_prefilling(s)) finish_without_tokens(b, s);
    }
}

/* The last row of what is known, where a forked choice begins, is as good as a decode row. */
static bool has_chunks(const sequence *s) {
    return s->length + 1 < s->known_count;
}

static bool takes_part(const sequence *s) {
    return s->job != NULL && (s->rest_until_ns == 0 || hd_now_ns() >= s->rest_until_ns);
}

/* What one sequence waits for is no reason for the others to wait. */
static bool is_ready(const batcher *b, const sequence *s) {
    attention *a = b->config.attention;
    return a->ops->sequence_is_ready == NULL || a->ops->sequence_is_ready(a, s->name, s->length);
}

/* Every decode row, then the prompts' chunks; returns how many sequences take part. prompt_count: of b->prompts,
 * which stand for the sequences that prefill, in their order. */
static uint32_t choose_members(batcher *b, uint32_t *prompt_count, bool *is_decoding) {
    uint32_t member_count = 0, prompts = 0;
    for (uint32_t i = 0; i < b->config.running_max; i++) {
        sequence *s = &b->sequences[i];
        s->rows = 0;
        if (!takes_part(s)) continue;
        s->rest_until_ns = is_ready(b, s) ? 0 : hd_now_ns() + INDEX_REST_MS * NS_PER_MS;
        if (s->rest_until_ns != 0) continue;
        if (has_chunks(s)) {
            b->prompts[prompts++] =
                (schedule_prompt){.done = s->length,
                                  .total = s->known_count,
                                  .followed_total = follow_shortest(s->job, &b->waiting),
                                  .arrival = s->job->arrival};
        } else {
            s->rows = 1;
            b->members[member_count++] = s;
        }
    }
    *is_decoding = member_count > 0;
    *prompt_count = prompts;
    schedule_step(&b->schedule, b->prompts, prompts, b->config.batch_tokens_max - member_count, *is_decoding);
    prompts = 0;
    for (uint32_t i = 0; i < b->config.running_max; i++) {
        sequence *s = &b->sequences[i];
        if (s->job == NULL || s->rest_until_ns != 0 || !has_chunks(s)) continue;
        s->rows = b->prompts[prompts++].rows;
        if (s->rows > 0) b->members[member_count++] = s;
    }
    return member_count;
}

/* Where the time of a step went. What a lost node has counted is gone from the totals, and its step counts as dense. */
static void count_time(batcher *b, const attention_stats *before, uint64_t step_ns, uint32_t rows) {
    attention_stats now;
    b->config.attention->ops->stats(b->config.attention, &now);
    uint64_t waited = now.step_wait_ns > before->step_wait_ns ? now.step_wait_ns - before->step_wait_ns : 0;
    uint64_t worked = now.layer_work_ns > before->layer_work_ns ? now.layer_work_ns - before->layer_work_ns : 0;
    bool is_remote = now.step_wait_ns > 0;
    uint64_t attention_ns = is_remote && worked > waited ? waited : worked;
    uint64_t wire_ns = is_remote ? waited - attention_ns : 0, other_ns = attention_ns + wire_ns;
    atomic_fetch_add(&b->spent.steps, 1);
    atomic_fetch_add(&b->spent.rows, rows);
    atomic_fetch_add(&b->spent.attention_ns, attention_ns);
    atomic_fetch_add(&b->spent.wire_ns, wire_ns);
    atomic_fetch_add(&b->spent.dense_ns, step_ns > other_ns ? step_ns - other_ns : 0);
    worker_metrics_count_step(&b->metrics, step_ns > other_ns ? step_ns - other_ns : 0, wire_ns, attention_ns);
}

static void run_step(batcher *b) {
    uint32_t prompt_count, rows = 0, prompt_rows = 0;
    bool is_decoding;
    uint32_t member_count = choose_members(b, &prompt_count, &is_decoding);
    if (member_count == 0) {
        /* All of them rest, or there are none; arrivals can wait for this long. */
        if (b->running.first != NULL) nanosleep(&(struct timespec){.tv_nsec = NAP_MS * (long)NS_PER_MS}, NULL);
        return;
    }
    for (uint32_t i = 0; i < member_count; i++) {
        rows += b->members[i]->rows;
        if (b->members[i]->reports_prompt) prompt_rows += b->members[i]->rows;
    }
    attention_stats before;
    b->config.attention->ops->stats(b->config.attention, &before);
    uint64_t begin_ns = hd_now_ns();
    run_members(b, b->members, member_count);
    uint64_t step_ns = hd_now_ns() - begin_ns;
    count_time(b, &before, step_ns, rows);
    schedule_learn(&b->schedule, b->prompts, prompt_count, is_decoding, (double)step_ns);
    hd_counter_add(b->metrics.prompt_tokens_total, prompt_rows);
    hd_histogram_observe(b->metrics.iteration_tokens_total, rows);
}

/* The loop */

static void end_cancelled(batcher *b) {
    for (job *j = b->waiting.first, *next; j != NULL; j = next) {
        next = j->next;
        uint32_t choice = take_choice(b, j); /* ends the job where every choice is cancelled */
        if (choice != NO_CHOICE) j->next_choice = choice;
    }
    for (uint32_t i = 0; i < b->config.running_max; i++) {
        sequence *s = &b->sequences[i];
        while (s->job != NULL && job_is_cancelled(s->job, s->choice)) finish_choice(b, s, WORKER_FINISH_CANCELLED, 0);
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
        start_what_fits(b);
        run_step(b);
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
