/* work_pool.c - see work_pool.h. */
#include "coordinator/work_pool.h"

#include <assert.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct work_lane {
    work_item *first, *last;
    size_t waiting, waiting_max;
    unsigned running, running_max;
} work_lane;

struct work_pool {
    pthread_mutex_t lock; /* guards everything below */
    pthread_cond_t changed;
    work_lane lanes[WORK_POOL_LANES];
    uint64_t arrivals;
    bool is_closing;
    unsigned thread_count;
    pthread_t *threads;
};

/* The lane whose first item came first, of those that may use another thread; NULL when none can start. */
static work_lane *choose_lane(work_pool *pool) {
    work_lane *chosen = NULL;
    for (unsigned i = 0; i < WORK_POOL_LANES; i++) {
        work_lane *lane = &pool->lanes[i];
        if (lane->first == NULL || lane->running >= lane->running_max) continue;
        if (chosen == NULL || lane->first->arrival < chosen->first->arrival) chosen = lane;
    }
    return chosen;
}

static bool is_empty(const work_pool *pool) {
    for (unsigned i = 0; i < WORK_POOL_LANES; i++) {
        if (pool->lanes[i].first != NULL) return false;
    }
    return true;
}

static void *thread_main(void *context) {
    work_pool *pool = context;
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        work_lane *lane = choose_lane(pool);
        if (lane == NULL) {
            if (pool->is_closing && is_empty(pool)) break;
            pthread_cond_wait(&pool->changed, &pool->lock);
            continue;
        }
        work_item *item = lane->first;
        lane->first = item->next;
        if (lane->first == NULL) lane->last = NULL;
        lane->waiting--;
        lane->running++;
        pthread_mutex_unlock(&pool->lock);
        item->run(item);
        pthread_mutex_lock(&pool->lock);
        bool was_full = lane->running == lane->running_max;
        lane->running--;
        /* Another thread may sleep because this lane had used its share, or because it waits for the last item. */
        if ((was_full && lane->first != NULL) || pool->is_closing) pthread_cond_broadcast(&pool->changed);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

hd_status work_pool_open(const work_pool_config *config, work_pool **out) {
    work_pool *pool = calloc(1, sizeof(*pool));
    if (pool == NULL) return HD_NO_MEMORY;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->changed, NULL);
    for (unsigned i = 0; i < WORK_POOL_LANES; i++) {
        pool->lanes[i].running_max = config->lane_threads_max[i];
        pool->lanes[i].waiting_max = config->lane_items_max[i];
    }
    pool->threads = calloc(config->thread_count, sizeof(*pool->threads));
    hd_status status = pool->threads != NULL ? HD_OK : HD_NO_MEMORY;
    for (unsigned i = 0; status == HD_OK && i < config->thread_count; i++) {
        if (pthread_create(&pool->threads[i], NULL, thread_main, pool) != 0) {
            status = HD_NO_MEMORY;
            break;
        }
        char name[16];
        snprintf(name, sizeof(name), "%.12s/%u", config->name, i % 100);
        pthread_setname_np(pool->threads[i], name);
        pool->thread_count++;
    }
    if (status == HD_OK) *out = pool;
    else work_pool_close(pool);
    return status;
}

void work_pool_close(work_pool *pool) {
    if (pool == NULL) return;
    pthread_mutex_lock(&pool->lock);
    pool->is_closing = true;
    pthread_cond_broadcast(&pool->changed);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->thread_count; i++) pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->changed);
    pthread_mutex_destroy(&pool->lock);
    free(pool->threads);
    free(pool);
}

hd_status work_pool_submit(work_pool *pool, unsigned lane_index, work_item *item) {
    work_lane *lane = &pool->lanes[lane_index];
    assert(lane->running_max > 0);
    pthread_mutex_lock(&pool->lock);
    if (lane->waiting >= lane->waiting_max) {
        pthread_mutex_unlock(&pool->lock);
        return HD_FULL;
    }
    item->next = NULL;
    item->arrival = pool->arrivals++;
    if (lane->last != NULL) lane->last->next = item;
    else lane->first = item;
    lane->last = item;
    lane->waiting++;
    pthread_cond_signal(&pool->changed);
    pthread_mutex_unlock(&pool->lock);
    return HD_OK;
}
