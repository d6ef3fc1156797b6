/* selection_options.h - the "key=value,key=value" behind a selection's name.
 *
 * Threads: pure functions. */
#ifndef ATTENTION_NODE_SELECTION_OPTIONS_H
#define ATTENTION_NODE_SELECTION_OPTIONS_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* A number from least to most; with names, one of a NULL-terminated list, and target is its index. */
typedef struct selection_option {
    const char *key;
    uint32_t *target; /* keeps its value where the option is not given */
    uint32_t least, most;
    const char *const *names;
} selection_option;

/* HD_INVALID names the option and what it may be. text may be NULL. */
hd_status selection_options_parse(const char *selection_name, const char *text, const selection_option *options,
                                  size_t option_count, hd_error *error);

#endif
