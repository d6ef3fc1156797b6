/* api_error.c - see api_error.h. */
#include "coordinator/api_error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void set_message(api_error *error, const char *format, va_list arguments) {
    int length = vsnprintf(error->message, sizeof(error->message), format, arguments);
    if (length >= (int)sizeof(error->message)) {
        size_t fit = utf8_fit(error->message, sizeof(error->message) - 1, sizeof(error->message) - 2);
        error->message[fit] = '\0';
    }
}

hd_status api_error_invalid(api_error *error, const char *param, const char *code, const char *format, ...) {
    *error = (api_error){.status = 400, .type = "invalid_request_error", .code = code};
    if (param != NULL) snprintf(error->param, sizeof(error->param), "%s", param);
    va_list arguments;
    va_start(arguments, format);
    set_message(error, format, arguments);
    va_end(arguments);
    return HD_INVALID;
}

hd_status api_error_set(api_error *error, unsigned status, const char *type, const char *code, const char *format,
                        ...) {
    *error = (api_error){.status = status, .type = type, .code = code};
    va_list arguments;
    va_start(arguments, format);
    set_message(error, format, arguments);
    va_end(arguments);
    return HD_INVALID;
}

hd_status api_error_no_memory(api_error *error) {
    api_error_set(error, 503, "server_error", "out_of_memory",
                  "the server has no memory left for this request; try again later");
    error->retry_after_s = 5;
    return HD_NO_MEMORY;
}

void api_error_write(const api_error *error, text_buffer *out) {
    text_buffer_text(out, "{\"error\":{\"message\":");
    text_buffer_json_text(out, error->message);
    text_buffer_text(out, ",\"type\":");
    text_buffer_json_text(out, error->type);
    text_buffer_text(out, ",\"param\":");
    text_buffer_json_text(out, error->param[0] != '\0' ? error->param : NULL);
    text_buffer_text(out, ",\"code\":");
    text_buffer_json_text(out, error->code);
    text_buffer_text(out, "}}");
}

const char *api_quote(const char *text, size_t text_bytes, char *buffer, size_t buffer_bytes) {
    size_t room = buffer_bytes - 1;
    if (text_bytes <= room) {
        memcpy(buffer, text, text_bytes);
        buffer[text_bytes] = '\0';
    } else {
        size_t fit = utf8_fit(text, text_bytes, room - 3);
        memcpy(buffer, text, fit);
        memcpy(buffer + fit, "...", 4);
    }
    /* A zero byte would end the message early. */
    for (size_t i = 0; i < text_bytes && i < room - 3; i++) {
        if (buffer[i] == '\0') buffer[i] = '?';
    }
    return buffer;
}
