/* json_fields.h - the fields of a JSON object that came from a file, each read with its type and bounds.
 *
 * The first wrong field writes the sentence, which names the file, the field and what it must be, and every later read
 * gives its fallback; so a reader lists its fields one after another and looks at `status` once. As in Python, a field
 * that is null counts as absent unless the reader asks.
 * Threads: the caller's. */
#ifndef MODEL_JSON_FIELDS_H
#define MODEL_JSON_FIELDS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct json_fields {
    const json_t *object;
    const char *path;  /* the file, for sentences */
    const char *scope; /* "" or, for a nested object, like "rope_scaling." */
    hd_error *error;
    hd_status status; /* HD_OK until a field is wrong */
} json_fields;

/* Parses text as one JSON object. The caller owns *object (json_decref). */
hd_status json_object_parse(const char *path, const char *text, size_t text_bytes, json_t **object, hd_error *error);

/* Records the sentence "PATH: 'SCOPE+NAME' ..." unless an earlier one stands. */
void json_fields_fail(json_fields *fields, hd_status status, const char *name, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

bool json_fields_is_present(const json_fields *fields, const char *name); /* null counts as present */
bool json_fields_is_given(const json_fields *fields, const char *name);   /* present and not null */

/* An absent field without a default is wrong: "is missing". */
uint64_t json_fields_integer(json_fields *fields, const char *name, uint64_t minimum, uint64_t maximum);
uint64_t json_fields_integer_or(json_fields *fields, const char *name, uint64_t minimum, uint64_t maximum,
                                uint64_t fallback);
/* A finite number, an integer included, within [minimum, maximum]. */
double json_fields_number(json_fields *fields, const char *name, double minimum, double maximum);
double json_fields_number_or(json_fields *fields, const char *name, double minimum, double maximum, double fallback);
bool json_fields_bool_or(json_fields *fields, const char *name, bool fallback);
/* Borrowed from the object. */
const char *json_fields_string_or(json_fields *fields, const char *name, const char *fallback);
/* NULL when absent. */
const json_t *json_fields_object(json_fields *fields, const char *name);
const json_t *json_fields_array(json_fields *fields, const char *name);

#endif
