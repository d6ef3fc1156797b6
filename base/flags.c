/* flags.c - a table of flags filled from argv and the environment. */
#include "base/flags.h"

#include <assert.h>
#include <ctype.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define NAME_BYTES_MAX 64

/* Digits only: strtoull would take " -1". */
static bool parse_u64(const char *text, const char **end, uint64_t *value) {
    uint64_t result = 0;
    const char *c = text;
    for (; *c >= '0' && *c <= '9'; c++) {
        unsigned digit = (unsigned)(*c - '0');
        if (result > (UINT64_MAX - digit) / 10) return false;
        result = result * 10 + digit;
    }
    *end = c;
    *value = result;
    return c != text;
}

static hd_status scale(uint64_t value, uint64_t unit, uint64_t *result) {
    if (unit != 0 && value > UINT64_MAX / unit) return HD_INVALID;
    *result = value * unit;
    return HD_OK;
}

hd_status hd_parse_size(const char *text, uint64_t *bytes) {
    const char *end;
    uint64_t value;
    if (!parse_u64(text, &end, &value)) return HD_INVALID;
    if (*end == '\0') return scale(value, 1, bytes);
    const char *letters = "KMGTP";
    const char *letter = strchr(letters, toupper((unsigned char)*end));
    if (letter == NULL) return HD_INVALID;
    end++;
    if (strcasecmp(end, "") != 0 && strcasecmp(end, "iB") != 0) return HD_INVALID;
    return scale(value, 1024ull << (10 * (letter - letters)), bytes);
}

hd_status hd_parse_duration(const char *text, uint64_t *milliseconds) {
    static const struct {
        const char *name;
        uint64_t milliseconds;
    } units[] = {{"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}};
    const char *end;
    uint64_t value;
    if (!parse_u64(text, &end, &value)) return HD_INVALID;
    if (*end == '\0' && value == 0) return scale(0, 1, milliseconds); /* nothing is nothing in any unit */
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++)
        if (strcmp(end, units[i].name) == 0) return scale(value, units[i].milliseconds, milliseconds);
    return HD_INVALID;
}

const char *hd_format_size(uint64_t bytes, char *buffer, size_t buffer_bytes) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    size_t unit = 0;
    double value = (double)bytes;
    while (value >= 1024 && unit + 1 < sizeof(units) / sizeof(units[0])) {
        value /= 1024;
        unit++;
    }
    snprintf(buffer, buffer_bytes, unit >= 3 ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return buffer;
}

/* How many single-letter changes lead from a to b; two rows of the usual table. */
static size_t edit_distance(const char *a, const char *b) {
    size_t row[NAME_BYTES_MAX + 1], b_bytes = strlen(b);
    if (b_bytes > NAME_BYTES_MAX) return SIZE_MAX;
    for (size_t j = 0; j <= b_bytes; j++) row[j] = j;
    for (size_t i = 1; a[i - 1] != '\0'; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= b_bytes; j++) {
            size_t above = row[j];
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            if (above + 1 < best) best = above + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            row[j] = best;
            diagonal = above;
        }
    }
    return row[b_bytes];
}

static hd_status unknown_flag(const hd_flag *flags, size_t flag_count, const char *argument, const char *name,
                              int name_bytes, hd_error *error) {
    char typed[NAME_BYTES_MAX + 1];
    snprintf(typed, sizeof(typed), "%.*s", name_bytes, name);
    const hd_flag *nearest = NULL;
    size_t least = SIZE_MAX;
    for (size_t i = 0; i < flag_count; i++) {
        size_t distance = edit_distance(typed, flags[i].name);
        if (distance < least) {
            least = distance;
            nearest = &flags[i];
        }
    }
    int shown_bytes = (int)(name - argument) + name_bytes;
    /* A suggestion that shares little with what was typed only misleads. */
    if (nearest != NULL && least <= 1 + strlen(typed) / 3)
        return hd_error_set(error, HD_INVALID, "unknown flag %.*s; did you mean --%s?", shown_bytes, argument,
                            nearest->name);
    return hd_error_set(error, HD_INVALID, "unknown flag %.*s", shown_bytes, argument);
}

static hd_status bad_value(const char *source, const char *text, const char *wanted, hd_error *error) {
    return hd_error_set(error, HD_INVALID, "%s: '%s' is not %s", source, text, wanted);
}

/* source is how the user wrote the flag: "--threads" or "HADAL_THREADS". */
static hd_status set_value(hd_flag *flag, const char *source, const char *text, hd_error *error) {
    uint64_t number;
    const char *end;
    switch (flag->kind) {
    case HD_FLAG_BOOL:
        if (strcmp(text, "true") == 0 || strcmp(text, "1") == 0) *(bool *)flag->target = true;
        else if (strcmp(text, "false") == 0 || strcmp(text, "0") == 0) *(bool *)flag->target = false;
        else return bad_value(source, text, "'true' or 'false'", error);
        break;
    case HD_FLAG_U64:
        if (!parse_u64(text, &end, &number) || *end != '\0') return bad_value(source, text, "a whole number", error);
        *(uint64_t *)flag->target = number;
        break;
    case HD_FLAG_DOUBLE: {
        char *number_end;
        double value = strtod(text, &number_end);
        if (number_end == text || *number_end != '\0' || !isfinite(value))
            return bad_value(source, text, "a number", error);
        *(double *)flag->target = value;
        break;
    }
    case HD_FLAG_SIZE:
        if (hd_parse_size(text, &number) != HD_OK) return bad_value(source, text, "a size such as 512M or 16G", error);
        *(uint64_t *)flag->target = number;
        break;
    case HD_FLAG_DURATION:
        if (hd_parse_duration(text, &number) != HD_OK)
            return bad_value(source, text, "a duration such as 2s or 500ms", error);
        *(uint64_t *)flag->target = number;
        break;
    case HD_FLAG_STRING: *(const char **)flag->target = text; break;
    }
    flag->is_set = true;
    return HD_OK;
}

static void environment_name(const char *name, char *buffer, size_t buffer_bytes) {
    size_t used = (size_t)snprintf(buffer, buffer_bytes, "HADAL_");
    for (const char *c = name; *c != '\0' && used + 1 < buffer_bytes; c++)
        buffer[used++] = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
    buffer[used] = '\0';
}

/* An empty variable counts as not there: container files set such ones for "no value". */
static hd_status read_environment(hd_flag *flags, size_t flag_count, hd_error *error) {
    for (size_t i = 0; i < flag_count; i++) {
        char name[NAME_BYTES_MAX + 8];
        environment_name(flags[i].name, name, sizeof(name));
        const char *text = getenv(name);
        if (text == NULL || *text == '\0') continue;
        hd_status status = set_value(&flags[i], name, text, error);
        if (status != HD_OK) return status;
    }
    return HD_OK;
}

static hd_flag *find_flag(hd_flag *flags, size_t flag_count, const char *name, size_t name_bytes) {
    for (size_t i = 0; i < flag_count; i++)
        if (strncmp(flags[i].name, name, name_bytes) == 0 && flags[i].name[name_bytes] == '\0') return &flags[i];
    return NULL;
}

/* Reads argv[*index], a flag, and moves *index on to its value where that is an argument of its own. */
static hd_status read_flag(hd_flag *flags, size_t flag_count, int argc, char **argv, int *index, hd_error *error) {
    const char *argument = argv[*index];
    const char *name = argument + strspn(argument, "-");
    const char *equals = strchr(name, '=');
    size_t name_bytes = equals != NULL ? (size_t)(equals - name) : strlen(name);
    hd_flag *flag = name - argument == 2 ? find_flag(flags, flag_count, name, name_bytes) : NULL;
    if (flag == NULL) return unknown_flag(flags, flag_count, argument, name, (int)name_bytes, error);

    char source[NAME_BYTES_MAX + 3];
    snprintf(source, sizeof(source), "--%s", flag->name);
    if (equals != NULL) return set_value(flag, source, equals + 1, error);
    if (flag->kind == HD_FLAG_BOOL) return set_value(flag, source, "true", error);
    const char *text = *index + 1 < argc ? argv[*index + 1] : NULL;
    if (text == NULL || strncmp(text, "--", 2) == 0)
        return hd_error_set(error, HD_INVALID, "%s needs a value: %s %s", source, source,
                            flag->value != NULL ? flag->value : "VALUE");
    (*index)++;
    return set_value(flag, source, text, error);
}

hd_status hd_flags_parse(hd_flag *flags, size_t flag_count, int argc, char **argv, const char **positionals,
                         size_t positionals_max, size_t *positional_count, hd_error *error) {
    size_t count = 0;
    bool is_past_flags = false;
    hd_status status = read_environment(flags, flag_count, error);
    for (int i = 0; i < argc && status == HD_OK; i++) {
        const char *argument = argv[i];
        if (!is_past_flags && strcmp(argument, "--") == 0) {
            is_past_flags = true;
        } else if (!is_past_flags && argument[0] == '-' && argument[1] != '\0') { /* "-" alone is standard input */
            status = read_flag(flags, flag_count, argc, argv, &i, error);
        } else if (count == positionals_max) {
            status = hd_error_set(error, HD_INVALID, "unexpected argument '%s'", argument);
        } else {
            positionals[count++] = argument;
        }
    }
    if (status == HD_OK) *positional_count = count;
    return status;
}

static void print_default(const hd_flag *flag, FILE *stream) {
    char text[32];
    uint64_t number = flag->kind == HD_FLAG_U64 || flag->kind == HD_FLAG_SIZE || flag->kind == HD_FLAG_DURATION
                          ? *(const uint64_t *)flag->target
                          : 0;
    switch (flag->kind) {
    case HD_FLAG_BOOL: break;
    case HD_FLAG_U64:
        if (number != 0) fprintf(stream, " (default %" PRIu64 ")", number);
        break;
    case HD_FLAG_SIZE:
        if (number != 0) fprintf(stream, " (default %s)", hd_format_size(number, text, sizeof(text)));
        break;
    case HD_FLAG_DURATION:
        if (number != 0 && number % 1000 == 0) fprintf(stream, " (default %" PRIu64 "s)", number / 1000);
        else if (number != 0) fprintf(stream, " (default %" PRIu64 "ms)", number);
        break;
    case HD_FLAG_DOUBLE:
        if (*(const double *)flag->target != 0) fprintf(stream, " (default %g)", *(const double *)flag->target);
        break;
    case HD_FLAG_STRING:
        if (*(const char *const *)flag->target != NULL)
            fprintf(stream, " (default %s)", *(const char *const *)flag->target);
        break;
    }
}

void hd_flags_print_help(const hd_flag *flags, size_t flag_count, FILE *stream) {
    int width = 0;
    for (size_t i = 0; i < flag_count; i++) {
        int bytes = snprintf(NULL, 0, "--%s %s", flags[i].name, flags[i].value != NULL ? flags[i].value : "");
        if (bytes > width) width = bytes;
    }
    for (size_t i = 0; i < flag_count; i++) {
        char head[2 * NAME_BYTES_MAX];
        snprintf(head, sizeof(head), "--%s %s", flags[i].name, flags[i].value != NULL ? flags[i].value : "");
        fprintf(stream, "  %-*s  %s", width, head, flags[i].help);
        if (!flags[i].is_set) print_default(&flags[i], stream);
        fputc('\n', stream);
    }
}
