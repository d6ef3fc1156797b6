/* engine_select.c - rows that attend to a part of their sequence.
 *
 * A sparse row is worked on one KV head at a time, by one thread from first to last: the tokens that are attended to
 * because of where they are go through the same leaves and the same tree as full attention, so that a selection that
 * leaves nothing out gives the same bits. */
#include <assert.h>
#include <math.h>

#include "attention-node/engine_state.h"

/* ---- Which rows ---- */

void engine_ask_selection(const engine *e, const engine_layer *layer, const sequence *s, uint64_t position,
                          uint32_t head, selection_answer *answer) {
    *answer = (selection_answer){.is_everything = true};
    if (layer->plan.window != 0 || position < s->exact_count) return;
    selection_question question = {
        .layer = e->step.call.layer, .head = head, .position = position, .granule = INDEX_GRAIN};
    s->selection.ops->choose(&s->selection, &question, answer);
    if (!selection_is_full(&s->selection)) selection_overrides_apply(e->overrides, question.layer, head, answer);
    if (!answer->is_everything) assert(answer->sinks_end <= answer->recent_first && answer->recent_first <= position);
}

static bool sees_everything(const engine *e, const engine_layer *layer, const sequence *s, uint64_t position) {
    selection_answer answer = {.is_everything = true};
    for (uint32_t head = 0; head < layer->plan.kv_heads && answer.is_everything; head++)
        engine_ask_selection(e, layer, s, position, head, &answer);
    return answer.is_everything;
}

/* A prompt's rows come first and see everything; from the first row on that does not, all are sparse. */
static uint32_t count_full_rows(const engine *e, const engine_layer *layer, const sequence *s, const plan_span *span) {
    if (selection_is_full(&s->selection) || layer->plan.window != 0 || span->is_replica) return span->row_count;
    uint32_t row = 0;
    if (s->exact_count > span->first_position) {
        uint64_t exact = s->exact_count - span->first_position;
        row = exact < span->row_count ? (uint32_t)exact : span->row_count;
    }
    while (row < span->row_count && sees_everything(e, layer, s, span->first_position + row)) row++;
    return row;
}

bool engine_select_rows(engine *e, const engine_layer *layer) {
    engine_step *step = &e->step;
    uint32_t full_before = step->full_count, full = 0;
    bool is_same = true;
    step->sparse_count = 0;
    for (uint32_t i = 0; i < step->span_count; i++) {
        plan_span span = step->spans[i];
        if (span.is_replica) continue;
        uint32_t row_count = span.row_count;
        span.row_count = count_full_rows(e, layer, step->sequences[i], &span);
        for (uint32_t row = span.row_count; row < row_count; row++) {
            step->sparse_rows[step->sparse_count++] = (engine_sparse_row){
                .sequence = step->sequences[i], .row = span.first_row + row, .position = span.first_position + row};
        }
        if (span.row_count == 0) continue;
        plan_span *known = &step->full_spans[full++];
        is_same = is_same && full <= full_before && known->first_row == span.first_row &&
                  known->row_count == span.row_count && known->runs == span.runs;
        *known = span;
    }
    step->full_count = full;
    return is_same && full == full_before;
}

/* ---- Attending ---- */

/* The group at or after `group` that has tokens to see: those between sinks and newest have none. */
static uint64_t next_group(const selection_answer *answer, uint64_t group) {
    uint64_t recent = answer->recent_first / HD_GROUP_TOKENS;
    if (answer->is_everything || group * HD_GROUP_TOKENS < answer->sinks_end || group >= recent) return group;
    return recent;
}

static uint64_t clamp(uint64_t value, uint64_t least, uint64_t most) {
    return value < least ? least : value > most ? most : value;
}

/* What the answer shows of a group: [ranges[0], ranges[1]) and [ranges[2], ranges[3]). */
static void parts_of(const engine_sparse_row *row, const selection_answer *answer, uint64_t group, uint64_t ranges[4]) {
    uint64_t begin = group * HD_GROUP_TOKENS, end = clamp(begin + HD_GROUP_TOKENS, begin, row->position + 1);
    ranges[0] = begin;
    ranges[1] = answer->is_everything ? end : clamp(answer->sinks_end, begin, end);
    ranges[2] = answer->is_everything ? end : clamp(answer->recent_first, begin, end);
    ranges[3] = end;
}

/* The same as spans of pages, in ascending position. */
static uint32_t gather_group(const engine *e, const engine_layer *layer, const engine_sparse_row *row,
                             const selection_answer *answer, uint64_t group, uint32_t head, kernel_span *spans) {
    const sequence *s = row->sequence;
    uint64_t at[4];
    parts_of(row, answer, group, at);
    uint32_t count = engine_gather_spans(e, layer, s->runs, s->run_count, at[0], at[1], head, spans);
    return count + engine_gather_spans(e, layer, s->runs, s->run_count, at[2], at[3], head, spans + count);
}

bool engine_pin_sparse(engine *e, const engine_layer *layer, const engine_sparse_row *row, uint32_t head,
                       uint64_t round) {
    const sequence *s = row->sequence;
    selection_answer answer;
    engine_ask_selection(e, layer, s, row->position, head, &answer);
    uint64_t last = row->position / HD_GROUP_TOKENS, at[4];
    for (uint64_t group = next_group(&answer, 0); group <= last; group = next_group(&answer, group + 1)) {
        parts_of(row, &answer, group, at);
        if (!engine_pin_spans(e, layer, s->runs, s->run_count, at[0], at[1], head, round, false)) return false;
        if (!engine_pin_spans(e, layer, s->runs, s->run_count, at[2], at[3], head, round, false)) return false;
    }
    return true;
}

void engine_find_sparse(engine *e, const engine_layer *layer, unsigned thread, const engine_sparse_row *row,
                        uint32_t head, engine_found *found) {
    selection_answer answer;
    engine_ask_selection(e, layer, row->sequence, row->position, head, &answer);
    found->count = 0;
    if (answer.is_searched) engine_find(e, layer, thread, row, head, &answer, found);
}

void engine_attend_sparse(engine *e, const engine_layer *layer, unsigned thread, const engine_sparse_row *row,
                          uint32_t head, const engine_found *known, bool is_alone) {
    const engine_thread *t = &e->threads[thread];
    uint32_t group_size = layer->plan.group_size;
    for (uint32_t g = 0; g < group_size; g++) t->positions[g] = row->position;
    kernel_attend call = {.shape = layer->shape,
                          .scale = layer->table.scale,
                          .soft_cap = layer->table.soft_cap,
                          .queries = engine_queries(e, layer, row->row, head),
                          .query_stride = layer->query_dim,
                          .positions = t->positions,
                          .row_count = group_size,
                          .spans = t->spans,
                          .scratch = t->kernel_scratch};
    selection_answer answer;
    engine_ask_selection(e, layer, row->sequence, row->position, head, &answer);
    merge_tree tree;
    merge_tree_init(&tree, e->kernels, group_size, layer->shape.value_dim);
    uint64_t last = row->position / HD_GROUP_TOKENS;
    for (uint64_t group = next_group(&answer, 0); group <= last; group = next_group(&answer, group + 1)) {
        if (is_alone) {
            uint64_t at[4];
            parts_of(row, &answer, group, at);
            engine_pin_alone(e, layer, row, at, head);
        }
        call.span_count = gather_group(e, layer, row, &answer, group, head, t->spans);
        if (call.span_count == 0) continue;
        uint32_t index = merge_tree_begin(&tree, 0, group);
        assert(index < e->partials_per_thread);
        call.partial = engine_scratch_partial(e, t, index);
        e->kernels->attend(&call);
        merge_tree_push(&tree, &call.partial);
    }
    kernel_partial result;
    bool has_seen = merge_tree_collapse(&tree, &result); /* itself at least */
    assert(has_seen);
    (void)has_seen;
    if (answer.is_searched) {
        engine_found *found = &e->finders[thread].found;
        if (known == NULL) engine_find(e, layer, thread, row, head, &answer, found);
        engine_attend_found(e, layer, thread, row, head, known != NULL ? known : found, &call, &result, is_alone);
    }
    engine_write_output(e, layer, row->row, 1, head, &result);
}
