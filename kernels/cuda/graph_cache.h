/* graph_cache.h - which recorded graph serves a decode step.
 *
 * A graph is recorded for a number of rows, so steps are padded to one of a few: every number up to 8, then four an
 * octave: at most a quarter of a step's rows are padding. Rows of padding compute what nobody reads: no token of
 * theirs is stored, and the tables of attention do not name them. Steps with prefill rows are not recorded: they take
 * long enough to hide the launches. The cache holds as many graphs as it was opened for; the one that was used
 * longest ago gives way. Threads: one. */
#ifndef KERNELS_CUDA_GRAPH_CACHE_H
#define KERNELS_CUDA_GRAPH_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/device.h"

/* What a recorded step depends on beside the contents of memory. */
typedef struct graph_key {
    uint32_t rows;        /* padded */
    uint32_t logits_rows; /* that sample: padded likewise */
    uint32_t features;    /* bits of the caller: which kernels take part */
} graph_key;

/* 0 for 0. */
uint32_t graph_padded_rows(uint32_t rows);
bool graph_key_is_equal(graph_key a, graph_key b);

typedef struct graph_cache graph_cache;
hd_status graph_cache_open(const kernel_device_ops *ops, uint32_t capacity, graph_cache **out);
void graph_cache_close(graph_cache *cache); /* accepts NULL; closes its graphs */

kernel_graph *graph_cache_find(graph_cache *cache, graph_key key); /* or NULL; counts as a use */
/* Takes the graph; a graph of the same key, or the one used longest ago when there is no room, is closed. */
void graph_cache_put(graph_cache *cache, graph_key key, kernel_graph *graph);

#endif
