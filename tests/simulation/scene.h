/* scene.h - one seed: a cluster, requests, faults, and what has to be true at the end.
 *
 *   1. Every request that was accepted ends exactly once, with exactly the tokens of a single process.
 *   2. No attention node lets an epoch in that has been followed by a newer one, or refuses the owner's step as not its
 *      own or as one with a gap (monitor.h).
 *   3. When all have ended, no node holds or promises a page for anybody, and no worker has a request.
 *   4. Every process that is asked to end does.
 * Threads: the runner. */
#ifndef TESTS_SIMULATION_SCENE_H
#define TESTS_SIMULATION_SCENE_H

#include "tests/simulation/roles.h"

typedef struct scene_counts {
    uint64_t requests, tokens, messages, steps, takeovers, moves, refused, kills, cuts, freezes, drains, simulated_ns;
} scene_counts;

extern const cluster_shape scene_widest; /* what every scene's shape is within */

/* the_machine.failure tells how it went. */
void scene_run(uint64_t seed, bool is_verbose, scene_counts *counts);

#endif
