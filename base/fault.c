/* fault.c - one countdown for the armed kind. */
#include "base/fault.h"

#include <assert.h>
#include <stdint.h>

_Atomic bool fault_is_armed;
static _Atomic int armed_kind;
static _Atomic int64_t questions_left; /* before the one that is answered true; negative once it has been */

static _Atomic bool is_held;

static void set(fault_kind kind, unsigned nth, bool is_holding) {
    assert((unsigned)kind < FAULT_KIND_COUNT);
    atomic_store(&fault_is_armed, false);
    atomic_store(&armed_kind, (int)kind);
    atomic_store(&questions_left, (int64_t)nth);
    atomic_store(&is_held, is_holding);
    atomic_store(&fault_is_armed, true);
}

void fault_arm(fault_kind kind, unsigned nth) {
    set(kind, nth, false);
}

void fault_hold(fault_kind kind) {
    set(kind, 0, true);
}

void fault_disarm(void) {
    atomic_store(&fault_is_armed, false);
}

bool fault_strikes_armed(fault_kind kind) {
    if ((int)kind != atomic_load(&armed_kind)) return false;
    return atomic_load(&is_held) || atomic_fetch_sub(&questions_left, 1) == 0;
}
