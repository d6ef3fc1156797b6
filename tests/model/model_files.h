/* model_files.h - model directories that tests write, whole or spoilt.
 *
 * A directory lies under TMPDIR and dies with model_files_remove. What cannot be written ends the test. */
#ifndef TESTS_MODEL_MODEL_FILES_H
#define TESTS_MODEL_MODEL_FILES_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "model/config.h"

#define MODEL_FILES_PATH_BYTES 512

typedef struct model_files {
    char directory[MODEL_FILES_PATH_BYTES];
} model_files;

void model_files_make(model_files *files);
void model_files_remove(model_files *files);
void model_files_write(const model_files *files, const char *name, const void *bytes, size_t byte_count);
/* header_json, padded to 8 bytes, its length before it, then the data. */
void model_files_write_safetensors(const model_files *files, const char *name, const char *header_json,
                                   const void *data, size_t data_bytes);

/* The fields of changes laid over those of base; a field that is "<absent>" there is removed. The caller owns the text
 * (free). */
char *model_files_merge(const char *base_json, const char *changes_json);

/* Tensors that fit a config: every element counts on from a start that depends on the tensor, so that no two are
 * alike. */
typedef struct tensor_writer {
    json_t *header;
    unsigned char *data;
    size_t bytes, capacity_bytes;
} tensor_writer;
void tensor_writer_init(tensor_writer *writer);
void tensor_writer_add(tensor_writer *writer, const char *name, const char *type, unsigned rank, const uint64_t *shape,
                       float start);
/* One byte, so that what follows lies at odd addresses. */
void tensor_writer_add_byte(tensor_writer *writer, const char *name);
void tensor_writer_write(const tensor_writer *writer, const model_files *files, const char *name);
void tensor_writer_fini(tensor_writer *writer);
/* What tensor_writer_add wrote at an index, as float. */
float tensor_writer_value(const char *type, float start, size_t index);

#endif
