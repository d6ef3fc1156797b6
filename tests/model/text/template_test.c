/* Chat prompts are those of Hugging Face, and a template can neither end the process nor take it along. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "text_files.h"

#define CONTEXT "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}"

static void check_chat(const char *name) {
    char directory[128];
    size_t index;
    json_t *item;
    snprintf(directory, sizeof(directory), GOLDEN_TEXT "/chats/%s", name);
    text_model *model = open_golden(directory);
    json_t *cases = load_json(directory, "cases.json");
    assert_true(text_has_chat_template(model));
    json_array_foreach(cases, index, item) {
        const json_t *context = json_object_get(item, "context");
        const char *wanted = json_string_value(json_object_get(item, "text"));
        const char *wanted_error = json_string_value(json_object_get(item, "error"));
        char *text = NULL;
        size_t bytes = 0;
        hd_error error = {{0}};
        hd_status status = text_render_chat(model, NULL, json_string_value(context), json_string_length(context), &text,
                                            &bytes, &error);
        if (wanted_error != NULL) {
            assert_int_equal(status, HD_INVALID);
            assert_string_equal(error.text, wanted_error);
        } else if (status != HD_OK || strcmp(text, wanted) != 0) {
            fail_msg("%s, case %zu: %s\n--- ours\n%s\n--- expected\n%s\n---", name, index, error.text, text, wanted);
        }
        free(text);
    }
    json_decref(cases);
    text_model_close(model);
}

static void tools_in_the_style_of_llama_3(void **state) {
    check_chat("llama3-tools");
}

static void thinking_and_tools_in_the_style_of_qwen_3(void **state) {
    check_chat("qwen3");
}

static void tools_and_turns_in_the_style_of_mistral(void **state) {
    check_chat("mistral-tools");
}

static void a_request_with_tools_takes_the_template_named_for_them(void **state) {
    check_chat("named");
}

static void template_files_win_over_the_configuration(void **state) {
    check_chat("files");
}

static void values_print_and_behave_as_in_python(void **state) {
    check_chat("idioms");
}

static void any_kind_of_line_end_is_a_newline(void **state) {
    check_chat("line-ends");
}

/* What a template makes of the small context, under a model that has none of its own. */
static hd_status render(const char *template, char **text, hd_error *error) {
    text_directory directory;
    text_model *model = NULL;
    size_t bytes;
    make_directory(&directory);
    assert_int_equal(text_model_open(directory.path, &model, error), HD_OK);
    assert_false(text_has_chat_template(model));
    hd_status status = text_render_chat(model, template, CONTEXT, strlen(CONTEXT), text, &bytes, error);
    text_model_close(model);
    remove_directory(&directory);
    return status;
}

static void assert_renders(const char *template, const char *expected) {
    char *text = NULL;
    hd_error error = {{0}};
    hd_status status = render(template, &text, &error);
    if (status != HD_OK || strcmp(text, expected) != 0)
        fail_msg("%s gives '%s' %s, expected '%s'", template, text, error.text, expected);
    free(text);
}

static void assert_refused(const char *template, hd_status expected, const char *part) {
    char *text = NULL;
    hd_error error = {{0}};
    hd_status status = render(template, &text, &error);
    if (status != expected || strstr(error.text, part) == NULL)
        fail_msg("%.60s: %s '%s', expected '%s'", template, hd_status_name(status), error.text, part);
    assert_null(text);
}

static void a_given_template_is_rendered_instead(void **state) {
    assert_renders("{{ messages[0].content }}!", "hi!");
}

static void without_any_template_the_error_says_so(void **state) {
    assert_refused(NULL, HD_NOT_FOUND, "no chat template");
}

static void what_a_template_raises_is_the_error(void **state) {
    assert_refused("{{ raise_exception('only ' ~ 2 ~ ' roles') }}", HD_INVALID, "only 2 roles");
}

static void the_current_date_is_printed_by_its_format(void **state) {
    char expected[64];
    time_t now = time(NULL);
    struct tm parts;
    localtime_r(&now, &parts);
    strftime(expected, sizeof(expected), "%d %b %Y %j", &parts);
    assert_renders("{{ strftime_now('%d %b %Y %j') }}", expected);
    assert_renders("{{ strftime_now('') }}", "");
}

static void what_is_absent_from_the_context_is_none_or_false(void **state) {
    assert_renders("{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }} {{ x is defined }}",
                   "True True False False");
}

static void syntax_errors_name_the_line(void **state) {
    assert_refused("one\n{% if %}", HD_INVALID, "chat:2");
    assert_refused("{{ 'never closed", HD_INVALID, "the given chat template");
    assert_refused("{% generation %}", HD_INVALID, "the given chat template");
    assert_refused("\xff", HD_INVALID, "not UTF-8");
}

static void wrong_values_are_errors(void **state) {
    assert_refused("{{ absent.member }}", HD_INVALID, "undefined value");
    assert_refused("{{ 1 + 'a' }}", HD_INVALID, "chat template failed");
    assert_refused("{{ absent | tojson }}", HD_INVALID, "not JSON serializable");
    assert_refused("{{ 'a' | no_such_filter }}", HD_INVALID, "no_such_filter");
    assert_refused("{% include 'other' %}", HD_INVALID, "other");
}

static void endless_recursion_ends_in_an_error(void **state) {
    assert_refused("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", HD_INVALID, "recursion");
}

static char *repeat(const char *start, const char *part, size_t times, const char *end) {
    char *text = malloc(strlen(start) + times * strlen(part) + strlen(end) + 1), *at = text;
    assert_non_null(text);
    at = stpcpy(at, start);
    for (size_t i = 0; i < times; i++) at = stpcpy(at, part);
    stpcpy(at, end);
    return text;
}

static void deep_nesting_ends_in_an_error(void **state) {
    static const char *const PARTS[] = {"(", "[", "{"};
    for (size_t i = 0; i < sizeof(PARTS) / sizeof(PARTS[0]); i++) {
        char *template = repeat("{{ ", PARTS[i], 100000, "1 }}");
        assert_refused(template, HD_INVALID, "recursion");
        free(template);
    }
    char *template = repeat("", "{% if 1 %}", 100000, "");
    assert_refused(template, HD_INVALID, "recursion");
    free(template);
}

static void an_overflow_of_the_stack_ends_in_an_error(void **state) {
    char *template = repeat("{{ ", "-", 3000000, "1 }}");
    assert_refused(template, HD_FULL, "nests too deeply");
    free(template);
}

static void values_nested_a_million_deep_do_not_end_the_process(void **state) {
    /* Whether freeing them fits the stack is the compiler's business; that this line is reached is ours. */
    char *text = NULL;
    hd_error error = {{0}};
    hd_status status = render("{% set ns = namespace(x=1) %}{% for i in range(1000) %}{% for j in range(1000) %}"
                              "{% set ns.x = [ns.x] %}{% endfor %}{% endfor %}{{ ns.x }}",
                              &text, &error);
    assert_true(status == HD_OK || status == HD_FULL);
    free(text);
}

static void a_loop_without_end_ends_in_an_error(void **state) {
    assert_refused("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", HD_INVALID,
                   "fuel");
}

static void a_text_without_end_ends_in_an_error(void **state) {
    /* A hundred bytes, sixteenfold seven times. */
    char template[1024] = "{% set s = 'x' * 100 %}";
    for (int i = 0; i < 7; i++) strcat(template, "{% set s = s~s~s~s~s~s~s~s~s~s~s~s~s~s~s~s %}");
    assert_refused(template, HD_FULL, "more memory");
    assert_refused("{{ 'x' * 1000000000 }}", HD_INVALID, "too large");
}

static void a_model_that_keeps_exceeding_its_limits_is_not_asked_again(void **state) {
    text_directory directory;
    text_model *model = NULL;
    hd_error error = {{0}};
    char *text = NULL;
    size_t bytes;
    char template[1024] = "{% set s = 'x' * 100 %}";
    for (int i = 0; i < 7; i++) strcat(template, "{% set s = s~s~s~s~s~s~s~s~s~s~s~s~s~s~s~s %}");
    make_directory(&directory);
    assert_int_equal(text_model_open(directory.path, &model, &error), HD_OK);
    for (int i = 0; i < 5; i++)
        assert_int_equal(text_render_chat(model, template, CONTEXT, strlen(CONTEXT), &text, &bytes, &error), HD_FULL);
    assert_non_null(strstr(error.text, "not run again"));
    text_model_close(model);
    remove_directory(&directory);
}

static void a_context_that_is_no_object_is_refused(void **state) {
    text_model *model = open_golden(GOLDEN_TEXT "/chats/named");
    char *text = NULL;
    size_t bytes;
    hd_error error = {{0}};
    assert_int_equal(text_render_chat(model, NULL, "[]", 2, &text, &bytes, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "must be a JSON object"));
    assert_int_equal(text_render_chat(model, NULL, "{", 1, &text, &bytes, &error), HD_INVALID);
    text_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tools_in_the_style_of_llama_3),
        cmocka_unit_test(thinking_and_tools_in_the_style_of_qwen_3),
        cmocka_unit_test(tools_and_turns_in_the_style_of_mistral),
        cmocka_unit_test(a_request_with_tools_takes_the_template_named_for_them),
        cmocka_unit_test(template_files_win_over_the_configuration),
        cmocka_unit_test(values_print_and_behave_as_in_python),
        cmocka_unit_test(any_kind_of_line_end_is_a_newline),
        cmocka_unit_test(a_given_template_is_rendered_instead),
        cmocka_unit_test(without_any_template_the_error_says_so),
        cmocka_unit_test(what_a_template_raises_is_the_error),
        cmocka_unit_test(the_current_date_is_printed_by_its_format),
        cmocka_unit_test(what_is_absent_from_the_context_is_none_or_false),
        cmocka_unit_test(syntax_errors_name_the_line),
        cmocka_unit_test(wrong_values_are_errors),
        cmocka_unit_test(endless_recursion_ends_in_an_error),
        cmocka_unit_test(deep_nesting_ends_in_an_error),
        cmocka_unit_test(an_overflow_of_the_stack_ends_in_an_error),
        cmocka_unit_test(values_nested_a_million_deep_do_not_end_the_process),
        cmocka_unit_test(a_loop_without_end_ends_in_an_error),
        cmocka_unit_test(a_text_without_end_ends_in_an_error),
        cmocka_unit_test(a_model_that_keeps_exceeding_its_limits_is_not_asked_again),
        cmocka_unit_test(a_context_that_is_no_object_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
