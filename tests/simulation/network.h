/* network.h - the wires between processes: how long a message takes, and who cannot reach whom.
 *
 * Messages between two processes are delayed by chance and keep their order within a direction of a stream. While two
 * processes are cut off from each other nothing arrives, and nobody is told; what was sent arrives when the cut is
 * over, unless keep-alive has ended the stream before (rpc.c).
 * Threads: one. */
#ifndef TESTS_SIMULATION_NETWORK_H
#define TESTS_SIMULATION_NETWORK_H

#include "tests/simulation/machine.h"

void network_init(dice *scene); /* how slow this one is */
/* Nothing passes between the two before that time; streams between them are told as keep-alive would. b NULL: between a
 * and everybody. */
void network_cut(process *a, process *b, uint64_t until_ns);
void network_slow(process *p, uint64_t factor, uint64_t until_ns); /* what it sends takes so many times as long */
/* When a message from one to the other would arrive, sent now. */
uint64_t network_arrival(const process *from, const process *to);
/* The time at which the two can reach each other again; 0 where they can now. */
uint64_t network_cut_until(const process *a, const process *b);

/* rpc.c: streams of a process that has been killed, and between processes that are cut off. */
void rpc_simulated_killed(process *p);
void rpc_simulated_cut(process *a, process *b);
uint64_t rpc_simulated_messages(void); /* carried so far */

#endif
