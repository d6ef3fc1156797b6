/* chart.h - a bar chart as SVG: a group of bars for each category, one bar for each series.
 *
 * Threads: stateless. */
#ifndef BENCH_CHART_H
#define BENCH_CHART_H

#include <stddef.h>

#include "base/status.h"

typedef struct chart {
    const char *title, *unit; /* unit: of the values, "%" for shares of 100 */
    const char *const *categories;
    size_t category_count;
    const char *const *series;
    size_t series_count;
    const double *values; /* [category][series]; NaN: none */
    double most;          /* the axis ends there */
} chart;

/* HD_IO names the file. */
hd_status chart_write(const chart *chart, const char *path, hd_error *error);

#endif
