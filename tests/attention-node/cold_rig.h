/* cold_rig.h - a toy engine with little memory and a cold tier in a directory of its own.
 *
 * Its sequences are larger than what it has of memory, so that most of a step's pages come from disk. */
#ifndef TESTS_ATTENTION_NODE_COLD_RIG_H
#define TESTS_ATTENTION_NODE_COLD_RIG_H

#include "tests/attention-node/toy.h"

typedef struct cold_rig {
    toy toy;
    char directory[64];
} cold_rig;

/* Two layers, f32; the second one sees `window` positions (0: all). Memory for about `frames` blocks, the cold tier for
 * `slots`. */
void cold_rig_init_shape(cold_rig *rig, const toy_shape *shape, uint32_t frames, uint32_t slots);
void cold_rig_init(cold_rig *rig, uint64_t window, uint32_t frames, uint32_t slots);
void cold_rig_open(cold_rig *rig, unsigned threads);
void cold_rig_close(cold_rig *rig); /* the engine; the directory stays */
void cold_rig_fini(cold_rig *rig);  /* and the directory goes */

attention_stats cold_rig_stats(const cold_rig *rig);
/* Waits until everything is written. */
void cold_rig_settle(const cold_rig *rig);
/* Flips a bit in every `stride`-th byte of the file of pages. */
void cold_rig_flip(const cold_rig *rig, uint64_t stride);
/* Bytes of a file of the directory. */
int cold_rig_file(const cold_rig *rig, const char *name, int flags);

#endif
