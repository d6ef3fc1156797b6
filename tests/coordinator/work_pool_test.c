#include "coordinator/work_pool.h"

#include "tests/coordinator/cmocka_all.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static unsigned started, done;
static bool is_open;

static void reset(void) {
    started = done = 0;
    is_open = false;
}

/* Runs until the gate is opened. */
static void wait_for_gate(work_item *item) {
    pthread_mutex_lock(&lock);
    started++;
    pthread_cond_broadcast(&changed);
    while (!is_open) pthread_cond_wait(&changed, &lock);
    done++;
    pthread_mutex_unlock(&lock);
}

static void count(work_item *item) {
    pthread_mutex_lock(&lock);
    done++;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void wait_until(const unsigned *value, unsigned wanted) {
    pthread_mutex_lock(&lock);
    while (*value < wanted) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}

static void open_gate(void) {
    pthread_mutex_lock(&lock);
    is_open = true;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

static void long_work_leaves_a_thread_for_short_work(void **state) {
    reset();
    work_pool_config config = {
        .name = "test", .thread_count = 3, .lane_threads_max = {3, 2}, .lane_items_max = {10, 10}};
    work_pool *pool;
    assert_int_equal(work_pool_open(&config, &pool), HD_OK);
    work_item slow[4] = {
        {.run = wait_for_gate}, {.run = wait_for_gate}, {.run = wait_for_gate}, {.run = wait_for_gate}};
    work_item fast = {.run = count};
    for (int i = 0; i < 4; i++) assert_int_equal(work_pool_submit(pool, 1, &slow[i]), HD_OK);
    wait_until(&started, 2);
    assert_int_equal(work_pool_submit(pool, 0, &fast), HD_OK);
    wait_until(&done, 1); /* would never come if the slow ones had all threads */
    assert_int_equal(started, 2);
    open_gate();
    work_pool_close(pool);
    assert_int_equal(done, 5);
}

static void a_full_lane_refuses(void **state) {
    reset();
    work_pool_config config = {.name = "test", .thread_count = 1, .lane_threads_max = {1, 0}, .lane_items_max = {2, 0}};
    work_pool *pool;
    assert_int_equal(work_pool_open(&config, &pool), HD_OK);
    work_item blocker = {.run = wait_for_gate}, waiting[2] = {{.run = count}, {.run = count}}, refused = {.run = count};
    assert_int_equal(work_pool_submit(pool, 0, &blocker), HD_OK);
    wait_until(&started, 1);
    for (int i = 0; i < 2; i++) assert_int_equal(work_pool_submit(pool, 0, &waiting[i]), HD_OK);
    assert_int_equal(work_pool_submit(pool, 0, &refused), HD_FULL);
    open_gate();
    work_pool_close(pool);
    assert_int_equal(done, 3);
}

typedef struct again {
    work_item item;
    work_pool *pool;
    unsigned left;
} again;

static void run_again(work_item *item) {
    again *self = (again *)item;
    if (--self->left > 0) {
        assert_int_equal(work_pool_submit(self->pool, 0, item), HD_OK);
        return;
    }
    count(item);
}

static void an_item_may_submit_itself_again(void **state) {
    reset();
    work_pool_config config = {
        .name = "test", .thread_count = 4, .lane_threads_max = {4, 0}, .lane_items_max = {64, 0}};
    again items[64];
    assert_int_equal(work_pool_open(&config, &items[0].pool), HD_OK);
    for (int i = 0; i < 64; i++) {
        items[i] = (again){.item = {.run = run_again}, .pool = items[0].pool, .left = 200};
        assert_int_equal(work_pool_submit(items[i].pool, 0, &items[i].item), HD_OK);
    }
    wait_until(&done, 64);
    work_pool_close(items[0].pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(long_work_leaves_a_thread_for_short_work),
        cmocka_unit_test(a_full_lane_refuses),
        cmocka_unit_test(an_item_may_submit_itself_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
