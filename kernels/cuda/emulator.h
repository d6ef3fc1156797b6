/* emulator.h - runs kernel bodies (simt.h) on the CPU, so that they are tested where there is no device.
 *
 * Blocks run one after the other. A block's threads are fibers of the calling thread: each runs until it reaches a word
 * that threads do together and waits there for the others. The emulator is strict where hardware is lenient, so that
 * what passes here has a meaning there:
 *   1. All lanes of a warp, or threads of a block, reach the same word together, and none has ended before; else it
 *      says which thread stands where, and aborts.
 *   2. Shared memory begins as NaN, and matrices and asynchronous copies stay inside of it and are aligned.
 *   3. An asynchronous copy happens as late as it may (at the wait for it), or with `is_eager` as early as it may. A
 *      body that is right gives the same bits either way, and with the threads in either order. Threads: one grid at
 *      a time in a process. */
#ifndef KERNELS_CUDA_EMULATOR_H
#define KERNELS_CUDA_EMULATOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EMULATOR_THREADS_MAX 1024u

typedef void emulator_body(const void *arguments);

typedef struct emulator_order { /* of what hardware leaves open */
    bool is_descending;         /* threads and blocks from the last to the first */
    bool is_eager;
} emulator_order;

void emulator_set_order(emulator_order order);
/* threads is a multiple of 32. */
void emulator_run(emulator_body *body, const void *arguments, uint32_t blocks, uint32_t threads, size_t shared_bytes);

#endif
