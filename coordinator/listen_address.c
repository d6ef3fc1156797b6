/* listen_address.c - see listen_address.h. */
#include "coordinator/listen_address.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BACKLOG 4096

static bool is_loopback(const struct sockaddr *address) {
    if (address->sa_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)address;
        return (ntohl(v4->sin_addr.s_addr) >> 24) == 127;
    }
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)address;
    return IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr);
}

static hd_status split(const char *address, char *host, size_t host_bytes, const char **port, hd_error *error) {
    const char *colon = strrchr(address, ':');
    bool has_brackets = address[0] == '[' && colon != NULL && colon > address && colon[-1] == ']';
    const char *start = address + has_brackets;
    size_t length = colon == NULL ? 0 : (size_t)(colon - start) - has_brackets;
    bool is_bare_v6 = colon != NULL && !has_brackets && strchr(address, ':') != colon;
    if (colon == NULL || colon[1] == '\0' || length == 0 || length >= host_bytes || is_bare_v6) {
        return hd_error_set(error, HD_INVALID, "--listen %s: give HOST:PORT, for instance 127.0.0.1:8000 or [::1]:8000",
                            address);
    }
    char *end;
    errno = 0;
    unsigned long number = strtoul(colon + 1, &end, 10);
    if (colon[1] < '0' || colon[1] > '9' || *end != '\0' || errno != 0 || number > 65535) {
        return hd_error_set(error, HD_INVALID, "--listen %s: the port is a number from 0 to 65535", address);
    }
    memcpy(host, start, length);
    host[length] = '\0';
    *port = colon + 1;
    return HD_OK;
}

static hd_status bind_one(const struct addrinfo *found, const char *address, int *listener, hd_error *error) {
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return hd_error_set(error, HD_IO, "--listen %s: no socket: %s", address, strerror(errno));
    int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0) {
        int code = errno;
        close(fd);
        return hd_error_set(error, HD_IO, "--listen %s: %s", address, strerror(code));
    }
    *listener = fd;
    return HD_OK;
}

hd_status listen_address_open(const char *address, bool must_be_loopback, int *listener,
                              char bound[LISTEN_ADDRESS_BYTES], hd_error *error) {
    char host[256];
    const char *port = NULL;
    hd_status status = split(address, host, sizeof(host), &port, error);
    if (status != HD_OK) return status;
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_PASSIVE | AI_NUMERICSERV},
                    *found = NULL;
    int code = getaddrinfo(host, port, &hints, &found);
    if (code != 0) return hd_error_set(error, HD_INVALID, "--listen %s: %s", address, gai_strerror(code));
    assert(found != NULL);
    /* "localhost" is both; clients that know one of them know the IPv4 one. */
    const struct addrinfo *chosen = found;
    for (const struct addrinfo *next = found; next != NULL && chosen->ai_family != AF_INET; next = next->ai_next) {
        if (next->ai_family == AF_INET) chosen = next;
    }
    if (must_be_loopback && !is_loopback(chosen->ai_addr)) {
        status = hd_error_set(
            error, HD_INVALID,
            "--listen %s can be reached from other machines, and there are no keys: give --api-keys FILE, or listen "
            "on 127.0.0.1",
            address);
    } else {
        status = bind_one(chosen, address, listener, error);
    }
    freeaddrinfo(found);
    if (status != HD_OK) return status;

    struct sockaddr_storage name = {.ss_family = AF_UNSPEC};
    socklen_t name_bytes = sizeof(name);
    char number[INET6_ADDRSTRLEN], service[8];
    if (getsockname(*listener, (struct sockaddr *)&name, &name_bytes) != 0 ||
        getnameinfo((struct sockaddr *)&name, name_bytes, number, sizeof(number), service, sizeof(service),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        close(*listener);
        return hd_error_set(error, HD_IO, "--listen %s: the bound address cannot be read", address);
    }
    snprintf(bound, LISTEN_ADDRESS_BYTES, name.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", number, service);
    return HD_OK;
}
