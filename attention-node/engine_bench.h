/* engine_bench.h - for benchmarks: a sequence of any depth without the prefill that would make it.
 *
 * Threads: as attention.h. */
#ifndef ATTENTION_NODE_ENGINE_BENCH_H
#define ATTENTION_NODE_ENGINE_BENCH_H

#include "attention-node/attention.h"

/* Where keys and values of the sequence come from: rows of bf16, those of tokens [first, first + count) of one block,
 * and one query of a KV head's group at the position. Any thread. */
typedef struct engine_fill_source {
    void *context;
    void (*rows)(void *context, uint32_t layer, uint32_t head, uint64_t first, uint32_t count, uint16_t *keys,
                 uint16_t *values);
    void (*query)(void *context, uint32_t layer, uint32_t head, uint64_t position, uint16_t *query);
} engine_fill_source;

/* Appends `tokens` random token ids below `vocabulary` to an open, empty sequence of an engine, with keys and
 * values from the source (of layers that have plain ones), or random ones of magnitude 0.1 to 2. What a step then reads
 * and computes is what it would after a prefill. On a device keys and values are random, and the same in every page. No other sequence ever shares its blocks. HD_NOT_FOUND: not open.
 * HD_INVALID: not empty, or tokens_max is less. */
hd_status engine_fill_synthetic(attention *self, uint64_t sequence, uint64_t tokens, uint32_t vocabulary, uint64_t seed,
                                const engine_fill_source *source);

#endif
