/* status.c - names and texts of the one list, and the bounded sentence. */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>

static const struct {
    const char *name, *text;
} entries[] = {
#define HD_STATUS_ENTRY(code, text) {#code, text},
    HD_STATUS_LIST(HD_STATUS_ENTRY)
#undef HD_STATUS_ENTRY
};
_Static_assert(sizeof(entries) / sizeof(entries[0]) == HD_STATUS_COUNT, "one entry per status");

/* A status may have come over a wire, so a number outside the list is possible and gets a name of its own. */
const char *hd_status_name(hd_status status) {
    return (unsigned)status < HD_STATUS_COUNT ? entries[status].name : "HD_UNKNOWN";
}

const char *hd_status_text(hd_status status) {
    return (unsigned)status < HD_STATUS_COUNT ? entries[status].text : "unknown status";
}

void hd_error_write(hd_error *error, const char *format, ...) {
    if (error == NULL) return;
    va_list arguments;
    va_start(arguments, format);
    if (vsnprintf(error->text, sizeof(error->text), format, arguments) < 0) error->text[0] = '\0';
    va_end(arguments);
}
