/* request_check.c - every number that the forward pass or the sampler relies on. */
#include "worker/request_check.h"

#include <inttypes.h>
#include <math.h>

static hd_status check_sampling(const worker_sampling *sampling, const request_limits *limits, hd_error *error) {
    const struct {
        const char *name;
        float value, low, high;
    } ranges[] = {
        {"temperature", sampling->temperature, 0.0f, 100.0f},
        {"min_p", sampling->min_p, 0.0f, 1.0f},
        {"presence_penalty", sampling->presence_penalty, -100.0f, 100.0f},
        {"frequency_penalty", sampling->frequency_penalty, -100.0f, 100.0f},
    };
    for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
        if (!(ranges[i].value >= ranges[i].low && ranges[i].value <= ranges[i].high)) {
            return hd_error_set(error, HD_INVALID, "%s is %g; it must be from %g to %g", ranges[i].name,
                                (double)ranges[i].value, (double)ranges[i].low, (double)ranges[i].high);
        }
    }
    if (!(sampling->top_p > 0.0f && sampling->top_p <= 1.0f)) {
        return hd_error_set(error, HD_INVALID, "top_p is %g; it must be above 0 and at most 1",
                            (double)sampling->top_p);
    }
    if (!(sampling->repetition_penalty > 0.0f && sampling->repetition_penalty <= 100.0f)) {
        return hd_error_set(error, HD_INVALID, "repetition_penalty is %g; it must be above 0 and at most 100",
                            (double)sampling->repetition_penalty);
    }
    if (sampling->logprobs > (int32_t)WORKER_LOGPROBS_MAX || sampling->prompt_logprobs > (int32_t)WORKER_LOGPROBS_MAX) {
        bool is_prompt = sampling->prompt_logprobs > (int32_t)WORKER_LOGPROBS_MAX;
        return hd_error_set(error, HD_INVALID, "%s is %" PRId32 "; at most %u are given",
                            is_prompt ? "prompt_logprobs" : "logprobs",
                            is_prompt ? sampling->prompt_logprobs : sampling->logprobs, WORKER_LOGPROBS_MAX);
    }
    for (uint32_t i = 0; i < sampling->logit_bias_count; i++) {
        const worker_logit_bias *bias = &sampling->logit_bias[i];
        if (bias->token_id >= limits->vocabulary_size) {
            return hd_error_set(error, HD_INVALID, "logit_bias names token %" PRIu32 "; the vocabulary has %" PRIu32,
                                bias->token_id, limits->vocabulary_size);
        }
        if (!(fabsf(bias->bias) <= 100.0f)) {
            return hd_error_set(error, HD_INVALID, "logit_bias of token %" PRIu32 " is %g; it must be from -100 to 100",
                                bias->token_id, (double)bias->bias);
        }
    }
    return HD_OK;
}

static hd_status check_answers(const worker_request *request, const request_limits *limits, hd_error *error) {
    uint32_t open = 0;
    for (uint32_t i = 0; request->answers != NULL && i < request->choices; i++) {
        const worker_answer *answer = &request->answers[i];
        if (answer->has_ended) continue;
        open++;
        if (answer->token_count > 0 && answer->token_count >= request->max_tokens) {
            return hd_error_set(error, HD_INVALID, "choice %" PRIu32 " has said %" PRIu64 " tokens of %" PRIu64, i,
                                answer->token_count, request->max_tokens);
        }
        for (uint64_t k = 0; k < answer->token_count; k++) {
            if (answer->token_ids[k] < limits->vocabulary_size) continue;
            return hd_error_set(error, HD_INVALID,
                                "choice %" PRIu32 " has token %" PRIu32 "; the vocabulary has %" PRIu32, i,
                                answer->token_ids[k], limits->vocabulary_size);
        }
    }
    if (request->answers != NULL && open == 0)
        return hd_error_set(error, HD_INVALID, "every choice of the request has ended");
    return HD_OK;
}

hd_status request_check(const worker_request *request, const request_limits *limits, hd_error *error) {
    if (request->prompt_count == 0)
        return hd_error_set(error, HD_INVALID, "the prompt is empty; it needs at least one token");
    if (request->choices == 0 || request->choices > WORKER_CHOICES_MAX) {
        return hd_error_set(error, HD_INVALID, "n is %" PRIu32 "; it must be from 1 to %u", request->choices,
                            WORKER_CHOICES_MAX);
    }
    if (request->prompt_count > limits->context_max ||
        request->max_tokens > limits->context_max - request->prompt_count) {
        return hd_error_set(error, HD_INVALID,
                            "the prompt's %" PRIu64 " tokens and max_tokens %" PRIu64 " are more than the %" PRIu64
                            " tokens of context that this worker has",
                            request->prompt_count, request->max_tokens, limits->context_max);
    }
    for (uint64_t i = 0; i < request->prompt_count; i++) {
        if (request->prompt_ids[i] >= limits->vocabulary_size) {
            return hd_error_set(error, HD_INVALID,
                                "the prompt has token %" PRIu32 " at position %" PRIu64 "; the vocabulary has %" PRIu32,
                                request->prompt_ids[i], i, limits->vocabulary_size);
        }
    }
    hd_status status = check_answers(request, limits, error);
    return status == HD_OK ? check_sampling(&request->sampling, limits, error) : status;
}
