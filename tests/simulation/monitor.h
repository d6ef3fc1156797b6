/* monitor.h - looks at every call that reaches an attention node's engine: an epoch that has been followed by a newer
 * one may append, cut and close nothing there, and what the owner's placement names has what it says.
 *
 * It stands between service and engine (-Wl,--wrap=engine_attach), and what it holds true it knows from the calls
 * alone. Threads: one. */
#ifndef TESTS_SIMULATION_MONITOR_H
#define TESTS_SIMULATION_MONITOR_H

#include <stdint.h>

typedef struct monitor_counts {
    uint64_t steps, refused; /* refused: calls of older epochs, as they should be */
} monitor_counts;
monitor_counts monitor_read(void);

#endif
