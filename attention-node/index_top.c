/* index_top.c - selection by partition, sorting by digits. */
#include "attention-node/index_top.h"

#include <assert.h>
#include <math.h>

void index_top_init(index_top *top, uint64_t *items, uint32_t wanted) {
    assert(wanted >= 1);
    *top = (index_top){.items = items, .wanted = wanted};
}

static uint64_t middle(uint64_t a, uint64_t b, uint64_t c) {
    uint64_t low = a < b ? a : b, high = a < b ? b : a;
    return c < low ? low : c > high ? high : c;
}

/* Hoare's partition, on [first, end) only where the boundary still lies in it. Items differ (tokens do), so each
 * round makes the range smaller. */
void index_items_select(uint64_t *items, uint32_t count, uint32_t wanted) {
    uint32_t first = 0, end = count;
    if (wanted == 0 || wanted >= count) return;
    while (end - first > 1) {
        uint64_t pivot = middle(items[first], items[first + (end - first) / 2], items[end - 1]);
        uint32_t low = first, high = end - 1;
        for (;;) {
            while (items[low] > pivot) low++;
            while (items[high] < pivot) high--;
            if (low >= high) break;
            uint64_t item = items[low];
            items[low++] = items[high];
            items[high--] = item;
        }
        /* [first, split) >= pivot >= [split, end) */
        uint32_t split = high + 1;
        if (split == end) split--;
        if (wanted < split) end = split;
        else if (wanted > split) first = split;
        else return;
    }
}

void index_top_shrink(index_top *top) {
    if (top->count <= top->wanted) return;
    index_items_select(top->items, top->count, top->wanted);
    top->count = top->wanted;
    uint64_t least = top->items[0];
    for (uint32_t i = 1; i < top->count; i++)
        if (top->items[i] < least) least = top->items[i];
    top->least = least;
}

/* A float whose bits, in the order of floats, are this: index_item's order, backwards. */
static float float_of(uint32_t ordered) {
    return index_item_score((uint64_t)ordered << 32);
}

static uint32_t order_of(float score) {
    return (uint32_t)(index_item(score, 0) >> 32);
}

/* Bisects the floats themselves, so that a round is one pass of comparisons and no score moves: at least `wanted` reach
 * low, fewer reach high. */
static float bisect(const kernel_scan *scan, const float *scores, uint32_t count, uint32_t wanted, uint32_t slack,
                    uint32_t low, uint32_t high) {
    while (high - low > 1) {
        uint32_t between = low + (high - low) / 2, reached = scan->count_from(scores, count, float_of(between));
        if (reached >= wanted && reached <= wanted + slack) return float_of(between);
        if (reached > wanted) low = between;
        else high = between;
    }
    return float_of(low);
}

/* Sixteen scores of every sixteen times as many, whose limits, a little to either side, are likely to hold the limit of
 * all between them; every round saved is a pass over all. */
float index_cut(const kernel_scan *scan, const float *scores, uint32_t count, uint32_t wanted, uint32_t slack,
                float *sample) {
    enum { LEAST = 4096, RUN = 16 };
    uint32_t low = order_of(-INFINITY), high = order_of(INFINITY), taken = 0;
    if (wanted >= count) return -INFINITY;
    if (count < LEAST || sample == NULL) return bisect(scan, scores, count, wanted, slack, low, high);
    for (uint32_t i = 0; i + RUN <= count; i += RUN * INDEX_CUT_SAMPLE, taken += RUN)
        memcpy(sample + taken, scores + i, RUN * sizeof(*scores));
    uint32_t middle = (uint32_t)((uint64_t)wanted * taken / count), aside = middle / 8 + 4;
    uint32_t above = middle > aside ? order_of(bisect(scan, sample, taken, middle - aside, 0, low, high)) : high;
    uint32_t below = middle + aside < taken ? order_of(bisect(scan, sample, taken, middle + aside, 0, low, high)) : low;
    uint32_t reached = above < high ? scan->count_from(scores, count, float_of(above)) : 0;
    if (reached >= wanted && reached <= wanted + slack) return float_of(above);
    if (reached > wanted) return bisect(scan, scores, count, wanted, slack, above, high);
    reached = below > low ? scan->count_from(scores, count, float_of(below)) : count;
    if (reached >= wanted && reached <= wanted + slack) return float_of(below);
    if (reached < wanted) return bisect(scan, scores, count, wanted, slack, low, below);
    return bisect(scan, scores, count, wanted, slack, below, above);
}

/* One stable pass over 8 bits. */
static void sort_by_digit(const uint32_t *from, uint32_t *to, uint32_t count, uint32_t shift) {
    uint32_t starts[256] = {0};
    for (uint32_t i = 0; i < count; i++) starts[(from[i] >> shift) & 255]++;
    for (uint32_t digit = 0, start = 0; digit < 256; digit++) {
        uint32_t items = starts[digit];
        starts[digit] = start;
        start += items;
    }
    for (uint32_t i = 0; i < count; i++) to[starts[(from[i] >> shift) & 255]++] = from[i];
}

static bool is_ascending(const uint32_t *tokens, uint32_t count) {
    for (uint32_t i = 1; i < count; i++)
        if (tokens[i] < tokens[i - 1]) return false;
    return true;
}

static void sort_by_insertion(uint32_t *tokens, uint32_t count) {
    for (uint32_t i = 1; i < count; i++) {
        uint32_t token = tokens[i], at = i;
        for (; at > 0 && tokens[at - 1] > token; at--) tokens[at] = tokens[at - 1];
        tokens[at] = token;
    }
}

uint32_t index_tokens_sort(uint32_t *tokens, uint32_t *other, uint32_t count) {
    if (count <= 32) {
        sort_by_insertion(tokens, count);
    } else if (!is_ascending(tokens, count)) {
        uint32_t *from = tokens, *to = other, all = 0;
        for (uint32_t i = 0; i < count; i++) all |= tokens[i];
        for (uint32_t shift = 0; shift < 32 && all >> shift != 0; shift += 8) {
            sort_by_digit(from, to, count, shift);
            uint32_t *swap = from;
            from = to;
            to = swap;
        }
        if (from != tokens) memcpy(tokens, from, count * sizeof(*tokens));
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < count; i++)
        if (kept == 0 || tokens[i] != tokens[kept - 1]) tokens[kept++] = tokens[i];
    return kept;
}
