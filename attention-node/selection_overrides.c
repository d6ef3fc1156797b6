/* selection_overrides.c - one line after another. */
#include "attention-node/selection_overrides.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE_BYTES 256

typedef struct range {
    uint32_t first, last;
} range;

static bool parse_range(const char *word, uint32_t count, range *out) {
    char *end;
    if (word[0] < '0' || word[0] > '9') return false;
    unsigned long first = strtoul(word, &end, 10), last = first;
    if (*end == '-') {
        if (end[1] < '0' || end[1] > '9') return false;
        last = strtoul(end + 1, &end, 10);
    }
    if (*end != '\0' || last < first || last >= count) return false;
    *out = (range){(uint32_t)first, (uint32_t)last};
    return true;
}

static bool parse_mode(const char *word, uint8_t *mode) {
    if (strcmp(word, "full") == 0) *mode = OVERRIDE_FULL;
    else if (strcmp(word, "window") == 0) *mode = OVERRIDE_WINDOW;
    else return false;
    return true;
}

/* False: the line is none of the two forms. */
static bool take_line(selection_overrides *o, char *line) {
    char *words[4] = {NULL};
    uint32_t count = 0;
    line[strcspn(line, "#\n")] = '\0';
    for (char *next = line, *word; (word = strsep(&next, " \t\r")) != NULL;) {
        if (word[0] == '\0') continue;
        if (count == 3) return false;
        words[count++] = word;
    }
    if (count == 0) return true;
    range layers, heads = {0, o->heads_max - 1};
    uint8_t mode;
    if (count < 2 || !parse_range(words[0], o->layer_count, &layers) || !parse_mode(words[count - 1], &mode))
        return false;
    if (count == 3 && !parse_range(words[1], o->heads_max, &heads)) return false;
    for (uint32_t layer = layers.first; layer <= layers.last; layer++) {
        memset(o->modes + (size_t)layer * o->heads_max + heads.first, mode, heads.last - heads.first + 1);
    }
    return true;
}

hd_status selection_overrides_read(const char *path, const attention_layer_table *table, selection_overrides *out,
                                   hd_error *error) {
    selection_overrides o = {.layer_count = table->layer_count};
    for (uint32_t i = 0; i < table->layer_count; i++) {
        uint32_t heads = table->streams[table->layers[i].key_stream].heads;
        if (heads > o.heads_max) o.heads_max = heads;
    }
    FILE *file = fopen(path, "r");
    if (file == NULL) return hd_error_set(error, HD_IO, "cannot read %s: %s", path, strerror(errno));
    o.modes = calloc((size_t)o.layer_count * o.heads_max, sizeof(*o.modes));
    hd_status status = o.modes != NULL ? HD_OK : hd_error_set(error, HD_NO_MEMORY, "out of memory");
    char line[LINE_BYTES];
    for (unsigned number = 1; status == HD_OK && fgets(line, sizeof(line), file) != NULL; number++) {
        if (take_line(&o, line)) continue;
        status = hd_error_set(error, HD_INVALID,
                              "%s, line %u: not 'LAYER[-LAYER] [HEAD[-HEAD]] full|window' with layers up to %u and KV "
                              "heads up to %u",
                              path, number, o.layer_count - 1, o.heads_max - 1);
    }
    fclose(file);
    if (status == HD_OK) *out = o;
    else free(o.modes);
    return status;
}

void selection_overrides_fini(selection_overrides *o) {
    free(o->modes);
    *o = (selection_overrides){0};
}

void selection_overrides_apply(const selection_overrides *o, uint32_t layer, uint32_t head, selection_answer *answer) {
    if (o == NULL || o->modes == NULL || answer->is_everything) return;
    uint8_t mode = o->modes[(size_t)layer * o->heads_max + head];
    if (mode == OVERRIDE_FULL) *answer = (selection_answer){.is_everything = true};
    if (mode == OVERRIDE_WINDOW) answer->is_searched = false;
}
