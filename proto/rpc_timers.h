/* rpc_timers.h - a queue's timers, by time. Threads: the one that polls the queue. */
#ifndef PROTO_RPC_TIMERS_H
#define PROTO_RPC_TIMERS_H

#include "proto/rpc.h"

void rpc_timers_set(rpc_timer **timers, rpc_timer *timer, uint64_t delay_ms); /* again, if it was set */
void rpc_timers_cancel(rpc_timer **timers, rpc_timer *timer);
bool rpc_timers_run(rpc_timer **timers); /* those that are due; whether there was any */

#endif
