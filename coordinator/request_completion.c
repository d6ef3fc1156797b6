/* request_completion.c - a completion's prompts: a string, an array of strings, of token ids, or of arrays of token
 * ids. */
#include <stdio.h>

#include "coordinator/json_body.h"
#include "coordinator/request.h"

static bool parse_ids(body_fields *fields, const char *path, const json_t *ids, uint32_t vocabulary_size) {
    size_t index;
    json_t *value;
    uint32_t id;
    if (json_array_size(ids) == 0) {
        body_fields_refuse(fields, path, "missing_field", "must not be empty");
        return false;
    }
    json_array_foreach(ids, index, value) {
        /* The name is only printed for an id that is refused: prompts have millions of them. */
        if (json_is_integer(value) && json_integer_value(value) >= 0 &&
            json_integer_value(value) < (json_int_t)vocabulary_size)
            continue;
        char name[64];
        body_path(name, sizeof(name), "%s[%zu]", path, index);
        return request_parse_token_id(fields, name, value, vocabulary_size, &id);
    }
    return true;
}

static void parse_prompt(request *r, body_fields *fields, const request_limits *limits) {
    json_t *p = body_field(fields, "prompt");
    if (p == NULL) {
        body_fields_refuse(fields, "prompt", "missing_field", "is required");
        return;
    }
    r->prompt = p;
    if (json_is_string(p)) return;
    if (!json_is_array(p)) {
        body_fields_refuse(fields, "prompt", "invalid_type", "must be a string or an array, not %s", json_kind(p));
        return;
    }
    json_t *first = json_array_get(p, 0);
    if (first == NULL || json_is_integer(first)) {
        parse_ids(fields, "prompt", p, limits->vocabulary_size);
        return;
    }
    if (json_array_size(p) > REQUEST_PROMPTS_MAX) {
        body_fields_refuse(fields, "prompt", "out_of_range", "must have at most %u prompts, not %zu",
                           REQUEST_PROMPTS_MAX, json_array_size(p));
        return;
    }
    r->prompt_count = (uint32_t)json_array_size(p);
    size_t index;
    json_t *entry;
    json_array_foreach(p, index, entry) {
        char path[48];
        body_path(path, sizeof(path), "prompt[%zu]", index);
        if (json_typeof(entry) != json_typeof(first) || !(json_is_string(entry) || json_is_array(entry))) {
            body_fields_refuse(fields, path, "invalid_type",
                               "must be a string, or an array of token ids, as all entries, not %s", json_kind(entry));
            return;
        }
        if (json_is_array(entry) && !parse_ids(fields, path, entry, limits->vocabulary_size)) return;
    }
}

hd_status request_parse_completion(request *r, const request_limits *limits, const char *body, size_t body_bytes,
                                   api_error *error) {
    hd_status status = json_body_parse(body, body_bytes, &r->body, error);
    if (status != HD_OK) return status;
    body_fields fields;
    body_fields_init(&fields, r->body, "", error);
    request_parse_options(r, &fields, limits);
    int64_t logprobs;
    if (body_field_integer(&fields, "logprobs", 0, WORKER_LOGPROBS_MAX, &logprobs)) r->logprobs = (int32_t)logprobs;
    parse_prompt(r, &fields, limits);
    if (!fields.is_failed && r->prompt_count * r->choices > REQUEST_TOTAL_CHOICES_MAX) {
        body_fields_refuse(&fields, "n", "out_of_range", "times the number of prompts must be at most %u, not %u",
                           REQUEST_TOTAL_CHOICES_MAX, r->prompt_count * r->choices);
    }
    if (fields.is_failed) return HD_INVALID;
    r->sampling.logprobs = r->logprobs;
    r->sampling.prompt_logprobs = r->prompt_logprobs;
    /* echo with logprobs shows the prompt's as well. */
    if (r->echo && r->logprobs > r->sampling.prompt_logprobs) r->sampling.prompt_logprobs = r->logprobs;
    return HD_OK;
}
