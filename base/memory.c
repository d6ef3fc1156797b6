/* memory.c - heap, regions, arenas, and the limits of this machine. */
#include "base/memory.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/cgroup.h"
#include "base/fault.h"

#define HUGE_PAGE_BYTES ((size_t)2 << 20)

void *hd_alloc(size_t bytes, size_t alignment) {
    assert(alignment != 0 && (alignment & (alignment - 1)) == 0);
    if (fault_strikes(FAULT_ALLOCATION)) return NULL;
    void *memory = NULL;
    if (alignment < sizeof(void *)) alignment = sizeof(void *);
    return posix_memalign(&memory, alignment, bytes > 0 ? bytes : 1) == 0 ? memory : NULL;
}

void *hd_alloc_zeroed(size_t bytes, size_t alignment) {
    void *memory = hd_alloc(bytes, alignment);
    if (memory != NULL) memset(memory, 0, bytes);
    return memory;
}

void hd_free(void *memory) {
    free(memory);
}

static size_t page_bytes(void) {
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* What a region of so many bytes occupies: whole small pages, so that the last huge page is not paid for a few bytes.
 * */
static size_t region_bytes(size_t bytes) {
    return HD_ALIGN_UP(bytes > 0 ? bytes : 1, page_bytes());
}

void *hd_region_map(size_t bytes) {
    if (fault_strikes(FAULT_ALLOCATION) || bytes > SIZE_MAX / 2) return NULL;
    size_t length = region_bytes(bytes);
    /* mmap aligns to small pages only, so map more and give both ends back. */
    size_t mapped_bytes = length + HUGE_PAGE_BYTES;
    unsigned char *mapped =
        mmap(NULL, mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return NULL;
    size_t head = (HUGE_PAGE_BYTES - (uintptr_t)mapped % HUGE_PAGE_BYTES) % HUGE_PAGE_BYTES;
    size_t tail = mapped_bytes - head - length;
    if (head > 0) munmap(mapped, head);
    if (tail > 0) munmap(mapped + head + length, tail);
    madvise(mapped + head, length, MADV_HUGEPAGE); /* advice: a kernel without huge pages may refuse it */
    return mapped + head;
}

void hd_region_unmap(void *region, size_t bytes) {
    if (region != NULL) munmap(region, region_bytes(bytes));
}

hd_status hd_arena_init(hd_arena *arena, size_t capacity_bytes) {
    *arena = (hd_arena){0};
    unsigned char *base = hd_region_map(capacity_bytes);
    if (base == NULL) return HD_NO_MEMORY;
    arena->base = base;
    arena->capacity_bytes = capacity_bytes;
    return HD_OK;
}

void hd_arena_fini(hd_arena *arena) {
    hd_region_unmap(arena->base, arena->capacity_bytes);
    *arena = (hd_arena){0};
}

void *hd_arena_take(hd_arena *arena, size_t bytes) {
    size_t start = HD_ALIGN_UP(arena->used_bytes, (size_t)HD_CACHE_LINE);
    if (start > arena->capacity_bytes || bytes > arena->capacity_bytes - start) return NULL;
    arena->used_bytes = start + bytes;
    if (arena->used_bytes > arena->peak_bytes) arena->peak_bytes = arena->used_bytes;
    return arena->base + start;
}

void hd_arena_reset(hd_arena *arena) {
    arena->used_bytes = 0;
}

/* A line "Key:   123 kB" of a file in /proc, in bytes; 0 when it is not there. */
static size_t proc_kilobytes(const char *path, const char *key) {
    FILE *file = fopen(path, "re");
    if (file == NULL) return 0;
    char line[256];
    size_t key_bytes = strlen(key), bytes = 0;
    while (fgets(line, sizeof(line), file) != NULL)
        if (strncmp(line, key, key_bytes) == 0 && line[key_bytes] == ':') {
            bytes = (size_t)strtoull(line + key_bytes + 1, NULL, 10) * 1024;
            break;
        }
    fclose(file);
    return bytes;
}

static size_t least(size_t a, uint64_t b) {
    return b < a ? (size_t)b : a;
}

static uint64_t address_space_limit_bytes(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return UINT64_MAX;
    return limit.rlim_cur;
}

size_t hd_memory_limit_bytes(void) {
    hd_cgroup_limits limits;
    hd_cgroup_read("", &limits);
    size_t bytes = (size_t)sysconf(_SC_PHYS_PAGES) * page_bytes();
    return least(least(bytes, limits.memory_bytes), address_space_limit_bytes());
}

size_t hd_memory_available_bytes(void) {
    hd_cgroup_limits limits;
    hd_cgroup_read("", &limits);
    uint64_t address_space = address_space_limit_bytes();
    if (address_space != UINT64_MAX) {
        size_t used = proc_kilobytes("/proc/self/status", "VmSize");
        address_space = address_space > used ? address_space - used : 0;
    }
    size_t available = proc_kilobytes("/proc/meminfo", "MemAvailable");
    return least(least(available, limits.memory_available_bytes), address_space);
}

size_t hd_memory_resident_bytes(void) {
    return proc_kilobytes("/proc/self/status", "VmRSS");
}

size_t hd_memory_peak_bytes(void) {
    return proc_kilobytes("/proc/self/status", "VmHWM");
}
