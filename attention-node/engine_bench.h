/* engine_bench.h - for benchmarks: a sequence of any depth without the prefill that would make it.
 *
 * Threads: as attention.h. */
#ifndef ATTENTION_NODE_ENGINE_BENCH_H
#define ATTENTION_NODE_ENGINE_BENCH_H

#include "attention-node/attention.h"

/* Appends `tokens` random token ids below `vocabulary` to an open, empty sequence of an engine, with random keys and
 * values of magnitude 0.1 to 2. What a step then reads and computes is what it would after a prefill. No other sequence
 * ever shares its blocks. HD_NOT_FOUND: not open. HD_INVALID: not empty, or tokens_max is less. */
hd_status engine_fill_synthetic(attention *self, uint64_t sequence, uint64_t tokens, uint32_t vocabulary,
                                uint64_t seed);

#endif
