/* dice.h - the only source of chance in a simulation: what it gives is a function of the seed and of what was asked
 * before.
 *
 * SplitMix64 (Steele, Lea, Flood 2014). Threads: one. */
#ifndef TESTS_SIMULATION_DICE_H
#define TESTS_SIMULATION_DICE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct dice {
    uint64_t state;
} dice;

static inline uint64_t dice_mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}
static inline uint64_t dice_next(dice *d) {
    return dice_mix(d->state += 0x9e3779b97f4a7c15ull);
}
/* 0 ... count - 1 */
static inline uint64_t dice_below(dice *d, uint64_t count) {
    return (uint64_t)((unsigned __int128)dice_next(d) * count >> 64);
}
/* first ... last */
static inline uint64_t dice_between(dice *d, uint64_t first, uint64_t last) {
    return first + dice_below(d, last - first + 1);
}
static inline bool dice_one_in(dice *d, uint64_t count) {
    return dice_below(d, count) == 0;
}

#endif
