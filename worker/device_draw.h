/* device_draw.h - what a device's sampling kernel is told of a row (kernels/cuda/sample_arguments.h), made from what
 * the sampler would be told of it.
 *
 * Threads: one. */
#ifndef WORKER_DEVICE_DRAW_H
#define WORKER_DEVICE_DRAW_H

#include "kernels/cuda/sample_arguments.h"
#include "worker/sampler.h"

typedef struct device_draw {
    uint32_t vocabulary_size, change_count, changes_max;
    uint32_t *place_of;     /* [vocabulary_size]: of the row in hand, 1 + where a token is among its changes; else 0 */
    sample_change *changes; /* [changes_max], lent */
} device_draw;

/* changes_max is at least vocabulary_size, so that any one row has room. */
hd_status device_draw_init(device_draw *draw, uint32_t vocabulary_size, sample_change *changes, uint32_t changes_max);
void device_draw_fini(device_draw *draw); /* accepts a zeroed one */

void device_draw_begin(device_draw *draw); /* no row has changes */
/* false: its changes have no room behind those of the rows before; the rows so far have to be drawn first. */
bool device_draw_add(device_draw *draw, const sampler_row *row, sample_row *out);
/* A row that takes no part. */
void device_draw_skip(const device_draw *draw, sample_row *out);

#endif
