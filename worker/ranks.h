/* ranks.h - the ranks of a worker: each has some columns of every matrix (model/weights.h), and rank 0, which runs the
 * forward pass, asks the others for theirs.
 *
 * A column is computed by one rank, over its whole depth, by the same kernel as in one process; so logits have the same
 * bits at any number of ranks, and nothing is summed across them. (Rows of the matrix cut into fixed slices and summed
 * in a fixed tree would give that too, with other bits than one process has and sums in fp32 on the wire.) What crosses
 * is a product's input, which every rank needs whole, and its output.
 *
 *   rank 0:  ask(call) -- its own columns -- take(call)        the others:  serve
 *
 * Threads: rank 0's calls by one thread at a time; serve by the thread that calls it and its pool. */
#ifndef WORKER_RANKS_H
#define WORKER_RANKS_H

#include "base/threads.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/weights.h"
#include "proto/collective.h"

typedef struct ranks ranks;

typedef struct ranks_config {
    collective *collective; /* lent */
    const model_config *model;
    const model_weights *weights; /* this rank's; weights->share is the collective's */
    const kernel_ops *kernels;
    hd_pool *pool;
    uint32_t rows_max; /* of a product; of a step and of logits */
} ranks_config;

typedef enum { RANKS_END, RANKS_QKV, RANKS_OUTPUT, RANKS_GATE_UP, RANKS_DOWN, RANKS_LOGITS } ranks_matrix;

/* A product as rank 0 has it: its call has rank 0's columns, its output has room for all. */
typedef struct ranks_call {
    ranks_matrix matrix;
    uint32_t layer;
    kernel_matmul call;
} ranks_call;

hd_status ranks_open(const ranks_config *config, ranks **out, hd_error *error);
void ranks_close(ranks *ranks); /* rank 0's tells the others to leave serve; accepts NULL */

/* Rank 0. The call's input is whole, and stays so until take, which puts the others' columns into the output. */
void ranks_ask(ranks *ranks, const ranks_call *call);
void ranks_take(ranks *ranks, const ranks_call *call);

/* Another rank: answers until rank 0 closes. */
void ranks_serve(ranks *ranks);

#endif
