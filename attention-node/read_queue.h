/* read_queue.h - reads of a file behind the caller's back: many at once, in no order, each ended by a callback.
 *
 * One thread with an io_uring, or, where the kernel refuses that (seccomp profiles of containers often do), a few
 * threads with preadv. What is read, and whether a read fails, does not depend on which.
 * Threads: submit from one thread, the owner; done runs on a thread of the queue. */
#ifndef ATTENTION_NODE_READ_QUEUE_H
#define ATTENTION_NODE_READ_QUEUE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/threads.h"

#define READ_PARTS_MAX 16u

typedef struct read_queue read_queue;

/* The caller's memory; lent to the queue until done has run. Consecutive bytes of the file go to the parts in order. */
typedef struct read_request {
    uint64_t offset, bytes; /* bytes: of all parts together */
    struct iovec parts[READ_PARTS_MAX];
    uint32_t part_count;
    _Atomic uint64_t started_ns; /* when it was handed to the system; 0: not yet. Set by the queue */
    void (*done)(struct read_request *request, hd_status status); /* HD_OK or HD_IO */
    void *context;
} read_request;

/* At most requests_max are lent at any time. The file is the caller's, open for as long as the queue is. */
hd_status read_queue_open(int file, uint32_t requests_max, read_queue **out);
void read_queue_close(read_queue *queue);             /* waits for what is lent; accepts NULL */
const char *read_queue_name(const read_queue *queue); /* "io_uring" or "preadv" */

void read_queue_submit(read_queue *queue, read_request *const *requests, uint32_t count);
uint32_t read_queue_depth(const read_queue *queue); /* lent now; any thread */

hd_turn *read_queue_turn(read_queue *queue); /* advances as requests end */

#endif
