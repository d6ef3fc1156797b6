#include "base/threads.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>

#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fault.h"

enum { THREADS_MAX = 6 };

typedef struct {
    hd_pool *pool;
    _Atomic unsigned calls[THREADS_MAX];
    unsigned plain[THREADS_MAX]; /* written without atomics: the pool must order it */
    unsigned thread_count;
} counts;

static void count_call(void *context, unsigned thread, unsigned thread_count) {
    counts *c = context;
    atomic_fetch_add(&c->calls[thread], 1);
    c->plain[thread]++;
    if (thread_count != c->thread_count) abort();
}

static void every_thread_runs_once_in_every_run(void **state) {
    for (unsigned n = 1; n <= THREADS_MAX; n++) {
        counts c = {.thread_count = n};
        assert_int_equal(hd_pool_open(n, &c.pool), HD_OK);
        assert_int_equal(hd_pool_thread_count(c.pool), n);
        for (unsigned run = 1; run <= 300; run++) {
            hd_pool_run(c.pool, count_call, &c);
            for (unsigned t = 0; t < n; t++) {
                assert_int_equal(atomic_load(&c.calls[t]), run);
                assert_int_equal(c.plain[t], run); /* what a thread wrote is seen after the run */
            }
        }
        hd_pool_close(c.pool);
    }
}

static void runs_go_on_after_the_threads_fell_asleep(void **state) {
    counts c = {.thread_count = 3};
    assert_int_equal(hd_pool_open(3, &c.pool), HD_OK);
    for (unsigned run = 1; run <= 20; run++) {
        nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL); /* well past the spin */
        hd_pool_run(c.pool, count_call, &c);
        for (unsigned t = 0; t < 3; t++) assert_int_equal(c.plain[t], run);
    }
    hd_pool_close(c.pool);
}

typedef struct {
    hd_pool *pool;
    unsigned phase[THREADS_MAX];
    _Atomic unsigned wrong;
} phases;

enum { PHASES = 200 };

static void walk_phases(void *context, unsigned thread, unsigned thread_count) {
    phases *p = context;
    for (unsigned phase = 1; phase <= PHASES; phase++) {
        p->phase[thread] = phase;
        hd_pool_barrier(p->pool);
        for (unsigned t = 0; t < thread_count; t++)
            if (p->phase[t] != phase) atomic_fetch_add(&p->wrong, 1);
        hd_pool_barrier(p->pool);
    }
}

static void a_barrier_holds_all_until_the_last_has_come(void **state) {
    for (unsigned n = 1; n <= THREADS_MAX; n += n < 3 ? 1 : 3) {
        phases p = {0};
        assert_int_equal(hd_pool_open(n, &p.pool), HD_OK);
        for (int run = 0; run < 5; run++) hd_pool_run(p.pool, walk_phases, &p);
        assert_int_equal(atomic_load(&p.wrong), 0);
        hd_pool_close(p.pool);
    }
}

typedef struct {
    _Atomic size_t ticket;
    unsigned char taken[1000];
} work;

static void take_items(void *context, unsigned thread, unsigned thread_count) {
    work *w = context;
    for (size_t item; (item = hd_ticket_take(&w->ticket, sizeof(w->taken))) < sizeof(w->taken);) w->taken[item]++;
}

static void tickets_hand_out_each_item_once(void **state) {
    hd_pool *pool;
    assert_int_equal(hd_pool_open(4, &pool), HD_OK);
    for (int run = 0; run < 20; run++) {
        work w = {0};
        hd_pool_run(pool, take_items, &w);
        for (size_t i = 0; i < sizeof(w.taken); i++) assert_int_equal(w.taken[i], 1);
    }
    hd_pool_close(pool);
}

static void shares_are_even_whole_grains_and_cover_everything_once(void **state) {
    unsigned seed = 4711;
    for (int round = 0; round < 20000; round++) {
        size_t items = (size_t)rand_r(&seed) % 2000, grain = 1 + (size_t)rand_r(&seed) % 100;
        unsigned n = 1 + (unsigned)rand_r(&seed) % 17;
        size_t next = 0, least = SIZE_MAX, most = 0;
        for (unsigned t = 0; t < n; t++) {
            size_t first, count;
            hd_share(items, grain, t, n, &first, &count);
            assert_int_equal(first, next);
            next = first + count;
            if (next < items) assert_int_equal(count % grain, 0);
            size_t grains = (count + grain - 1) / grain;
            if (grains < least) least = grains;
            if (grains > most) most = grains;
        }
        assert_int_equal(next, items);
        assert_true(most - least <= 1);
    }
}

static uint64_t process_cpu_ns(void) {
    struct timespec used;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return (uint64_t)used.tv_sec * 1000000000u + (uint64_t)used.tv_nsec;
}

static void an_idle_pool_uses_no_cpu(void **state) {
    counts c = {.thread_count = 4};
    assert_int_equal(hd_pool_open(4, &c.pool), HD_OK);
    hd_pool_run(c.pool, count_call, &c);
    uint64_t before = process_cpu_ns();
    nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    assert_true(process_cpu_ns() - before < 20000000); /* three threads that spun would have used far more */
    hd_pool_close(c.pool);
}

static void a_pool_that_cannot_be_had_says_so(void **state) {
    hd_pool *pool = NULL;
    fault_arm(FAULT_ALLOCATION, 0);
    hd_status status = hd_pool_open(2, &pool);
    fault_disarm();
    assert_int_equal(status, HD_NO_MEMORY);
    assert_null(pool);
    hd_pool_close(pool);
}

static void pools_open_and_close_whatever_their_threads_do(void **state) {
    for (int round = 0; round < 100; round++) {
        counts c = {.thread_count = 3};
        assert_int_equal(hd_pool_open(3, &c.pool), HD_OK);
        if (round % 2 == 0) hd_pool_run(c.pool, count_call, &c);
        hd_pool_close(c.pool);
    }
}

static void zero_threads_means_as_many_as_allowed(void **state) {
    hd_pool *pool;
    assert_true(hd_cpu_limit() >= 1 && hd_cpu_limit() <= (unsigned)sysconf(_SC_NPROCESSORS_CONF));
    assert_int_equal(hd_pool_open(0, &pool), HD_OK);
    assert_int_equal(hd_pool_thread_count(pool), hd_cpu_limit());
    hd_pool_close(pool);
}

typedef struct {
    hd_turn turn;
    _Atomic uint32_t done;
} turning;

static void *advance_often(void *context) {
    turning *t = context;
    for (int i = 0; i < 20000; i++) {
        atomic_fetch_add(&t->done, 1);
        hd_turn_advance(&t->turn);
    }
    return NULL;
}

/* Whoever reads the turn, looks, and waits for the next one sees all that happens: the waits are without end. */
static void no_turn_is_missed(void **state) {
    turning t = {.done = 0};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, advance_often, &t), 0);
    for (uint32_t seen; seen = hd_turn_read(&t.turn), atomic_load(&t.done) < 20000;) {
        hd_turn_wait(&t.turn, seen, UINT64_C(3600) * 1000000000);
    }
    pthread_join(thread, NULL);
    hd_turn_wait(&t.turn, hd_turn_read(&t.turn), 1000); /* nobody advances any more: time is up */
    assert_int_equal(hd_turn_read(&t.turn), 20000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_thread_runs_once_in_every_run),
        cmocka_unit_test(runs_go_on_after_the_threads_fell_asleep),
        cmocka_unit_test(a_barrier_holds_all_until_the_last_has_come),
        cmocka_unit_test(tickets_hand_out_each_item_once),
        cmocka_unit_test(shares_are_even_whole_grains_and_cover_everything_once),
        cmocka_unit_test(an_idle_pool_uses_no_cpu),
        cmocka_unit_test(a_pool_that_cannot_be_had_says_so),
        cmocka_unit_test(pools_open_and_close_whatever_their_threads_do),
        cmocka_unit_test(no_turn_is_missed),
        cmocka_unit_test(zero_threads_means_as_many_as_allowed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
