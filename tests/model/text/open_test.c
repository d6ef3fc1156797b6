/* A model directory whose text files are wrong is refused with a sentence that names the file and what is wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "text_files.h"

static void assert_open_refused(const text_directory *directory, hd_status expected, const char *part) {
    text_model *model = NULL;
    hd_error error = {{0}};
    hd_status status = text_model_open(directory->path, &model, &error);
    if (status != expected || strstr(error.text, part) == NULL || strstr(error.text, directory->path) == NULL)
        fail_msg("%s '%s', expected %s '%s'", hd_status_name(status), error.text, hd_status_name(expected), part);
    assert_null(model);
}

/* One file of the smallest model is replaced. */
static void assert_file_refused(const char *name, const char *text, hd_status expected, const char *part) {
    text_directory directory;
    make_directory(&directory);
    put_text(&directory, name, text);
    assert_open_refused(&directory, expected, part);
    remove_directory(&directory);
}

static void a_missing_tokenizer_is_named(void **state) {
    text_directory directory;
    char path[128];
    make_directory(&directory);
    snprintf(path, sizeof(path), "%s/tokenizer.json", directory.path);
    assert_int_equal(unlink(path), 0);
    assert_open_refused(&directory, HD_NOT_FOUND, "tokenizer.json is missing");
    assert_int_equal(mkdir(path, 0755), 0);
    assert_open_refused(&directory, HD_CORRUPT, "tokenizer.json: it must be a file");
    remove_directory(&directory);
}

static void garbage_in_the_tokenizer_is_refused(void **state) {
    assert_file_refused("tokenizer.json", "", HD_CORRUPT, "tokenizer.json: EOF");
    assert_file_refused("tokenizer.json", "{", HD_CORRUPT, "tokenizer.json: EOF");
    assert_file_refused("tokenizer.json", "[]", HD_CORRUPT, "tokenizer.json: ");
    assert_file_refused("tokenizer.json", "{\"version\":\"1.0\"}", HD_CORRUPT, "tokenizer.json: ");
    assert_file_refused("tokenizer.json", "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}",
                        HD_CORRUPT, "tokenizer.json: ");
    assert_file_refused("tokenizer.json",
                        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\",\"b\"]]}}", HD_CORRUPT,
                        "tokenizer.json: ");
}

static void a_post_processor_with_ids_of_no_token_is_refused(void **state) {
    assert_file_refused(
        "tokenizer.json",
        "{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"s\",\"type_id\":"
        "0}},"
        "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[],\"special_tokens\":{\"s\":{\"id\":\"s\",\"ids\":[7],"
        "\"tokens\":[\"s\"]}}},\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]}}",
        HD_CORRUPT, "tokenizer.json: 'post_processor' puts the token id 7 into texts, which is not in the vocabulary");
}

static void what_the_library_panics_on_is_refused(void **state) {
    assert_file_refused("tokenizer.json",
                        "{\"decoder\":\"text\",\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]}}",
                        HD_CORRUPT, "tokenizer.json: ");
}

static void nesting_without_end_is_refused(void **state) {
    enum { DEPTH = 200000 };
    char *text = malloc(DEPTH + 1);
    assert_non_null(text);
    memset(text, '[', DEPTH);
    memcpy(text, "{\"model\":", 9);
    text[DEPTH] = '\0';
    assert_file_refused("tokenizer.json", text, HD_CORRUPT, "recursion limit");
    assert_file_refused("tokenizer_config.json", text, HD_CORRUPT, "recursion limit");
    free(text);
}

static void an_id_that_would_need_a_huge_table_is_refused(void **state) {
    assert_file_refused("tokenizer.json", "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":4294967295},\"merges\":[]}}",
                        HD_UNSUPPORTED, "the id 4294967295 is beyond 16777216");
}

static void an_unsupported_decoder_is_named(void **state) {
    assert_file_refused("tokenizer.json",
                        "{\"decoder\":{\"type\":\"WordPiece\",\"prefix\":\"##\",\"cleanup\":true},"
                        "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]}}",
                        HD_UNSUPPORTED, "the decoder WordPiece is not supported");
    assert_file_refused(
        "tokenizer.json",
        "{\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"ByteFallback\"}]},"
        "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]}}",
        HD_UNSUPPORTED, "the decoder Sequence in this order is not supported");
}

static void wrong_types_in_the_configuration_are_named(void **state) {
    assert_file_refused("tokenizer_config.json", "[]", HD_CORRUPT, "tokenizer_config.json: it must be a JSON object");
    assert_file_refused("tokenizer_config.json", "{\"bos_token\":7}", HD_CORRUPT, "tokenizer_config.json: 'bos_token'");
    assert_file_refused("tokenizer_config.json", "{\"eos_token\":{\"lstrip\":true}}", HD_CORRUPT,
                        "tokenizer_config.json: 'eos_token'");
    assert_file_refused("tokenizer_config.json", "{\"additional_special_tokens\":7}", HD_CORRUPT,
                        "'additional_special_tokens' must be a list");
    assert_file_refused("tokenizer_config.json", "{\"added_tokens_decoder\":{\"x\":\"y\"}}", HD_CORRUPT,
                        "'added_tokens_decoder' must map");
    assert_file_refused("tokenizer_config.json", "{\"chat_template\":7}", HD_CORRUPT,
                        "'chat_template' must be a string or a list");
    assert_file_refused("tokenizer_config.json", "{\"chat_template\":[{\"name\":\"default\"}]}", HD_CORRUPT,
                        "'chat_template' must be");
    assert_file_refused("special_tokens_map.json", "3", HD_CORRUPT,
                        "special_tokens_map.json: it must be a JSON object");
    assert_file_refused("chat_template.json", "{\"chat_template\":1}", HD_CORRUPT,
                        "chat_template.json: 'chat_template' must be");
    assert_file_refused("chat_template.jinja", "\xff", HD_CORRUPT, "'default' is not UTF-8");
}

static void special_tokens_are_found_in_every_place_that_holds_them(void **state) {
    text_directory directory;
    text_model *model;
    hd_error error = {{0}};
    uint32_t id = 99;
    make_directory(&directory);
    put_text(&directory, "special_tokens_map.json", "{\"eos_token\":\"</s>\",\"bos_token\":{\"content\":\"<s>\"}}");
    assert_int_equal(text_model_open(directory.path, &model, &error), HD_OK);
    assert_true(text_eos_id(model, &id));
    assert_int_equal(id, 2);
    assert_true(text_bos_id(model, &id)); /* not in tokenizer.json: it is added behind the last id */
    assert_int_equal(id, 3);
    assert_int_equal(text_vocabulary_size(model), 4);
    text_model_close(model);
    put_text(&directory, "tokenizer_config.json",
             "{\"eos_token\":\"b\",\"bos_token\":null,\"added_tokens_decoder\":{}}");
    assert_int_equal(text_model_open(directory.path, &model, &error), HD_OK);
    assert_true(text_eos_id(model, &id));
    assert_int_equal(id, 1);
    assert_false(text_bos_id(model, &id));
    text_model_close(model);
    remove_directory(&directory);
}

static void a_broken_template_is_refused_only_where_it_is_used(void **state) {
    text_directory directory;
    text_model *model;
    hd_error error = {{0}};
    char *text = NULL;
    uint32_t *ids;
    size_t bytes, count;
    make_directory(&directory);
    put_text(&directory, "tokenizer_config.json", "{\"chat_template\":\"{% for %}\"}");
    assert_int_equal(text_model_open(directory.path, &model, &error), HD_OK);
    assert_int_equal(text_encode(model, "ab", 2, true, &ids, &count, &error), HD_OK);
    assert_int_equal(count, 2);
    assert_int_equal(text_render_chat(model, NULL, "{\"messages\":[]}", 15, &text, &bytes, &error), HD_UNSUPPORTED);
    assert_non_null(strstr(error.text, "the chat template 'default' cannot be used"));
    free(ids);
    text_model_close(model);
    remove_directory(&directory);
}

static void a_template_file_wins_over_the_json_file_and_that_over_the_configuration(void **state) {
    static const struct {
        const char *name, *text, *expected;
    } steps[] = {{"tokenizer_config.json", "{\"chat_template\":\"config\"}", "config"},
                 {"chat_template.json", "{\"chat_template\":\"json\"}", "json"},
                 {"chat_template.jinja", "jinja", "jinja"}};
    text_directory directory;
    make_directory(&directory);
    for (size_t i = 0; i < 3; i++) {
        text_model *model;
        hd_error error = {{0}};
        char *text;
        size_t bytes;
        put_text(&directory, steps[i].name, steps[i].text);
        assert_int_equal(text_model_open(directory.path, &model, &error), HD_OK);
        assert_int_equal(text_render_chat(model, NULL, "{\"messages\":[]}", 15, &text, &bytes, &error), HD_OK);
        assert_string_equal(text, steps[i].expected);
        free(text);
        text_model_close(model);
    }
    remove_directory(&directory);
}

static void padding_and_truncation_of_the_file_are_not_applied(void **state) {
    text_directory directory;
    text_model *model;
    hd_error error = {{0}};
    uint32_t *ids;
    size_t count;
    make_directory(&directory);
    put_text(&directory, "tokenizer.json",
             "{\"truncation\":{\"direction\":\"Right\",\"max_length\":2,\"strategy\":\"LongestFirst\",\"stride\":0},"
             "\"padding\":{\"strategy\":{\"Fixed\":1000000000},\"direction\":\"Right\",\"pad_to_multiple_of\":null,"
             "\"pad_id\":0,"
             "\"pad_type_id\":0,\"pad_token\":\"a\"},\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]}}");
    assert_int_equal(text_model_open(directory.path, &model, &error), HD_OK);
    assert_int_equal(text_encode(model, "aaaaa", 5, true, &ids, &count, &error), HD_OK);
    assert_int_equal(count, 5);
    free(ids);
    text_model_close(model);
    remove_directory(&directory);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_missing_tokenizer_is_named),
        cmocka_unit_test(garbage_in_the_tokenizer_is_refused),
        cmocka_unit_test(a_post_processor_with_ids_of_no_token_is_refused),
        cmocka_unit_test(what_the_library_panics_on_is_refused),
        cmocka_unit_test(nesting_without_end_is_refused),
        cmocka_unit_test(an_id_that_would_need_a_huge_table_is_refused),
        cmocka_unit_test(an_unsupported_decoder_is_named),
        cmocka_unit_test(wrong_types_in_the_configuration_are_named),
        cmocka_unit_test(special_tokens_are_found_in_every_place_that_holds_them),
        cmocka_unit_test(a_broken_template_is_refused_only_where_it_is_used),
        cmocka_unit_test(a_template_file_wins_over_the_json_file_and_that_over_the_configuration),
        cmocka_unit_test(padding_and_truncation_of_the_file_are_not_applied),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
