/* trace.c - see trace.h. */
#include "base/trace.h"

#include <string.h>

#define VERSION_DIGITS 2u
#define PARENT_DIGITS 16u
#define FLAG_DIGITS 2u

/* So many lower-case hexadecimal digits; where they must not all be zero, they are not. */
static bool are_digits(const char *text, size_t count, bool may_be_zero) {
    bool is_zero = true;
    for (size_t i = 0; i < count; i++) {
        bool is_digit = (text[i] >= '0' && text[i] <= '9') || (text[i] >= 'a' && text[i] <= 'f');
        if (!is_digit) return false;
        is_zero = is_zero && text[i] == '0';
    }
    return may_be_zero || !is_zero;
}

void hd_trace_take(const char *text, size_t bytes, char trace_id[HD_TRACE_BYTES]) {
    trace_id[0] = '\0';
    if (bytes != HD_TRACE_DIGITS || !are_digits(text, bytes, false)) return;
    memcpy(trace_id, text, bytes);
    trace_id[bytes] = '\0';
}

bool hd_trace_parse(const char *text, char trace_id[HD_TRACE_BYTES]) {
    const size_t trace = VERSION_DIGITS + 1, parent = trace + HD_TRACE_DIGITS + 1, flags = parent + PARENT_DIGITS + 1;
    size_t length = text != NULL ? strlen(text) : 0;
    trace_id[0] = '\0';
    if (length < flags + FLAG_DIGITS || !are_digits(text, VERSION_DIGITS, true) || memcmp(text, "ff", 2) == 0)
        return false;
    if (text[trace - 1] != '-' || text[parent - 1] != '-' || text[flags - 1] != '-') return false;
    if (!are_digits(text + parent, PARENT_DIGITS, false) || !are_digits(text + flags, FLAG_DIGITS, true)) return false;
    /* Later versions may go on behind another dash. */
    bool is_first = memcmp(text, "00", 2) == 0;
    if (length > flags + FLAG_DIGITS && (is_first || text[flags + FLAG_DIGITS] != '-')) return false;
    hd_trace_take(text + trace, HD_TRACE_DIGITS, trace_id);
    return trace_id[0] != '\0';
}
