/* selection.c - selections by name. */
#include "attention-node/selection.h"

#include <stdio.h>
#include <string.h>

typedef const selection_ops *selection_source(void);

static selection_source *const sources[] = {selection_ops_full, selection_ops_window, selection_ops_retrieval};
enum { SOURCE_COUNT = sizeof(sources) / sizeof(sources[0]) };

static void list_names(char *text, size_t text_bytes) {
    snprintf(text, text_bytes, "%s", SELECTION_AUTO);
    for (size_t i = 0; i < SOURCE_COUNT; i++) {
        strncat(text, ", ", text_bytes - strlen(text) - 1);
        strncat(text, sources[i]()->name, text_bytes - strlen(text) - 1);
    }
}

static bool is_named(const char *name, const char *text, size_t name_bytes) {
    return strlen(name) == name_bytes && strncmp(name, text, name_bytes) == 0;
}

hd_status selection_parse(const char *text, selection *out, hd_error *error) {
    if (text == NULL) text = selection_ops_full()->name;
    size_t name_bytes = strcspn(text, ",");
    const char *options = text[name_bytes] == ',' ? text + name_bytes + 1 : NULL;
    for (size_t i = 0; i < SOURCE_COUNT; i++) {
        const selection_ops *ops = sources[i]();
        if (!is_named(ops->name, text, name_bytes)) continue;
        selection parsed = {.ops = ops};
        hd_status status = ops->configure(&parsed, options, error);
        if (status == HD_OK) *out = parsed;
        return status;
    }
    char names[128];
    list_names(names, sizeof(names));
    return hd_error_set(error, HD_INVALID, "unknown selection '%.*s'; known: %s",
                        (int)(name_bytes < 64 ? name_bytes : 64), text, names);
}

bool selection_is_equal(const selection *a, const selection *b) {
    return a->ops == b->ops && a->sinks == b->sinks && a->recent == b->recent && a->full_layers == b->full_layers &&
           a->tokens == b->tokens && a->has_estimate == b->has_estimate && a->index == b->index;
}
