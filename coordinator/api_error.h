/* api_error.h - what a client is told when its request is refused: OpenAI's shape, naming the field.
 *
 *     {"error": {"message": "'temperature' must be between 0 and 2, not 3", "type": "invalid_request_error",
 *                "param": "temperature", "code": null}}
 * Threads: a value. */
#ifndef COORDINATOR_API_ERROR_H
#define COORDINATOR_API_ERROR_H

#include <stddef.h>

#include "base/status.h"
#include "coordinator/text_buffer.h"

typedef struct api_error {
    unsigned status;         /* HTTP's */
    const char *type, *code; /* literals; code may be NULL */
    char param[128];         /* the field; empty: none */
    char message[640];
    unsigned retry_after_s; /* 0: no Retry-After header */
    const char *allow;      /* with 405: the methods there are; else NULL */
} api_error;

/* 400, invalid_request_error. Returns HD_INVALID, so that a failing path reads return api_error_invalid(...). */
hd_status api_error_invalid(api_error *error, const char *param, const char *code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* Any other. Returns HD_INVALID as well. */
hd_status api_error_set(api_error *error, unsigned status, const char *type, const char *code, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
hd_status api_error_no_memory(api_error *error);

/* {"error": {...}} */
void api_error_write(const api_error *error, text_buffer *out);

/* Foreign text for use in a message: cut to fit the buffer, between characters, with "..." where it was cut. Returns
 * buffer. */
const char *api_quote(const char *text, size_t text_bytes, char *buffer, size_t buffer_bytes);

#endif
