/* json_body.h - a request's body as a JSON object, refused with the place where it goes wrong.
 *
 *   1. What is parsed costs memory: an object of two bytes takes some 300. So the bytes are first scanned, without
 *      taking any, for their depth and the number of values in them; beyond the limits nothing is parsed.
 *   2. Duplicate keys, bytes that are not UTF-8, and anything after the object are refused: two readers of one body
 *      must never understand it differently.
 * Threads: no state. */
#ifndef COORDINATOR_JSON_BODY_H
#define COORDINATOR_JSON_BODY_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "coordinator/api_error.h"

#define JSON_BODY_DEPTH_MAX 100u            /* the template engine's own limit is 128, and the context wraps the body */
#define JSON_BODY_CONTAINERS_MAX (1u << 18) /* arrays and objects */
#define JSON_BODY_VALUES_MAX (1u << 23)     /* numbers, strings, literals, keys: room for millions of token ids */

/* The caller owns *root (json_decref). What it is read from may be freed afterwards. */
hd_status json_body_parse(const char *bytes, size_t byte_count, json_t **root, api_error *error);

/* The same for any JSON value that stands in a string, for instance a tool call's arguments; false where it is none. */
bool json_text_parse(const char *bytes, size_t byte_count, size_t depth_max, json_t **value);

/* "a string", "an array", ...: what a value is, for messages. */
const char *json_kind(const json_t *value);

#endif
