/* body_fields.h - reads the members of a JSON object, each with its type and range, and names the first that is wrong.
 *
 * The first failure sticks: later reads do nothing, so a parser reads all of its fields in a row and asks is_failed
 * once. A member that is null counts as absent, as OpenAI's clients mean it, and leaves the output as it was.
 * Threads: a value; the object is borrowed. */
#ifndef COORDINATOR_BODY_FIELDS_H
#define COORDINATOR_BODY_FIELDS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "coordinator/api_error.h"

typedef struct body_fields {
    json_t *object;
    const char *path; /* "" for the body, "stream_options." for a member of it */
    api_error *error;
    bool is_failed;
} body_fields;

void body_fields_init(body_fields *fields, json_t *object, const char *path, api_error *error);

/* The member, or NULL where it is absent or null (or where a read has failed already). Borrowed. */
json_t *body_field(body_fields *fields, const char *name);

/* Each returns whether the member was there and right. */
bool body_field_bool(body_fields *fields, const char *name, bool *value);
bool body_field_integer(body_fields *fields, const char *name, int64_t minimum, int64_t maximum, int64_t *value);
bool body_field_u32(body_fields *fields, const char *name, uint32_t minimum, uint32_t maximum, uint32_t *value);
bool body_field_number(body_fields *fields, const char *name, double minimum, double maximum, float *value);
bool body_field_string(body_fields *fields, const char *name, const char **text, size_t *text_bytes);
/* A string that C code will read to its zero: one with a zero character inside is refused. */
bool body_field_text(body_fields *fields, const char *name, const char **text);
bool body_field_array(body_fields *fields, const char *name, size_t count_max, json_t **array);
bool body_field_object(body_fields *fields, const char *name, json_t **object);

/* "messages[2].role" and the like, for messages; cut to fit. Returns buffer. */
const char *body_path(char *buffer, size_t buffer_bytes, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Fails the fields with 400; path may go on below the member ("%smessages[2].role"). */
void body_fields_refuse(body_fields *fields, const char *name, const char *code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#endif
