/* selection_options.c - one option after another. */
#include "attention-node/selection_options.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORD_BYTES 64

static void list(char *text, size_t text_bytes, const char *const *names) {
    text[0] = '\0';
    for (size_t i = 0; names[i] != NULL; i++) {
        size_t used = strlen(text);
        snprintf(text + used, text_bytes - used, i > 0 ? ", %s" : "%s", names[i]);
    }
}

static hd_status refuse_key(const char *name, const char *key, const selection_option *options, size_t count,
                            hd_error *error) {
    char known[192] = "";
    for (size_t i = 0; i < count; i++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof(known) - used, i > 0 ? ", %s" : "%s", options[i].key);
    }
    return hd_error_set(error, HD_INVALID, "selection '%s' has no option '%s'; it has %s", name, key, known);
}

static hd_status set_name(const char *name, const selection_option *option, const char *value, hd_error *error) {
    for (uint32_t i = 0; option->names[i] != NULL; i++) {
        if (strcmp(option->names[i], value) != 0) continue;
        *option->target = i;
        return HD_OK;
    }
    char known[192];
    list(known, sizeof(known), option->names);
    return hd_error_set(error, HD_INVALID, "selection '%s': %s is one of %s, not '%s'", name, option->key, known,
                        value);
}

static hd_status set_number(const char *name, const selection_option *option, const char *value, hd_error *error) {
    char *end;
    errno = 0;
    unsigned long number = strtoul(value, &end, 10);
    bool is_number = value[0] >= '0' && value[0] <= '9' && *end == '\0' && errno == 0;
    if (!is_number || number < option->least || number > option->most) {
        return hd_error_set(error, HD_INVALID, "selection '%s': %s is a number from %u to %u, not '%s'", name,
                            option->key, option->least, option->most, value);
    }
    *option->target = (uint32_t)number;
    return HD_OK;
}

static hd_status set_option(const char *name, const char *key, const char *value, const selection_option *options,
                            size_t count, hd_error *error) {
    for (size_t i = 0; i < count; i++) {
        if (strcmp(options[i].key, key) != 0) continue;
        return options[i].names != NULL ? set_name(name, &options[i], value, error)
                                        : set_number(name, &options[i], value, error);
    }
    return refuse_key(name, key, options, count, error);
}

hd_status selection_options_parse(const char *name, const char *text, const selection_option *options, size_t count,
                                  hd_error *error) {
    hd_status status = HD_OK;
    while (text != NULL && status == HD_OK) {
        char word[WORD_BYTES];
        size_t word_bytes = strcspn(text, ",");
        snprintf(word, sizeof(word), "%.*s", (int)(word_bytes < WORD_BYTES ? word_bytes : WORD_BYTES - 1), text);
        char *equals = strchr(word, '=');
        if (equals == NULL || word_bytes >= WORD_BYTES)
            return hd_error_set(error, HD_INVALID, "selection '%s': '%s' is not an option like key=value", name, word);
        *equals = '\0';
        status = set_option(name, word, equals + 1, options, count, error);
        text = text[word_bytes] == ',' ? text + word_bytes + 1 : NULL;
    }
    return status;
}
