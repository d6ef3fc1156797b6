/* engine_device.h - the half of an engine that stores and attends, where keys and values are in a device's memory: for
 * engine*.c only, but for engine_device_check. Blocks, sequences and promises are the engine's own; what is different
 * is who computes.
 *
 * Pages on a device are rows of tokens (kernels/cuda/attend_arguments.h). All layers have pages of one size, at the
 * same offset from the layer's first one; so what a step's rows see is written down once for all layers of the same
 * window, copied to the device as one region, and a layer is a handful of launches behind each other in the queue.
 * Nobody waits for it; the tables are written again when the queue has done what was asked for before.
 *
 * What is not here yet, and is refused by name: selections other than full, ranges of positions, a cold tier, other
 * types than bf16. Blocks stay where they were taken: none moves between the device's and pinned memory.
 * Threads: as the engine. */
#ifndef ATTENTION_NODE_ENGINE_DEVICE_H
#define ATTENTION_NODE_ENGINE_DEVICE_H

#include "attention-node/engine.h"

struct engine;
typedef struct engine_device engine_device;

/* Refuses what a device does not compute, by table, types and tiers. */
hd_status engine_device_check(const engine_config *config, hd_error *error);
/* Memory of the device beside the pages of so many blocks, those in pinned memory included. */
uint64_t engine_device_bytes(const engine_config *config, uint32_t block_count);

/* Behind engine_memory_open; sets engine->device. */
hd_status engine_device_open(struct engine *engine, const engine_config *config, hd_error *error);
void engine_device_close(engine_device *device); /* accepts NULL; waits for the queue */

/* The tables of a step that has just begun. HD_FULL: they have no room for its rows. */
hd_status engine_device_begin(struct engine *engine, hd_error *error);
/* Asks for a layer's work. HD_INVALID: tensors of another place, queue or type. */
hd_status engine_device_submit(struct engine *engine, const attention_layer_call *call);

#endif
