/* sse.h - server-sent events: how a stream begins, and its frames.
 *
 * JSON has no raw newlines, so an event is always one data line.
 * Threads: no state. */
#ifndef COORDINATOR_SSE_H
#define COORDINATOR_SSE_H

#include "coordinator/http_server.h"
#include "coordinator/text_buffer.h"

void sse_begin(http_exchange *exchange); /* status 200 and the headers */
void sse_event_begin(text_buffer *out);  /* then the event's JSON */
void sse_event_end(text_buffer *out);
void sse_comment(text_buffer *out,
                 const char *text); /* clients skip it; it keeps what is between from closing the connection */
void sse_done(text_buffer *out);    /* OpenAI's last event */

#endif
