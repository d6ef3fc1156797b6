/* read_queue.c - requests go to the threads through a ring of pointers; an eventfd says how many are new.
 *
 * The ring cannot overflow, because it has a place for every request that may be lent. In the mode with several threads
 * the eventfd is a semaphore: whoever gets a unit of it owns the next place of the ring. */
#include "attention-node/read_queue.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/memory.h"

#define THREADS_MAX 8u      /* with preadv: the disk is busy from 4 requests on */
#define URING_ENTRIES 128u  /* in the kernel at once; others wait in the ring of pointers */
#define SLOW_READ_SECONDS 5 /* what FAULT_READ_SLOW adds */

struct read_queue {
    int file, event;
    uint32_t mask;
    read_request **ring; /* [mask + 1] */
    _Atomic uint32_t head, tail;
    _Atomic uint32_t depth;
    hd_turn turn;
    _Atomic bool is_closing;
    bool has_uring;
    struct io_uring uring;
    pthread_t threads[THREADS_MAX];
    uint32_t thread_count;
};

/* ---- Ends ---- */

static void end_request(read_queue *q, read_request *request, hd_status status) {
    atomic_fetch_sub_explicit(&q->depth, 1, memory_order_relaxed);
    request->done(request, status); /* its memory may be lent again from here on */
    hd_turn_advance(&q->turn);
}

hd_turn *read_queue_turn(read_queue *q) {
    return &q->turn;
}

static hd_status read_now(read_queue *q, const read_request *request) {
    for (;;) {
        ssize_t got = preadv(q->file, request->parts, (int)request->part_count, (off_t)request->offset);
        if (got == (ssize_t)request->bytes) return HD_OK;
        if (got < 0 && errno == EINTR) continue;
        char reason[64];
        hd_log(HD_LOG_ERROR, "cold_read_failed", "offset=%llu bytes=%llu got=%lld reason=%s",
               (unsigned long long)request->offset, (unsigned long long)request->bytes, (long long)got,
               hd_log_quote(got < 0 ? strerrordesc_np(errno) : "end of file", reason, sizeof(reason)));
        return HD_IO;
    }
}

static read_request *next_request(read_queue *q) {
    uint32_t place = atomic_fetch_add(&q->head, 1);
    read_request *request = q->ring[place & q->mask];
    atomic_store_explicit(&request->started_ns, hd_now_ns(), memory_order_relaxed);
    return request;
}

/* ---- Several threads ---- */

static void *thread_main(void *context) {
    read_queue *q = context;
    uint64_t unit;
    for (;;) {
        if (read(q->event, &unit, sizeof(unit)) != (ssize_t)sizeof(unit)) continue;
        if (atomic_load(&q->is_closing)) return NULL;
        read_request *request = next_request(q);
        if (fault_strikes(FAULT_READ_SLOW)) nanosleep(&(struct timespec){.tv_sec = SLOW_READ_SECONDS}, NULL);
        end_request(q, request, fault_strikes(FAULT_READ) ? HD_IO : read_now(q, request));
    }
}

/* ---- One thread with a ring ---- */

static struct __kernel_timespec slow_read = {.tv_sec = SLOW_READ_SECONDS};

static void watch_event(read_queue *q, uint64_t *news) {
    struct io_uring_sqe *entry = io_uring_get_sqe(&q->uring);
    io_uring_prep_read(entry, q->event, news, sizeof(*news), 0);
    io_uring_sqe_set_data(entry, NULL);
}

/* Hands what is in the ring of pointers to the kernel, as far as there is room; returns how many. */
static uint32_t start_reads(read_queue *q, uint32_t running) {
    uint32_t count = 0;
    while (running + count < URING_ENTRIES - 1 && atomic_load(&q->head) != atomic_load(&q->tail)) {
        read_request *request = next_request(q);
        if (fault_strikes(FAULT_READ)) {
            end_request(q, request, HD_IO);
            continue;
        }
        struct io_uring_sqe *entry = io_uring_get_sqe(&q->uring);
        if (fault_strikes(FAULT_READ_SLOW)) io_uring_prep_timeout(entry, &slow_read, 0, 0);
        else if (request->part_count > 1)
            io_uring_prep_readv(entry, q->file, request->parts, request->part_count, request->offset);
        else io_uring_prep_read(entry, q->file, request->parts[0].iov_base, (unsigned)request->bytes, request->offset);
        io_uring_sqe_set_data(entry, request);
        count++;
    }
    return count;
}

static void *uring_main(void *context) {
    read_queue *q = context;
    uint64_t news = 0;
    uint32_t running = 0;
    watch_event(q, &news);
    for (bool is_closing = false; !is_closing || running > 0;) {
        running += start_reads(q, running);
        io_uring_submit_and_wait(&q->uring, 1);
        struct io_uring_cqe *completion;
        while (io_uring_peek_cqe(&q->uring, &completion) == 0) {
            read_request *request = io_uring_cqe_get_data(completion);
            int result = completion->res;
            io_uring_cqe_seen(&q->uring, completion);
            if (request == NULL) {
                is_closing = atomic_load(&q->is_closing);
                if (!is_closing) watch_event(q, &news);
                continue;
            }
            running--;
            /* Whatever was odd about it, the plain call tells what is wrong, or does it. */
            end_request(q, request, result == (int)request->bytes ? HD_OK : read_now(q, request));
        }
    }
    return NULL;
}

/* ---- The owner ---- */

void read_queue_submit(read_queue *q, read_request *const *requests, uint32_t count) {
    if (count == 0) return;
    uint32_t tail = atomic_load_explicit(&q->tail, memory_order_relaxed);
    for (uint32_t i = 0; i < count; i++) {
        atomic_store_explicit(&requests[i]->started_ns, 0, memory_order_relaxed);
        q->ring[(tail + i) & q->mask] = requests[i];
    }
    uint32_t depth = atomic_fetch_add_explicit(&q->depth, count, memory_order_relaxed);
    assert(depth + count <= q->mask + 1);
    (void)depth;
    atomic_store(&q->tail, tail + count);
    uint64_t units = count;
    ssize_t written = write(q->event, &units, sizeof(units));
    assert(written == (ssize_t)sizeof(units));
    (void)written;
}

uint32_t read_queue_depth(const read_queue *q) {
    return atomic_load_explicit(&q->depth, memory_order_relaxed);
}

const char *read_queue_name(const read_queue *q) {
    return q->has_uring ? "io_uring" : "preadv";
}

static hd_status start_threads(read_queue *q) {
    sigset_t all, before; /* signals are for the threads that expect them */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    uint32_t wanted = q->has_uring ? 1 : THREADS_MAX;
    while (q->thread_count < wanted &&
           pthread_create(&q->threads[q->thread_count], NULL, q->has_uring ? uring_main : thread_main, q) == 0) {
        pthread_setname_np(q->threads[q->thread_count], "cold-read");
        q->thread_count++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return q->thread_count > 0 ? HD_OK : HD_NO_MEMORY;
}

hd_status read_queue_open(int file, uint32_t requests_max, read_queue **out) {
    assert(requests_max > 0);
    read_queue *q = hd_alloc_zeroed(sizeof(*q), HD_CACHE_LINE);
    if (q == NULL) return HD_NO_MEMORY;
    uint32_t places = 1;
    while (places < requests_max) places *= 2;
    q->file = file;
    q->mask = places - 1;
    q->ring = hd_alloc_zeroed(places * sizeof(*q->ring), HD_CACHE_LINE);
    q->has_uring = !fault_strikes(FAULT_URING) && io_uring_queue_init(URING_ENTRIES, &q->uring, 0) == 0;
    q->event = eventfd(0, EFD_CLOEXEC | (q->has_uring ? 0 : EFD_SEMAPHORE));
    hd_status status = q->ring == NULL || q->event < 0 ? HD_NO_MEMORY : start_threads(q);
    if (status == HD_OK) *out = q;
    else read_queue_close(q);
    return status;
}

void read_queue_close(read_queue *q) {
    if (q == NULL) return;
    for (uint32_t seen; seen = hd_turn_read(&q->turn), read_queue_depth(q) > 0;) {
        hd_turn_wait(&q->turn, seen, 100000000u);
    }
    atomic_store(&q->is_closing, true);
    uint64_t units = q->thread_count;
    if (units > 0 && write(q->event, &units, sizeof(units)) != (ssize_t)sizeof(units)) return;
    for (uint32_t i = 0; i < q->thread_count; i++) pthread_join(q->threads[i], NULL);
    if (q->has_uring) io_uring_queue_exit(&q->uring);
    if (q->event >= 0) close(q->event);
    hd_free(q->ring);
    hd_free(q);
}
