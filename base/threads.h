/* threads.h - the compute pool, and how many threads this process may use.
 *
 * One pool per process does the arithmetic of a step. pool_run hands every thread (the caller is thread 0) the same
 * function; they return together. Waiting threads spin for at most 20 us and then sleep, so an idle server uses no CPU.
 * A pool neither allocates nor takes a shared lock in pool_run.
 * Threads: one caller at a time per pool (the step thread). */
#ifndef HD_THREADS_H
#define HD_THREADS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct hd_pool hd_pool;
typedef void hd_pool_function(void *context, unsigned thread, unsigned thread_count);

/* thread_count >= 1, the calling thread included; 0 takes hd_cpu_limit(). */
hd_status hd_pool_open(unsigned thread_count, hd_pool **pool);
void hd_pool_close(hd_pool *pool); /* accepts NULL */
unsigned hd_pool_thread_count(const hd_pool *pool);

/* Runs function(context, thread, thread_count) on every thread of the pool and returns when all have returned. */
void hd_pool_run(hd_pool *pool, hd_pool_function *function, void *context);

/* A barrier for the threads inside one hd_pool_run: all of them call it, none returns before the last has come. */
void hd_pool_barrier(hd_pool *pool);

/* Dynamic work inside one hd_pool_run: each call takes the next item, or returns item_count when there is none left.
 * The ticket is the caller's, set to 0 before the run. */
static inline size_t hd_ticket_take(_Atomic size_t *ticket, size_t item_count) {
    size_t item = atomic_fetch_add_explicit(ticket, 1, memory_order_relaxed);
    return item < item_count ? item : item_count;
}

/* The share [*first, *first + *count) of item_count items that thread has, in multiples of grain, as even as can be. */
void hd_share(size_t item_count, size_t grain, unsigned thread, unsigned thread_count, size_t *first, size_t *count);

/* A turn counts events of one kind, and lets threads sleep until the next: read it, look whether what you wait for is
 * there, and wait for the next turn if not. Advancing costs an addition while nobody sleeps. All zeros is a new one. */
typedef struct hd_turn {
    _Atomic uint32_t value, sleepers;
} hd_turn;
static inline uint32_t hd_turn_read(const hd_turn *turn) {
    return atomic_load(&turn->value);
}
void hd_turn_advance(hd_turn *turn);
void hd_turn_wait(hd_turn *turn, uint32_t seen, uint64_t timeout_ns); /* it has advanced since `seen`, or time is up */

/* CPUs that this process may use: the affinity mask, bounded by cpu.max of its cgroup; at least 1. */
unsigned hd_cpu_limit(void);

/* What one thread did before hd_handed_over(key), another has seen after hd_taken_over(key): for the thread sanitizer, where
 * the two meet in a library that is not compiled for it. Nothing without the sanitizer. */
#ifdef __SANITIZE_THREAD__
void __tsan_release(void *key);
void __tsan_acquire(void *key);
#define hd_handed_over(key) __tsan_release(key)
#define hd_taken_over(key) __tsan_acquire(key)
#else
#define hd_handed_over(key) ((void)(key))
#define hd_taken_over(key) ((void)(key))
#endif

#endif
