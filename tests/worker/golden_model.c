#include "tests/worker/golden_model.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/worker/rig.h"

#define MODELS "tests/golden/models"

static int is_model(const struct dirent *entry) {
    return entry->d_name[0] != '.';
}

size_t golden_model_names(const char *const **names) {
    static const char **known;
    static size_t count;
    if (known == NULL) {
        struct dirent **entries = NULL;
        int found = scandir(MODELS, &entries, is_model, alphasort);
        if (found <= 0) fail_msg("no models in %s", MODELS);
        known = calloc((size_t)found, sizeof(*known));
        assert_non_null(known);
        for (; count < (size_t)found; count++) {
            known[count] = strdup(entries[count]->d_name);
            free(entries[count]);
        }
        free(entries);
    }
    *names = known;
    return count;
}

static double number(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    if (!json_is_number(value)) fail_msg("golden.json has no number '%s'", key);
    return json_number_value(value);
}

void golden_model_open(golden_model *m, const char *name) {
    *m = (golden_model){0};
    snprintf(m->directory, sizeof(m->directory), MODELS "/%s", name);
    char *text = rig_read_file(m->directory, "golden.json", NULL);
    m->index = json_loads(text, 0, NULL);
    free(text);
    assert_non_null(m->index);
    m->name = json_string_value(json_object_get(m->index, "name"));
    m->vocabulary = (uint32_t)number(m->index, "vocabulary");
    m->token_count = (uint32_t)number(m->index, "tokens");
    m->logits_rms = number(m->index, "logits_rms");
    m->tolerance = number(m->index, "tolerance_of_rms") * m->logits_rms;
    m->rope_length =
        json_object_get(m->index, "rope_length") != NULL ? (uint64_t)number(m->index, "rope_length") : m->token_count;

    const json_t *positions = json_object_get(m->index, "logit_positions");
    m->logit_count = (uint32_t)json_array_size(positions);
    m->logit_positions = calloc(m->logit_count, sizeof(uint32_t));
    assert_non_null(m->logit_positions);
    for (uint32_t i = 0; i < m->logit_count; i++)
        m->logit_positions[i] = (uint32_t)json_integer_value(json_array_get(positions, i));

    size_t bytes;
    m->token_ids = rig_read_file(m->directory, "tokens.bin", &bytes);
    assert_int_equal(bytes, m->token_count * sizeof(uint32_t));
    m->logits = rig_read_file(m->directory, "logits.bin", &bytes);
    assert_int_equal(bytes, (size_t)m->logit_count * m->vocabulary * sizeof(float));
    m->positions = rig_read_file(m->directory, "bf16.bin", &bytes);
    assert_int_equal(bytes, m->token_count * sizeof(golden_position));
}

void golden_model_close(golden_model *m) {
    json_decref(m->index);
    free(m->token_ids);
    free(m->logit_positions);
    free(m->logits);
    free(m->positions);
}

static void write_file(const char *directory, const char *name, const void *data, size_t bytes) {
    char path[600];
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

static char *write_model(const char *config, const void *tensors, size_t tensors_bytes) {
    char *directory = strdup("/tmp/hadal-golden-XXXXXX");
    assert_non_null(mkdtemp(directory));
    write_file(directory, "config.json", config, strlen(config));
    write_file(directory, "model.safetensors", tensors, tensors_bytes);
    return directory;
}

char *golden_directory_copy(const golden_model *m, const char *config_name) {
    size_t bytes;
    char *config = rig_read_file(m->directory, config_name, NULL),
         *tensors = rig_read_file(m->directory, "model.safetensors", &bytes);
    char *directory = write_model(config, tensors, bytes);
    free(config);
    free(tensors);
    return directory;
}

void golden_directory_remove(char *directory) {
    const char *const names[] = {"config.json", "model.safetensors"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char path[600];
        snprintf(path, sizeof(path), "%s/%s", directory, names[i]);
        unlink(path);
    }
    rmdir(directory);
    free(directory);
}

static char *alter_config(const char *text, const json_t *changes) {
    json_t *config = json_loads(text, 0, NULL);
    assert_non_null(config);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)changes, key, value) {
        if (json_is_null(value)) json_object_del(config, key);
        else json_object_set(config, key, value);
    }
    char *altered = json_dumps(config, 0);
    json_decref(config);
    assert_non_null(altered);
    return altered;
}

/* The bytes of a tensor in a safetensors file. */
static unsigned char *find_tensor(unsigned char *file, const json_t *header, uint64_t header_bytes, const char *name,
                                  size_t *bytes) {
    const json_t *offsets = json_object_get(json_object_get(header, name), "data_offsets");
    if (json_array_size(offsets) != 2) fail_msg("no tensor %s", name);
    size_t begin = (size_t)json_integer_value(json_array_get(offsets, 0)),
           end = (size_t)json_integer_value(json_array_get(offsets, 1));
    *bytes = end - begin;
    return file + 8 + header_bytes + begin;
}

static void alter_tensors(unsigned char *file, const json_t *alteration, const char *kind) {
    uint64_t header_bytes;
    memcpy(&header_bytes, file, sizeof(header_bytes));
    json_t *header = json_loadb((char *)file + 8, header_bytes, 0, NULL);
    assert_non_null(header);
    const json_t *names = json_object_get(alteration, "tensors");
    if (strcmp(kind, "swap") == 0) {
        size_t first_bytes, second_bytes;
        unsigned char *first =
            find_tensor(file, header, header_bytes, json_string_value(json_array_get(names, 0)), &first_bytes);
        unsigned char *second =
            find_tensor(file, header, header_bytes, json_string_value(json_array_get(names, 1)), &second_bytes);
        assert_int_equal(first_bytes, second_bytes);
        for (size_t i = 0; i < first_bytes; i++) {
            unsigned char kept = first[i];
            first[i] = second[i];
            second[i] = kept;
        }
    } else {
        uint16_t value = hd_f32_to_bf16((float)number(alteration, "value"));
        for (size_t i = 0; i < json_array_size(names); i++) {
            size_t bytes;
            unsigned char *tensor =
                find_tensor(file, header, header_bytes, json_string_value(json_array_get(names, i)), &bytes);
            for (size_t k = 0; k < bytes; k += sizeof(value)) memcpy(tensor + k, &value, sizeof(value));
        }
    }
    json_decref(header);
}

char *golden_directory_alter(const golden_model *m, const json_t *alteration) {
    size_t bytes;
    char *config = rig_read_file(m->directory, "config.json", NULL);
    unsigned char *tensors = rig_read_file(m->directory, "model.safetensors", &bytes);
    const char *kind = json_string_value(json_object_get(alteration, "kind"));
    if (strcmp(kind, "config") == 0) {
        char *altered = alter_config(config, json_object_get(alteration, "set"));
        free(config);
        config = altered;
    } else {
        alter_tensors(tensors, alteration, kind);
    }
    char *directory = write_model(config, tensors, bytes);
    free(config);
    free(tensors);
    return directory;
}
