/* run_table.h - the lists of runs of all sequences that may be open.
 *
 * A sequence is a list of runs in ascending position. A run is tokens of one block; nothing says that runs are whole
 * blocks or that position = 128 x index, since a sequence may drop tokens. Each sequence slot has room for every block
 * there is, in address space; memory is only taken where runs are written, is bounded by run_table_bytes, and goes back
 * when the slot closes. Lists thus stay where they are and are contiguous, so that whoever scans a sequence gets a
 * plain array.
 * Threads: one. */
#ifndef ATTENTION_NODE_RUN_TABLE_H
#define ATTENTION_NODE_RUN_TABLE_H

#include "attention-node/block_pool.h"

typedef struct kv_run {
    block_name block;
    uint32_t first, count; /* tokens [first, first + count) of the block */
    uint64_t position;     /* of the first of them; the others follow one by one */
} kv_run;

typedef struct run_table {
    unsigned char *region;
    uint32_t slot_count;
    uint64_t slot_bytes; /* of address space */
    uint64_t bytes_max;  /* of memory, all slots together */
    uint64_t bytes_promised;
} run_table;

/* The memory that lists may take at most; and of address space. */
uint64_t run_table_bytes(uint32_t slot_count, uint32_t block_count, uint64_t block_bytes);
hd_status run_table_init(run_table *table, uint32_t slot_count, uint32_t block_count,
                         uint64_t block_bytes); /* HD_NO_MEMORY */
void run_table_fini(run_table *table);          /* accepts a zeroed table */

/* Room for runs_max runs in a slot that has none; HD_FULL when the lists together would take too much. */
hd_status run_table_open(run_table *table, uint32_t slot, uint64_t runs_max, kv_run **runs);
/* More or less room for an open list, which stays where it is; HD_FULL changes nothing. */
hd_status run_table_resize(run_table *table, uint64_t runs_max, uint64_t new_runs_max);
void run_table_close(run_table *table, uint32_t slot, uint64_t runs_max); /* the runs_max of its open, or last resize */

#endif
