/* sequence_table.c - a packed array of pointers beside the slots that name them: a visit touches only what is there. */
#include "coordinator/sequence_table.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>

struct sequence_table {
    pthread_mutex_t lock; /* guards everything below */
    pthread_cond_t emptied;
    struct generation **packed; /* [count] */
    uint32_t *slot_of;          /* [count]: the slot of packed[i] */
    uint32_t *place_of;         /* [entries_max]: a used slot's index in packed; a free slot's next free one */
    uint32_t count, entries_max, first_free;
};

hd_status sequence_table_open(uint32_t entries_max, sequence_table **out) {
    sequence_table *table = calloc(1, sizeof(*table));
    if (table == NULL) return HD_NO_MEMORY;
    pthread_mutex_init(&table->lock, NULL);
    pthread_cond_init(&table->emptied, NULL);
    table->entries_max = entries_max;
    table->packed = calloc(entries_max, sizeof(struct generation *));
    table->slot_of = calloc(entries_max, sizeof(*table->slot_of));
    table->place_of = calloc(entries_max, sizeof(*table->place_of));
    if (table->packed == NULL || table->slot_of == NULL || table->place_of == NULL) {
        sequence_table_close(table);
        return HD_NO_MEMORY;
    }
    for (uint32_t i = 0; i < entries_max; i++) table->place_of[i] = i + 1;
    *out = table;
    return HD_OK;
}

void sequence_table_close(sequence_table *table) {
    if (table == NULL) return;
    assert(table->count == 0);
    pthread_cond_destroy(&table->emptied);
    pthread_mutex_destroy(&table->lock);
    free(table->packed);
    free(table->slot_of);
    free(table->place_of);
    free(table);
}

hd_status sequence_table_add(sequence_table *table, struct generation *g, uint32_t *slot) {
    hd_status status = HD_FULL;
    pthread_mutex_lock(&table->lock);
    if (table->count < table->entries_max) {
        uint32_t chosen = table->first_free;
        table->first_free = table->place_of[chosen];
        table->place_of[chosen] = table->count;
        table->slot_of[table->count] = chosen;
        table->packed[table->count++] = g;
        *slot = chosen;
        status = HD_OK;
    }
    pthread_mutex_unlock(&table->lock);
    return status;
}

void sequence_table_remove(sequence_table *table, uint32_t slot) {
    pthread_mutex_lock(&table->lock);
    uint32_t place = table->place_of[slot], last = --table->count;
    table->packed[place] = table->packed[last];
    table->slot_of[place] = table->slot_of[last];
    table->place_of[table->slot_of[place]] = place;
    table->place_of[slot] = table->first_free;
    table->first_free = slot;
    if (last == 0) pthread_cond_broadcast(&table->emptied);
    pthread_mutex_unlock(&table->lock);
}

void sequence_table_visit(sequence_table *table, void (*visitor)(struct generation *g, void *context), void *context) {
    pthread_mutex_lock(&table->lock);
    for (uint32_t i = 0; i < table->count; i++) visitor(table->packed[i], context);
    pthread_mutex_unlock(&table->lock);
}

uint32_t sequence_table_count(sequence_table *table) {
    pthread_mutex_lock(&table->lock);
    uint32_t count = table->count;
    pthread_mutex_unlock(&table->lock);
    return count;
}

void sequence_table_wait_empty(sequence_table *table) {
    pthread_mutex_lock(&table->lock);
    while (table->count > 0) pthread_cond_wait(&table->emptied, &table->lock);
    pthread_mutex_unlock(&table->lock);
}
