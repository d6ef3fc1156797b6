/* request_chat.c - a chat's messages and tools, brought into the shape that Hugging Face templates are written for.
 *
 * Templates read a message's content as a string and a tool call's arguments as an object, while OpenAI's clients send
 * arrays of parts and arguments as a JSON string. Everything else of a message goes to the template as it came: some
 * read reasoning_content, others name. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/json_body.h"
#include "coordinator/request.h"

#define ARGUMENTS_DEPTH_MAX 64u

static void fail_memory(body_fields *fields) {
    if (!fields->is_failed) api_error_no_memory(fields->error);
    fields->is_failed = true;
}

/* The parts' texts, joined by newlines; a new reference. NULL when refused. */
static json_t *join_parts(body_fields *fields, const char *path, json_t *parts) {
    text_buffer joined;
    text_buffer_init(&joined);
    size_t index;
    json_t *part;
    char name[112];
    json_array_foreach(parts, index, part) {
        if (!json_is_object(part)) {
            body_path(name, sizeof(name), "%s[%zu]", path, index);
            body_fields_refuse(fields, name, "invalid_type", "must be an object, not %s", json_kind(part));
            break;
        }
        const json_t *type = json_object_get(part, "type");
        if (!json_is_string(type) || strcmp(json_string_value(type), "text") != 0) {
            char quoted[40] = "nothing";
            if (json_is_string(type))
                api_quote(json_string_value(type), json_string_length(type), quoted, sizeof(quoted));
            body_path(name, sizeof(name), "%s[%zu].type", path, index);
            body_fields_refuse(fields, name, "unsupported_field",
                               "must be 'text', not '%s': other parts are not supported", quoted);
            break;
        }
        const json_t *text = json_object_get(part, "text");
        if (!json_is_string(text)) {
            body_path(name, sizeof(name), "%s[%zu].text", path, index);
            body_fields_refuse(fields, name, "invalid_type", "must be a string, not %s",
                               text == NULL ? "absent" : json_kind(text));
            break;
        }
        if (index > 0) text_buffer_append(&joined, "\n", 1);
        text_buffer_append(&joined, json_string_value(text), json_string_length(text));
    }
    json_t *string = fields->is_failed || joined.is_failed
                         ? NULL
                         : json_stringn_nocheck(joined.count > 0 ? joined.bytes : "", joined.count);
    if (string == NULL) fail_memory(fields);
    text_buffer_fini(&joined);
    return string;
}

static void parse_content(body_fields *fields, const char *path, json_t *message, bool may_be_absent) {
    char name[96];
    body_path(name, sizeof(name), "%s.content", path);
    json_t *content = json_object_get(message, "content");
    if (content == NULL || json_is_null(content)) {
        if (!may_be_absent) body_fields_refuse(fields, name, "missing_field", "is required");
        else if (json_object_set_new(message, "content", json_string("")) != 0) fail_memory(fields);
    } else if (json_is_array(content)) {
        json_t *joined = join_parts(fields, name, content);
        if (joined != NULL && json_object_set_new(message, "content", joined) != 0) fail_memory(fields);
    } else if (!json_is_string(content)) {
        body_fields_refuse(fields, name, "invalid_type", "must be a string or an array of parts, not %s",
                           json_kind(content));
    }
}

/* The function of a tool or of a tool call: an object with a name. NULL when refused. */
static json_t *parse_function(body_fields *fields, const char *path, json_t *entry) {
    char name[112];
    if (!json_is_object(entry)) {
        body_fields_refuse(fields, path, "invalid_type", "must be an object, not %s", json_kind(entry));
        return NULL;
    }
    const json_t *type = json_object_get(entry, "type");
    if (type != NULL && (!json_is_string(type) || strcmp(json_string_value(type), "function") != 0)) {
        body_path(name, sizeof(name), "%s.type", path);
        body_fields_refuse(fields, name, "unsupported_field", "must be 'function'");
        return NULL;
    }
    json_t *function = json_object_get(entry, "function");
    if (!json_is_object(function)) {
        body_path(name, sizeof(name), "%s.function", path);
        body_fields_refuse(fields, name, "missing_field", "must be an object with 'name'");
        return NULL;
    }
    const json_t *function_name = json_object_get(function, "name");
    if (!json_is_string(function_name) || json_string_length(function_name) == 0) {
        body_path(name, sizeof(name), "%s.function.name", path);
        body_fields_refuse(fields, name, "missing_field", "must be a string that is not empty");
        return NULL;
    }
    return function;
}

/* A copy of the call whose arguments are an object; a new reference. */
static json_t *parse_tool_call(body_fields *fields, const char *path, json_t *call) {
    json_t *function = parse_function(fields, path, call);
    if (function == NULL) return NULL;
    json_t *arguments = json_object_get(function, "arguments"), *parsed = NULL;
    if (json_is_string(arguments) && json_string_length(arguments) > 0) {
        if (!json_text_parse(json_string_value(arguments), json_string_length(arguments), ARGUMENTS_DEPTH_MAX,
                             &parsed)) {
            char name[112];
            body_path(name, sizeof(name), "%s.function.arguments", path);
            body_fields_refuse(fields, name, "invalid_value", "must be JSON");
            return NULL;
        }
    } else if (json_is_object(arguments) || json_is_array(arguments)) {
        parsed = json_incref(arguments);
    } else {
        parsed = json_object();
    }
    json_t *call_copy = json_copy(call), *function_copy = json_copy(function);
    bool is_built = call_copy != NULL && function_copy != NULL &&
                    json_object_set(function_copy, "arguments", parsed) == 0 &&
                    json_object_set(call_copy, "function", function_copy) == 0;
    json_decref(parsed);
    json_decref(function_copy);
    if (is_built) return call_copy;
    json_decref(call_copy);
    fail_memory(fields);
    return NULL;
}

/* Returns whether there are any. */
static bool parse_tool_calls(body_fields *fields, const char *path, json_t *message) {
    json_t *calls = json_object_get(message, "tool_calls");
    if (calls == NULL || json_is_null(calls)) {
        json_object_del(message, "tool_calls");
        return false;
    }
    char name[80];
    if (!json_is_array(calls)) {
        body_path(name, sizeof(name), "%s.tool_calls", path);
        body_fields_refuse(fields, name, "invalid_type", "must be an array, not %s", json_kind(calls));
        return false;
    }
    json_t *copies = json_array();
    size_t index;
    json_t *call;
    json_array_foreach(calls, index, call) {
        body_path(name, sizeof(name), "%s.tool_calls[%zu]", path, index);
        json_t *copy = parse_tool_call(fields, name, call);
        if (copy == NULL) break;
        if (json_array_append_new(copies, copy) != 0) fail_memory(fields);
    }
    bool has_calls = json_array_size(copies) > 0;
    int failed =
        has_calls ? json_object_set_new(message, "tool_calls", copies) : json_object_del(message, "tool_calls");
    if (!has_calls) json_decref(copies);
    if (failed != 0) fail_memory(fields);
    return has_calls;
}

/* A copy of the message in the templates' shape; a new reference. NULL when refused. */
static json_t *parse_message(body_fields *fields, const char *path, json_t *given) {
    char name[96];
    if (!json_is_object(given)) {
        body_fields_refuse(fields, path, "invalid_type", "must be an object, not %s", json_kind(given));
        return NULL;
    }
    const json_t *role = json_object_get(given, "role");
    if (!json_is_string(role) || json_string_length(role) == 0 || json_string_length(role) > 64) {
        body_path(name, sizeof(name), "%s.role", path);
        body_fields_refuse(fields, name, role == NULL ? "missing_field" : "invalid_type",
                           "must be a string of 1 to 64 bytes, not %s", role == NULL ? "absent" : json_kind(role));
        return NULL;
    }
    static const char *const refused[] = {"function_call", "audio"};
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        const json_t *value = json_object_get(given, refused[i]);
        if (value == NULL || json_is_null(value)) continue;
        body_path(name, sizeof(name), "%s.%s", path, refused[i]);
        body_fields_refuse(fields, name, "unsupported_field", "is not supported");
        return NULL;
    }
    json_t *message = json_copy(given);
    if (message == NULL) {
        fail_memory(fields);
        return NULL;
    }
    bool is_assistant = strcmp(json_string_value(role), "assistant") == 0;
    bool has_calls = is_assistant && parse_tool_calls(fields, path, message);
    if (!fields->is_failed) parse_content(fields, path, message, has_calls);
    if (!fields->is_failed) return message;
    json_decref(message);
    return NULL;
}

static json_t *parse_messages(body_fields *fields) {
    json_t *given;
    if (!body_field_array(fields, "messages", JSON_BODY_CONTAINERS_MAX, &given)) {
        body_fields_refuse(fields, "messages", "missing_field", "is required");
        return NULL;
    }
    if (json_array_size(given) == 0) {
        body_fields_refuse(fields, "messages", "missing_field", "must have at least one message");
        return NULL;
    }
    json_t *messages = json_array();
    size_t index;
    json_t *entry;
    json_array_foreach(given, index, entry) {
        char path[48];
        body_path(path, sizeof(path), "messages[%zu]", index);
        json_t *message = parse_message(fields, path, entry);
        if (message == NULL) break;
        if (json_array_append_new(messages, message) != 0) fail_memory(fields);
    }
    return messages;
}

/* The tools for the template; borrowed from the body, NULL where the model is to see none. */
static json_t *parse_tools(body_fields *fields) {
    json_t *tools = NULL;
    if (body_field_array(fields, "tools", 4096, &tools)) {
        size_t index;
        json_t *tool;
        json_array_foreach(tools, index, tool) {
            char path[48];
            body_path(path, sizeof(path), "tools[%zu]", index);
            if (parse_function(fields, path, tool) == NULL) return NULL;
        }
    }
    const json_t *c = body_field(fields, "tool_choice");
    if (c == NULL) return tools;
    const char *word = json_is_string(c) ? json_string_value(c) : "";
    if (strcmp(word, "none") == 0) return NULL;
    if (strcmp(word, "auto") != 0) {
        body_fields_refuse(fields, "tool_choice", "unsupported_field",
                           "is not supported other than \"auto\" and \"none\": this server does not force a tool call");
    }
    return tools;
}

/* Members that have fields of their own; given twice, it would not be clear which counts. */
static bool is_reserved(const char *key) {
    static const char *const reserved[] = {
        "messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template"};
    for (size_t i = 0; i < sizeof(reserved) / sizeof(reserved[0]); i++) {
        if (strcmp(key, reserved[i]) == 0) return true;
    }
    return false;
}

static void parse_template_kwargs(request *r, body_fields *fields) {
    json_t *kwargs;
    if (!body_field_object(fields, "chat_template_kwargs", &kwargs)) return;
    const char *key;
    json_t *value;
    json_object_foreach(kwargs, key, value) {
        if (is_reserved(key)) {
            body_fields_refuse(fields, "chat_template_kwargs", "invalid_value",
                               "must not hold '%s', which is a field of its own", key);
            return;
        }
        if (json_object_set(r->context, key, value) != 0) fail_memory(fields);
    }
}

/* The last message's content where the answer is to go on from it (or to begin with it). */
static void parse_continuation(request *r, body_fields *fields, json_t *messages) {
    bool is_continued = false, adds_prompt = true;
    body_field_bool(fields, "continue_final_message", &is_continued);
    bool has_prompt_field = body_field_bool(fields, "add_generation_prompt", &adds_prompt);
    if (fields->is_failed) return;
    if (is_continued) {
        if (has_prompt_field && adds_prompt) {
            body_fields_refuse(fields, "continue_final_message", "invalid_value",
                               "and 'add_generation_prompt' must not both be true");
            return;
        }
        adds_prompt = false;
        json_t *last = json_array_get(messages, json_array_size(messages) - 1);
        r->final_message = json_object_get(last, "content");
    }
    if (json_object_set_new(r->context, "add_generation_prompt", json_boolean(adds_prompt)) != 0) fail_memory(fields);
}

void request_parse_chat_context(request *r, body_fields *fields) {
    json_t *messages = parse_messages(fields);
    json_t *tools = parse_tools(fields);
    json_t *documents = NULL;
    body_field_array(fields, "documents", JSON_BODY_CONTAINERS_MAX, &documents);
    body_field_text(fields, "chat_template", &r->chat_template);
    r->context = json_object();
    if (!fields->is_failed) {
        parse_template_kwargs(r, fields);
        parse_continuation(r, fields, messages);
    }
    /* Templates ask `tools is not none`: absent must be none, not undefined. */
    bool is_built =
        r->context != NULL && json_object_set(r->context, "messages", messages) == 0 &&
        json_object_set_new(r->context, "tools",
                            tools != NULL && json_array_size(tools) > 0 ? json_incref(tools) : json_null()) == 0 &&
        json_object_set_new(r->context, "documents", documents != NULL ? json_incref(documents) : json_null()) == 0;
    json_decref(messages);
    if (!is_built && !fields->is_failed) fail_memory(fields);
}

static void parse_chat_logprobs(request *r, body_fields *fields) {
    bool wants_logprobs = false;
    body_field_bool(fields, "logprobs", &wants_logprobs);
    if (wants_logprobs) r->logprobs = 0;
    int64_t top;
    if (body_field_integer(fields, "top_logprobs", 0, WORKER_LOGPROBS_MAX, &top)) {
        if (!wants_logprobs && top > 0) {
            body_fields_refuse(fields, "top_logprobs", "invalid_value", "may only be given where 'logprobs' is true");
        } else if (wants_logprobs) {
            r->logprobs = (int32_t)top;
        }
    }
}

hd_status request_parse_chat(request *r, const request_limits *limits, const char *body, size_t body_bytes,
                             api_error *error) {
    hd_status status = json_body_parse(body, body_bytes, &r->body, error);
    if (status != HD_OK) return status;
    body_fields fields;
    body_fields_init(&fields, r->body, "", error);
    request_parse_options(r, &fields, limits);
    parse_chat_logprobs(r, &fields);
    if (!fields.is_failed) request_parse_chat_context(r, &fields);
    if (fields.is_failed) return HD_INVALID;
    r->sampling.logprobs = r->logprobs;
    r->sampling.prompt_logprobs = r->prompt_logprobs;
    return HD_OK;
}
