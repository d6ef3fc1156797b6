/* work_pool.h - a few threads that run what is handed to them, with lanes so that the long cannot hold up the short.
 *
 * An item is the caller's memory and belongs to the pool from submit until its run function begins; run may submit it
 * again or free it. Items start in the order of arrival, except that a lane never uses more threads than its share:
 * with two threads and one for the lane of large bodies, a small one always finds a thread.
 * Threads: submit from any thread; open and close from one. */
#ifndef COORDINATOR_WORK_POOL_H
#define COORDINATOR_WORK_POOL_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define WORK_POOL_LANES 2u

typedef struct work_pool work_pool;
typedef struct work_item work_item;
struct work_item {
    void (*run)(work_item *item);
    work_item *next;  /* the pool's */
    uint64_t arrival; /* the pool's */
};

typedef struct work_pool_config {
    const char *name; /* of the threads; at most 12 characters */
    unsigned thread_count;
    unsigned lane_threads_max[WORK_POOL_LANES]; /* 0: the lane is not used */
    size_t lane_items_max[WORK_POOL_LANES];     /* waiting ones */
} work_pool_config;

hd_status work_pool_open(const work_pool_config *config, work_pool **pool);
/* Runs what waits, then ends the threads. Accepts NULL. */
void work_pool_close(work_pool *pool);
/* HD_FULL: as many wait as may. Takes one short lock and allocates nothing. */
hd_status work_pool_submit(work_pool *pool, unsigned lane, work_item *item);

#endif
