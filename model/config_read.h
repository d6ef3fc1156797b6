/* config_read.h - model_config_open without the file system: texts in, configuration out.
 *
 * Threads: the caller's. */
#ifndef MODEL_CONFIG_READ_H
#define MODEL_CONFIG_READ_H

#include "model/config.h"

#define CONFIG_FILE_BYTES_MAX ((size_t)16 << 20)

/* A text of config.json or generation_config.json and the path that sentences name. */
typedef struct config_text {
    const char *path;
    const char *text; /* NULL: there is no such file */
    size_t bytes;
} config_text;

hd_status model_config_read(const config_text *config_json, const config_text *generation_json, model_config **config,
                            hd_error *error);

#endif
