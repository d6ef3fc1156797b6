/* event_ring.c - see event_ring.h. */
#include "coordinator/event_ring.h"

#include <stdlib.h>
#include <string.h>

hd_status event_ring_open(event_ring *ring, uint32_t tokens_max, uint32_t reserved, uint32_t width) {
    *ring = (event_ring){.width = width, .capacity = tokens_max + reserved, .tokens_max = tokens_max};
    ring->records = malloc((size_t)ring->capacity * sizeof(*ring->records));
    if (width > 0) ring->logprobs = malloc((size_t)ring->capacity * width * sizeof(*ring->logprobs));
    if (ring->records != NULL && (width == 0 || ring->logprobs != NULL)) return HD_OK;
    event_ring_close(ring);
    return HD_NO_MEMORY;
}

void event_ring_close(event_ring *ring) {
    free(ring->records);
    free(ring->logprobs);
    *ring = (event_ring){0};
}

hd_status event_ring_push(event_ring *ring, const event_record *record, const worker_logprob *logprobs) {
    bool is_token = record->kind == WORKER_TOKEN;
    if (ring->count == ring->capacity || (is_token && ring->tokens == ring->tokens_max)) return HD_FULL;
    uint32_t at = (ring->first + ring->count) % ring->capacity;
    ring->records[at] = *record;
    ring->records[at].has_logprobs = ring->width > 0 && logprobs != NULL;
    if (ring->records[at].has_logprobs) {
        memcpy(ring->logprobs + (size_t)at * ring->width, logprobs, ring->width * sizeof(*logprobs));
    }
    ring->count++;
    ring->tokens += is_token;
    return HD_OK;
}

uint32_t event_ring_pop(event_ring *ring, event_record *records, worker_logprob *logprobs, uint32_t records_max) {
    uint32_t popped = 0;
    while (popped < records_max && ring->count > 0) {
        records[popped] = ring->records[ring->first];
        if (records[popped].has_logprobs) {
            memcpy(logprobs + (size_t)popped * ring->width, ring->logprobs + (size_t)ring->first * ring->width,
                   ring->width * sizeof(*logprobs));
        }
        ring->tokens -= records[popped].kind == WORKER_TOKEN;
        popped++;
        ring->count--;
        ring->first = (ring->first + 1) % ring->capacity;
    }
    if (ring->count == 0) ring->first = 0;
    return popped;
}
