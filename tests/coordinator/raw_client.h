/* raw_client.h - an HTTP client that does what it is told, also what no proper client would: half requests, hanging up.
 *
 * Threads: a connection belongs to one thread. */
#ifndef TESTS_COORDINATOR_RAW_CLIENT_H
#define TESTS_COORDINATOR_RAW_CLIENT_H

#include <stdbool.h>
#include <stddef.h>

typedef struct raw_answer {
    unsigned status;
    char headers[16384]; /* as sent, with the status line */
    char *body;          /* chunks put together; zero terminated */
    size_t body_bytes;
    bool is_cut; /* the connection ended before the answer did */
} raw_answer;

int raw_connect(const char *address);
/* With a receive buffer of so many bytes (about; 0: the system's default), for clients that do not read. */
int raw_connect_with(const char *address, int receive_bytes);
/* Waits, without reading, until the connection has been reset; false when it has not been after timeout_ms. */
bool raw_wait_reset(int fd, int timeout_ms);
void raw_send(int fd, const void *bytes, size_t byte_count);
void raw_send_text(int fd, const char *text);
/* POST with content type JSON; extra_headers end with \r\n each, or "". */
void raw_post(int fd, const char *path, const char *extra_headers, const char *body);
void raw_get(int fd, const char *path, const char *extra_headers);
/* Reads one whole answer; a second one may follow on the same connection. */
raw_answer raw_receive(int fd);
/* Reads until text has come (true) or the connection ends. What was read is put into buffer. */
bool raw_receive_until(int fd, const char *text, char *buffer, size_t buffer_bytes);
void raw_hang_up(int fd);
void raw_answer_fini(raw_answer *answer);
/* The value of a header into the caller's buffer; NULL when absent. */
const char *raw_header(const raw_answer *answer, const char *name, char *buffer, size_t buffer_bytes);

#endif
