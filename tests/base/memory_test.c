#include "base/memory.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fault.h"

#define MIB ((size_t)1 << 20)

static void allocations_are_aligned(void **state) {
    for (size_t alignment = 1; alignment <= 4096; alignment *= 2)
        for (size_t bytes = 0; bytes < 300; bytes += 7) {
            unsigned char *memory = hd_alloc(bytes, alignment);
            assert_non_null(memory);
            assert_int_equal((uintptr_t)memory % alignment, 0);
            memset(memory, 0xAB, bytes);
            hd_free(memory);
        }
    hd_free(NULL);
}

static void zeroed_memory_is_zero_though_it_was_used_before(void **state) {
    for (int round = 0; round < 50; round++) {
        unsigned char *memory = hd_alloc_zeroed(1000, 64);
        assert_non_null(memory);
        for (int i = 0; i < 1000; i++) assert_int_equal(memory[i], 0);
        memset(memory, 0xFF, 1000);
        hd_free(memory);
    }
}

static void an_impossible_size_gives_null(void **state) {
    assert_null(hd_region_map(SIZE_MAX));
    assert_null(hd_region_map((size_t)1 << 60));
}

static void the_armed_allocation_fails_and_no_other(void **state) {
    hd_arena arena;
    fault_arm(FAULT_ALLOCATION, 2);
    void *first = hd_alloc(16, 16);
    void *second = hd_alloc_zeroed(16, 16);
    hd_status status = hd_arena_init(&arena, 4096);
    void *fourth = hd_region_map(4096);
    fault_disarm();
    assert_non_null(first);
    assert_non_null(second);
    assert_int_equal(status, HD_NO_MEMORY);
    assert_non_null(fourth);
    hd_free(first);
    hd_free(second);
    hd_arena_fini(&arena);
    hd_region_unmap(fourth, 4096);
}

static void a_region_is_aligned_to_huge_pages_and_zero(void **state) {
    static const size_t sizes[] = {0, 1, 4096, 5000, 2 * MIB - 1, 2 * MIB, 5 * MIB + 123};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        unsigned char *region = hd_region_map(sizes[i]);
        assert_non_null(region);
        assert_int_equal((uintptr_t)region % (2 * MIB), 0);
        for (size_t at = 0; at < sizes[i]; at += 997) assert_int_equal(region[at], 0);
        if (sizes[i] > 0) region[sizes[i] - 1] = 1;
        hd_region_unmap(region, sizes[i]);
    }
    hd_region_unmap(NULL, 100);
}

static void a_region_costs_memory_only_where_it_is_touched(void **state) {
    size_t before = hd_memory_resident_bytes();
    unsigned char *region = hd_region_map(512 * MIB);
    assert_non_null(region);
    assert_true(hd_memory_resident_bytes() < before + 64 * MIB);
    memset(region, 1, 64 * MIB);
    assert_true(hd_memory_resident_bytes() > before + 60 * MIB);
    assert_true(hd_memory_peak_bytes() > before + 60 * MIB);
    hd_region_unmap(region, 512 * MIB);
    assert_true(hd_memory_resident_bytes() < before + 32 * MIB);
    assert_true(hd_memory_peak_bytes() > before + 60 * MIB);
}

/* Against the obvious model: a list of what was taken since the last reset. */
static void an_arena_gives_aligned_disjoint_memory_up_to_its_capacity(void **state) {
    enum { CAPACITY = 10000 };
    hd_arena arena;
    unsigned seed = 99;
    assert_int_equal(hd_arena_init(&arena, CAPACITY), HD_OK);
    unsigned char *expected_next = arena.base;
    size_t peak = 0;
    for (int round = 0; round < 20000; round++) {
        if (rand_r(&seed) % 16 == 0) {
            hd_arena_reset(&arena);
            expected_next = arena.base;
        }
        size_t bytes = (size_t)rand_r(&seed) % 3000;
        unsigned char *aligned = arena.base + HD_ALIGN_UP((size_t)(expected_next - arena.base), (size_t)64);
        bool fits = (size_t)(aligned - arena.base) + bytes <= CAPACITY;
        unsigned char *memory = hd_arena_take(&arena, bytes);
        if (!fits) {
            assert_null(memory);
            continue;
        }
        assert_ptr_equal(memory, aligned);
        memset(memory, 0x5A, bytes);
        expected_next = memory + bytes;
        if ((size_t)(expected_next - arena.base) > peak) peak = (size_t)(expected_next - arena.base);
        assert_int_equal(arena.peak_bytes, peak);
    }
    assert_null(hd_arena_take(&arena, SIZE_MAX));
    hd_arena_fini(&arena);
    hd_arena_fini(&arena); /* closing twice is harmless */
}

static void the_limit_is_at_most_physical_memory_and_holds_what_is_available(void **state) {
    size_t physical = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    size_t limit = hd_memory_limit_bytes(), available = hd_memory_available_bytes();
    assert_true(limit > 0 && limit <= physical);
    assert_true(available > 0 && available <= limit);
}

static void an_address_space_limit_counts(void **state) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip(); /* a sanitizer's own mappings are far above any such limit */
#endif
    pid_t child = fork();
    if (child == 0) {
        struct rlimit limit = {.rlim_cur = 1024 * MIB, .rlim_max = 1024 * MIB};
        if (setrlimit(RLIMIT_AS, &limit) != 0) _exit(2);
        bool is_right = hd_memory_limit_bytes() == 1024 * MIB && hd_memory_available_bytes() < 1024 * MIB;
        _exit(is_right ? 0 : 1);
    }
    int result;
    assert_int_equal(waitpid(child, &result, 0), child);
    assert_true(WIFEXITED(result));
    assert_int_equal(WEXITSTATUS(result), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(allocations_are_aligned),
        cmocka_unit_test(zeroed_memory_is_zero_though_it_was_used_before),
        cmocka_unit_test(an_impossible_size_gives_null),
        cmocka_unit_test(the_armed_allocation_fails_and_no_other),
        cmocka_unit_test(a_region_is_aligned_to_huge_pages_and_zero),
        cmocka_unit_test(a_region_costs_memory_only_where_it_is_touched),
        cmocka_unit_test(an_arena_gives_aligned_disjoint_memory_up_to_its_capacity),
        cmocka_unit_test(the_limit_is_at_most_physical_memory_and_holds_what_is_available),
        cmocka_unit_test(an_address_space_limit_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
