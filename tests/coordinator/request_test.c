#include "coordinator/request.h"

#include "tests/coordinator/cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const request_limits limits = {.model_name = "script",
                                      .vocabulary_size = 261,
                                      .default_temperature = 0.75f,
                                      .default_top_p = 0.5f,
                                      .default_top_k = 40,
                                      .default_min_p = 0.25f,
                                      .default_repetition_penalty = 1.25f};

static hd_status parse(request *r, request_kind kind, const char *body, api_error *error) {
    request_init(r, kind, &limits);
    return kind == REQUEST_CHAT ? request_parse_chat(r, &limits, body, strlen(body), error)
                                : request_parse_completion(r, &limits, body, strlen(body), error);
}

typedef struct bad_input {
    const char *members; /* beside what makes the body complete */
    const char *param, *code, *message;
} bad_input;

static void assert_refused(request_kind kind, const char *body, const char *param, const char *code,
                           const char *message) {
    request r;
    api_error error;
    hd_status status = parse(&r, kind, body, &error);
    if (status != HD_INVALID || strcmp(error.message, message) != 0 || strcmp(error.param, param) != 0 ||
        strcmp(error.code, code) != 0) {
        print_error("body:    %s\nstatus:  %s\nmessage: %s\nparam:   %s\ncode:    %s\n", body, hd_status_name(status),
                    status == HD_OK ? "" : error.message, status == HD_OK ? "" : error.param,
                    status == HD_OK ? "" : error.code);
    }
    assert_int_equal(status, HD_INVALID);
    assert_string_equal(error.message, message);
    assert_string_equal(error.param, param);
    assert_string_equal(error.code, code);
    request_fini(&r);
}

static const bad_input bad_options[] = {
    {"\"temperature\": \"hot\"", "temperature", "invalid_type", "'temperature' must be a number, not a string"},
    {"\"temperature\": 2.5", "temperature", "out_of_range", "'temperature' must be between 0 and 2, not 2.5"},
    {"\"temperature\": -1", "temperature", "out_of_range", "'temperature' must be between 0 and 2, not -1"},
    {"\"top_p\": 0", "top_p", "out_of_range", "'top_p' must be greater than 0"},
    {"\"top_p\": 1.5", "top_p", "out_of_range", "'top_p' must be between 0 and 1, not 1.5"},
    {"\"top_k\": -2", "top_k", "out_of_range", "'top_k' must be at least -1, not -2"},
    {"\"top_k\": 1.5", "top_k", "invalid_type", "'top_k' must be an integer, not a number"},
    {"\"min_p\": 1.01", "min_p", "out_of_range", "'min_p' must be between 0 and 1, not 1.01"},
    {"\"presence_penalty\": 3", "presence_penalty", "out_of_range",
     "'presence_penalty' must be between -2 and 2, not 3"},
    {"\"frequency_penalty\": []", "frequency_penalty", "invalid_type",
     "'frequency_penalty' must be a number, not an array"},
    {"\"repetition_penalty\": 0", "repetition_penalty", "out_of_range", "'repetition_penalty' must be greater than 0"},
    {"\"seed\": \"1\"", "seed", "invalid_type", "'seed' must be an integer, not a string"},
    {"\"n\": 0", "n", "out_of_range", "'n' must be at least 1, not 0"},
    {"\"n\": 129", "n", "out_of_range", "'n' must be at most 128, not 129"},
    {"\"n\": true", "n", "invalid_type", "'n' must be an integer, not a boolean"},
    {"\"max_tokens\": -1", "max_tokens", "out_of_range", NULL},
    {"\"max_tokens\": 10.0", "max_tokens", "invalid_type", "'max_tokens' must be an integer, not a number"},
    {"\"max_completion_tokens\": 0", "max_completion_tokens", "out_of_range",
     "'max_completion_tokens' must be at least 1, not 0"},
    {"\"max_tokens\": 4, \"min_tokens\": 5", "min_tokens", "out_of_range",
     "'min_tokens' must be at most max_tokens, which is 4, not 5"},
    {"\"stream\": 1", "stream", "invalid_type", "'stream' must be a boolean, not an integer"},
    {"\"stream_options\": {\"include_usage\": true}", "stream_options", "invalid_value",
     "'stream_options' may only be given where 'stream' is true"},
    {"\"stream\": true, \"stream_options\": {\"include_usage\": \"yes\"}", "stream_options.include_usage",
     "invalid_type", "'stream_options.include_usage' must be a boolean, not a string"},
    {"\"return_progress\": true", "return_progress", "invalid_value",
     "'return_progress' may only be given where 'stream' is true"},
    {"\"stop\": 5", "stop", "invalid_type", "'stop' must be a string or an array of strings, not an integer"},
    {"\"stop\": \"\"", "stop", "out_of_range", "'stop' must have 1 to 1024 bytes, not 0"},
    {"\"stop\": [\"a\", 1]", "stop[1]", "invalid_type", "'stop[1]' must be a string, not an integer"},
    {"\"stop\": "
     "[\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\"]",
     "stop", "out_of_range", "'stop' must have at most 16 strings, not 17"},
    {"\"stop_token_ids\": [5, 261]", "stop_token_ids[1]", "out_of_range",
     "'stop_token_ids[1]' must be a token id from 0 to 260, not 261"},
    {"\"stop_token_ids\": {}", "stop_token_ids", "invalid_type", "'stop_token_ids' must be an array, not an object"},
    {"\"logit_bias\": {\"x\": 1}", "logit_bias", "out_of_range",
     "'logit_bias' has the key 'x', which is no token id from 0 to 260"},
    {"\"logit_bias\": {\"261\": 1}", "logit_bias", "out_of_range",
     "'logit_bias' has the key '261', which is no token id from 0 to 260"},
    {"\"logit_bias\": {\"-1\": 1}", "logit_bias", "out_of_range",
     "'logit_bias' has the key '-1', which is no token id from 0 to 260"},
    {"\"logit_bias\": {\"5\": 101}", "logit_bias", "out_of_range",
     "'logit_bias' must give numbers between -100 and 100, and does not for '5'"},
    {"\"logit_bias\": {\"5\": \"a\"}", "logit_bias", "out_of_range",
     "'logit_bias' must give numbers between -100 and 100, and does not for '5'"},
    {"\"best_of\": 3", "best_of", "unsupported_field",
     "'best_of' is not supported other than equal to 'n', which is 1"},
    {"\"response_format\": {\"type\": \"json_object\"}", "response_format", "unsupported_field",
     "'response_format' is not supported other than {\"type\": \"text\"}"},
    {"\"guided_json\": {}", "guided_json", "unsupported_field", "'guided_json' is not supported"},
    {"\"structured_outputs\": {\"regex\": \"a\"}", "structured_outputs", "unsupported_field",
     "'structured_outputs' is not supported"},
    {"\"use_beam_search\": true", "use_beam_search", "unsupported_field", "'use_beam_search' is not supported"},
    {"\"length_penalty\": 0.5", "length_penalty", "unsupported_field",
     "'length_penalty' is not supported other than 1"},
    {"\"truncate_prompt_tokens\": 5", "truncate_prompt_tokens", "unsupported_field",
     "'truncate_prompt_tokens' is not supported; shorten the prompt"},
    {"\"bad_words\": [\"x\"]", "bad_words", "unsupported_field", "'bad_words' is not supported; 'logit_bias' may do"},
    {"\"n_predict\": 5", "n_predict", "unsupported_field", "'n_predict' is not supported; give 'max_tokens'"},
    {"\"prompt_logprobs\": 21", "prompt_logprobs", "out_of_range", "'prompt_logprobs' must be at most 20, not 21"},
    {"\"stream\": true, \"prompt_logprobs\": 1", "prompt_logprobs", "invalid_value",
     "'prompt_logprobs' may not be given where 'stream' is true"},
    {"\"hadal\": {\"speed\": 1}", "hadal.speed", "unknown_field",
     "'hadal.speed' is not known; 'hadal' has 'selection' and 'no_cache'"},
    {"\"hadal\": {\"selection\": 1}", "hadal.selection", "invalid_type",
     "'hadal.selection' must be a string, not an integer"},
    {"\"hadal\": {\"selection\": \"a\\u0000b\"}", "hadal.selection", "invalid_value",
     "'hadal.selection' must not hold a zero character"},
    {"\"cache_salt\": \"\"", "cache_salt", "out_of_range", "'cache_salt' must have 1 to 1024 bytes, not 0"},
    {"\"model\": 5", "model", "invalid_type", "'model' must be a string, not an integer"},
};

static void a_bad_option_is_refused_by_name(void **state) {
    for (size_t i = 0; i < sizeof(bad_options) / sizeof(bad_options[0]); i++) {
        const bad_input *bad = &bad_options[i];
        char body[1024];
        const char *message = bad->message != NULL ? bad->message : "'max_tokens' must be at least 0, not -1";
        snprintf(body, sizeof(body), "{\"prompt\": \"x\", %s}", bad->members);
        assert_refused(REQUEST_COMPLETION, body, bad->param, bad->code, message);
        if (bad->message == NULL) message = "'max_tokens' must be at least 1, not -1";
        snprintf(body, sizeof(body), "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], %s}", bad->members);
        assert_refused(REQUEST_CHAT, body, bad->param, bad->code, message);
    }
}

static const bad_input bad_chats[] = {
    {"\"n\": 1", "messages", "missing_field", "'messages' is required"},
    {"\"messages\": []", "messages", "missing_field", "'messages' must have at least one message"},
    {"\"messages\": \"hello\"", "messages", "invalid_type", "'messages' must be an array, not a string"},
    {"\"messages\": [5]", "messages[0]", "invalid_type", "'messages[0]' must be an object, not an integer"},
    {"\"messages\": [{\"content\": \"x\"}]", "messages[0].role", "missing_field",
     "'messages[0].role' must be a string of 1 to 64 bytes, not absent"},
    {"\"messages\": [{\"role\": 1, \"content\": \"x\"}]", "messages[0].role", "invalid_type",
     "'messages[0].role' must be a string of 1 to 64 bytes, not an integer"},
    {"\"messages\": [{\"role\": \"user\"}]", "messages[0].content", "missing_field",
     "'messages[0].content' is required"},
    {"\"messages\": [{\"role\": \"user\", \"content\": null}]", "messages[0].content", "missing_field",
     "'messages[0].content' is required"},
    {"\"messages\": [{\"role\": \"assistant\", \"content\": null}]", "messages[0].content", "missing_field",
     "'messages[0].content' is required"},
    {"\"messages\": [{\"role\": \"user\", \"content\": 7}]", "messages[0].content", "invalid_type",
     "'messages[0].content' must be a string or an array of parts, not an integer"},
    {"\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"x\"}, {\"type\": "
     "\"image_url\", \"image_url\": {}}]}]",
     "messages[0].content[1].type", "unsupported_field",
     "'messages[0].content[1].type' must be 'text', not 'image_url': other parts are not supported"},
    {"\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"text\"}]}]", "messages[0].content[0].text",
     "invalid_type", "'messages[0].content[0].text' must be a string, not absent"},
    {"\"messages\": [{\"role\": \"user\", \"content\": [\"x\"]}]", "messages[0].content[0]", "invalid_type",
     "'messages[0].content[0]' must be an object, not a string"},
    {"\"messages\": [{\"role\": \"assistant\", \"content\": \"x\", \"audio\": {\"id\": 1}}]", "messages[0].audio",
     "unsupported_field", "'messages[0].audio' is not supported"},
    {"\"messages\": [{\"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"name\": \"f\", \"arguments\": "
     "\"{oops\"}}]}]",
     "messages[0].tool_calls[0].function.arguments", "invalid_value",
     "'messages[0].tool_calls[0].function.arguments' must be JSON"},
    {"\"messages\": [{\"role\": \"assistant\", \"tool_calls\": [{\"function\": {}}]}]",
     "messages[0].tool_calls[0].function.name", "missing_field",
     "'messages[0].tool_calls[0].function.name' must be a string that is not empty"},
    {"\"messages\": [{\"role\": \"assistant\", \"tool_calls\": {}}]", "messages[0].tool_calls", "invalid_type",
     "'messages[0].tool_calls' must be an array, not an object"},
};

static const bad_input bad_chat_options[] = {
    {"\"tools\": [{\"type\": \"function\"}]", "tools[0].function", "missing_field",
     "'tools[0].function' must be an object with 'name'"},
    {"\"tools\": [{\"type\": \"retrieval\"}]", "tools[0].type", "unsupported_field",
     "'tools[0].type' must be 'function'"},
    {"\"tools\": [1]", "tools[0]", "invalid_type", "'tools[0]' must be an object, not an integer"},
    {"\"tool_choice\": \"required\"", "tool_choice", "unsupported_field",
     "'tool_choice' is not supported other than \"auto\" and \"none\": this server does not force a tool call"},
    {"\"tool_choice\": {\"type\": \"function\", \"function\": {\"name\": \"f\"}}", "tool_choice", "unsupported_field",
     "'tool_choice' is not supported other than \"auto\" and \"none\": this server does not force a tool call"},
    {"\"functions\": [{\"name\": \"f\"}]", "functions", "unsupported_field",
     "'functions' is not supported; give 'tools'"},
    {"\"function_call\": \"auto\"", "function_call", "unsupported_field",
     "'function_call' is not supported; give 'tools'"},
    {"\"parallel_tool_calls\": false", "parallel_tool_calls", "unsupported_field",
     "'parallel_tool_calls' is not supported other than true"},
    {"\"audio\": {\"voice\": \"x\"}", "audio", "unsupported_field", "'audio' is not supported"},
    {"\"modalities\": [\"text\", \"audio\"]", "modalities", "unsupported_field",
     "'modalities' is not supported other than [\"text\"]"},
    {"\"reasoning_effort\": \"low\"", "reasoning_effort", "unsupported_field",
     "'reasoning_effort' is not supported; give what the template reads in 'chat_template_kwargs'"},
    {"\"top_logprobs\": 2", "top_logprobs", "invalid_value",
     "'top_logprobs' may only be given where 'logprobs' is true"},
    {"\"logprobs\": true, \"top_logprobs\": 21", "top_logprobs", "out_of_range",
     "'top_logprobs' must be at most 20, not 21"},
    {"\"logprobs\": 5", "logprobs", "invalid_type", "'logprobs' must be a boolean, not an integer"},
    {"\"continue_final_message\": true, \"add_generation_prompt\": true", "continue_final_message", "invalid_value",
     "'continue_final_message' and 'add_generation_prompt' must not both be true"},
    {"\"chat_template_kwargs\": {\"messages\": []}", "chat_template_kwargs", "invalid_value",
     "'chat_template_kwargs' must not hold 'messages', which is a field of its own"},
    {"\"chat_template\": 5", "chat_template", "invalid_type", "'chat_template' must be a string, not an integer"},
    {"\"documents\": \"x\"", "documents", "invalid_type", "'documents' must be an array, not a string"},
};

static void a_bad_chat_is_refused_by_name(void **state) {
    char body[1024];
    for (size_t i = 0; i < sizeof(bad_chats) / sizeof(bad_chats[0]); i++) {
        snprintf(body, sizeof(body), "{%s}", bad_chats[i].members);
        assert_refused(REQUEST_CHAT, body, bad_chats[i].param, bad_chats[i].code, bad_chats[i].message);
    }
    for (size_t i = 0; i < sizeof(bad_chat_options) / sizeof(bad_chat_options[0]); i++) {
        const bad_input *bad = &bad_chat_options[i];
        snprintf(body, sizeof(body), "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], %s}", bad->members);
        assert_refused(REQUEST_CHAT, body, bad->param, bad->code, bad->message);
    }
}

static const bad_input bad_completions[] = {
    {"\"n\": 1", "prompt", "missing_field", "'prompt' is required"},
    {"\"prompt\": 5", "prompt", "invalid_type", "'prompt' must be a string or an array, not an integer"},
    {"\"prompt\": []", "prompt", "missing_field", "'prompt' must not be empty"},
    {"\"prompt\": [[]]", "prompt[0]", "missing_field", "'prompt[0]' must not be empty"},
    {"\"prompt\": [1, 2, 900]", "prompt[2]", "out_of_range", "'prompt[2]' must be a token id from 0 to 260, not 900"},
    {"\"prompt\": [1, \"x\"]", "prompt[1]", "invalid_type", "'prompt[1]' must be a token id, not a string"},
    {"\"prompt\": [[1], [2, -1]]", "prompt[1][1]", "out_of_range",
     "'prompt[1][1]' must be a token id from 0 to 260, not -1"},
    {"\"prompt\": [\"x\", [1]]", "prompt[1]", "invalid_type",
     "'prompt[1]' must be a string, or an array of token ids, as all entries, not an array"},
    {"\"prompt\": [1.5]", "prompt[0]", "invalid_type",
     "'prompt[0]' must be a string, or an array of token ids, as all entries, not a number"},
    {"\"prompt\": \"x\", \"suffix\": \"y\"", "suffix", "unsupported_field", "'suffix' is not supported"},
    {"\"prompt\": \"x\", \"logprobs\": true", "logprobs", "invalid_type",
     "'logprobs' must be an integer, not a boolean"},
    {"\"prompt\": \"x\", \"logprobs\": 21", "logprobs", "out_of_range", "'logprobs' must be at most 20, not 21"},
};

static void a_bad_completion_is_refused_by_name(void **state) {
    char body[1024];
    for (size_t i = 0; i < sizeof(bad_completions) / sizeof(bad_completions[0]); i++) {
        snprintf(body, sizeof(body), "{%s}", bad_completions[i].members);
        assert_refused(REQUEST_COMPLETION, body, bad_completions[i].param, bad_completions[i].code,
                       bad_completions[i].message);
    }
}

static void too_many_choices_in_all_are_refused(void **state) {
    text_buffer body;
    text_buffer_init(&body);
    text_buffer_text(&body, "{\"n\": 128, \"prompt\": [\"x\"");
    for (int i = 1; i < 17; i++) text_buffer_text(&body, ",\"x\"");
    text_buffer_text(&body, "]}");
    assert_refused(REQUEST_COMPLETION, body.bytes, "n", "out_of_range",
                   "'n' times the number of prompts must be at most 2048, not 2176");
    text_buffer_fini(&body);
}

static void another_models_name_is_not_found(void **state) {
    request r;
    api_error error;
    assert_int_equal(parse(&r, REQUEST_COMPLETION, "{\"model\": \"gpt-9\", \"prompt\": \"x\"}", &error), HD_INVALID);
    assert_int_equal(error.status, 404);
    assert_string_equal(error.code, "model_not_found");
    assert_string_equal(error.param, "model");
    assert_string_equal(error.message, "there is no model 'gpt-9' here; this server serves 'script'");
    request_fini(&r);
}

static void what_is_not_given_comes_from_the_model(void **state) {
    request r;
    api_error error;
    assert_int_equal(parse(&r, REQUEST_COMPLETION,
                           "{\"prompt\": \"x\", \"temperature\": null, \"stop\": null, \"n\": null}", &error),
                     HD_OK);
    assert_true(r.sampling.temperature == 0.75f && r.sampling.top_p == 0.5f && r.sampling.top_k == 40);
    assert_true(r.sampling.repetition_penalty == 1.25f && r.sampling.min_p == 0.25f);
    assert_false(r.has_seed);
    assert_false(r.has_max_tokens);
    assert_int_equal(r.choices, 1);
    assert_int_equal(r.sampling.logprobs, -1);
    assert_true(r.add_special_tokens && r.skip_special_tokens);
    request_fini(&r);
    assert_int_equal(parse(&r, REQUEST_CHAT, "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}", &error),
                     HD_OK);
    assert_false(r.add_special_tokens); /* the template writes them */
    request_fini(&r);
}

static void every_option_reaches_the_request(void **state) {
    request r;
    api_error error;
    const char *body =
        "{\"model\": \"script\", \"prompt\": [[1, 2], [3]], \"temperature\": 0.5, \"top_p\": 0.25, \"top_k\": -1, "
        "\"min_p\": 0.125, "
        "\"presence_penalty\": 1, \"frequency_penalty\": -1, \"repetition_penalty\": 1.5, \"seed\": -3, \"n\": 3, "
        "\"best_of\": 3, "
        "\"max_tokens\": 10, \"max_completion_tokens\": 20, \"min_tokens\": 5, \"stop\": [\"a\", \"bc\"], "
        "\"stop_token_ids\": [7, 8], "
        "\"logit_bias\": {\"9\": -2.5, \"10\": 100}, \"ignore_eos\": true, \"stream\": true, \"stream_options\": "
        "{\"include_usage\": true}, "
        "\"return_progress\": true, \"echo\": true, \"logprobs\": 4, \"include_stop_str_in_output\": true, "
        "\"skip_special_tokens\": false, "
        "\"add_special_tokens\": false, \"return_token_ids\": true, \"return_tokens_as_token_ids\": true, "
        "\"cache_salt\": \"s\", "
        "\"hadal\": {\"selection\": \"full\", \"no_cache\": true}, \"user\": \"me\", \"unheard_of\": {\"a\": 1}, "
        "\"response_format\": {\"type\": \"text\"}, \"guided_json\": null, \"length_penalty\": 1.0, \"suffix\": \"\"}";
    assert_int_equal(parse(&r, REQUEST_COMPLETION, body, &error), HD_OK);
    const worker_sampling *s = &r.sampling;
    assert_true(s->temperature == 0.5f && s->top_p == 0.25f && s->top_k == 0 && s->min_p == 0.125f);
    assert_true(s->presence_penalty == 1 && s->frequency_penalty == -1 && s->repetition_penalty == 1.5f);
    assert_true(r.has_seed && s->seed == (uint64_t)-3);
    assert_int_equal(r.choices, 3);
    assert_int_equal(r.prompt_count, 2);
    assert_int_equal(r.max_tokens, 20);
    assert_int_equal(s->min_tokens, 5);
    assert_int_equal(r.stop_count, 2);
    assert_string_equal(r.stops[1].text, "bc");
    assert_int_equal(s->stop_id_count, 2);
    assert_int_equal(s->stop_ids[1], 8);
    assert_int_equal(s->logit_bias_count, 2);
    assert_int_equal(s->logit_bias[0].token_id, 9);
    assert_true(s->logit_bias[0].bias == -2.5f);
    assert_true(s->ignore_eos && r.is_stream && r.include_usage && r.return_progress && r.echo && r.include_stop_text);
    assert_false(r.skip_special_tokens);
    assert_false(r.add_special_tokens);
    assert_true(r.return_token_ids && r.tokens_as_ids && r.no_cache);
    assert_string_equal(r.cache_salt, "s");
    assert_string_equal(r.selection, "full");
    assert_int_equal(r.logprobs, 4);
    assert_int_equal(s->logprobs, 4);
    assert_int_equal(r.prompt_logprobs, -1);
    assert_int_equal(s->prompt_logprobs, 4); /* echo shows the prompt's as well */
    request_fini(&r);
}

static void assert_context(const char *body, const char *expected) {
    request r;
    api_error error;
    hd_status status = parse(&r, REQUEST_CHAT, body, &error);
    if (status != HD_OK) print_error("%s\n", error.message);
    assert_int_equal(status, HD_OK);
    char *context = json_dumps(r.context, JSON_COMPACT | JSON_SORT_KEYS);
    assert_string_equal(context, expected);
    free(context);
    request_fini(&r);
}

static void messages_take_the_shape_that_templates_read(void **state) {
    assert_context(
        "{\"messages\": [{\"role\": \"system\", \"content\": [{\"type\": \"text\", \"text\": \"a\"}, {\"type\": "
        "\"text\", \"text\": \"b\"}]},"
        "{\"role\": \"user\", \"content\": \"\", \"name\": \"bob\"}]}",
        "{\"add_generation_prompt\":true,\"documents\":null,\"messages\":[{\"content\":\"a\\nb\",\"role\":\"system\"},"
        "{\"content\":\"\",\"name\":\"bob\",\"role\":\"user\"}],\"tools\":null}");
    assert_context(
        "{\"messages\": [{\"role\": \"assistant\", \"tool_calls\": [{\"id\": \"c1\", \"type\": \"function\", "
        "\"function\": {\"name\": \"f\", "
        "\"arguments\": \"{\\\"city\\\": \\\"Kiel\\\"}\"}}, {\"function\": {\"name\": \"g\", \"arguments\": \"\"}}, "
        "{\"function\": {\"name\": \"h\", \"arguments\": {\"x\": 1}}}]}, {\"role\": \"tool\", \"tool_call_id\": "
        "\"c1\", \"content\": \"7\"}]}",
        "{\"add_generation_prompt\":true,\"documents\":null,\"messages\":[{\"content\":\"\",\"role\":\"assistant\","
        "\"tool_calls\":["
        "{\"function\":{\"arguments\":{\"city\":\"Kiel\"},\"name\":\"f\"},\"id\":\"c1\",\"type\":\"function\"},"
        "{\"function\":{\"arguments\":{},\"name\":\"g\"}},{\"function\":{\"arguments\":{\"x\":1},\"name\":\"h\"}}]},"
        "{\"content\":\"7\",\"role\":\"tool\",\"tool_call_id\":\"c1\"}],\"tools\":null}");
    assert_context("{\"messages\": [{\"role\": \"assistant\", \"content\": \"x\", \"tool_calls\": null}]}",
                   "{\"add_generation_prompt\":true,\"documents\":null,\"messages\":[{\"content\":\"x\",\"role\":"
                   "\"assistant\"}],\"tools\":null}");
}

static void tools_documents_and_arguments_reach_the_template(void **state) {
    const char *head =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"documents\": [{\"title\": \"t\"}], "
        "\"chat_template_kwargs\": {\"enable_thinking\": false}, \"add_generation_prompt\": false, "
        "\"tools\": [{\"type\": \"function\", \"function\": {\"name\": \"f\"}}]%s}";
    char body[512];
    snprintf(body, sizeof(body), head, "");
    assert_context(body, "{\"add_generation_prompt\":false,\"documents\":[{\"title\":\"t\"}],\"enable_thinking\":false,"
                         "\"messages\":[{\"content\":\"x\",\"role\":\"user\"}],\"tools\":[{\"function\":{\"name\":"
                         "\"f\"},\"type\":\"function\"}]}");
    snprintf(body, sizeof(body), head, ", \"tool_choice\": \"none\"");
    assert_context(body, "{\"add_generation_prompt\":false,\"documents\":[{\"title\":\"t\"}],\"enable_thinking\":false,"
                         "\"messages\":[{\"content\":\"x\",\"role\":\"user\"}],\"tools\":null}");
}

static void continuing_the_last_message_asks_for_no_prompt(void **state) {
    request r;
    api_error error;
    assert_int_equal(
        parse(
            &r, REQUEST_CHAT,
            "{\"messages\": [{\"role\": \"assistant\", \"content\": \"Once upon\"}], \"continue_final_message\": true}",
            &error),
        HD_OK);
    assert_string_equal(json_string_value(r.final_message), "Once upon");
    assert_true(json_is_false(json_object_get(r.context, "add_generation_prompt")));
    request_fini(&r);
}

static void tokenize_takes_a_prompt_or_a_chat(void **state) {
    request r;
    api_error error;
    bool wants_texts = false;
    const char *both = "{\"prompt\": \"x\", \"messages\": []}", *neither = "{\"model\": \"script\"}";
    request_init(&r, REQUEST_COMPLETION, &limits);
    assert_int_equal(request_parse_tokenize(&r, &limits, both, strlen(both), &wants_texts, &error), HD_INVALID);
    assert_string_equal(error.message, "'prompt' and 'messages' must not both be given");
    request_fini(&r);
    request_init(&r, REQUEST_COMPLETION, &limits);
    assert_int_equal(request_parse_tokenize(&r, &limits, neither, strlen(neither), &wants_texts, &error), HD_INVALID);
    assert_string_equal(error.message, "'prompt' or 'messages' is required");
    request_fini(&r);
    const char *chat = "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"return_token_strs\": true}";
    request_init(&r, REQUEST_COMPLETION, &limits);
    assert_int_equal(request_parse_tokenize(&r, &limits, chat, strlen(chat), &wants_texts, &error), HD_OK);
    assert_true(r.kind == REQUEST_CHAT && !r.add_special_tokens && wants_texts);
    request_fini(&r);
}

static void detokenize_takes_ids_of_the_vocabulary(void **state) {
    uint32_t *ids;
    size_t count;
    api_error error;
    const char *good = "{\"tokens\": [1, 260]}", *bad = "{\"tokens\": [1, 261]}", *empty = "{\"tokens\": []}",
               *none = "{}";
    assert_int_equal(request_parse_detokenize(&limits, good, strlen(good), &ids, &count, &error), HD_OK);
    assert_true(count == 2 && ids[1] == 260);
    free(ids);
    assert_int_equal(request_parse_detokenize(&limits, empty, strlen(empty), &ids, &count, &error), HD_OK);
    assert_int_equal(count, 0);
    free(ids);
    assert_int_equal(request_parse_detokenize(&limits, bad, strlen(bad), &ids, &count, &error), HD_INVALID);
    assert_string_equal(error.message, "'tokens[1]' must be a token id from 0 to 260, not 261");
    assert_int_equal(request_parse_detokenize(&limits, none, strlen(none), &ids, &count, &error), HD_INVALID);
    assert_string_equal(error.message, "'tokens' is required");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_bad_option_is_refused_by_name),
        cmocka_unit_test(a_bad_chat_is_refused_by_name),
        cmocka_unit_test(a_bad_completion_is_refused_by_name),
        cmocka_unit_test(too_many_choices_in_all_are_refused),
        cmocka_unit_test(another_models_name_is_not_found),
        cmocka_unit_test(what_is_not_given_comes_from_the_model),
        cmocka_unit_test(every_option_reaches_the_request),
        cmocka_unit_test(messages_take_the_shape_that_templates_read),
        cmocka_unit_test(tools_documents_and_arguments_reach_the_template),
        cmocka_unit_test(continuing_the_last_message_asks_for_no_prompt),
        cmocka_unit_test(tokenize_takes_a_prompt_or_a_chat),
        cmocka_unit_test(detokenize_takes_ids_of_the_vocabulary),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
