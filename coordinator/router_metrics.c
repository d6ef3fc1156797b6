/* router_metrics.c - what nodes have counted, as this coordinator has last heard it. */
#include <inttypes.h>

#include "coordinator/operator_rows.h"
#include "coordinator/router_state.h"

#define LABEL_BYTES (MEMBERSHIP_NAME_BYTES * 2 + 16)

typedef struct writing {
    router *router;
    text_buffer *out;
} writing;

static void write_steps(void *context) {
    writing *w = context;
    bool is_first = true;
    text_buffer_text(w->out, "[");
    for (const worker_link *link = w->router->links; link != NULL; link = link->next) {
        const worker_load *load = &link->load;
        if (!link->is_connected) continue;
        operator_rows_steps(w->out, is_first, link->node.id, load);
        is_first = false;
    }
    text_buffer_text(w->out, "]");
}

void router_write_steps(router *r, text_buffer *out) {
    writing w = {r, out};
    rpc_loop_call(r->config.loop, write_steps, &w);
}

static void write_family(text_buffer *out, const char *name, const char *type, const char *help) {
    text_buffer_format(out, "# HELP hadal:%s %s\n# TYPE hadal:%s %s\n", name, help, name, type);
}

static void write_value(text_buffer *out, const char *name, const char *node, const char *more, uint64_t value) {
    char label[LABEL_BYTES];
    text_buffer_format(out, "hadal:%s{%s%s} %" PRIu64 "\n", name, hd_metrics_label("node", node, label, sizeof(label)),
                       more, value);
}

static void write_workers(const router *r, text_buffer *out) {
    write_family(out, "node_steps_total", "counter", "Steps of a worker.");
    for (const worker_link *l = r->links; l != NULL; l = l->next)
        if (l->is_connected) write_value(out, "node_steps_total", l->node.id, "", l->load.steps);
    write_family(out, "node_step_rows_total", "counter", "Rows of a worker's steps, prefill and decode.");
    for (const worker_link *l = r->links; l != NULL; l = l->next)
        if (l->is_connected) write_value(out, "node_step_rows_total", l->node.id, "", l->load.step_rows);
    write_family(out, "node_step_microseconds_total", "counter",
                 "Time of a worker's steps: products and sampling; the way to attention nodes and back; attention.");
    for (const worker_link *l = r->links; l != NULL; l = l->next) {
        if (!l->is_connected) continue;
        write_value(out, "node_step_microseconds_total", l->node.id, ",part=\"dense\"", l->load.dense_us);
        write_value(out, "node_step_microseconds_total", l->node.id, ",part=\"wire\"", l->load.wire_us);
        write_value(out, "node_step_microseconds_total", l->node.id, ",part=\"attention\"", l->load.attention_us);
    }
}

static void write_attention_nodes(const router *r, text_buffer *out) {
    write_family(out, "node_appended_tokens_total", "counter",
                 "Positions whose keys and values an attention node has stored, each time that they were.");
    for (const watched_node *n = r->nodes; n != NULL; n = n->next)
        if (n->channel != NULL) write_value(out, "node_appended_tokens_total", n->node.id, "", n->appended_tokens);
    write_family(out, "node_kv_bytes", "gauge", "Keys and values that an attention node has promised memory for.");
    for (const watched_node *n = r->nodes; n != NULL; n = n->next)
        if (n->channel != NULL) write_value(out, "node_kv_bytes", n->node.id, "", n->kv_bytes);
}

static void write_metrics(void *context) {
    writing *w = context;
    write_workers(w->router, w->out);
    write_attention_nodes(w->router, w->out);
}

void router_write_metrics(router *r, text_buffer *out) {
    writing w = {r, out};
    rpc_loop_call(r->config.loop, write_metrics, &w);
}
