/* state_store.h - snapshots of recurrent states: what a sequence's state streams were after exactly `position` tokens.
 *
 * A state cannot be cut at a position as pages can, so a sequence can only be resumed, truncated or forked where there
 * is a snapshot of all of its states, or at 0, where all states are empty. A snapshot is complete once every state
 * stream has been saved at its position.
 *   1. The number of snapshots is fixed. Every open sequence may have at least one; what is over goes to whoever saves
 *      first.
 *   2. When there is none left, a save replaces the saver's own oldest, or else the oldest of whoever has most.
 * Threads: one. */
#ifndef ATTENTION_NODE_STATE_STORE_H
#define ATTENTION_NODE_STATE_STORE_H

#include "attention-node/layer_table.h"
#include "base/memory.h"

#define STATE_OWNER_NONE UINT32_MAX

typedef struct state_snapshot {
    uint32_t owner; /* slot of a sequence */
    uint32_t saved_count;
    uint64_t position;
} state_snapshot;

typedef struct state_store {
    uint32_t snapshot_count, state_count; /* state_count 0: the table has none, and every position is resumable */
    uint32_t *state_of_stream;            /* [stream_count]: index among the states, or UINT32_MAX */
    uint64_t *offsets, *sizes;            /* [state_count], bytes in a snapshot */
    uint64_t snapshot_bytes;
    state_snapshot *snapshots;
    bool *is_saved; /* [snapshot_count][state_count] */
    unsigned char *payload;
} state_store;

uint64_t state_store_table_bytes(const attention_layer_table *table, uint32_t snapshot_count);
void state_store_init(state_store *store, const attention_layer_table *table, uint32_t snapshot_count, hd_arena *arena);

/* bytes has attention_stream_state_bytes of the stream. HD_INVALID: the stream is no state. */
hd_status state_store_save(state_store *store, uint32_t owner, uint64_t position, uint32_t stream, const void *bytes);
/* HD_NOT_FOUND: no complete snapshot at that position. */
hd_status state_store_load(const state_store *store, uint32_t owner, uint64_t position, uint32_t stream, void *bytes);
/* The largest position <= length that the owner can be resumed at. */
uint64_t state_store_resumable(const state_store *store, uint32_t owner, uint64_t length);
/* Forgets the owner's snapshots beyond length; UINT64_MAX keeps all, and so does a store without states. */
void state_store_truncate(state_store *store, uint32_t owner, uint64_t length);
void state_store_drop(state_store *store, uint32_t owner);
/* Gives `to`, which has none, a copy of from's snapshot at position, if there is one. */
void state_store_copy(state_store *store, uint32_t from, uint64_t position, uint32_t to);

#endif
