/* handover.h - a row of a sequence goes from one attention node to another while its owner goes on decoding: what the
 * owner does next.
 *
 *   IDLE --begin--> COPYING --the copy is near--> SWITCHING --it has every token--> ADOPTING --adopted--> IDLE
 *                      ^                             | not in time: decoding goes on
 *                      +-----------------------------+
 *   COPYING, SWITCHING --refused, lost, no progress, cancel--> ENDING --ended--> IDLE
 *
 * In COPYING the owner asks the receiving node now and then how far it is; that node fetches full blocks from the other
 * one by itself. In SWITCHING the owner stands between two steps: it names the sequence's length, and the receiver
 * fetches the rest, the block that is not full included. When it has all tokens, the sequence is the receiver's as well
 * as the source's, and the owner changes the placement: with a move the source is closed, with a repair both go on as
 * replicas.
 *   1. The placement never names the receiver before it has said that it has every token of every block.
 *   2. Whatever ends a handover before that leaves the sequence as it is. The receiver is told to forget it.
 *   3. A switch takes at most switch_ns, and the next attempt comes no sooner than pause_ns later.
 * No thread, no clock, no memory of its own: events in, actions out. A value. */
#ifndef ATTENTION_NODE_HANDOVER_H
#define ATTENTION_NODE_HANDOVER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef struct handover_limits {
    uint64_t poll_ns;    /* between two questions while it is copied */
    uint64_t switch_ns;  /* of standing still, at most */
    uint64_t pause_ns;   /* between two attempts to switch */
    uint64_t stall_ns;   /* without a token more at the receiver, and it is given up */
    uint64_t lag_tokens; /* the copy is near when it lacks no more, */
    uint64_t lag_ns;     /* or no more than has come in so long on average: what is prefilled grows by many at once */
} handover_limits;

typedef enum { HANDOVER_IDLE, HANDOVER_COPYING, HANDOVER_SWITCHING, HANDOVER_ADOPTING, HANDOVER_ENDING } handover_state;

typedef enum {
    HANDOVER_WAIT,   /* nothing now */
    HANDOVER_ASK,    /* the receiver: how many tokens do you have? */
    HANDOVER_SWITCH, /* the receiver: have all of them within wait_ns; no step before handover_answered */
    HANDOVER_ADOPT,  /* the placement: it names the receiver now; then handover_adopted */
    HANDOVER_END,    /* the receiver: forget it; then handover_ended */
} handover_action;

typedef struct handover {
    handover_limits limits;
    handover_state state;
    uint64_t tokens;                 /* that the receiver has */
    uint64_t first_tokens, first_ns; /* of the first answer: what was there at once is no measure of the copy */
    uint64_t next_ns, progress_ns, switch_after_ns;
    uint64_t answers, switches; /* heard; attempted */
    hd_status why;              /* ENDING */
} handover;

void handover_begin(handover *h, const handover_limits *limits, uint64_t now_ns);
/* Between two steps: what to do, for a sequence of so many tokens. */
handover_action handover_next(handover *h, uint64_t length, uint64_t now_ns);
/* It stands behind another one at the receiver, so that nothing comes is no lack of progress. */
void handover_waited(handover *h, uint64_t now_ns);
/* What the receiver said to ASK or SWITCH. HD_PENDING: it has `tokens` and goes on. HD_OK: all of them, to SWITCH
 * alone. Everything else ends it. */
void handover_answered(handover *h, hd_status status, uint64_t tokens, uint64_t now_ns);
/* What asked for it is over: the operator has changed his mind, the sequence was cut, closed or taken over, a node
 * lost. */
void handover_cancel(handover *h, hd_status why);
void handover_adopted(handover *h);
void handover_ended(handover *h);

#endif
