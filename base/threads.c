/* threads.c - the pool: words that threads wait for, first spinning, then in a futex.
 *
 * Every wait is on an `event`: a word that changes when there is news, and a count of who sleeps on it. The waker
 * changes the word and then looks for sleepers; a sleeper counts itself and then looks at the word (the kernel does,
 * atomically with going to sleep). Both are sequentially consistent, so one of the two sees the other and no wake-up
 * is lost, and a waker makes no system call when all the others still spin. A mutex with a condition variable would
 * take the lock in every run, even when nobody sleeps. */
#include "base/threads.h"

#include <assert.h>
#include <linux/futex.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/cgroup.h"
#include "base/clock.h"
#include "base/memory.h"

#define SPIN_NS 20000u
#define SPINS_PER_CLOCK 16 /* pauses between two looks at the clock */

typedef struct {
    _Alignas(HD_CACHE_LINE) _Atomic uint32_t word;
    _Atomic uint32_t sleepers;
} event;

struct hd_pool {
    event started;  /* word: the number of the run that is on, or was last */
    event finished; /* word: the number of the last run that is complete */
    event barrier;  /* word: how many barriers have been passed */
    /* Threads other than the caller that have not returned from this run. */
    _Alignas(HD_CACHE_LINE) _Atomic uint32_t running;
    _Alignas(HD_CACHE_LINE) _Atomic uint32_t arrived; /* at the barrier */

    /* Written by the caller between runs, published by `started`. */
    _Alignas(HD_CACHE_LINE) hd_pool_function *function;
    void *context;
    bool is_closing;
    bool is_running;

    unsigned thread_count, created_count;
    struct worker {
        hd_pool *pool;
        pthread_t thread;
        unsigned index;
    } workers[]; /* [thread_count - 1] */
};

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Returns once the word is not `value` any more. What was written before event_send is visible then. */
static void event_wait(event *e, uint32_t value) {
    if (atomic_load_explicit(&e->word, memory_order_acquire) != value) return;
    uint64_t give_up_ns = hd_now_ns() + SPIN_NS;
    do {
        for (int i = 0; i < SPINS_PER_CLOCK; i++) {
            pause_briefly();
            if (atomic_load_explicit(&e->word, memory_order_acquire) != value) return;
        }
    } while (hd_now_ns() < give_up_ns);

    atomic_fetch_add(&e->sleepers, 1);
    while (atomic_load(&e->word) == value)
        syscall(SYS_futex, &e->word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0); /* wakes early too: hence the loop */
    atomic_fetch_sub(&e->sleepers, 1);
}

static void event_send(event *e, uint32_t value) {
    atomic_store(&e->word, value);
    if (atomic_load(&e->sleepers) > 0) syscall(SYS_futex, &e->word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

static void *worker_main(void *argument) {
    struct worker *w = argument;
    hd_pool *pool = w->pool;
    for (uint32_t run = 0;;) {
        event_wait(&pool->started, run);
        run++; /* the next one cannot start before this thread has returned from this one */
        if (pool->is_closing) return NULL;
        pool->function(pool->context, w->index, pool->thread_count);
        if (atomic_fetch_sub(&pool->running, 1) == 1) event_send(&pool->finished, run);
    }
}

hd_status hd_pool_open(unsigned thread_count, hd_pool **out) {
    if (thread_count == 0) thread_count = hd_cpu_limit();
    hd_pool *pool = hd_alloc_zeroed(sizeof(*pool) + (thread_count - 1) * sizeof(pool->workers[0]), HD_CACHE_LINE);
    if (pool == NULL) return HD_NO_MEMORY;
    pool->thread_count = thread_count;

    /* Signals are for the threads that expect them. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    hd_status status = HD_OK;
    for (unsigned i = 1; i < thread_count && status == HD_OK; i++) {
        struct worker *w = &pool->workers[i - 1];
        *w = (struct worker){.pool = pool, .index = i};
        if (pthread_create(&w->thread, NULL, worker_main, w) != 0) {
            status = HD_NO_MEMORY;
        } else {
            char name[16];
            snprintf(name, sizeof(name), "compute-%u", i % 1000000u);
            pthread_setname_np(w->thread, name);
            pool->created_count++;
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (status == HD_OK) *out = pool;
    else hd_pool_close(pool);
    return status;
}

void hd_pool_close(hd_pool *pool) {
    if (pool == NULL) return;
    assert(!pool->is_running);
    pool->is_closing = true;
    event_send(&pool->started, atomic_load(&pool->started.word) + 1);
    for (unsigned i = 0; i < pool->created_count; i++) pthread_join(pool->workers[i].thread, NULL);
    hd_free(pool);
}

unsigned hd_pool_thread_count(const hd_pool *pool) {
    return pool->thread_count;
}

void hd_pool_run(hd_pool *pool, hd_pool_function *function, void *context) {
    assert(!pool->is_running); /* one caller at a time, and no run inside a run */
    pool->is_running = true;
    if (pool->thread_count > 1) {
        uint32_t previous = atomic_load_explicit(&pool->started.word, memory_order_relaxed);
        pool->function = function;
        pool->context = context;
        atomic_store_explicit(&pool->running, pool->thread_count - 1, memory_order_relaxed);
        event_send(&pool->started, previous + 1);
        function(context, 0, pool->thread_count);
        event_wait(&pool->finished, previous);
    } else {
        function(context, 0, 1);
    }
    pool->is_running = false;
}

void hd_pool_barrier(hd_pool *pool) {
    if (pool->thread_count == 1) return;
    /* Read before arriving: afterwards the last to arrive may have moved it on already. */
    uint32_t passed = atomic_load_explicit(&pool->barrier.word, memory_order_relaxed);
    if (atomic_fetch_add(&pool->arrived, 1) + 1 == pool->thread_count) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed); /* published by the event */
        event_send(&pool->barrier, passed + 1);
    } else {
        event_wait(&pool->barrier, passed);
    }
}

void hd_share(size_t item_count, size_t grain, unsigned thread, unsigned thread_count, size_t *first, size_t *count) {
    assert(grain > 0 && thread < thread_count);
    size_t grains = item_count / grain + (item_count % grain != 0);
    size_t each = grains / thread_count, extra = grains % thread_count; /* the first `extra` threads take one more */
    size_t begin = thread * each + (thread < extra ? thread : extra);
    size_t end = begin + each + (thread < extra ? 1 : 0);
    *first = begin * grain < item_count ? begin * grain : item_count;
    *count = (end * grain < item_count ? end * grain : item_count) - *first;
}

/* CPUs of the affinity mask, which may be wider than cpu_set_t on a large machine. */
static unsigned affinity_count(void) {
    for (int cpus = CPU_SETSIZE; cpus <= 1 << 20; cpus *= 2) {
        cpu_set_t *set = CPU_ALLOC(cpus);
        if (set == NULL) break;
        size_t bytes = CPU_ALLOC_SIZE(cpus);
        int result = sched_getaffinity(0, bytes, set);
        int count = result == 0 ? CPU_COUNT_S(bytes, set) : 0;
        CPU_FREE(set);
        if (count > 0) return (unsigned)count;
    }
    return 1;
}

unsigned hd_cpu_limit(void) {
    unsigned count = affinity_count();
    hd_cgroup_limits limits;
    hd_cgroup_read("", &limits);
    /* Rounded down: with more threads than quota the kernel stops them all for the rest of each period, and a step
     * waits for its slowest thread. */
    if (limits.cpus < count) count = (unsigned)floor(limits.cpus);
    return count > 0 ? count : 1;
}

/* ---- Turns ---- */

void hd_turn_advance(hd_turn *turn) {
    atomic_fetch_add(&turn->value, 1);
    if (atomic_load(&turn->sleepers) > 0) {
        syscall(SYS_futex, &turn->value, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
    }
}

void hd_turn_wait(hd_turn *turn, uint32_t seen, uint64_t timeout_ns) {
    struct timespec timeout = {.tv_sec = (time_t)(timeout_ns / 1000000000u),
                               .tv_nsec = (long)(timeout_ns % 1000000000u)};
    atomic_fetch_add(&turn->sleepers, 1);
    syscall(SYS_futex, &turn->value, FUTEX_WAIT_PRIVATE, seen, &timeout, NULL, 0);
    atomic_fetch_sub(&turn->sleepers, 1);
}
