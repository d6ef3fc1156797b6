/* selection_overrides.h - layers and KV heads that do not follow a sequence's selection, from a file.
 *
 *     # layers   KV heads   what they do
 *     0-1                   full       attends to everything
 *     7          2-3        window     attends to first and newest tokens alone, and searches nothing
 *
 * They apply to every selection but full. Later lines overrule earlier ones. Which heads need what is a property of the
 * model, measured once (as DuoAttention does, arXiv 2410.10819), so it is the server's to know and not the request's.
 * Threads: immutable once read. */
#ifndef ATTENTION_NODE_SELECTION_OVERRIDES_H
#define ATTENTION_NODE_SELECTION_OVERRIDES_H

#include "attention-node/layer_table.h"
#include "attention-node/selection.h"

typedef enum { OVERRIDE_NONE, OVERRIDE_FULL, OVERRIDE_WINDOW } selection_override;

typedef struct selection_overrides {
    uint32_t layer_count, heads_max;
    uint8_t *modes; /* [layer_count][heads_max]; NULL: there are none */
} selection_overrides;

/* The error names file and line. */
hd_status selection_overrides_read(const char *path, const attention_layer_table *table, selection_overrides *out,
                                   hd_error *error);
void selection_overrides_fini(selection_overrides *overrides); /* accepts a zeroed one */

/* Changes an answer as the layer and head demand. overrides may be NULL. */
void selection_overrides_apply(const selection_overrides *overrides, uint32_t layer, uint32_t head,
                               selection_answer *answer);

#endif
