/* sharded_view.c - a second step at a time: links of its own to the nodes, and the home's sequences.
 *
 * A view's nodes have the home's indices, so placements mean the same in both. What becomes of a node (it comes, is
 * lost, goes) is decided at the home and told to the views; only a step that the view itself has open finds a loss
 * first. */
#include <assert.h>

#include "attention-node/sharded_state.h"
#include "base/log.h"
#include "base/memory.h"

static hd_status add_node(sharded *view, uint32_t index, hd_error *error) {
    const shard_node *from = &view->home->nodes[index];
    shard_node *node = &view->nodes[index];
    *node = (shard_node){.heads = from->heads};
    hd_status status = sharded_node_take_memory(view, node) ? HD_OK : HD_NO_MEMORY;
    if (status == HD_OK) {
        uint32_t rows = view->config.step_rows_max * SHARDED_NODE_FACTOR;
        status = from->attention->ops->attach(from->attention, rows, &node->attention, error);
    }
    if (index >= view->node_count) view->node_count = index + 1;
    return status;
}

void sharded_view_add(sharded *home, uint32_t index) {
    for (uint32_t i = 0; i < SHARDED_VIEWS_MAX; i++) {
        if (home->views[i] == NULL) continue;
        hd_error error = {.text = ""};
        hd_status status = add_node(home->views[i], index, &error);
        if (status == HD_OK) continue;
        char name[160], reason[600];
        hd_log(HD_LOG_WARN, "attention_node_takes_one_step", "node=%s status=%s reason=%s",
               hd_log_quote(home->nodes[index].name, name, sizeof(name)), hd_status_name(status),
               hd_log_quote(error.text, reason, sizeof(reason)));
    }
}

static void remove_node(sharded *view, uint32_t index) {
    shard_node *node = &view->nodes[index];
    assert(!view->step.is_open);
    if (node->attention != NULL) node->attention->ops->close(node->attention);
    sharded_node_free_memory(node);
    *node = (shard_node){.attention = NULL};
}

void sharded_view_remove(sharded *home, uint32_t index) {
    for (uint32_t i = 0; i < SHARDED_VIEWS_MAX; i++) {
        if (home->views[i] != NULL) remove_node(home->views[i], index);
    }
}

void sharded_view_close(sharded *view) {
    for (uint32_t i = 0; i < view->node_count; i++) remove_node(view, i);
    for (uint32_t i = 0; i < SHARDED_VIEWS_MAX; i++) {
        if (view->home->views[i] == view) view->home->views[i] = NULL;
    }
    sharded_step_free_memory(view);
    hd_free(view);
}

hd_status sharded_attach(attention *self, uint32_t rows_max, attention **out, hd_error *error) {
    sharded *home = sharded_home(self);
    uint32_t slot = 0;
    while (slot < SHARDED_VIEWS_MAX && home->views[slot] != NULL) slot++;
    if (slot == SHARDED_VIEWS_MAX)
        return hd_error_set(error, HD_FULL, "there are %u steps at a time already", SHARDED_VIEWS_MAX + 1);
    sharded *view = hd_alloc_zeroed(sizeof(*view), HD_CACHE_LINE);
    if (view == NULL) return hd_error_set(error, HD_NO_MEMORY, "out of memory");
    view->base.ops = home->base.ops;
    view->home = home;
    view->config = home->config;
    view->config.tend = NULL; /* the home sees to the nodes */
    if (rows_max < view->config.step_rows_max) view->config.step_rows_max = rows_max;
    if (rows_max < view->config.sequences_max) view->config.sequences_max = rows_max;
    view->streams = home->streams;
    view->layers = home->layers;
    view->sinks = home->sinks;
    view->kv_heads = home->kv_heads;
    hd_status status = HD_OK;
    if (!sharded_step_take_memory(view)) status = hd_error_set(error, HD_NO_MEMORY, "no memory for a further step");
    for (uint32_t i = 0; i < home->node_count && status == HD_OK; i++) {
        const shard_node *node = &home->nodes[i];
        if (node->attention == NULL || node->is_lost || node->is_stage) continue;
        status = add_node(view, i, error);
        if (status != HD_PEER_LOST) continue;
        sharded_lose(home, i, status); /* as if it had gone a moment earlier */
        status = HD_OK;
    }
    if (status != HD_OK) {
        sharded_view_close(view);
        return status;
    }
    home->views[slot] = view;
    *out = &view->base;
    return HD_OK;
}
