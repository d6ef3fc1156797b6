/* rope_read.h - the rotary part of config.json, in both of its forms.
 *
 *     "rope_theta": 1e6, "rope_scaling": {"type" or "rope_type": ..., "factor": ...}
 *     "rope_parameters": {"rope_type": ..., "rope_theta": ..., "factor": ...}, flat or equal objects per layer type
 *
 * Threads: the caller's. */
#ifndef MODEL_ROPE_READ_H
#define MODEL_ROPE_READ_H

#include "model/architecture.h"
#include "model/config.h"
#include "model/json_fields.h"

/* fields: the whole config.json. What is wrong stays in fields->status. */
void rope_config_read(json_fields *fields, const model_architecture *architecture, uint32_t head_dim,
                      uint64_t max_positions, rope_config *rope);

#endif
