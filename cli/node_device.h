/* node_device.h - whether a node's weights, keys and values go to a device, and how much of it they take.
 *
 * `auto` takes a GPU where there is one that can do what the model and the other flags ask for, and says in the log why
 * it does not; a device that was asked for by name is refused with the reason.
 * Threads: main thread. */
#ifndef CLI_NODE_DEVICE_H
#define CLI_NODE_DEVICE_H

#include "cli/node.h"

/* Sets node->device, node->queue and node->memory, or leaves the first two NULL: the CPU. config and settings are
 * there. */
hd_status node_device_choose(const node_options *options, node *node, hd_error *error);
void node_device_close(node *node); /* behind everything else of the node */

/* The selection auto is full on a device. */
uint64_t node_full_up_to(const node_options *options, const node *node);

#endif
