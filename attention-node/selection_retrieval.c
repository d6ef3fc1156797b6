/* selection_retrieval.c - the first tokens, those that are not indexed yet, and what an index finds between them. */
#include <assert.h>
#include <string.h>

#include "attention-node/index.h"
#include "attention-node/selection.h"
#include "attention-node/selection_options.h"

#define LAYERS_MOST 65536u
#define KINDS_MOST 8u
#define INDEX_DEFAULT "clusters"

/* The names of all kinds of index; returns the default's. */
static uint32_t list_indexes(const char *names[KINDS_MOST + 1]) {
    const index_kind *const *kinds;
    size_t count = index_kinds(&kinds);
    uint32_t chosen = 0;
    assert(count <= KINDS_MOST);
    for (uint32_t i = 0; i < count; i++) {
        names[i] = index_kind_name(kinds[i]);
        if (strcmp(names[i], INDEX_DEFAULT) == 0) chosen = i;
    }
    names[count] = NULL;
    return chosen;
}

static hd_status configure(selection *self, const char *options, hd_error *error) {
    const char *index_names[KINDS_MOST + 1];
    uint32_t index = list_indexes(index_names), estimate = 1;
    self->sinks = SELECTION_INDEX_FIRST;
    self->tokens = 1024;
    const selection_option known[] = {
        {.key = "index", .target = &index, .names = index_names},
        {.key = "tokens", .target = &self->tokens, .least = 1, .most = SELECTION_TOKENS_MAX},
        {.key = "estimate", .target = &estimate, .most = 1},
        {.key = "full_layers", .target = &self->full_layers, .most = LAYERS_MOST},
    };
    hd_status status = selection_options_parse("retrieval", options, known, sizeof(known) / sizeof(known[0]), error);
    self->index = index_names[index];
    self->has_estimate = estimate != 0;
    return status;
}

static void choose(const selection *self, const selection_question *question, selection_answer *answer) {
    uint64_t settled = question->position < SELECTION_SETTLE_TOKENS ? 0 : question->position - SELECTION_SETTLE_TOKENS;
    settled -= settled % question->granule;
    *answer = (selection_answer){.is_everything = true};
    if (question->layer < self->full_layers || settled <= self->sinks) return;
    *answer = (selection_answer){.sinks_end = self->sinks, .recent_first = settled, .is_searched = true};
}

const selection_ops *selection_ops_retrieval(void) {
    static const selection_ops ops = {.name = "retrieval", .configure = configure, .choose = choose};
    return &ops;
}
