/* cgroup.c - finds the mounted hierarchies in mountinfo, this process's group in each, and reads upwards from there.
 *
 * In a container without a cgroup namespace, /proc/self/cgroup names the group as the host sees it, while the mount
 * shows the container's own group as its root. Such a path does not exist below the mount; walking up from it ends at
 * the mount point, which is the group meant. So every level is tried and those that are missing are passed over. */
#include "base/cgroup.h"

#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    bool is_v2;
    const char *controller; /* of version 1: "memory" or "cpu" */
    char mount[PATH_MAX];   /* with the root in front; "" when not mounted */
    char group[PATH_MAX];   /* this process's, below the mount; "" for the mount itself */
} hierarchy;

/* True if comma-separated `list` has `word`. */
static bool list_has(const char *list, const char *word) {
    size_t bytes = strlen(word);
    for (const char *at = list; at != NULL; at = strchr(at, ',')) {
        if (*at == ',') at++;
        if (strncmp(at, word, bytes) == 0 && strchr(",\n ", at[bytes]) != NULL) return true;
    }
    return false;
}

static FILE *open_below(const char *root, const char *path) {
    char full[PATH_MAX];
    int bytes = snprintf(full, sizeof(full), "%s%s", root, path);
    return bytes > 0 && (size_t)bytes < sizeof(full) ? fopen(full, "re") : NULL;
}

/* mountinfo: id parent major:minor ROOT MOUNT_POINT options optional-fields - TYPE source SUPER_OPTIONS */
static void find_mount(const char *root, hierarchy *h) {
    FILE *file = open_below(root, "/proc/self/mountinfo");
    char line[2 * PATH_MAX];
    h->mount[0] = '\0';
    while (file != NULL && h->mount[0] == '\0' && fgets(line, sizeof(line), file) != NULL) {
        char mount_point[PATH_MAX], type[64], super_options[1024];
        const char *after = strstr(line, " - ");
        if (after == NULL || sscanf(line, "%*s %*s %*s %*s %4095s", mount_point) != 1) continue;
        if (sscanf(after, " - %63s %*s %1023s", type, super_options) != 2) continue;
        bool fits = h->is_v2 ? strcmp(type, "cgroup2") == 0
                             : strcmp(type, "cgroup") == 0 && list_has(super_options, h->controller);
        if (!fits) continue;
        int bytes = snprintf(h->mount, sizeof(h->mount), "%s%s", root, mount_point);
        if (bytes < 0 || (size_t)bytes >= sizeof(h->mount)) h->mount[0] = '\0';
    }
    if (file != NULL) fclose(file);
}

/* cgroup: hierarchy-id:controller,controller:/path; version 2 is "0::/path". */
static void find_group(const char *root, hierarchy *h) {
    FILE *file = open_below(root, "/proc/self/cgroup");
    char line[PATH_MAX];
    h->group[0] = '\0';
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        char *controllers = strchr(line, ':');
        char *path = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (path == NULL) continue;
        *path++ = '\0';
        controllers++;
        path[strcspn(path, "\n")] = '\0';
        bool fits = h->is_v2 ? *controllers == '\0' : list_has(controllers, h->controller);
        if (!fits) continue;
        if (strcmp(path, "/") != 0) snprintf(h->group, sizeof(h->group), "%s", path);
        break;
    }
    if (file != NULL) fclose(file);
}

static bool read_text(const char *directory, const char *name, char *text, size_t text_bytes) {
    char path[2 * PATH_MAX];
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    FILE *file = fopen(path, "re");
    if (file == NULL) return false;
    size_t bytes = fread(text, 1, text_bytes - 1, file);
    text[bytes] = '\0';
    fclose(file);
    return bytes > 0;
}

static bool read_number(const char *directory, const char *name, uint64_t *value) {
    char text[64], *end;
    if (!read_text(directory, name, text, sizeof(text)) || text[0] < '0' || text[0] > '9')
        return false; /* "max", "-1" */
    *value = strtoull(text, &end, 10);
    return end != text;
}

/* File cache of a group: the kernel drops it before it refuses memory. Mapped weights are counted there too. */
static uint64_t file_cache_bytes(const char *directory, const char *prefix) {
    char text[16384];
    if (!read_text(directory, "memory.stat", text, sizeof(text))) return 0;
    uint64_t sum = 0;
    static const char *const parts[] = {"inactive_file", "active_file"};
    for (size_t i = 0; i < 2; i++) {
        char key[64];
        snprintf(key, sizeof(key), "%s%s ", prefix, parts[i]);
        for (const char *at = strstr(text, key); at != NULL; at = strstr(at + 1, key))
            if (at == text || at[-1] == '\n') { /* "inactive_file" ends in "active_file" */
                sum += strtoull(at + strlen(key), NULL, 10);
                break;
            }
    }
    return sum;
}

static void read_memory(const char *directory, bool is_v2, hd_cgroup_limits *limits) {
    uint64_t limit, used;
    if (!read_number(directory, is_v2 ? "memory.max" : "memory.limit_in_bytes", &limit)) return;
    if (limit >= (uint64_t)INT64_MAX / 4096 * 4096) return; /* how version 1 says "none" */
    if (limit < limits->memory_bytes) limits->memory_bytes = limit;
    if (!read_number(directory, is_v2 ? "memory.current" : "memory.usage_in_bytes", &used)) return;
    uint64_t cache = file_cache_bytes(directory, is_v2 ? "" : "total_");
    used = used > cache ? used - cache : 0;
    uint64_t available = limit > used ? limit - used : 0;
    if (available < limits->memory_available_bytes) limits->memory_available_bytes = available;
}

static void read_cpu(const char *directory, bool is_v2, hd_cgroup_limits *limits) {
    uint64_t quota, period;
    if (is_v2) {
        char text[64];
        if (!read_text(directory, "cpu.max", text, sizeof(text))) return;
        if (sscanf(text, "%" SCNu64 " %" SCNu64, &quota, &period) != 2) return; /* "max 100000" */
    } else if (!read_number(directory, "cpu.cfs_quota_us", &quota) ||
               !read_number(directory, "cpu.cfs_period_us", &period)) {
        return;
    }
    if (period > 0) limits->cpus = fmin(limits->cpus, (double)quota / (double)period);
}

static void read_upwards(const char *root, const char *controller, bool is_v2,
                         void (*read_level)(const char *directory, bool is_v2, hd_cgroup_limits *limits),
                         hd_cgroup_limits *limits) {
    hierarchy h = {.is_v2 = is_v2, .controller = controller};
    find_mount(root, &h);
    if (h.mount[0] == '\0') return;
    find_group(root, &h);
    for (;;) {
        char directory[2 * PATH_MAX];
        snprintf(directory, sizeof(directory), "%s%s", h.mount, h.group);
        read_level(directory, is_v2, limits);
        char *last = strrchr(h.group, '/');
        if (last == NULL) return;
        *last = '\0';
    }
}

void hd_cgroup_read(const char *root, hd_cgroup_limits *limits) {
    *limits = (hd_cgroup_limits){HD_CGROUP_NO_LIMIT, HD_CGROUP_NO_LIMIT, (double)INFINITY};
    for (int is_v2 = 0; is_v2 <= 1; is_v2++) {
        read_upwards(root, "memory", is_v2, read_memory, limits);
        read_upwards(root, "cpu", is_v2, read_cpu, limits);
    }
}
