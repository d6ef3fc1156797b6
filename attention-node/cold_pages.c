/* cold_pages.c - one file, with O_DIRECT or without. */
#include "attention-node/cold_pages.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "attention-node/cold_directory.h"
#include "base/flags.h"
#include "base/log.h"

#define DIRECT_BYTES 4096u /* that every disk with O_DIRECT reads at any multiple of */

/* Whether the disk reads and writes chunks where they lie; most count in sectors of 512 bytes. */
static bool takes_chunks(int pages) {
    _Alignas(COLD_CHUNK_BYTES) unsigned char chunk[2 * COLD_CHUNK_BYTES];
    return pread(pages, chunk + COLD_CHUNK_BYTES, COLD_CHUNK_BYTES, COLD_CHUNK_BYTES) >= 0 || errno != EINVAL;
}

static int open_file(int directory, const char *path, uint64_t block_bytes) {
    int file = openat(directory, "pages", O_RDWR | O_CREAT | O_CLOEXEC | O_DIRECT, 0600);
    if (file >= 0 && block_bytes % DIRECT_BYTES != 0 && !takes_chunks(file)) {
        close(file);
        file = -1;
        errno = EINVAL;
    }
    if (file >= 0 || errno != EINVAL) return file;
    char text[600];
    hd_log(HD_LOG_WARN, "cold_without_o_direct", "directory=%s", hd_log_quote(path, text, sizeof(text)));
    return openat(directory, "pages", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
}

static hd_status take_room(int file, const char *path, uint64_t bytes, hd_error *error) {
    if (ftruncate(file, (off_t)bytes) != 0) {
        return hd_error_set(error, HD_IO, "--cold-dir %s: cannot size the file 'pages': %s", path,
                            strerrordesc_np(errno));
    }
    int problem = posix_fallocate(file, 0, (off_t)bytes);
    if (problem == 0 || problem == EOPNOTSUPP || problem == EINVAL) return HD_OK;
    struct statvfs disk;
    if (problem != ENOSPC || fstatvfs(file, &disk) != 0)
        return hd_error_set(error, HD_IO, "--cold-dir %s: cannot take the room: %s", path, strerrordesc_np(problem));
    char wanted[32], there[32];
    return hd_error_set(error, HD_FULL,
                        "--cold-size: %s do not fit on the disk of %s, which has %s left; lower --cold-size",
                        hd_format_size(bytes, wanted, sizeof(wanted)), path,
                        hd_format_size((uint64_t)disk.f_bavail * disk.f_frsize, there, sizeof(there)));
}

hd_status cold_pages_open(int directory, const char *path, uint64_t block_bytes, uint64_t block_count, int *file,
                          uint32_t *grain_bytes, hd_error *error) {
    int pages = open_file(directory, path, block_bytes);
    if (pages < 0) {
        return hd_error_set(error, HD_IO, "--cold-dir %s: cannot open the file 'pages': %s", path,
                            strerrordesc_np(errno));
    }
    hd_status status = take_room(pages, path, block_count * block_bytes, error);
    if (status == HD_OK) {
        *file = pages;
        *grain_bytes = takes_chunks(pages) ? COLD_CHUNK_BYTES : DIRECT_BYTES;
    }
    if (status != HD_OK) close(pages);
    return status;
}
