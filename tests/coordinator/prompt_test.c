#include "coordinator/prompt.h"

#include "tests/coordinator/cmocka_all.h"

#include <stdlib.h>
#include <string.h>

static const request_limits limits = {.model_name = "script",
                                      .vocabulary_size = 261,
                                      .default_temperature = 1,
                                      .default_top_p = 1,
                                      .default_repetition_penalty = 1};
static text_model *model;

static int open_model(void **state) {
    hd_error error;
    return text_model_open("tests/coordinator/model", &model, &error) != HD_OK;
}

static int close_model(void **state) {
    text_model_close(model);
    return 0;
}

static void parse_chat(request *r, const char *body) {
    api_error error;
    request_init(r, REQUEST_CHAT, &limits);
    assert_int_equal(request_parse_chat(r, &limits, body, strlen(body), &error), HD_OK);
}

static void assert_rendered(const char *body, const char *expected) {
    request r;
    parse_chat(&r, body);
    char *text;
    size_t text_bytes;
    api_error error;
    hd_status status = prompt_render(model, &r, &text, &text_bytes, &error);
    if (status != HD_OK) print_error("%s\n", error.message);
    assert_int_equal(status, HD_OK);
    assert_string_equal(text, expected);
    assert_int_equal(text_bytes, strlen(expected));
    free(text);
    request_fini(&r);
}

static void assert_not_rendered(const char *body, const char *param, const char *message) {
    request r;
    parse_chat(&r, body);
    char *text;
    size_t text_bytes;
    api_error error;
    assert_int_equal(prompt_render(model, &r, &text, &text_bytes, &error), HD_INVALID);
    assert_string_equal(error.param, param);
    assert_non_null(strstr(error.message, message));
    request_fini(&r);
}

static void a_chat_is_rendered_by_the_models_template(void **state) {
    assert_rendered(
        "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Ho\"}]}",
        "<|bos|><|user|>Hi<|end|><|assistant|>Ho<|end|><|assistant|>");
    assert_rendered("{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}], \"add_generation_prompt\": false, "
                    "\"chat_template_kwargs\": {\"mood\": \"calm\"}}",
                    "<|bos|><|user|>Hi<|end|>calm");
    assert_rendered("{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}], \"tools\": [{\"type\": \"function\", "
                    "\"function\": {\"name\": \"f\"}}]}",
                    "<|bos|><|user|>TOOLS [{\"type\": \"function\", \"function\": {\"name\": "
                    "\"f\"}}]<|end|><|user|>Hi<|end|><|assistant|>");
    assert_rendered("{\"messages\": [{\"role\": \"assistant\", \"content\": null, \"tool_calls\": [{\"type\": "
                    "\"function\", \"function\": "
                    "{\"name\": \"weather\", \"arguments\": \"{\\\"city\\\": \\\"Kiel\\\"}\"}}]}]}",
                    "<|bos|><|assistant|>CALL weather Kiel<|end|><|assistant|>");
}

static void a_template_of_the_request_comes_before_the_models(void **state) {
    assert_rendered("{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}], \"chat_template\": \"{{ "
                    "messages[0].content }}?\"}",
                    "Hi?");
}

static void what_the_template_refuses_is_told(void **state) {
    assert_not_rendered("{\"messages\": [{\"role\": \"refuse\", \"content\": \"Hi\"}]}", "messages",
                        "no such role here");
    assert_not_rendered("{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}], \"chat_template\": \"{% if %}\"}",
                        "messages", "the chat template refuses these messages: ");
}

static void a_continued_message_ends_the_prompt(void **state) {
    const char *continued = "\"continue_final_message\": true}";
    char body[512];
    strcpy(body, "{\"messages\": [{\"role\": \"assistant\", \"content\": \"Once upon\"}], ");
    assert_rendered(strcat(body, continued), "<|bos|><|assistant|>Once upon");
    /* This template trims; one that does not keeps the blank that the text goes on after. */
    strcpy(body, "{\"messages\": [{\"role\": \"assistant\", \"content\": \"Once upon \xc2\xa0\"}], ");
    assert_rendered(strcat(body, continued), "<|bos|><|assistant|>Once upon");
    strcpy(body, "{\"messages\": [{\"role\": \"assistant\", \"content\": \"Once upon \"}], \"chat_template\": \"<{{ "
                 "messages[0].content }}>\", ");
    assert_rendered(strcat(body, continued), "<Once upon ");
    strcpy(body, "{\"messages\": [{\"role\": \"assistant\", \"content\": \" Once \"}], \"chat_template\": \"<{{ "
                 "messages[0].content }}>\", ");
    assert_rendered(strcat(body, continued), "< Once");
    /* Of two places the last one counts. */
    strcpy(
        body,
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"a\"}], ");
    assert_rendered(strcat(body, continued), "<|bos|><|user|>a<|end|><|assistant|>a");
    strcpy(body, "{\"messages\": [{\"role\": \"assistant\", \"content\": \"lost\"}], \"chat_template\": \"nothing\", ");
    assert_not_rendered(strcat(body, continued), "continue_final_message", "does not print the last message's content");
}

static hd_status build(const char *body, request *r, prompt **prompts, api_error *error) {
    request_init(r, REQUEST_COMPLETION, &limits);
    assert_int_equal(request_parse_completion(r, &limits, body, strlen(body), error), HD_OK);
    hd_status status = prompts_build(model, r, prompts, error);
    if (status == HD_OK) {
        status = prompts_check(*prompts, r, 260, error);
        if (status != HD_OK) prompts_free(*prompts, r->prompt_count);
    }
    return status;
}

static void prompts_come_as_text_or_as_ids(void **state) {
    request r;
    prompt *prompts;
    api_error error;
    assert_int_equal(build("{\"prompt\": [\"ab\", \"c\"]}", &r, &prompts, &error), HD_OK);
    assert_int_equal(prompts[0].id_count, 3);
    assert_int_equal(prompts[0].ids[0], 256); /* bos, by the tokenizer's own rule */
    assert_int_equal(prompts[0].ids[2], 'b');
    assert_int_equal(prompts[1].id_count, 2);
    assert_null(prompts[0].text);
    prompts_free(prompts, 2);
    request_fini(&r);

    assert_int_equal(build("{\"prompt\": [[104, 105], [256, 33]], \"echo\": true}", &r, &prompts, &error), HD_OK);
    assert_int_equal(prompts[0].id_count, 2);
    assert_string_equal(prompts[0].text, "hi");
    assert_string_equal(prompts[1].text, "!");
    prompts_free(prompts, 2);
    request_fini(&r);

    assert_int_equal(build("{\"prompt\": \"ab\", \"echo\": true, \"add_special_tokens\": false}", &r, &prompts, &error),
                     HD_OK);
    assert_int_equal(prompts[0].id_count, 2);
    assert_string_equal(prompts[0].text, "ab");
    prompts_free(prompts, 1);
    request_fini(&r);
}

static void a_prompt_needs_tokens_that_the_model_knows(void **state) {
    request r;
    prompt *prompts;
    api_error error;
    assert_int_equal(build("{\"prompt\": [\"a\", \"\"], \"add_special_tokens\": false}", &r, &prompts, &error),
                     HD_INVALID);
    assert_string_equal(error.message, "'prompt[1]' has no tokens");
    request_fini(&r);
    assert_int_equal(build("{\"prompt\": \"<|end|>\"}", &r, &prompts, &error), HD_INVALID);
    assert_string_equal(error.message, "'prompt' has the token id 260, and this model knows 0 to 259");
    request_fini(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_chat_is_rendered_by_the_models_template),
        cmocka_unit_test(a_template_of_the_request_comes_before_the_models),
        cmocka_unit_test(what_the_template_refuses_is_told),
        cmocka_unit_test(a_continued_message_ends_the_prompt),
        cmocka_unit_test(prompts_come_as_text_or_as_ids),
        cmocka_unit_test(a_prompt_needs_tokens_that_the_model_knows),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
