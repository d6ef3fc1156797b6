/* statistics.h - samples of one quantity, and what is said about them.
 *
 * Threads: a sample belongs to one thread. */
#ifndef BENCH_STATISTICS_H
#define BENCH_STATISTICS_H

#include <stddef.h>

#include "base/status.h"

typedef struct sample {
    double *values;
    size_t count, capacity;
} sample;

typedef struct sample_summary {
    size_t count;
    double mean, median, std, p90, p99, min, max; /* all 0 where count is 0 */
} sample_summary;

void sample_init(sample *s);
void sample_fini(sample *s);
hd_status sample_add(sample *s, double value);

/* Sorts the sample. Percentiles are interpolated linearly between the two nearest values; std is of the population. */
sample_summary sample_summarise(sample *s);
/* Of a sorted sample with at least one value; fraction in [0, 1]. */
double sample_percentile(const sample *s, double fraction);

#endif
