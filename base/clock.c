/* clock.c - the system's clocks. */
#include "base/clock.h"

#include <time.h>

static uint64_t read_clock(clockid_t id) {
    struct timespec now;
    clock_gettime(id, &now); /* cannot fail for the two clocks used here */
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t hd_now_ns(void) {
    return read_clock(CLOCK_MONOTONIC);
}

static uint64_t system_monotonic_ns(void *context) {
    (void)context;
    return hd_now_ns();
}

static uint64_t system_wall_ns(void *context) {
    (void)context;
    return read_clock(CLOCK_REALTIME);
}

const hd_clock hd_clock_system = {.monotonic_ns = system_monotonic_ns, .wall_ns = system_wall_ns};
