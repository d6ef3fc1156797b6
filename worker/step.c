/* step.c - spans for the forward pass, then logits in slices, their rows sampled side by side on the pool. */
#include "worker/step.h"

#include <assert.h>

#include "base/memory.h"
#include "worker/forward.h"
#include "worker/sampler.h"

#define SLICE_ROWS 64u /* of logits held at once: half a megabyte each with a vocabulary of 128 Ki */

struct step {
    const worker_config *config;
    forward *forward;
    sampler *sampler;
    forward_span *spans; /* [running_max] */
    struct wanted {
        sequence *sequence;
        uint64_t position; /* of the token that the row's logits speak of */
        bool is_prompt;
    } * wanted; /* [batch_tokens_max], one a row with logits */
    uint32_t wanted_count, answered_count;
    step_answer *answers; /* [SLICE_ROWS] */

    /* Of the slice being sampled. */
    float *logits;
    uint32_t slice_count;
    _Atomic size_t ticket;
};

hd_status step_open(const worker_config *config, step **out) {
    step *s = hd_alloc_zeroed(sizeof(*s), HD_CACHE_LINE);
    if (s == NULL) return HD_NO_MEMORY;
    s->config = config;
    uint32_t slice = config->batch_tokens_max < SLICE_ROWS ? config->batch_tokens_max : SLICE_ROWS;
    forward_config passes = {.model = config->model,
                             .weights = config->weights,
                             .kernels = config->kernels,
                             .pool = config->pool,
                             .attention = config->attention,
                             .rows_max = config->batch_tokens_max,
                             .spans_max = config->running_max,
                             .logits_rows_max = slice};
    s->spans = hd_alloc(config->running_max * sizeof(s->spans[0]), HD_CACHE_LINE);
    s->wanted = hd_alloc(config->batch_tokens_max * sizeof(s->wanted[0]), HD_CACHE_LINE);
    s->answers = hd_alloc(slice * sizeof(s->answers[0]), HD_CACHE_LINE);
    hd_status status = s->spans != NULL && s->wanted != NULL && s->answers != NULL ? HD_OK : HD_NO_MEMORY;
    if (status == HD_OK) status = forward_open(&passes, &s->forward);
    if (status == HD_OK) {
        status = sampler_open(config->model->vocabulary_size, hd_pool_thread_count(config->pool), config->kernels,
                              &s->sampler);
    }
    if (status == HD_OK) *out = s;
    else step_close(s);
    return status;
}

void step_close(step *s) {
    if (s == NULL) return;
    sampler_close(s->sampler);
    forward_close(s->forward);
    hd_free(s->spans);
    hd_free(s->wanted);
    hd_free(s->answers);
    hd_free(s);
}

static void want(step *s, sequence *q, uint64_t position, bool is_prompt) {
    s->wanted[s->wanted_count++] = (struct wanted){.sequence = q, .position = position, .is_prompt = is_prompt};
}

static forward_span make_span(step *s, sequence *q) {
    const worker_request *request = q->request;
    bool is_prefilling = sequence_is_prefilling(q);
    uint64_t end = q->length + q->rows;
    forward_span span = {
        .rows = {.sequence = q->name,
                 .epoch = q->epoch,
                 .first_position = q->length,
                 .count = q->rows,
                 .token_ids = is_prefilling ? q->known_ids + q->length : &q->next_token},
        .rope = q->rope,
    };
    if (is_prefilling && q->reports_prompt && request->sampling.prompt_logprobs >= 0) {
        span.need = FORWARD_ALL_LOGITS;
        for (uint64_t position = q->length + 1; position <= end; position++)
            want(s, q, position, position < request->prompt_count);
    } else if (end >= q->known_count && request->max_tokens > 0) {
        span.need = FORWARD_LAST_LOGITS;
        want(s, q, end, false);
    }
    return span;
}

static hd_status lost_of(const step *s, const sequence *q) {
    const attention *a = s->config->attention;
    uint64_t length;
    return forward_lost(s->forward) == HD_OK ? HD_OK : a->ops->sequence_length(a, q->name, &length);
}

hd_status step_run(step *s, sequence *const *sequences, uint32_t count, bool *has_begun, hd_error *error) {
    assert(count > 0 && count <= s->config->running_max);
    s->wanted_count = s->answered_count = 0;
    for (uint32_t i = 0; i < count; i++) s->spans[i] = make_span(s, sequences[i]);
    hd_status status = forward_step(s->forward, s->spans, count, has_begun, error);
    if (status != HD_OK) {
        s->wanted_count = 0;
        return status;
    }
    assert(forward_logits_rows(s->forward) == s->wanted_count);
    for (uint32_t i = 0; i < count; i++) {
        sequences[i]->lost = lost_of(s, sequences[i]);
        if (sequences[i]->lost == HD_OK) sequences[i]->length += sequences[i]->rows;
    }
    return HD_OK;
}

static void answer(step *s, unsigned thread, const struct wanted *wanted, float *logits, step_answer *a) {
    a->sequence = wanted->sequence;
    a->position = wanted->position;
    a->is_prompt = wanted->is_prompt;
    /* Its request failed with an earlier slice and is gone, or there is nothing to draw from. */
    if (wanted->sequence->job == NULL || wanted->sequence->lost != HD_OK) return;
    const worker_request *request = wanted->sequence->request;
    const worker_sampling *sampling = &request->sampling;
    int32_t logprobs = wanted->is_prompt ? sampling->prompt_logprobs : sampling->logprobs;
    a->logprob_count = (uint32_t)(logprobs + 1);
    if (wanted->is_prompt) {
        a->token_id = request->prompt_ids[wanted->position];
        sampler_logprobs(s->sampler, logits, a->token_id, (uint32_t)sampling->prompt_logprobs, a->logprobs);
        return;
    }
    sampler_row row = {
        .sampling = sampling,
        .logits = logits,
        .counts = sampler_has_penalties(sampling) ? &wanted->sequence->counts : NULL,
        .choice = wanted->sequence->choice,
        .position = wanted->position,
        .may_end = wanted->sequence->answer_count >= sampling->min_tokens,
        .end_ids = s->config->model->eos_ids,
        .end_id_count = sampling->ignore_eos ? 0 : s->config->model->eos_id_count,
        .logprobs = a->logprobs,
    };
    sampler_draw(s->sampler, thread, &row);
    a->token_id = row.token_id;
}

static void run_sampling(void *context, unsigned thread, unsigned thread_count) {
    step *s = context;
    for (size_t i; (i = hd_ticket_take(&s->ticket, s->slice_count)) < s->slice_count;) {
        answer(s, thread, &s->wanted[s->answered_count + i], s->logits + i * forward_logits_stride(s->forward),
               &s->answers[i]);
    }
}

uint32_t step_answers(step *s, const step_answer **answers) {
    uint32_t left = s->wanted_count - s->answered_count;
    if (left == 0) return 0;
    s->slice_count = left < SLICE_ROWS ? left : SLICE_ROWS;
    s->logits = forward_logits(s->forward, s->answered_count, s->slice_count);
    atomic_store_explicit(&s->ticket, 0, memory_order_relaxed);
    hd_pool_run(s->config->pool, run_sampling, s);
    s->answered_count += s->slice_count;
    *answers = s->answers;
    return s->slice_count;
}
