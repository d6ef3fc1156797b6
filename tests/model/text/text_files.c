#include "text_files.h"

#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* These run under libFuzzer too, so a failure is an abort rather than a cmocka assertion. */
static void must(bool holds, const char *what, const char *name) {
    if (holds) return;
    fprintf(stderr, "%s: %s: %s\n", name, what, strerror(errno));
    abort();
}

json_t *load_json(const char *directory, const char *name) {
    char path[256];
    json_error_t error;
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    json_t *json = json_load_file(path, JSON_ALLOW_NUL, &error);
    must(json != NULL, error.text, path);
    return json;
}

text_model *open_golden(const char *directory) {
    text_model *model = NULL;
    hd_error error = {{0}};
    must(text_model_open(directory, &model, &error) == HD_OK, error.text, directory);
    return model;
}

void make_directory(text_directory *directory) {
    snprintf(directory->path, sizeof(directory->path), "/tmp/hadal-text-XXXXXX");
    must(mkdtemp(directory->path) != NULL, "mkdtemp", directory->path);
    put_text(directory, "tokenizer.json", SMALLEST_TOKENIZER);
}

static int remove_entry(const char *path, const struct stat *about, int kind, struct FTW *place) {
    return remove(path);
}

void remove_directory(const text_directory *directory) {
    must(nftw(directory->path, remove_entry, 8, FTW_DEPTH | FTW_PHYS) == 0, "remove", directory->path);
}

void put_file(const text_directory *directory, const char *name, const void *data, size_t bytes) {
    char path[256];
    snprintf(path, sizeof(path), "%s/%s", directory->path, name);
    char *slash = strrchr(path, '/');
    *slash = '\0';
    must(mkdir(path, 0755) == 0 || errno == EEXIST, "mkdir", path);
    *slash = '/';
    FILE *file = fopen(path, "wb");
    must(file != NULL, "fopen", path);
    must(fwrite(data, 1, bytes, file) == bytes, "fwrite", path);
    must(fclose(file) == 0, "fclose", path);
}

void put_text(const text_directory *directory, const char *name, const char *text) {
    put_file(directory, name, text, strlen(text));
}
