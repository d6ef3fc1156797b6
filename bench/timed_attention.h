/* timed_attention.h - an attention that passes every call on to another and adds up the time that attending took.
 *
 * Threads: as attention.h; the time is read by the step thread between steps. */
#ifndef BENCH_TIMED_ATTENTION_H
#define BENCH_TIMED_ATTENTION_H

#include "attention-node/attention.h"

typedef struct timed_attention {
    attention base; /* what the forward pass is given */
    attention_ops ops;
    attention *inner;
    uint64_t attend_ns; /* submit and wait, since it was last set to 0 */
    uint64_t begin_ns;  /* step_begin and step_end */
    /* What is done with a layer's call before it is submitted, and with its output; not counted. NULL: nothing. */
    void (*before_submit)(void *context, const attention_layer_call *call);
    void (*after_wait)(void *context, const attention_layer_call *call);
    void *context;
    attention_layer_call call; /* the last one */
} timed_attention;

/* The caller's memory, which stays where it is; inner is lent and stays the caller's: close does nothing. */
void timed_attention_init(timed_attention *timed, attention *inner);

#endif
