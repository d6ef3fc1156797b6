/* libraries.c - dlopen, folder by folder. */
#include "kernels/cuda/libraries.h"

#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef HADAL_CUDA_LIBRARY_FOLDER
#define HADAL_CUDA_LIBRARY_FOLDER ""
#endif

#define PATH_BYTES 1024

struct library {
    void *handle;
    char path[PATH_BYTES];
};

/* The next folder of a list separated by ':' into folder; false at its end. */
static bool next_folder(const char **list, char folder[PATH_BYTES]) {
    while (**list == ':') (*list)++;
    size_t length = strcspn(*list, ":");
    if (length == 0 || length >= PATH_BYTES) return false;
    memcpy(folder, *list, length);
    folder[length] = '\0';
    *list += length;
    return true;
}

static void *open_in(const char *folder, const char *file, char path[PATH_BYTES]) {
    int length = snprintf(path, PATH_BYTES, "%s%s%s", folder, folder[0] != '\0' ? "/" : "", file);
    return length < PATH_BYTES ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
}

static void *open_in_folders(const char *folders, const char *file, char path[PATH_BYTES]) {
    char folder[PATH_BYTES];
    void *handle = NULL;
    while (handle == NULL && folders != NULL && next_folder(&folders, folder)) handle = open_in(folder, file, path);
    return handle;
}

static void *open_anywhere(const char *file, char path[PATH_BYTES]) {
    void *handle = open_in_folders(getenv("HADAL_CUDA_LIBRARIES"), file, path);
    if (handle == NULL) handle = open_in("", file, path);
    if (handle == NULL) handle = open_in_folders(HADAL_CUDA_LIBRARY_FOLDER ":/usr/local/cuda/lib64", file, path);
    return handle;
}

hd_status library_open(const char *file, const library_symbol *symbols, size_t symbol_count, library **out,
                       hd_error *error) {
    library *l = calloc(1, sizeof(*l));
    if (l == NULL) return HD_NO_MEMORY;
    l->handle = open_anywhere(file, l->path);
    if (l->handle == NULL) {
        free(l);
        return hd_error_set(error, HD_NOT_FOUND,
                            "%s is not in HADAL_CUDA_LIBRARIES, nor where the system looks, nor in "
                            "/usr/local/cuda/lib64; set HADAL_CUDA_LIBRARIES to its folder",
                            file);
    }
    struct link_map *map;
    if (dlinfo(l->handle, RTLD_DI_LINKMAP, &map) == 0) snprintf(l->path, sizeof(l->path), "%s", map->l_name);
    for (size_t i = 0; i < symbol_count; i++) {
        void *address = dlsym(l->handle, symbols[i].name);
        if (address == NULL) {
            hd_error_write(error, "%s has no %s: another version is needed", l->path, symbols[i].name);
            library_close(l);
            return HD_UNSUPPORTED;
        }
        memcpy(symbols[i].place, &address, sizeof(address));
    }
    *out = l;
    return HD_OK;
}

void library_close(library *l) {
    if (l == NULL) return;
    dlclose(l->handle);
    free(l);
}

const char *library_path(const library *l) {
    return l->path;
}
