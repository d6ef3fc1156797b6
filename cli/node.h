/* node.h - a model made ready in this process: from its directory to an attention, and a worker on top of it.
 *
 *   node_open: configuration -> tokenizer -> memory plan -> pool -> weights -> engine;   node_start: the worker
 *
 * Everything that can be refused from the headers of the files is refused before weights are read. Closed in reverse
 * order.
 * Threads: main thread. */
#ifndef CLI_NODE_H
#define CLI_NODE_H

#include "attention-node/attention.h"
#include "attention-node/selection_overrides.h"
#include "base/metrics.h"
#include "base/threads.h"
#include "cli/memory_plan.h"
#include "cli/node_options.h"
#include "kernels/device.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/text/text.h"
#include "model/weights.h"
#include "worker/worker.h"

#define NODE_RUNNING_MAX 256u /* sequences that a step may have */

typedef struct node {
    node_settings settings;
    memory_plan memory;
    uint32_t running_max; /* sequences at once */
    const kernel_ops *kernels;
    kernel_device *device; /* with a queue: weights, keys and values are there; NULL: in this process */
    kernel_queue *queue;
    model_config *config;
    text_model *text; /* NULL where it was not asked for */
    hd_pool *pool;
    model_weights *weights;
    ranks *ranks;                  /* NULL where this process is the worker's only one */
    selection_overrides overrides; /* lent to the attention */
    uint64_t index_bytes;          /* of the hot memory */
    attention *attention;
    bool is_offloaded;   /* attention is somebody else's */
    hd_metrics *metrics; /* what worker and coordinator count */
    worker *worker;      /* after node_start */
} node;

/* needs_text: with a tokenizer, without which a directory is refused then. On failure node is closed already. settings
 * come from node_options_check. Logs the effective configuration. */
hd_status node_open(const node_options *options, const node_settings *settings, bool needs_text, node *node,
                    hd_error *error);
/* Another rank of a worker whose first one does all of the above: the model's weights, and products of them until that
 * one has closed. */
hd_status node_serve_rank(const node_options *options, const node_settings *settings, hd_error *error);
hd_status node_start(const node_options *options, node *node, hd_error *error);
/* drain_ms as worker_close. Accepts a node that was never opened, if it is zeroed. */
void node_close(node *node, uint64_t drain_ms);

#endif
