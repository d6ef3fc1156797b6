/* cold_pages.h - the file of a cold directory that holds blocks: opened past the system's cache where the disk allows
 * it, with its room taken at once, since a disk that fills up later must take nothing away.
 *
 * Threads: whoever opens the directory. */
#ifndef ATTENTION_COLD_PAGES_H
#define ATTENTION_COLD_PAGES_H

#include <stdint.h>

#include "base/status.h"

/* `pages` in the open directory, whose path is for the error. HD_FULL: the disk has less room than the blocks take;
 * HD_IO. The caller closes *file. *grain_bytes: what may be read of it is whole ones of these, COLD_CHUNK_BYTES or a
 * multiple. */
hd_status cold_pages_open(int directory, const char *path, uint64_t block_bytes, uint64_t block_count, int *file,
                          uint32_t *grain_bytes, hd_error *error);

#endif
