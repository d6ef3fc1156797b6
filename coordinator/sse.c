/* sse.c - see sse.h. */
#include "coordinator/sse.h"

void sse_begin(http_exchange *exchange) {
    http_exchange_set_header(exchange, "Cache-Control", "no-cache");
    http_exchange_set_header(exchange, "X-Accel-Buffering", "no"); /* reverse proxies would hold tokens back */
    http_exchange_stream_begin(exchange, 200, "text/event-stream; charset=utf-8");
}

void sse_event_begin(text_buffer *out) {
    text_buffer_text(out, "data: ");
}

void sse_event_end(text_buffer *out) {
    text_buffer_text(out, "\n\n");
}

void sse_comment(text_buffer *out, const char *text) {
    text_buffer_format(out, ": %s\n\n", text);
}

void sse_done(text_buffer *out) {
    text_buffer_text(out, "data: [DONE]\n\n");
}
