/* replay.c - gives every file of the kept corpora to LLVMFuzzerTestOneInput, so that any compiler can run them as a
 * test.
 *
 * Arguments are files or directories, read in no particular order. A crash names its file: the name is printed first.
 * An empty input is always tried. Exit code 1 if an argument cannot be read. */
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define PATH_BYTES 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t replayed_count;

static int replay_file(const char *path, size_t bytes) {
    FILE *file = fopen(path, "rb");
    uint8_t *data =
        malloc(bytes > 0 ? bytes : 1); /* exactly as long as the input, so that a sanitizer sees an overrun */
    if (file == NULL || data == NULL || fread(data, 1, bytes, file) != bytes) {
        fprintf(stderr, "%s: cannot be read: %s\n", path, strerror(errno));
        free(data);
        if (file != NULL) fclose(file);
        return 1;
    }
    fclose(file);
    printf("%s (%zu bytes)\n", path, bytes);
    fflush(stdout);
    LLVMFuzzerTestOneInput(data, bytes);
    free(data);
    replayed_count++;
    return 0;
}

static int replay(const char *path) {
    struct stat about;
    if (stat(path, &about) != 0) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return 1;
    }
    if (!S_ISDIR(about.st_mode)) return replay_file(path, (size_t)about.st_size);

    DIR *directory = opendir(path);
    if (directory == NULL) {
        fprintf(stderr, "%s: %s\n", path, strerror(errno));
        return 1;
    }
    int result = 0;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        char below[PATH_BYTES];
        if (entry->d_name[0] == '.') continue;
        if (snprintf(below, sizeof(below), "%s/%s", path, entry->d_name) < (int)sizeof(below)) result |= replay(below);
    }
    closedir(directory);
    return result;
}

int main(int argc, char **argv) {
    int result = 0;
    LLVMFuzzerTestOneInput((const uint8_t *)"", 0);
    for (int i = 1; i < argc; i++) result |= replay(argv[i]);
    printf("%zu inputs replayed\n", replayed_count);
    return result;
}
