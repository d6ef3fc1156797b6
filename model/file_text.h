/* file_text.h - a small file of a model directory, read whole.
 *
 * Threads: stateless; any thread. */
#ifndef MODEL_FILE_TEXT_H
#define MODEL_FILE_TEXT_H

#include <stddef.h>

#include "base/status.h"

/* directory + "/" + name; HD_INVALID when that is longer than path_bytes. */
hd_status file_path_join(const char *directory, const char *name, char *path, size_t path_bytes, hd_error *error);

/* *text is zero terminated and freed by hd_free. HD_NOT_FOUND when there is no such file; HD_INVALID when it is larger
 * than bytes_max. */
hd_status file_text_read(const char *path, size_t bytes_max, char **text, size_t *text_bytes, hd_error *error);

#endif
