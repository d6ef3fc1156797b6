/* Ids and texts are those of Hugging Face, for every style of tokenizer in the golden files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "text_files.h"

static const char *const STYLES[] = {"llama3", "qwen2", "llama2", "mistral", "metaspace"};

typedef struct {
    text_model *model;
    json_t *cases;
    const char *style;
} golden;

static golden open_style(const char *style) {
    char directory[128];
    snprintf(directory, sizeof(directory), GOLDEN_TEXT "/tokenizers/%s", style);
    return (golden){open_golden(directory), load_json(directory, "cases.json"), style};
}

static void close_style(golden *g) {
    text_model_close(g->model);
    json_decref(g->cases);
}

static void for_each_style(void (*check)(golden *)) {
    for (size_t i = 0; i < sizeof(STYLES) / sizeof(STYLES[0]); i++) {
        golden g = open_style(STYLES[i]);
        check(&g);
        close_style(&g);
    }
}

static uint32_t *ids_of(const json_t *array, size_t *count) {
    *count = json_array_size(array);
    uint32_t *ids = calloc(*count + 1, sizeof(*ids));
    assert_non_null(ids);
    for (size_t i = 0; i < *count; i++) ids[i] = (uint32_t)json_integer_value(json_array_get(array, i));
    return ids;
}

static void assert_encodes(const golden *g, const json_t *text, bool add_special_tokens, const json_t *expected) {
    uint32_t *ids = NULL;
    size_t count, expected_count;
    hd_error error = {{0}};
    uint32_t *wanted = ids_of(expected, &expected_count);
    hd_status status = text_encode(g->model, json_string_value(text), json_string_length(text), add_special_tokens,
                                   &ids, &count, &error);
    if (status != HD_OK || count != expected_count || memcmp(ids, wanted, count * sizeof(*ids)) != 0)
        fail_msg("%s: '%s' has other ids (%zu, expected %zu) %s", g->style, json_string_value(text), count,
                 expected_count, error.text);
    free(ids);
    free(wanted);
}

static void check_encode(golden *g) {
    size_t index;
    json_t *item;
    json_array_foreach(json_object_get(g->cases, "encode"), index, item) {
        assert_encodes(g, json_object_get(item, "text"), true, json_object_get(item, "ids"));
        assert_encodes(g, json_object_get(item, "text"), false, json_object_get(item, "bare"));
    }
}

static void encode_gives_the_ids_of_hugging_face(void **state) {
    for_each_style(check_encode);
}

static void assert_text(const golden *g, const char *text, size_t bytes, const json_t *expected, size_t index) {
    if (bytes != json_string_length(expected) || memcmp(text, json_string_value(expected), bytes) != 0)
        fail_msg("%s: ids %zu are '%s', expected '%s'", g->style, index, text, json_string_value(expected));
}

static void assert_decodes(const golden *g, const uint32_t *ids, size_t count, bool skips_special,
                           const json_t *expected, size_t index) {
    char *text;
    size_t bytes;
    hd_error error = {{0}};
    assert_int_equal(text_decode(g->model, ids, count, skips_special, &text, &bytes, &error), HD_OK);
    assert_text(g, text, bytes, expected, index);
    free(text);
}

static void check_decode(golden *g) {
    size_t index;
    json_t *item;
    json_array_foreach(json_object_get(g->cases, "decode"), index, item) {
        size_t count;
        uint32_t *ids = ids_of(json_object_get(item, "ids"), &count);
        assert_decodes(g, ids, count, false, json_object_get(item, "text"), index);
        assert_decodes(g, ids, count, true, json_object_get(item, "skipped"), index);
        free(ids);
    }
}

static void decode_gives_the_text_of_hugging_face(void **state) {
    for_each_style(check_decode);
}

static void check_facts(golden *g) {
    uint32_t id = 0;
    const json_t *bos = json_object_get(g->cases, "bos"), *eos = json_object_get(g->cases, "eos");
    assert_int_equal(text_vocabulary_size(g->model), json_integer_value(json_object_get(g->cases, "vocabulary")));
    assert_int_equal(text_bos_id(g->model, &id), json_is_integer(bos));
    if (json_is_integer(bos)) assert_int_equal(id, json_integer_value(bos));
    assert_int_equal(text_eos_id(g->model, &id), json_is_integer(eos));
    if (json_is_integer(eos)) assert_int_equal(id, json_integer_value(eos));
}

static void the_vocabulary_and_the_named_tokens_are_those_of_hugging_face(void **state) {
    for_each_style(check_facts);
}

/* The texts of the cases, each with a newline, joined `rounds` times. */
static char *join_rounds(const golden *g, size_t rounds, size_t *bytes) {
    size_t index, round_bytes = 0;
    json_t *item, *encode = json_object_get(g->cases, "encode");
    json_array_foreach(encode, index, item) {
        size_t length = json_string_length(json_object_get(item, "text"));
        round_bytes += length > 0 ? length + 1 : 0;
    }
    char *text = malloc(rounds * round_bytes + 1), *end = text;
    assert_non_null(text);
    for (size_t round = 0; round < rounds; round++) {
        json_array_foreach(encode, index, item) {
            const json_t *part = json_object_get(item, "text");
            size_t length = json_string_length(part);
            if (length == 0) continue;
            memcpy(end, json_string_value(part), length);
            end[length] = '\n';
            end += length + 1;
        }
    }
    *bytes = (size_t)(end - text);
    return text;
}

static uint64_t fingerprint(const uint32_t *ids, size_t count) {
    uint64_t value = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < count; i++)
        for (unsigned byte = 0; byte < 4; byte++)
            value = (value ^ (ids[i] >> (8 * byte) & 0xff)) * UINT64_C(0x100000001b3);
    return value;
}

static void check_long(golden *g) {
    const json_t *expected = json_object_get(g->cases, "long");
    size_t bytes, count;
    char *text = join_rounds(g, (size_t)json_integer_value(json_object_get(expected, "rounds")), &bytes);
    uint32_t *ids;
    hd_error error = {{0}};
    char hex[17];
    assert_true(bytes > 2u << 20); /* more than one slice */
    assert_int_equal(text_encode(g->model, text, bytes, true, &ids, &count, &error), HD_OK);
    snprintf(hex, sizeof(hex), "%016llx", (unsigned long long)fingerprint(ids, count));
    if (count != (size_t)json_integer_value(json_object_get(expected, "count")) ||
        strcmp(hex, json_string_value(json_object_get(expected, "fnv1a"))) != 0)
        fail_msg("%s: the long text has %zu other ids, %s", g->style, count, hex);
    free(ids);
    free(text);
}

static void a_long_text_encoded_in_slices_has_the_ids_of_the_whole(void **state) {
    for_each_style(check_long);
}

static void bytes_that_are_not_utf8_are_refused_with_their_place(void **state) {
    golden g = open_style("llama3");
    uint32_t *ids = NULL;
    size_t count;
    hd_error error = {{0}};
    assert_int_equal(text_encode(g.model, "good\xff", 5, true, &ids, &count, &error), HD_INVALID);
    assert_non_null(strstr(error.text, "not UTF-8 at byte 4"));
    assert_int_equal(text_encode(g.model, "\xed\xa0\x80", 3, true, &ids, &count, &error), HD_INVALID);
    assert_null(ids);
    close_style(&g);
}

static void a_zero_byte_is_text(void **state) {
    golden g = open_style("llama3");
    uint32_t *ids;
    size_t count, bytes;
    char *text;
    hd_error error = {{0}};
    assert_int_equal(text_encode(g.model, "a\0b", 3, false, &ids, &count, &error), HD_OK);
    assert_int_equal(text_decode(g.model, ids, count, false, &text, &bytes, &error), HD_OK);
    assert_int_equal(bytes, 3);
    assert_memory_equal(text, "a\0b", 4);
    free(text);
    free(ids);
    close_style(&g);
}

static void an_id_outside_the_vocabulary_is_refused_by_number(void **state) {
    golden g = open_style("mistral");
    uint32_t ids[2] = {5, 70000};
    char *text = NULL;
    size_t bytes;
    unsigned char *raw = NULL;
    hd_error error = {{0}};
    assert_int_equal(text_decode(g.model, ids, 2, false, &text, &bytes, &error), HD_INVALID);
    assert_string_equal(error.text, "token id 70000 is not in the vocabulary");
    assert_int_equal(text_token(g.model, 70000, &text, &raw, &bytes), HD_INVALID);
    assert_null(text);
    close_style(&g);
}

static void a_token_is_shown_as_its_text_and_its_bytes(void **state) {
    golden g = open_style("llama2");
    char *text;
    unsigned char *raw;
    size_t bytes;
    assert_int_equal(text_token(g.model, 3 + 0xe4, &text, &raw, &bytes), HD_OK); /* <0xE4>: no character by itself */
    assert_string_equal(text, "\xef\xbf\xbd");
    assert_int_equal(bytes, 1);
    assert_int_equal(raw[0], 0xe4);
    free(text);
    free(raw);
    uint32_t *ids;
    size_t count;
    hd_error error = {{0}};
    assert_int_equal(text_encode(g.model, "the", 3, false, &ids, &count, &error), HD_OK);
    assert_int_equal(text_token(g.model, ids[0], &text, &raw, &bytes), HD_OK);
    assert_int_equal(text[0], ' '); /* the blank that a token brings along is part of it */
    assert_memory_equal(text, raw, bytes + 1);
    free(text);
    free(raw);
    free(ids);
    close_style(&g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(encode_gives_the_ids_of_hugging_face),
        cmocka_unit_test(decode_gives_the_text_of_hugging_face),
        cmocka_unit_test(the_vocabulary_and_the_named_tokens_are_those_of_hugging_face),
        cmocka_unit_test(a_long_text_encoded_in_slices_has_the_ids_of_the_whole),
        cmocka_unit_test(bytes_that_are_not_utf8_are_refused_with_their_place),
        cmocka_unit_test(a_zero_byte_is_text),
        cmocka_unit_test(an_id_outside_the_vocabulary_is_refused_by_number),
        cmocka_unit_test(a_token_is_shown_as_its_text_and_its_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
