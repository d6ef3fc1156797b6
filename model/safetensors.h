/* safetensors.h - the tensors of a model directory, mapped: one model.safetensors, or shards listed in an index file.
 *
 *   1. Every header is checked before a tensor is given out: entries are well formed, types known, sizes equal to
 *      shape times type, and the tensors of a file lie one after another without overlap, without holes and up to the
 *      last byte, as the format demands.
 *   2. Nothing is copied. A tensor's bytes are read only and valid until close. They may lie at any address: old
 *      writers do not align.
 *   3. Errors name the file and the tensor.
 * A file that is cut while it is mapped ends the process when the lost bytes are read; do not edit a model in place
 * while it loads.
 * Threads: open and close once; everything else from any thread. */
#ifndef MODEL_SAFETENSORS_H
#define MODEL_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/dtype.h"

#define SAFETENSORS_RANK_MAX 8u
#define SAFETENSORS_HEADER_BYTES_MAX 100000000u /* the format's own limit */

typedef struct safetensors safetensors;

typedef struct safetensors_tensor {
    const char *name;
    const char *type; /* as the file spells it: "BF16" */
    bool is_float;    /* type is one that weights may have: BF16, F16 or F32, and dtype says which */
    hd_dtype dtype;
    uint32_t rank;
    uint64_t shape[SAFETENSORS_RANK_MAX];
    uint64_t bytes;
    const unsigned char *data;
    uint32_t file;
} safetensors_tensor;

hd_status safetensors_open(const char *model_directory, safetensors **set, hd_error *error);
void safetensors_close(safetensors *set); /* accepts NULL */

uint32_t safetensors_file_count(const safetensors *set);
uint32_t safetensors_count(const safetensors *set);                                   /* of tensors */
const safetensors_tensor *safetensors_at(const safetensors *set, uint32_t index);     /* in the order of names */
const safetensors_tensor *safetensors_find(const safetensors *set, const char *name); /* NULL when there is none */
uint32_t safetensors_index_of(const safetensors *set, const safetensors_tensor *tensor);
const char *safetensors_path(const safetensors *set, const safetensors_tensor *tensor); /* of the tensor's file */

/* Copies bytes of a tensor without mapping their pages into this process: for the few that are read while serving,
 * whose neighbours would otherwise count as this process's memory. A disk that fails here ends the process, as it does
 * for bytes of the mapping. */
void safetensors_read(const safetensors *set, const safetensors_tensor *tensor, uint64_t offset, size_t bytes,
                      void *to);

/* Advice about bytes of the mapping, rounded inwards to pages: they will be read in order; they are not needed now. */
void safetensors_expect(const void *data, uint64_t bytes);
void safetensors_drop(const void *data, uint64_t bytes);

#endif
