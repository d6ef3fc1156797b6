/* bandwidth.h - how fast this machine reads memory, measured beside what is compared with it.
 *
 * Threads: the thread that owns the pool; nothing else may run on it meanwhile. */
#ifndef BENCH_BANDWIDTH_H
#define BENCH_BANDWIDTH_H

#include "base/threads.h"

/* Bytes a second that all threads of the pool read together from a region far larger than the caches: the median of
 * several passes, for the best of a few numbers of streams a thread. 0 without memory. Takes about two seconds. */
double bench_read_bandwidth(hd_pool *pool);

/* Bytes a second of the best of a few passes over that memory, a moment's figure to hold beside another moment's. */
double bench_read_pass(hd_pool *pool, const void *region, size_t bytes);

#endif
