/* graph_cache.c - a few dozen graphs, looked through from the first to the last. */
#include "kernels/cuda/graph_cache.h"

#include <assert.h>

#include "base/memory.h"

typedef struct entry {
    graph_key key;
    kernel_graph *graph; /* NULL: free */
    uint64_t used_at;
} entry;

struct graph_cache {
    const kernel_device_ops *ops;
    uint64_t uses;
    uint32_t capacity;
    entry entries[];
};

uint32_t graph_padded_rows(uint32_t rows) {
    if (rows <= 8) return rows;
    uint32_t octave = 31 - (uint32_t)__builtin_clz(rows - 1), quarter = octave - 2; /* 2^octave <= rows - 1 */
    return (((rows - 1) >> quarter) + 1) << quarter;
}

bool graph_key_is_equal(graph_key a, graph_key b) {
    return a.rows == b.rows && a.logits_rows == b.logits_rows && a.features == b.features;
}

hd_status graph_cache_open(const kernel_device_ops *ops, uint32_t capacity, graph_cache **out) {
    assert(capacity > 0);
    graph_cache *cache = hd_alloc_zeroed(sizeof(*cache) + capacity * sizeof(entry), HD_CACHE_LINE);
    if (cache == NULL) return HD_NO_MEMORY;
    cache->ops = ops;
    cache->capacity = capacity;
    *out = cache;
    return HD_OK;
}

void graph_cache_close(graph_cache *cache) {
    if (cache == NULL) return;
    for (uint32_t i = 0; i < cache->capacity; i++) cache->ops->graph_close(cache->entries[i].graph);
    hd_free(cache);
}

static entry *find(graph_cache *cache, graph_key key) {
    for (uint32_t i = 0; i < cache->capacity; i++) {
        entry *e = &cache->entries[i];
        if (e->graph != NULL && graph_key_is_equal(e->key, key)) return e;
    }
    return NULL;
}

kernel_graph *graph_cache_find(graph_cache *cache, graph_key key) {
    entry *e = find(cache, key);
    if (e == NULL) return NULL;
    e->used_at = ++cache->uses;
    return e->graph;
}

void graph_cache_put(graph_cache *cache, graph_key key, kernel_graph *graph) {
    entry *place = find(cache, key);
    for (uint32_t i = 0; place == NULL && i < cache->capacity; i++) {
        if (cache->entries[i].graph == NULL) place = &cache->entries[i];
    }
    if (place == NULL) {
        place = &cache->entries[0];
        for (uint32_t i = 1; i < cache->capacity; i++) {
            if (cache->entries[i].used_at < place->used_at) place = &cache->entries[i];
        }
    }
    cache->ops->graph_close(place->graph);
    *place = (entry){.key = key, .graph = graph, .used_at = ++cache->uses};
}
