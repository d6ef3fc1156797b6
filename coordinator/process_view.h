/* process_view.h - what an operator sees of a server that is one process, and what he can ask of it: what router.h
 * offers of a cluster.
 *
 * The process is its one node, and each request that is being answered is a sequence.
 * Threads: any. */
#ifndef COORDINATOR_PROCESS_VIEW_H
#define COORDINATOR_PROCESS_VIEW_H

#include "coordinator/api.h"

/* JSON arrays, appended; rows as operator_rows.h has them. */
void process_view_write_nodes(api *a, text_buffer *out);
void process_view_write_steps(api *a, text_buffer *out);
void process_view_write_sequences(api *a, text_buffer *out);
/* HD_NOT_FOUND: no such sequence. */
hd_status process_view_cancel(api *a, const char *sequence, hd_error *error);

#endif
