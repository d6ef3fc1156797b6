/* tiny_model.h - a model of two layers for hash_kernels.h, and what stands in the place of files, tokenizer and
 * templates.
 *
 * Threads: read only once tiny_model_init has run. */
#ifndef TESTS_SIMULATION_TINY_MODEL_H
#define TESTS_SIMULATION_TINY_MODEL_H

#include "model/config.h"
#include "model/weights.h"

#define TINY_NAME "tiny"
#define TINY_VOCABULARY 96u
#define TINY_EOS 7u
#define TINY_KV_HEADS 2u

void tiny_model_init(void);
const model_config *tiny_config(void);
const model_weights *tiny_weights(void);

#endif
