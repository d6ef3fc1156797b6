/* index_memory.c - a list of chunks, in each a list of the places that came back. */
#include "attention-node/index_memory.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

typedef struct chunk chunk;
struct chunk {
    chunk *next;
    unsigned char *base;
    size_t place_bytes;
    uint32_t place_count, used, fresh; /* places from `fresh` on have never been taken */
    void *returned;                    /* each begins with the next one's address */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of chunks */
static chunk *chunks;

static size_t place_bytes_of(size_t bytes) {
    return HD_ALIGN_UP(bytes > 0 ? bytes : 1, (size_t)HD_CACHE_LINE);
}

static chunk *chunk_open(size_t place_bytes) {
    chunk *new = calloc(1, sizeof(*new));
    if (new == NULL) return NULL;
    new->base = hd_region_map(INDEX_MEMORY_CHUNK);
    if (new->base == NULL) {
        free(new);
        return NULL;
    }
    new->place_bytes = place_bytes;
    new->place_count = (uint32_t)(INDEX_MEMORY_CHUNK / place_bytes);
    new->next = chunks;
    chunks = new;
    return new;
}

/* The one with room that has been there longest, so that the newer ones may empty. */
static chunk *chunk_with_room(size_t place_bytes) {
    chunk *found = NULL;
    for (chunk *at = chunks; at != NULL; at = at->next)
        if (at->place_bytes == place_bytes && at->used < at->place_count) found = at;
    return found;
}

void *index_memory_take(size_t bytes) {
    size_t place_bytes = place_bytes_of(bytes);
    if (place_bytes > INDEX_MEMORY_CHUNK / 2) return hd_region_map(place_bytes);
    pthread_mutex_lock(&lock);
    chunk *from = chunk_with_room(place_bytes);
    if (from == NULL) from = chunk_open(place_bytes);
    void *place = from != NULL ? from->returned : NULL;
    bool is_fresh = place == NULL;
    if (from != NULL && is_fresh) place = from->base + from->fresh++ * place_bytes;
    else if (from != NULL) memcpy(&from->returned, place, sizeof(from->returned));
    if (from != NULL) from->used++;
    pthread_mutex_unlock(&lock);
    if (!is_fresh) memset(place, 0, place_bytes);
    return place;
}

static void chunk_close(chunk *closed) {
    chunk **at = &chunks;
    while (*at != closed) at = &(*at)->next;
    *at = closed->next;
    hd_region_unmap(closed->base, INDEX_MEMORY_CHUNK);
    free(closed);
}

void index_memory_give(void *place, size_t bytes) {
    if (place == NULL) return;
    size_t place_bytes = place_bytes_of(bytes);
    if (place_bytes > INDEX_MEMORY_CHUNK / 2) {
        hd_region_unmap(place, place_bytes);
        return;
    }
    pthread_mutex_lock(&lock);
    chunk *of = chunks;
    while ((uintptr_t)place - (uintptr_t)of->base >= INDEX_MEMORY_CHUNK) of = of->next;
    memcpy(place, &of->returned, sizeof(of->returned));
    of->returned = place;
    if (--of->used == 0) chunk_close(of);
    pthread_mutex_unlock(&lock);
}

size_t index_memory_held(void) {
    size_t bytes = 0;
    pthread_mutex_lock(&lock);
    for (const chunk *at = chunks; at != NULL; at = at->next) bytes += INDEX_MEMORY_CHUNK;
    pthread_mutex_unlock(&lock);
    return bytes;
}
