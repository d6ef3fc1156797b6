/* membership.h - etcd as its clients see it: announcements under leases, followed by everybody, all of it delayed.
 *
 * A process that is killed, frozen or cut off from etcd loses its lease after a few seconds, and announces itself again
 * when it can. One that cannot reach etcd keeps the view that it had.
 * Threads: one. */
#ifndef TESTS_SIMULATION_MEMBERSHIP_H
#define TESTS_SIMULATION_MEMBERSHIP_H

#include "proto/membership.h"
#include "tests/simulation/machine.h"

/* A process of its own, to be cut off from others by network_cut. */
process *membership_simulated_etcd(void);
membership *membership_simulated_open(rpc_queue *queue);
/* Every lease ends at once, as after a stall; they are announced again a little later. */
void membership_simulated_expire(void);

#endif
