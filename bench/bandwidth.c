/* bandwidth.c - plain loops over words, which the compiler turns into this CPU's widest loads. */
#include "bench/bandwidth.h"

#include <stdint.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "bench/statistics.h"

#define REGION_BYTES_MAX ((size_t)1 << 30)
#define REGION_BYTES_MIN ((size_t)64 << 20)
#define PASSES 7
#define CHUNK_WORDS 128 /* of one stream, before the next has its turn: with a page each, streams gain nothing */

typedef uint64_t sum_words(const uint64_t *words, size_t count);

typedef struct reading {
    sum_words *sum_words;
    const uint64_t *words;
    size_t count;
    unsigned streams; /* places that a thread reads at in turn: a CPU follows several at once */
    _Atomic uint64_t sum;
} reading;

/* One body, compiled for several CPUs. */
#define SUM_WORDS(name, attribute)                                                                                     \
    attribute static uint64_t name(const uint64_t *words, size_t count) {                                              \
        uint64_t sum = 0;                                                                                              \
        for (size_t i = 0; i < count; i++) sum += words[i];                                                            \
        return sum;                                                                                                    \
    }
SUM_WORDS(sum_words_plain, )
#ifdef __x86_64__
SUM_WORDS(sum_words_avx2, __attribute__((target("avx2"))))
SUM_WORDS(sum_words_avx512, __attribute__((target("avx512f"))))
#endif

static sum_words *choose_sum(void) {
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f")) return sum_words_avx512;
    if (__builtin_cpu_supports("avx2")) return sum_words_avx2;
#endif
    return sum_words_plain;
}

static void read_share(void *context, unsigned thread, unsigned thread_count) {
    reading *r = context;
    size_t first, count;
    hd_share(r->count, (size_t)CHUNK_WORDS * r->streams, thread, thread_count, &first, &count);
    size_t stream_words = count / r->streams;
    uint64_t sum = 0;
    for (size_t i = 0; i + CHUNK_WORDS <= stream_words; i += CHUNK_WORDS)
        for (unsigned s = 0; s < r->streams; s++)
            sum += r->sum_words(r->words + first + s * stream_words + i, CHUNK_WORDS);
    atomic_fetch_add(&r->sum, sum); /* so that the reads have a use */
}

static void touch_share(void *context, unsigned thread, unsigned thread_count) {
    reading *r = context;
    size_t first, count;
    hd_share(r->count, CHUNK_WORDS, thread, thread_count, &first, &count);
    memset((uint64_t *)r->words + first, 1, count * sizeof(uint64_t));
}

static double seconds_to_read(hd_pool *pool, reading *r, unsigned streams) {
    r->streams = streams;
    uint64_t start = hd_now_ns();
    hd_pool_run(pool, read_share, r);
    return (double)(hd_now_ns() - start) * 1e-9;
}

double bench_read_pass(hd_pool *pool, const void *region, size_t bytes) {
    reading r = {.sum_words = choose_sum(), .words = region, .count = bytes / sizeof(uint64_t)};
    static const unsigned streams[] = {1, 4, 8};
    double least = seconds_to_read(pool, &r, streams[0]);
    for (size_t i = 1; i < sizeof(streams) / sizeof(streams[0]); i++) {
        double seconds = seconds_to_read(pool, &r, streams[i]);
        if (seconds < least) least = seconds;
    }
    return (double)bytes / least;
}

double bench_read_bandwidth(hd_pool *pool) {
    static const unsigned streams[] = {1, 2, 4, 8};
    size_t bytes = REGION_BYTES_MAX;
    while (bytes > REGION_BYTES_MIN && bytes > hd_memory_available_bytes() / 4) bytes /= 2;
    void *region = hd_region_map(bytes);
    if (region == NULL) return 0;
    reading r = {.sum_words = choose_sum(), .words = region, .count = bytes / sizeof(uint64_t)};
    hd_pool_run(pool, touch_share, &r);

    double best = 0;
    for (size_t i = 0; i < sizeof(streams) / sizeof(streams[0]); i++) {
        double seconds[PASSES];
        sample passes = {.values = seconds, .capacity = PASSES};
        for (int pass = 0; pass < PASSES; pass++)
            sample_add(&passes, seconds_to_read(pool, &r, streams[i])); /* within its capacity: never fails */
        double rate = (double)bytes / sample_summarise(&passes).median;
        if (rate > best) best = rate;
    }
    hd_region_unmap(region, bytes);
    return best;
}
