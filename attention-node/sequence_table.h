/* sequence_table.h - the open sequences of an engine by their callers' names: a fixed number of slots.
 *
 * Threads: one. */
#ifndef ATTENTION_NODE_SEQUENCE_TABLE_H
#define ATTENTION_NODE_SEQUENCE_TABLE_H

#include "attention-node/sequence.h"

typedef struct sequence_table {
    sequence *slots;
    uint32_t *buckets, *links; /* slot + 1; links chains a bucket, or the free slots */
    uint32_t slot_count, bucket_count;
    uint32_t first_free; /* slot + 1 */
    uint32_t open_count;
} sequence_table;

uint64_t sequence_table_bytes(uint32_t slot_count);
void sequence_table_init(sequence_table *table, uint32_t slot_count, hd_arena *arena);

sequence *sequence_table_find(const sequence_table *table, uint64_t name); /* NULL when it is not open */
/* A slot with name and slot set and everything else zero; NULL when all are taken. The name is not open yet. */
sequence *sequence_table_take(sequence_table *table, uint64_t name);
void sequence_table_give(sequence_table *table, sequence *s);

#endif
