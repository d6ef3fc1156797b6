#include "coordinator/json_body.h"

#include "tests/coordinator/cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void assert_refused_bytes(const char *body, size_t body_bytes, const char *code, const char *message) {
    json_t *root;
    api_error error;
    assert_int_equal(json_body_parse(body, body_bytes, &root, &error), HD_INVALID);
    assert_int_equal(error.status, 400);
    assert_string_equal(error.message, message);
    assert_string_equal(error.code, code);
    assert_string_equal(error.type, "invalid_request_error");
}

static void assert_refused(const char *body, const char *code, const char *message) {
    assert_refused_bytes(body, strlen(body), code, message);
}

static void a_bad_body_is_refused_with_its_place(void **state) {
    assert_refused("", "missing_body", "the request has no body: send a JSON object");
    assert_refused(" \r\n\t", "missing_body", "the request has no body: send a JSON object");
    assert_refused("{\"a\": 1,\n \"b\": nope}", "invalid_json", "the body is not JSON: line 2, column 10 (byte 19)");
    assert_refused("{\"a\": [1, 2", "invalid_json", "the body is not JSON: it ends too early, after 11 bytes");
    assert_refused("{\"a\": 1} {", "invalid_json",
                   "the body is not JSON: something follows the object at line 1, column 10 (byte 10)");
    assert_refused("[1, 2]", "invalid_json", "the body must be a JSON object, not an array");
    assert_refused("\"text\"", "invalid_json", "the body must be a JSON object, not a string");
    assert_refused("{\"a\": 1, \"a\": 2}", "duplicate_key",
                   "the body gives an object the same key twice: before line 1, column 12 (byte 12)");
    assert_refused("{\"a\": \"\xff\"}", "invalid_utf8", "the body is not UTF-8: line 1, column 7 (byte 7)");
    assert_refused("{\"n\": 99999999999999999999}", "invalid_json",
                   "the body holds a number that is too large: line 1, column 26 (byte 26)");
    assert_refused("{\"a\\u0000b\": 1}", "invalid_json",
                   "the body holds a key with a zero character in it: line 1, column 11 (byte 11)");
    assert_refused_bytes("{\"a\":\0 1}", 9, "invalid_json", "the body is not JSON: it holds a zero byte, at byte 5");
}

static void deep_nesting_is_refused_where_it_begins(void **state) {
    char body[4096] = "{\"a\":";
    for (unsigned i = 1; i < JSON_BODY_DEPTH_MAX; i++) strcat(body, "[");
    for (unsigned i = 1; i < JSON_BODY_DEPTH_MAX; i++) strcat(body, "]");
    strcat(body, "}");
    json_t *root;
    api_error error;
    assert_int_equal(json_body_parse(body, strlen(body), &root, &error), HD_OK);
    json_decref(root);
    strcpy(body, "{\"a\":");
    for (unsigned i = 0; i < JSON_BODY_DEPTH_MAX; i++) strcat(body, "[");
    assert_refused(body, "too_deep", "the body is nested more than 100 levels deep, at byte 104");
    /* Brackets inside strings are text. */
    strcpy(body, "{\"a\":\"");
    for (unsigned i = 0; i < 200; i++) strcat(body, "[{\\\"");
    strcat(body, "\"}");
    assert_int_equal(json_body_parse(body, strlen(body), &root, &error), HD_OK);
    json_decref(root);
}

static void what_would_take_too_much_memory_is_not_parsed(void **state) {
    size_t count = JSON_BODY_CONTAINERS_MAX + 10, bytes = 0;
    char *body = malloc(count * 3 + 32);
    bytes += (size_t)sprintf(body, "{\"a\":[[]");
    for (size_t i = 0; i < count; i++, bytes += 3) memcpy(body + bytes, (const char[]){',', '[', ']'}, 3);
    body[bytes++] = ']';
    body[bytes++] = '}';
    assert_refused_bytes(body, bytes, "too_many_values",
                         "the body holds 262157 arrays and objects; at most 262144 are read");
    free(body);
    count = JSON_BODY_VALUES_MAX + 10;
    body = malloc(count * 2 + 32);
    bytes = (size_t)sprintf(body, "{\"a\":[1");
    for (size_t i = 0; i < count; i++, bytes += 2) memcpy(body + bytes, (const char[]){',', '1'}, 2);
    body[bytes++] = ']';
    body[bytes++] = '}';
    assert_refused_bytes(body, bytes, "too_many_values", "the body holds 8388621 values; at most 8388608 are read");
    free(body);
}

static void text_that_holds_json_has_limits_of_its_own(void **state) {
    json_t *value;
    assert_true(json_text_parse("[[1]]", 5, 2, &value));
    json_decref(value);
    assert_false(json_text_parse("[[[1]]]", 7, 2, &value));
    assert_false(json_text_parse("{'a': 1}", 8, 9, &value));
    assert_false(json_text_parse("", 0, 9, &value));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_bad_body_is_refused_with_its_place),
        cmocka_unit_test(deep_nesting_is_refused_where_it_begins),
        cmocka_unit_test(what_would_take_too_much_memory_is_not_parsed),
        cmocka_unit_test(text_that_holds_json_has_limits_of_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
