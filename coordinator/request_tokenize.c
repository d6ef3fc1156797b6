/* request_tokenize.c - the bodies of /tokenize and /detokenize. */
#include <stdio.h>
#include <stdlib.h>

#include "coordinator/json_body.h"
#include "coordinator/request.h"

hd_status request_parse_tokenize(request *r, const request_limits *limits, const char *body, size_t body_bytes,
                                 bool *wants_texts, api_error *error) {
    hd_status status = json_body_parse(body, body_bytes, &r->body, error);
    if (status != HD_OK) return status;
    body_fields fields;
    body_fields_init(&fields, r->body, "", error);
    request_parse_model(&fields, limits);
    body_field_bool(&fields, "return_token_strs", wants_texts);
    const char *text;
    size_t text_bytes;
    bool has_prompt = body_field_string(&fields, "prompt", &text, &text_bytes);
    bool has_messages = body_field(&fields, "messages") != NULL;
    if (has_prompt == has_messages) {
        body_fields_refuse(&fields, "prompt", has_prompt ? "invalid_value" : "missing_field",
                           has_prompt ? "and 'messages' must not both be given" : "or 'messages' is required");
    }
    r->kind = has_messages ? REQUEST_CHAT : REQUEST_COMPLETION;
    r->add_special_tokens = !has_messages;
    body_field_bool(&fields, "add_special_tokens", &r->add_special_tokens);
    if (has_messages) request_parse_chat_context(r, &fields);
    else r->prompt = body_field(&fields, "prompt");
    return fields.is_failed ? HD_INVALID : HD_OK;
}

hd_status request_parse_detokenize(const request_limits *limits, const char *body, size_t body_bytes, uint32_t **ids,
                                   size_t *id_count, api_error *error) {
    json_t *root;
    hd_status status = json_body_parse(body, body_bytes, &root, error);
    if (status != HD_OK) return status;
    body_fields fields;
    body_fields_init(&fields, root, "", error);
    request_parse_model(&fields, limits);
    json_t *tokens = NULL;
    if (!body_field_array(&fields, "tokens", JSON_BODY_VALUES_MAX, &tokens)) {
        body_fields_refuse(&fields, "tokens", "missing_field", "is required");
    }
    size_t count = json_array_size(tokens), index;
    uint32_t *found = fields.is_failed ? NULL : malloc((count + 1) * sizeof(*found));
    if (found == NULL && !fields.is_failed) {
        api_error_no_memory(error);
        fields.is_failed = true;
    }
    json_t *value;
    json_array_foreach(tokens, index, value) {
        char name[40];
        if (fields.is_failed) break;
        body_path(name, sizeof(name), "tokens[%zu]", index);
        request_parse_token_id(&fields, name, value, limits->vocabulary_size, &found[index]);
    }
    json_decref(root);
    if (fields.is_failed) {
        free(found);
        return HD_INVALID;
    }
    *ids = found;
    *id_count = count;
    return HD_OK;
}
