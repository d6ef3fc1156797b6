/* safetensors_index.c - the weight_map, sorted by file. */
#include "model/safetensors_index.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "model/json_fields.h"

/* The file is opened by this name, and a model directory must not reach outside itself. */
static bool is_plain_name(const char *name) {
    return name[0] != '\0' && name[0] != '.' && strchr(name, '/') == NULL;
}

static int compare_entries(const void *left, const void *right) {
    const safetensors_index_entry *a = left, *b = right;
    int order = strcmp(a->file, b->file);
    return order != 0 ? order : strcmp(a->tensor, b->tensor);
}

static hd_status read_weight_map(const char *path, const json_t *map, safetensors_index *index, hd_error *error) {
    const char *tensor;
    json_t *value;
    json_object_foreach((json_t *)map, tensor, value) {
        const char *file = json_string_value(value);
        if (file == NULL || !is_plain_name(file)) {
            return hd_error_set(error, HD_CORRUPT,
                                "%s: 'weight_map' of tensor '%.100s' must be the name of a file in this directory",
                                path, tensor);
        }
        index->entries[index->count++] = (safetensors_index_entry){.tensor = tensor, .file = file};
    }
    qsort(index->entries, index->count, sizeof(*index->entries), compare_entries);
    for (uint32_t i = 0; i < index->count; i++) {
        if (i == 0 || strcmp(index->entries[i].file, index->entries[i - 1].file) != 0) index->file_count++;
    }
    return HD_OK;
}

static hd_status read_root(const char *path, const json_t *root, safetensors_index *index, hd_error *error) {
    const json_t *map = json_object_get(root, "weight_map");
    if (json_object_size(map) == 0)
        return hd_error_set(error, HD_CORRUPT, "%s: 'weight_map' must be an object with a file per tensor", path);
    index->entries =
        hd_alloc_zeroed(json_object_size(map) * sizeof(*index->entries), _Alignof(safetensors_index_entry));
    if (index->entries == NULL) return hd_error_set(error, HD_NO_MEMORY, "%s: no memory for its tensor names", path);
    return read_weight_map(path, map, index, error);
}

hd_status safetensors_index_parse(const char *path, const char *text, size_t text_bytes, safetensors_index *index,
                                  hd_error *error) {
    safetensors_index read = {0};
    json_t *root = NULL;
    hd_status status = json_object_parse(path, text, text_bytes, &root, error);
    if (status != HD_OK) return status;
    read.text = root;
    status = read_root(path, root, &read, error);
    if (status == HD_OK) *index = read;
    else safetensors_index_fini(&read);
    return status;
}

void safetensors_index_fini(safetensors_index *index) {
    hd_free(index->entries);
    json_decref(index->text);
    *index = (safetensors_index){0};
}
