/* metrics.h - counters, gauges and histograms, and their Prometheus text.
 *
 * Metrics are registered while the program starts and updated with relaxed atomics afterwards: no lock and no
 * allocation on the token path. Names carry the prefix "hadal:".
 * Threads: updates and rendering from any thread; registration from one thread before serving. */
#ifndef HD_METRICS_H
#define HD_METRICS_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct hd_metrics hd_metrics;
typedef struct hd_counter hd_counter;
typedef struct hd_gauge hd_gauge;
typedef struct hd_histogram hd_histogram;

hd_status hd_metrics_open(hd_metrics **metrics);
void hd_metrics_close(hd_metrics *metrics); /* frees every metric registered in it */

/* name without labels ("hadal:prompt_tokens_total"); labels is "" or like `finished_reason="stop"`. Several metrics of
 * one name with different labels form one family (help of the first). The pointer lives until close; NULL when out of
 * memory. */
hd_counter *hd_counter_register(hd_metrics *metrics, const char *name, const char *labels, const char *help);
hd_gauge *hd_gauge_register(hd_metrics *metrics, const char *name, const char *labels, const char *help);
hd_histogram *hd_histogram_register(hd_metrics *metrics, const char *name, const char *labels, const char *help,
                                    const double *upper_bounds, size_t bound_count);

/* Bounds for times in seconds, 1 ms to 7,680 s (a prefill of a million tokens takes an hour), and for token counts. */
extern const double hd_bounds_seconds[];
extern const size_t hd_bounds_seconds_count;
extern const double hd_bounds_tokens[];
extern const size_t hd_bounds_tokens_count;

/* Every update accepts NULL and does nothing then, so that a module can run without metrics. */
void hd_counter_add(hd_counter *counter, uint64_t amount);
uint64_t hd_counter_value(const hd_counter *counter);
void hd_gauge_set(hd_gauge *gauge, double value);
void hd_gauge_add(hd_gauge *gauge, double amount);
double hd_gauge_value(const hd_gauge *gauge);
void hd_histogram_observe(hd_histogram *histogram, double value);

/* name="value" into the caller's buffer, the value escaped and cut short to fit; returns buffer. */
const char *hd_metrics_label(const char *name, const char *value, char *buffer, size_t buffer_bytes);

/* Renders the Prometheus text format 0.0.4. *text is malloc'ed for the caller, zero terminated. */
hd_status hd_metrics_render(const hd_metrics *metrics, char **text, size_t *text_bytes);

#endif
