/* status.h - the one status type, and the sentence that goes with it.
 *
 * What can fail returns hd_status. Errors of the world get a status; errors of the programmer get an assert. gRPC,
 * CUDA and errno codes become a status at the edge where they arrive. Where a person has to act on the failure (a bad
 * file, a bad field, a bad flag), the call also takes an hd_error and fills in one sentence that names the thing and
 * what to do.
 * Threads: a status is a value; an hd_error belongs to the caller and is written by one call at a time. */
#ifndef HD_STATUS_H
#define HD_STATUS_H

#define HD_STATUS_LIST(X)                                                                                              \
    X(HD_OK, "ok")                                                                                                     \
    X(HD_PENDING, "accepted; completion follows")                                                                      \
    X(HD_FULL, "at capacity")                                                                                          \
    X(HD_NO_MEMORY, "out of memory")                                                                                   \
    X(HD_STALE, "no such thing now")                                                                                   \
    X(HD_INVALID, "invalid argument")                                                                                  \
    X(HD_UNSUPPORTED, "not supported")                                                                                 \
    X(HD_NOT_FOUND, "not found")                                                                                       \
    X(HD_CANCELLED, "cancelled")                                                                                       \
    X(HD_TIMED_OUT, "timed out")                                                                                       \
    X(HD_PEER_LOST, "peer lost")                                                                                       \
    X(HD_IO, "input/output error")                                                                                     \
    X(HD_CORRUPT, "bad bytes")

#define HD_STATUS_CODE(code, text) code,
typedef enum { HD_STATUS_LIST(HD_STATUS_CODE) HD_STATUS_COUNT } hd_status;

/* "HD_FULL" and "at capacity". Never NULL. */
const char *hd_status_name(hd_status status);
const char *hd_status_text(hd_status status);

/* One sentence for a person. Truncated, never overrun; always terminated. */
typedef struct hd_error {
    char text[512];
} hd_error;

/* Writes the sentence (error may be NULL) and returns status, so that a failing path reads
 *     return hd_error_set(error, HD_INVALID, "%s: 'vocab_size' must be a positive integer", path);
 * A macro, so that a compiler or an analyser sees in the caller that the status is not HD_OK. */
#define hd_error_set(error, status, ...) (hd_error_write((error), __VA_ARGS__), hd_status_pass(status))
void hd_error_write(hd_error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));
static inline hd_status hd_status_pass(hd_status status) {
    return status;
}

#endif
