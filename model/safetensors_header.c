/* safetensors_header.c - lengths first, then JSON, then each entry, then how the entries lie together. */
#include "model/safetensors_header.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "model/json_fields.h"

#define LENGTH_BYTES 8u
#define METADATA_NAME "__metadata__"

static const struct {
    const char *name;
    uint8_t bits;
    bool is_float;
    hd_dtype dtype;
} types[] = {
    {"F32", 32, true, HD_F32}, {"BF16", 16, true, HD_BF16}, {"F16", 16, true, HD_F16}, {"F64", 64, false, 0},
    {"I64", 64, false, 0},     {"I32", 32, false, 0},       {"I16", 16, false, 0},     {"I8", 8, false, 0},
    {"U64", 64, false, 0},     {"U32", 32, false, 0},       {"U16", 16, false, 0},     {"U8", 8, false, 0},
    {"BOOL", 8, false, 0},     {"C64", 64, false, 0},       {"F8_E4M3", 8, false, 0},  {"F8_E5M2", 8, false, 0},
    {"F8_E8M0", 8, false, 0},  {"F6_E2M3", 6, false, 0},    {"F6_E3M2", 6, false, 0},  {"F4", 4, false, 0},
};

/* What sentences need: the file, and where its tensors start. */
typedef struct header_reader {
    const char *path;
    const unsigned char *data;
    uint64_t data_bytes;
    hd_error *error;
} header_reader;

static hd_status tensor_fail(const header_reader *reader, const char *name, const char *what) {
    return hd_error_set(reader->error, HD_CORRUPT, "%s: tensor '%.100s': %s", reader->path, name, what);
}

static hd_status read_type(const header_reader *reader, const json_t *entry, safetensors_tensor *tensor,
                           uint8_t *bits) {
    const char *name = json_string_value(json_object_get(entry, "dtype"));
    if (name == NULL) return tensor_fail(reader, tensor->name, "'dtype' must be a string");
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        if (strcmp(types[i].name, name) != 0) continue;
        tensor->type = types[i].name;
        tensor->is_float = types[i].is_float;
        tensor->dtype = types[i].dtype;
        *bits = types[i].bits;
        return HD_OK;
    }
    return hd_error_set(reader->error, HD_UNSUPPORTED, "%s: tensor '%.100s': unknown dtype '%.40s'", reader->path,
                        tensor->name, name);
}

/* Sets the shape and what it needs in bytes. */
static hd_status read_shape(const header_reader *reader, const json_t *entry, uint8_t bits, safetensors_tensor *tensor,
                            uint64_t *bytes) {
    const json_t *shape = json_object_get(entry, "shape");
    if (!json_is_array(shape)) return tensor_fail(reader, tensor->name, "'shape' must be an array");
    if (json_array_size(shape) > SAFETENSORS_RANK_MAX)
        return tensor_fail(reader, tensor->name, "'shape' has too many dimensions");
    tensor->rank = (uint32_t)json_array_size(shape);
    uint64_t all_bits = bits;
    for (uint32_t i = 0; i < tensor->rank; i++) {
        const json_t *value = json_array_get(shape, i);
        if (!json_is_integer(value) || json_integer_value(value) < 0) {
            return tensor_fail(reader, tensor->name, "'shape' must hold sizes");
        }
        tensor->shape[i] = (uint64_t)json_integer_value(value);
        if (__builtin_mul_overflow(all_bits, tensor->shape[i], &all_bits)) {
            return tensor_fail(reader, tensor->name, "'shape' is larger than any file");
        }
    }
    if (all_bits % 8 != 0) return tensor_fail(reader, tensor->name, "'shape' is no whole number of bytes");
    *bytes = all_bits / 8;
    return HD_OK;
}

static hd_status read_offsets(const header_reader *reader, const json_t *entry, uint64_t bytes,
                              safetensors_tensor *tensor) {
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last) ||
        json_integer_value(first) < 0 || json_integer_value(last) < json_integer_value(first)) {
        return tensor_fail(reader, tensor->name, "'data_offsets' must be two byte positions in order");
    }
    uint64_t begin = (uint64_t)json_integer_value(first), end = (uint64_t)json_integer_value(last);
    if (end > reader->data_bytes) {
        return hd_error_set(reader->error, HD_CORRUPT,
                            "%s: tensor '%.100s' ends at byte %" PRIu64 " of the data, but the file has only %" PRIu64
                            ": it is truncated",
                            reader->path, tensor->name, end, reader->data_bytes);
    }
    if (end - begin != bytes) {
        return hd_error_set(reader->error, HD_CORRUPT,
                            "%s: tensor '%.100s' has %" PRIu64 " bytes, but its shape and dtype need %" PRIu64,
                            reader->path, tensor->name, end - begin, bytes);
    }
    tensor->bytes = bytes;
    tensor->data = reader->data + begin;
    return HD_OK;
}

static hd_status read_entry(const header_reader *reader, const json_t *entry, safetensors_tensor *tensor) {
    if (!json_is_object(entry)) return tensor_fail(reader, tensor->name, "must be an object");
    uint8_t bits = 0;
    uint64_t bytes = 0;
    hd_status status = read_type(reader, entry, tensor, &bits);
    if (status == HD_OK) status = read_shape(reader, entry, bits, tensor, &bytes);
    if (status == HD_OK) status = read_offsets(reader, entry, bytes, tensor);
    return status;
}

static int compare_places(const void *left, const void *right) {
    const safetensors_tensor *a = left, *b = right;
    if (a->data != b->data) return a->data < b->data ? -1 : 1;
    return a->bytes < b->bytes ? -1 : a->bytes > b->bytes; /* an empty tensor first */
}

/* The tensors, in the order of the file, must follow each other from the first byte of the data to the last. */
static hd_status check_places(const header_reader *reader, const safetensors_header *header) {
    const unsigned char *end = reader->data;
    for (uint32_t i = 0; i < header->count; i++) {
        const safetensors_tensor *tensor = &header->tensors[i];
        if (tensor->data < end) {
            return hd_error_set(reader->error, HD_CORRUPT, "%s: tensor '%.100s' overlaps tensor '%.100s'", reader->path,
                                tensor->name, header->tensors[i - 1].name);
        }
        if (tensor->data > end) return tensor_fail(reader, tensor->name, "there is a hole in the file before it");
        end = tensor->data + tensor->bytes;
    }
    uint64_t rest = reader->data_bytes - (uint64_t)(end - reader->data);
    if (rest == 0) return HD_OK;
    return hd_error_set(reader->error, HD_CORRUPT, "%s: %" PRIu64 " bytes at the end belong to no tensor", reader->path,
                        rest);
}

static size_t count_name_bytes(const json_t *root) {
    size_t bytes = 0;
    const char *name;
    json_t *entry;
    json_object_foreach((json_t *)root, name, entry) bytes += strlen(name) + 1;
    return bytes;
}

/* Fills header->tensors, whose names are copied behind the last one. */
static hd_status read_entries(const header_reader *reader, const json_t *root, safetensors_header *header) {
    char *names = (char *)(header->tensors + json_object_size(root));
    const char *name;
    json_t *entry;
    json_object_foreach((json_t *)root, name, entry) {
        if (strcmp(name, METADATA_NAME) == 0) continue;
        safetensors_tensor *tensor = &header->tensors[header->count++];
        tensor->name = strcpy(names, name);
        names += strlen(name) + 1;
        hd_status status = read_entry(reader, entry, tensor);
        if (status != HD_OK) return status;
    }
    qsort(header->tensors, header->count, sizeof(*header->tensors), compare_places);
    return check_places(reader, header);
}

static hd_status read_root(const header_reader *reader, const json_t *root, safetensors_header *header) {
    safetensors_header read = {0};
    read.tensors = hd_alloc_zeroed(json_object_size(root) * sizeof(*read.tensors) + count_name_bytes(root),
                                   _Alignof(safetensors_tensor));
    if (read.tensors == NULL)
        return hd_error_set(reader->error, HD_NO_MEMORY, "%s: no memory for its header", reader->path);
    hd_status status = read_entries(reader, root, &read);
    if (status == HD_OK) *header = read;
    else hd_free(read.tensors);
    return status;
}

hd_status safetensors_header_parse(const char *path, const unsigned char *file, uint64_t file_bytes,
                                   safetensors_header *header, hd_error *error) {
    if (file_bytes < LENGTH_BYTES) {
        return hd_error_set(error, HD_CORRUPT, "%s: has %" PRIu64 " bytes, too few for a safetensors file", path,
                            file_bytes);
    }
    uint64_t header_bytes = 0;
    for (unsigned i = 0; i < LENGTH_BYTES; i++) header_bytes |= (uint64_t)file[i] << (8 * i);
    if (header_bytes > SAFETENSORS_HEADER_BYTES_MAX) {
        return hd_error_set(error, HD_CORRUPT, "%s: its header claims %" PRIu64 " bytes; at most %u are allowed", path,
                            header_bytes, SAFETENSORS_HEADER_BYTES_MAX);
    }
    if (header_bytes > file_bytes - LENGTH_BYTES) {
        return hd_error_set(error, HD_CORRUPT,
                            "%s: its header claims %" PRIu64 " bytes, but the file has %" PRIu64 ": it is truncated",
                            path, header_bytes, file_bytes);
    }
    header_reader reader = {
        .path = path,
        .data = file + LENGTH_BYTES + header_bytes,
        .data_bytes = file_bytes - LENGTH_BYTES - header_bytes,
        .error = error,
    };
    json_t *root = NULL;
    hd_status status = json_object_parse(path, (const char *)file + LENGTH_BYTES, header_bytes, &root, error);
    if (status != HD_OK) return status;
    status = read_root(&reader, root, header);
    json_decref(root);
    return status;
}
