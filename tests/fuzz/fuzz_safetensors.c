/* fuzz_safetensors.c - a safetensors file, or the index of several. The first byte says which:
 *
 *   f  the file as it is
 *   h  a header, whose length is put before it, and 4 KiB of data behind it
 *   i  the index file */
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "model/safetensors_header.h"
#include "model/safetensors_index.h"

#define LENGTH_BYTES 8u
#define DATA_BYTES 4096u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool is_kept) {
    if (!is_kept) abort();
}

/* What the format promises of an accepted file: tensors one after another, inside it. */
static void check_header(const safetensors_header *header, const uint8_t *file, size_t size) {
    const unsigned char *end = file;
    for (uint32_t i = 0; i < header->count; i++) {
        const safetensors_tensor *tensor = &header->tensors[i];
        require(tensor->data >= end && tensor->bytes <= (size_t)(file + size - tensor->data));
        require(tensor->name != NULL && tensor->type != NULL && tensor->rank <= SAFETENSORS_RANK_MAX);
        end = tensor->data + tensor->bytes;
    }
    require(header->count == 0 || end == file + size);
}

static void parse_file(const uint8_t *file, size_t size) {
    safetensors_header header = {0};
    hd_error error = {{0}};
    hd_status status = safetensors_header_parse("model.safetensors", file, size, &header, &error);
    require((status == HD_OK) == (error.text[0] == '\0'));
    if (status == HD_OK) check_header(&header, file, size);
    hd_free(header.tensors);
}

static void parse_header(const uint8_t *text, size_t size) {
    uint8_t *file = calloc(1, LENGTH_BYTES + size + DATA_BYTES);
    if (file == NULL) return;
    for (unsigned i = 0; i < LENGTH_BYTES; i++) file[i] = (uint8_t)((uint64_t)size >> (8 * i));
    memcpy(file + LENGTH_BYTES, text, size);
    parse_file(file, LENGTH_BYTES + size + DATA_BYTES);
    free(file);
}

static void parse_index(const uint8_t *text, size_t size) {
    safetensors_index index = {0};
    hd_error error = {{0}};
    hd_status status =
        safetensors_index_parse("model.safetensors.index.json", (const char *)text, size, &index, &error);
    require((status == HD_OK) == (error.text[0] == '\0'));
    require(status != HD_OK || (index.count > 0 && index.file_count > 0 && index.file_count <= index.count));
    for (uint32_t i = 0; i < index.count; i++) require(strchr(index.entries[i].file, '/') == NULL);
    safetensors_index_fini(&index);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    if (data[0] == 'f') parse_file(data + 1, size - 1);
    if (data[0] == 'h') parse_header(data + 1, size - 1);
    if (data[0] == 'i') parse_index(data + 1, size - 1);
    return 0;
}
