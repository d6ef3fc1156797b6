/* prompt.c - see prompt.h. */
#include "coordinator/prompt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Characters that Python's str.strip takes off, beyond ASCII. Templates strip with it, and so must the search for their
 * text. */
static size_t blank_bytes(const char *text, size_t text_bytes) {
    static const char *const wide[] = {"\xc2\x85",     "\xc2\xa0",     "\xe1\x9a\x80", "\xe2\x80\xa8",
                                       "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80"};
    unsigned char byte = (unsigned char)text[0];
    if (byte == ' ' || (byte >= 0x09 && byte <= 0x0d) || (byte >= 0x1c && byte <= 0x1f)) return 1;
    for (size_t i = 0; i < sizeof(wide) / sizeof(wide[0]); i++) {
        if (text_bytes >= strlen(wide[i]) && memcmp(text, wide[i], strlen(wide[i])) == 0) return strlen(wide[i]);
    }
    bool is_space = text_bytes >= 3 && memcmp(text, "\xe2\x80", 2) == 0 && (unsigned char)text[2] >= 0x80 &&
                    (unsigned char)text[2] <= 0x8a;
    return is_space ? 3 : 0;
}

static size_t leading_blank(const char *text, size_t text_bytes) {
    size_t at = 0;
    while (at < text_bytes) {
        size_t blank = blank_bytes(text + at, text_bytes - at);
        if (blank == 0) break;
        at += blank;
    }
    return at;
}

static size_t trailing_blank(const char *text, size_t text_bytes) {
    size_t end = text_bytes;
    while (end > 0) {
        size_t start = end - 1;
        while (start > 0 && ((unsigned char)text[start] & 0xc0) == 0x80) start--;
        size_t blank = blank_bytes(text + start, end - start);
        if (blank == 0) break;
        end = start;
    }
    return text_bytes - end;
}

static const char *find_last(const char *text, size_t text_bytes, const char *part, size_t part_bytes) {
    if (part_bytes > text_bytes) return NULL;
    for (const char *at = text + text_bytes - part_bytes;; at--) {
        if (memcmp(at, part, part_bytes) == 0) return at;
        if (at == text) return NULL;
    }
}

/* Cuts the rendered chat after the last message, so that the answer goes on from it: after its text as it stands if the
 * template kept its trailing blanks, else after its last visible character. A message that begins with blanks counts as
 * changed by the template whatever that did, as Hugging Face has it. */
static hd_status cut_after_final(const request *r, char *text, size_t *text_bytes, api_error *error) {
    const char *message = json_string_value(r->final_message);
    size_t message_bytes = message != NULL ? json_string_length(r->final_message) : 0;
    size_t leading = leading_blank(message, message_bytes);
    size_t trailing = leading == message_bytes ? 0 : trailing_blank(message, message_bytes);
    const char *visible = message != NULL ? message + leading : "";
    size_t visible_bytes = message_bytes - leading - trailing, kept_bytes = message_bytes - leading;
    const char *found = find_last(text, *text_bytes, visible, visible_bytes);
    if (found == NULL) {
        return api_error_invalid(
            error, "continue_final_message", "chat_template_error",
            "'continue_final_message' is set, but the chat template does not print the last message's content");
    }
    size_t after = *text_bytes - (size_t)(found - text);
    bool keeps_blanks = leading == 0 && after >= kept_bytes && memcmp(found, visible, kept_bytes) == 0;
    *text_bytes = (size_t)(found - text) + (keeps_blanks ? kept_bytes : visible_bytes);
    text[*text_bytes] = '\0';
    return HD_OK;
}

hd_status prompt_render(const text_model *model, const request *r, char **text, size_t *text_bytes, api_error *error) {
    if (r->chat_template == NULL && !text_has_chat_template(model)) {
        return api_error_invalid(
            error, "messages", "no_chat_template",
            "this model has no chat template: give one in 'chat_template', or use /v1/completions");
    }
    char *context = json_dumps(r->context, JSON_COMPACT);
    if (context == NULL) return api_error_no_memory(error);
    hd_error cause = {.text = ""};
    hd_status status = text_render_chat(model, r->chat_template, context, strlen(context), text, text_bytes, &cause);
    free(context);
    if (status == HD_NO_MEMORY) return api_error_no_memory(error);
    if (status != HD_OK) {
        return api_error_invalid(error, "messages", "chat_template_error",
                                 "the chat template refuses these messages: %s", cause.text);
    }
    if (r->final_message == NULL) return HD_OK;
    status = cut_after_final(r, *text, text_bytes, error);
    if (status != HD_OK) free(*text);
    return status;
}

static hd_status encode(const text_model *model, const char *text, size_t text_bytes, bool add_special_tokens,
                        prompt *p, api_error *error) {
    hd_error cause = {.text = ""};
    hd_status status = text_encode(model, text, text_bytes, add_special_tokens, &p->ids, &p->id_count, &cause);
    if (status == HD_OK) return HD_OK;
    if (status == HD_NO_MEMORY) return api_error_no_memory(error);
    return api_error_invalid(error, "prompt", NULL, "the prompt cannot be tokenised: %s", cause.text);
}

static char *copy_bytes(const char *bytes, size_t count) {
    char *copy = malloc(count + 1);
    if (copy == NULL) return NULL;
    memcpy(copy, bytes, count);
    copy[count] = '\0';
    return copy;
}

static hd_status build_chat(const text_model *model, const request *r, prompt *p, api_error *error) {
    char *text = NULL;
    size_t text_bytes = 0;
    hd_status status = prompt_render(model, r, &text, &text_bytes, error);
    if (status != HD_OK) return status;
    status = encode(model, text, text_bytes, r->add_special_tokens, p, error);
    free(text);
    if (status != HD_OK || !r->echo || r->final_message == NULL) return status;
    p->text_bytes = json_string_length(r->final_message);
    p->text = copy_bytes(json_string_value(r->final_message), p->text_bytes);
    return p->text != NULL ? HD_OK : api_error_no_memory(error);
}

static hd_status build_from_text(const text_model *model, const request *r, const json_t *given, prompt *p,
                                 api_error *error) {
    hd_status status =
        encode(model, json_string_value(given), json_string_length(given), r->add_special_tokens, p, error);
    if (status != HD_OK || !r->echo) return status;
    p->text_bytes = json_string_length(given);
    p->text = copy_bytes(json_string_value(given), p->text_bytes);
    return p->text != NULL ? HD_OK : api_error_no_memory(error);
}

static hd_status build_from_ids(const text_model *model, const request *r, const json_t *given, prompt *p,
                                api_error *error) {
    p->id_count = json_array_size(given);
    p->ids = malloc(p->id_count * sizeof(*p->ids));
    if (p->ids == NULL) return api_error_no_memory(error);
    for (size_t i = 0; i < p->id_count; i++) p->ids[i] = (uint32_t)json_integer_value(json_array_get(given, i));
    if (!r->echo) return HD_OK;
    hd_error cause;
    hd_status status =
        text_decode(model, p->ids, p->id_count, r->skip_special_tokens, &p->text, &p->text_bytes, &cause);
    if (status == HD_OK) return HD_OK;
    return api_error_invalid(error, "prompt", NULL, "the prompt cannot be echoed: %s", cause.text);
}

static hd_status build_completion(const text_model *model, const request *r, size_t index, prompt *p,
                                  api_error *error) {
    const json_t *given = r->prompt;
    const json_t *first = json_array_get(given, 0);
    if (json_is_array(given) && !json_is_integer(first)) given = json_array_get(given, index);
    return json_is_string(given) ? build_from_text(model, r, given, p, error)
                                 : build_from_ids(model, r, given, p, error);
}

hd_status prompts_build(const text_model *model, const request *r, prompt **out, api_error *error) {
    prompt *prompts = calloc(r->prompt_count, sizeof(*prompts));
    if (prompts == NULL) return api_error_no_memory(error);
    hd_status status = HD_OK;
    for (uint32_t i = 0; status == HD_OK && i < r->prompt_count; i++) {
        status = r->kind == REQUEST_CHAT ? build_chat(model, r, &prompts[i], error)
                                         : build_completion(model, r, i, &prompts[i], error);
    }
    if (status == HD_OK) *out = prompts;
    else prompts_free(prompts, r->prompt_count);
    return status;
}

void prompt_name(const request *r, uint32_t index, char *name, size_t name_bytes) {
    snprintf(name, name_bytes,
             r->prompt_count > 1       ? "prompt[%u]"
             : r->kind == REQUEST_CHAT ? "messages"
                                       : "prompt",
             index);
}

hd_status prompts_check(const prompt *prompts, const request *r, uint32_t vocabulary_size, api_error *error) {
    for (uint32_t i = 0; i < r->prompt_count; i++) {
        char name[32];
        prompt_name(r, i, name, sizeof(name));
        if (prompts[i].id_count == 0) return api_error_invalid(error, name, "empty_prompt", "'%s' has no tokens", name);
        for (size_t k = 0; k < prompts[i].id_count; k++) {
            if (prompts[i].ids[k] < vocabulary_size) continue;
            return api_error_invalid(error, name, "out_of_range",
                                     "'%s' has the token id %u, and this model knows 0 to %u", name, prompts[i].ids[k],
                                     vocabulary_size - 1);
        }
    }
    return HD_OK;
}

void prompts_free(prompt *prompts, size_t count) {
    for (size_t i = 0; prompts != NULL && i < count; i++) {
        free(prompts[i].ids);
        free(prompts[i].text);
    }
    free(prompts);
}
