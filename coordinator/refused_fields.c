/* refused_fields.c - the table, one row a field. */
#include "coordinator/refused_fields.h"

#include <string.h>

typedef enum {
    HARMLESS_NONE,
    HARMLESS_FALSE,
    HARMLESS_TRUE,
    HARMLESS_EMPTY,
    HARMLESS_ZERO,
    HARMLESS_ONE,
    HARMLESS_TEXT
} harmless_value;

typedef struct refused_field {
    const char *name;
    harmless_value harmless; /* besides null */
    const char *instead;     /* what the message adds; "" for nothing */
} refused_field;

static const refused_field chat_fields[] = {
    {"functions", HARMLESS_EMPTY, "; give 'tools'"},
    {"function_call", HARMLESS_NONE, "; give 'tools'"},
    {"parallel_tool_calls", HARMLESS_TRUE, " other than true"},
    {"audio", HARMLESS_NONE, ""},
    {"modalities", HARMLESS_TEXT, " other than [\"text\"]"},
    {"reasoning_effort", HARMLESS_NONE, "; give what the template reads in 'chat_template_kwargs'"},
    {"verbosity", HARMLESS_NONE, ""},
    {"web_search_options", HARMLESS_NONE, ""},
    {"mm_processor_kwargs", HARMLESS_EMPTY, ""},
};

static const refused_field completion_fields[] = {
    {"suffix", HARMLESS_EMPTY, ""},
    {"prompt_embeds", HARMLESS_NONE, "; give 'prompt'"},
};

static const refused_field common_fields[] = {
    {"response_format", HARMLESS_TEXT, " other than {\"type\": \"text\"}"},
    {"guided_json", HARMLESS_NONE, ""},
    {"guided_regex", HARMLESS_NONE, ""},
    {"guided_choice", HARMLESS_NONE, ""},
    {"guided_grammar", HARMLESS_NONE, ""},
    {"structured_outputs", HARMLESS_EMPTY, ""},
    {"structural_tag", HARMLESS_NONE, ""},
    {"json_schema", HARMLESS_EMPTY, ""},
    {"grammar", HARMLESS_EMPTY, ""},
    {"use_beam_search", HARMLESS_FALSE, ""},
    {"length_penalty", HARMLESS_ONE, " other than 1"},
    {"early_stopping", HARMLESS_FALSE, ""},
    {"truncate_prompt_tokens", HARMLESS_NONE, "; shorten the prompt"},
    {"allowed_token_ids", HARMLESS_EMPTY, "; 'logit_bias' may do"},
    {"bad_words", HARMLESS_EMPTY, "; 'logit_bias' may do"},
    {"logits_processors", HARMLESS_EMPTY, ""},
    {"spaces_between_special_tokens", HARMLESS_TRUE, " other than true"},
    {"typical_p", HARMLESS_ONE, ""},
    {"mirostat", HARMLESS_ZERO, ""},
    {"dry_multiplier", HARMLESS_ZERO, ""},
    {"xtc_probability", HARMLESS_ZERO, ""},
    {"dynatemp_range", HARMLESS_ZERO, ""},
    {"top_n_sigma", HARMLESS_NONE, ""},
    {"n_predict", HARMLESS_NONE, "; give 'max_tokens'"},
};

static bool is_text_format(const json_t *value) {
    const json_t *word =
        json_is_array(value) && json_array_size(value) == 1 ? json_array_get(value, 0) : json_object_get(value, "type");
    return json_is_string(word) && strcmp(json_string_value(word), "text") == 0;
}

static bool is_empty(const json_t *value) {
    return (json_is_array(value) && json_array_size(value) == 0) ||
           (json_is_object(value) && json_object_size(value) == 0) ||
           (json_is_string(value) && json_string_length(value) == 0);
}

static bool is_harmless(const json_t *value, harmless_value harmless) {
    switch (harmless) {
    case HARMLESS_FALSE: return json_is_false(value);
    case HARMLESS_TRUE: return json_is_true(value);
    case HARMLESS_EMPTY: return is_empty(value);
    case HARMLESS_ZERO: return json_is_number(value) && json_number_value(value) == 0.0;
    case HARMLESS_ONE: return json_is_number(value) && json_number_value(value) == 1.0;
    case HARMLESS_TEXT: return is_text_format(value);
    default: return false;
    }
}

static void check(body_fields *fields, const refused_field *table, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const json_t *value = body_field(fields, table[i].name);
        if (value == NULL || is_harmless(value, table[i].harmless)) continue;
        body_fields_refuse(fields, table[i].name, "unsupported_field", "is not supported%s", table[i].instead);
    }
}

void refused_fields_check(body_fields *fields, request_kind kind) {
    check(fields, common_fields, sizeof(common_fields) / sizeof(common_fields[0]));
    if (kind == REQUEST_CHAT) check(fields, chat_fields, sizeof(chat_fields) / sizeof(chat_fields[0]));
    else check(fields, completion_fields, sizeof(completion_fields) / sizeof(completion_fields[0]));
}
