/* flags.h - command-line flags, each also read from the environment as HADAL_<FLAG>.
 *
 * A subcommand lists its flags in a table; hd_flags_parse fills the targets. Precedence: command line, environment,
 * the default already in the target. Sizes take 512M, 16G, 1T (powers of 1024; bare numbers are bytes); durations take
 * 500ms, 2s, 5m, 1h.
 * Threads: parse once, before other threads start. */
#ifndef HD_FLAGS_H
#define HD_FLAGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

typedef enum {
    HD_FLAG_BOOL,     /* bool:        --json, --json=false */
    HD_FLAG_U64,      /* uint64_t:    --threads 4 */
    HD_FLAG_DOUBLE,   /* double:      --rate 1.5 */
    HD_FLAG_SIZE,     /* uint64_t, bytes: --hot-memory 4G */
    HD_FLAG_DURATION, /* uint64_t, ms: --drain-timeout 60s */
    HD_FLAG_STRING,   /* const char *: borrowed from argv or the environment */
} hd_flag_kind;

typedef struct hd_flag {
    const char *name; /* "hot-memory", without dashes; HADAL_HOT_MEMORY in the environment */
    hd_flag_kind kind;
    void *target;      /* of the type above */
    const char *value; /* what help shows for the value: "BYTES", "DIR"; NULL for bool */
    const char *help;
    bool is_set; /* out: given on the command line or in the environment */
} hd_flag;

/* Positional arguments come back in positionals (borrowed), at most positionals_max. "--" ends the flags; --name=value
 * and --name value are the same. HD_INVALID with a sentence naming the flag: unknown flag (with the nearest known
 * one), missing or bad value, too many positionals. */
hd_status hd_flags_parse(hd_flag *flags, size_t flag_count, int argc, char **argv, const char **positionals,
                         size_t positionals_max, size_t *positional_count, hd_error *error);
void hd_flags_print_help(const hd_flag *flags, size_t flag_count, FILE *stream);

hd_status hd_parse_size(const char *text, uint64_t *bytes);
hd_status hd_parse_duration(const char *text, uint64_t *milliseconds);
/* "4.0 GiB", "512 KiB"; returns buffer. */
const char *hd_format_size(uint64_t bytes, char *buffer, size_t buffer_bytes);

#endif
