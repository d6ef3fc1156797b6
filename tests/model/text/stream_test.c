/* A stream gives whole characters only, and its pieces are the text of all ids. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "text_files.h"

#define BROKEN "\xef\xbf\xbd"

static const char *const STYLES[] = {"llama3", "qwen2", "llama2", "mistral", "metaspace"};

static text_model *open_style(const char *style) {
    char directory[128];
    snprintf(directory, sizeof(directory), GOLDEN_TEXT "/tokenizers/%s", style);
    return open_golden(directory);
}

/* Fails where bytes end inside a character. */
static void assert_whole(const char *piece, size_t bytes) {
    size_t at = 0;
    while (at < bytes) {
        unsigned char first = (unsigned char)piece[at];
        size_t length = first < 0x80 ? 1 : first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : first >= 0xc2 ? 2 : 0;
        assert_true(length > 0 && at + length <= bytes);
        for (size_t i = 1; i < length; i++) assert_int_equal((unsigned char)piece[at + i] & 0xc0, 0x80);
        at += length;
    }
}

/* The pieces of a stream together; the caller frees. */
static char *stream_all(const text_model *model, const uint32_t *ids, size_t count, bool skips_special, size_t *bytes) {
    text_stream *stream;
    const char *piece;
    size_t piece_bytes;
    char *all = NULL;
    *bytes = 0;
    assert_int_equal(text_stream_open(model, skips_special, &stream), HD_OK);
    for (size_t i = 0; i <= count; i++) {
        hd_status status = i < count ? text_stream_push(stream, ids[i], &piece, &piece_bytes)
                                     : text_stream_finish(stream, &piece, &piece_bytes);
        assert_int_equal(status, HD_OK);
        assert_whole(piece, piece_bytes);
        all = realloc(all, *bytes + piece_bytes + 1);
        assert_non_null(all);
        memcpy(all + *bytes, piece, piece_bytes);
        *bytes += piece_bytes;
    }
    all[*bytes] = '\0';
    text_stream_close(stream);
    return all;
}

static void random_ids_stream_as_they_decode(void **state) {
    uint32_t ids[40];
    unsigned seed = 12345;
    for (size_t style = 0; style < sizeof(STYLES) / sizeof(STYLES[0]); style++) {
        text_model *model = open_style(STYLES[style]);
        for (int round = 0; round < 2000; round++) {
            size_t count = (size_t)rand_r(&seed) % 40, bytes, streamed_bytes;
            /* Half of the rounds draw from the low ids, where the byte tokens are. */
            uint32_t bound = round % 2 == 0 ? text_vocabulary_size(model) : 270;
            for (size_t i = 0; i < count; i++) ids[i] = (uint32_t)rand_r(&seed) % bound;
            char *text;
            hd_error error = {{0}};
            bool skips_special = round % 3 == 0;
            assert_int_equal(text_decode(model, ids, count, skips_special, &text, &bytes, &error), HD_OK);
            char *streamed = stream_all(model, ids, count, skips_special, &streamed_bytes);
            assert_int_equal(streamed_bytes, bytes);
            assert_memory_equal(streamed, text, bytes + 1);
            free(streamed);
            free(text);
        }
        text_model_close(model);
    }
}

/* The <0xNN> token of a byte, in the vocabularies that have them. */
static uint32_t byte_id(unsigned char byte) {
    return 3u + byte;
}

static void assert_bytes_stream_as(const text_model *model, const char *bytes, const char *expected) {
    uint32_t ids[32];
    size_t count = strlen(bytes), streamed_bytes;
    for (size_t i = 0; i < count; i++) ids[i] = byte_id((unsigned char)bytes[i]);
    char *streamed = stream_all(model, ids, count, false, &streamed_bytes);
    assert_string_equal(streamed, expected);
    free(streamed);
}

static void bytes_that_never_become_a_character_are_one_replacement_a_broken_part(void **state) {
    text_model *model = open_style("llama2");
    assert_bytes_stream_as(model, "\xe4\xb8\xad", "\xe4\xb8\xad");
    assert_bytes_stream_as(model, "\xe4\xb8", BROKEN);
    assert_bytes_stream_as(model, "ok\xe4\xb8\xad\xe4", "ok\xe4\xb8\xad" BROKEN);
    assert_bytes_stream_as(model,
                           "\xe4\xb8"
                           "a",
                           BROKEN "a");
    assert_bytes_stream_as(model, "\xff\x80\xc0", BROKEN BROKEN BROKEN);
    assert_bytes_stream_as(model, "\xed\xa0\x80", BROKEN BROKEN BROKEN);            /* a surrogate */
    assert_bytes_stream_as(model, "\xf4\x90\x80\x80", BROKEN BROKEN BROKEN BROKEN); /* past U+10FFFF */
    assert_bytes_stream_as(model, "\xe0\x80\x80", BROKEN BROKEN BROKEN);            /* overlong */
    assert_bytes_stream_as(model, "\xf0\x9f\x98\xf0\x9f\x98\x80", BROKEN "\xf0\x9f\x98\x80");
    text_model_close(model);
}

static void a_character_comes_when_its_last_byte_does(void **state) {
    text_model *model = open_style("llama2");
    text_stream *stream;
    const char *piece;
    size_t bytes;
    const unsigned char smile[4] = {0xf0, 0x9f, 0x98, 0x80};
    assert_int_equal(text_stream_open(model, true, &stream), HD_OK);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(text_stream_push(stream, byte_id(smile[i]), &piece, &bytes), HD_OK);
        assert_int_equal(bytes, i == 3 ? 4 : 0);
    }
    assert_memory_equal(piece, smile, 4);
    assert_int_equal(text_stream_finish(stream, &piece, &bytes), HD_OK);
    assert_int_equal(bytes, 0);
    text_stream_close(stream);
    text_model_close(model);
}

static void the_blank_before_a_text_is_dropped_once_and_at_its_start_only(void **state) {
    text_model *model = open_style("llama2");
    uint32_t *ids;
    size_t count, bytes;
    hd_error error = {{0}};
    assert_int_equal(text_encode(model, "the end", 7, true, &ids, &count, &error), HD_OK);
    char *streamed = stream_all(model, ids, count, true, &bytes);
    assert_string_equal(streamed, "the end");
    free(streamed);
    streamed = stream_all(model, ids, count, false, &bytes);
    assert_string_equal(streamed, "<s> the end");
    free(streamed);
    free(ids);
    text_model_close(model);
}

static void an_id_without_a_token_adds_nothing_to_a_stream(void **state) {
    text_model *model = open_style("llama3");
    const uint32_t ids[] = {500, 4000000000u, 501};
    const uint32_t known[] = {500, 501};
    size_t bytes, known_bytes;
    char *streamed = stream_all(model, ids, 3, false, &bytes),
         *expected = stream_all(model, known, 2, false, &known_bytes);
    assert_string_equal(streamed, expected);
    free(expected);
    free(streamed);
    text_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_ids_stream_as_they_decode),
        cmocka_unit_test(bytes_that_never_become_a_character_are_one_replacement_a_broken_part),
        cmocka_unit_test(a_character_comes_when_its_last_byte_does),
        cmocka_unit_test(the_blank_before_a_text_is_dropped_once_and_at_its_start_only),
        cmocka_unit_test(an_id_without_a_token_adds_nothing_to_a_stream),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
