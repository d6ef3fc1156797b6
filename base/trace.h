/* trace.h - names of traces, as W3C Trace Context has them: one name for what all nodes do for a request.
 *
 * Threads: pure functions. */
#ifndef HD_TRACE_H
#define HD_TRACE_H

#include <stdbool.h>
#include <stddef.h>

#define HD_TRACE_DIGITS 32u
#define HD_TRACE_BYTES (HD_TRACE_DIGITS + 1u) /* lower-case hexadecimal, zero terminated; "" is none */

/* The trace of a traceparent header. False, and none, where that is none, or NULL. */
bool hd_trace_parse(const char *traceparent, char trace_id[HD_TRACE_BYTES]);
/* A name that came over a wire: none where it is not one. */
void hd_trace_take(const char *text, size_t bytes, char trace_id[HD_TRACE_BYTES]);

#endif
