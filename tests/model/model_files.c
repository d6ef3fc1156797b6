/* model_files.c - files under TMPDIR. */
#include "model_files.h"

#include <assert.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/dtype.h"

static void require(int is_done, const char *what) {
    if (is_done) return;
    perror(what);
    abort();
}

void model_files_make(model_files *files) {
    const char *parent = getenv("TMPDIR");
    snprintf(files->directory, sizeof(files->directory), "%s/hadal-model-XXXXXX", parent != NULL ? parent : "/tmp");
    require(mkdtemp(files->directory) != NULL, files->directory);
}

static void path_of(const model_files *files, const char *name, char *path) {
    int length = snprintf(path, 2 * MODEL_FILES_PATH_BYTES, "%s/%s", files->directory, name);
    require(length < 2 * MODEL_FILES_PATH_BYTES, name);
}

void model_files_remove(model_files *files) {
    DIR *directory = opendir(files->directory);
    require(directory != NULL, files->directory);
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        char path[2 * MODEL_FILES_PATH_BYTES];
        path_of(files, entry->d_name, path);
        if (entry->d_name[0] != '.') require(unlink(path) == 0, path);
    }
    closedir(directory);
    require(rmdir(files->directory) == 0, files->directory);
}

static FILE *create(const model_files *files, const char *name) {
    char path[2 * MODEL_FILES_PATH_BYTES];
    path_of(files, name, path);
    FILE *file = fopen(path, "wb");
    require(file != NULL, path);
    return file;
}

void model_files_write(const model_files *files, const char *name, const void *bytes, size_t byte_count) {
    FILE *file = create(files, name);
    require(fwrite(bytes, 1, byte_count, file) == byte_count, name);
    require(fclose(file) == 0, name);
}

void model_files_write_safetensors(const model_files *files, const char *name, const char *header_json,
                                   const void *data, size_t data_bytes) {
    uint64_t length = strlen(header_json), padded = (length + 7) / 8 * 8;
    FILE *file = create(files, name);
    unsigned char length_bytes[8];
    for (unsigned i = 0; i < 8; i++) length_bytes[i] = (unsigned char)(padded >> (8 * i));
    fwrite(length_bytes, 1, sizeof(length_bytes), file);
    fprintf(file, "%s%*s", header_json, (int)(padded - length), "");
    require(fwrite(data, 1, data_bytes, file) == data_bytes, name);
    require(fclose(file) == 0, name);
}

char *model_files_merge(const char *base_json, const char *changes_json) {
    json_error_t error;
    json_t *base = json_loads(base_json, 0, &error), *changes = json_loads(changes_json, 0, &error);
    if (base == NULL || changes == NULL) {
        fprintf(stderr, "%s in %s or %s\n", error.text, base_json, changes_json);
        abort();
    }
    json_object_update(base, changes);
    const char *key;
    json_t *value;
    void *next;
    json_object_foreach_safe(base, next, key, value) {
        if (json_is_string(value) && strcmp(json_string_value(value), "<absent>") == 0) json_object_del(base, key);
    }
    char *text = json_dumps(base, JSON_COMPACT);
    json_decref(base);
    json_decref(changes);
    return text;
}

void tensor_writer_init(tensor_writer *writer) {
    *writer = (tensor_writer){.header = json_object()};
}

static float exact_value(float start, size_t index) {
    return start + (float)(index % 61) * 0.0078125f - 0.25f;
}

static uint16_t to_f16(float value) { /* exact for the values above */
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    uint32_t exponent = (bits >> 23) & 0xff;
    if (exponent <= 112) return (uint16_t)(bits >> 31 << 15);
    return (uint16_t)((bits >> 31 << 15) | ((exponent - 112) << 10) | ((bits >> 13) & 0x3ff));
}

float tensor_writer_value(const char *type, float start, size_t index) {
    float value = exact_value(start, index);
    if (strcmp(type, "BF16") == 0) return hd_bf16_to_f32(hd_f32_to_bf16(value));
    if (strcmp(type, "F16") == 0) return hd_f16_to_f32(to_f16(value));
    return value;
}

/* Room for the data of one more tensor, which the header then lists. */
static unsigned char *append(tensor_writer *writer, const char *name, const char *type, json_t *sizes, size_t bytes) {
    size_t first = writer->bytes, end = first + bytes;
    if (end > writer->capacity_bytes) {
        writer->capacity_bytes = end * 2;
        writer->data = realloc(writer->data, writer->capacity_bytes);
        require(writer->data != NULL, "realloc");
    }
    json_object_set_new(writer->header, name,
                        json_pack("{s:s, s:o, s:[I, I]}", "dtype", type, "shape", sizes, "data_offsets",
                                  (json_int_t)first, (json_int_t)end));
    writer->bytes = end;
    return writer->data + first;
}

void tensor_writer_add(tensor_writer *writer, const char *name, const char *type, unsigned rank, const uint64_t *shape,
                       float start) {
    size_t count = 1, element_bytes = strcmp(type, "F32") == 0 ? 4 : 2;
    json_t *sizes = json_array();
    for (unsigned i = 0; i < rank; i++) {
        count *= shape[i];
        json_array_append_new(sizes, json_integer((json_int_t)shape[i]));
    }
    unsigned char *data = append(writer, name, type, sizes, count * element_bytes);
    for (size_t i = 0; i < count; i++) {
        float value = exact_value(start, i);
        uint16_t half = strcmp(type, "BF16") == 0 ? hd_f32_to_bf16(value) : to_f16(value);
        const void *source = element_bytes == 4 ? (const void *)&value : (const void *)&half;
        memcpy(data + i * element_bytes, source, element_bytes);
    }
}

void tensor_writer_add_byte(tensor_writer *writer, const char *name) {
    *append(writer, name, "U8", json_pack("[i]", 1), 1) = 0;
}

void tensor_writer_write(const tensor_writer *writer, const model_files *files, const char *name) {
    char *header = json_dumps(writer->header, JSON_COMPACT);
    model_files_write_safetensors(files, name, header, writer->data, writer->bytes);
    free(header);
}

void tensor_writer_fini(tensor_writer *writer) {
    json_decref(writer->header);
    free(writer->data);
}
