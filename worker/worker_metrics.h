/* worker_metrics.h - what a worker counts, under the names that dashboards of other servers use.
 *
 * Times that a client sees are the coordinator's to measure.
 * Threads: the step thread updates. */
#ifndef WORKER_METRICS_H
#define WORKER_METRICS_H

#include "attention-node/attention.h"
#include "base/metrics.h"

typedef struct worker_metrics {
    hd_gauge *num_requests_running, *num_requests_waiting, *kv_cache_usage_perc;
    hd_counter *prefix_cache_queries, *prefix_cache_hits, *num_preemptions, *prompt_tokens_total,
        *generation_tokens_total, *logits_not_finite;
    hd_histogram *iteration_tokens_total;
    hd_counter *step_us[3];               /* dense, wire, attention */
    hd_gauge *tier_bytes[3], *cold_queue; /* hot, warm, cold */
    hd_counter *page_hits, *page_misses, *row_hits, *row_misses, *cold_read_bytes, *cold_written_bytes, *cold_read_errors, *cold_write_errors,
        *cold_verify_failures;
    hd_counter *searches, *searched_tokens, *search_bytes, *search_us, *found_us, *index_wait_us;
    hd_gauge *index_bytes, *index_lag_tokens;
    attention_stats seen; /* attention's totals that are in the counters already */
} worker_metrics;

/* metrics may be NULL: then every update does nothing. */
hd_status worker_metrics_init(worker_metrics *metrics, hd_metrics *registry);
void worker_metrics_update(worker_metrics *metrics, const attention_stats *stats, uint32_t running, uint32_t waiting);

/* A step has taken so long: with weights, on the wire, with attention. */
void worker_metrics_count_step(worker_metrics *metrics, uint64_t dense_ns, uint64_t wire_ns, uint64_t attention_ns);

#endif
