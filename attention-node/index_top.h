/* index_top.h - the best k of a stream of scored tokens, and lists of tokens put in order.
 *
 * A score and its token are one 64-bit number that compares as (score, then the earlier token), so that the best k are
 * a function of the set and never of the order in which it came. Items collect in twice the room that is needed; when
 * it is full the lesser half goes, and the threshold rises.
 * Threads: the caller's memory, one thread. */
#ifndef ATTENTION_NODE_INDEX_TOP_H
#define ATTENTION_NODE_INDEX_TOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels/scan.h"

typedef struct index_top {
    uint64_t *items; /* index_top_room(wanted) */
    uint32_t wanted, count;
    uint64_t least; /* items at or below it are not among the best */
} index_top;

static inline uint32_t index_top_room(uint32_t wanted) {
    return 2 * wanted + 64;
}

/* Larger for a larger score (no NaN), and for an earlier token at the same score; never 0. */
static inline uint64_t index_item(float score, uint32_t token) {
    uint32_t bits;
    score += 0.0f; /* -0 is 0 */
    memcpy(&bits, &score, sizeof(bits));
    bits = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    return (uint64_t)bits << 32 | (uint32_t)~token;
}

static inline uint32_t index_item_token(uint64_t item) {
    return ~(uint32_t)item;
}

static inline float index_item_score(uint64_t item) {
    uint32_t bits = (uint32_t)(item >> 32);
    float score;
    bits = (bits & 0x80000000u) != 0 ? bits & 0x7fffffffu : ~bits;
    memcpy(&score, &bits, sizeof(score));
    return score;
}

void index_top_init(index_top *top, uint64_t *items, uint32_t wanted); /* wanted >= 1 */
void index_top_shrink(index_top *top);                                 /* to the wanted best, in no order */

static inline void index_top_add(index_top *top, uint64_t item) {
    if (item <= top->least) return;
    top->items[top->count++] = item;
    if (top->count == index_top_room(top->wanted)) index_top_shrink(top);
}

/* Moves the `wanted` largest of the items to the front, in no order; wanted <= count. */
void index_items_select(uint64_t *items, uint32_t count, uint32_t wanted);
/* The largest limit that at least `wanted` of the scores reach, or a lower one that at most `slack` more reach; minus
 * infinity where there are not so many. No score is NaN. sample: room for
 * index_cut_sample(count) floats, with which many scores need fewer passes, or NULL. */
float index_cut(const kernel_scan *scan, const float *scores, uint32_t count, uint32_t wanted, uint32_t slack,
                float *sample);
#define INDEX_CUT_SAMPLE 16u /* one score in so many tells where to begin */
static inline uint32_t index_cut_sample(uint32_t count) {
    return count / INDEX_CUT_SAMPLE + INDEX_CUT_SAMPLE;
}
/* Ascending, each once; other has room for as many. Returns how many are left. */
uint32_t index_tokens_sort(uint32_t *tokens, uint32_t *other, uint32_t count);

#endif
