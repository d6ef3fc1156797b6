#include "worker/worker_metrics.h"

hd_status worker_metrics_init(worker_metrics *m, hd_metrics *registry) {
    *m = (worker_metrics){0};
    if (registry == NULL) return HD_OK;
    m->num_requests_running =
        hd_gauge_register(registry, "hadal:num_requests_running", "", "Requests that are prefilling or decoding.");
    m->num_requests_waiting =
        hd_gauge_register(registry, "hadal:num_requests_waiting", "", "Requests accepted and not admitted yet.");
    m->kv_cache_usage_perc = hd_gauge_register(registry, "hadal:kv_cache_usage_perc", "",
                                               "Share of KV blocks that running sequences hold; 1 is all of them.");
    m->prefix_cache_queries =
        hd_counter_register(registry, "hadal:prefix_cache_queries", "", "Prompt tokens looked up in the prefix cache.");
    m->prefix_cache_hits =
        hd_counter_register(registry, "hadal:prefix_cache_hits", "", "Prompt tokens found in the prefix cache.");
    m->num_preemptions =
        hd_counter_register(registry, "hadal:num_preemptions", "",
                            "Sequences taken out of the batch; memory is reserved at admission, so 0.");
    m->prompt_tokens_total = hd_counter_register(registry, "hadal:prompt_tokens_total", "", "Prompt tokens computed.");
    m->generation_tokens_total =
        hd_counter_register(registry, "hadal:generation_tokens_total", "", "Tokens generated.");
    m->iteration_tokens_total =
        hd_histogram_register(registry, "hadal:iteration_tokens_total", "", "Rows of a step, prefill and decode.",
                              hd_bounds_tokens, hd_bounds_tokens_count);
    bool is_complete = m->num_requests_running != NULL && m->num_requests_waiting != NULL &&
                       m->kv_cache_usage_perc != NULL && m->prefix_cache_queries != NULL &&
                       m->prefix_cache_hits != NULL && m->num_preemptions != NULL && m->prompt_tokens_total != NULL &&
                       m->generation_tokens_total != NULL && m->iteration_tokens_total != NULL;
    return is_complete ? HD_OK : HD_NO_MEMORY;
}

void worker_metrics_update(worker_metrics *m, const attention_stats *stats, uint32_t running, uint32_t waiting) {
    hd_gauge_set(m->num_requests_running, running);
    hd_gauge_set(m->num_requests_waiting, waiting);
    hd_gauge_set(m->kv_cache_usage_perc,
                 stats->blocks_total > 0 ? (double)stats->blocks_sequences / (double)stats->blocks_total : 0.0);
    hd_counter_add(m->prefix_cache_queries, stats->prefix_queries_tokens - m->queries_seen);
    hd_counter_add(m->prefix_cache_hits, stats->prefix_hits_tokens - m->hits_seen);
    m->queries_seen = stats->prefix_queries_tokens;
    m->hits_seen = stats->prefix_hits_tokens;
}
