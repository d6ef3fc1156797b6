/* hangup_watch.c - one epoll set, one thread, and slots with generations: an event that was fetched before its socket
 * was removed finds another generation, or none, and is dropped. */
#include "coordinator/hangup_watch.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define STOP_EVENT UINT64_MAX
#define NO_SLOT UINT32_MAX
#define BATCH 64

typedef struct watch_slot {
    void (*on_hangup)(void *context); /* NULL: free, or told already */
    void *context;
    uint32_t generation;
    uint32_t next_free;
} watch_slot;

struct hangup_watch {
    int epoll, stop;
    bool is_running;
    pthread_t thread;
    pthread_mutex_t lock; /* guards the slots */
    watch_slot *slots;
    uint32_t first_free;
};

static void tell(hangup_watch *watch, uint64_t data) {
    uint32_t slot = (uint32_t)data, generation = (uint32_t)(data >> 32);
    pthread_mutex_lock(&watch->lock);
    watch_slot *entry = &watch->slots[slot];
    if (entry->generation == generation && entry->on_hangup != NULL) {
        void (*on_hangup)(void *) = entry->on_hangup;
        entry->on_hangup = NULL;
        on_hangup(entry->context);
    }
    pthread_mutex_unlock(&watch->lock);
}

static void *thread_main(void *context) {
    hangup_watch *watch = context;
    struct epoll_event events[BATCH];
    for (;;) {
        int count = epoll_wait(watch->epoll, events, BATCH, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.u64 == STOP_EVENT) return NULL;
            tell(watch, events[i].data.u64);
        }
    }
}

hd_status hangup_watch_open(uint32_t entries_max, hangup_watch **out) {
    hangup_watch *watch = calloc(1, sizeof(*watch));
    if (watch == NULL) return HD_NO_MEMORY;
    pthread_mutex_init(&watch->lock, NULL);
    watch->epoll = epoll_create1(EPOLL_CLOEXEC);
    watch->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    watch->slots = calloc(entries_max, sizeof(*watch->slots));
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = STOP_EVENT};
    hd_status status = watch->slots == NULL ? HD_NO_MEMORY : HD_OK;
    if (status == HD_OK &&
        (watch->epoll < 0 || watch->stop < 0 || epoll_ctl(watch->epoll, EPOLL_CTL_ADD, watch->stop, &event) != 0)) {
        status = HD_IO;
    }
    for (uint32_t i = 0; status == HD_OK && i < entries_max; i++) {
        watch->slots[i].generation = 1;
        watch->slots[i].next_free = i + 1 < entries_max ? i + 1 : NO_SLOT;
    }
    if (status == HD_OK && pthread_create(&watch->thread, NULL, thread_main, watch) != 0) status = HD_NO_MEMORY;
    if (status != HD_OK) {
        hangup_watch_close(watch);
        return status;
    }
    pthread_setname_np(watch->thread, "http/hangup");
    watch->is_running = true;
    *out = watch;
    return HD_OK;
}

void hangup_watch_close(hangup_watch *watch) {
    if (watch == NULL) return;
    if (watch->is_running) {
        eventfd_write(watch->stop, 1);
        pthread_join(watch->thread, NULL);
    }
    if (watch->epoll >= 0) close(watch->epoll);
    if (watch->stop >= 0) close(watch->stop);
    pthread_mutex_destroy(&watch->lock);
    free(watch->slots);
    free(watch);
}

static void keep_alive(int fd) {
    int on = 1, idle_s = 30, interval_s = 10, probes = 3;
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
}

hd_status hangup_watch_add(hangup_watch *watch, int fd, void (*on_hangup)(void *context), void *context,
                           hangup_ticket *ticket) {
    pthread_mutex_lock(&watch->lock);
    uint32_t slot = watch->first_free;
    if (slot == NO_SLOT) {
        pthread_mutex_unlock(&watch->lock);
        return HD_FULL;
    }
    watch_slot *entry = &watch->slots[slot];
    watch->first_free = entry->next_free;
    entry->on_hangup = on_hangup;
    entry->context = context;
    *ticket = (hangup_ticket){.slot = slot, .generation = entry->generation};
    pthread_mutex_unlock(&watch->lock);

    keep_alive(fd);
    /* Level triggered would tell again and again until the socket is removed; once is enough. */
    struct epoll_event event = {.events = EPOLLRDHUP | EPOLLET | EPOLLONESHOT,
                                .data.u64 = ((uint64_t)ticket->generation << 32) | ticket->slot};
    if (epoll_ctl(watch->epoll, EPOLL_CTL_ADD, fd, &event) == 0) return HD_OK;
    hangup_watch_remove(watch, -1, ticket);
    return HD_IO;
}

void hangup_watch_remove(hangup_watch *watch, int fd, hangup_ticket *ticket) {
    if (ticket->generation == 0) return;
    if (fd >= 0) {
        struct epoll_event unused = {0};
        epoll_ctl(watch->epoll, EPOLL_CTL_DEL, fd, &unused);
    }
    pthread_mutex_lock(&watch->lock);
    watch_slot *entry = &watch->slots[ticket->slot];
    entry->on_hangup = NULL;
    if (++entry->generation == 0) entry->generation = 1;
    entry->next_free = watch->first_free;
    watch->first_free = ticket->slot;
    pthread_mutex_unlock(&watch->lock);
    *ticket = (hangup_ticket){0};
}
