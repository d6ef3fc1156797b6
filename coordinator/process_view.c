/* process_view.c - the sequence table and the worker's load, as rows. */
#include "coordinator/process_view.h"

#include <stdlib.h>

#include "coordinator/generation.h"
#include "coordinator/operator_rows.h"

#define NODE_ID "serve"

static void read_load(const served_model *model, worker_load *load) {
    model->worker->ops->load(model->worker, load);
}

void process_view_write_nodes(api *a, text_buffer *out) {
    const served_model *model = a->models->models[0];
    worker_load load;
    read_load(model, &load);
    uint64_t taken = load.blocks_sequences + load.blocks_reserved;
    operator_node node = {
        .id = NODE_ID,
        .role = NODE_ID,
        .state = atomic_load(&a->is_ending) ? "draining" : "ready",
        .model = model->limits.model_name,
        .kv_bytes = load.blocks_total > 0 ? model->info.kv_bytes / load.blocks_total * taken : 0,
        .kv_capacity = model->info.kv_bytes,
        .sequences = sequence_table_count(a->sequences),
    };
    text_buffer_text(out, "[");
    operator_rows_node(out, true, &node);
    text_buffer_text(out, "]");
}

void process_view_write_steps(api *a, text_buffer *out) {
    worker_load load;
    read_load(a->models->models[0], &load);
    text_buffer_text(out, "[");
    operator_rows_steps(out, true, NODE_ID, &load);
    text_buffer_text(out, "]");
}

typedef struct writing {
    text_buffer *out;
    uint64_t now_ns;
    bool is_first;
} writing;

static void write_one(generation *g, void *context) {
    writing *w = context;
    operator_sequence row;
    generation_describe(g, w->now_ns, &row);
    row.worker = NODE_ID;
    operator_rows_sequence(w->out, w->is_first, &row);
    w->is_first = false;
}

void process_view_write_sequences(api *a, text_buffer *out) {
    writing w = {.out = out, .now_ns = api_now_ns(a), .is_first = true};
    text_buffer_text(out, "[");
    sequence_table_visit(a->sequences, write_one, &w);
    text_buffer_text(out, "]");
}

typedef struct search {
    uint64_t id;
    bool is_found;
} search;

static void cancel_if_it(generation *g, void *context) {
    search *s = context;
    operator_sequence row;
    generation_describe(g, 0, &row);
    if (row.id != s->id) return;
    s->is_found = true;
    generation_cancel(g);
}

hd_status process_view_cancel(api *a, const char *sequence, hd_error *error) {
    char *end = NULL;
    search s = {.id = strtoull(sequence, &end, 16)};
    if (end != sequence && *end == '\0') sequence_table_visit(a->sequences, cancel_if_it, &s);
    if (s.is_found) return HD_OK;
    return hd_error_set(error, HD_NOT_FOUND,
                        "there is no sequence '%.40s' here; `hadal sequences` lists those that are there", sequence);
}
