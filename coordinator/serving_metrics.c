/* serving_metrics.c - see serving_metrics.h. */
#include "coordinator/serving_metrics.h"

#include <inttypes.h>
#include <stdio.h>

static const double choice_bounds[] = {1, 2, 5, 10, 20, 50, 100};

static hd_histogram *seconds(hd_metrics *registry, const char *name, const char *help) {
    return hd_histogram_register(registry, name, "", help, hd_bounds_seconds, hd_bounds_seconds_count);
}

static hd_histogram *tokens(hd_metrics *registry, const char *name, const char *help) {
    return hd_histogram_register(registry, name, "", help, hd_bounds_tokens, hd_bounds_tokens_count);
}

static bool register_times(serving_metrics *m, hd_metrics *registry) {
    m->time_to_first_token =
        seconds(registry, "hadal:time_to_first_token_seconds", "From a request's arrival to its first token.");
    m->inter_token_latency =
        seconds(registry, "hadal:inter_token_latency_seconds", "Between two tokens of one choice.");
    m->e2e_request_latency =
        seconds(registry, "hadal:e2e_request_latency_seconds", "From a request's arrival to its end.");
    m->request_queue_time =
        seconds(registry, "hadal:request_queue_time_seconds", "From a request's arrival to its admission.");
    m->request_inference_time =
        seconds(registry, "hadal:request_inference_time_seconds", "From a request's admission to its end.");
    m->request_prefill_time =
        seconds(registry, "hadal:request_prefill_time_seconds", "From a request's admission to its first token.");
    m->request_decode_time =
        seconds(registry, "hadal:request_decode_time_seconds", "From a request's first token to its end.");
    return m->time_to_first_token != NULL && m->inter_token_latency != NULL && m->e2e_request_latency != NULL &&
           m->request_queue_time != NULL && m->request_inference_time != NULL && m->request_prefill_time != NULL &&
           m->request_decode_time != NULL;
}

static bool register_lengths(serving_metrics *m, hd_metrics *registry) {
    m->request_prompt_tokens = tokens(registry, "hadal:request_prompt_tokens", "Prompt tokens of a request.");
    m->request_generation_tokens =
        tokens(registry, "hadal:request_generation_tokens", "Tokens generated for a request.");
    m->request_params_n =
        hd_histogram_register(registry, "hadal:request_params_n", "", "Choices that a request asks for.", choice_bounds,
                              sizeof(choice_bounds) / sizeof(choice_bounds[0]));
    m->request_params_max_tokens = tokens(registry, "hadal:request_params_max_tokens", "max_tokens of a request.");
    return m->request_prompt_tokens != NULL && m->request_generation_tokens != NULL && m->request_params_n != NULL &&
           m->request_params_max_tokens != NULL;
}

static bool register_counts(serving_metrics *m, hd_metrics *registry) {
    static const char *const ends[REQUEST_END_COUNT] = {"stop", "length", "abort", "error"};
    bool is_complete = true;
    char label[64];
    for (unsigned i = 0; i < REQUEST_END_COUNT; i++) {
        hd_metrics_label("finished_reason", ends[i], label, sizeof(label));
        m->request_success[i] =
            hd_counter_register(registry, "hadal:request_success_total", label, "Choices that ended, by how.");
        is_complete = is_complete && m->request_success[i] != NULL;
    }
    for (unsigned digit = 1; digit < 6; digit++) {
        snprintf(label, sizeof(label), "code=\"%uxx\"", digit);
        m->responses[digit] = hd_counter_register(registry, "hadal:http_responses_total", label,
                                                  "HTTP answers, by the class of their status.");
        is_complete = is_complete && m->responses[digit] != NULL;
    }
    return is_complete;
}

static bool register_info(hd_metrics *registry, const worker_info *info) {
    char labels[256], kv_dtype[48], selection[96];
    snprintf(labels, sizeof(labels), "%s,%s,kv_bytes=\"%" PRIu64 "\",kv_bytes_per_token=\"%" PRIu64 "\"",
             hd_metrics_label("kv_dtype", info->kv_dtype, kv_dtype, sizeof(kv_dtype)),
             hd_metrics_label("selection", info->selection, selection, sizeof(selection)), info->kv_bytes,
             info->kv_bytes_per_token);
    hd_gauge *gauge = hd_gauge_register(registry, "hadal:cache_config_info", labels, "How KV is kept; always 1.");
    hd_gauge_set(gauge, 1.0);
    return gauge != NULL;
}

hd_status serving_metrics_init(serving_metrics *metrics, hd_metrics *registry, const worker_info *info) {
    *metrics = (serving_metrics){0};
    if (registry == NULL) return HD_OK;
    bool is_complete = register_times(metrics, registry) && register_lengths(metrics, registry) &&
                       register_counts(metrics, registry) && (info == NULL || register_info(registry, info));
    return is_complete ? HD_OK : HD_NO_MEMORY;
}

void serving_metrics_count_answer(serving_metrics *metrics, unsigned status) {
    if (status >= 100 && status < 600) hd_counter_add(metrics->responses[status / 100], 1);
}
