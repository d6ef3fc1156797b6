/* selection_full.c - exact attention: every token of the sequence. */
#include "attention-node/selection.h"

static hd_status configure(selection *self, const char *options, hd_error *error) {
    if (options == NULL) return HD_OK;
    return hd_error_set(error, HD_INVALID, "selection 'full' takes no options, not '%.64s'", options);
}

static void choose(const selection *self, const selection_question *question, selection_answer *answer) {
    *answer = (selection_answer){.is_everything = true};
}

const selection_ops *selection_ops_full(void) {
    static const selection_ops ops = {.name = "full", .configure = configure, .choose = choose};
    return &ops;
}
