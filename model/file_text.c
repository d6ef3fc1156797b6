/* file_text.c - open, stat, read, close. */
#include "model/file_text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/memory.h"

hd_status file_path_join(const char *directory, const char *name, char *path, size_t path_bytes, hd_error *error) {
    int length = snprintf(path, path_bytes, "%s/%s", directory, name);
    if (length >= 0 && (size_t)length < path_bytes) return HD_OK;
    return hd_error_set(error, HD_INVALID, "%.100s...: the path of the model directory is too long", directory);
}

static hd_status read_all(int fd, const char *path, char *text, size_t bytes, hd_error *error) {
    size_t done = 0;
    while (done < bytes) {
        ssize_t got = -1;
        errno = EIO;
        if (!fault_strikes(FAULT_READ)) got = read(fd, text + done, bytes - done);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return hd_error_set(error, HD_IO, "%s: cannot be read: %s", path, strerror(errno));
        if (got == 0) return hd_error_set(error, HD_IO, "%s: became shorter while it was read", path);
        done += (size_t)got;
    }
    return HD_OK;
}

static hd_status read_open_file(int fd, const char *path, size_t bytes_max, char **text, size_t *text_bytes,
                                hd_error *error) {
    struct stat facts;
    if (fstat(fd, &facts) != 0) return hd_error_set(error, HD_IO, "%s: cannot be examined: %s", path, strerror(errno));
    if (!S_ISREG(facts.st_mode)) return hd_error_set(error, HD_INVALID, "%s: is not a regular file", path);
    size_t bytes = (size_t)facts.st_size;
    if (bytes > bytes_max) {
        return hd_error_set(error, HD_INVALID, "%s: has %zu bytes; at most %zu are read", path, bytes, bytes_max);
    }
    char *buffer = hd_alloc(bytes + 1, 1);
    if (buffer == NULL) return hd_error_set(error, HD_NO_MEMORY, "%s: no memory for its %zu bytes", path, bytes);
    hd_status status = read_all(fd, path, buffer, bytes, error);
    if (status != HD_OK) {
        hd_free(buffer);
        return status;
    }
    buffer[bytes] = '\0';
    *text = buffer;
    *text_bytes = bytes;
    return HD_OK;
}

hd_status file_text_read(const char *path, size_t bytes_max, char **text, size_t *text_bytes, hd_error *error) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return hd_error_set(error, errno == ENOENT ? HD_NOT_FOUND : HD_IO, "%s: cannot be opened: %s", path,
                            strerror(errno));
    }
    hd_status status = read_open_file(fd, path, bytes_max, text, text_bytes, error);
    close(fd);
    return status;
}
