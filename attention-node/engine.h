/* engine.h - attention in this process: blocks of KV in memory, prefix cache, exact paged attention on the compute
 * pool.
 *
 * Several callers (the workers of an attention node) each get a view: an attention over the same blocks and sequences,
 * with a step of its own that may stay open while others have theirs.
 * Blocks may lie in the memory of a device, which then stores and attends (engine_device.h says what it does not do
 * yet).
 * Threads: as attention.h, all views on one thread; the work of a step runs on the pool given here, which must not be
 * in use by the caller meanwhile. */
#ifndef ATTENTION_NODE_ENGINE_H
#define ATTENTION_NODE_ENGINE_H

#include "attention-node/attention.h"
#include "base/threads.h"
#include "kernels/ops.h"

typedef struct engine_config {
    attention_layer_table layers;
    hd_dtype kv_dtype; /* HD_BF16, HD_F32 or HD_INT8 */
    /* The budget of memory: blocks, pages and their tables together stay within hot_bytes + warm_bytes. Without a cold
     * tier both hold blocks. With one, hot holds blocks and warm holds pages of cold blocks. */
    uint64_t hot_bytes, warm_bytes;
    const char *cold_directory; /* NULL: no cold tier */
    uint64_t cold_bytes;        /* files in it, at most */
    uint32_t cold_patience_ms;  /* with the disk about one read, before a step goes on without it; 0: 500 */
    uint64_t index_bytes;       /* beside it, for indexes and searches; 0: selections that search are refused */
    uint32_t head_first; /* of the model's KV heads the table's first: indexes are the same however they are split */
    const struct selection_overrides *overrides; /* or NULL; lent until the engine closes */
    uint32_t index_builders;                     /* threads that build indexes; with index_bytes at least 1 */
    uint32_t step_rows_max;                      /* rows of a step, at most */
    uint32_t sequences_max;
    uint32_t views_max;            /* callers of engine_attach; 0 for none */
    uint32_t snapshots_max;        /* of tables with states: at least sequences_max. Others ignore it */
    unsigned char fingerprint[16]; /* of the weights: two models never share a block */
    unsigned char key[32];         /* secret of the identity hash; a cold directory's own takes its place */
    const kernel_ops *kernels;
    hd_pool *pool;
    /* Blocks lie on its device, as many as hot_bytes of its memory hold, and warm_bytes of pinned memory hold more,
     * which the device reads where they lie. Tensors are the device's, in this queue. NULL: this process's memory. Lent until
     * the engine closes. */
    struct kernel_queue *queue;
} engine_config;

/* The error says how many tokens the budget would hold and what the least is. */
hd_status engine_open(const engine_config *config, attention **out, hd_error *error);

/* The index_bytes with which a sequence of so many tokens and of that selection is admitted when nobody else has any;
 * hot_bytes may still have them in. with_keys: with which it keeps its keys once more, row after row, and what is found
 * is read several times as fast. UINT64_MAX: nothing is enough. */
uint64_t engine_index_bytes(const engine_config *config, const char *selection, uint64_t tokens, bool with_keys);

/* A further view of an engine; HD_FULL when views_max are there. Its close ends its step and leaves its sequences open.
 * It goes before the engine does. */
hd_status engine_attach(attention *engine, attention **view);

#endif
