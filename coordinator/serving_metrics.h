/* serving_metrics.h - what clients see of the server, measured: times, lengths and ends of requests.
 *
 * Names are those of other servers' dashboards under the prefix hadal:. The worker counts what it alone knows (running,
 * waiting, KV use, prefix cache).
 * Threads: updates from any. */
#ifndef COORDINATOR_SERVING_METRICS_H
#define COORDINATOR_SERVING_METRICS_H

#include "base/metrics.h"
#include "proto/worker_rpc.h"

typedef enum {
    REQUEST_END_STOP,
    REQUEST_END_LENGTH,
    REQUEST_END_ABORT,
    REQUEST_END_ERROR,
    REQUEST_END_COUNT
} request_end;

typedef struct serving_metrics {
    hd_histogram *time_to_first_token, *inter_token_latency, *e2e_request_latency, *request_queue_time,
        *request_inference_time, *request_prefill_time, *request_decode_time;
    hd_histogram *request_prompt_tokens, *request_generation_tokens, *request_params_n, *request_params_max_tokens;
    hd_counter *request_success[REQUEST_END_COUNT];
    hd_counter *responses[6]; /* by the status' first digit */
} serving_metrics;

/* registry may be NULL: every update does nothing then. info: of the one worker; NULL in a cluster, where workers tell
 * it. */
hd_status serving_metrics_init(serving_metrics *metrics, hd_metrics *registry, const worker_info *info);
void serving_metrics_count_answer(serving_metrics *metrics, unsigned status);

#endif
