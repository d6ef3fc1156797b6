/* selection.h - which of a sequence's tokens the queries of a step attend to.
 *
 * A selection is asked once per sequence, layer and step, and answers with runs, which the engine then attends to
 * exactly. What a layer's own window hides is hidden whatever the answer; a selection never shows more than the
 * sequence has.
 *   1. The answer depends on the sequence and the positions alone, never on load, batch, chunk or thread (design,
 *      Exactness).
 *   2. It is fixed when the sequence opens, from its parameters.
 * Implementations: full (selection_full.c). Adding one: a table here, a line in the list in selection.c.
 * Threads: the step thread. */
#ifndef ATTENTION_NODE_SELECTION_H
#define ATTENTION_NODE_SELECTION_H

#include "attention-node/run_table.h"

typedef struct selection_ops selection_ops;

typedef struct selection { /* a value, part of its sequence */
    const selection_ops *ops;
} selection;

typedef struct selection_question {
    uint32_t layer;
    const kv_run *runs; /* all that the sequence has, the step's own rows included */
    uint32_t run_count;
    uint64_t first_position; /* of its rows in this step */
    uint32_t row_count;
} selection_question;

typedef struct selection_answer {
    const kv_run *runs; /* in ascending position, the same for every KV head; valid until the step ends */
    uint32_t run_count;
} selection_answer;

struct selection_ops {
    const char *name;
    /* options: what follows the name and a comma, or NULL. HD_INVALID names the option. */
    hd_status (*configure)(selection *self, const char *options, hd_error *error);
    void (*choose)(const selection *self, const selection_question *question, selection_answer *answer);
};

const selection_ops *selection_ops_full(void); /* everything */

/* text is NAME[,key=value...], or NULL for the default. HD_INVALID lists the known names. */
hd_status selection_parse(const char *text, selection *out, hd_error *error);

#endif
