/* transport_inproc.c - links between threads of one process: a ring of bytes in each direction.
 *
 * A record is a line of 64 bytes that holds its length, then the frame in one piece; where the rest of the ring is too
 * short for it, a record without a frame skips to the start. One thread writes and one reads, so the ring itself needs
 * no lock; locks are taken to wake the reader and to make and end links. */
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/memory.h"
#include "proto/transport.h"

#define NAME_BYTES 96u
#define RECORD_SKIP UINT64_MAX

typedef struct byte_ring {
    unsigned char *bytes;
    size_t capacity;
    _Alignas(HD_CACHE_LINE) _Atomic uint64_t written; /* never wraps */
    _Alignas(HD_CACHE_LINE) _Atomic uint64_t read;
} byte_ring;

typedef struct inproc_link {
    transport_link base; /* first */
    struct inproc_pair *pair;
    struct inproc_transport *transport; /* under the pair's lock; NULL: disconnected, or not accepted yet */
    struct inproc_link *next;           /* the transport's list: of its links, or of those to be accepted */
    struct inproc_listener *listener;   /* to be accepted by */
    transport_handlers handlers;
    void *context;
    byte_ring incoming;
    _Atomic bool wants_room, is_cut; /* is_cut: nothing more will be written to incoming */
    hd_status cut_status;            /* written before is_cut */
    bool is_lost;
} inproc_link;

typedef struct inproc_pair {
    pthread_mutex_t lock;
    unsigned refs;
    inproc_link ends[2];
} inproc_pair;

typedef struct inproc_listener {
    char address[NAME_BYTES], channel[NAME_BYTES];
    transport_accept *accept;
    void *listener;
    struct inproc_transport *transport;
    struct inproc_listener *next;
} inproc_listener;

struct inproc_hub {
    pthread_mutex_t lock;
    inproc_listener *listeners;
};

typedef struct inproc_transport {
    transport base; /* first */
    inproc_hub *hub;
    size_t ring_bytes;
    inproc_link *links; /* its thread's */
    pthread_mutex_t lock;
    pthread_cond_t news;
    bool has_news;          /* under the lock */
    inproc_link *accepting; /* under the lock */
} inproc_transport;

/* -- rings -- */

/* False: no room now. */
static bool ring_write(byte_ring *ring, const frame_part *pieces, unsigned count, size_t bytes) {
    uint64_t written = atomic_load_explicit(&ring->written, memory_order_relaxed);
    uint64_t read = atomic_load_explicit(&ring->read, memory_order_acquire);
    size_t record = HD_ALIGN_UP(bytes, FRAME_ALIGN) + FRAME_ALIGN;
    size_t at = written % ring->capacity, to_end = ring->capacity - at;
    size_t skip = record > to_end ? to_end : 0;
    if (written - read + skip + record > ring->capacity) return false;
    if (skip > 0) {
        memcpy(ring->bytes + at, &(uint64_t){RECORD_SKIP}, sizeof(uint64_t));
        at = 0;
    }
    memcpy(ring->bytes + at, &(uint64_t){bytes}, sizeof(uint64_t));
    unsigned char *target = ring->bytes + at + FRAME_ALIGN;
    for (unsigned i = 0; i < count; i++) {
        memcpy(target, pieces[i].bytes, pieces[i].count);
        target += pieces[i].count;
    }
    atomic_store_explicit(&ring->written, written + skip + record, memory_order_release);
    return true;
}

/* The next frame's bytes, or NULL; ring_drop takes it out. */
static const unsigned char *ring_front(byte_ring *ring, size_t *bytes) {
    for (;;) {
        uint64_t read = atomic_load_explicit(&ring->read, memory_order_relaxed), length;
        if (read == atomic_load_explicit(&ring->written, memory_order_acquire)) return NULL;
        size_t at = read % ring->capacity;
        memcpy(&length, ring->bytes + at, sizeof(length));
        if (length != RECORD_SKIP) {
            *bytes = length;
            return ring->bytes + at + FRAME_ALIGN;
        }
        atomic_store_explicit(&ring->read, read + ring->capacity - at, memory_order_release);
    }
}

static void ring_drop(byte_ring *ring, size_t bytes) {
    uint64_t read = atomic_load_explicit(&ring->read, memory_order_relaxed);
    atomic_store_explicit(&ring->read, read + HD_ALIGN_UP(bytes, FRAME_ALIGN) + FRAME_ALIGN, memory_order_release);
}

/* -- pairs -- */

static inproc_link *peer_of(inproc_link *link) {
    return link == &link->pair->ends[0] ? &link->pair->ends[1] : &link->pair->ends[0];
}

static void pair_drop(inproc_pair *pair) {
    pthread_mutex_lock(&pair->lock);
    bool is_last = --pair->refs == 0;
    pthread_mutex_unlock(&pair->lock);
    if (!is_last) return;
    for (int i = 0; i < 2; i++) hd_free(pair->ends[i].incoming.bytes);
    pthread_mutex_destroy(&pair->lock);
    hd_free(pair);
}

static inproc_pair *pair_new(size_t ring_bytes) {
    inproc_pair *pair = hd_alloc_zeroed(sizeof(*pair), HD_CACHE_LINE);
    if (pair == NULL) return NULL;
    pthread_mutex_init(&pair->lock, NULL);
    pair->refs = 2;
    for (int i = 0; i < 2; i++) {
        pair->ends[i].pair = pair;
        pair->ends[i].incoming.capacity = ring_bytes;
        pair->ends[i].incoming.bytes = hd_alloc(ring_bytes, FRAME_ALIGN);
    }
    if (pair->ends[0].incoming.bytes != NULL && pair->ends[1].incoming.bytes != NULL) return pair;
    pair_drop(pair);
    pair_drop(pair);
    return NULL;
}

static void inproc_wake(transport *self) {
    inproc_transport *t = (inproc_transport *)self;
    pthread_mutex_lock(&t->lock);
    t->has_news = true;
    pthread_cond_signal(&t->news);
    pthread_mutex_unlock(&t->lock);
}

static void wake_end(inproc_link *link) {
    pthread_mutex_lock(&link->pair->lock);
    if (link->transport != NULL) inproc_wake(&link->transport->base);
    pthread_mutex_unlock(&link->pair->lock);
}

/* Nothing more goes to that end. */
static void cut(inproc_link *end, hd_status status) {
    end->cut_status = status;
    atomic_store_explicit(&end->is_cut, true, memory_order_release);
    wake_end(end);
}

/* -- links -- */

static hd_status inproc_connect(transport *self, const char *address, const char *channel,
                                const transport_handlers *handlers, void *context, transport_link **out,
                                hd_error *error) {
    inproc_transport *t = (inproc_transport *)self;
    inproc_pair *pair = pair_new(t->ring_bytes);
    if (pair == NULL) return hd_error_set(error, HD_NO_MEMORY, "no memory for a link to %s", address);
    inproc_link *near = &pair->ends[0], *far = &pair->ends[1];
    near->base.owner = self;
    near->transport = t;
    near->handlers = *handlers;
    near->context = context;
    near->next = t->links;
    t->links = near;

    pthread_mutex_lock(&t->hub->lock);
    inproc_listener *listener = t->hub->listeners;
    while (listener != NULL && (strcmp(listener->address, address) != 0 || strcmp(listener->channel, channel) != 0))
        listener = listener->next;
    if (listener != NULL) {
        inproc_transport *owner = listener->transport;
        far->listener = listener;
        pthread_mutex_lock(&owner->lock);
        far->next = owner->accepting;
        owner->accepting = far;
        owner->has_news = true;
        pthread_cond_signal(&owner->news);
        pthread_mutex_unlock(&owner->lock);
    }
    pthread_mutex_unlock(&t->hub->lock);
    if (listener == NULL) {
        cut(near, HD_PEER_LOST);
        pair_drop(pair);
    }
    *out = &near->base;
    return HD_OK;
}

/* The far end of a link goes: with it everything that was sent to it. */
static void leave(inproc_link *link, hd_status reason) {
    inproc_pair *pair = link->pair;
    pthread_mutex_lock(&pair->lock);
    link->transport = NULL;
    pthread_mutex_unlock(&pair->lock);
    cut(peer_of(link), reason);
    pair_drop(pair);
}

static void inproc_disconnect(transport_link *base) {
    inproc_link *link = (inproc_link *)base;
    inproc_link **at = &link->transport->links;
    while (*at != link) at = &(*at)->next;
    *at = link->next;
    leave(link, HD_PEER_LOST);
}

static hd_status inproc_send(transport_link *base, const frame *f, transport_send *send) {
    inproc_link *link = (inproc_link *)base, *peer = peer_of(link);
    if (link->is_lost) return HD_PEER_LOST;
    frame_part pieces[FRAME_PIECES_MAX];
    size_t bytes = frame_bytes(f);
    if (bytes + FRAME_ALIGN > peer->incoming.capacity / 2) return HD_INVALID;
    unsigned count = frame_encode(f, send->head, pieces);
    if (!ring_write(&peer->incoming, pieces, count, bytes)) {
        atomic_store(&link->wants_room, true);
        /* The reader may have made room before it could see the wish. */
        if (!ring_write(&peer->incoming, pieces, count, bytes)) return HD_FULL;
        atomic_store(&link->wants_room, false);
    }
    wake_end(peer);
    if (send->done != NULL) send->done(send);
    return HD_OK;
}

static void lose(inproc_link *link) {
    link->is_lost = true;
    static const char *reasons[] = {"the peer has disconnected", "the peer has refused the link"};
    if (link->handlers.on_lost != NULL)
        link->handlers.on_lost(link->context, &link->base, link->cut_status, reasons[link->cut_status != HD_PEER_LOST]);
}

/* One event of one link. */
static bool run_link(inproc_link *link) {
    size_t bytes;
    bool is_cut = atomic_load_explicit(&link->is_cut, memory_order_acquire);
    const unsigned char *front = ring_front(&link->incoming, &bytes);
    if (front != NULL) {
        frame f;
        hd_error error;
        inproc_pair *pair = link->pair;
        hd_status status = frame_decode(front, bytes, &f, &error);
        assert(status == HD_OK); /* these bytes crossed no wire */
        (void)status;
        pthread_mutex_lock(&pair->lock);
        pair->refs++; /* the handler may disconnect */
        pthread_mutex_unlock(&pair->lock);
        link->handlers.on_frame(link->context, &link->base, &f);
        ring_drop(&link->incoming, bytes);
        if (atomic_load(&peer_of(link)->wants_room)) wake_end(peer_of(link));
        pair_drop(pair);
        return true;
    }
    if (is_cut && !link->is_lost) {
        lose(link);
        return true;
    }
    byte_ring *outgoing = &peer_of(link)->incoming;
    if (!link->is_lost && atomic_load(&link->wants_room) &&
        atomic_load(&outgoing->written) - atomic_load(&outgoing->read) <= outgoing->capacity / 2) {
        atomic_store(&link->wants_room, false);
        if (link->handlers.on_room != NULL) link->handlers.on_room(link->context, &link->base);
        return true;
    }
    return false;
}

/* -- the transport -- */

static void accept_link(inproc_transport *t, inproc_link *link) {
    link->base.owner = &t->base;
    hd_status status = link->listener->accept(link->listener->listener, &link->base, &link->handlers, &link->context);
    if (status != HD_OK) {
        leave(link, status);
        return;
    }
    pthread_mutex_lock(&link->pair->lock);
    link->transport = t;
    pthread_mutex_unlock(&link->pair->lock);
    link->next = t->links;
    t->links = link;
}

static bool run_once(inproc_transport *t) {
    pthread_mutex_lock(&t->lock);
    inproc_link *link = t->accepting;
    if (link != NULL) t->accepting = link->next;
    pthread_mutex_unlock(&t->lock);
    if (link != NULL) {
        accept_link(t, link);
        return true;
    }
    /* One event a poll: a handler may end any link, so the list is not walked further. */
    for (link = t->links; link != NULL; link = link->next) {
        if (run_link(link)) return true;
    }
    return false;
}

static bool inproc_poll(transport *self, uint64_t timeout_ns) {
    inproc_transport *t = (inproc_transport *)self;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t ns = (uint64_t)until.tv_nsec + timeout_ns % 1000000000u;
    until.tv_sec += (time_t)(timeout_ns / 1000000000u + ns / 1000000000u);
    until.tv_nsec = (long)(ns % 1000000000u);
    if (run_once(t)) return true;
    pthread_mutex_lock(&t->lock);
    int error = 0;
    while (!t->has_news && error == 0 && timeout_ns > 0) error = pthread_cond_timedwait(&t->news, &t->lock, &until);
    t->has_news = false;
    pthread_mutex_unlock(&t->lock);
    return run_once(t);
}

static void inproc_close(transport *self) {
    inproc_transport *t = (inproc_transport *)self;
    assert(t->links == NULL);
    pthread_mutex_lock(&t->hub->lock);
    for (inproc_listener **at = &t->hub->listeners; *at != NULL;) {
        inproc_listener *listener = *at;
        if (listener->transport == t) {
            *at = listener->next;
            free(listener);
        } else {
            at = &listener->next;
        }
    }
    pthread_mutex_unlock(&t->hub->lock);
    while (t->accepting != NULL) {
        inproc_link *link = t->accepting;
        t->accepting = link->next;
        leave(link, HD_PEER_LOST);
    }
    pthread_cond_destroy(&t->news);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

static const transport_ops ops = {.name = "inproc",
                                  .close = inproc_close,
                                  .connect = inproc_connect,
                                  .send = inproc_send,
                                  .disconnect = inproc_disconnect,
                                  .poll = inproc_poll,
                                  .wake = inproc_wake};

hd_status transport_inproc_open(inproc_hub *hub, size_t ring_bytes, transport **out) {
    inproc_transport *t = calloc(1, sizeof(*t));
    if (t == NULL) return HD_NO_MEMORY;
    t->base.ops = &ops;
    t->hub = hub;
    t->ring_bytes = HD_ALIGN_UP(ring_bytes, FRAME_ALIGN);
    pthread_mutex_init(&t->lock, NULL);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&t->news, &attributes);
    pthread_condattr_destroy(&attributes);
    *out = &t->base;
    return HD_OK;
}

hd_status transport_inproc_listen(transport *self, const char *address, const char *channel, transport_accept *accept,
                                  void *listener) {
    inproc_transport *t = (inproc_transport *)self;
    if (strlen(address) >= NAME_BYTES || strlen(channel) >= NAME_BYTES) return HD_INVALID;
    inproc_listener *l = calloc(1, sizeof(*l));
    if (l == NULL) return HD_NO_MEMORY;
    snprintf(l->address, sizeof(l->address), "%s", address);
    snprintf(l->channel, sizeof(l->channel), "%s", channel);
    l->accept = accept;
    l->listener = listener;
    l->transport = t;
    pthread_mutex_lock(&t->hub->lock);
    l->next = t->hub->listeners;
    t->hub->listeners = l;
    pthread_mutex_unlock(&t->hub->lock);
    return HD_OK;
}

hd_status inproc_hub_open(inproc_hub **out) {
    inproc_hub *hub = calloc(1, sizeof(*hub));
    if (hub == NULL) return HD_NO_MEMORY;
    pthread_mutex_init(&hub->lock, NULL);
    *out = hub;
    return HD_OK;
}

void inproc_hub_close(inproc_hub *hub) {
    if (hub == NULL) return;
    assert(hub->listeners == NULL);
    pthread_mutex_destroy(&hub->lock);
    free(hub);
}
