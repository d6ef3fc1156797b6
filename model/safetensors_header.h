/* safetensors_header.h - the header of one safetensors file, checked against the file's size.
 *
 *     8 bytes: header length, little endian | header: JSON, an object per tensor | the tensors' bytes
 *
 * Works on bytes in memory, so that foreign bytes can be thrown at it without a file.
 * Threads: pure. */
#ifndef MODEL_SAFETENSORS_HEADER_H
#define MODEL_SAFETENSORS_HEADER_H

#include "model/safetensors.h"

typedef struct safetensors_header {
    safetensors_tensor *tensors; /* in the order of the file; hd_free frees them, and their names with them */
    uint32_t count;
} safetensors_header;

/* file..file + file_bytes is the whole file; only its header is read. path is for sentences. */
hd_status safetensors_header_parse(const char *path, const unsigned char *file, uint64_t file_bytes,
                                   safetensors_header *header, hd_error *error);

#endif
