/* engine_view.c - several callers of one engine, each with a step of its own. */
#include <assert.h>

#include "attention-node/engine_state.h"

engine *engine_of(attention *self) {
    engine_view *view = (engine_view *)self;
    engine *e = view->engine;
    if (view == e->active) return e;
    e->active->step = e->step;
    e->step = view->step;
    e->step.is_planned = false; /* the plan is another step's */
    e->active = view;
    return e;
}

void engine_take_from_step(engine *e, sequence *s) {
    engine_view *view = (engine_view *)s->view_in_step;
    if (view == NULL || view == e->active) return;
    engine_step *step = &view->step;
    for (uint32_t i = 0; i < step->span_count; i++) {
        if (step->sequences[i] == s) step->sequences[i] = NULL;
    }
    step->is_broken = true;
    s->view_in_step = NULL;
    sequence_rollback(&e->home, s);
    if (s->indexes != NULL) index_set_truncate(s->indexes, s->length);
}

hd_status engine_attach(attention *self, attention **out) {
    engine *e = ((engine_view *)self)->engine;
    for (uint32_t i = 0; i < e->view_count; i++) {
        engine_view *view = &e->views[i];
        if (view->is_used) continue;
        view->is_used = true;
        view->base.ops = e->own.base.ops;
        *out = &view->base;
        return HD_OK;
    }
    return HD_FULL;
}

void engine_detach(attention *self) {
    engine *e = engine_of(self);
    if (e->step.is_open) (void)engine_step_end(self);
    ((engine_view *)self)->is_used = false;
}
