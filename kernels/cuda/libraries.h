/* libraries.h - libraries that are opened at run time, so that one binary serves machines with and without them.
 *
 * The CUDA runtime is linked statically and looks for the driver itself; cuBLASLt and NCCL are found here. Searched
 * in this order: the folders of HADAL_CUDA_LIBRARIES (separated by ':'), the system's own search, the toolkit that
 * this was built with, /usr/local/cuda/lib64. Threads: open and close from one; what was found may be called from
 * any. */
#ifndef KERNELS_CUDA_LIBRARIES_H
#define KERNELS_CUDA_LIBRARIES_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

typedef struct library library;

/* A function that the library must have, and where its address goes. */
typedef struct library_symbol {
    const char *name;
    void *place; /* of a function pointer */
} library_symbol;

/* file: its name with the major version ("libnccl.so.2"). HD_NOT_FOUND: there is none; the error lists where it was
 * looked for. HD_UNSUPPORTED: there is one that lacks a symbol, which the error names. */
hd_status library_open(const char *file, const library_symbol *symbols, size_t symbol_count, library **out,
                       hd_error *error);
void library_close(library *library);             /* accepts NULL */
const char *library_path(const library *library); /* where it was found */

#endif
