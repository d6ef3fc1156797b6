/* disk_rate.h - how fast this disk reads scattered pieces of a file, measured beside what is compared with it.
 *
 * Threads: the calling thread, which waits. */
#ifndef BENCH_DISK_RATE_H
#define BENCH_DISK_RATE_H

#include <stdint.h>

/* Reads a second of `bytes` (rounded to whole KiB, at most 1 MiB) at random places of the file, past the
 * system's cache where it can be, 128 of them at once, for about `seconds`. 0: the file cannot be read so. */
double bench_disk_reads(const char *path, uint64_t bytes, double seconds);

#endif
