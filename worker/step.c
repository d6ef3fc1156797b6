/* step.c - spans for the forward pass, then logits in slices, their rows sampled side by side on the pool. */
#include "worker/step.h"

#include <assert.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "worker/forward.h"
#include "worker/rotation.h"
#include "worker/sampler.h"

struct step {
    const worker_config *config;
    attention *views[ROTATION_BATCHES_MAX];      /* [0] is the attention itself; NULL from where there are no more */
    forward_batch batches[ROTATION_BATCHES_MAX]; /* of the step: [batch_count] */
    uint32_t batch_count;
    uint32_t first_wanted[ROTATION_BATCHES_MAX + 1]; /* of each batch's rows with logits */
    rotation rotation;
    sampler *sampler;
    forward_span *spans; /* [running_max] */
    struct wanted {
        sequence *sequence;
        uint64_t position; /* of the token that the row's logits speak of */
        bool is_prompt;
    } * wanted; /* [batch_tokens_max], one a row with logits */
    uint32_t wanted_count, answered_count;
    step_answer *answers;       /* [STEP_SLICE_ROWS] */
    sampler_row *draws;         /* [STEP_SLICE_ROWS] */
    sampler_row **device_draws; /* [STEP_SLICE_ROWS]: those of them that are drawn where the logits are */
    bool *is_finite;            /* [STEP_SLICE_ROWS] */

    /* Of the slice being sampled. */
    float *logits;
    size_t logits_stride;
    uint32_t slice_count;
    _Atomic size_t ticket;
};

static hd_status open_forward(step *s, uint32_t index, uint32_t rows_max, uint32_t slice) {
    const worker_config *config = s->config;
    forward_config passes = {.model = config->model,
                             .weights = config->weights,
                             .kernels = config->kernels,
                             .pool = config->pool,
                             .queue = config->queue,
                             .attention = s->views[index],
                             .ranks = config->ranks,
                             .rows_max = rows_max,
                             .spans_max = config->running_max,
                             .logits_rows_max = slice};
    return forward_open(&passes, &s->batches[index].forward);
}

/* Steps of decode rows may be cut, where attention takes further ones at a time. */
static hd_status open_views(step *s, uint32_t slice, hd_error *error) {
    const worker_config *config = s->config;
    attention *a = config->attention;
    uint32_t wanted = config->micro_batches != 0 ? config->micro_batches : 2, count = 1;
    hd_status status = HD_OK;
    for (; count < wanted && status == HD_OK; count += status == HD_OK) {
        hd_error reason = {.text = "keys and values are in this process"};
        status =
            a->ops->attach != NULL ? a->ops->attach(a, config->running_max, &s->views[count], &reason) : HD_UNSUPPORTED;
        if (status == HD_OK) {
            status = open_forward(s, count, config->running_max, slice);
            if (status != HD_OK) return status;
        } else if (config->micro_batches != 0) {
            return hd_error_set(error, status,
                                "steps cannot be cut into %u micro-batches: %s; leave --micro-batches at auto", wanted,
                                reason.text);
        }
    }
    rotation_init(&s->rotation, count, config->micro_batches != 0);
    return HD_OK;
}

hd_status step_open(const worker_config *config, step **out, hd_error *error) {
    step *s = hd_alloc_zeroed(sizeof(*s), HD_CACHE_LINE);
    if (s == NULL) return HD_NO_MEMORY;
    s->config = config;
    s->views[0] = config->attention;
    uint32_t slice = config->batch_tokens_max < STEP_SLICE_ROWS ? config->batch_tokens_max : STEP_SLICE_ROWS;
    s->spans = hd_alloc(config->running_max * sizeof(s->spans[0]), HD_CACHE_LINE);
    s->wanted = hd_alloc(config->batch_tokens_max * sizeof(s->wanted[0]), HD_CACHE_LINE);
    s->answers = hd_alloc(slice * sizeof(s->answers[0]), HD_CACHE_LINE);
    s->draws = hd_alloc(slice * sizeof(s->draws[0]), HD_CACHE_LINE);
    s->device_draws = hd_alloc(slice * sizeof(s->device_draws[0]), HD_CACHE_LINE);
    s->is_finite = hd_alloc(slice * sizeof(s->is_finite[0]), HD_CACHE_LINE);
    bool is_taken = s->spans != NULL && s->wanted != NULL && s->answers != NULL && s->draws != NULL &&
                    s->device_draws != NULL && s->is_finite != NULL;
    hd_status status = is_taken ? HD_OK : HD_NO_MEMORY;
    if (status == HD_OK) status = open_forward(s, 0, config->batch_tokens_max, slice);
    if (status == HD_OK) {
        status = sampler_open(config->model->vocabulary_size, hd_pool_thread_count(config->pool), config->kernels,
                              &s->sampler);
    }
    if (status == HD_OK) status = open_views(s, slice, error);
    if (status == HD_OK) *out = s;
    else step_close(s);
    return status;
}

void step_close(step *s) {
    if (s == NULL) return;
    sampler_close(s->sampler);
    for (uint32_t i = 0; i < ROTATION_BATCHES_MAX; i++) {
        forward_close(s->batches[i].forward);
        if (i > 0 && s->views[i] != NULL) s->views[i]->ops->close(s->views[i]);
    }
    hd_free(s->spans);
    hd_free(s->wanted);
    hd_free(s->answers);
    hd_free(s->draws);
    hd_free(s->device_draws);
    hd_free(s->is_finite);
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

static hd_status lost_of(const step *s, const forward *f, const sequence *q) {
    const attention *a = s->config->attention;
    uint64_t length;
    return forward_lost(f) == HD_OK ? HD_OK : a->ops->sequence_length(a, q->name, &length);
}

/* The sequences in as many parts of about the same size. */
static void cut(step *s, sequence *const *sequences, uint32_t count, uint32_t parts) {
    s->batch_count = parts;
    for (uint32_t part = 0; part < parts; part++) {
        size_t first, size;
        hd_share(count, 1, part, parts, &first, &size);
        s->first_wanted[part] = s->wanted_count;
        for (size_t i = first; i < first + size; i++) s->spans[i] = make_span(s, sequences[i]);
        s->batches[part].spans = s->spans + first;
        s->batches[part].span_count = (uint32_t)size;
    }
    s->first_wanted[parts] = s->wanted_count;
}

/* Of several batches, one that did not begin says more than one that broke off: it tells whom attention refuses, and to
 * run the others again does no harm (attention.h, rule 1). */
static hd_status outcome(const step *s, bool *has_begun, hd_error *error) {
    const forward_batch *worst = NULL;
    for (uint32_t i = 0; i < s->batch_count; i++) {
        const forward_batch *b = &s->batches[i];
        if (b->status == HD_OK) continue;
        if (worst == NULL || (worst->has_begun && !b->has_begun)) worst = b;
    }
    *has_begun = worst == NULL || worst->has_begun;
    if (worst == NULL) return HD_OK;
    if (error != NULL) *error = worst->error;
    return worst->status;
}

static bool has_decode_rows_alone(sequence *const *sequences, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        if (sequences[i]->rows != 1 || sequence_is_prefilling(sequences[i])) return false;
    }
    return true;
}

static hd_status run_parts(step *s, sequence *const *sequences, uint32_t count, uint32_t parts, bool *has_begun,
                           hd_error *error) {
    s->wanted_count = s->answered_count = 0;
    cut(s, sequences, count, parts);
    forward_run(s->batches, parts);
    return outcome(s, has_begun, error);
}

hd_status step_run(step *s, sequence *const *sequences, uint32_t count, bool *has_begun, hd_error *error) {
    assert(count > 0 && count <= s->config->running_max);
    bool may_cut = has_decode_rows_alone(sequences, count);
    uint32_t parts = may_cut ? rotation_choose(&s->rotation, count) : 1;
    uint64_t start = hd_now_ns();
    hd_status status = run_parts(s, sequences, count, parts, has_begun, error);
    if (status == HD_UNSUPPORTED && parts > 1) { /* an attention node that has come since takes one step at a time */
        hd_log(HD_LOG_WARN, "micro_batches_off", "reason=an_attention_node_takes_one_step_at_a_time");
        rotation_init(&s->rotation, 1, false);
        status = run_parts(s, sequences, count, 1, has_begun, error);
    } else if (status == HD_OK && may_cut) {
        rotation_learn(&s->rotation, count, parts, (double)(hd_now_ns() - start));
    }
    if (status != HD_OK) {
        s->wanted_count = 0;
        return status;
    }
    for (uint32_t part = 0, i = 0; part < s->batch_count; part++) {
        const forward_batch *b = &s->batches[part];
        assert(forward_logits_rows(b->forward) == s->first_wanted[part + 1] - s->first_wanted[part]);
        for (uint32_t k = 0; k < b->span_count; k++, i++) {
            sequences[i]->lost = lost_of(s, b->forward, sequences[i]);
            if (sequences[i]->lost == HD_OK) sequences[i]->length += sequences[i]->rows;
        }
    }
    return HD_OK;
}

/* What its row asks the sampler for. */
static sampler_row draw_of(const step *s, const struct wanted *wanted, step_answer *a) {
    const worker_sampling *sampling = &wanted->sequence->request->sampling;
    return (sampler_row){
        .sampling = sampling,
        .counts = sampler_has_penalties(sampling) ? &wanted->sequence->counts : NULL,
        .choice = wanted->sequence->choice,
        .position = wanted->position,
        .may_end = wanted->sequence->answer_count >= sampling->min_tokens,
        .end_ids = s->config->model->eos_ids,
        .end_id_count = sampling->ignore_eos ? 0 : s->config->model->eos_id_count,
        .logprobs = a->logprobs,
    };
}

/* Its request failed with an earlier slice and is gone, or there is nothing to draw from. */
static bool is_gone(const struct wanted *wanted) {
    return wanted->sequence->job == NULL || wanted->sequence->lost != HD_OK;
}

/* More than a token is asked for. A request's rows are drawn in the same place whatever else is in the step. */
static bool needs_logits(const struct wanted *wanted) {
    return wanted->is_prompt || wanted->sequence->request->sampling.logprobs >= 0;
}

static void answer_from_logits(step *s, unsigned thread, const struct wanted *wanted, float *logits, step_answer *a) {
    a->is_finite = sampler_is_finite(logits, s->config->model->vocabulary_size);
    if (!a->is_finite) return;
    const worker_request *request = wanted->sequence->request;
    const worker_sampling *sampling = &request->sampling;
    int32_t logprobs = wanted->is_prompt ? sampling->prompt_logprobs : sampling->logprobs;
    a->logprob_count = (uint32_t)(logprobs + 1);
    if (wanted->is_prompt) {
        a->token_id = request->prompt_ids[wanted->position];
        sampler_logprobs(s->sampler, logits, a->token_id, (uint32_t)sampling->prompt_logprobs, a->logprobs);
        return;
    }
    sampler_row row = draw_of(s, wanted, a);
    row.logits = logits;
    sampler_draw(s->sampler, thread, &row);
    a->token_id = row.token_id;
}

static void run_sampling(void *context, unsigned thread, unsigned thread_count) {
    step *s = context;
    for (size_t i; (i = hd_ticket_take(&s->ticket, s->slice_count)) < s->slice_count;) {
        const struct wanted *wanted = &s->wanted[s->answered_count + i];
        if (is_gone(wanted) || s->device_draws[i] != NULL) continue;
        answer_from_logits(s, thread, wanted, s->logits + i * s->logits_stride, &s->answers[i]);
    }
}

/* Lists the rows that need no more than a token; returns how many. */
static uint32_t list_draws(step *s) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < s->slice_count; i++) {
        const struct wanted *wanted = &s->wanted[s->answered_count + i];
        step_answer *a = &s->answers[i];
        a->sequence = wanted->sequence;
        a->position = wanted->position;
        a->is_prompt = wanted->is_prompt;
        a->is_finite = false;
        a->token_id = a->logprob_count = 0;
        s->device_draws[i] = NULL;
        if (is_gone(wanted) || needs_logits(wanted)) continue;
        s->draws[i] = draw_of(s, wanted, a);
        s->device_draws[i] = &s->draws[i];
        count++;
    }
    return count;
}

/* False: tokens are drawn from logits here, all of them. */
static bool draw_on_device(step *s, forward *f, uint32_t first) {
    if (!forward_draw(f, first, s->slice_count, s->device_draws, s->is_finite)) return false;
    for (uint32_t i = 0; i < s->slice_count; i++) {
        if (s->device_draws[i] == NULL) continue;
        s->answers[i].is_finite = s->is_finite[i];
        s->answers[i].token_id = s->draws[i].token_id;
    }
    return true;
}

uint32_t step_answers(step *s, const step_answer **answers) {
    if (s->answered_count == s->wanted_count) return 0;
    uint32_t part = 0;
    while (s->first_wanted[part + 1] <= s->answered_count) part++;
    forward *f = s->batches[part].forward;
    uint32_t left = s->first_wanted[part + 1] - s->answered_count, first = s->answered_count - s->first_wanted[part];
    s->slice_count = left < STEP_SLICE_ROWS ? left : STEP_SLICE_ROWS;
    uint32_t drawn = list_draws(s);
    if (drawn > 0 && !draw_on_device(s, f, first)) {
        memset(s->device_draws, 0, s->slice_count * sizeof(s->device_draws[0]));
        drawn = 0;
    }
    if (drawn < s->slice_count) {
        s->logits = forward_logits(f, first, s->slice_count);
        s->logits_stride = forward_logits_stride(f);
        atomic_store_explicit(&s->ticket, 0, memory_order_relaxed);
        hd_pool_run(s->config->pool, run_sampling, s);
    }
    s->answered_count += s->slice_count;
    *answers = s->answers;
    return s->slice_count;
}
