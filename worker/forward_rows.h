/* forward_rows.h - the rows of a step, one after the other: which token each has, and which ones need logits.
 *
 * Threads: one. */
#ifndef WORKER_FORWARD_ROWS_H
#define WORKER_FORWARD_ROWS_H

#include "worker/forward.h"

typedef struct row_place { /* where a row of the step stands */
    uint32_t token_id;
    uint64_t position;
    const rope_table *rope;
} row_place;

typedef struct forward_rows {
    row_place *places;     /* [rows_max], of which row_count are in use */
    attention_rows *spans; /* [spans_max]: what attention is told */
    uint32_t *logits_rows; /* [rows_max], ascending: the rows that need logits */
    uint32_t row_count, logits_row_count, rows_max;
} forward_rows;

hd_status forward_rows_init(forward_rows *rows, uint32_t rows_max, uint32_t spans_max);
void forward_rows_fini(forward_rows *rows); /* accepts what a failed init left */

/* The rows of a step; they are at most rows_max. */
void forward_rows_place(forward_rows *rows, const forward_span *spans, uint32_t span_count);

#endif
