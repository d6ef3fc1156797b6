#include "tests/coordinator/raw_client.h"

#include <arpa/inet.h>
#include <assert.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

int raw_connect(const char *address) {
    return raw_connect_with(address, 0);
}

int raw_connect_with(const char *address, int receive_bytes) {
    const char *colon = strrchr(address, ':');
    char host[64];
    snprintf(host, sizeof(host), "%.*s", (int)(colon - address), address);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(colon + 1))};
    inet_pton(AF_INET, host, &to.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (receive_bytes > 0) setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof(receive_bytes));
    struct timeval limit = {.tv_sec = 60};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    int code = connect(fd, (struct sockaddr *)&to, sizeof(to));
    assert(code == 0);
    (void)code;
    return fd;
}

void raw_send(int fd, const void *bytes, size_t byte_count) {
    const char *at = bytes;
    while (byte_count > 0) {
        ssize_t sent = send(fd, at, byte_count, MSG_NOSIGNAL);
        if (sent <= 0) return;
        at += sent;
        byte_count -= (size_t)sent;
    }
}

void raw_send_text(int fd, const char *text) {
    raw_send(fd, text, strlen(text));
}

void raw_post(int fd, const char *path, const char *extra_headers, const char *body) {
    char head[1024];
    snprintf(head, sizeof(head),
             "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n%s\r\n", path,
             strlen(body), extra_headers);
    raw_send_text(fd, head);
    raw_send_text(fd, body);
}

void raw_get(int fd, const char *path, const char *extra_headers) {
    char head[1024];
    snprintf(head, sizeof(head), "GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n", path, extra_headers);
    raw_send_text(fd, head);
}

/* One byte at a time: slow, and never reads into the next answer. */
static bool read_line(int fd, char *line, size_t line_bytes) {
    size_t length = 0;
    while (length + 1 < line_bytes) {
        if (recv(fd, line + length, 1, 0) != 1) break;
        if (line[length++] == '\n') {
            line[length] = '\0';
            return true;
        }
    }
    line[length] = '\0';
    return false;
}

static bool read_body(int fd, raw_answer *answer, size_t byte_count) {
    answer->body = realloc(answer->body, answer->body_bytes + byte_count + 1);
    size_t end = answer->body_bytes + byte_count;
    while (answer->body_bytes < end) {
        ssize_t got = recv(fd, answer->body + answer->body_bytes, end - answer->body_bytes, 0);
        if (got <= 0) break;
        answer->body_bytes += (size_t)got;
    }
    answer->body[answer->body_bytes] = '\0';
    return answer->body_bytes == end;
}

static const char *find_header(const char *headers, const char *name, char *buffer, size_t buffer_bytes) {
    for (const char *line = headers; line != NULL && *line != '\0'; line = strchr(line, '\n') + 1) {
        size_t length = strlen(name);
        if (strncasecmp(line, name, length) != 0 || line[length] != ':') continue;
        const char *value = line + length + 1 + strspn(line + length + 1, " ");
        snprintf(buffer, buffer_bytes, "%.*s", (int)strcspn(value, "\r\n"), value);
        return buffer;
    }
    return NULL;
}

const char *raw_header(const raw_answer *answer, const char *name, char *buffer, size_t buffer_bytes) {
    return find_header(answer->headers, name, buffer, buffer_bytes);
}

static bool receive(int fd, raw_answer *answer) {
    char line[2048], value[64];
    char *headers = answer->headers;
    do {
        if (!read_line(fd, line, sizeof(line))) return false;
        strncat(headers, line, sizeof(answer->headers) - 1 - strlen(headers));
    } while (strcmp(line, "\r\n") != 0);
    sscanf(headers, "HTTP/1.%*d %u", &answer->status);
    if (find_header(headers, "Content-Length", value, sizeof(value)) != NULL) {
        return read_body(fd, answer, (size_t)atol(value));
    }
    for (;;) {
        if (!read_line(fd, line, sizeof(line))) return false;
        size_t chunk = strtoul(line, NULL, 16);
        if (!read_body(fd, answer, chunk) || !read_line(fd, line, sizeof(line))) return false;
        if (chunk == 0) return true;
    }
}

raw_answer raw_receive(int fd) {
    raw_answer answer = {0};
    answer.is_cut = !receive(fd, &answer);
    if (answer.body == NULL) answer.body = calloc(1, 1);
    return answer;
}

bool raw_receive_until(int fd, const char *text, char *buffer, size_t buffer_bytes) {
    size_t length = 0;
    buffer[0] = '\0';
    while (strstr(buffer, text) == NULL) {
        if (length + 1 == buffer_bytes) return false;
        ssize_t got = recv(fd, buffer + length, buffer_bytes - 1 - length, 0);
        if (got <= 0) return false;
        length += (size_t)got;
        buffer[length] = '\0';
    }
    return true;
}

bool raw_wait_reset(int fd, int timeout_ms) {
    struct pollfd end = {.fd = fd}; /* errors and hang-ups are always told */
    return poll(&end, 1, timeout_ms) == 1;
}

void raw_hang_up(int fd) {
    close(fd);
}

void raw_answer_fini(raw_answer *answer) {
    free(answer->body);
    *answer = (raw_answer){0};
}
