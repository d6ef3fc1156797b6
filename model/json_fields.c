/* json_fields.c - typed reads over jansson. */
#include "model/json_fields.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

hd_status json_object_parse(const char *path, const char *text, size_t text_bytes, json_t **object, hd_error *error) {
    json_error_t where;
    json_t *root = json_loadb(text, text_bytes, JSON_REJECT_DUPLICATES, &where);
    if (root == NULL) {
        return hd_error_set(error, HD_CORRUPT, "%s: is not JSON: %s (line %d, column %d)", path, where.text, where.line,
                            where.column);
    }
    if (!json_is_object(root)) {
        json_decref(root);
        return hd_error_set(error, HD_CORRUPT, "%s: is JSON, but not an object", path);
    }
    *object = root;
    return HD_OK;
}

void json_fields_fail(json_fields *fields, hd_status status, const char *name, const char *format, ...) {
    if (fields->status != HD_OK) return;
    char sentence[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof(sentence), format, arguments);
    va_end(arguments);
    fields->status = hd_error_set(fields->error, status, "%s: '%s%s' %s", fields->path, fields->scope, name, sentence);
}

bool json_fields_is_present(const json_fields *fields, const char *name) {
    return json_object_get(fields->object, name) != NULL;
}

/* NULL for absent and for null. */
static const json_t *given_value(const json_fields *fields, const char *name) {
    const json_t *value = json_object_get(fields->object, name);
    return json_is_null(value) ? NULL : value;
}

bool json_fields_is_given(const json_fields *fields, const char *name) {
    return given_value(fields, name) != NULL;
}

static bool is_missing(json_fields *fields, const char *name) {
    if (json_fields_is_given(fields, name)) return false;
    json_fields_fail(fields, HD_INVALID, name, "is missing");
    return true;
}

uint64_t json_fields_integer_or(json_fields *fields, const char *name, uint64_t minimum, uint64_t maximum,
                                uint64_t fallback) {
    const json_t *value = given_value(fields, name);
    if (value == NULL) return fallback;
    if (!json_is_integer(value) || json_integer_value(value) < 0 || (uint64_t)json_integer_value(value) < minimum ||
        (uint64_t)json_integer_value(value) > maximum) {
        json_fields_fail(fields, HD_INVALID, name, "must be an integer from %llu to %llu", (unsigned long long)minimum,
                         (unsigned long long)maximum);
        return fallback;
    }
    return (uint64_t)json_integer_value(value);
}

uint64_t json_fields_integer(json_fields *fields, const char *name, uint64_t minimum, uint64_t maximum) {
    if (is_missing(fields, name)) return minimum;
    return json_fields_integer_or(fields, name, minimum, maximum, minimum);
}

double json_fields_number_or(json_fields *fields, const char *name, double minimum, double maximum, double fallback) {
    const json_t *value = given_value(fields, name);
    if (value == NULL) return fallback;
    double number = json_number_value(value);
    if (!json_is_number(value) || !isfinite(number) || number < minimum || number > maximum) {
        json_fields_fail(fields, HD_INVALID, name, "must be a number from %g to %g", minimum, maximum);
        return fallback;
    }
    return number;
}

double json_fields_number(json_fields *fields, const char *name, double minimum, double maximum) {
    if (is_missing(fields, name)) return minimum;
    return json_fields_number_or(fields, name, minimum, maximum, minimum);
}

bool json_fields_bool_or(json_fields *fields, const char *name, bool fallback) {
    const json_t *value = given_value(fields, name);
    if (value == NULL) return fallback;
    if (!json_is_boolean(value)) {
        json_fields_fail(fields, HD_INVALID, name, "must be true or false");
        return fallback;
    }
    return json_is_true(value);
}

const char *json_fields_string_or(json_fields *fields, const char *name, const char *fallback) {
    const json_t *value = given_value(fields, name);
    if (value == NULL) return fallback;
    if (!json_is_string(value)) {
        json_fields_fail(fields, HD_INVALID, name, "must be a string");
        return fallback;
    }
    return json_string_value(value);
}

const json_t *json_fields_object(json_fields *fields, const char *name) {
    const json_t *value = given_value(fields, name);
    if (value == NULL || json_is_object(value)) return value;
    json_fields_fail(fields, HD_INVALID, name, "must be an object");
    return NULL;
}

const json_t *json_fields_array(json_fields *fields, const char *name) {
    const json_t *value = given_value(fields, name);
    if (value == NULL || json_is_array(value)) return value;
    json_fields_fail(fields, HD_INVALID, name, "must be an array");
    return NULL;
}
