/* delay_relay.c - one thread, poll, and in each direction a ring of bytes with the times at which they are due. */
#include "bench/delay_relay.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

#define PAIRS_MAX 16u
#define PIECES_MAX 4096u

typedef struct piece {
    uint64_t due_ns;
    size_t count;
} piece;

typedef struct direction { /* what came from one socket and goes to another */
    unsigned char *bytes;  /* [DELAY_RELAY_BYTES], a ring */
    piece *pieces;         /* [PIECES_MAX], a ring */
    uint64_t bytes_in, bytes_out, pieces_in, pieces_out;
} direction;

typedef struct pair {
    int ends[2];       /* -1: no pair here */
    direction ways[2]; /* from ends[i] to the other */
} pair;

struct delay_relay {
    struct sockaddr_in target;
    uint64_t delay_ns;
    int listener, stop;
    char address[64];
    pthread_t thread;
    bool has_thread;
    pair pairs[PAIRS_MAX];
};

static void close_pair(pair *p) {
    for (int i = 0; i < 2; i++) {
        if (p->ends[i] >= 0) close(p->ends[i]);
        p->ends[i] = -1;
        free(p->ways[i].bytes);
        free(p->ways[i].pieces);
        p->ways[i] = (direction){.bytes = NULL};
    }
}

static void set_up(int socket) {
    int yes = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
    fcntl(socket, F_SETFL, O_NONBLOCK);
}

static void accept_pair(delay_relay *r) {
    int near = accept4(r->listener, NULL, NULL, SOCK_CLOEXEC);
    pair *p = NULL;
    for (uint32_t i = 0; i < PAIRS_MAX && p == NULL; i++) {
        if (r->pairs[i].ends[0] < 0) p = &r->pairs[i];
    }
    if (near < 0 || p == NULL) {
        if (near >= 0) close(near);
        return;
    }
    p->ends[0] = near;
    p->ends[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool is_open = p->ends[1] >= 0 && connect(p->ends[1], (struct sockaddr *)&r->target, sizeof(r->target)) == 0;
    for (int i = 0; i < 2 && is_open; i++) {
        set_up(p->ends[i]);
        p->ways[i].bytes = malloc(DELAY_RELAY_BYTES);
        p->ways[i].pieces = malloc(PIECES_MAX * sizeof(piece));
        is_open = p->ways[i].bytes != NULL && p->ways[i].pieces != NULL;
    }
    if (!is_open) close_pair(p);
}

static size_t room(const direction *d) {
    if (d->pieces_in - d->pieces_out == PIECES_MAX) return 0;
    size_t to_end = DELAY_RELAY_BYTES - d->bytes_in % DELAY_RELAY_BYTES;
    size_t left = DELAY_RELAY_BYTES - (size_t)(d->bytes_in - d->bytes_out);
    return left < to_end ? left : to_end;
}

/* False: the connection is over. */
static bool take(delay_relay *r, direction *d, int from) {
    ssize_t count = recv(from, d->bytes + d->bytes_in % DELAY_RELAY_BYTES, room(d), 0);
    if (count <= 0) return count < 0 && (errno == EAGAIN || errno == EINTR);
    d->bytes_in += (uint64_t)count;
    d->pieces[d->pieces_in++ % PIECES_MAX] = (piece){hd_now_ns() + r->delay_ns, (size_t)count};
    return true;
}

static bool give(direction *d, int to, uint64_t now) {
    while (d->pieces_out < d->pieces_in) {
        piece *next = &d->pieces[d->pieces_out % PIECES_MAX];
        if (next->due_ns > now) return true;
        /* A piece was received in one piece, so it does not go round the end. */
        ssize_t count = send(to, d->bytes + d->bytes_out % DELAY_RELAY_BYTES, next->count, MSG_NOSIGNAL);
        if (count < 0) return errno == EAGAIN || errno == EINTR;
        d->bytes_out += (uint64_t)count;
        next->count -= (size_t)count;
        if (next->count == 0) d->pieces_out++;
    }
    return true;
}

/* What the thread waits for; returns when the next piece is due. */
static uint64_t list(const delay_relay *r, struct pollfd *fds, uint64_t now) {
    uint64_t due = UINT64_MAX;
    fds[0] = (struct pollfd){.fd = r->stop, .events = POLLIN};
    fds[1] = (struct pollfd){.fd = r->listener, .events = POLLIN};
    for (uint32_t i = 0; i < PAIRS_MAX; i++) {
        const pair *p = &r->pairs[i];
        for (int k = 0; k < 2; k++) {
            const direction *in = &p->ways[k], *out = &p->ways[1 - k];
            bool has_out = p->ends[k] >= 0 && out->pieces_out < out->pieces_in;
            uint64_t next = has_out ? out->pieces[out->pieces_out % PIECES_MAX].due_ns : UINT64_MAX;
            short events = p->ends[k] >= 0 && room(in) > 0 ? POLLIN : 0;
            if (next <= now) events |= POLLOUT; /* it was due, and the socket took no more */
            else if (next < due) due = next;
            fds[2 + 2 * i + (uint32_t)k] = (struct pollfd){.fd = p->ends[k], .events = events};
        }
    }
    return due;
}

static void *relay_main(void *context) {
    delay_relay *r = context;
    struct pollfd fds[2 + 2 * PAIRS_MAX];
    for (;;) {
        uint64_t now = hd_now_ns(), due = list(r, fds, now), wait = due == UINT64_MAX ? 1000000000u : due - now;
        struct timespec timeout = {(time_t)(wait / 1000000000u), (long)(wait % 1000000000u)};
        (void)ppoll(fds, sizeof(fds) / sizeof(fds[0]), &timeout, NULL);
        if (fds[0].revents != 0) return NULL;
        if (fds[1].revents != 0) accept_pair(r);
        now = hd_now_ns();
        for (uint32_t i = 0; i < PAIRS_MAX; i++) {
            pair *p = &r->pairs[i];
            bool is_open = p->ends[0] >= 0;
            for (int k = 0; k < 2 && is_open; k++) {
                bool has_news =
                    fds[2 + 2 * i + (uint32_t)k].fd == p->ends[k] && fds[2 + 2 * i + (uint32_t)k].revents != 0;
                if (has_news && room(&p->ways[k]) > 0) is_open = take(r, &p->ways[k], p->ends[k]);
                if (is_open) is_open = give(&p->ways[1 - k], p->ends[k], now);
            }
            if (!is_open) close_pair(p);
        }
    }
}

static bool listen_on_loopback(delay_relay *r) {
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof(any);
    r->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    r->stop = eventfd(0, EFD_CLOEXEC);
    if (r->listener < 0 || r->stop < 0 || bind(r->listener, (struct sockaddr *)&any, sizeof(any)) != 0 ||
        listen(r->listener, (int)PAIRS_MAX) != 0 || getsockname(r->listener, (struct sockaddr *)&any, &length) != 0)
        return false;
    snprintf(r->address, sizeof(r->address), "127.0.0.1:%u", ntohs(any.sin_port));
    return true;
}

hd_status delay_relay_open(const char *target, uint64_t delay_ns, delay_relay **out, hd_error *error) {
    delay_relay *r = calloc(1, sizeof(*r));
    if (r == NULL) return hd_error_set(error, HD_NO_MEMORY, "out of memory");
    for (uint32_t i = 0; i < PAIRS_MAX; i++) r->pairs[i].ends[0] = r->pairs[i].ends[1] = -1;
    r->delay_ns = delay_ns;
    r->target = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    const char *colon = strrchr(target, ':');
    if (colon != NULL) r->target.sin_port = htons((uint16_t)atoi(colon + 1));
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    r->has_thread = listen_on_loopback(r) && pthread_create(&r->thread, NULL, relay_main, r) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!r->has_thread) {
        delay_relay_close(r);
        return hd_error_set(error, HD_IO, "no port on loopback for a relay to %s", target);
    }
    pthread_setname_np(r->thread, "delay-relay");
    *out = r;
    return HD_OK;
}

const char *delay_relay_address(const delay_relay *r) {
    return r->address;
}

void delay_relay_close(delay_relay *r) {
    if (r == NULL) return;
    if (r->has_thread) {
        eventfd_write(r->stop, 1);
        pthread_join(r->thread, NULL);
    }
    for (uint32_t i = 0; i < PAIRS_MAX; i++) close_pair(&r->pairs[i]);
    if (r->listener >= 0) close(r->listener);
    if (r->stop >= 0) close(r->stop);
    free(r);
}
