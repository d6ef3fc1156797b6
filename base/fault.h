/* fault.h - failures on demand, so that a test can fail the n-th allocation, read or write and see what happens.
 *
 * A place that can fail asks fault_strikes(kind) first and behaves as if the system had failed when it says true.
 * Disarmed, which is always outside tests, that is one relaxed load.
 *     DISARMED --arm(kind, nth)--> ARMED --question nth of that kind: true, once--> SPENT --disarm--> DISARMED
 *     DISARMED --hold(kind)--> HELD --disarm--> DISARMED
 * Threads: ask from any thread; arm and disarm from the test's own thread. One kind is armed at a time. */
#ifndef HD_FAULT_H
#define HD_FAULT_H

#include <stdatomic.h>
#include <stdbool.h>

typedef enum {
    FAULT_ALLOCATION,
    FAULT_READ,
    FAULT_READ_SLOW, /* it takes 5 s */
    FAULT_WRITE,
    FAULT_URING,  /* the kernel refuses io_uring */
    FAULT_VERIFY, /* bytes are used without being verified */
    FAULT_KIND_COUNT
} fault_kind;

void fault_arm(fault_kind kind, unsigned nth); /* nth counts from 0 */
void fault_hold(fault_kind kind);              /* every question of that kind: true, until disarmed */
void fault_disarm(void);                       /* accepts being disarmed already */

extern _Atomic bool fault_is_armed;
bool fault_strikes_armed(fault_kind kind); /* fault_strikes' slow path; nobody else calls it */

static inline bool fault_strikes(fault_kind kind) {
    return __builtin_expect(atomic_load_explicit(&fault_is_armed, memory_order_relaxed), false) &&
           fault_strikes_armed(kind);
}

#endif
