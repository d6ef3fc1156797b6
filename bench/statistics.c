/* statistics.c - a growing array of doubles; sorted once, when it is summed up. */
#include "bench/statistics.h"

#include <math.h>
#include <stdlib.h>

void sample_init(sample *s) {
    *s = (sample){0};
}

void sample_fini(sample *s) {
    free(s->values);
    *s = (sample){0};
}

hd_status sample_add(sample *s, double value) {
    if (s->count == s->capacity) {
        size_t capacity = s->capacity > 0 ? 2 * s->capacity : 256;
        double *values = realloc(s->values, capacity * sizeof(*values));
        if (values == NULL) return HD_NO_MEMORY;
        s->values = values;
        s->capacity = capacity;
    }
    s->values[s->count++] = value;
    return HD_OK;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double sample_percentile(const sample *s, double fraction) {
    double place = fraction * (double)(s->count - 1);
    size_t below = (size_t)place;
    if (below + 1 >= s->count) return s->values[s->count - 1];
    return s->values[below] + (place - (double)below) * (s->values[below + 1] - s->values[below]);
}

sample_summary sample_summarise(sample *s) {
    sample_summary summary = {.count = s->count};
    if (s->count == 0) return summary;
    qsort(s->values, s->count, sizeof(*s->values), ascending);
    double sum = 0, squares = 0;
    for (size_t i = 0; i < s->count; i++) sum += s->values[i];
    summary.mean = sum / (double)s->count;
    for (size_t i = 0; i < s->count; i++) squares += (s->values[i] - summary.mean) * (s->values[i] - summary.mean);
    summary.std = sqrt(squares / (double)s->count);
    summary.median = sample_percentile(s, 0.5);
    summary.p90 = sample_percentile(s, 0.9);
    summary.p99 = sample_percentile(s, 0.99);
    summary.min = s->values[0];
    summary.max = s->values[s->count - 1];
    return summary;
}
