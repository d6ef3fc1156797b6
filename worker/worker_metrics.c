#include "worker/worker_metrics.h"

static bool register_tiers(worker_metrics *m, hd_metrics *registry) {
    static const char *const tiers[] = {"tier=\"hot\"", "tier=\"warm\"", "tier=\"cold\""};
    bool is_complete = true;
    for (int i = 0; i < 3; i++) {
        m->tier_bytes[i] = hd_gauge_register(registry, "hadal:kv_tier_bytes", tiers[i],
                                             "Bytes of keys and values: blocks in memory, pages of cold blocks in "
                                             "memory, blocks on disk.");
        is_complete = is_complete && m->tier_bytes[i] != NULL;
    }
    m->cold_queue = hd_gauge_register(registry, "hadal:cold_queue_depth", "",
                                      "Reads and writes of the cold tier that wait or run.");
    m->page_hits = hd_counter_register(registry, "hadal:page_cache_hits", "",
                                       "Pages of cold blocks that a step needed and found in memory.");
    m->page_misses = hd_counter_register(registry, "hadal:page_cache_misses", "",
                                         "Pages of cold blocks that a step needed and read from disk.");
    m->row_hits = hd_counter_register(registry, "hadal:cold_token_hits", "",
                                      "Tokens of cold blocks that a search found and that were in memory.");
    m->row_misses = hd_counter_register(registry, "hadal:cold_token_misses", "",
                                        "Tokens of cold blocks that a search found and that were read from disk.");
    m->cold_read_bytes =
        hd_counter_register(registry, "hadal:cold_read_bytes_total", "", "Bytes read from the cold tier.");
    m->cold_written_bytes =
        hd_counter_register(registry, "hadal:cold_written_bytes_total", "", "Bytes written to the cold tier.");
    m->cold_read_errors =
        hd_counter_register(registry, "hadal:cold_read_errors_total", "", "Reads of the cold tier that failed.");
    m->cold_write_errors =
        hd_counter_register(registry, "hadal:cold_write_errors_total", "", "Writes to the cold tier that failed.");
    m->cold_verify_failures =
        hd_counter_register(registry, "hadal:cold_verify_failures_total", "",
                            "Pages whose bytes on disk were not what was written; each ended its sequence.");
    return is_complete && m->cold_queue != NULL && m->page_hits != NULL && m->page_misses != NULL &&
           m->row_hits != NULL && m->row_misses != NULL && m->cold_read_bytes != NULL &&
           m->cold_written_bytes != NULL && m->cold_read_errors != NULL && m->cold_write_errors != NULL &&
           m->cold_verify_failures != NULL;
}

static bool register_searches(worker_metrics *m, hd_metrics *registry) {
    m->searches = hd_counter_register(registry, "hadal:retrieval_searches_total", "",
                                      "Searches of indexes, one for each row, layer and KV head.");
    m->searched_tokens = hd_counter_register(registry, "hadal:retrieval_tokens_total", "",
                                             "Tokens that searches found and queries attended to.");
    m->search_bytes = hd_counter_register(registry, "hadal:retrieval_scanned_bytes_total", "",
                                          "Bytes that searches read, estimates of the rest included.");
    m->search_us = hd_counter_register(registry, "hadal:retrieval_search_microseconds_total", "",
                                       "Time of searches, added up over threads.");
    m->found_us = hd_counter_register(registry, "hadal:retrieval_attend_microseconds_total", "",
                                      "Time of attending to what searches found, added up over threads.");
    m->index_wait_us = hd_counter_register(registry, "hadal:index_wait_microseconds_total", "",
                                           "Time that steps waited for indexes to be built.");
    m->index_bytes =
        hd_gauge_register(registry, "hadal:index_bytes", "", "Memory accounted for open and retained indexes.");
    m->index_lag_tokens =
        hd_gauge_register(registry, "hadal:index_lag_tokens", "", "Tokens that are due to be indexed and are not yet.");
    return m->searches != NULL && m->searched_tokens != NULL && m->search_bytes != NULL && m->search_us != NULL &&
           m->found_us != NULL && m->index_wait_us != NULL && m->index_bytes != NULL && m->index_lag_tokens != NULL;
}

static bool register_steps(worker_metrics *m, hd_metrics *registry) {
    static const char *const parts[] = {"part=\"dense\"", "part=\"wire\"", "part=\"attention\""};
    bool is_complete = true;
    for (int i = 0; i < 3; i++) {
        m->step_us[i] = hd_counter_register(registry, "hadal:step_microseconds_total", parts[i],
                                            "Time of steps: products and sampling; the way to attention nodes and "
                                            "back; attention.");
        is_complete = is_complete && m->step_us[i] != NULL;
    }
    return is_complete;
}

void worker_metrics_count_step(worker_metrics *m, uint64_t dense_ns, uint64_t wire_ns, uint64_t attention_ns) {
    hd_counter_add(m->step_us[0], dense_ns / 1000);
    hd_counter_add(m->step_us[1], wire_ns / 1000);
    hd_counter_add(m->step_us[2], attention_ns / 1000);
}

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
    m->logits_not_finite = hd_counter_register(registry, "hadal:logits_not_finite_total", "",
                                               "Requests ended because the model's logits were not finite numbers.");
    m->iteration_tokens_total =
        hd_histogram_register(registry, "hadal:iteration_tokens_total", "", "Rows of a step, prefill and decode.",
                              hd_bounds_tokens, hd_bounds_tokens_count);
    bool has_tiers = register_tiers(m, registry), has_searches = register_searches(m, registry);
    bool has_steps = register_steps(m, registry);
    bool is_complete = has_tiers && has_searches && has_steps && m->num_requests_running != NULL &&
                       m->num_requests_waiting != NULL && m->kv_cache_usage_perc != NULL &&
                       m->prefix_cache_queries != NULL && m->prefix_cache_hits != NULL && m->num_preemptions != NULL &&
                       m->prompt_tokens_total != NULL && m->generation_tokens_total != NULL &&
                       m->logits_not_finite != NULL && m->iteration_tokens_total != NULL;
    return is_complete ? HD_OK : HD_NO_MEMORY;
}

void worker_metrics_update(worker_metrics *m, const attention_stats *stats, uint32_t running, uint32_t waiting) {
    hd_gauge_set(m->num_requests_running, running);
    hd_gauge_set(m->num_requests_waiting, waiting);
    hd_gauge_set(m->kv_cache_usage_perc,
                 stats->blocks_total > 0 ? (double)stats->blocks_sequences / (double)stats->blocks_total : 0.0);
    const attention_stats *seen = &m->seen;
    hd_counter_add(m->prefix_cache_queries, stats->prefix_queries_tokens - seen->prefix_queries_tokens);
    hd_counter_add(m->prefix_cache_hits, stats->prefix_hits_tokens - seen->prefix_hits_tokens);
    hd_gauge_set(m->tier_bytes[0], (double)stats->hot_used_bytes);
    hd_gauge_set(m->tier_bytes[1], (double)stats->warm_used_bytes);
    hd_gauge_set(m->tier_bytes[2], (double)stats->cold_used_bytes);
    hd_gauge_set(m->cold_queue, (double)stats->cold_queue);
    hd_counter_add(m->page_hits, stats->page_hits - seen->page_hits);
    hd_counter_add(m->page_misses, stats->page_misses - seen->page_misses);
    hd_counter_add(m->row_hits, stats->row_hits - seen->row_hits);
    hd_counter_add(m->row_misses, stats->row_misses - seen->row_misses);
    hd_counter_add(m->cold_read_bytes, stats->cold_read_bytes - seen->cold_read_bytes);
    hd_counter_add(m->cold_written_bytes, stats->cold_written_bytes - seen->cold_written_bytes);
    hd_counter_add(m->cold_read_errors, stats->cold_read_errors - seen->cold_read_errors);
    hd_counter_add(m->cold_write_errors, stats->cold_write_errors - seen->cold_write_errors);
    hd_counter_add(m->cold_verify_failures, stats->cold_verify_failures - seen->cold_verify_failures);
    hd_counter_add(m->searches, stats->searches - seen->searches);
    hd_counter_add(m->searched_tokens, stats->searched_tokens - seen->searched_tokens);
    hd_counter_add(m->search_bytes,
                   stats->search_bytes + stats->search_rest_bytes - seen->search_bytes - seen->search_rest_bytes);
    hd_counter_add(m->search_us, (stats->search_ns - seen->search_ns) / 1000);
    hd_counter_add(m->found_us, (stats->found_ns - seen->found_ns) / 1000);
    hd_counter_add(m->index_wait_us, (stats->index_wait_ns - seen->index_wait_ns) / 1000);
    hd_gauge_set(m->index_bytes, (double)stats->index_bytes);
    hd_gauge_set(m->index_lag_tokens, (double)stats->index_lag_tokens);
    m->seen = *stats;
}
