/* cgroup.h - what the control groups that this process is in let it use; versions 1 and 2.
 *
 * Every level from the process's own group up to the root may set a limit, and the tightest one counts. A process in a
 * container sees only a part of that tree; what it cannot see it cannot honour.
 * Threads: stateless; any thread. */
#ifndef HD_CGROUP_H
#define HD_CGROUP_H

#include <stdint.h>

#define HD_CGROUP_NO_LIMIT UINT64_MAX

typedef struct hd_cgroup_limits {
    uint64_t memory_bytes;           /* HD_CGROUP_NO_LIMIT where there is none */
    uint64_t memory_available_bytes; /* the least, over the levels, of limit - use + file cache that can be dropped */
    double cpus;                     /* quota / period; infinite where there is none */
} hd_cgroup_limits;

/* root is "" for this machine; a test gives a directory with proc/self/cgroup, proc/self/mountinfo and the groups. */
void hd_cgroup_read(const char *root, hd_cgroup_limits *limits);

#endif
