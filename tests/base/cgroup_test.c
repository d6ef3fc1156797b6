#include "base/cgroup.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A made-up machine below a temporary directory. */
static char root[64];

static int make_root(void **state) {
    strcpy(root, "/tmp/hadal-cgroup-XXXXXX");
    return mkdtemp(root) == NULL;
}

static int remove_entry(const char *path, const struct stat *about, int type, struct FTW *walk) {
    return remove(path);
}

static int remove_root(void **state) {
    return nftw(root, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static void put(const char *path, const char *text) {
    char full[512];
    snprintf(full, sizeof(full), "%s%s", root, path);
    for (char *slash = strchr(full + strlen(root) + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(full, 0755);
        *slash = '/';
    }
    FILE *file = fopen(full, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static const char mounts_v2[] = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
                                "30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
static const char mounts_v1[] = "30 22 0:26 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
                                "31 22 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
                                "32 22 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

static hd_cgroup_limits read_limits(void) {
    hd_cgroup_limits limits;
    hd_cgroup_read(root, &limits);
    return limits;
}

static void a_machine_without_groups_sets_no_limit(void **state) {
    hd_cgroup_limits limits = read_limits();
    assert_true(limits.memory_bytes == HD_CGROUP_NO_LIMIT);
    assert_true(limits.memory_available_bytes == HD_CGROUP_NO_LIMIT);
    assert_true(isinf(limits.cpus));
}

static void version_2_takes_the_tightest_level(void **state) {
    put("/proc/self/mountinfo", mounts_v2);
    put("/proc/self/cgroup", "0::/user.slice/hadal.service\n");
    put("/sys/fs/cgroup/user.slice/memory.max", "4000000\n");
    put("/sys/fs/cgroup/user.slice/memory.current", "3500000\n");
    put("/sys/fs/cgroup/user.slice/cpu.max", "300000 100000\n");
    put("/sys/fs/cgroup/user.slice/hadal.service/memory.max", "9000000\n");
    put("/sys/fs/cgroup/user.slice/hadal.service/memory.current", "1000000\n");
    put("/sys/fs/cgroup/user.slice/hadal.service/cpu.max", "50000 20000\n");
    hd_cgroup_limits limits = read_limits();
    assert_true(limits.memory_bytes == 4000000);
    assert_true(limits.memory_available_bytes == 500000);
    assert_true(limits.cpus == 2.5);
}

static void version_2_says_max_for_none(void **state) {
    put("/proc/self/mountinfo", mounts_v2);
    put("/proc/self/cgroup", "0::/a\n");
    put("/sys/fs/cgroup/a/memory.max", "max\n");
    put("/sys/fs/cgroup/a/memory.current", "1000\n");
    put("/sys/fs/cgroup/a/cpu.max", "max 100000\n");
    a_machine_without_groups_sets_no_limit(state);
}

static void version_1_is_read_by_controller(void **state) {
    put("/proc/self/mountinfo", mounts_v1);
    put("/proc/self/cgroup", "9:cpuset:/\n4:cpuacct,cpu:/job\n3:memory:/job/task\n");
    put("/sys/fs/cgroup/memory/job/task/memory.limit_in_bytes", "8000000\n");
    put("/sys/fs/cgroup/memory/job/task/memory.usage_in_bytes", "3000000\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "5000000\n");
    put("/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "150000\n");
    put("/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n");
    put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
    put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
    hd_cgroup_limits limits = read_limits();
    assert_true(limits.memory_bytes == 8000000);
    assert_true(limits.memory_available_bytes == 5000000);
    assert_true(limits.cpus == 1.5);
}

static void file_cache_counts_as_available(void **state) {
    put("/proc/self/mountinfo", mounts_v2);
    put("/proc/self/cgroup", "0::/a\n");
    put("/sys/fs/cgroup/a/memory.max", "10000\n");
    put("/sys/fs/cgroup/a/memory.current", "9000\n");
    put("/sys/fs/cgroup/a/memory.stat",
        "anon 2000\nfile 7000\ninactive_anon 1\ninactive_file 4000\nactive_file 2500\n");
    assert_true(read_limits().memory_available_bytes == 10000 - (9000 - 6500));

    put("/proc/self/mountinfo", mounts_v1);
    put("/proc/self/cgroup", "3:memory:/a\n");
    put("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "10000\n");
    put("/sys/fs/cgroup/memory/a/memory.usage_in_bytes", "9000\n");
    put("/sys/fs/cgroup/memory/a/memory.stat",
        "inactive_file 1\nactive_file 1\ntotal_inactive_file 300\ntotal_active_file 200\n");
    assert_true(read_limits().memory_available_bytes == 10000 - (9000 - 500));
}

static void a_path_as_the_host_sees_it_means_the_mount_itself(void **state) {
    put("/proc/self/mountinfo", "32 22 0:28 /docker/4f2a /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n");
    put("/proc/self/cgroup", "3:memory:/docker/4f2a\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "123456\n");
    put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "23456\n");
    hd_cgroup_limits limits = read_limits();
    assert_true(limits.memory_bytes == 123456);
    assert_true(limits.memory_available_bytes == 100000);
}

static void a_group_over_its_limit_has_nothing_available(void **state) {
    put("/proc/self/mountinfo", mounts_v2);
    put("/proc/self/cgroup", "0::/\n");
    put("/sys/fs/cgroup/memory.max", "1000\n");
    put("/sys/fs/cgroup/memory.current", "2000\n");
    assert_true(read_limits().memory_available_bytes == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_machine_without_groups_sets_no_limit, make_root, remove_root),
        cmocka_unit_test_setup_teardown(version_2_takes_the_tightest_level, make_root, remove_root),
        cmocka_unit_test_setup_teardown(version_2_says_max_for_none, make_root, remove_root),
        cmocka_unit_test_setup_teardown(version_1_is_read_by_controller, make_root, remove_root),
        cmocka_unit_test_setup_teardown(file_cache_counts_as_available, make_root, remove_root),
        cmocka_unit_test_setup_teardown(a_path_as_the_host_sees_it_means_the_mount_itself, make_root, remove_root),
        cmocka_unit_test_setup_teardown(a_group_over_its_limit_has_nothing_available, make_root, remove_root),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
