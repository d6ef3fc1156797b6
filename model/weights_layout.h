/* weights_layout.h - the shapes of a model's packed weights, and one region of memory that holds them all.
 *
 * One region, because its size is then known before anything is loaded, huge pages are not wasted on small tensors, and
 * a failure undoes it at once. The walk over the model that hands out places is run twice: without memory to count, and
 * with it to place.
 * Threads: the caller's. */
#ifndef MODEL_WEIGHTS_LAYOUT_H
#define MODEL_WEIGHTS_LAYOUT_H

#include "model/weights.h"

/* The tables of layers and experts, all empty. weights->region is not mapped yet; weights->bytes says how large it has
 * to be. */
hd_status weights_layout_open(const model_config *config, hd_dtype dtype, model_share share, model_weights **weights);
/* Of a matrix that one rank has alone. */
model_columns weights_layout_alone(model_share share, uint32_t n);
void weights_layout_close(model_weights *weights); /* accepts NULL */

/* Unmaps the region; the tables stay. */
void weights_layout_drop(model_weights *weights);

/* Maps the region and gives every matrix and vector its place. */
hd_status weights_layout_place(const model_config *config, model_weights *weights);

#endif
