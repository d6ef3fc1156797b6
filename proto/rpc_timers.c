/* rpc_timers.c - a list, the next one first. */
#include "proto/rpc_timers.h"

#include "base/clock.h"

void rpc_timers_cancel(rpc_timer **timers, rpc_timer *timer) {
    if (!timer->is_set) return;
    rpc_timer **link = timers;
    while (*link != timer) link = &(*link)->next;
    *link = timer->next;
    timer->is_set = false;
}

void rpc_timers_set(rpc_timer **timers, rpc_timer *timer, uint64_t delay_ms) {
    rpc_timers_cancel(timers, timer);
    timer->due_ns = hd_now_ns() + delay_ms * 1000000;
    rpc_timer **link = timers;
    while (*link != NULL && (*link)->due_ns <= timer->due_ns) link = &(*link)->next;
    timer->next = *link;
    timer->is_set = true;
    *link = timer;
}

bool rpc_timers_run(rpc_timer **timers) {
    bool any = false;
    while (*timers != NULL && (*timers)->due_ns <= hd_now_ns()) {
        rpc_timer *timer = *timers;
        *timers = timer->next;
        timer->is_set = false;
        timer->run(timer);
        any = true;
    }
    return any;
}
