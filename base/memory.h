/* memory.h - memory that is taken once: aligned regions, huge pages where they help, arenas, and what we may
 * use.
 *
 * Threads: the functions are thread safe; an arena belongs to one thread. */
#ifndef HD_MEMORY_H
#define HD_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define HD_CACHE_LINE 64
#define HD_ALIGN_UP(value, to) (((value) / (to) + ((value) % (to) != 0)) * (to))

/* Aligned heap memory, contents undefined; alignment is a power of two. NULL when there is none. Freed by hd_free. */
void *hd_alloc(size_t bytes, size_t alignment);
void *hd_alloc_zeroed(size_t bytes, size_t alignment);
void hd_free(void *memory);

/* Zero-filled pages from mmap, 2 MiB aligned and advised to be huge. Physical memory is only taken when touched.
 * Released by hd_region_unmap with the same size. */
void *hd_region_map(size_t bytes);
void hd_region_unmap(void *region, size_t bytes);

/* An arena: memory that dies together. hd_arena_take returns 64-byte aligned memory or NULL past the capacity; reset
 * gives all of it back. Capacity is fixed at init, nothing grows. */
typedef struct hd_arena {
    unsigned char *base;
    size_t capacity_bytes, used_bytes, peak_bytes;
} hd_arena;
hd_status hd_arena_init(hd_arena *arena, size_t capacity_bytes);
void hd_arena_fini(hd_arena *arena);
void *hd_arena_take(hd_arena *arena, size_t bytes);
void hd_arena_reset(hd_arena *arena);

/* What this process may use: the least of physical memory, memory.max of its cgroup (v2 or v1) and RLIMIT_AS. */
size_t hd_memory_limit_bytes(void);
/* Of that limit, what is not in use now (MemAvailable; memory.max less memory.current without reclaimable cache). */
size_t hd_memory_available_bytes(void);
/* Resident set of this process now, and its peak (VmRSS, VmHWM). */
size_t hd_memory_resident_bytes(void);
size_t hd_memory_peak_bytes(void);

#endif
