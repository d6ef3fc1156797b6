/* random.h - a small seeded generator, so that a benchmark's load is the same in every run with the same seed.
 *
 * Threads: a generator belongs to one thread. */
#ifndef BENCH_RANDOM_H
#define BENCH_RANDOM_H

#include <math.h>
#include <stdint.h>

typedef struct bench_random {
    uint64_t state;
} bench_random;

/* splitmix64: every state is good, so any seed is. */
static inline uint64_t bench_random_u64(bench_random *random) {
    uint64_t z = random->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Uniform in [0, 1). */
static inline double bench_random_unit(bench_random *random) {
    return (double)(bench_random_u64(random) >> 11) * 0x1p-53;
}

/* Uniform in [0, count); the bias of the multiplication is below count / 2^64. */
static inline uint64_t bench_random_below(bench_random *random, uint64_t count) {
    return (uint64_t)(((unsigned __int128)bench_random_u64(random) * count) >> 64);
}

/* Time to the next event of a Poisson process with `rate` events in a unit of time. */
static inline double bench_random_exponential(bench_random *random, double rate) {
    return -log1p(-bench_random_unit(random)) / rate;
}

/* Normal, of variance 1. */
static inline double bench_random_normal(bench_random *random) {
    double length = sqrt(-2.0 * log1p(-bench_random_unit(random)));
    return length * cos(6.283185307179586 * bench_random_unit(random));
}

#endif
