/* batcher_admission.c - which requests and choices start: the next in line, as far as memory and places go. */
#include "worker/batcher_state.h"

#include <inttypes.h>
#include <string.h>

#include "attention-node/selection.h"
#include "base/clock.h"
#include "base/log.h"
#include "worker/follow.h"

/* The name in attention: of a cluster, or of this worker's own. */
static void name_sequence(batcher *b, sequence *s, const worker_request *request, uint32_t choice) {
    bool is_named = request->epoch != 0;
    s->name = is_named ? request->sequence + choice : b->next_name++;
    s->epoch = is_named ? request->epoch : SEQUENCE_EPOCH;
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
        uint32_t choice = batcher_take_choice(b, j);
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
        if (status == HD_OK) status = batcher_learn_tokens(place, request, choice);
        if (status == HD_OK) status = batcher_start_choice(b, place, j, choice, length);
        if (status != HD_OK) {
            batcher_fail_job(b, j, status, error.text[0] != '\0' ? error.text : hd_status_text(status));
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
    uint32_t choice = batcher_take_choice(b, j);
    if (choice == NO_CHOICE) return true;
    uint64_t tokens = request->prompt_count + request->max_tokens, cached_tokens = 0;
    char chosen[SELECTION_TEXT_BYTES];
    hd_error error = {.text = ""};
    hd_status status = choose_selection(b, request, tokens, chosen, &error);
    if (status == HD_OK) status = batcher_learn_tokens(place, request, choice);
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
        batcher_forget_tokens(place);
        j->next_choice = choice;
        remember_full(b);
        return false;
    }
    bool is_open = status == HD_OK;
    if (is_open) status = batcher_start_choice(b, place, j, choice, cached_tokens);
    if (status != HD_OK) {
        batcher_fail_job(b, j, status, error.text[0] != '\0' ? error.text : hd_status_text(status));
        return true;
    }
    log_selection(b, request, tokens, chosen);
    hd_log(HD_LOG_INFO, "request_started",
           "request=%" PRIu64 " sequence=%016" PRIx64 " epoch=%" PRIu64 " prompt_tokens=%" PRIu64
           " cached_tokens=%" PRIu64 " trace_id=%s",
           request->id, request->sequence, request->epoch, request->prompt_count, cached_tokens, request->trace_id);
    j->prompt_done = cached_tokens;
    job_list_remove(j);
    job_list_append(&b->running, j);
    atomic_fetch_sub_explicit(&b->waiting_count, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&b->running_count, 1, memory_order_relaxed);
    batcher_emit(request, &(worker_event){.kind = WORKER_STARTED,
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
    batcher_emit(
        j->request,
        &(worker_event){.kind = WORKER_PROGRESS, .prompt_done = done, .prompt_count = j->request->prompt_count});
}

void batcher_admit(batcher *b) {
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
