/* body_fields.c - see body_fields.h. */
#include "coordinator/body_fields.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "coordinator/json_body.h"

void body_fields_init(body_fields *fields, json_t *object, const char *path, api_error *error) {
    *fields = (body_fields){.object = object, .path = path, .error = error};
}

const char *body_path(char *buffer, size_t buffer_bytes, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(buffer, buffer_bytes, format, arguments);
    va_end(arguments);
    return buffer;
}

void body_fields_refuse(body_fields *fields, const char *name, const char *code, const char *format, ...) {
    if (fields->is_failed) return;
    fields->is_failed = true;
    char message[sizeof(fields->error->message)], param[sizeof(fields->error->param)];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof(message), format, arguments);
    va_end(arguments);
    snprintf(param, sizeof(param), "%s%s", fields->path, name);
    api_error_invalid(fields->error, param, code, "'%s' %s", param, message);
}

json_t *body_field(body_fields *fields, const char *name) {
    if (fields->is_failed) return NULL;
    json_t *value = json_object_get(fields->object, name);
    return json_is_null(value) ? NULL : value;
}

static void refuse_type(body_fields *fields, const char *name, const char *wanted, const json_t *value) {
    body_fields_refuse(fields, name, "invalid_type", "must be %s, not %s", wanted, json_kind(value));
}

bool body_field_bool(body_fields *fields, const char *name, bool *value) {
    json_t *member = body_field(fields, name);
    if (member == NULL) return false;
    if (!json_is_boolean(member)) {
        refuse_type(fields, name, "a boolean", member);
        return false;
    }
    *value = json_is_true(member);
    return true;
}

bool body_field_integer(body_fields *fields, const char *name, int64_t minimum, int64_t maximum, int64_t *value) {
    json_t *member = body_field(fields, name);
    if (member == NULL) return false;
    if (!json_is_integer(member)) {
        refuse_type(fields, name, "an integer", member);
        return false;
    }
    int64_t number = json_integer_value(member);
    if (number < minimum) {
        body_fields_refuse(fields, name, "out_of_range", "must be at least %" PRId64 ", not %" PRId64, minimum, number);
        return false;
    }
    if (number > maximum) {
        body_fields_refuse(fields, name, "out_of_range", "must be at most %" PRId64 ", not %" PRId64, maximum, number);
        return false;
    }
    *value = number;
    return true;
}

bool body_field_u32(body_fields *fields, const char *name, uint32_t minimum, uint32_t maximum, uint32_t *value) {
    int64_t number;
    if (!body_field_integer(fields, name, minimum, maximum, &number)) return false;
    *value = (uint32_t)number;
    return true;
}

bool body_field_number(body_fields *fields, const char *name, double minimum, double maximum, float *value) {
    json_t *member = body_field(fields, name);
    if (member == NULL) return false;
    if (!json_is_number(member)) {
        refuse_type(fields, name, "a number", member);
        return false;
    }
    double number = json_number_value(member);
    if (!(number >= minimum && number <= maximum)) {
        body_fields_refuse(fields, name, "out_of_range", "must be between %g and %g, not %g", minimum, maximum, number);
        return false;
    }
    *value = (float)number;
    return true;
}

bool body_field_string(body_fields *fields, const char *name, const char **text, size_t *text_bytes) {
    json_t *member = body_field(fields, name);
    if (member == NULL) return false;
    if (!json_is_string(member)) {
        refuse_type(fields, name, "a string", member);
        return false;
    }
    *text = json_string_value(member);
    *text_bytes = json_string_length(member);
    return true;
}

bool body_field_text(body_fields *fields, const char *name, const char **text) {
    const char *found;
    size_t found_bytes;
    if (!body_field_string(fields, name, &found, &found_bytes)) return false;
    if (strlen(found) != found_bytes) {
        body_fields_refuse(fields, name, "invalid_value", "must not hold a zero character");
        return false;
    }
    *text = found;
    return true;
}

bool body_field_array(body_fields *fields, const char *name, size_t count_max, json_t **array) {
    json_t *member = body_field(fields, name);
    if (member == NULL) return false;
    if (!json_is_array(member)) {
        refuse_type(fields, name, "an array", member);
        return false;
    }
    if (json_array_size(member) > count_max) {
        body_fields_refuse(fields, name, "out_of_range", "must have at most %zu entries, not %zu", count_max,
                           json_array_size(member));
        return false;
    }
    *array = member;
    return true;
}

bool body_field_object(body_fields *fields, const char *name, json_t **object) {
    json_t *member = body_field(fields, name);
    if (member == NULL) return false;
    if (!json_is_object(member)) {
        refuse_type(fields, name, "an object", member);
        return false;
    }
    *object = member;
    return true;
}
