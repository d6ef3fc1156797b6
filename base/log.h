/* log.h - logfmt lines on stderr: time=... level=... event=... key=value ...
 *
 * Whoever first knows a cause logs it, once, with the facts. Prompts and generated text are never logged. A line is
 * written with one write(2), so lines of several threads do not mix. Values are quoted where logfmt needs it.
 * Threads: every call may be made from any thread. */
#ifndef HD_LOG_H
#define HD_LOG_H

typedef enum { HD_LOG_DEBUG, HD_LOG_INFO, HD_LOG_WARN, HD_LOG_ERROR } hd_log_level;

void hd_log_set_level(hd_log_level minimum);
/* This node's name, cut to 127 bytes: every line says it from now on, as origin=... Once, before there are threads that
 * log much: a line that is written meanwhile may be without it. */
void hd_log_set_origin(const char *name);

/* event is a short snake_case word; pairs_format prints "key=value key=value" with strings already quoted through %s of
 * hd_log_quote where they may hold spaces:
 *     hd_log(HD_LOG_INFO, "listening", "address=%s", address); */
void hd_log(hd_log_level level, const char *event, const char *pairs_format, ...) __attribute__((format(printf, 3, 4)));

/* Quotes text as a logfmt value into the caller's buffer and returns the buffer. */
const char *hd_log_quote(const char *text, char *buffer, unsigned long buffer_bytes);

#endif
