/* safetensors.c - mapping the files of a model directory and finding tensors in them. */
#include "model/safetensors.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/memory.h"
#include "model/file_text.h"
#include "model/safetensors_header.h"
#include "model/safetensors_index.h"

#define SINGLE_FILE "model.safetensors"
#define INDEX_FILE "model.safetensors.index.json"
#define INDEX_BYTES_MAX ((size_t)256 << 20)
#define PATH_BYTES 4096u

typedef struct mapped_file {
    char path[PATH_BYTES];
    int fd; /* -1 until it is open */
    unsigned char *bytes;
    uint64_t size;
    safetensors_header header;
} mapped_file;

struct safetensors {
    mapped_file *files;
    uint32_t file_count;
    safetensors_tensor *tensors; /* of all files, in the order of names, which the headers own */
    uint32_t tensor_count;
};

static hd_status map_open_file(mapped_file *file, hd_error *error) {
    struct stat facts;
    if (fault_strikes(FAULT_READ) || fstat(file->fd, &facts) != 0) {
        return hd_error_set(error, HD_IO, "%s: cannot be examined", file->path);
    }
    if (!S_ISREG(facts.st_mode)) return hd_error_set(error, HD_INVALID, "%s: is not a regular file", file->path);
    if (facts.st_size == 0) return hd_error_set(error, HD_CORRUPT, "%s: is empty", file->path);
    void *bytes = MAP_FAILED;
    errno = ENOMEM;
    if (!fault_strikes(FAULT_ALLOCATION)) {
        bytes = mmap(NULL, (size_t)facts.st_size, PROT_READ, MAP_SHARED, file->fd, 0);
    }
    if (bytes == MAP_FAILED) {
        return hd_error_set(error, HD_NO_MEMORY, "%s: cannot be mapped: %s", file->path, strerror(errno));
    }
    file->bytes = bytes;
    file->size = (uint64_t)facts.st_size;
    return HD_OK;
}

static hd_status map_file(const char *directory, const char *name, mapped_file *file, hd_error *error) {
    hd_status status = file_path_join(directory, name, file->path, sizeof(file->path), error);
    if (status != HD_OK) return status;
    file->fd = open(file->path, O_RDONLY | O_CLOEXEC);
    if (file->fd < 0) {
        return hd_error_set(error, errno == ENOENT ? HD_NOT_FOUND : HD_IO, "%s: cannot be opened: %s", file->path,
                            strerror(errno));
    }
    status = map_open_file(file, error);
    if (status != HD_OK) return status;
    return safetensors_header_parse(file->path, file->bytes, file->size, &file->header, error);
}

static hd_status open_files(const char *directory, const char *const *names, uint32_t count, safetensors *set,
                            hd_error *error) {
    set->files = hd_alloc_zeroed(count * sizeof(*set->files), HD_CACHE_LINE);
    if (set->files == NULL) return hd_error_set(error, HD_NO_MEMORY, "%s: no memory for its files", directory);
    set->file_count = count;
    for (uint32_t i = 0; i < count; i++) set->files[i].fd = -1;
    for (uint32_t i = 0; i < count; i++) {
        hd_status status = map_file(directory, names[i], &set->files[i], error);
        if (status != HD_OK) return status;
    }
    return HD_OK;
}

static int compare_names(const void *left, const void *right) {
    return strcmp(((const safetensors_tensor *)left)->name, ((const safetensors_tensor *)right)->name);
}

static hd_status collect_tensors(safetensors *set, hd_error *error) {
    size_t total = 0;
    for (uint32_t i = 0; i < set->file_count; i++) total += set->files[i].header.count;
    set->tensors = hd_alloc(total * sizeof(*set->tensors), HD_CACHE_LINE);
    if (set->tensors == NULL)
        return hd_error_set(error, HD_NO_MEMORY, "%s: no memory for its tensor names", set->files[0].path);
    for (uint32_t i = 0; i < set->file_count; i++) {
        for (uint32_t j = 0; j < set->files[i].header.count; j++) {
            set->tensors[set->tensor_count] = set->files[i].header.tensors[j];
            set->tensors[set->tensor_count++].file = i;
        }
    }
    qsort(set->tensors, set->tensor_count, sizeof(*set->tensors), compare_names);
    for (uint32_t i = 1; i < set->tensor_count; i++) {
        const safetensors_tensor *tensor = &set->tensors[i], *before = &set->tensors[i - 1];
        if (strcmp(tensor->name, before->name) != 0) continue;
        return hd_error_set(error, HD_CORRUPT, "%s: tensor '%.100s' is in another file, too",
                            safetensors_path(set, tensor), tensor->name);
    }
    return HD_OK;
}

/* Each tensor must be where the index says; the files are in the index's order. */
static hd_status check_index(const safetensors_index *index, const safetensors *set, hd_error *error) {
    uint32_t file = 0;
    for (uint32_t i = 0; i < index->count; i++) {
        const safetensors_index_entry *entry = &index->entries[i];
        if (i > 0 && strcmp(entry->file, index->entries[i - 1].file) != 0) file++;
        const safetensors_tensor *tensor = safetensors_find(set, entry->tensor);
        if (tensor != NULL && tensor->file == file) continue;
        return hd_error_set(error, HD_CORRUPT, "%s: has no tensor '%.100s', although the index file says so",
                            set->files[file].path, entry->tensor);
    }
    return HD_OK;
}

static hd_status open_listed_files(const char *directory, const safetensors_index *index, safetensors *set,
                                   hd_error *error) {
    const char **names = hd_alloc(index->file_count * sizeof(*names), _Alignof(char *));
    if (names == NULL) return hd_error_set(error, HD_NO_MEMORY, "%s: no memory for its files", directory);
    uint32_t count = 0;
    for (uint32_t i = 0; i < index->count; i++) {
        if (i == 0 || strcmp(index->entries[i].file, index->entries[i - 1].file) != 0)
            names[count++] = index->entries[i].file;
    }
    hd_status status = open_files(directory, names, count, set, error);
    hd_free(names);
    if (status == HD_OK) status = collect_tensors(set, error);
    if (status == HD_OK) status = check_index(index, set, error);
    return status;
}

static hd_status open_sharded(const char *directory, const char *index_path, safetensors *set, hd_error *error) {
    char *text = NULL;
    size_t bytes = 0;
    safetensors_index index = {0};
    hd_status status = file_text_read(index_path, INDEX_BYTES_MAX, &text, &bytes, error);
    if (status == HD_OK) status = safetensors_index_parse(index_path, text, bytes, &index, error);
    hd_free(text);
    if (status == HD_OK) status = open_listed_files(directory, &index, set, error);
    safetensors_index_fini(&index);
    return status;
}

static hd_status open_single(const char *directory, safetensors *set, hd_error *error) {
    const char *name = SINGLE_FILE;
    hd_status status = open_files(directory, &name, 1, set, error);
    return status == HD_OK ? collect_tensors(set, error) : status;
}

/* The single file goes first, as in Hugging Face. */
static hd_status open_directory(const char *directory, safetensors *set, hd_error *error) {
    char path[PATH_BYTES];
    hd_status status = file_path_join(directory, SINGLE_FILE, path, sizeof(path), error);
    if (status != HD_OK) return status;
    if (access(path, F_OK) == 0) return open_single(directory, set, error);
    status = file_path_join(directory, INDEX_FILE, path, sizeof(path), error);
    if (status != HD_OK) return status;
    if (access(path, F_OK) == 0) return open_sharded(directory, path, set, error);
    return hd_error_set(error, HD_NOT_FOUND,
                        "%s: has neither " SINGLE_FILE " nor " INDEX_FILE "; weights are read from safetensors only",
                        directory);
}

hd_status safetensors_open(const char *model_directory, safetensors **set, hd_error *error) {
    safetensors *s = hd_alloc_zeroed(sizeof(*s), HD_CACHE_LINE);
    if (s == NULL) return hd_error_set(error, HD_NO_MEMORY, "%s: no memory to open it", model_directory);
    hd_status status = open_directory(model_directory, s, error);
    if (status == HD_OK) *set = s;
    else safetensors_close(s);
    return status;
}

void safetensors_close(safetensors *set) {
    if (set == NULL) return;
    for (uint32_t i = 0; i < set->file_count; i++) {
        hd_free(set->files[i].header.tensors);
        if (set->files[i].bytes != NULL) munmap(set->files[i].bytes, set->files[i].size);
        if (set->files[i].fd >= 0) close(set->files[i].fd);
    }
    hd_free(set->tensors);
    hd_free(set->files);
    hd_free(set);
}

uint32_t safetensors_file_count(const safetensors *set) {
    return set->file_count;
}

uint32_t safetensors_count(const safetensors *set) {
    return set->tensor_count;
}

const safetensors_tensor *safetensors_at(const safetensors *set, uint32_t index) {
    assert(index < set->tensor_count);
    return &set->tensors[index];
}

uint32_t safetensors_index_of(const safetensors *set, const safetensors_tensor *tensor) {
    return (uint32_t)(tensor - set->tensors);
}

const safetensors_tensor *safetensors_find(const safetensors *set, const char *name) {
    safetensors_tensor wanted = {.name = name};
    return bsearch(&wanted, set->tensors, set->tensor_count, sizeof(wanted), compare_names);
}

const char *safetensors_path(const safetensors *set, const safetensors_tensor *tensor) {
    return set->files[tensor->file].path;
}

void safetensors_read(const safetensors *set, const safetensors_tensor *tensor, uint64_t offset, size_t bytes,
                      void *to) {
    assert(offset <= tensor->bytes && bytes <= tensor->bytes - offset);
    const mapped_file *file = &set->files[tensor->file];
    off_t place = tensor->data + offset - file->bytes;
    ssize_t got = pread(file->fd, to, bytes, place);
    if (got != (ssize_t)bytes) memcpy(to, tensor->data + offset, bytes);
}

static void advise(const void *data, uint64_t bytes, int advice) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = HD_ALIGN_UP((uintptr_t)data, page), end = ((uintptr_t)data + bytes) / page * page;
    if (first < end) madvise((void *)first, end - first, advice); /* advice only; a refusal changes nothing */
}

void safetensors_expect(const void *data, uint64_t bytes) {
    advise(data, bytes, MADV_SEQUENTIAL);
}

void safetensors_drop(const void *data, uint64_t bytes) {
    advise(data, bytes, MADV_RANDOM);
    advise(data, bytes, MADV_DONTNEED);
}
