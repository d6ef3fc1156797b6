/* server.c - see server.h. */
#include "cli/server.h"

#include <string.h>
#include <sys/resource.h>

#define HTTP_THREADS_MAX 64u
#define FILES_RESERVED 128u /* for everything that is not a connection: weights, epoll sets, logs */

size_t server_options_flags(server_options *o, hd_flag *flags) {
    const hd_flag all[] = {
        {"listen", HD_FLAG_STRING, &o->listen, "HOST:PORT",
         "where clients connect; without --api-keys a loopback address", false},
        {"api-keys", HD_FLAG_STRING, &o->api_keys, "FILE",
         "bearer keys, one a line; 'admin' behind one lets it empty the cache", false},
        {"default-max-tokens", HD_FLAG_U64, &o->default_max_tokens, "N",
         "of an answer whose request names no max_tokens", false},
        {"max-body", HD_FLAG_SIZE, &o->max_body, "BYTES", "of a request's body", false},
        {"request-timeout", HD_FLAG_DURATION, &o->request_timeout, "TIME",
         "from arrival to the end of the answer (default: none)", false},
        {"queue-timeout", HD_FLAG_DURATION, &o->queue_timeout, "TIME", "from arrival to the first step (default: none)",
         false},
        {"stall-timeout", HD_FLAG_DURATION, &o->stall_timeout, "TIME",
         "a client that takes nothing of its answer for so long is cut off", false},
        {"keep-alive", HD_FLAG_DURATION, &o->keep_alive, "TIME", "of silence on a stream, between two comments", false},
        {"http-threads", HD_FLAG_U64, &o->http_threads, "N",
         "threads that move bytes of connections (default: by the CPUs, 1 to 8)", false},
    };
    memcpy(flags, all, sizeof(all));
    return sizeof(all) / sizeof(all[0]);
}

hd_status server_options_check(const server_options *o, hd_error *error) {
    if (o->default_max_tokens == 0) return hd_error_set(error, HD_INVALID, "--default-max-tokens must be at least 1");
    if (o->stall_timeout < 1000) return hd_error_set(error, HD_INVALID, "--stall-timeout must be at least 1s");
    if (o->keep_alive < 100) return hd_error_set(error, HD_INVALID, "--keep-alive must be at least 100ms");
    if (o->http_threads > HTTP_THREADS_MAX)
        return hd_error_set(error, HD_INVALID, "--http-threads must be at most %u", HTTP_THREADS_MAX);
    if (o->max_body < 1024) return hd_error_set(error, HD_INVALID, "--max-body must be at least 1K");
    return HD_OK;
}

/* Each connection is a file, and the listener closes none before the next has come. */
static uint32_t connections_max(uint32_t wanted) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return wanted;
    uint64_t files = limit.rlim_cur > 2 * FILES_RESERVED ? limit.rlim_cur - FILES_RESERVED : FILES_RESERVED;
    return files < wanted ? (uint32_t)files : wanted;
}

static coordinator_config config_of(const server_options *o, hd_metrics *metrics) {
    coordinator_config config = COORDINATOR_CONFIG_DEFAULTS;
    config.listen_address = o->listen;
    config.api_keys_file = o->api_keys;
    config.body_bytes_max = o->max_body;
    config.default_max_tokens = o->default_max_tokens;
    config.request_timeout_ms = o->request_timeout;
    config.queue_timeout_ms = o->queue_timeout;
    config.stall_timeout_ms = o->stall_timeout;
    config.keep_alive_ms = o->keep_alive;
    config.http_threads = (unsigned)o->http_threads;
    config.connections_max = connections_max(config.connections_max);
    config.metrics = metrics;
    return config;
}

hd_status server_open(const server_options *o, const node *n, coordinator **out, hd_error *error) {
    coordinator_config config = config_of(o, n->metrics);
    config.worker = worker_rpc_of(n->worker);
    config.text = n->text;
    config.model_name = n->settings.model_name;
    return coordinator_open(&config, out, error);
}

hd_status server_open_cluster(const server_options *o, router *routes, const model_set *models,
                              const char *operator_listen, hd_metrics *metrics, coordinator **out, hd_error *error) {
    coordinator_config config = config_of(o, metrics);
    config.router = routes;
    config.models = models;
    config.operator_address = operator_listen;
    return coordinator_open(&config, out, error);
}
