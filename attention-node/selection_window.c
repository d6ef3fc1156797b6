/* selection_window.c - the first tokens and the newest ones, after StreamingLLM (arXiv 2309.17453): constant cost, and
 * blind for what lies between. */
#include "attention-node/selection.h"
#include "attention-node/selection_options.h"

#define RECENT_LEAST 128u
#define RECENT_MOST (1u << 24)
#define SINKS_MOST 65536u
#define LAYERS_MOST 65536u

static hd_status configure(selection *self, const char *options, hd_error *error) {
    self->sinks = 128;
    self->recent = 4096;
    const selection_option known[] = {
        {.key = "sinks", .target = &self->sinks, .most = SINKS_MOST},
        {.key = "recent", .target = &self->recent, .least = RECENT_LEAST, .most = RECENT_MOST},
        {.key = "full_layers", .target = &self->full_layers, .most = LAYERS_MOST}};
    return selection_options_parse("window", options, known, sizeof(known) / sizeof(known[0]), error);
}

static void choose(const selection *self, const selection_question *question, selection_answer *answer) {
    uint64_t length = question->position + 1;
    *answer = (selection_answer){.is_everything = true};
    if (question->layer < self->full_layers || length <= (uint64_t)self->sinks + self->recent) return;
    *answer = (selection_answer){.sinks_end = self->sinks, .recent_first = length - self->recent};
}

const selection_ops *selection_ops_window(void) {
    static const selection_ops ops = {.name = "window", .configure = configure, .choose = choose};
    return &ops;
}
