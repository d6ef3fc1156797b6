/* sharded_sequences.h - how sequences of a sharded attention are opened, visited and ended; for sharded*.c only. */
#ifndef ATTENTION_NODE_SHARDED_SEQUENCES_H
#define ATTENTION_NODE_SHARDED_SEQUENCES_H

#include "attention-node/sharded_state.h"

shard_sequence *sharded_take(sharded *s, uint64_t name); /* NULL: all are open */
void sharded_give(sharded *s, shard_sequence *sequence);

/* Called for every node of every row that is not lost; goes on after a failure, and returns the first. */
typedef hd_status shard_visit(shard_node *node, const placement_row *row, uint64_t name, void *context);
hd_status sharded_each_place(sharded *s, shard_sequence *sequence, shard_visit *visit, void *context);
/* Closes it wherever it is, and forgets it. */
hd_status sharded_end(sharded *s, shard_sequence *sequence, uint64_t epoch, bool keep, bool early);

/* sharded_open.c */
hd_status sharded_sequence_open(attention *self, const attention_sequence_params *params, uint64_t *cached_tokens,
                                hd_error *error);
hd_status sharded_fork(attention *self, uint64_t source, uint64_t length, uint64_t sequence, uint64_t epoch,
                       uint64_t tokens_max, hd_error *error);
hd_status sharded_prefix_find(attention *self, const attention_sequence_params *params, uint64_t *cached_tokens);

#endif
