/* generation_read.h - where a text begins and ends, and how the model's makers sample from it.
 *
 * Threads: the caller's. */
#ifndef MODEL_GENERATION_READ_H
#define MODEL_GENERATION_READ_H

#include "model/config_read.h"
#include "model/json_fields.h"

/* bos_token_id and eos_token_id (one or an array), of either file. Given ones replace what config holds. */
void generation_ids_read(json_fields *fields, bool has_default_ids, model_config *config);

/* generation_config.json over what config.json said; without the file, neutral sampling. */
hd_status generation_config_read(const config_text *source, model_config *config, hd_error *error);

#endif
