/* json_body.c - the scan, then jansson. */
#include "coordinator/json_body.h"

#include <string.h>

typedef struct scan {
    size_t containers, values;
    size_t depth, depth_max, deepest_at; /* deepest_at: the byte that opened the first level beyond the limit */
} scan;

/* Counts structure only; whether the bytes are JSON is the parser's to say. A comma separates two values, and each
 * container may hold a first one, so commas and containers bound the values. */
static void scan_bytes(const char *bytes, size_t byte_count, scan *result) {
    *result = (scan){0};
    bool is_string = false;
    for (size_t i = 0; i < byte_count; i++) {
        char byte = bytes[i];
        if (is_string) {
            if (byte == '\\') i++;
            else if (byte == '"') is_string = false;
            continue;
        }
        switch (byte) {
        case '"': is_string = true; break;
        case '{':
        case '[':
            result->containers++;
            result->depth++;
            if (result->depth > result->depth_max) {
                result->depth_max = result->depth;
                if (result->depth == JSON_BODY_DEPTH_MAX + 1) result->deepest_at = i;
            }
            break;
        case '}':
        case ']':
            if (result->depth > 0) result->depth--;
            break;
        case ',':
        case ':': result->values++; break;
        default: break;
        }
    }
}

const char *json_kind(const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a number";
    case JSON_TRUE:
    case JSON_FALSE: return "a boolean";
    default: return "null";
    }
}

static hd_status refuse_parse(const json_error_t *failure, size_t byte_count, api_error *error) {
    int line = failure->line, column = failure->column, position = failure->position;
    switch (json_error_code(failure)) {
    case json_error_out_of_memory: return api_error_no_memory(error);
    case json_error_invalid_utf8:
        return api_error_invalid(error, NULL, "invalid_utf8", "the body is not UTF-8: line %d, column %d (byte %d)",
                                 line, column, position);
    case json_error_duplicate_key:
        return api_error_invalid(error, NULL, "duplicate_key",
                                 "the body gives an object the same key twice: before line %d, column %d (byte %d)",
                                 line, column, position);
    case json_error_premature_end_of_input:
        return api_error_invalid(error, NULL, "invalid_json",
                                 "the body is not JSON: it ends too early, after %zu bytes", byte_count);
    case json_error_end_of_input_expected:
        return api_error_invalid(error, NULL, "invalid_json",
                                 "the body is not JSON: something follows the object at line %d, column %d (byte %d)",
                                 line, column, position);
    case json_error_numeric_overflow:
        return api_error_invalid(error, NULL, "invalid_json",
                                 "the body holds a number that is too large: line %d, column %d (byte %d)", line,
                                 column, position);
    case json_error_null_byte_in_key:
        return api_error_invalid(error, NULL, "invalid_json",
                                 "the body holds a key with a zero character in it: line %d, column %d (byte %d)", line,
                                 column, position);
    default:
        return api_error_invalid(error, NULL, "invalid_json", "the body is not JSON: line %d, column %d (byte %d)",
                                 line, column, position);
    }
}

bool json_text_parse(const char *bytes, size_t byte_count, size_t depth_max, json_t **value) {
    scan found;
    scan_bytes(bytes, byte_count, &found);
    if (found.depth_max > depth_max || found.containers > JSON_BODY_CONTAINERS_MAX ||
        found.values > JSON_BODY_VALUES_MAX)
        return false;
    json_t *parsed = json_loadb(bytes, byte_count, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY, NULL);
    if (parsed == NULL) return false;
    *value = parsed;
    return true;
}

hd_status json_body_parse(const char *bytes, size_t byte_count, json_t **root, api_error *error) {
    /* The parser would take it for the end. */
    const char *zero = memchr(bytes, '\0', byte_count);
    if (zero != NULL) {
        return api_error_invalid(error, NULL, "invalid_json", "the body is not JSON: it holds a zero byte, at byte %zu",
                                 (size_t)(zero - bytes));
    }
    size_t blank = 0;
    while (blank < byte_count &&
           (bytes[blank] == ' ' || bytes[blank] == '\t' || bytes[blank] == '\r' || bytes[blank] == '\n'))
        blank++;
    if (blank == byte_count) {
        return api_error_invalid(error, NULL, "missing_body", "the request has no body: send a JSON object");
    }
    scan found;
    scan_bytes(bytes, byte_count, &found);
    if (found.depth_max > JSON_BODY_DEPTH_MAX) {
        return api_error_invalid(error, NULL, "too_deep", "the body is nested more than %u levels deep, at byte %zu",
                                 JSON_BODY_DEPTH_MAX, found.deepest_at);
    }
    if (found.containers > JSON_BODY_CONTAINERS_MAX) {
        return api_error_invalid(error, NULL, "too_many_values",
                                 "the body holds %zu arrays and objects; at most %u are read", found.containers,
                                 JSON_BODY_CONTAINERS_MAX);
    }
    if (found.values + found.containers > JSON_BODY_VALUES_MAX) {
        return api_error_invalid(error, NULL, "too_many_values", "the body holds %zu values; at most %u are read",
                                 found.values + found.containers, JSON_BODY_VALUES_MAX);
    }
    json_error_t failure;
    json_t *parsed = json_loadb(bytes, byte_count, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL | JSON_DECODE_ANY, &failure);
    if (parsed == NULL) return refuse_parse(&failure, byte_count, error);
    if (!json_is_object(parsed)) {
        api_error_invalid(error, NULL, "invalid_json", "the body must be a JSON object, not %s", json_kind(parsed));
        json_decref(parsed);
        return HD_INVALID;
    }
    *root = parsed;
    return HD_OK;
}
