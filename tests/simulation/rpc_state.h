/* rpc_state.h - the inside of simulated rpc, shared by rpc_queue.c (queues, timers and loops) and rpc.c (streams and
 * servers). */
#ifndef TESTS_SIMULATION_RPC_STATE_H
#define TESTS_SIMULATION_RPC_STATE_H

#include <assert.h>
#include <stdlib.h>

#include "proto/rpc.h"
#include "tests/simulation/network.h"

#define PASS_AT_SEND 4u
#define PASS_AT_POLL 8u

typedef enum { MESSAGE_DATA, MESSAGE_HALF_CLOSE, MESSAGE_END } message_kind;

typedef struct message {
    struct message *next;
    message_kind kind;
    uint64_t arrival_ns;
    bool is_copied;
    unsigned char *bytes; /* aligned */
    size_t count;
    rpc_stream *sender;
    rpc_part parts[RPC_PARTS_MAX]; /* of a loan, until it is copied */
    size_t part_count;
    rpc_loan *loan;
    hd_status status; /* of an end */
    char text[120];
} message;

typedef enum { ENTRY_TAG, ENTRY_OPEN, ENTRY_MESSAGE, ENTRY_ROOM, ENTRY_END, ENTRY_NOTHING } entry_kind;

typedef struct entry {
    struct entry *next;
    entry_kind kind;
    rpc_tag *tag;
    rpc_stream *stream;
    const rpc_method *method;
    message *message;
    hd_status status;
    char text[120];
} entry;

struct rpc_queue {
    process *process;
    entry *first, *last;
    rpc_timer *timers; /* by time */
    bool has_loop, is_closed;
};

struct rpc_channel {
    char address[RPC_ADDRESS_BYTES];
};

struct rpc_stream {
    process *process;
    rpc_queue *queue;
    rpc_stream *peer; /* NULL: not connected yet */
    rpc_server *server;
    char address[RPC_ADDRESS_BYTES]; /* of a client: where to */
    const char *method;
    rpc_handlers handlers;
    void *context;
    rpc_metadata metadata[RPC_METADATA_MAX];
    unsigned metadata_count;
    bool is_server, waits_for_ready, is_closed, is_ending, has_ended, is_sending_over, wants_room, is_delivering;
    uint64_t deadline_ns, opened_ns;
    message *first, *last; /* on their way from here, in order */
    unsigned count;
    size_t bytes, bytes_max;
};

struct rpc_server {
    process *process;
    rpc_server *next;
    char address[RPC_ADDRESS_BYTES];
    rpc_method methods[RPC_METHODS_MAX];
    unsigned method_count, open_streams;
    bool is_closing;
};

static inline void *must_have(void *memory) {
    assert(memory != NULL);
    return memory;
}

/* Behind everything that waits there already; nothing where the queue is closed, or its process dead. */
void rpc_queue_put(rpc_queue *q, entry given);

#endif
