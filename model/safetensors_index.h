/* safetensors_index.h - model.safetensors.index.json: which shard holds which tensor.
 *
 * Threads: pure. */
#ifndef MODEL_SAFETENSORS_INDEX_H
#define MODEL_SAFETENSORS_INDEX_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct safetensors_index_entry {
    const char *tensor;
    const char *file; /* a plain name in the model directory */
} safetensors_index_entry;

typedef struct safetensors_index {
    safetensors_index_entry *entries; /* in the order of files, then of tensors */
    uint32_t count;
    uint32_t file_count; /* different ones */
    void *text;          /* what the entries point into */
} safetensors_index;

hd_status safetensors_index_parse(const char *path, const char *text, size_t text_bytes, safetensors_index *index,
                                  hd_error *error);
void safetensors_index_fini(safetensors_index *index); /* accepts an empty one */

#endif
