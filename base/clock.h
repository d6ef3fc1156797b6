/* clock.h - time and randomness as tables of functions, so that a simulation can replace them.
 *
 * Control code takes a `const hd_clock *`; it never asks the system itself. Kernels and benchmarks may call
 * hd_now_ns. Threads: the system clock may be read from any thread. */
#ifndef HD_CLOCK_H
#define HD_CLOCK_H

#include <stdint.h>

typedef struct hd_clock {
    uint64_t (*monotonic_ns)(void *context); /* never goes back */
    uint64_t (*wall_ns)(void *context);      /* since the Unix epoch; may jump */
    void *context;
} hd_clock;

extern const hd_clock hd_clock_system;
uint64_t hd_now_ns(void); /* hd_clock_system's monotonic time */

#endif
