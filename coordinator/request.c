/* request.c - the options that chat and completions share. Every bound here is in docs/api.md. */
#include "coordinator/request.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/json_body.h"
#include "coordinator/refused_fields.h"

void request_init(request *r, request_kind kind, const request_limits *limits) {
    *r = (struct request){
        .kind = kind,
        .prompt_count = 1,
        .choices = 1,
        .skip_special_tokens = true,
        .add_special_tokens = kind == REQUEST_COMPLETION,
        .logprobs = -1,
        .prompt_logprobs = -1,
        .sampling = {.temperature = limits->default_temperature,
                     .top_p = limits->default_top_p,
                     .top_k = limits->default_top_k,
                     .min_p = limits->default_min_p,
                     .repetition_penalty = limits->default_repetition_penalty,
                     .logprobs = -1,
                     .prompt_logprobs = -1},
    };
}

void request_fini(request *r) {
    request_drop_body(r);
    for (uint32_t i = 0; i < r->stop_count; i++) free(r->stops[i].text);
    free((void *)r->sampling.stop_ids);
    free((void *)r->sampling.logit_bias);
    free(r->selection);
    free(r->cache_salt);
    *r = (struct request){0};
}

void request_drop_body(request *r) {
    json_decref(r->context);
    json_decref(r->body);
    r->body = r->context = r->prompt = r->final_message = NULL;
    r->chat_template = NULL;
}

void request_parse_model(body_fields *fields, const request_limits *limits) {
    const char *name;
    size_t name_bytes;
    if (!body_field_string(fields, "model", &name, &name_bytes)) return;
    if (name_bytes == strlen(limits->model_name) && memcmp(name, limits->model_name, name_bytes) == 0) return;
    char quoted[128];
    api_error_set(fields->error, 404, "invalid_request_error", "model_not_found",
                  "there is no model '%s' here; this server serves '%s'",
                  api_quote(name, name_bytes, quoted, sizeof(quoted)), limits->model_name);
    snprintf(fields->error->param, sizeof(fields->error->param), "model");
    fields->is_failed = true;
}

bool request_parse_token_id(body_fields *fields, const char *name, const json_t *value, uint32_t vocabulary_size,
                            uint32_t *id) {
    if (!json_is_integer(value)) {
        body_fields_refuse(fields, name, "invalid_type", "must be a token id, not %s", json_kind(value));
        return false;
    }
    json_int_t number = json_integer_value(value);
    if (number < 0 || number >= (json_int_t)vocabulary_size) {
        body_fields_refuse(fields, name, "out_of_range", "must be a token id from 0 to %u, not %lld",
                           vocabulary_size - 1, (long long)number);
        return false;
    }
    *id = (uint32_t)number;
    return true;
}

static char *copy_text(body_fields *fields, const char *text, size_t text_bytes) {
    char *copy = malloc(text_bytes + 1);
    if (copy == NULL) {
        api_error_no_memory(fields->error);
        fields->is_failed = true;
        return NULL;
    }
    memcpy(copy, text, text_bytes);
    copy[text_bytes] = '\0';
    return copy;
}

static void parse_stop(request *r, body_fields *fields) {
    json_t *stop = body_field(fields, "stop");
    if (stop == NULL) return;
    bool is_array = json_is_array(stop);
    size_t count = is_array ? json_array_size(stop) : 1;
    if (count > REQUEST_STOPS_MAX) {
        body_fields_refuse(fields, "stop", "out_of_range", "must have at most %u strings, not %zu", REQUEST_STOPS_MAX,
                           count);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        char name[32];
        body_path(name, sizeof(name), is_array ? "stop[%zu]" : "stop", i);
        const json_t *entry = is_array ? json_array_get(stop, i) : stop;
        if (!json_is_string(entry)) {
            body_fields_refuse(fields, name, "invalid_type", "must be a string%s, not %s",
                               is_array ? "" : " or an array of strings", json_kind(entry));
            return;
        }
        size_t bytes = json_string_length(entry);
        if (bytes == 0 || bytes > REQUEST_STOP_BYTES_MAX) {
            body_fields_refuse(fields, name, "out_of_range", "must have 1 to %u bytes, not %zu", REQUEST_STOP_BYTES_MAX,
                               bytes);
            return;
        }
        char *text = copy_text(fields, json_string_value(entry), bytes);
        if (text == NULL) return;
        r->stops[r->stop_count++] = (request_stop){.text = text, .text_bytes = bytes};
    }
}

static void parse_stop_ids(request *r, body_fields *fields, const request_limits *limits) {
    json_t *array;
    if (!body_field_array(fields, "stop_token_ids", REQUEST_STOP_IDS_MAX, &array) || json_array_size(array) == 0)
        return;
    uint32_t *ids = calloc(json_array_size(array), sizeof(*ids));
    if (ids == NULL) {
        api_error_no_memory(fields->error);
        fields->is_failed = true;
        return;
    }
    r->sampling.stop_ids = ids;
    for (size_t i = 0; i < json_array_size(array); i++) {
        char name[48];
        body_path(name, sizeof(name), "stop_token_ids[%zu]", i);
        if (!request_parse_token_id(fields, name, json_array_get(array, i), limits->vocabulary_size, &ids[i])) return;
        r->sampling.stop_id_count++;
    }
}

static void parse_logit_bias(request *r, body_fields *fields, const request_limits *limits) {
    json_t *object;
    if (!body_field_object(fields, "logit_bias", &object) || json_object_size(object) == 0) return;
    if (json_object_size(object) > REQUEST_LOGIT_BIAS_MAX) {
        body_fields_refuse(fields, "logit_bias", "out_of_range", "must have at most %u entries, not %zu",
                           REQUEST_LOGIT_BIAS_MAX, json_object_size(object));
        return;
    }
    worker_logit_bias *biases = calloc(json_object_size(object), sizeof(*biases));
    if (biases == NULL) {
        api_error_no_memory(fields->error);
        fields->is_failed = true;
        return;
    }
    r->sampling.logit_bias = biases;
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) {
        char quoted[32];
        api_quote(key, strlen(key), quoted, sizeof(quoted));
        char *end;
        errno = 0;
        unsigned long id = strtoul(key, &end, 10);
        if (key[0] < '0' || key[0] > '9' || *end != '\0' || errno != 0 || id >= limits->vocabulary_size) {
            body_fields_refuse(fields, "logit_bias", "out_of_range",
                               "has the key '%s', which is no token id from 0 to %u", quoted,
                               limits->vocabulary_size - 1);
            return;
        }
        double bias = json_is_number(value) ? json_number_value(value) : 1e9;
        if (!(bias >= -100.0 && bias <= 100.0)) {
            body_fields_refuse(fields, "logit_bias", "out_of_range",
                               "must give numbers between -100 and 100, and does not for '%s'", quoted);
            return;
        }
        biases[r->sampling.logit_bias_count++] = (worker_logit_bias){.token_id = (uint32_t)id, .bias = (float)bias};
    }
}

static void parse_sampling(request *r, body_fields *fields) {
    worker_sampling *sampling = &r->sampling;
    body_field_number(fields, "temperature", 0.0, 2.0, &sampling->temperature);
    body_field_number(fields, "top_p", 0.0, 1.0, &sampling->top_p);
    body_field_number(fields, "min_p", 0.0, 1.0, &sampling->min_p);
    body_field_number(fields, "presence_penalty", -2.0, 2.0, &sampling->presence_penalty);
    body_field_number(fields, "frequency_penalty", -2.0, 2.0, &sampling->frequency_penalty);
    body_field_number(fields, "repetition_penalty", 0.0, 10.0, &sampling->repetition_penalty);
    if (!fields->is_failed && !(sampling->top_p > 0.0f)) {
        body_fields_refuse(fields, "top_p", "out_of_range", "must be greater than 0");
    }
    if (!fields->is_failed && !(sampling->repetition_penalty > 0.0f)) {
        body_fields_refuse(fields, "repetition_penalty", "out_of_range", "must be greater than 0");
    }
    int64_t top_k; /* -1 is another way to say all */
    if (body_field_integer(fields, "top_k", -1, INT32_MAX, &top_k)) sampling->top_k = top_k < 0 ? 0 : (uint32_t)top_k;
    int64_t seed;
    if (body_field_integer(fields, "seed", INT64_MIN, INT64_MAX, &seed)) {
        sampling->seed = (uint64_t)seed;
        r->has_seed = true;
    }
    body_field_bool(fields, "ignore_eos", &sampling->ignore_eos);
}

static void parse_lengths(request *r, body_fields *fields) {
    /* OpenAI replaced max_tokens by max_completion_tokens; where both are given the newer one counts. */
    int64_t minimum = r->kind == REQUEST_COMPLETION ? 0 : 1;
    int64_t max_tokens = 0;
    r->has_max_tokens = body_field_integer(fields, "max_tokens", minimum, INT32_MAX, &max_tokens);
    if (body_field_integer(fields, "max_completion_tokens", 1, INT32_MAX, &max_tokens)) r->has_max_tokens = true;
    r->max_tokens = (uint64_t)max_tokens;
    body_field_u32(fields, "min_tokens", 0, INT32_MAX, &r->sampling.min_tokens);
    if (!fields->is_failed && r->has_max_tokens && r->sampling.min_tokens > r->max_tokens) {
        body_fields_refuse(fields, "min_tokens", "out_of_range", "must be at most max_tokens, which is %llu, not %u",
                           (unsigned long long)r->max_tokens, r->sampling.min_tokens);
    }
}

static void parse_choices(request *r, body_fields *fields) {
    body_field_u32(fields, "n", 1, REQUEST_CHOICES_MAX, &r->choices);
    uint32_t best_of;
    if (body_field_u32(fields, "best_of", 1, REQUEST_CHOICES_MAX, &best_of) && best_of != r->choices) {
        body_fields_refuse(fields, "best_of", "unsupported_field",
                           "is not supported other than equal to 'n', which is %u", r->choices);
    }
}

static void parse_stream(request *r, body_fields *fields) {
    body_field_bool(fields, "stream", &r->is_stream);
    body_field_bool(fields, "return_progress", &r->return_progress);
    json_t *options;
    if (body_field_object(fields, "stream_options", &options)) {
        if (!r->is_stream) {
            body_fields_refuse(fields, "stream_options", "invalid_value", "may only be given where 'stream' is true");
            return;
        }
        body_fields inner;
        body_fields_init(&inner, options, "stream_options.", fields->error);
        body_field_bool(&inner, "include_usage", &r->include_usage);
        fields->is_failed = inner.is_failed;
    }
    if (!fields->is_failed && r->return_progress && !r->is_stream) {
        body_fields_refuse(fields, "return_progress", "invalid_value", "may only be given where 'stream' is true");
    }
}

static void parse_hadal(request *r, body_fields *fields) {
    json_t *own;
    if (!body_field_object(fields, "hadal", &own)) return;
    body_fields inner;
    body_fields_init(&inner, own, "hadal.", fields->error);
    const char *key;
    json_t *value;
    json_object_foreach(own, key, value) {
        if (strcmp(key, "selection") != 0 && strcmp(key, "no_cache") != 0) {
            char quoted[64];
            body_fields_refuse(&inner, api_quote(key, strlen(key), quoted, sizeof(quoted)), "unknown_field",
                               "is not known; 'hadal' has 'selection' and 'no_cache'");
        }
    }
    const char *selection;
    if (body_field_text(&inner, "selection", &selection)) {
        if (strlen(selection) > 256)
            body_fields_refuse(&inner, "selection", "out_of_range", "must have at most 256 bytes");
        else r->selection = copy_text(&inner, selection, strlen(selection));
    }
    body_field_bool(&inner, "no_cache", &r->no_cache);
    fields->is_failed = inner.is_failed;
}

static void parse_cache_salt(request *r, body_fields *fields) {
    const char *salt;
    if (!body_field_text(fields, "cache_salt", &salt)) return;
    size_t bytes = strlen(salt);
    if (bytes == 0 || bytes > 1024)
        body_fields_refuse(fields, "cache_salt", "out_of_range", "must have 1 to 1024 bytes, not %zu", bytes);
    else r->cache_salt = copy_text(fields, salt, bytes);
}

void request_parse_options(request *r, body_fields *fields, const request_limits *limits) {
    request_parse_model(fields, limits);
    refused_fields_check(fields, r->kind);
    parse_sampling(r, fields);
    parse_lengths(r, fields);
    parse_choices(r, fields);
    parse_stop(r, fields);
    parse_stop_ids(r, fields, limits);
    parse_logit_bias(r, fields, limits);
    parse_stream(r, fields);
    parse_hadal(r, fields);
    parse_cache_salt(r, fields);
    body_field_bool(fields, "echo", &r->echo);
    body_field_bool(fields, "include_stop_str_in_output", &r->include_stop_text);
    body_field_bool(fields, "skip_special_tokens", &r->skip_special_tokens);
    body_field_bool(fields, "add_special_tokens", &r->add_special_tokens);
    body_field_bool(fields, "return_token_ids", &r->return_token_ids);
    body_field_bool(fields, "return_tokens_as_token_ids", &r->tokens_as_ids);
    int64_t prompt_logprobs;
    if (body_field_integer(fields, "prompt_logprobs", 0, WORKER_LOGPROBS_MAX, &prompt_logprobs)) {
        r->prompt_logprobs = (int32_t)prompt_logprobs;
        if (r->is_stream) {
            body_fields_refuse(fields, "prompt_logprobs", "invalid_value", "may not be given where 'stream' is true");
        }
    }
}
