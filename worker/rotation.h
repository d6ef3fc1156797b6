/* rotation.h - into how many micro-batches a step is cut, which then take turns: while one is at the attention nodes,
 * the next one's products run (Lamina). Cutting reads the weights once more for each, so it is worth it where attention
 * takes long beside them: which depends on machines, depths and the wire, and is measured.
 *
 * Steps are compared with steps of about as many rows: the last times of each way, averaged; now and then the other way
 * is tried again. What a step gives does not depend on any of it.
 * Threads: one. */
#ifndef WORKER_ROTATION_H
#define WORKER_ROTATION_H

#include <stdbool.h>
#include <stdint.h>

#define ROTATION_BATCHES_MAX 4u
#define ROTATION_CLASSES 16u

typedef struct rotation {
    uint32_t batches_max; /* 1: steps stay whole */
    bool is_fixed;        /* as many as are possible, unmeasured */
    struct {
        double ns[ROTATION_BATCHES_MAX + 1]; /* of a step cut into so many */
        uint32_t steps[ROTATION_BATCHES_MAX + 1], since_trial;
    } classes[ROTATION_CLASSES]; /* by the power of two in the number of rows */
} rotation;

void rotation_init(rotation *rotation, uint32_t batches_max, bool is_fixed);
/* For a step of so many rows, at most one a row. */
uint32_t rotation_choose(rotation *rotation, uint32_t rows);
void rotation_learn(rotation *rotation, uint32_t rows, uint32_t batches, double step_ns);

#endif
