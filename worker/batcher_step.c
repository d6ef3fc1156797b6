/* batcher_step.c - a step: who takes part, its answers delivered, and what becomes of it when something fails. */
#include "worker/batcher_state.h"

#include <inttypes.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "worker/follow.h"

#define LOSSES_MAX 4u        /* attention nodes lost in one step, before those who were in it are given up */
#define REST_MS 250u         /* of a sequence whose pages the disk still has, while others go on */
#define INDEX_REST_MS 2u     /* of a sequence whose index is not ready */
#define NAP_MS 10u           /* when all of them rest */
#define TRIES_IO 3u          /* of a step whose read failed */
#define TRIES_TIMED_OUT 240u /* of one whose read does not end: two minutes and more */

/* Answers */

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

/* Whatever is at fault, it is one request's: the others of the step go on. */
static void fail_without_numbers(batcher *b, const step_answer *answer) {
    sequence *s = answer->sequence;
    hd_log(HD_LOG_ERROR, "logits_not_finite", "request=%" PRIu64 " position=%" PRIu64 " selection=%s trace_id=%s",
           s->request->id, answer->position, s->request->selection != NULL ? s->request->selection : "default",
           s->request->trace_id);
    hd_counter_add(b->metrics.logits_not_finite, 1);
    batcher_fail_job(b, s->job, HD_CORRUPT,
                     "the model's logits for this request are not finite numbers; look for logits_not_finite in the "
                     "server's log, check the weights, and ask with another selection");
}

static void deliver(batcher *b, const step_answer *answer) {
    sequence *s = answer->sequence;
    if (s->job == NULL || s->lost != HD_OK) return; /* failed with another choice of this step, or not there */
    if (!answer->is_finite) {
        fail_without_numbers(b, answer);
        return;
    }
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
        batcher_emit(request, &event);
        return;
    }
    if (request->max_tokens == 0) return; /* the last row's logits came along with those of the prompt */
    if (ends_choice(b, &request->sampling, answer->token_id)) {
        batcher_finish_choice(b, s, WORKER_FINISH_STOP, answer->token_id);
        return;
    }
    s->answer_count++;
    s->next_token = answer->token_id;
    if (s->counts.entries != NULL) token_counts_add_answer(&s->counts, answer->token_id);
    hd_counter_add(b->metrics.generation_tokens_total, 1);
    batcher_emit(request, &event);
    if (s->answer_count == request->max_tokens) batcher_finish_choice(b, s, WORKER_FINISH_LENGTH, 0);
}

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
        batcher_emit(s->job->request,
                     &(worker_event){.kind = WORKER_PROGRESS, .prompt_done = done, .prompt_count = prompt_count});
    }
}

static const char *lost_message(hd_status lost) {
    return lost == HD_CORRUPT
               ? "keys and values of this request came back from disk other than they were written; ask again, and "
                 "look at the disk of --cold-dir"
               : "keys and values of this request cannot be read from disk; look at the disk of --cold-dir";
}

/* What was not there in time may be at the next try; bytes that are not what was written never are. */
static void mind_lost(batcher *b, sequence *s) {
    if (s->lost == HD_OK) {
        s->lost_count = 0;
        return;
    }
    uint32_t tries = s->lost == HD_TIMED_OUT ? TRIES_TIMED_OUT : s->lost == HD_IO ? TRIES_IO : 0;
    if (++s->lost_count > tries) batcher_fail_job(b, s->job, s->lost, lost_message(s->lost));
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
        bool is_whole =
            b->losses <= LOSSES_MAX && a->ops->sequence_length(a, s->name, &length) == HD_OK && length >= s->length;
        if (is_whole) run_members(b, &members[i], 1);
        else batcher_fail_job(b, s->job, status, message);
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
            if (members[i]->job != NULL) batcher_fail_job(b, members[i]->job, status, error.text);
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
        if (s->job != NULL && s->request->max_tokens == 0 && !sequence_is_prefilling(s))
            batcher_finish_without_tokens(b, s);
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
            b->prompts[prompts++] = (schedule_prompt){.done = s->length,
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

void batcher_run_step(batcher *b) {
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
