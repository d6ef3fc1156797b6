#include "coordinator/stop_matcher.h"

#include "tests/coordinator/cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static stop_set set_of(request_stop *stops, const char *const *texts, uint32_t count) {
    stop_set set;
    for (uint32_t i = 0; i < count; i++)
        stops[i] = (request_stop){.text = (char *)texts[i], .text_bytes = strlen(texts[i])};
    assert_int_equal(stop_set_init(&set, stops, count), HD_OK);
    return set;
}

static void nothing_matches_an_empty_set(void **state) {
    stop_set set;
    assert_int_equal(stop_set_init(&set, NULL, 0), HD_OK);
    stop_matcher matcher;
    stop_matcher_init(&matcher, &set);
    size_t used;
    uint32_t stop;
    assert_false(stop_matcher_push(&matcher, "anything", 8, &used, &stop));
    assert_int_equal(used, 8);
    assert_int_equal(stop_matcher_held(&matcher), 0);
    stop_set_fini(&set);
}

static void the_beginning_of_a_stop_string_is_held_back(void **state) {
    request_stop stops[2];
    stop_set set = set_of(stops, (const char *[]){"\n\nHuman:", "END"}, 2);
    stop_matcher matcher;
    stop_matcher_init(&matcher, &set);
    size_t used;
    uint32_t stop;
    assert_false(stop_matcher_push(&matcher, "text\n", 5, &used, &stop));
    assert_int_equal(stop_matcher_held(&matcher), 1);
    assert_false(stop_matcher_push(&matcher, "\nHum", 4, &used, &stop));
    assert_int_equal(stop_matcher_held(&matcher), 5);
    assert_false(stop_matcher_push(&matcher, "E", 1, &used, &stop));
    assert_int_equal(stop_matcher_held(&matcher), 1);
    assert_false(stop_matcher_push(&matcher, "x", 1, &used, &stop));
    assert_int_equal(stop_matcher_held(&matcher), 0);
    assert_true(stop_matcher_push(&matcher, "ENDLESS", 7, &used, &stop));
    assert_int_equal(used, 3);
    assert_int_equal(stop, 1);
    stop_set_fini(&set);
}

static void a_stop_string_that_overlaps_itself_is_found(void **state) {
    request_stop stops[1];
    stop_set set = set_of(stops, (const char *[]){"abab!"}, 1);
    stop_matcher matcher;
    stop_matcher_init(&matcher, &set);
    size_t used;
    uint32_t stop;
    assert_true(stop_matcher_push(&matcher, "abababab!x", 10, &used, &stop));
    assert_int_equal(used, 9);
    stop_set_fini(&set);
}

static void of_stop_strings_that_end_together_the_longest_counts(void **state) {
    request_stop stops[2];
    stop_set set = set_of(stops, (const char *[]){"c", "abc"}, 2);
    stop_matcher matcher;
    stop_matcher_init(&matcher, &set);
    size_t used;
    uint32_t stop;
    assert_true(stop_matcher_push(&matcher, "xabc", 4, &used, &stop));
    assert_int_equal(stop, 1);
    stop_set_fini(&set);
}

/* The match by the definition in the header: the end that comes first, then the start that comes first. */
static bool find_plainly(const stop_set *set, const char *text, size_t count, size_t *end, uint32_t *stop) {
    for (*end = 1; *end <= count; (*end)++) {
        size_t longest = 0;
        for (uint32_t s = 0; s < set->count; s++) {
            size_t bytes = set->stops[s].text_bytes;
            if (bytes > *end || bytes <= longest || memcmp(text + *end - bytes, set->stops[s].text, bytes) != 0)
                continue;
            longest = bytes;
            *stop = s;
        }
        if (longest > 0) return true;
    }
    return false;
}

static void pieces_of_any_size_give_the_match_of_the_whole(void **state) {
    unsigned seed = 20260101;
    for (int round = 0; round < 20000; round++) {
        char texts[4][6], text[64];
        const char *pointers[4];
        request_stop stops[4];
        uint32_t count = 1 + (uint32_t)rand_r(&seed) % 4;
        for (uint32_t s = 0; s < count; s++) {
            int length = 1 + rand_r(&seed) % 5;
            for (int i = 0; i < length; i++) texts[s][i] = (char)('a' + rand_r(&seed) % 2);
            texts[s][length] = '\0';
            pointers[s] = texts[s];
        }
        size_t text_bytes = (size_t)(rand_r(&seed) % 40);
        for (size_t i = 0; i < text_bytes; i++) text[i] = (char)('a' + rand_r(&seed) % 3);
        stop_set set = set_of(stops, pointers, count);
        stop_matcher matcher;
        stop_matcher_init(&matcher, &set);
        size_t expected_end = 0, at = 0, used;
        uint32_t expected_stop = 0, stop = 99;
        bool is_expected = find_plainly(&set, text, text_bytes, &expected_end, &expected_stop), is_found = false;
        while (at < text_bytes && !is_found) {
            size_t piece = 1 + (size_t)rand_r(&seed) % 7;
            if (piece > text_bytes - at) piece = text_bytes - at;
            is_found = stop_matcher_push(&matcher, text + at, piece, &used, &stop);
            at += used;
            /* What is not held can never become part of a match. */
            size_t shown = at - stop_matcher_held(&matcher);
            if (is_expected && !is_found) assert_true(shown <= expected_end - set.stops[expected_stop].text_bytes);
        }
        assert_int_equal(is_found, is_expected);
        if (is_found) {
            assert_int_equal(at, expected_end);
            assert_int_equal(set.stops[stop].text_bytes, set.stops[expected_stop].text_bytes);
        }
        stop_set_fini(&set);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_matches_an_empty_set),
        cmocka_unit_test(the_beginning_of_a_stop_string_is_held_back),
        cmocka_unit_test(a_stop_string_that_overlaps_itself_is_found),
        cmocka_unit_test(of_stop_strings_that_end_together_the_longest_counts),
        cmocka_unit_test(pieces_of_any_size_give_the_match_of_the_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
