/* collective.h - bytes between the ranks of one worker: processes that were started together, each of which knows its
 * number and how many there are.
 *
 * Rank 0 leads: it alone speaks to the rest of the cluster, calls, and takes the answers. Every call blocks. A rank that
 * fails takes the others with it, as MPI has it: a worker without one of its ranks is a worker that was killed.
 * Implementation: MPI (the library is opened when the process was started by mpirun, so a machine without it runs the
 * same binary).
 * Threads: one at a time; not always the same one. */
#ifndef PROTO_COLLECTIVE_H
#define PROTO_COLLECTIVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define COLLECTIVE_BYTES_MAX ((size_t)1 << 30) /* of one call */

typedef struct collective collective;

typedef struct collective_ops {
    const char *name;
    void (*close)(collective *self); /* every rank calls it; the last one frees what they share */
    void (*send)(collective *self, uint32_t rank, const void *bytes, size_t count);
    void (*receive)(collective *self, uint32_t rank, void *bytes, size_t count);
    /* Whether something from that rank has come: for who may have to wait for long, and sleeps meanwhile. */
    bool (*has_come)(collective *self, uint32_t rank);
    void (*broadcast)(collective *self, void *bytes, size_t count); /* from rank 0 to all the others */
} collective_ops;

struct collective {
    const collective_ops *ops; /* first member of every implementation */
    uint32_t rank, count;
};

/* Whether mpirun has started this process, with others or alone. */
bool collective_mpi_is_there(void);
/* HD_UNSUPPORTED: the library is not there, or is another MPI than Open MPI; the error says so. One at a time and once
 * in a process. */
hd_status collective_mpi_open(collective **out, hd_error *error);

#endif
